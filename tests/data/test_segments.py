"""Crops, augmentations, pairs and batches."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from colalib.data import segments
from colalib.data.segments import SEGMENT_FRAMES


def test_random_crop_covers_the_clip_and_nothing_else():
    clip = np.arange(300, dtype=np.float16)[:, None].repeat(4, axis=1)
    rng = np.random.default_rng(0)
    starts = []
    for _ in range(2000):
        crop = segments.random_crop(clip, rng)
        assert crop.shape == (SEGMENT_FRAMES, 4)
        assert crop.dtype == np.float32
        assert (np.diff(crop[:, 0]) == 1).all()
        starts.append(int(crop[0, 0]))
    assert min(starts) == 0
    assert max(starts) == 300 - SEGMENT_FRAMES
    assert abs(np.mean(starts) - (300 - SEGMENT_FRAMES) / 2) < 5


def test_short_clip_is_padded_at_a_random_offset():
    clip = np.ones((40, 4), np.float16)
    rng = np.random.default_rng(0)
    offsets = set()
    for _ in range(500):
        crop = segments.random_crop(clip, rng, silence=-11.5)
        inside = np.flatnonzero(crop[:, 0] == 1)
        assert len(inside) == 40
        assert (np.delete(crop, inside, axis=0) == np.float32(-11.5)).all()
        offsets.add(inside[0])
    assert min(offsets) == 0
    assert max(offsets) == SEGMENT_FRAMES - 40


def test_random_mask_blanks_whole_frames_to_the_mean():
    x = np.random.default_rng(0).normal(size=(SEGMENT_FRAMES, 64)).astype(np.float32)
    shares = []
    for seed in range(200):
        masked = segments.random_mask(x, np.random.default_rng(seed))
        changed = (masked != x).any(axis=1)
        assert np.allclose(masked[changed], x.mean())
        assert masked.dtype == np.float32
        shares.append(changed.mean())
    assert 0.08 < np.mean(shares) < 0.16


def test_random_band_mask_blanks_one_run_of_bands():
    x = np.random.default_rng(0).normal(size=(SEGMENT_FRAMES, 64)).astype(np.float32)
    widths = []
    for seed in range(300):
        masked = segments.random_band_mask(x, np.random.default_rng(seed), most=16)
        changed = np.flatnonzero((masked != x).any(axis=0))
        assert np.allclose(masked[:, changed], x.mean())
        assert masked.dtype == np.float32
        assert len(changed) == 0 or changed[-1] - changed[0] + 1 == len(changed)
        widths.append(len(changed))
    assert min(widths) == 0
    assert max(widths) == 16
    assert 7 < np.mean(widths) < 9


def test_the_band_mask_fits_few_bands():
    x = np.random.default_rng(0).normal(size=(SEGMENT_FRAMES, 8)).astype(np.float32)
    widths = {
        int((segments.random_band_mask(x, np.random.default_rng(seed)) != x).any(axis=0).sum())
        for seed in range(100)
    }
    assert widths == set(range(9))


def test_random_multiply_is_one_factor_within_its_spread():
    x = np.random.default_rng(0).normal(size=(SEGMENT_FRAMES, 64)).astype(np.float32)
    factors = []
    for seed in range(200):
        y = segments.random_multiply(x, np.random.default_rng(seed))
        ratio = (y / x).ravel()
        assert np.allclose(ratio, ratio[0], atol=1e-5)
        factors.append(ratio[0])
    assert 0.9 <= min(factors) < 0.92
    assert 1.08 < max(factors) <= 1.1


def test_random_filter_is_one_smooth_response_of_its_spread():
    x = np.random.default_rng(0).normal(size=(SEGMENT_FRAMES, 64)).astype(np.float32)
    responses = []
    for seed in range(300):
        y = segments.random_filter(x, np.random.default_rng(seed), spread=5.0)
        assert y.dtype == np.float32
        assert np.allclose(y - x, (y - x)[0], atol=1e-5)
        responses.append((y - x)[0] * 20 / np.log(10))
    assert 4.5 < np.sqrt(np.square(responses).mean()) < 5.5
    assert np.abs(np.diff(responses, axis=1)).max() < 5  # dB from band to band


@pytest.mark.parametrize("frames,n", [(10, 1), (98, 1), (150, 1), (196, 2), (250, 2)])
def test_split_segments_gives_whole_segments(frames, n):
    x = np.random.default_rng(0).normal(size=(frames, 4)).astype(np.float16)
    split = segments.split_segments(x, SEGMENT_FRAMES)
    assert split.shape == (n, SEGMENT_FRAMES, 4)
    if frames >= SEGMENT_FRAMES:
        assert (split.reshape(-1, 4) == x[: n * SEGMENT_FRAMES]).all()
    else:
        assert (split[0, (SEGMENT_FRAMES - frames) // 2 :][:frames] == x).all()


def test_pairs_come_from_the_same_clip_independently(clips):
    anchors, positives = segments.pair_batch(clips, step=5, batch_size=48, seed=0)
    assert anchors.shape == positives.shape == (48, SEGMENT_FRAMES, 64)
    assert anchors.dtype == torch.float32
    chosen = segments.shuffled(len(clips), 48, 5, 0)
    assert len(set(chosen)) == 48
    different = 0
    for i, clip in enumerate(chosen):
        frames = clips.frames(clip).astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(frames, (SEGMENT_FRAMES, 64))[:, 0]
        where = [
            np.flatnonzero((windows == side[i].numpy()).all(axis=(1, 2))) for side in (anchors, positives)
        ]
        assert len(where[0]) > 0
        assert len(where[1]) > 0
        different += where[0][0] != where[1][0]
    assert different > 40


def rows(change):
    """Return what distinguishes the changes of segments [B, T, M]: a copy of each, rounded, as bytes."""
    return {np.round(one.astype(float), 3).tobytes() for one in change}


@pytest.mark.parametrize("augmentation", ["filter_db", "mask_bands", "mask", "multiply"])
def test_pairs_are_augmented_as_asked_each_segment_by_itself(clips, augmentation):
    asked = {"filter_db": 6.0, "mask_bands": 16}.get(augmentation, True)
    plain, augmented = (
        np.concatenate(segments.pair_batch(clips, 3, 16, 0, **kwargs))
        for kwargs in ({}, {augmentation: asked})
    )  # anchors, then positives
    change = augmented - plain
    assert (change != 0).any(axis=(1, 2)).mean() > 0.8, "a band mask may have no band"
    if augmentation == "filter_db":
        assert np.allclose(change, change[:, :1], atol=1e-4), "one gain for each band"
        assert len(rows(change[:, 0])) == len(change)
    elif augmentation == "multiply":
        factor = (augmented / plain).mean(axis=(1, 2))
        assert np.allclose(augmented, plain * factor[:, None, None], atol=1e-4)
        assert len(rows(factor)) > 24
    else:
        blank = (change != 0).any(axis=1 if augmentation == "mask_bands" else 2)  # bands, or frames
        assert blank.mean() < 0.5
        assert len(rows(blank)) > 24


def test_batches_are_keyed_by_seed_and_step(clips):
    def batch(step, seed=0):
        return segments.pair_batch(clips, step, 16, seed)[0]

    assert torch.equal(batch(3), batch(3))
    assert not torch.equal(batch(3), batch(4))
    assert not torch.equal(batch(3), batch(3, seed=1))


def test_an_epoch_visits_every_clip_once(clips):
    steps = len(clips) // 16
    first, second = (
        np.concatenate([segments.shuffled(len(clips), 16, epoch * steps + step, 0) for step in range(steps)])
        for epoch in (0, 1)
    )
    assert sorted(first) == list(range(len(clips)))
    assert sorted(second) == list(range(len(clips)))
    assert not (first == second).all()


def test_clip_batches_keep_clips_whole_and_in_order(clips):
    number = 0
    for x, clip_index in segments.clip_batches(clips, hop=49, segments=20):
        assert len(x) == len(clip_index)
        for i in range(int(clip_index.max()) + 1):
            whole = segments.split_segments(clips.frames(number), hop=49)
            assert np.array_equal(x[clip_index == i].numpy(), whole)
            number += 1
    assert number == len(clips)


def test_steps_start_where_they_are_told():
    steps = iter(segments.StepDataset(lambda step: step, lambda: 7))
    assert [next(steps) for _ in range(3)] == [7, 8, 9]


def test_processes_share_a_batch(clips):
    whole = segments.shuffled(len(clips), 12, 3, 0)
    assert sorted(np.concatenate([whole[k::3] for k in range(3)])) == sorted(whole)
    parts = [segments.pair_batch(clips, 3, 12, 0, part=(k, 3)) for k in range(3)]
    for k, (anchors, _) in enumerate(parts):
        assert len(anchors) == 4
        chosen, _ = segments.pair_starts(clips, 3, 12, 0, part=(k, 3))
        assert np.array_equal(chosen, whole[k::3])


def test_workers_draw_the_same_batches(clips):
    steps = segments.StepDataset(lambda step: segments.pair_batch(clips, step, 4, 0), lambda: 5)
    alone, by_workers = (iter(DataLoader(steps, batch_size=None, num_workers=n)) for n in (0, 2))
    for step in range(5, 10):
        for side, one, two in zip(segments.pair_batch(clips, step, 4, 0), next(alone), next(by_workers)):
            assert torch.equal(one, side)
            assert torch.equal(two, side)
