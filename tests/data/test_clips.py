"""Clips of several stores under one numbering."""

import numpy as np
import pytest

from colalib.data import corpora, store
from colalib.data.audio import MelConfig
from colalib.data.clips import Clips, pretraining_clips, split_validation
from colalib.errors import UserError


def test_clips_of_two_stores_are_numbered_one_after_the_other(mel_store):
    clips = Clips([mel_store, mel_store], [np.array([3, 4]), np.array([5])])
    assert len(clips) == 3
    assert clips.ids.tolist() == mel_store.ids[3:6].tolist()
    assert np.array_equal(clips.frames(2), mel_store.frames(5))
    assert clips.column("label").tolist() == mel_store.clips["label"][3:6].tolist()
    assert clips.column("no such column").tolist() == ["", "", ""]


def test_taken_clips_are_numbered_from_zero(mel_store):
    taken = Clips.of_store(mel_store).take(np.array([7, 2]))
    assert taken.ids.tolist() == mel_store.ids[[7, 2]].tolist()
    assert [len(frames) for frames in taken] == [201, 201]
    assert np.array_equal(taken.frames(1), mel_store.frames(2))


def test_pretraining_leaves_out_the_test_clips(mel_store):
    tested = mel_store.clips["split"].values == "test"
    assert pretraining_clips([mel_store]).ids.tolist() == mel_store.ids[~tested].tolist()


def test_stores_with_other_mel_settings_do_not_mix(mel_store, folder, tmp_path):
    other = store.build(
        corpora.load(folder), tmp_path / "other", MelConfig(n_mels=32), jobs=1, progress=False
    )
    with pytest.raises(UserError, match="mel settings"):
        Clips([mel_store, other], [np.arange(4), np.arange(4)])


class Grouped:
    """As much of `Clips` as a division needs: the group of each clip."""

    def __init__(self, groups: np.ndarray):
        self.groups = groups

    def __len__(self):
        return len(self.groups)

    def take(self, chosen):
        return Grouped(self.groups[chosen])


@pytest.mark.parametrize("sizes", [(900, 100), (400, 300, 300), (7, 1), (1,) * 40, (10,)])
def test_few_clips_are_held_out_for_validation(sizes):
    clips = Grouped(np.repeat([f"g{i}" for i in range(len(sizes))], sizes))
    train, valid = split_validation(clips)
    assert len(train) >= 0.6 * len(clips)
    assert len(valid) >= 2
    if len(sizes) > 1 and len(train) < len(clips):
        assert not set(train.groups) & set(valid.groups)
        assert len(train) + len(valid) == len(clips)
    else:  # one group, or too few clips beside the largest: both are all clips
        assert len(train) == len(valid) == len(clips)


def test_small_groups_fill_the_validation_side_beside_groups_too_large_for_it():
    clips = Grouped(np.repeat([f"g{i:03}" for i in range(110)], [90] * 10 + [1] * 100))
    assert len(split_validation(clips)[1]) == 50  # 5% of 1,000


def test_a_clip_alone_is_both_sides():
    assert [len(side) for side in split_validation(Grouped(np.array(["a"])))] == [1, 1]
