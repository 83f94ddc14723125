"""The table of clips that every corpus is, and its rules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from colalib.errors import UserError

AUDIO = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".m4a", ".aac", ".wma"}
NAMED = ("train", "valid", "test")
COLUMNS = ("clip_id", "path", "label", "group", "split")
RESERVED = {"shard", "start", "frames", "embedding"}  # columns of stores and of embeddings
PART_OF = {"esc10": "esc50", "fma_small": "fma_large", "fma_medium": "fma_large"}  # the same clips under the same ids
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")  # control characters, bytes that are no text


@dataclass
class Corpus:
    """Clips of one corpus.

    `clips`: one row a clip, all text: clip_id, path (relative to `root`), label ("" where missing), group, split, and
    further label columns. `excluded`: path and reason of clips known beforehand to be unusable.
    """

    name: str
    root: Path
    clips: pd.DataFrame
    excluded: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"path": [], "reason": []}, dtype=str))

    def __post_init__(self):
        self.clips = check(self.clips, self.name)


def split_form(splits: pd.Series | np.ndarray, where: str = "the table") -> str:
    """ "named" (only train, valid, test) or "folds" (any other two or more values); anything else raises `UserError`."""
    values = set(splits)
    if values <= set(NAMED):
        return "named"
    if values & set(NAMED) or "" in values:
        odd = sorted(values - set(NAMED))[:3]
        raise UserError(
            f"{where}: unknown split {', '.join(map(repr, odd))} beside train/valid/test: use only these, or folds"
        )
    if len(values) < 2:
        raise UserError(f"{where}: unknown split {values.pop()!r}: use train, valid and test, or two or more folds")
    return "folds"


def check(clips: pd.DataFrame, where: str) -> pd.DataFrame:
    """Fill in the columns that may be missing and hold the table to the rules; returns it with the five columns first.
    Raises `UserError` with what breaks a rule."""
    if clips.columns.duplicated().any():
        raise UserError(f"{where}: column {clips.columns[clips.columns.duplicated()][0]!r} stands twice: remove one")
    if "path" not in clips:
        raise UserError(f"{where}: no column 'path' (found: {', '.join(clips.columns)}): add one with each clip's file")
    if taken := RESERVED & set(clips.columns):
        raise UserError(f"{where}: column {min(taken)!r} is a name that stores need themselves: call it something else")
    clips = clips.astype(str).reset_index(drop=True)
    for column in clips:
        odd = clips[column].str.contains(UNPRINTABLE)
        if odd.any() and column in ("path", "clip_id"):
            value = clips[column][odd].iloc[0]
            raise UserError(f"{where}: {column} {value!r} has a line break or bytes that are no text: take them out")
        clips[column] = clips[column].str.replace(UNPRINTABLE, " ", regex=True)
    for path in clips["path"]:
        if not path or path.startswith("/") or re.match("[A-Za-z]:/", path) or ".." in path.split("/"):
            raise UserError(f"{where}: path {path!r} leaves the corpus folder: paths are relative to it")
    for column, default in (("clip_id", clips["path"]), ("label", "")):
        if column not in clips:
            clips[column] = default
    if (twice := clips["clip_id"].duplicated()).any():
        raise UserError(f"{where}: clip_id {clips['clip_id'][twice].iloc[0]!r} stands twice: every clip needs its own")
    if "group" not in clips:
        clips["group"] = clips["clip_id"]
    clips["group"] = clips["group"].where(clips["group"] != "", clips["clip_id"])
    if "split" not in clips or (clips["split"] == "").all():
        clips["split"] = split_by_group(clips["label"], clips["group"])
    split_form(clips["split"], where)
    sides = clips.groupby("group")["split"].nunique()
    if (sides > 1).any():
        raise UserError(f"{where}: group {sides[sides > 1].index[0]!r} is in more than one split: a group has one side")
    return clips[[*COLUMNS, *(c for c in clips.columns if c not in COLUMNS)]]


def split_by_group(
    labels: pd.Series, groups: pd.Series, seed: int = 0, shares=(0.7, 0.1, 0.2), names=NAMED
) -> np.ndarray:
    """Assign whole groups to splits, stratified by label: each group, largest first and in seeded order among equals, goes
    where the labels' counts are furthest below their share. Returns one name a clip."""
    counts = pd.crosstab(groups, labels)  # [groups, labels] clips
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts.values[order].sum(axis=1), kind="stable")]
    target = np.outer(shares, counts.values.sum(axis=0))  # [splits, labels] clips
    have = np.zeros_like(target)
    side = np.empty(len(counts), dtype=int)
    for g in order:
        row = counts.values[g]
        worth = (row * (target - have) / target).sum(axis=1)  # how much of what is missing this group would fill
        side[g] = int(np.argmax(worth))
        have[side[g]] += row
    return np.asarray(names, dtype=object)[pd.Series(side, index=counts.index)[groups].values]


@dataclass
class Split:
    """Clip numbers of one train/valid/test division; `fold` is the test fold's name, "" in named form."""

    fold: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def splits(clips: pd.DataFrame, label: str = "label", fold: str | None = None, folds: int | None = None) -> list[Split]:
    """The divisions by which a task is judged, over the clips that have a value in column `label`.

    Named form gives one. Fold form gives one a fold: the fold is the test, the next one (in sorted order) the validation;
    `fold` picks one. `folds` = n makes n new grouped, stratified folds instead of the table's own. Without a `valid` split
    an eighth of the training groups serves as one. Raises `UserError` where a side would be empty.
    """
    if label not in clips or label in RESERVED:
        raise UserError(f"no column {label!r}: there are {', '.join(c for c in clips.columns if c not in RESERVED)}")
    has = clips[label] != ""
    if clips[label][has].nunique() < 2:
        raise UserError(f"column {label!r} has fewer than two classes: name another with --label")
    side = clips["split"].values
    if folds:
        names = tuple(f"fold{i}" for i in range(folds))
        side = np.full(len(clips), "", dtype=object)
        side[has] = split_by_group(
            clips[label][has], clips["group"][has], shares=np.full(folds, 1 / folds), names=names
        )
    found = []
    if not folds and split_form(side) == "named":
        if fold is not None:
            raise UserError("--fold needs a corpus with folds: this one has train, valid and test")
        train, valid, test = (np.flatnonzero(has & (side == name)) for name in NAMED)
        found.append(Split("", train, valid, test))
    else:
        names = sorted(set(side[has]))
        if fold is not None and fold not in names:
            raise UserError(f"no fold {fold!r}: there are {', '.join(names)}")
        for i, name in enumerate(names):
            rest = names[(i + 1) % len(names)] if len(names) > 2 else None
            train = np.flatnonzero(has & (side != name) & (side != rest))
            valid = np.flatnonzero(has & (side == rest))
            if fold in (None, name):
                found.append(Split(name, train, valid, np.flatnonzero(has & (side == name))))
    for split in found:
        if len(split.valid) == 0 and len(split.train):
            part = split_by_group(
                clips[label].iloc[split.train],
                clips["group"].iloc[split.train],
                shares=(7 / 8, 1 / 8),
                names=("train", "valid"),
            )
            split.train, split.valid = split.train[part == "train"], split.train[part == "valid"]
        for name in NAMED:
            if len(getattr(split, name)) == 0:
                of = f" of fold {split.fold}" if split.fold else ""
                raise UserError(f"no clips with a {label!r} on the {name} side{of}: too few groups or clips to judge")
    return found
