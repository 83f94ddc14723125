"""The training loop: Lightning's Trainer on batches by step number, for given steps or minutes, resumable.

`pretraining` and `finetuning` give the module and the batches, `callbacks` what happens beside a step. What
is left on disk lies in a run folder (`runs`).
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from colalib.data.segments import StepDataset
from colalib.encoder import choose_device
from colalib.errors import UserError, first_line
from colalib.fast_cpu import keep_freed_memory
from colalib.files import is_main_process
from colalib.settings import check_limits
from colalib.training.callbacks import (
    DIVERGED,
    LOG_STEPS,
    LastCheckpoint,
    MetricsCsv,
    ProgressBar,
    Schedule,
    WholeCheckpoints,
)
from colalib.training.runs import read_checkpoint

LOADER_PROCESSES = 4  # that draw batches while a GPU works
RANK_VARIABLES = tuple("RANK WORLD_SIZE LOCAL_ NODE_RANK GROUP_ MASTER_ TORCHELASTIC_ SLURM_ JSM_".split())


@contextmanager
def training_alone():
    """Hide the variables of torchrun, Slurm and the like: a training on one device has no other ranks.

    Otherwise Lightning would look for the other processes of a job in which only this one trains.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(RANK_VARIABLES)}
    rank = rank_zero_only.rank  # Lightning has read it at import
    rank_zero_only.rank = 0
    try:
        yield
    finally:
        os.environ.update(hidden)
        rank_zero_only.rank = rank


def total_steps(config, steps_per_epoch: int) -> int | None:
    """Return the number of steps that `config` asks for, None if it asks for minutes.

    Raises `UserError` unless exactly one of steps, epochs and minutes is set.
    """
    given = [name for name in ("steps", "epochs", "minutes") if getattr(config, name) is not None]
    if len(given) != 1:
        raise UserError(f"give one of steps, epochs and minutes, not {' and '.join(given) or 'none'}")
    if getattr(config, given[0]) <= 0:
        raise UserError(f"{given[0]} must be above 0")
    return config.steps or (config.epochs and math.ceil(config.epochs * steps_per_epoch))


def check_settings(config, accelerator: str) -> None:
    """Raise `UserError` for a setting out of its limits, an unclear length, or a missing `accelerator`."""
    check_limits(config)
    total_steps(config, steps_per_epoch=1)
    choose_device(accelerator)


def fit(
    module,
    config,
    out: Path,
    make_batch,
    valid: DataLoader,
    steps_per_epoch: int,
    trainer_kwargs: dict,
    progress: bool,
    more_callbacks: Sequence[Callback] = (),
) -> lightning.Trainer:
    """Train `module` on `make_batch(step)` under Lightning; go on from `out/last.ckpt` if it is there.

    Validates on `valid` once per epoch, but at least every 200 steps and at most every 50, and at
    the end. best.ckpt holds the weights with the best value of `module.monitor` (metric, "min" or
    "max"). Curves go to metrics.csv, and to TensorBoard if it is installed. `trainer_kwargs`:
    accelerator, devices and so on, for `lightning.Trainer`.
    """
    quiet_lightning()
    keep_freed_memory()
    last = out / "last.ckpt"
    start_step, spent, over = read_position(last) if last.exists() else (0, 0.0, False)
    schedule = Schedule(config, total_steps(config, steps_per_epoch))
    loggers = [MetricsCsv(out / "metrics.csv", steps_per_epoch, start_step, spent)]
    bar = ProgressBar(out.name, schedule, progress and is_main_process())
    metric, mode = module.monitor
    best = BestCheckpoint(
        dirpath=out,
        filename="best",
        monitor=metric,
        mode=mode,
        save_weights_only=True,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    callbacks = [schedule, *more_callbacks, LastCheckpoint(last, schedule), bar, best]
    if getattr(config, "patience", None):
        callbacks.append(EarlyStopping(metric, mode=mode, patience=config.patience))
    if find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(out, name="", version="tensorboard"))
    cuda = trainer_kwargs["accelerator"] in ("auto", "cuda") and torch.cuda.is_available()
    options = {"devices": 1, "precision": "bf16-mixed" if cuda else "32-true"} | trainer_kwargs
    try:
        trainer = lightning.Trainer(
            **options,
            use_distributed_sampler=False,
            max_steps=start_step if over else schedule.steps or -1,  # not a step more than before
            max_epochs=-1,
            val_check_interval=max(50, min(LOG_STEPS * (steps_per_epoch // LOG_STEPS), 200)),
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            logger=loggers,
            log_every_n_steps=LOG_STEPS,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
        )
    except (MisconfigurationException, ValueError) as error:  # more devices than there are, for one
        raise UserError(f"this training cannot be started: {first_line(error)}") from None
    wanted = options["devices"] * options.get("num_nodes", 1)
    if trainer.world_size != wanted:  # Slurm without srun, for one
        raise UserError(
            f"{trainer.world_size} of {wanted} processes would train: start them by torchrun or srun"
        )
    # a spawned process could not be given the batches' closures
    processes = LOADER_PROCESSES if cuda and multiprocessing.get_start_method() == "fork" else 0
    batches = StepDataset(make_batch, lambda: trainer.global_step)
    loader = DataLoader(
        batches, batch_size=None, pin_memory=cuda, num_workers=processes, worker_init_fn=ignore_sigterm
    )
    with interruptible():
        try:
            trainer.fit(module, loader, valid, ckpt_path=last if start_step else None, weights_only=True)
        finally:
            bar.bar.close()
        keep_if_best(trainer, module, valid, best)
    return trainer


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning answers Ctrl-C by SystemExit, and leaves Ctrl-C ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


class BestCheckpoint(ModelCheckpoint):
    """Knows its best score again when a run folder was moved."""

    @property
    def state_key(self):
        return super().state_key.replace(type(self).__qualname__, "ModelCheckpoint", 1)  # as in older runs

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})


def ignore_sigterm(worker: int) -> None:
    """Let a loader's process outlive SIGTERM, which torchrun sends to all: it ends with its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def read_position(last: Path) -> tuple[int, float, bool]:
    """Return the step of a checkpoint, the seconds spent, and whether the training was over.

    Raises `UserError` if it is none of ours.
    """
    checkpoint = read_checkpoint(last)
    try:
        if not all(torch.isfinite(w).all() for w in checkpoint["state_dict"].values()):
            raise UserError(f"{last}: its weights are NaN or infinite: start a new run with a lower --lr")
        schedule = checkpoint["callbacks"]["Schedule"]
        return int(checkpoint["global_step"]), float(schedule["spent"]), schedule.get("over", False)
    except (KeyError, TypeError):
        raise UserError(f"{last}: not a checkpoint of this run: delete it, or start a new run") from None


def keep_if_best(trainer: lightning.Trainer, module, valid: DataLoader, best: BestCheckpoint) -> None:
    """Validate at the end of a training, and keep the weights as best.ckpt if they are the best."""
    metric, mode = module.monitor
    values = trainer.validate(module, valid, verbose=False)[0]
    if not math.isfinite(values["valid/loss"]):
        raise UserError(DIVERGED.format(trainer.global_step))
    score = values[metric]
    sign = 1 if mode == "max" else -1
    better = best.best_model_score is None or sign * score >= sign * float(best.best_model_score)
    if trainer.strategy.broadcast(better):
        trainer.save_checkpoint(Path(best.dirpath) / "best.ckpt", weights_only=True)


def quiet_lightning() -> None:
    """Silence Lightning's banner and its advice that does not apply: batches are crops of a memory map."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*IterableDataset.*",
        ".*ckpt_path.*",
        ".*module.s. in eval mode.*",  # a frozen encoder
        ".*treespec.*",
        ".*all_gather is deprecated.*",  # for a function that torch keeps for itself
        ".*Grad strides do not match bucket view strides.*",  # of 3 x 3 filters; costs a copy
    ):
        warnings.filterwarnings("ignore", text)
