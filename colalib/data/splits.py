"""Splits: which clips train, validate and test, so that no group is on two sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from colalib.data.streams import stream
from colalib.errors import UserError

NAMED_SPLITS = ("train", "valid", "test")
SHARES = (0.7, 0.1, 0.2)  # of train, valid and test, where a corpus brings no split
# of the training groups, where a corpus brings no validation side: 0.1 / (0.7 + 0.1)
VALIDATION_SHARE = 1 / 8
RESERVED_COLUMNS = {"shard", "start", "frames", "embedding"}  # of stores and embeddings


@dataclass
class Split:
    """Clip numbers of one division into train, valid and test.

    `fold` names the test fold; it is "" in named form.
    """

    fold: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def split_form(splits: pd.Series | np.ndarray, where: str = "the table") -> str:
    """Return "named" (only train, valid, test) or "folds" (any other two or more values).

    Raises `UserError` for a mixture or a single odd value.
    """
    values = set(splits)
    if values <= set(NAMED_SPLITS):
        return "named"
    if values & set(NAMED_SPLITS) or "" in values:
        odd = sorted(values - set(NAMED_SPLITS))[:3]
        odd = ", ".join(map(repr, odd))
        raise UserError(f"{where}: unknown split {odd} beside train/valid/test: use only these, or folds")
    if len(values) < 2:
        raise UserError(
            f"{where}: unknown split {values.pop()!r}: use train, valid and test, or two or more folds"
        )
    return "folds"


def describe_split(assignment: pd.Series) -> str:
    """Return in one line how the clips are divided: "split: train 14, test 6" or "5 folds: a 80, b 80, …"."""
    counts = assignment.value_counts()
    named = set(counts.index) <= set(NAMED_SPLITS)
    names = [name for name in NAMED_SPLITS if name in counts] if named else sorted(counts.index)
    parts = [f"{name} {counts[name]}" for name in names[:10]] + ["…"] * (len(names) > 10)
    return f"{'split' if named else f'{len(names)} folds'}: {', '.join(parts)}"


def describe_groups(groups: pd.Series) -> str:
    """Return in one line how many groups the clips have, and what to do if each clip has its own."""
    n = groups.nunique()
    alone = ", every clip its own; where recordings belong together, give them one `group`"
    return f"groups: {n}" + (alone if n == len(groups) else "")


def count_leaks(duplicates: pd.DataFrame) -> int:
    """Return how many of the clips that equal another one have such a twin in another split."""
    if duplicates.empty:
        return 0
    splits = duplicates.groupby("same_as")["split"].transform("nunique")
    return int((splits > 1).sum())


def split_by_group(
    labels: pd.Series, groups: pd.Series, seed: int = 0, shares=SHARES, names=NAMED_SPLITS
) -> np.ndarray:
    """Assign whole groups to splits, stratified by label; return one name per clip.

    Greedy: the largest group first (in seeded order among equals). Each group joins the split that
    lacks most of its labels, in whole clips. Where no split lacks a whole clip of them, as with the
    last clip of a small class, it joins the split that lacks most clips in all.
    """
    group_of_clip, group_names = pd.factorize(groups, sort=True)
    label_of_clip, _ = pd.factorize(labels, sort=True)
    sizes = np.bincount(group_of_clip)
    order = np.random.default_rng(seed).permutation(len(group_names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    target = np.outer(shares, np.bincount(label_of_clip))  # [splits, labels] clips
    whole = np.floor(target + 1e-9)  # 0.7 × 10 is a little less than 7
    have = np.zeros_like(target)
    lacking = target.sum(axis=1)  # [splits] clips in all
    clips_of_group = np.split(np.argsort(group_of_clip, kind="stable"), np.cumsum(sizes)[:-1])
    assignment = np.empty(len(group_names), dtype=int)
    for g in order:
        of, clips = np.unique(label_of_clip[clips_of_group[g]], return_counts=True)  # labels of this group
        # how much of what each split lacks this group would fill
        gain = (clips * np.maximum(whole[:, of] - have[:, of], 0) / target[:, of]).sum(axis=1)  # [splits]
        if gain.max() < 1e-9:
            gain = lacking
        assignment[g] = int(np.argmax(gain))
        have[assignment[g], of] += clips
        lacking[assignment[g]] -= clips.sum()
    return np.asarray(names, dtype=object)[assignment[group_of_clip]]


def check_column(clips: pd.DataFrame, column: str) -> None:
    """Raise `UserError` for a column that a table of clips does not have, or that is none of its user's."""
    columns = [c for c in clips if c not in RESERVED_COLUMNS]
    if column not in columns:
        raise UserError(f"no column {column!r}: there are {', '.join(columns)}")


def evaluation_splits(
    clips: pd.DataFrame, label: str = "label", fold: str | None = None, folds: int | None = None
) -> list[Split]:
    """Return the splits by which a task is judged, over the clips that have a value in column `label`.

    Named form gives one split. Fold form gives one per fold: that fold is the test, the next one
    (in sorted order) the validation; `fold` picks one. `folds` = n makes n new grouped, stratified
    folds instead of the table's own. Without a `valid` side, an eighth of the training groups
    becomes one. Raises `UserError` if a side would be empty.
    """
    check_column(clips, label)
    has_label = (clips[label] != "").values
    if clips[label][has_label].nunique() < 2:
        raise UserError(
            f"column {label!r} has fewer than two classes: fill it in index.csv, or name another with --label"
        )
    assignment = clips["split"].values
    if folds is not None:
        groups = clips["group"][has_label].nunique()
        if not 2 <= folds <= groups:
            raise UserError(f"{folds} folds of {groups} groups: choose from 2 to {groups}")
        names = tuple(f"fold{i}" for i in range(folds))
        assignment = np.full(len(clips), "", dtype=object)
        assignment[has_label] = split_by_group(
            clips[label][has_label], clips["group"][has_label], shares=np.full(folds, 1 / folds), names=names
        )
    if not folds and split_form(assignment) == "named":
        if fold is not None:
            raise UserError("--fold needs a corpus with folds: this one has train, valid and test")
        sides = (np.flatnonzero(has_label & (assignment == name)) for name in NAMED_SPLITS)
        splits = [Split("", *sides)]
    else:
        splits = _fold_splits(assignment, has_label, fold)
    for split in splits:
        if len(split.valid) == 0 and len(split.train):
            _take_validation(split, clips, label)
        for name in NAMED_SPLITS:
            if len(getattr(split, name)) == 0:
                of = f" of fold {split.fold}" if split.fold else ""
                raise UserError(
                    f"no clips with a {label!r} on the {name} side{of}: too few groups or clips to judge"
                )
    return splits


def _fold_splits(assignment: np.ndarray, has_label: np.ndarray, fold: str | None) -> list[Split]:
    """Return a split per fold, or only the one that tests `fold`."""
    names = sorted(set(assignment[has_label]))
    if fold is not None and fold not in names:
        raise UserError(f"no fold {fold!r}: there are {', '.join(names)}")
    splits = []
    for i, test in enumerate(names):
        if fold not in (None, test):
            continue
        # of two folds, the other one trains
        valid = names[(i + 1) % len(names)] if len(names) > 2 else None
        in_test, in_valid = has_label & (assignment == test), has_label & (assignment == valid)
        in_train = has_label & ~in_test & ~in_valid
        splits.append(Split(test, *(np.flatnonzero(side) for side in (in_train, in_valid, in_test))))
    return splits


def _take_validation(split: Split, clips: pd.DataFrame, label: str) -> None:
    """Move an eighth of the training groups to the validation side; the only group of a class stays."""
    labels, groups = (clips[column].iloc[split.train] for column in (label, "group"))
    stays = groups.isin(groups[groups.groupby(labels).transform("nunique") == 1]).values
    for rows in (split.train[~stays], split.train):  # where no other will do, any group
        part = split_by_group(
            clips[label].iloc[rows],
            clips["group"].iloc[rows],
            shares=(1 - VALIDATION_SHARE, VALIDATION_SHARE),
            names=("train", "valid"),
        )
        split.valid = rows[part == "valid"]
        if len(split.valid):
            break
    split.train = np.setdiff1d(split.train, split.valid)


def subsample_labels(labels: np.ndarray, train: np.ndarray, per_class: int | None, seed: int) -> np.ndarray:
    """Return `per_class` random clips of each class out of the clip numbers `train` (None: all)."""
    if per_class is None:
        return train
    mixed = stream("labels", seed).permutation(train)
    # 0 for a class' first clip
    place = pd.Series(labels[mixed]).groupby(labels[mixed]).cumcount().values
    return np.sort(mixed[place < per_class])
