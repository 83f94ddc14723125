"""The notebooks' exercises: how a check says what it found."""

from __future__ import annotations

from collections.abc import Callable


def check(name: str, test: Callable[[], None]) -> None:
    """Run an exercise's test and print how it stands; never raises, so that the lesson goes on.

    A solution still to be written raises `NotImplementedError`; a wrong one breaks an `assert`, whose message names
    the property.
    """
    try:
        test()
    except NotImplementedError:
        print(f"{name}: not solved yet. The lesson goes on without it.")
    except AssertionError as broken:
        print(f"{name}: not yet. {broken or 'The result is not the expected one.'}")
    except Exception as error:
        print(f"{name}: not yet. It raises {type(error).__name__}: {error}")
    else:
        print(f"{name}: passed.")
