"""Clips of several stores under one numbering."""

import numpy as np
import pytest

from colalib.data import corpora, store
from colalib.data.audio import MelConfig
from colalib.data.clips import Clips, pretraining_clips
from colalib.errors import UserError


def test_clips_of_two_stores_are_numbered_one_after_the_other(mel_store):
    clips = Clips([mel_store, mel_store], [np.array([3, 4]), np.array([5])])
    assert len(clips) == 3
    assert clips.ids.tolist() == mel_store.ids[3:6].tolist()
    assert np.array_equal(clips.frames(2), mel_store.frames(5))


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
