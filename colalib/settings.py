"""Settings of pre-training and of supervised training, a dataclass each: what can be turned, units,
ranges, the paper's values.

`training` obeys them, the command line is made from them, and `config.json` of a run holds them.
Imports nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from colalib.errors import UserError

# width and depth multipliers of the EfficientNet family (Tan & Le 2019, table 1); b0-small is for
# laptops
ARCHITECTURES = {"b0": (1.0, 1.0), "b0-small": (0.5, 0.5)}


def setting(default, text: str, **about):
    """A field that says what it is: `text`, with its unit; `label`, a short name with the unit, if
    its own needs one; `choices`; or `between`, the range worth trying, and `limits`, the range that
    can be; `paper`, the value in COLA's paper. The command line and the training panel are made
    from these."""
    return field(default=default, metadata={"text": text} | about)


@dataclass
class PretrainConfig:
    """Settings of contrastive pre-training. Of `steps`, `epochs` and `minutes` the one that is set
    ends it.
    """

    objective: str = setting(
        "bilinear", "similarity and loss: bilinear (COLA), cosine with temperature, triplet (DPT)",
        choices=("bilinear", "cosine", "triplet"), paper="bilinear",
    )  # fmt: skip
    arch: str = setting(
        "b0-small",
        "encoder: EfficientNet-B0, or half its width and depth",
        choices=tuple(ARCHITECTURES),
        paper="b0",
    )
    batch_size: int = setting(
        64,
        "pairs a step, of all processes",
        label="pairs a batch",
        between=(8, 256),
        limits=(2, None),
        paper=1024,
    )
    chunk: int = setting(
        0, "segments embedded at a time, 0 for all: less memory, same gradients (GradCache)", limits=(0, None)
    )
    lr: float = setting(
        2e-3,
        "peak learning rate of AdamW",
        label="learning rate",
        between=(1e-4, 1e-2),
        limits=(0, None),
        paper=1e-4,
    )
    weight_decay: float = setting(1e-4, "weight decay of AdamW", between=(1e-6, 1e-1), limits=(0, None))
    warmup: float = setting(
        0.05,
        "share of the training in which the learning rate rises; then it falls as a cosine",
        limits=(0, 0.9),
    )
    dropout: float = setting(0.0, "dropout after h and in the projection", limits=(0, 0.9))
    symmetric: bool = setting(
        True, "cross-entropy in both directions, not only anchor to positive", paper=False
    )
    temperature: float = setting(
        0.2, "of the cosine objective", between=(0.05, 1), limits=(1e-3, None), paper=0.2
    )
    margin: float = setting(0.5, "of the triplet objective", between=(0.1, 1), limits=(0, 2))
    filter_db: float = setting(
        3.5,
        "random_filter: spread of its response (dB rms), 0 for none",
        label="filter (dB)",
        limits=(0, 12),
        paper=0,
    )
    mask_bands: int = setting(
        24, "random_band_mask: most bands blanked, 0 for none", label="mask (bands)", limits=(0, 64), paper=0
    )
    mask: bool = setting(False, "random_mask: blank runs of frames", paper=False)
    multiply: bool = setting(False, "random_multiply: change contrast and level", paper=False)
    seed: int = setting(0, "of weights, pairs and dropout", limits=(0, 2**63 - 1))
    minutes: float | None = setting(None, "train so many minutes of wall clock")
    steps: int | None = setting(None, "train so many steps (batches)")
    epochs: float | None = setting(None, "train so many passes over the clips")


@dataclass
class FinetuneConfig:
    """Settings of supervised training, from scratch or from a pre-trained encoder."""

    label: str = setting("label", "column of the store's table to predict")
    fold: str | None = setting(None, "test fold, for corpora with folds; the first one if not set")
    labels_per_class: int | None = setting(
        None, "use only so many labelled training clips a class", limits=(1, None)
    )
    arch: str = setting(
        "b0-small",
        "encoder from scratch (a pre-trained one brings its own)",
        choices=tuple(ARCHITECTURES),
        paper="b0",
    )
    batch_size: int = setting(
        64, "segments a step", label="segments a batch", between=(8, 256), limits=(2, None), paper=64
    )
    optimiser: str = setting(
        "adamw", "how weights are updated", choices=("adamw", "adam", "sgd"), paper="adam"
    )
    lr: float = setting(
        1e-3, "peak learning rate", label="learning rate", between=(1e-5, 1e-2), limits=(0, None), paper=1e-3
    )
    weight_decay: float = setting(1e-2, "weight decay", between=(1e-6, 1e-1), limits=(0, None))
    warmup: float = setting(
        0.05,
        "share of the training in which the learning rate rises; then it falls as a cosine",
        limits=(0, 0.9),
    )
    dropout: float = setting(0.1, "dropout before the linear layer", limits=(0, 0.9))
    patience: int | None = setting(
        None, "stop after so many validations without a better accuracy", limits=(1, None)
    )
    seed: int = setting(0, "of weights, batches and dropout", limits=(0, 2**63 - 1))
    minutes: float | None = setting(None, "train so many minutes of wall clock")
    steps: int | None = setting(None, "train so many steps (batches)")
    epochs: float | None = setting(
        None,
        "train so many passes over the training side, also where only few of its clips keep their labels",
    )


def check_limits(config: PretrainConfig | FinetuneConfig) -> None:
    """Raises `UserError` where a setting is none of its choices or out of its limits."""
    for f in fields(config):
        value, about = getattr(config, f.name), f.metadata
        if value not in about.get("choices", (value,)):
            raise UserError(f"no {f.name} {value!r}: there are {', '.join(about['choices'])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{f.name.replace('_', ' ')} must be a number, not {value}")
        low, high = about.get("limits", (None, None))
        if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
            wanted = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            raise UserError(f"{f.name.replace('_', ' ')} must be {wanted}, not {value:g}")
