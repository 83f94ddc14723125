"""A corpus from any folder: by its index.csv, by sub-folders as classes, or unlabelled."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from colalib.data.corpus import AUDIO, UNPRINTABLE, Corpus
from colalib.errors import UserError


def load(root: Path, labels: str | None = None, name: str | None = None) -> Corpus:
    """Read a folder as a corpus (see `colalib.data.corpora.load`); `name` defaults to the folder's.
    Raises `UserError`.
    """
    name = name or root.resolve().name
    index = root / "index.csv"
    if index.is_file() and labels is None:
        return Corpus(name, root, read_index(index))
    paths = audio_files(root)
    if not paths:
        raise UserError(f"{root}: no audio files (looked for {', '.join(sorted(AUDIO))})")
    one_down = all(path.count("/") == 1 for path in paths)
    if labels == "folder" and not one_down:
        odd = next(path for path in paths if path.count("/") != 1)
        raise UserError(
            f"{root}: {odd} does not lie in a sub-folder of its class: move it, or use --labels none"
        )
    odd = [path for path in paths if UNPRINTABLE.search(path)]
    shown = [path.encode("unicode_escape").decode() for path in odd]
    excluded = pd.DataFrame(
        {"path": shown, "reason": "its name has a line break or is no UTF-8: rename it"}, dtype=str
    )
    clips = pd.DataFrame({"path": paths})
    clips = clips[~clips["path"].isin(odd)].reset_index(drop=True)
    if labels == "folder" or (labels is None and one_down):
        clips["label"] = [path.split("/")[0] for path in clips["path"]]
    return Corpus(name, root, clips, excluded)


def read_index(index: Path) -> pd.DataFrame:
    """index.csv, every column as text. Its header is read by itself, because pandas renames doubled
    columns. Raises `UserError`."""
    try:
        table = pd.read_csv(
            index, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{index}: not a readable CSV table: {str(error).splitlines()[0]}") from None
    clips = (
        table.iloc[1:].apply(lambda column: column.str.strip()).set_axis(table.iloc[0].str.strip(), axis=1)
    )
    if sum(clips.columns == "path") == 1:  # `table.check` says what is wrong with none or two
        clips["path"] = clips["path"].str.replace("\\", "/", regex=False)
    if clips.empty:
        raise UserError(f"{index}: no clips: it has only a header")
    return clips


def audio_files(root: Path) -> list[str]:
    """POSIX paths, relative to `root` and sorted, of all audio files below it. Links are followed,
    once each.
    """
    found, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in AUDIO:
                found.append((Path(folder) / file).relative_to(root).as_posix())
    return sorted(found)
