"""Splits by group, from a table's own column or made anew."""

import numpy as np
import pandas as pd
import pytest

from colalib.data.splits import (
    count_leaks,
    describe_split,
    evaluation_splits,
    split_by_group,
    subsample_labels,
)
from colalib.errors import UserError


@pytest.fixture
def clips():
    """60 clips of two classes, each its own group."""
    return pd.DataFrame({"label": list("xy") * 30, "group": [str(i) for i in range(60)], "split": "train"})


def test_split_by_group_is_stratified_and_seeded():
    rng = np.random.default_rng(0)
    labels = pd.Series(rng.choice(list("abcd"), 2000))
    groups = pd.Series([f"{label}{rng.integers(60)}" for label in labels])
    split = split_by_group(labels, groups, seed=3)
    shares = pd.crosstab(labels, split, normalize="index")
    assert np.allclose(shares[["train", "valid", "test"]], [0.7, 0.1, 0.2], atol=0.02)
    assert (pd.Series(split).groupby(groups).nunique() == 1).all()
    assert (split == split_by_group(labels, groups, seed=3)).all()
    assert (split != split_by_group(labels, groups, seed=4)).any()


def test_named_splits_are_taken_as_they_are(clips):
    clips["split"] = ["train"] * 40 + ["valid"] * 8 + ["test"] * 12
    (split,) = evaluation_splits(clips)
    assert [len(split.train), len(split.valid), len(split.test)] == [40, 8, 12]


def test_a_missing_validation_side_is_taken_from_training(clips):
    clips["split"] = ["train"] * 48 + ["test"] * 12
    (split,) = evaluation_splits(clips)
    assert len(split.train) + len(split.valid) == 48
    assert 4 <= len(split.valid) <= 8


def test_each_fold_is_the_test_once_and_the_next_one_validates(clips):
    clips["split"] = np.repeat(list("12345"), 12)
    splits = evaluation_splits(clips)
    assert [s.fold for s in splits] == list("12345")
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(60))
    assert (clips["split"].iloc[splits[4].valid] == "1").all()
    assert not set(splits[0].train) & set(splits[0].test)
    assert evaluation_splits(clips, fold="3")[0].fold == "3"


def test_the_only_group_of_a_class_is_not_taken_for_validation():
    rare = [f"rare {i}" for i in range(20)]
    labels = [*rare, *"xy" * 30]
    groups = [str(i) for i in range(len(labels))]
    clips = pd.DataFrame({"label": labels, "group": groups, "split": "train"})
    clips.loc[70:, "split"] = "test"
    (split,) = evaluation_splits(clips)
    assert set(clips["label"].iloc[split.train]) == {*rare, "x", "y"}
    assert set(clips["label"].iloc[split.valid]) == {"x", "y"}
    only = clips[clips["split"].eq("test") | clips["label"].str.startswith("rare")].reset_index(drop=True)
    (split,) = evaluation_splits(only)
    assert len(split.valid) > 0, "where no other will do, one is taken all the same"


def test_new_folds_test_every_clip_once(clips):
    splits = evaluation_splits(clips, folds=3)
    assert len(splits) == 3
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(60))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"fold": "9"}, "no fold '9'"),
        ({"label": "colour"}, "no column 'colour'"),
        ({"folds": 1}, "1 folds of 60 groups: choose from 2 to 60"),
        ({"folds": 61}, "61 folds of 60 groups: choose from 2 to 60"),
    ],
)
def test_unknown_folds_and_labels_are_refused(clips, options, message):
    clips["split"] = np.repeat(list("12345"), 12)
    with pytest.raises(UserError, match=message):
        evaluation_splits(clips, **options)


def test_a_single_class_is_refused(clips):
    clips["label"] = "x"
    with pytest.raises(UserError, match="fewer than two classes"):
        evaluation_splits(clips)


def test_few_labels_are_balanced_and_seeded():
    labels = np.array(list("aabbbbcccccc") * 5)
    clips = np.arange(60)
    chosen = subsample_labels(labels, clips, 4, seed=1)
    assert sorted(labels[chosen]) == list("aaaabbbbcccc")
    assert len(set(chosen)) == 12
    assert np.array_equal(chosen, subsample_labels(labels, clips, 4, seed=1))
    assert not np.array_equal(chosen, subsample_labels(labels, clips, 4, seed=2))
    assert np.array_equal(subsample_labels(labels, clips, None, seed=1), clips)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 10])
def test_shares_hold_for_small_classes(size):
    labels = pd.Series(np.repeat(np.arange(60), size).astype(str))
    split = split_by_group(labels, pd.Series(np.arange(len(labels)).astype(str)))
    for name, share in (("train", 0.7), ("valid", 0.1), ("test", 0.2)):
        assert (split == name).mean() == pytest.approx(share, abs=0.02)
    if size > 1:
        assert set(labels[split == "train"]) == set(labels), "each class can be learned"


def test_the_division_is_told_in_one_line():
    assert describe_split(pd.Series(["train"] * 14 + ["test"] * 6)) == "split: train 14, test 6"
    assert describe_split(pd.Series(["b", "a", "a"])) == "2 folds: a 2, b 1"


def test_equal_clips_leak_if_they_are_in_different_splits():
    table = pd.DataFrame(
        {
            "clip_id": list("abcd"),
            "split": ["train", "test", "train", "train"],
            "same_as": ["a", "a", "c", "c"],
        }
    )
    assert count_leaks(table) == 2
    assert count_leaks(table[:0]) == 0
