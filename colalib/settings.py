"""Settings of pre-training and of supervised training: one dataclass each, with units, limits and
the paper's values.

`training` follows them, the command line and the training panel are made from them, and
`config.json` of a run holds them. Imports nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from colalib.errors import UserError

# width and depth multipliers of EfficientNet (Tan & Le 2019, table 1); b0-small is for laptops
ARCHITECTURES = {"b0": (1.0, 1.0), "b0-small": (0.5, 0.5)}
MAX_SEED = 2**63 - 1  # the largest int64
WARMUP = "share of the training in which the learning rate rises; then it falls as a cosine"


def setting(default, text: str, **about):
    """Return a dataclass field that describes itself, for the command line and the training panel.

    `text`: what it is, with its unit. `about` may hold `label`, a short name with the unit, if the
    field's own name needs one; `choices`; `limits`, the range that is possible; `between`, the
    range worth trying; `paper`, the value in COLA's paper.
    """
    return field(default=default, metadata={"text": text} | about)


# fmt: off
@dataclass
class PretrainConfig:
    """Settings of contrastive pre-training. One of `steps`, `epochs` and `minutes` ends it."""

    objective: str = setting(
        "bilinear", "similarity and loss: bilinear (COLA), cosine with temperature, or triplet (DPT)",
        choices=("bilinear", "cosine", "triplet"), paper="bilinear")
    arch: str = setting(
        "b0-small", "encoder: EfficientNet-B0 (b0), or the same at half width and depth (b0-small)",
        choices=tuple(ARCHITECTURES), paper="b0")
    batch_size: int = setting(
        64, "pairs per step, over all processes",
        label="pairs per step", between=(8, 256), limits=(2, None), paper=1024)
    chunk: int = setting(
        0, "segments embedded at a time, 0: all; saves memory; BatchNorm then sees one chunk (GradCache)",
        limits=(0, None))
    lr: float = setting(
        2e-3, "peak learning rate of AdamW",
        label="learning rate", between=(1e-4, 1e-2), limits=(0, None), paper=1e-4)
    weight_decay: float = setting(1e-4, "weight decay of AdamW", between=(1e-6, 1e-1), limits=(0, None))
    warmup: float = setting(0.05, WARMUP, limits=(0, 0.9))
    dropout: float = setting(0.0, "dropout rate after h and in the projection", limits=(0, 0.9))
    symmetric: bool = setting(
        True, "cross-entropy in both directions, not only from anchor to positive", paper=False)
    temperature: float = setting(
        0.2, "temperature of the cosine objective", between=(0.05, 1), limits=(1e-3, None), paper=0.2)
    margin: float = setting(
        0.5, "margin of the triplet objective, in cosine similarity", between=(0.1, 1), limits=(0, 2))
    filter_db: float = setting(
        3.5, "random_filter: spread of its frequency response in dB rms, 0: off",
        label="filter (dB)", limits=(0, 12), paper=0)
    mask_bands: int = setting(
        24, "random_band_mask: largest number of mel bands to blank, 0: off",
        label="mask (bands)", limits=(0, 64), paper=0)
    mask: bool = setting(False, "random_mask: blank random runs of frames", paper=False)
    multiply: bool = setting(False, "random_multiply: change contrast and level at random", paper=False)
    seed: int = setting(0, "seed of weights, pairs and dropout", limits=(0, MAX_SEED))
    minutes: float | None = setting(None, "length of the training in minutes of wall clock")
    steps: int | None = setting(None, "length of the training in steps (batches)")
    epochs: float | None = setting(None, "length of the training in passes over the clips")


@dataclass
class FinetuneConfig:
    """Settings of supervised training, from scratch or from a pre-trained encoder."""

    label: str = setting("label", "column of the store's table to predict")
    fold: str | None = setting(None, "test fold, if the corpus has folds; the first one if not set")
    labels_per_class: int | None = setting(
        None, "labelled training clips per class; all of them if not set", limits=(1, None))
    arch: str = setting(
        "b0-small", "encoder from scratch (a pre-trained one brings its own)",
        choices=tuple(ARCHITECTURES), paper="b0")
    batch_size: int = setting(
        64, "segments per step",
        label="segments per step", between=(8, 256), limits=(2, None), paper=64)
    optimiser: str = setting(
        "adamw", "how weights are updated", choices=("adamw", "adam", "sgd"), paper="adam")
    lr: float = setting(
        1e-3, "peak learning rate",
        label="learning rate", between=(1e-5, 1e-2), limits=(0, None), paper=1e-3)
    encoder_lr_factor: float = setting(
        1.0, "the encoder learns at lr times this; 0: it is frozen, only the linear layer learns",
        label="its factor for the encoder", limits=(0, 1), paper=1)
    weight_decay: float = setting(1e-2, "weight decay", between=(1e-6, 1e-1), limits=(0, None))
    warmup: float = setting(0.05, WARMUP, limits=(0, 0.9))
    dropout: float = setting(0.1, "dropout rate before the linear layer", limits=(0, 0.9))
    patience: int | None = setting(
        None, "stop after this many validations in a row without a better accuracy; never if not set",
        limits=(1, None))
    seed: int = setting(0, "seed of weights, batches and dropout", limits=(0, MAX_SEED))
    minutes: float | None = setting(None, "length of the training in minutes of wall clock")
    steps: int | None = setting(None, "length of the training in steps (batches)")
    epochs: float | None = setting(
        None, "length in passes over all training clips, also if few of them keep their labels")
# fmt: on


def check_limits(config: PretrainConfig | FinetuneConfig) -> None:
    """Raise `UserError` if a setting is not one of its choices or outside its limits."""
    for f in fields(config):
        value, about = getattr(config, f.name), f.metadata
        if value not in about.get("choices", (value,)):
            raise UserError(f"unknown {f.name} {value!r}: choose one of {', '.join(about['choices'])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{f.name.replace('_', ' ')} must be a number, not {value}")
        low, high = about.get("limits", (None, None))
        if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
            wanted = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            raise UserError(f"{f.name.replace('_', ' ')} must be {wanted}, not {value:g}")


def read_config(kind: type, values: dict, where: Path | str):
    """Return the config dataclass `kind` from values that a file holds; missing ones get their defaults.

    Raises `UserError` for settings that are unknown, of another type or out of their limits; `where` names
    the file.
    """
    types = {"int": int, "float": (int, float), "str": str, "bool": bool}
    known = {field.name: field.type for field in fields(kind)}
    if not isinstance(values, dict):
        raise UserError(f"{where}: damaged: no settings")
    for name, value in values.items():
        if name not in known:
            raise UserError(
                f"{where}: unknown setting {name!r}: was it written by a newer version of colalib?"
            )
        wanted = known[name].removesuffix(" | None")
        fits = isinstance(value, types[wanted]) and isinstance(value, bool) == (wanted == "bool")
        if not fits and not (value is None and known[name] != wanted):
            raise UserError(f"{where}: damaged: {name} is {str(value)[:40]!r}")
    config = kind(**values)
    try:
        check_limits(config)
    except UserError as error:
        raise UserError(f"{where}: damaged: {error}") from None
    return config
