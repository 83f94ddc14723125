"""Profiles of the course, and what one notebook leaves for the next.

Notebooks take `profile`, `corpus`, `store` and `encoder` from here, so that each runs on its own:
what an earlier notebook would have made is loaded if it is there, and made if it is not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from colalib import training
from colalib.data import corpora
from colalib.data.store import MelStore, build
from colalib.errors import UserError
from colalib.files import runs_folder
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training.runs import Run
from colalib.widgets.choices import chosen_encoder


@dataclass(frozen=True)
class Profile:
    """How much of everything the notebooks do."""

    name: str
    clips_per_class: int  # of the corpus `scores`, which has 8 classes
    pretrain_minutes: float
    finetune_minutes: float  # of each supervised run
    seeds: int  # of everything that is repeated
    labels_per_class: tuple[int | None, ...]  # label budgets; None: all
    minutes: int  # about what the whole course takes on 2 cores
    disk_gb: float  # that the whole course needs


PROFILES = {
    "test": Profile("test", 20, 0.15, 0.05, 2, (5, None), 5, 0.1),
    "quick": Profile("quick", 200, 4.0, 0.5, 3, (10, None), 24, 0.6),
    "full": Profile("full", 200, 20.0, 2.0, 5, (2, 5, 10, 20, 50, None), 150, 0.8),
}


def profile() -> Profile:
    """Return the profile that the variable COLA_PROFILE names; `quick` if it is not set.

    Raises `UserError` for an unknown name.
    """
    name = os.environ.get("COLA_PROFILE", "quick")
    if name not in PROFILES:
        raise UserError(f"COLA_PROFILE is {name!r}: use one of {', '.join(PROFILES)}")
    return PROFILES[name]


def corpus() -> corpora.Corpus:
    """Return the demo corpus at the profile's size; it is rendered at the first call."""
    return corpora.load("scores", clips_per_class=profile().clips_per_class)


def store() -> MelStore:
    """Return the demo corpus as a store; it is prepared at the first call."""
    clips = corpus()
    return build(clips, clips.root.with_name(f"{clips.root.name}.store"))


def encoder() -> Path:
    """Return the run folder of the course's encoder, and print which it is.

    The one that was picked in the training panel; else the one that notebook 3 left; else one that
    is trained now.
    """
    if picked := chosen_encoder():
        print(f"using the encoder {picked}, as picked in notebook 3's training panel")
        return picked
    run = Run(runs_folder() / "pretrained")
    minutes = profile().pretrain_minutes
    doing = "loading" if run.finished else "training"
    print(f"{doing} the encoder {run.name} ({minutes:g} minutes of pre-training)")
    config = PretrainConfig(minutes=minutes)
    return training.pretrain([store()], run.path, config, resume=True, snapshots=True)


def supervised() -> FinetuneConfig:
    """Return the settings of the course's supervised runs."""
    return FinetuneConfig(minutes=profile().finetune_minutes)


def supervised_folder(encoder: Path) -> Path:
    """Return where the supervised runs and features that belong to an encoder are kept."""
    name = "supervised" if encoder == runs_folder() / "pretrained" else f"supervised-{encoder.name}"
    return runs_folder() / name
