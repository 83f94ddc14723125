"""Segments: random crops of stored clips, augmentations, pairs, and the batches made of them.

Frames come from `clips` (never from audio files); batches [B, T, M] go to `training`, segments of
whole clips to `evaluation`. All that is random depends on (seed, step) only, so a resumed run sees
what an uninterrupted one would see.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from colalib.data.audio import MelConfig
from colalib.data.clips import Clips
from colalib.data.streams import stream

SEGMENT_FRAMES = 98  # a segment: 0.98 s at a hop of 10 ms (COLA, section 3.1: 960 ms)
# frozen embeddings: segments overlap by half, so none cuts every event in two
EVAL_HOP_FRAMES = SEGMENT_FRAMES // 2
SILENCE = MelConfig().silence  # pads short clips

# -------------------------------------------------------------------------------------------- crops


def crop_start(length: int, rng: np.random.Generator) -> int:
    """Draw where a random segment begins in a clip of `length` frames.

    Negative for a shorter clip, which is placed at a random offset: -10 means that 10 padded frames
    come first.
    """
    spare = length - SEGMENT_FRAMES
    return int(rng.integers(spare + 1)) if spare >= 0 else -int(rng.integers(-spare + 1))


def crop(clip: np.ndarray, start: int, silence: float = SILENCE) -> np.ndarray:
    """Return the segment of `clip` [T, M] from frame `start` (see `crop_start`) → float32 [98, M].

    What lies outside the clip is `silence`. Only the crop itself is read from a memory-mapped clip.
    """
    if 0 <= start <= len(clip) - SEGMENT_FRAMES:
        return clip[start : start + SEGMENT_FRAMES].astype(np.float32)
    out = np.full((SEGMENT_FRAMES, clip.shape[1]), silence, np.float32)
    out[-start : len(clip) - start] = clip
    return out


def random_crop(clip: np.ndarray, rng: np.random.Generator, silence: float = SILENCE) -> np.ndarray:
    """Return a random crop of `clip` [T, M] → float32 [98, M]; `silence` pads a shorter clip."""
    return crop(clip, crop_start(len(clip), rng), silence)


def random_crops(clips: Clips, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random crop of each clip in `chosen` [n] → float32 [n, 98, M]."""
    return np.stack([random_crop(clips.frames(i), rng, clips.mel.silence) for i in chosen])


def split_segments(clip: np.ndarray, hop: int, silence: float = SILENCE) -> np.ndarray:
    """Cut `clip` [T, M] into segments every `hop` frames → float32 [n, 98, M], n ≥ 1.

    What is left over at the end is not used. A clip shorter than a segment is centred among frames
    of `silence`.
    """
    if (missing := SEGMENT_FRAMES - len(clip)) > 0:
        edges = ((missing // 2, missing - missing // 2), (0, 0))
        return np.pad(clip.astype(np.float32), edges, constant_values=silence)[None]
    starts = range(0, len(clip) - SEGMENT_FRAMES + 1, hop)
    return np.stack([clip[start : start + SEGMENT_FRAMES] for start in starts]).astype(np.float32)


def segment_std(clips: Clips, seed: int = 0) -> float:
    """Return the standard deviation of log-mel values around each segment's own mean.

    Over 1,000 random segments. `Encoder` divides by it.
    """
    rng = stream("std", seed)
    drawn = random_crops(clips, rng.integers(len(clips), size=1000), rng)  # [1000, T, M]
    return float((drawn - drawn.mean(axis=(1, 2), keepdims=True)).std())


# ------------------------------------------------------------------------------------ augmentations


def random_filter(segment: np.ndarray, rng: np.random.Generator, spread: float = 3.5) -> np.ndarray:
    """Colour log-mel values [T, M] → [T, M] by a random smooth frequency response of `spread` dB rms.

    One gain per band, as another room, microphone or loudspeaker would give (FilterAugment, arXiv
    2110.03282).
    """
    # four cosines of equal variance, whose squares average to 1/2 over the bands
    response = rng.normal(scale=spread / np.sqrt(2), size=4) @ cosines(segment.shape[1])  # [M] dB
    return segment + (np.log(10) / 20 * response).astype(segment.dtype)


@lru_cache
def cosines(bands: int) -> np.ndarray:
    """Return the first four cosines over the bands, [4, M]: half a wave, one, one and a half, two."""
    return np.cos(np.outer(np.arange(1, 5), np.pi * (np.arange(bands) + 0.5) / bands))


def random_band_mask(segment: np.ndarray, rng: np.random.Generator, most: int = 24) -> np.ndarray:
    """Blank a random run of up to `most` neighbouring bands to the segment's mean, [T, M] → [T, M].

    This is SpecAugment's frequency mask (arXiv 1904.08779).
    """
    width = int(rng.integers(min(most, segment.shape[1]) + 1))
    start = int(rng.integers(segment.shape[1] - width + 1))
    out = segment.copy()
    out[:, start : start + width] = segment.mean()
    return out


def random_mask(segment: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blank random runs of frames to the segment's mean, [T, M] → [T, M].

    A frame is blanked with probability 0.1, and after a blanked one with probability 1 - (1 - 0.1)(1 - 0.2).
    """
    chance = rng.random((2, len(segment)))
    mask = chance[0] < 0.1
    for t in range(1, len(segment)):
        mask[t] |= mask[t - 1] and chance[1, t] < 0.2
    return np.where(mask[:, None], segment.mean(), segment).astype(segment.dtype)


def random_multiply(segment: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply log-mel values by one random factor from 0.9 to 1.1, [T, M] → [T, M].

    Magnitudes are raised to that power, so contrast and level change together.
    """
    return segment * np.float32(0.9 + 0.2 * rng.random())


# ------------------------------------------------------------------------------------------ batches


def shuffled(n: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Return the clip numbers of batch `step`, [B].

    Each epoch is a new permutation of n clips, cut into n // B batches.
    """
    epoch, index = divmod(step, n // batch_size)
    return stream("shuffle", seed, epoch).permutation(n)[index * batch_size : (index + 1) * batch_size]


def pair_starts(
    clips: Clips, step: int, batch_size: int, seed: int, part: tuple[int, int] = (0, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """Return which clips the pairs of batch `step` come from, and where their crops begin.

    Clip numbers [B] and frames [2, B], anchors first; see `crop_start` for clips that are shorter
    than a segment. `pair_batch` cuts exactly these crops.
    """
    chosen, starts, _ = _draw_pairs(clips, step, batch_size, seed, part)
    return chosen, starts


def _draw_pairs(clips: Clips, step: int, batch_size: int, seed: int, part: tuple[int, int]):
    """Return clip numbers [B], starts [2, B], and the generator, which then draws the augmentations."""
    number, processes = part
    rng = stream("pairs", seed, step) if processes == 1 else stream("pairs", seed, step, processes, number)
    chosen = shuffled(len(clips), batch_size, step, seed)[number::processes]
    starts = np.array([[crop_start(len(clips.frames(i)), rng) for i in chosen] for _ in range(2)])
    return chosen, starts, rng


def pair_batch(
    clips: Clips,
    step: int,
    batch_size: int,
    seed: int,
    filter_db: float = 0.0,
    mask_bands: int = 0,
    mask: bool = False,
    multiply: bool = False,
    part: tuple[int, int] = (0, 1),
) -> tuple[Tensor, Tensor]:
    """Return batch `step` of pre-training: (anchors, positives), float32 [B, T, M] each.

    Row i of both comes from the same clip, cut at two places drawn independently (COLA, section 2).
    All clips of a batch differ, so every other row is a distractor. Augmentations are drawn for
    each segment by itself: `random_filter` of `filter_db`, `random_band_mask` of up to
    `mask_bands`, and if asked for `random_mask` and `random_multiply`. `part` = (number,
    processes): each of several processes draws and reads its part of the batch.
    """
    chosen, starts, rng = _draw_pairs(clips, step, batch_size, seed, part)
    sides = [
        np.stack([crop(clips.frames(i), start, clips.mel.silence) for i, start in zip(chosen, side)])
        for side in starts
    ]
    for side in sides:
        for row in range(len(chosen)):
            if filter_db:
                side[row] = random_filter(side[row], rng, filter_db)
            if mask_bands:
                side[row] = random_band_mask(side[row], rng, mask_bands)
            if mask:
                side[row] = random_mask(side[row], rng)
            if multiply:
                side[row] = random_multiply(side[row], rng)
    return torch.from_numpy(sides[0]), torch.from_numpy(sides[1])


def labelled_batch(
    clips: Clips, targets: np.ndarray, step: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return batch `step` of supervised training: segments float32 [B, T, M], and their classes [B].

    Each segment is a random crop of another clip.
    """
    rng = stream("labelled", seed, step)
    chosen = shuffled(len(clips), batch_size, step, seed)
    return torch.from_numpy(random_crops(clips, chosen, rng)), torch.from_numpy(targets[chosen])


def clip_batches(
    clips: Iterable[np.ndarray], hop: int = SEGMENT_FRAMES, silence: float = SILENCE, segments: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield whole clips in order, in batches that end with the clip that brings them to `segments` segments.

    `clips`: the frames of each clip, [T, M]. Yields (segments [S, T, M], the clip of each within
    the batch [S]).
    """
    held, size = [], 0
    for frames in clips:
        held.append(split_segments(frames, hop, silence))
        size += len(held[-1])
        if size >= segments:
            yield _join(held)
            held, size = [], 0
    if held:
        yield _join(held)


def _join(clips: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    clip_index = np.repeat(np.arange(len(clips)), [len(segments) for segments in clips])
    return torch.from_numpy(np.concatenate(clips)), torch.from_numpy(clip_index)


class ReiterableBatches(IterableDataset):
    """Iterable that makes its batches anew on every pass: only one is in memory."""

    def __init__(self, batches: Callable[[], Iterator]):
        self.batches = batches

    def __iter__(self):
        return self.batches()


class StepDataset(IterableDataset):
    """Infinite stream of batches by step number, starting at `start_step()`.

    Worker processes of a DataLoader take turns.
    """

    def __init__(self, make_batch: Callable[[int], tuple], start_step: Callable[[], int]):
        self.make_batch = make_batch
        self.start_step = start_step

    def __iter__(self):
        worker = get_worker_info()
        turn, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        return map(self.make_batch, itertools.count(self.start_step() + turn, workers))
