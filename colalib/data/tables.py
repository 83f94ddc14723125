"""Tables that people open in a spreadsheet, as CSV."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from colalib.files import atomic

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of a formula


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table that people open in a spreadsheet as CSV.

    A spreadsheet runs text that begins with =, +, - or @ as a formula, so such text gets an
    apostrophe in front. `read_table` takes it off again.
    """
    with atomic(path, "w") as file:
        table.map(as_text).to_csv(file, index=False)


def read_table(path: Path | str) -> pd.DataFrame:
    """Return a table that `write_table` wrote, all columns as text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).map(from_text)


def as_text(value):
    """Return a cell so that no spreadsheet takes it for a formula."""
    return f"'{value}" if _is_risky(value) and not _is_number(value) else value


def from_text(value: str) -> str:
    """Return what `as_text` was given."""
    return value[1:] if value[:1] == "'" and _is_risky(value) else value


def _is_risky(value) -> bool:
    """Return whether text begins as a formula, perhaps behind apostrophes."""
    return isinstance(value, str) and value.lstrip("'")[:1] in FORMULA


def _is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False
