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

    def safe(value):
        risky = isinstance(value, str) and value[:1] in FORMULA and not _is_number(value)
        return f"'{value}" if risky else value

    with atomic(path, "w") as file:
        table.map(safe).to_csv(file, index=False)


def read_table(path: Path | str) -> pd.DataFrame:
    """Return a table that `write_table` wrote, all columns as text."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.map(lambda value: value[1:] if value[:1] == "'" and value[1:2] in FORMULA else value)


def _is_number(text: str) -> bool:
    try:
        return bool(float(text)) or True
    except ValueError:
        return False
