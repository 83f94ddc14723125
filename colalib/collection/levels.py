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
UNIT = 0.01  # seconds, in which power is measured
PART = 5  # units of a part that may be silent
EDGE = 2  # units of an edge


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
    count, clipped = 0, 0
    powers, tail = [], None  # of each unit [units, channels]; the last samples [n, channels]
    try:
        rate, blocks = decode(path)
        unit = max(round(UNIT * rate), 1)
        for block in blocks:
            tail = block[:0] if tail is None else tail
            clipped += count_clipped(np.concatenate([tail[-1:], block]))
            samples = np.concatenate([tail[len(tail) - count % unit :], block])
            whole = samples[: len(samples) // unit * unit].reshape(-1, unit, samples.shape[1])
            powers.append(np.square(whole).mean(axis=1))
            count += len(block)
            tail = np.concatenate([tail, block])[-PART * unit :]
    except (audio.Unusable, OSError):
        return None
    powers, rest = np.concatenate(powers), count % unit > 0
    silent = power_of_parts(powers, PART, tail, rest) < 10 ** (SILENT_DB / 10)
    steps = np.diff(np.concatenate([[0], silent, [0]]).astype(int))
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    start, end = max(zip(begins, ends), key=lambda run: run[1] - run[0], default=(0, 0))
    part = PART * unit / rate
    silence = start * part, min(end * part, count / rate)
    edges = 10 * np.log10(power_of_parts(powers, EDGE, tail[-EDGE * unit :], rest) + 1e-12)
    return Levels(
        count / rate,
        clipped / count,
        float(silent.mean()),
        silence,
        float(edges[0] - edges.max()),
        float(edges[-1] - edges.max()),
    )


def count_clipped(samples: np.ndarray) -> int:
    """Return how many samples [n, channels] behind the first one are clipped in any channel."""
    size = np.abs(samples)
    top = size >= FULL_SCALE
    flat = top[1:] & top[:-1] & (np.abs(np.diff(samples, axis=0)) < FLAT)
    return int((flat | (size[1:] > 1 + FLAT)).any(axis=1).sum())


def power_of_parts(powers: np.ndarray, size: int, last: np.ndarray, rest: bool) -> np.ndarray:
    """Return the mean square of consecutive parts of `size` units, of the loudest channel.

    `powers` [units, channels]: of whole units. What is left over, perhaps a `rest` of a unit too, lies in a
    part that ends with the clip: the samples `last` [n, channels].
    """
    parts = powers[: len(powers) // size * size].reshape(-1, size, powers.shape[1])
    power = parts.mean(axis=1).max(axis=1)
    if rest or len(powers) % size:
        power = np.append(power, np.square(last).mean(axis=0).max())
    return power
