"""Exercises: a learner's function is run through a check, and the lesson goes on with it if it passes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

from colalib.course.running import notebooks
from colalib.widgets.choices import change_choice, read_settings


def exercise(answer: Callable, check: Callable, instead: Callable | None = None) -> Callable:
    """Run `check` on a learner's function; return the function if it passes, else `instead`.

    Prints which of the two is used from here on, and the property that broke. An exercise that
    nothing depends on has no `instead`. Never raises, so that the lesson goes on.
    """
    name = answer.__name__
    try:
        check(answer)
    except NotImplementedError:
        result = "not solved yet"
    except AssertionError as broken:
        result = f"not yet: {broken}"
    except Exception as error:
        result = f"not yet: it raises {type(error).__name__}: {error}"
    else:
        change_choice("exercises", lambda solved: solved | {name: True})
        print(f"{name}: passed" + (", and used from here on" if instead else ""))
        return answer
    print(f"{name}: {result}")
    if instead:
        print("from here on a finished version is used")
    return instead or answer


def progress() -> pd.DataFrame:
    """Return how many exercises each notebook has, and the names of those that are solved."""
    solved = read_settings("exercises")
    rows = []
    for notebook in notebooks():
        source = notebook.with_name("source") / notebook.with_suffix(".py").name
        names = re.findall(r"course\.exercise\((\w+)", source.read_text(encoding="utf-8"))
        done = [name for name in names if name in solved]
        row = {"notebook": notebook.stem, "exercises": len(names), "solved": len(done)}
        rows.append(row | {"which": ", ".join(done)})
    return pd.DataFrame(rows)
