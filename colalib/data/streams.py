"""Streams of random numbers, each with a name, so that no two uses of one seed share their numbers."""

from __future__ import annotations

import numpy as np

STREAMS = {
    "std": 1,  # segments that the encoder's standard deviation is taken from
    "shuffle": 2,  # order of the clips in each epoch
    "pairs": 3,  # crops and augmentations of pre-training
    "labelled": 4,  # crops of supervised training
    "dropout": 5,  # torch's own random numbers
    "validation": 6,  # groups held out from pre-training
    "labels": 7,  # clips that keep their labels
    "calibration": 8,  # segments that calibrate BatchNorm
}


def stream(name: str, seed: int, *keys: int) -> np.random.Generator:
    """Return the generator of a stream of `STREAMS`, by `seed` and further keys such as the step."""
    return np.random.default_rng((seed, STREAMS[name], *keys))
