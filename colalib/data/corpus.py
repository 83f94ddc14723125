"""Corpus: the table of clips that `corpora` reads and `store` prepares, and the rules it keeps."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

import pandas as pd

from colalib.data.splits import RESERVED_COLUMNS, split_by_group, split_form
from colalib.errors import UserError

# endings of sound files that libsndfile or FFmpeg reads
AUDIO = {
    *(".wav", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2"),
    *(".au", ".snd", ".caf", ".sph", ".voc", ".m4a", ".m4b", ".aac", ".wma", ".webm", ".mka", ".mp4", ".3gp"),
    *(".wave", ".mov", ".m4v", ".mkv", ".avi"),
    *(".aif", ".aiff", ".aifc", ".wv", ".ape", ".tta", ".mpc", ".amr", ".ac3", ".dsf"),
}
SPLIT_WORDS = {  # usual words for the sides of a split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "validate", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
COLUMNS = ("clip_id", "path", "label", "group", "split")
# corpora that hold the same clips under the same ids
SUPERSET_OF = {"esc10": "esc50", "fma_small": "fma_large", "fma_medium": "fma_large"}
# control characters, line breaks, and bytes that are not text
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


@dataclass
class Corpus:
    """The clips of one corpus.

    `clips`: one row per clip, all columns text: clip_id, path (relative to `root`), label (""
    where missing), group, split, and further label columns. `excluded`: path and reason of clips
    that cannot be used, as far as this shows before they are read. `note`: one line about files in the
    folder that are not clips of the corpus, "" if there are none. `own_split`: whether the split came with
    the corpus; otherwise it was drawn here.
    """

    name: str
    root: Path
    clips: pd.DataFrame
    excluded: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame({"path": [], "reason": []}, dtype=str)
    )
    note: str = ""

    own_split: bool = field(init=False)

    def __post_init__(self):
        # the name stands in ids, tables and messages: one line of text
        self.name = UNPRINTABLE.sub("_", self.name)
        self.own_split = has_split(self.clips)
        self.clips = check(self.clips, self.name)


def check(clips: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the table of clips with missing columns filled in and the five `COLUMNS` first.

    Raises `UserError` if the table breaks a rule; `where` begins the message.
    """
    _check_columns(clips.columns, where)
    clips = clips.astype(str).reset_index(drop=True)

    # text: a path or an id must be exact, elsewhere a space will do
    for column in clips:
        # by Python's own text: Arrow, where pandas uses it, cannot hold what is not text
        odd = [bool(UNPRINTABLE.search(value)) for value in clips[column]]
        if any(odd) and column in ("path", "clip_id"):
            value = clips[column][odd].iloc[0]
            raise UserError(
                f"{where}: {column} {value!r} has a line break or bytes that are not text: remove them"
            )
        if column not in ("path", "clip_id"):  # é may be one letter or two: one group, and one class
            clips[column] = [UNPRINTABLE.sub(" ", normalize("NFC", value)) for value in clips[column]]

    # one way to write a path: a.wav and ./a.wav are the same clip
    clips["path"] = [posixpath.normpath(path) if path else path for path in clips["path"]]
    # paths stay inside the corpus folder
    for path in clips["path"]:
        drive = os.path.splitdrive(path)[0] or re.match("[A-Za-z]:/", path)  # C:a.wav, where there are drives
        if not path or path.startswith("/") or drive or ".." in path.split("/"):
            raise UserError(f"{where}: path {path!r} leaves the corpus folder: paths are relative to it")

    # columns that may be missing
    for column, default in (("clip_id", clips["path"]), ("label", ""), ("group", "")):
        if column not in clips:
            clips[column] = default
    clips["group"] = clips["group"].where(clips["group"] != "", clips["clip_id"])
    if not has_split(clips):
        clips["split"] = split_by_group(clips["label"], clips["group"])
    words = clips["split"].str.lower().map(SPLIT_WORDS)
    if words.notna().all():
        clips["split"] = words

    # ids are unique, and a group is in one split
    if (twice := clips["clip_id"].duplicated()).any():
        raise UserError(
            f"{where}: clip_id {clips['clip_id'][twice].iloc[0]!r} stands twice: every clip needs its own"
        )
    split_form(clips["split"], where)
    splits = clips.groupby("group")["split"].nunique()
    if (splits > 1).any():
        group = splits[splits > 1].index[0]
        raise UserError(f"{where}: group {group!r} is in more than one split: put all its clips in one")
    return clips[[*COLUMNS, *(c for c in clips.columns if c not in COLUMNS)]]


def has_split(clips: pd.DataFrame) -> bool:
    """Return whether a table says which clips train and which test."""
    return "split" in clips and bool((clips["split"] != "").to_numpy().any())


def check_separator(header: str, where: str) -> None:
    """Raise `UserError` if the first line of a table has another separator than commas."""
    if "," not in header and (separator := re.search("[;\t]", header)):
        raise UserError(
            f"{where}: columns are separated by {separator.group()!r}: save the table with commas"
        )


def _check_columns(columns: pd.Index, where: str) -> None:
    """Raise `UserError` for column names that no table of clips may have."""
    if columns.duplicated().any():
        raise UserError(f"{where}: column {columns[columns.duplicated()][0]!r} stands twice: remove one")
    if "path" not in columns and len(columns) == 1:
        check_separator(columns[0], where)
    if "path" not in columns:
        raise UserError(
            f"{where}: no column 'path' (found: {', '.join(columns)}): add one with the file of each clip"
        )
    if reserved := RESERVED_COLUMNS & set(columns):
        raise UserError(f"{where}: column {min(reserved)!r} has a name that stores use themselves: rename it")
