"""A learner's function is checked, and the lesson goes on whatever it does."""

import re

import pytest
from helpers import ROOT

from colalib.course import exercise, progress


def check(answer):
    assert answer(2) == 4, "2 should give 4"


def solved(x):
    return 2 * x


def unsolved(x):
    raise NotImplementedError


def wrong(x):
    return x


def broken(x):
    return x / 0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (solved, "solved: passed"),
        (unsolved, "unsolved: not solved yet"),
        (wrong, "wrong: not yet: 2 should give 4"),
        (broken, "broken: not yet: it raises ZeroDivisionError: division by zero"),
    ],
)
def test_a_check_prints_what_came_of_it(capsys, answer, text):
    exercise(answer, check)
    assert capsys.readouterr().out.splitlines()[0] == text


@pytest.mark.parametrize(("answer", "used"), [(solved, solved), (unsolved, abs), (wrong, abs), (broken, abs)])
def test_the_lesson_goes_on_with_what_passes(capsys, answer, used):
    assert exercise(answer, check, instead=abs) is used
    said = "used from here on" if used is solved else "from here on a finished version is used"
    assert said in capsys.readouterr().out


def test_what_is_solved_is_kept_and_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("COLA_RUNS", str(tmp_path))
    table = progress()
    told = re.search(r"(\d+) exercises", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert table["exercises"].sum() == int(told[1])
    assert table["solved"].sum() == 0

    def guessing(x):
        return 2 * x

    exercise(guessing, check)
    exercise(unsolved, check)
    table = progress()
    assert table.set_index("notebook")["which"]["03_contrastive_pretraining"] == "guessing"
    assert table["solved"].sum() == 1
