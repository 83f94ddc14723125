"""What a learner chose in the widgets: kept in `choices.json` beside the course's runs, so that it outlives
the kernel.

The file holds an entry per widget, and under "encoder" the run that the next notebooks use.
"""

from __future__ import annotations

import json
from pathlib import Path

from colalib.files import runs_folder, write_json


def choices_file() -> Path:
    """Return the file that keeps the choices."""
    return runs_folder() / "choices.json"


def read_choices() -> dict:
    """Return all choices; none if the file is missing or damaged."""
    try:
        choices = json.loads(choices_file().read_text(encoding="utf-8"))
        return choices if isinstance(choices, dict) else {}
    except (OSError, ValueError):
        return {}


def keep_choice(key: str, value) -> None:
    """Keep one entry; the others stay as they are."""
    write_json(choices_file(), read_choices() | {key: value})


def chosen_encoder() -> Path | None:
    """Return the finished run that was picked in the training panel, if there is one."""
    run = Path(read_choices().get("encoder") or ".")
    return run if (run / "encoder.safetensors").exists() else None
