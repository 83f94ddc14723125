"""Near duplicates: the same recording twice, also re-encoded, louder, shifted in time, or a part of it.

Strong events and embeddings only propose pairs. A pair is one recording if its log-mel frames, aligned in
time, change from moment to moment in the same way in every band, at one shift and at no other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.fft
import scipy.signal
from tqdm.auto import tqdm

from colalib.data.store import MelStore

DYNAMIC_RANGE = np.log(10) / 20 * 50  # natural logarithms: what lies over 50 dB below the peak does not count
STEP = 2  # frames between which a change is taken: 20 ms
EDGE = 2  # frames at either end of a clip whose windows of 25 ms reach beyond it: a cut is not a change
LEAST_OVERLAP = 0.5  # of the shorter clip
LEAST_FRAMES = 20  # 0.2 s of overlap
LEAST_ENERGY = 0.3  # of the changes of the quieter clip must lie in the overlap: silence proves nothing
# likeness of two takes of one recording, by the seconds of the shorter clip: a short one is a single event,
# and a word begins much like the same word of somebody else. See RESULTS.md
ALIKE = (0.25, 0.45, 1.0, 2.5), (0.92, 0.85, 0.85, 0.5)
ONLY = 0.35  # more than at any other shift: a clock ticks alike at each of them
EQUAL = 0.9  # alike enough at several shifts too
EVENTS = 8  # per clip
EVENT = 6, 18  # frames before and after the strongest one of an event
EVENT_ALIKE = 0.5  # cosine of two events that propose a pair
PROPOSALS = 3  # per event
BLOCK = 20_000_000  # likenesses of events at a time: 0.3 GB with what sorts them


def near_duplicates(store: MelStore, near: np.ndarray, progress: bool = False) -> pd.DataFrame:
    """Return the pairs of clips of a store that are one recording, the most alike first.

    `near`: numbers [n, k] of clips whose embeddings are near to each clip's. Columns: a, b (clip numbers,
    a < b), likeness in [-1, 1], and shift in seconds: what is heard at t in b is heard at t + shift in a.
    The time goes into one alignment per proposed pair.
    """
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(near.tolist()) for j in row}
    pairs = sorted(pairs | set(propose(store, progress)))
    rows = []
    for a, b in tqdm(pairs, desc="align", unit="pair", disable=not progress, delay=1):
        both = changes(store.frames(a)), changes(store.frames(b))
        likeness, elsewhere, shift = align(*both)
        needed = np.interp(store.mel.seconds(store.clips["frames"].iloc[[a, b]].min()), *ALIKE)
        if likeness >= needed and (likeness >= EQUAL or likeness - elsewhere >= ONLY):
            rows.append((a, b, likeness, store.mel.seconds(shift)))
    table = pd.DataFrame(rows, columns=["a", "b", "likeness", "shift"])
    return table.sort_values("likeness", ascending=False, kind="stable", ignore_index=True)


def propose(store: MelStore, progress: bool = False) -> Iterator[tuple[int, int]]:
    """Yield pairs (a, b), a < b, of clips that have a like event."""
    events = [anchors(changes(store.frames(i))) for i in range(len(store))]
    clip = np.repeat(np.arange(len(store)), [len(part) for part in events])  # of each event
    events = np.concatenate(events)
    if len(events) <= PROPOSALS:
        return
    block = max(BLOCK // len(events), 1)
    starts = range(0, len(events), block)
    for start in tqdm(starts, desc="compare events", disable=not progress, delay=1):
        alike = events[start : start + block] @ events.T  # [block, events]
        of = clip[start : start + block]
        alike[of[:, None] == clip] = -1
        some = alike.max(axis=1) > EVENT_ALIKE  # most events have no like one: these need no sorting
        alike, of = alike[some], of[some]
        best = np.argpartition(alike, -PROPOSALS, axis=1)[:, -PROPOSALS:]
        for i, row in zip(*np.nonzero(np.take_along_axis(alike, best, axis=1) > EVENT_ALIKE)):
            a, b = int(of[i]), int(clip[best[i, row]])
            yield min(a, b), max(a, b)


def changes(frames: np.ndarray) -> np.ndarray:
    """Return how log-mel values [T, M] change over 20 ms, float32 [T - 6, M]; one frame of zeros if T < 7.

    Level and frequency response drop out of it. Quiet parts count as equally quiet: in them, an MP3 encoder
    writes what it likes. The two frames at either end are left out: a cut is a change of its own.
    """
    x = frames[EDGE:-EDGE].astype(np.float32)
    if len(x) <= STEP:
        return np.zeros((1, frames.shape[1]), np.float32)
    x = np.maximum(x, x.max() - DYNAMIC_RANGE)
    return x[STEP:] - x[:-STEP]


def align(a: np.ndarray, b: np.ndarray) -> tuple[float, float, int]:
    """Return how alike two clips are at best over all shifts in time, how alike elsewhere, and the shift.

    `a`, `b`: `changes` [T, M]. The likeness is the correlation over the frames that overlap, in [-1, 1].
    Elsewhere is more than 50 ms away. At a shift of s frames, frame t + s of `a` meets frame t of `b`.
    """
    n = scipy.fft.next_fast_len(len(a) + len(b), real=True)
    spectrum = (scipy.fft.rfft(a, n, axis=0) * scipy.fft.rfft(b, n, axis=0).conj()).sum(axis=1)
    shifts = np.arange(-len(b) + 1, len(a))
    products = scipy.fft.irfft(spectrum, n)[shifts]
    start, stop = np.maximum(shifts, 0), np.minimum(shifts + len(b), len(a))  # of the overlap, in a
    sum_a, sum_b = (np.append(0, np.cumsum(np.square(x).sum(axis=1, dtype=np.float64))) for x in (a, b))
    energy = np.sqrt((sum_a[stop] - sum_a[start]) * (sum_b[stop - shifts] - sum_b[start - shifts]))
    shorter = min(len(a), len(b))
    enough = stop - start >= max(LEAST_OVERLAP * shorter, min(LEAST_FRAMES, shorter))
    enough &= energy > LEAST_ENERGY * min(sum_a[-1], sum_b[-1])
    likeness = np.where(enough, products / np.maximum(energy, 1e-6), 0)
    best = int(np.argmax(likeness))
    elsewhere = likeness[np.abs(shifts - shifts[best]) > 5].max(initial=0)
    return float(likeness[best]), float(elsewhere), int(shifts[best])


def anchors(change: np.ndarray) -> np.ndarray:
    """Return what surrounds the strongest events of a clip, unit vectors [≤ 8, 192], from its `changes`.

    An event is found again at another shift, at another level, and in a part of the clip.
    """
    before, after = EVENT
    strength = np.convolve(np.square(change).sum(axis=1), np.ones(3), "same")
    peaks = scipy.signal.find_peaks(np.pad(strength, 1), distance=10)[0] - 1
    peaks = peaks[np.argsort(-strength[peaks])[:EVENTS]]
    padded = np.pad(change, ((before, after), (0, 0)))
    around = peaks[:, None] + np.arange(before + after)  # [P, 24]
    bands = np.array_split(np.arange(change.shape[1]), 16)
    pooled = np.stack([padded[around][:, :, band].mean(axis=2) for band in bands], axis=2)  # [P, 24, 16]
    pooled = pooled[:, 0::2] + pooled[:, 1::2]  # two frames at a time
    pooled = pooled.reshape(len(peaks), (before + after) // 2 * 16)
    return pooled / (np.linalg.norm(pooled, axis=1, keepdims=True) + 1e-9)
