"""Segments for training: random crops of stored clips, augmentations, pairs, and the batches made of them.

Reads frames from `store` (never audio files), gives tensors [B, frames, mels] to `training`. Whatever is random here
is keyed by (seed, step), so that a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from colalib.errors import UserError
from colalib.store import MelStore

FRAMES = 98  # a segment: 0.98 s at a hop of 10 ms (COLA, section 3.1: 960 ms)


def random_crop(
    clip: np.ndarray, rng: np.random.Generator, frames: int = FRAMES, silence: float = np.log(1e-5)
) -> np.ndarray:
    """A random stretch of `frames` frames of `clip` [T, M] → float32 [frames, M]. A shorter clip is placed at a random
    offset among frames of `silence`. Only the stretch itself is read from a memory-mapped clip."""
    spare = len(clip) - frames
    if spare >= 0:
        start = int(rng.integers(spare + 1))
        return clip[start : start + frames].astype(np.float32)
    out = np.full((frames, clip.shape[1]), silence, np.float32)
    start = int(rng.integers(-spare + 1))
    out[start : start + len(clip)] = clip
    return out


def random_filter(segment: np.ndarray, rng: np.random.Generator, spread: float = 3.5) -> np.ndarray:
    """Colour log-mel values [T, M] → [T, M] by a random smooth frequency response, a gain per band of `spread` dB rms: as
    another room, microphone or loudspeaker would (FilterAugment, arXiv 2110.03282)."""
    response = rng.normal(scale=spread / np.sqrt(2), size=4) @ cosines(segment.shape[1])  # [M] dB
    return segment + (np.log(10) / 20 * response).astype(segment.dtype)


@lru_cache
def cosines(bands: int) -> np.ndarray:
    """The first four cosines over the bands, [4, M]: half a wave, one, one and a half, two."""
    return np.cos(np.outer(np.arange(1, 5), np.pi * (np.arange(bands) + 0.5) / bands))


def random_band_mask(segment: np.ndarray, rng: np.random.Generator, most: int = 24) -> np.ndarray:
    """Blank a random run of up to `most` neighbouring bands to the segment's mean [T, M] → [T, M] (SpecAugment, arXiv
    1904.08779)."""
    width = int(rng.integers(most + 1))
    start = int(rng.integers(segment.shape[1] - width + 1))
    out = segment.copy()
    out[:, start : start + width] = segment.mean()
    return out


def random_mask(segment: np.ndarray, rng: np.random.Generator, start: float = 0.1, stay: float = 0.2) -> np.ndarray:
    """Blank random runs of frames to the segment's mean [T, M] → [T, M]: a frame is blanked with probability `start`, and
    after a blanked one with probability 1 - (1 - start)(1 - stay)."""
    chance = rng.random((2, len(segment)))
    mask = chance[0] < start
    for t in range(1, len(segment)):
        mask[t] |= mask[t - 1] and chance[1, t] < stay
    return np.where(mask[:, None], segment.mean(), segment).astype(segment.dtype)


def random_multiply(segment: np.ndarray, rng: np.random.Generator, spread: float = 0.1) -> np.ndarray:
    """Multiply log-mel values by one random factor in 1 ± `spread` [T, M] → [T, M]: magnitudes are raised to that power,
    so contrast and level change together."""
    return segment * np.float32(1 - spread + 2 * spread * rng.random())


def cut(clip: np.ndarray, hop: int, frames: int = FRAMES, silence: float = np.log(1e-5)) -> np.ndarray:
    """Whole segments of `clip` [T, M] every `hop` frames → float32 [n, frames, M], n ≥ 1: a clip shorter than a segment is
    centred among frames of `silence`. What is left over at the end of a longer clip is not used."""
    if len(clip) < frames:
        before = (frames - len(clip)) // 2
        edges = ((before, frames - len(clip) - before), (0, 0))
        return np.pad(clip.astype(np.float32), edges, constant_values=silence)[None]
    return np.stack([clip[s : s + frames] for s in range(0, len(clip) - frames + 1, hop)]).astype(np.float32)


class Clips:
    """Chosen clips of one or more stores under one numbering. `clips.frames(i)` [T, M]; `ids` are unique across stores."""

    def __init__(self, stores: list[MelStore], rows: list[np.ndarray]):
        if any(store.mel != stores[0].mel for store in stores):
            raise UserError(f"{stores[0].path} and another store were made with other mel settings: prepare them alike")
        self.stores, self.mel = stores, stores[0].mel
        self.where = [(store, int(row)) for store, chosen in zip(stores, rows) for row in chosen]
        self.ids = np.array([store.ids[row] for store, row in self.where])
        self.groups = np.array(
            [
                f"{store.whole}/{group}"
                for store, chosen in zip(stores, rows)
                for group in store.clips["group"].values[chosen]
            ]
        )

    def __len__(self) -> int:
        return len(self.where)

    def frames(self, i: int) -> np.ndarray:
        store, row = self.where[i]
        return store.frames(row)

    def take(self, chosen: np.ndarray) -> Clips:
        """The clips numbered `chosen`, as a new numbering."""
        new = object.__new__(Clips)
        new.stores, new.mel = self.stores, self.mel
        new.where, new.ids, new.groups = [self.where[i] for i in chosen], self.ids[chosen], self.groups[chosen]
        return new

    def crop(self, i: int, rng: np.random.Generator) -> np.ndarray:
        """A random segment of clip i, float32 [FRAMES, M]."""
        return random_crop(self.frames(i), rng, FRAMES, self.mel.silence)

    def std(self, seed: int = 0, segments: int = 1000) -> float:
        """Standard deviation of log-mel values around each segment's own mean, over random segments: what `Encoder`
        divides by."""
        rng = np.random.default_rng((seed, 1))
        drawn = np.stack([self.crop(i, rng) for i in rng.integers(len(self), size=segments)])
        return float((drawn - drawn.mean(axis=(1, 2), keepdims=True)).std())


def shuffled(n: int, batch: int, step: int, seed: int) -> np.ndarray:
    """The clip numbers of batch `step`: each epoch is a new permutation of n clips, cut into n // batch batches."""
    epoch, index = divmod(step, n // batch)
    return np.random.default_rng((seed, 2, epoch)).permutation(n)[index * batch : (index + 1) * batch]


def pair_batch(
    clips: Clips,
    step: int,
    batch: int,
    seed: int,
    filter_db: float = 0.0,
    mask_bands: int = 0,
    mask: bool = False,
    multiply: bool = False,
    part: tuple[int, int] = (0, 1),
) -> tuple[Tensor, Tensor]:
    """Batch number `step` of pre-training: (anchors, positives), each float32 [B, FRAMES, M].

    Row i of both comes from the same clip, cut at two places drawn independently (COLA, section 2); the clips of a batch
    are all different, so every other row is a distractor. Augmentations are drawn for each segment by itself:
    `random_filter` of `filter_db`, `random_band_mask` of up to `mask_bands`, and where asked for `mask` and `multiply`.
    Of several processes each draws and reads its `part` (number, of how many) of the batch's clips.
    """
    number, of = part
    rng = np.random.default_rng((seed, 3, step) if of == 1 else (seed, 3, step, of, number))
    chosen = shuffled(len(clips), batch, step, seed)[number::of]
    pair = [np.stack([clips.crop(i, rng) for i in chosen]) for _ in range(2)]
    for side in pair:
        for row in range(len(chosen)):
            if filter_db:
                side[row] = random_filter(side[row], rng, filter_db)
            if mask_bands:
                side[row] = random_band_mask(side[row], rng, mask_bands)
            if mask:
                side[row] = random_mask(side[row], rng)
            if multiply:
                side[row] = random_multiply(side[row], rng)
    return torch.from_numpy(pair[0]), torch.from_numpy(pair[1])


def labelled_batch(clips: Clips, targets: np.ndarray, step: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Batch number `step` of supervised training: segments float32 [B, FRAMES, M], one random crop a clip, and classes [B]."""
    rng = np.random.default_rng((seed, 4, step))
    chosen = shuffled(len(clips), batch, step, seed)
    return torch.from_numpy(np.stack([clips.crop(i, rng) for i in chosen])), torch.from_numpy(targets[chosen])


def clip_batches(clips: Clips, hop: int = FRAMES, segments: int = 64) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
    """All clips in order, as batches of whole clips with about `segments` segments: (segments [S, FRAMES, M], the row of
    its clip within the batch [S], clip numbers [n])."""
    held, numbers, size = [], [], 0
    for i in range(len(clips)):
        held.append(cut(clips.frames(i), hop, FRAMES, clips.mel.silence))
        numbers.append(i)
        size += len(held[-1])
        if size >= segments or i == len(clips) - 1:
            owner = np.repeat(np.arange(len(held)), [len(h) for h in held])
            yield torch.from_numpy(np.concatenate(held)), torch.from_numpy(owner), np.array(numbers)
            held, numbers, size = [], [], 0


class Again(IterableDataset):
    """Batches that are made anew each time they are gone through: only one is in memory."""

    def __init__(self, batches: Callable[[], Iterator]):
        self.batches = batches

    def __iter__(self):
        return self.batches()


class Steps(IterableDataset):
    """Endless batches by step number, from `first_step()` on: whoever trains says where that is, and when to stop. Worker
    processes of a DataLoader take turns."""

    def __init__(self, batch: Callable[[int], tuple], first_step: Callable[[], int]):
        self.batch, self.first_step = batch, first_step

    def __iter__(self):
        worker = get_worker_info()
        turn, of = (worker.id, worker.num_workers) if worker else (0, 1)
        return map(self.batch, itertools.count(self.first_step() + turn, of))
