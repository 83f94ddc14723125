"""Levels: clips that are clipped, silent in parts, or cut off, from their samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colalib.data import audio
from colalib.data.decoding import decode

FULL_SCALE = 0.999  # of samples; -0.01 dBFS
FLAT = 1e-4  # neighbours at full scale that differ by less were cut there: a wave turns round more quickly
SILENT_DB = -60.0  # dBFS, root mean square of a part
PART = 0.05  # seconds of a part
EDGE = 0.02  # seconds of an edge


@dataclass
class Levels:
    """What the samples of a file tell. Shares are in [0, 1].

    `clipped`: share of the samples that lie above full scale, or stay at it. `silent`: share of the parts of
    50 ms under -60 dBFS; `silence`: (start, end) in seconds of the longest such stretch. `begin`, `end`:
    level of the first and last 20 ms in dB, relative to the loudest 20 ms.
    """

    seconds: float
    clipped: float
    silent: float
    silence: tuple[float, float]
    begin: float
    end: float


def measure(path: Path) -> Levels | None:
    """Return the levels of a file, at its own sample rate, all channels; None if it cannot be read."""
    try:
        rate, blocks = decode(path)
        samples = np.concatenate(list(blocks))  # [n, channels]
    except (audio.Unusable, OSError):
        return None
    size = np.abs(samples)
    top = size >= FULL_SCALE
    flat = top[1:] & top[:-1] & (np.abs(np.diff(samples, axis=0)) < FLAT)
    clipped = (size > 1 + FLAT).any(axis=1)
    clipped[1:] |= flat.any(axis=1)
    parts = power_of_parts(samples, round(PART * rate))
    silent = parts < 10 ** (SILENT_DB / 10)
    steps = np.diff(np.concatenate([[0], silent, [0]]).astype(int))
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    start, end = max(zip(begins, ends), key=lambda run: run[1] - run[0], default=(0, 0))
    silence = start * PART, min(end * PART, len(samples) / rate)
    edges = 10 * np.log10(power_of_parts(samples, round(EDGE * rate)) + 1e-12)
    return Levels(
        len(samples) / rate,
        float(clipped.mean()),
        float(silent.mean()),
        silence,
        float(edges[0] - edges.max()),
        float(edges[-1] - edges.max()),
    )


def power_of_parts(samples: np.ndarray, size: int) -> np.ndarray:
    """Return the mean square of consecutive parts of samples [n, channels], of the loudest channel.

    The last part ends with the samples.
    """
    size = min(size, len(samples))
    whole = samples[: len(samples) // size * size].reshape(-1, size, samples.shape[1])
    power = np.square(whole).mean(axis=1).max(axis=1)
    if len(samples) % size:
        power = np.append(power, np.square(samples[-size:]).mean(axis=0).max())
    return power
