"""A learner's function is checked, and the lesson goes on whatever it does."""

import pytest

from colalib.course import check_exercise


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
    check_exercise(check, answer)
    assert capsys.readouterr().out.splitlines()[0] == text
