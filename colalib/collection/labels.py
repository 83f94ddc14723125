"""Labels of the clips in a folder, kept in its index.csv while a person gives them.

`labelling` proposes which clips to label next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from colalib.data.corpora import folder
from colalib.data.corpus import COLUMNS, UNPRINTABLE, Corpus
from colalib.data.splits import RESERVED_COLUMNS
from colalib.data.tables import as_text
from colalib.errors import UserError
from colalib.files import atomic, locked

KEPT = 5  # former versions of index.csv that stay beside it
BOM = b"\xef\xbb\xbf"  # with which a spreadsheet marks UTF-8


class Labels:
    """One column of labels in the index.csv of a folder.

    Clips are named by their paths relative to the folder. A folder without index.csv gets one, with
    all its clips, when the first label is given. Each call reads the file anew, so that several
    writers keep each other's labels. Of its former versions index.csv.before-1 is the newest.

    Raises `UserError` if `root` is no folder, or `column` cannot hold labels.
    """

    def __init__(self, root: Path | str, column: str = "label"):
        if column in {*COLUMNS, *RESERVED_COLUMNS} - {"label"} or not column or column != clean(column):
            raise UserError(f"column {column!r} cannot hold labels: choose another name")
        self.root, self.column = Path(root), column
        self.index = self.root / "index.csv"
        if not self.root.is_dir():
            raise UserError(f"no folder named {root}")
        self.given: list[dict[str, tuple[str, str]]] = []  # per step: path → label before and after

    def read(self) -> pd.Series:
        """Return the label of each clip by its path, "" where it has none. Raises `UserError`."""
        cells, paths = self._table()
        labels = from_cells(cells, paths.index, self.column)
        return pd.Series(labels, index=paths.values)

    def set(self, paths: Iterable[str], label: str) -> int:
        """Give some clips a label ("": none); return how many had another one.

        Raises `UserError`, and changes nothing, for a clip that index.csv does not name, for a label of more
        than one line, and where the file cannot be written.
        """
        label, paths = clean(label), set(paths)
        step = self._change(paths, lambda path, former: label)
        if step:
            self.given.append(step)
        return len(step)

    def undo(self) -> int:
        """Take back the last step of `set`; return how many clips it concerned, 0 if there is none.

        A clip that somebody has given another label since keeps that one. Raises `UserError`.
        """
        if not self.given:
            return 0
        step = self.given[-1]
        changed = self._change(set(step), lambda path, now: step[path][0] if now == step[path][1] else now)
        self.given.pop()  # not if it could not be written
        return len(changed)

    def _change(self, wanted: set[str], new: Callable[[str, str], str]) -> dict[str, tuple[str, str]]:
        """Write `new(path, label)` for the clips; return path → label before and after, where it changed."""
        with self._writing():
            cells, paths = self._table()
            if missing := wanted - set(paths):
                raise UserError(f"{self.index}: no row for {min(missing)!r}: add one with this path")
            rows = paths[paths.isin(wanted)]
            before = from_cells(cells, rows.index, self.column)
            after = [new(path, label) for path, label in zip(rows, before)]
            changed = {p: (b, a) for p, b, a in zip(rows, before, after) if b != a}
            if changed:
                if (where := position(cells, self.column)) is None:
                    where = cells.shape[1]
                    cells[where] = ""
                    cells.iloc[0, where] = as_text(self.column)
                for row, path in rows.items():
                    if path in changed:
                        cells.loc[row, cells.columns[where]] = as_text(changed[path][1])
                self._write(cells)
        return changed

    def _table(self) -> tuple[pd.DataFrame, pd.Series]:
        """Return all cells of index.csv, the header first, and the paths of the clips by row number."""
        if self.index.is_file():
            cells = folder.read_cells(self.index)
            clips = folder.tidy(cells, self.index)
            paths = Corpus(self.root.name, self.root, clips).clips["path"]  # raises what is wrong with it
            return cells, paths.set_axis(clips.index)
        clips = folder.load(self.root).clips[["path", "label"]]
        cells = pd.DataFrame([[*clips], *clips.map(as_text).values.tolist()])
        return cells, clips["path"].set_axis(cells.index[1:])

    @contextmanager
    def _writing(self):
        """Let other writers wait, and say in a line where nothing can be written."""
        try:
            with locked(self.index):
                yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{self.index}: cannot be written ({reason}): labels are kept there: make the folder "
                "writable, or label a copy of it"
            ) from None

    def _write(self, cells: pd.DataFrame) -> None:
        """Write index.csv in the form that it had, and keep the former one."""
        former = self.index.read_bytes() if self.index.is_file() else b""
        places = [self.index.with_name(f"index.csv.before-{i}") for i in range(1, KEPT + 1)]
        # kept already: then the new one could not be written
        kept = places[0].is_file() and places[0].read_bytes() == former
        if former and not kept:
            for newer, older in reversed([*zip(places, places[1:])]):
                if newer.exists():
                    os.replace(newer, older)
            with atomic(places[0]) as file:
                file.write(former)
        first, line_end, _ = former.removeprefix(BOM).partition(b"\n")
        end = "\r\n" if first.endswith(b"\r") else "\n"
        text = cells.to_csv(header=False, index=False, lineterminator=end)
        separator = (first + line_end) * first.lower().startswith(b"sep=,")  # Excel's own line
        with atomic(self.index) as file:
            file.write(BOM * former.startswith(BOM) + separator + text.encode())


def clean(label: str) -> str:
    """Return a label without spaces around it. Raises `UserError` if it is not one line of text."""
    if UNPRINTABLE.search(label):
        raise UserError(f"label {label!r} has a line break or a control character: use one line of text")
    return label.strip()


def position(cells: pd.DataFrame, column: str) -> int | None:
    """Return which column of the cells of an index.csv has this name."""
    names = np.flatnonzero(folder.text(cells.iloc[:1]).iloc[0] == column)
    return int(names[0]) if len(names) else None


def from_cells(cells: pd.DataFrame, rows: pd.Index, column: str) -> list[str]:
    """Return the text in one column of some rows, "" if there is no such column."""
    where = position(cells, column)
    if where is None:
        return [""] * len(rows)
    return folder.text(cells.loc[rows, cells.columns[where]].to_frame()).iloc[:, 0].tolist()
