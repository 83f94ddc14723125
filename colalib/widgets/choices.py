"""What a learner chose in the widgets: kept in `choices.json` beside the course's runs, so that it outlives
the kernel.

The file holds an entry per widget, the solved exercises, and under "encoder" the run that the next notebooks
use. It may be damaged, or come from somebody else: what is not as expected is passed over where it is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from colalib.errors import UserError
from colalib.files import locked, runs_folder, write_json


def choices_file() -> Path:
    """Return the file that keeps the choices."""
    return runs_folder() / "choices.json"


def read_choices() -> dict[str, str | dict]:
    """Return all choices: text, or the settings of a widget; none if the file is missing or damaged."""
    try:
        # no control has the value NaN
        choices = json.loads(choices_file().read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(choices, dict):
        return {}
    settings = {key: flat(entry) for key, entry in choices.items() if isinstance(entry, dict)}
    return settings | {key: entry for key, entry in choices.items() if isinstance(entry, str)}


def flat(settings: dict) -> dict:
    """Return the settings whose value is a text, a number, or a list of these: all that widgets keep."""
    values = {name: value if isinstance(value, list) else [value] for name, value in settings.items()}
    good = {name for name, parts in values.items() if all(isinstance(p, str | int | float) for p in parts)}
    return {name: value for name, value in settings.items() if name in good}


def read_settings(widget: str) -> dict:
    """Return what is kept for a widget; nothing if that is missing or damaged."""
    settings = read_choices().get(widget)
    return settings if isinstance(settings, dict) else {}


def change_choice(key: str, change: Callable[[dict], dict | str]) -> dict | str:
    """Keep `change(settings)` under `key`, and return it. All other choices stay as they are.

    Other threads and kernels wait meanwhile. Where nothing can be written, nothing is kept.
    """
    try:
        with locked(choices_file()):
            choice = change(read_settings(key))
            write_json(choices_file(), read_choices() | {key: choice})
    except (OSError, UserError):  # the latter where a lock cannot be had
        choice = change(read_settings(key))
    return choice


def chosen_encoder() -> Path | None:
    """Return the finished run that was picked in the training panel, as an absolute path; else None."""
    run = read_choices().get("encoder")
    if not run or not isinstance(run, str):
        return None
    run = os.path.abspath(run)
    # unlike Path.exists, this takes any text
    return Path(run) if os.path.exists(os.path.join(run, "encoder.safetensors")) else None
