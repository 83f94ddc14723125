"""The course: its profiles, what one notebook leaves for the next, its exercises, and running it all."""

from colalib.course.exercises import exercise, progress
from colalib.course.profiles import (
    PROFILES,
    corpus,
    encoder,
    profile,
    store,
    supervised,
    supervised_folder,
)
from colalib.course.running import lab, run
from colalib.files import home
from colalib.files import runs_folder as runs
