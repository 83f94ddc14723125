"""The training loop: Lightning's Trainer on batches by step number, by steps or by minutes, resumable.

`training` gives the module and the batches; what is left on disk lies in a run folder (`runs`).
"""

from __future__ import annotations

import csv
import io
import logging
import math
import multiprocessing
import signal
import threading
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from colalib.errors import UserError
from colalib.files import atomic, leads
from colalib.models import choose_device
from colalib.runs import read_checkpoint
from colalib.segments import Steps
from colalib.settings import check_limits

CHECKPOINT_STEPS = 50  # last.ckpt is written every so many steps,
CHECKPOINT_SECONDS = 10  # or seconds, if these pass first
LOADERS = 4  # processes that draw batches while a GPU works


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all. Lightning's own are written to the system's folder for temporary files and
    moved from there, which between two disks is a copy, and of that a kill may leave a half."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic(Path(path)) as file:
            file.write(content.getbuffer())


class Schedule(Callback):
    """Learning rate, end, progress bar and last.ckpt of a training given in steps or minutes; keys torch's random numbers
    (dropout) by (seed, step). Keeps the time already spent in the checkpoint. What depends on a clock or a signal is told
    by the leading process to all."""

    def __init__(self, config, steps: int | None, progress: bool, out: Path):
        self.config, self.steps, self.out, self.spent = config, steps, out, 0.0
        self.ended = False  # by SIGTERM, as Slurm and torchrun send it before a machine is taken away
        self.bar = tqdm(
            total=100,
            desc=out.name,
            unit="%",
            disable=not progress,
            mininterval=1,
            bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
        )

    def state_dict(self):
        return {"spent": time.monotonic() - self.begun}

    def load_state_dict(self, state):
        self.spent = float(state["spent"])

    def on_train_start(self, trainer, module):
        self.saved = time.monotonic()
        self.begun = self.saved - self.spent
        self.share = trainer.strategy.broadcast(self.done(trainer.global_step))
        if threading.current_thread() is threading.main_thread():  # Lightning puts back what was there before its own
            signal.signal(signal.SIGTERM, lambda *_: setattr(self, "ended", True))

    def done(self, step: int) -> float:
        """Share of the training that lies behind step number `step`."""
        return step / self.steps if self.steps else (time.monotonic() - self.begun) / (60 * self.config.minutes)

    def on_train_batch_start(self, trainer, module, batch, index):
        step, warmup = trainer.global_step, self.config.warmup
        done = min(self.share, 1.0)
        share = done / warmup if done < warmup else (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
        if self.steps and step < warmup * self.steps:
            share = (step + 1) / (warmup * self.steps + 1)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.config.lr * share
        module.log("lr", self.config.lr * share)
        torch.manual_seed(int(np.random.default_rng((self.config.seed, 5, step)).integers(2**62)))

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        step = trainer.global_step
        late = self.ended or time.monotonic() - self.saved > CHECKPOINT_SECONDS
        self.share, late, ended = trainer.strategy.broadcast((self.done(step), late, self.ended))
        # beside the steps that are logged and validated (multiples of 5), so that a resumed run cuts none of these in two
        save = step % CHECKPOINT_STEPS == 2 or (late and step % 5 == 2)
        if (save or self.share >= 1) and not torch.isfinite(outputs["loss"]):
            raise UserError(f"the loss is no number any more at step {step}: start again with a lower --lr")
        if save:
            trainer.save_checkpoint(self.out / "last.ckpt")
            self.saved = time.monotonic()
            if ended:
                raise SystemExit
        done = self.share
        values = {
            k: f"{float(v):.3g}"
            for k, v in trainer.callback_metrics.items()
            if k in ("train/loss", "train/accuracy", "valid/accuracy")
        }
        self.bar.set_postfix(step=step, **values, refresh=False)
        self.bar.update(min(100 * done, 100) - self.bar.n)
        if done >= 1:
            trainer.should_stop = True

    def on_train_end(self, trainer, module):
        trainer.save_checkpoint(self.out / "last.ckpt")
        self.bar.close()


class MetricsCsv(Logger):
    """metrics.csv: a row a logged step, with seconds since the start; a resumed run goes on behind the step it resumes at."""

    FIELDS = ["step", "epoch", "seconds", "lr"] + [
        f"{s}/{m}" for s in ("train", "valid", "test") for m in ("loss", "accuracy", "rank")
    ]
    name, version, experiment = "csv", "", None

    def __init__(self, path: Path, epoch: int, first: int = 0, spent: float = 0.0):
        super().__init__()
        self.path, self.epoch, self.begun = path, epoch, time.monotonic() - spent
        if not leads():
            return
        rows = []
        if path.exists() and first:
            with open(path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["step"] and int(row["step"]) < first]
        with atomic(path, "w") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    def log_hyperparams(self, *args, **kwargs):
        """Settings are in config.json."""

    @rank_zero_only
    def log_metrics(self, metrics: dict, step: int | None = None):
        row = {k: f"{v:.6g}" for k, v in metrics.items() if k in self.FIELDS}
        row |= {"step": step, "epoch": f"{step / self.epoch:.3f}", "seconds": f"{time.monotonic() - self.begun:.2f}"}
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.FIELDS).writerow(row)


def total_steps(config, epoch: int) -> int | None:
    """Number of steps that `config` asks for, None where it goes by minutes. Raises `UserError` unless exactly one is set."""
    given = [name for name in ("steps", "epochs", "minutes") if getattr(config, name) is not None]
    if len(given) != 1:
        raise UserError(f"give one of steps, epochs and minutes, not {' and '.join(given) or 'none'}")
    if getattr(config, given[0]) <= 0:
        raise UserError(f"{given[0]} must be above 0")
    return config.steps or (config.epochs and math.ceil(config.epochs * epoch))


def check_settings(config, accelerator: str) -> None:
    """Raises `UserError` where a setting is none of its choices or out of its limits, where the length of the training is not
    given once, or this machine has no such `accelerator`."""
    check_limits(config)
    total_steps(config, epoch=1)
    choose_device(accelerator)


def fit(
    module,
    config,
    out: Path,
    batch,
    valid: DataLoader,
    epoch: int,
    monitor: tuple[str, str],
    accelerator: str,
    progress: bool,
    more: dict | None = None,
) -> lightning.Trainer:
    """Train `module` on `batch(step)` under Lightning; resumes from `out/last.ckpt` if it is there. Validates every epoch
    (of `epoch` steps), but not more often than every 50 steps nor less than every 200, and at the end; best.ckpt holds the
    weights with the best value of `monitor` (name, "min" or "max"). `more`: further arguments of the Trainer. Curves go to
    metrics.csv, and to TensorBoard if it is installed."""
    quiet_lightning()
    cuda = accelerator in ("auto", "cuda") and torch.cuda.is_available()
    last = out / "last.ckpt"
    first, spent = 0, 0.0
    if last.exists():
        checkpoint = read_checkpoint(last)
        try:
            first, spent = int(checkpoint["global_step"]), float(checkpoint["callbacks"]["Schedule"]["spent"])
        except (KeyError, TypeError):
            raise UserError(f"{last}: not a checkpoint of this run: delete it, or start a new run") from None
    steps = total_steps(config, epoch)
    schedule = Schedule(config, steps, progress and leads(), out)
    keep = {"dirpath": out, "enable_version_counter": False, "save_on_train_epoch_end": False}
    best = ModelCheckpoint(filename="best", monitor=monitor[0], mode=monitor[1], save_weights_only=True, **keep)
    callbacks = [schedule, best]
    if getattr(config, "patience", None):
        callbacks.append(EarlyStopping(monitor[0], mode=monitor[1], patience=config.patience))
    loggers = [MetricsCsv(out / "metrics.csv", epoch, first, spent)]
    if find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(out, name="", version="tensorboard"))
    trainer = lightning.Trainer(
        **{"devices": 1, "precision": "bf16-mixed" if cuda else "32-true"} | (more or {}),
        accelerator=accelerator,
        use_distributed_sampler=False,
        max_steps=steps or -1,
        max_epochs=-1,
        val_check_interval=max(50, min(5 * (epoch // 5), 200)),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        logger=loggers,
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )
    steps_from = Steps(batch, lambda: trainer.global_step)
    workers = (
        LOADERS if cuda and multiprocessing.get_start_method() == "fork" else 0
    )  # a spawned one could not be given these
    loader = DataLoader(steps_from, batch_size=None, pin_memory=cuda, num_workers=workers)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, loader, valid, ckpt_path=last if first else None, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C, after which it leaves Ctrl-C ignored
        signal.signal(signal.SIGINT, interrupt)
        raise KeyboardInterrupt from None
    finally:
        schedule.bar.close()
    score = trainer.validate(module, valid, verbose=False)[0][monitor[0]]
    sign = 1 if monitor[1] == "max" else -1
    better = best.best_model_score is None or sign * score >= sign * float(best.best_model_score)
    if trainer.strategy.broadcast(better):
        trainer.save_checkpoint(out / "best.ckpt", weights_only=True)
    return trainer


def quiet_lightning() -> None:
    """Lightning's advice on worker processes and its banner do not apply: batches are crops of a memory map."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*IterableDataset.*",
        ".*ckpt_path.*",
        ".*treespec.*",
        ".*all_gather is deprecated.*",  # for a function that torch keeps for itself
        ".*Grad strides do not match bucket view strides.*",  # of 3 x 3 filters; costs a copy
    ):
        warnings.filterwarnings("ignore", text)
