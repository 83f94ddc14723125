"""The table of clips that every corpus is, and its rules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from colalib.data.splits import RESERVED_COLUMNS, split_by_group, split_form
from colalib.errors import UserError

AUDIO = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".m4a", ".aac", ".wma"}
COLUMNS = ("clip_id", "path", "label", "group", "split")
# the same clips under the same ids
SUPERSET_OF = {"esc10": "esc50", "fma_small": "fma_large", "fma_medium": "fma_large"}
# control characters, bytes that are no text
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


@dataclass
class Corpus:
    """Clips of one corpus.

    `clips`: one row a clip, all text: clip_id, path (relative to `root`), label ("" where missing),
    group, split, and further label columns. `excluded`: path and reason of clips known beforehand
    to be unusable.
    """

    name: str
    root: Path
    clips: pd.DataFrame
    excluded: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame({"path": [], "reason": []}, dtype=str)
    )

    def __post_init__(self):
        self.clips = check(self.clips, self.name)


def check(clips: pd.DataFrame, where: str) -> pd.DataFrame:
    """Fill in the columns that may be missing and hold the table to the rules; returns it with the
    five columns first. Raises `UserError` with what breaks a rule."""
    if clips.columns.duplicated().any():
        raise UserError(
            f"{where}: column {clips.columns[clips.columns.duplicated()][0]!r} stands twice: remove one"
        )
    if "path" not in clips:
        raise UserError(
            f"{where}: no column 'path' (found: {', '.join(clips.columns)}): add one with each clip's file"
        )
    if taken := RESERVED_COLUMNS & set(clips.columns):
        raise UserError(
            f"{where}: column {min(taken)!r} is a name that stores need themselves: call it something else"
        )
    clips = clips.astype(str).reset_index(drop=True)
    for column in clips:
        odd = clips[column].str.contains(UNPRINTABLE)
        if odd.any() and column in ("path", "clip_id"):
            value = clips[column][odd].iloc[0]
            raise UserError(
                f"{where}: {column} {value!r} has a line break or bytes that are no text: take them out"
            )
        clips[column] = clips[column].str.replace(UNPRINTABLE, " ", regex=True)
    for path in clips["path"]:
        if not path or path.startswith("/") or re.match("[A-Za-z]:/", path) or ".." in path.split("/"):
            raise UserError(f"{where}: path {path!r} leaves the corpus folder: paths are relative to it")
    for column, default in (("clip_id", clips["path"]), ("label", "")):
        if column not in clips:
            clips[column] = default
    if (twice := clips["clip_id"].duplicated()).any():
        raise UserError(
            f"{where}: clip_id {clips['clip_id'][twice].iloc[0]!r} stands twice: every clip needs its own"
        )
    if "group" not in clips:
        clips["group"] = clips["clip_id"]
    clips["group"] = clips["group"].where(clips["group"] != "", clips["clip_id"])
    if "split" not in clips or (clips["split"] == "").all():
        clips["split"] = split_by_group(clips["label"], clips["group"])
    split_form(clips["split"], where)
    sides = clips.groupby("group")["split"].nunique()
    if (sides > 1).any():
        raise UserError(
            f"{where}: group {sides[sides > 1].index[0]!r} is in more than one split: a group has one side"
        )
    return clips[[*COLUMNS, *(c for c in clips.columns if c not in COLUMNS)]]
