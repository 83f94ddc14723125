"""Any folder as a table of clips: by its index.csv, with sub-folders as classes, or unlabelled."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from colalib.data.corpus import AUDIO, UNPRINTABLE, Corpus
from colalib.errors import UserError


def load(root: Path, labels: str | None = None, name: str | None = None) -> Corpus:
    """Return the table of clips of a folder (see `colalib.data.corpora.load`).

    `name`: of the corpus; default: the folder's. Raises `UserError`.
    """
    name = name or root.resolve().name
    index = root / "index.csv"
    if index.is_file() and labels is None:
        return Corpus(name, root, read_index(index))
    paths = audio_files(root)
    if not paths:
        raise UserError(f"{root}: no audio files (looked for {', '.join(sorted(AUDIO))})")
    misplaced = [path for path in paths if path.count("/") != 1]
    if labels == "folder" and misplaced:
        raise UserError(
            f"{root}: {misplaced[0]} does not lie in a sub-folder of its class: move it, or use --labels none"
        )
    # names that would break a table are listed in a form that can be printed
    odd = [path for path in paths if UNPRINTABLE.search(path)]
    shown = [path.encode("unicode_escape").decode() for path in odd]
    reason = "its name has a line break or is not UTF-8: rename it"
    excluded = pd.DataFrame({"path": shown, "reason": reason}, dtype=str)
    clips = pd.DataFrame({"path": [path for path in paths if not UNPRINTABLE.search(path)]})
    if labels == "folder" or (labels is None and not misplaced):
        clips["label"] = [path.split("/")[0] for path in clips["path"]]
    return Corpus(name, root, clips, excluded)


def read_index(index: Path) -> pd.DataFrame:
    """Return the table in index.csv, every column as text. Raises `UserError`."""
    try:
        # header=None: pandas would rename columns that stand twice
        table = pd.read_csv(
            index, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{index}: not a readable CSV table: {str(error).splitlines()[0]}") from None
    table = table.apply(lambda column: column.str.strip())
    clips = table.iloc[1:].set_axis(table.iloc[0], axis=1)
    # a spreadsheet leaves empty rows and columns behind
    clips = clips[(clips != "").any(axis=1)]
    unnamed = clips.columns == ""
    if (clips.loc[:, unnamed] != "").any(axis=None):
        number = int(np.flatnonzero(unnamed)[0]) + 1
        raise UserError(f"{index}: column {number} has no name: give it one in the first row")
    clips = clips.loc[:, ~unnamed]
    if sum(clips.columns == "path") == 1:  # `corpus.check` refuses none or two
        clips["path"] = clips["path"].str.replace("\\", "/", regex=False)
    if clips.empty:
        raise UserError(f"{index}: no clips: it has only a header")
    return clips


def audio_files(root: Path) -> list[str]:
    """Return the POSIX paths, relative to `root` and sorted, of all audio files below it.

    Hidden files and folders are left out. A linked folder is followed, but only once.
    """
    paths = []
    visited = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}): change that, or move it away")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()  # links in a circle
            continue
        visited.add(real)
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in AUDIO:
                paths.append((Path(folder) / file).relative_to(root).as_posix())
    return sorted(paths)
