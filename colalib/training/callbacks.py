"""What happens beside the steps of a training: learning rate, checkpoints, snapshots, a bar, metrics.csv."""

from __future__ import annotations

import csv
import io
import math
import signal
import threading
import time
from pathlib import Path

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from tqdm.auto import tqdm

from colalib.data.streams import stream
from colalib.errors import UserError, first_line
from colalib.files import STOP, atomic, is_main_process
from colalib.training.runs import Run, save_encoder, snapshot_name

LOG_STEPS = 5  # metrics.csv gets a row every so many steps
CHECKPOINT_STEPS = 50  # last.ckpt is written every so many steps,
CHECKPOINT_SECONDS = 10  # or seconds, if these pass first
DIVERGED = "the loss became NaN or infinite by step {}: start again with a lower --lr"


class Schedule(Callback):
    """Sets the learning rate, seeds dropout by (seed, step), and stops after the given steps or minutes.

    `done` is the share of the training that is over, 0 to 1. With several processes the main
    process reads the clock for all.
    """

    def __init__(self, config, steps: int | None):
        self.config = config
        self.steps = steps
        self.spent = 0.0  # seconds before this process, from the checkpoint
        self.done = 0.0
        self.over = False

    def state_dict(self):
        return {"spent": time.monotonic() - self.begun, "over": self.over}

    def load_state_dict(self, state):
        self.spent = float(state["spent"])

    def on_train_start(self, trainer, module):
        self.begun = time.monotonic() - self.spent
        self.done = trainer.strategy.broadcast(self.share(trainer.global_step))

    def share(self, step: int) -> float:
        """Return the share of the training that is over after `step` steps."""
        if self.steps:
            return step / self.steps
        return (time.monotonic() - self.begun) / (60 * self.config.minutes)

    def on_train_batch_start(self, trainer, module, batch, index):
        step = trainer.global_step
        learning_rate = self.config.lr * self.factor(step)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate * group.get("factor", 1.0)
        module.log("lr", learning_rate)
        torch.manual_seed(int(stream("dropout", self.config.seed, step).integers(2**62)))

    def factor(self, step: int) -> float:
        """Return the learning rate as a share of its peak: a linear warm-up, then a cosine down to 0."""
        warmup, done = self.config.warmup, min(self.done, 1.0)
        if self.steps and step < warmup * self.steps:
            return (step + 1) / (warmup * self.steps + 1)  # the first step moves too
        if done < warmup:
            return done / warmup
        return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.done = trainer.strategy.broadcast(self.share(trainer.global_step))
        if self.done >= 1:
            trainer.should_stop = True

    def on_train_end(self, trainer, module):
        self.over = True


class LastCheckpoint(Callback):
    """Writes last.ckpt every 50 steps or 10 seconds, and at SIGTERM, after which the training ends.

    SIGTERM is what Slurm and torchrun send before a machine is taken away. Raises `UserError` if
    the loss is NaN or infinite.
    """

    def __init__(self, path: Path, schedule: Schedule):
        self.path = path
        self.schedule = schedule
        self.terminated = False

    def on_train_start(self, trainer, module):
        self.saved = time.monotonic()
        # Lightning puts back its own handlers afterwards; only a main thread may set any
        if threading.current_thread() is threading.main_thread():
            signal.signal(STOP, lambda *_: setattr(self, "terminated", True))

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        step = trainer.global_step
        late = self.terminated or time.monotonic() - self.saved > CHECKPOINT_SECONDS
        late, terminated = trainer.strategy.broadcast((late, self.terminated))
        # not at steps that are logged and validated (multiples of 5): a resumed run would cut them in two
        save = step % CHECKPOINT_STEPS == 2 or (late and step % LOG_STEPS == 2)
        save = save or (terminated and step % LOG_STEPS != 0)
        if (save or self.schedule.done >= 1) and not torch.isfinite(outputs["loss"]):
            raise UserError(DIVERGED.format(step))
        if save:
            trainer.save_checkpoint(self.path)
            self.saved = time.monotonic()
            if terminated:
                raise SystemExit

    def on_train_end(self, trainer, module):
        trainer.save_checkpoint(self.path)


class Snapshots(Callback):
    """Writes the encoder at steps 0, 8, 16, 32 and on in powers of two: it changes fastest at first.

    A resumed run goes on from its checkpoint. Snapshots of later steps are removed; they come again.
    """

    FIRST = 8

    def __init__(self, out: Path):
        self.out = out

    @rank_zero_only
    def on_train_start(self, trainer, module):
        for step, file in Run(self.out).snapshots().items():
            if step > trainer.global_step:
                file.unlink()
        if trainer.global_step == 0:
            save_encoder(module.encoder, self.out, snapshot_name(0))

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        step = trainer.global_step
        if step >= self.FIRST and step & (step - 1) == 0:
            save_encoder(module.encoder, self.out, snapshot_name(step))


class ProgressBar(Callback):
    """Shows the share that is done, the step, and the latest loss and accuracy."""

    SHOWN = ("train/loss", "train/accuracy", "valid/accuracy")

    def __init__(self, name: str, schedule: Schedule, shown: bool):
        self.schedule = schedule
        self.bar = tqdm(
            total=100,
            desc=name,
            unit="%",
            disable=not shown,
            mininterval=1,
            bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        values = {k: f"{float(v):.3g}" for k, v in trainer.callback_metrics.items() if k in self.SHOWN}
        self.bar.set_postfix(step=trainer.global_step, **values, refresh=False)
        self.bar.update(min(100 * self.schedule.done, 100) - self.bar.n)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints that appear whole or not at all.

    Lightning writes to the system's temporary folder and moves the file from there. Between two
    disks that is a copy, of which a kill may leave half.
    """

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic(Path(path)) as file:
            file.write(content.getbuffer())


class MetricsCsv(Logger):
    """Logger that writes metrics.csv: one row per logged step, with seconds since the start.

    A resumed run drops the rows from `start_step` on and goes on there.
    """

    FIELDS = ["step", "epoch", "seconds", "lr"] + [
        f"{stage}/{value}" for stage in ("train", "valid", "test") for value in ("loss", "accuracy", "rank")
    ]
    name, version, experiment = "csv", "", None  # asked for by Lightning

    def __init__(self, path: Path, steps_per_epoch: int, start_step: int = 0, spent: float = 0.0):
        super().__init__()
        self.path = path
        self.steps_per_epoch = steps_per_epoch
        self.begun = time.monotonic() - spent
        if not is_main_process():
            return
        rows = self.rows_before(start_step) if path.exists() and start_step else []
        with atomic(path, "w") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    def rows_before(self, step: int) -> list[dict]:
        """Return the rows of the file before a step. Raises `UserError` if it is damaged."""
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row["step"] and int(row["step"]) < step]
            if unknown := {name for row in rows for name in row if name not in self.FIELDS}:
                raise ValueError(f"columns {unknown}")
            return rows
        except (ValueError, KeyError, csv.Error) as error:
            raise UserError(
                f"{self.path}: damaged ({first_line(error)}): delete it to go on without its rows"
            ) from None

    def log_hyperparams(self, *args, **kwargs):
        """Do nothing: settings are in config.json."""

    @rank_zero_only
    def log_metrics(self, metrics: dict, step: int | None = None):
        row = {k: f"{v:.6g}" for k, v in metrics.items() if k in self.FIELDS}
        row["step"] = step
        row["epoch"] = f"{step / self.steps_per_epoch:.3f}"
        row["seconds"] = f"{time.monotonic() - self.begun:.2f}"
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.FIELDS).writerow(row)
