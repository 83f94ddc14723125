"""Any folder as a table of clips: by its index.csv, with sub-folders as classes, or unlabelled."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from colalib.data.corpus import AUDIO, UNPRINTABLE, Corpus, check_separator
from colalib.data.tables import from_text
from colalib.errors import UserError, first_line
from colalib.files import MAP_GENERATOR, is_ours


def load(root: Path, labels: str | None = None, name: str | None = None) -> Corpus:
    """Return the table of clips of a folder (see `colalib.data.corpora.load`).

    `name`: of the corpus; default: the folder's. Raises `UserError`.
    """
    name = name or root.resolve().name
    index = root / "index.csv"
    if index.is_file() and labels is None:
        corpus = Corpus(name, root, tidy(read_cells(index), index))
        unnamed = set(filter(is_audio, visible_files(root, onerror=None))) - {*corpus.clips["path"]}
        if unnamed:
            first = min(unnamed)
            corpus.note = f"{len(unnamed)} audio files are not named in index.csv (the first: {first!r})"
        return corpus
    files = visible_files(root, refuse)
    paths = list(filter(is_audio, files))
    others = [path for path in files if not is_audio(path) and path != "index.csv"]
    if not paths:
        raise UserError(f"{root}: no audio files (looked for {', '.join(sorted(AUDIO))})")
    misplaced = [path for path in paths if path.count("/") != 1]
    if labels == "folder" and misplaced:
        raise UserError(
            f"{root}: {misplaced[0]} does not lie in a sub-folder of its class: move it, or "
            "name the labels in an index.csv, or use --labels none"
        )
    # names that would break a table are listed in a form that can be printed
    odd = [path for path in paths if UNPRINTABLE.search(path)]
    shown = [path.encode("unicode_escape").decode() for path in odd]
    reason = "its name has a line break or is not UTF-8: rename it"
    excluded = pd.DataFrame({"path": shown, "reason": reason}, dtype=str)
    clips = pd.DataFrame({"path": [path for path in paths if not UNPRINTABLE.search(path)]})
    if labels == "folder" or (labels is None and not misplaced):
        clips["label"] = [path.split("/")[0] for path in clips["path"]]
    return Corpus(name, root, clips, excluded, describe_others(others))


def as_on_disk(paths: Iterable[str], root: Path) -> list[str]:
    """Return paths with their letters in the form of the files' names: é may be one character, or e and ´."""
    files = [] if all(path.isascii() for path in paths) else visible_files(root, onerror=None)
    there, forms = {*files}, {unicodedata.normalize("NFC", file): file for file in files}
    return [p if p in there else forms.get(unicodedata.normalize("NFC", p), p) for p in paths]


def describe_others(paths: list[str]) -> str:
    """Return a line that counts files by their endings; "" if there are none."""
    if not paths:
        return ""
    endings = Counter(UNPRINTABLE.sub("_", Path(path).suffix.lower())[:20] or "no ending" for path in paths)
    shown = [f"{ending} {count}" for ending, count in endings.most_common(5)]
    rest = ", …" if len(endings) > len(shown) else ""
    return f"{len(paths)} other files were not looked at: {', '.join(shown)}{rest}"


def read_cells(index: Path) -> pd.DataFrame:
    """Return all cells of index.csv as they are, the names of the columns as the first row.

    Raises `UserError`.
    """
    try:
        # header=None: pandas would rename columns that stand twice
        with open(index, encoding="utf-8-sig", newline="") as file:
            if not file.readline().lower().startswith("sep=,"):  # Excel's own line
                file.seek(0)
            return pd.read_csv(file, header=None, dtype=str, keep_default_na=False, skipinitialspace=True)
    except UnicodeDecodeError:
        raise UserError(f'{index}: its text is not UTF-8: save it as "CSV UTF-8"') from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        with open(index, encoding="utf-8-sig") as file:
            check_separator(file.readline(), str(index))
        raise UserError(f"{index}: not a readable CSV table: {first_line(error)}") from None


def text(cells: pd.DataFrame) -> pd.DataFrame:
    """Return cells without the spaces around their text, and without what `as_text` adds for spreadsheets."""
    return cells.apply(lambda column: column.str.strip()).map(from_text)


def tidy(cells: pd.DataFrame, index: Path) -> pd.DataFrame:
    """Return the table in the cells of index.csv; its rows keep their numbers. Raises `UserError`."""
    table = text(cells)
    clips = table.iloc[1:].set_axis(table.iloc[0], axis=1)
    # a spreadsheet leaves empty rows and columns behind
    clips = clips[(clips != "").any(axis=1)]
    unnamed = clips.columns == ""
    if (clips.loc[:, unnamed] != "").any(axis=None):
        number = int(np.flatnonzero(unnamed)[0]) + 1
        raise UserError(f"{index}: column {number} has no name: give it one in the first row")
    clips = clips.loc[:, ~unnamed]
    if sum(clips.columns == "path") == 1:  # `corpus.check` refuses none or two
        clips["path"] = as_on_disk(clips["path"].str.replace("\\", "/", regex=False), index.parent)
    if clips.empty:
        raise UserError(f"{index}: no clips: it has only a header")
    return clips


def is_audio(path: str) -> bool:
    """Return whether a file has the ending of a sound file."""
    return Path(path).suffix.lower() in AUDIO


def refuse(error: OSError) -> None:
    """Raise `UserError` for a folder that cannot be read."""
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}): change that, or move it away")


def audio_files(root: Path) -> list[str]:
    """Return the POSIX paths, relative to `root` and sorted, of all audio files below it."""
    return list(filter(is_audio, visible_files(root, refuse)))


def is_sounds_of_map(around: Path, name: str) -> bool:
    """Return whether a folder holds the sounds of a map of ours beside it: `map-sounds/` of map.html."""
    page = around / f"{name.removesuffix('-sounds')}.html"
    return name.endswith("-sounds") and page.is_file() and is_ours(page, MAP_GENERATOR.encode())


def visible_files(root: Path, onerror: Callable[[OSError], None] | None) -> list[str]:
    """Return the POSIX paths, relative to `root` and sorted, of all files below it.

    Hidden files and folders are left out, and the sounds of a map. A linked folder is followed, but only
    once. `onerror` is called for a folder that cannot be read.
    """
    paths = []
    visited = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=onerror):
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()  # links in a circle
            continue
        visited.add(real)
        folders[:] = [f for f in folders if not (f.startswith(".") or is_sounds_of_map(Path(folder), f))]
        paths += [(Path(folder) / f).relative_to(root).as_posix() for f in files if not f.startswith(".")]
    return sorted(paths)
