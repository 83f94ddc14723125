"""Exercises: a learner's function is run through a check, and what came of it is printed."""

from __future__ import annotations

from collections.abc import Callable


def check_exercise(check: Callable, answer: Callable) -> None:
    """Run a check on a learner's function; print passed, not solved yet, or the property that broke.

    Never raises, so that the lesson goes on.
    """
    try:
        check(answer)
    except NotImplementedError:
        print(f"{answer.__name__}: not solved yet")
    except AssertionError as broken:
        print(f"{answer.__name__}: not yet: {broken}")
    except Exception as error:
        print(f"{answer.__name__}: not yet: it raises {type(error).__name__}: {error}")
    else:
        print(f"{answer.__name__}: passed")
