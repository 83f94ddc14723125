"""`pretrain`: contrastive pre-training of an encoder on stores, without labels.

Pairs come from `data.segments`, the module from `cola`; `trainer` runs the training and `runs`
keeps the result.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from colalib.cola import Cola
from colalib.data.clips import VALIDATION_CLIPS, Clips, pretraining_clips, split_validation
from colalib.data.segments import pair_batch, segment_std
from colalib.data.store import open_store
from colalib.errors import UserError
from colalib.files import fingerprint, is_main_process, locked
from colalib.settings import PretrainConfig
from colalib.training.callbacks import Snapshots
from colalib.training.runs import enter_run, save_encoder, snapshot_name, write_run_config
from colalib.training.trainer import check_settings, fit, interruptible, training_alone

MIN_CLIPS = 8  # fewer give no distractors worth the name


def pretrain(
    stores,
    out: Path | str,
    config: PretrainConfig,
    resume: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
    trainer_kwargs: dict | None = None,
    leave_out: str | None = None,
    snapshots: bool = False,
) -> Path:
    """Pre-train an encoder by contrast on one or more stores (COLA); return the run folder `out`.

    About 5% of the clips, by whole groups, are held out for validation pairs (`split_validation`).
    With `resume` an interrupted run goes on, and a finished one is returned as it is. Raises
    `UserError` for settings that cannot be used.

    Test clips are never heard, nor is the fold `leave_out` of stores with folds: an encoder that
    shall be judged on a fold is pre-trained without it.

    With `snapshots` the encoder is also kept on its way (`Run.snapshots`): at steps 0, 8, 16, 32 and
    on in powers of two, and at the end.

    `trainer_kwargs` goes to `lightning.Trainer`, e.g. {"devices": 8, "num_nodes": 2, "strategy":
    "ddp"}. Each process then draws its part of the `batch_size` pairs and takes the distractors of
    all (`cola.gather_embeddings`). BatchNorm takes the statistics of the part; the running
    statistics that are kept are those of the main process.
    """
    out, trainer_kwargs = Path(out), trainer_kwargs or {}
    processes = count_processes(trainer_kwargs)
    clips = pretraining_clips([open_store(store) for store in stores], leave_out)
    check_settings(config, accelerator)
    check_clips(clips, config, processes)
    data = {
        "corpora": [store.name for store in clips.stores],
        "n_clips": len(clips),
        "clips": fingerprint(clips.ids),
    }
    alone = training_alone() if processes == 1 else nullcontext()
    with alone, locked(out) if is_main_process() else nullcontext():
        if enter_run(out, "pretrain", config, data, resume):
            return out
        there = sum(map(len, clips.stores))
        if progress and is_main_process() and len(clips) < there:
            fold = f" and fold {leave_out}" if leave_out else ""
            print(f"{len(clips):,} of {there:,} clips are heard: test clips{fold} are left out", flush=True)
        train, valid = split_validation(clips)
        if len(train) < 2 * processes:
            raise UserError(f"{len(train)} clips are left to train on beside those of validation: too few")
        batch_size = min(config.batch_size, len(train) // processes * processes)
        torch.manual_seed(config.seed)
        module = Cola(config, segment_std(train, config.seed))
        write_run_config(out, "pretrain", config, data, module.encoder, clips.mel, clips.ids)

        def make_batch(step: int):
            augmentations = config.filter_db, config.mask_bands, config.mask, config.multiply
            part = module.global_rank, processes
            return pair_batch(train, step, batch_size, config.seed, *augmentations, part)

        def fixed_pairs(of: Clips) -> DataLoader:
            """Pairs of up to 256 clips without augmentations, the same at every validation of any seed."""
            size = min(batch_size, len(of))
            steps = max(1, min(VALIDATION_CLIPS, len(of)) // size)
            return DataLoader([pair_batch(of, s, size, 0) for s in range(steps)], batch_size=None)

        trainer_kwargs = {"accelerator": accelerator} | trainer_kwargs
        steps_per_epoch = len(train) // batch_size
        more = [Snapshots(out)] if snapshots else []
        trainer = fit(
            module,
            config,
            out,
            make_batch,
            fixed_pairs(valid),
            steps_per_epoch,
            trainer_kwargs,
            progress,
            more,
        )
        test_rows = [np.flatnonzero(store.clips["split"].values == "test") for store in clips.stores]
        if sum(map(len, test_rows)) > 1:
            with interruptible():
                trainer.test(module, fixed_pairs(Clips(clips.stores, test_rows)), verbose=False)
        if snapshots:
            save_encoder(module.encoder, out, snapshot_name(trainer.global_step))
        save_encoder(module.encoder, out)
    return out


def count_processes(trainer_kwargs: dict) -> int:
    """Return how many processes train together. Raises `UserError` if the launcher started another number."""
    nodes = trainer_kwargs.get("num_nodes", 1)
    processes = trainer_kwargs.get("devices", 1) * nodes
    # by torchrun or srun; Lightning's own launcher leaves WORLD_SIZE behind, but no RANK
    started = os.environ.get("WORLD_SIZE" if "RANK" in os.environ else "SLURM_STEP_NUM_TASKS")
    if started and int(started) != processes:
        raise UserError(
            f"{started} processes were started, but --devices times --nodes are {processes}: make them agree"
        )
    if nodes > 1 and not (started or "MASTER_ADDR" in os.environ):
        raise UserError(
            f"{nodes} machines need a launcher that starts a process for each device: torchrun or srun"
        )
    return processes


def check_clips(clips: Clips, config: PretrainConfig, processes: int) -> None:
    """Raise `UserError` for clips that come twice or are too few, or a batch that processes cannot share."""
    if processes > 1 and (config.batch_size % processes or config.batch_size < 2 * processes):
        raise UserError(
            f"a batch size of {config.batch_size} cannot be shared by {processes} processes: take a multiple"
        )
    if (repeated := pd.Index(clips.ids).duplicated()).any():
        raise UserError(
            f"clip {clips.ids[repeated][0]} comes twice: name each store once, "
            "and give folders of one name different names"
        )
    if len(clips) < MIN_CLIPS:
        raise UserError(f"{len(clips)} clips are too few to pre-train on: at least {MIN_CLIPS}")
