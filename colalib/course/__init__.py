"""The course: its profiles, what one notebook leaves for the next, its exercises, and running it all."""

from colalib.course.exercises import check_exercise
from colalib.course.profiles import (
    PROFILES,
    Profile,
    corpus,
    describe,
    encoder,
    profile,
    store,
    supervised,
    supervised_folder,
)
from colalib.course.running import home, run
from colalib.files import runs_folder as runs

__all__ = [
    "PROFILES",
    "Profile",
    "check_exercise",
    "corpus",
    "describe",
    "encoder",
    "home",
    "profile",
    "run",
    "runs",
    "store",
    "supervised",
    "supervised_folder",
]
