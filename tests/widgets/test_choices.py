"""Choices outlive the kernel; whatever else lies in their file is passed over."""

import json
import threading

import ipywidgets
import numpy as np
import pytest

from colalib import widgets
from colalib.training.cost import Constants
from colalib.widgets import parts
from colalib.widgets.choices import change_choice, choices_file, chosen_encoder, read_choices, read_settings
from colalib.widgets.pairs import valid_score

MEASURED = [Constants("b0", "cpu", pairs_per_s=20, weights_mb=60, segment_mb=20, prepare_s=0.01)]


def write(content: str | bytes) -> None:
    choices_file().parent.mkdir(parents=True, exist_ok=True)
    choices_file().write_bytes(content if isinstance(content, bytes) else content.encode())


def test_choices_survive(corpus, mel_store):
    widgets.pair_player(corpus, mel_store).mode.value = "quiz"
    assert read_settings("pair_player")["mode"] == "quiz"
    assert widgets.pair_player(corpus, mel_store).mode.value == "quiz"


NOT_CHOICES = {
    "empty": "",
    "half-written": '{"pair_player": {"mode": "qu',
    "a list": "[]",
    "a number": "7",
    "not text": b"\xff\xfe\x00",
    "NUL": '{"pair_player": {"mode": "quiz"}}\x00',
    "deep": "[" * 200_000,
    "deep objects": '{"pair_player": ' * 50_000,
    "a huge number": '{"quiz": {"you": [1' + "0" * 5000 + ", 1]}}",
}
NO_SETTINGS = {
    "text": "quiz",
    "a number": 3,
    "nothing": None,
    "a list": [["mode", "quiz"]],
    "other values": {"mode": "dance", "random_mask": "yes"},
    "nested": {"mode": {"mode": "quiz"}, "random_mask": [[True]]},
    "null": {"mode": None, "arch": None, "random_mask": None, "speed": None},
}


@pytest.mark.parametrize("damage", NOT_CHOICES.values(), ids=NOT_CHOICES)
def test_a_damaged_file_gives_the_defaults_and_is_written_anew(damage):
    write(damage)
    shown = widgets.calculator(MEASURED)
    assert shown.arch.value == "b0"
    shown.sliders["devices"].value = 8
    assert read_choices() == {"calculator": {"devices": 8}}


@pytest.mark.parametrize("entry", NO_SETTINGS.values(), ids=NO_SETTINGS)
def test_settings_that_are_none_give_the_defaults(entry, corpus, mel_store):
    write(json.dumps(dict.fromkeys(("pair_player", "calculator", "quiz", "encoder"), entry)))
    player = widgets.pair_player(corpus, mel_store, seed=1)
    assert player.mode.value == "listen"
    assert not player.switches["random_mask"].value
    assert player.score == {}
    calculator = widgets.calculator(MEASURED)
    assert calculator.arch.value == "b0"
    assert calculator.sliders["speed"].value == 1
    assert chosen_encoder() is None
    player.mode.value = "quiz"
    assert read_settings("pair_player")["mode"] == "quiz"


def test_a_number_that_is_none_is_no_value_of_a_slider():
    write('{"calculator": {"speed": NaN, "clips": Infinity, "devices": -Infinity, "chunk": 1e999}}')
    shown = widgets.calculator(MEASURED)
    assert shown.sliders["speed"].value == 1
    assert shown.sliders["clips"].value == 10_000
    assert np.isfinite(list(shown.project().values())).all()


def test_a_folder_in_the_place_of_the_file_is_passed_over():
    choices_file().mkdir(parents=True)
    shown = widgets.calculator(MEASURED)
    before = shown.costs.value
    shown.sliders["devices"].value = 8
    assert shown.costs.value != before, "the widget works, and only forgets"
    assert read_choices() == {}


def test_scores_are_whole_numbers():
    right = {"you": [3, 4], "random": [0, 0]}
    wrong = [
        "<b>",
        None,
        3,
        {},
        [],
        [1],
        [1, 2, 3],
        [1.0, 2],
        [True, True],
        ["1", "2"],
        [-1, 2],
        [5, 4],
        [1, 10**9],
    ]
    assert valid_score(right | {str(i): counts for i, counts in enumerate(wrong)}) == right


@pytest.mark.parametrize("value", [7, None, ["x"], {"a": 1}, "", "a\0b", "\ud800", "x" * 9000, "nowhere"])
def test_an_encoder_is_the_path_of_a_run(value):
    write(json.dumps({"encoder": value}))
    assert chosen_encoder() is None


def test_an_empty_choice_is_not_the_folder_one_is_in(short_run, monkeypatch):
    monkeypatch.chdir(short_run)
    change_choice("encoder", lambda _: "")
    assert chosen_encoder() is None


def test_a_relative_choice_becomes_absolute(short_run, monkeypatch):
    monkeypatch.chdir(short_run.parent)
    change_choice("encoder", lambda _: short_run.name)
    assert chosen_encoder() == short_run


def in_threads(work, n=8):
    """Run `work(i)` in threads; raise what one of them raised."""
    raised = []

    def guarded(i):
        try:
            work(i)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []


def test_threads_that_keep_choices_lose_nothing():
    change_choice("first", lambda settings: {"kept": True})

    def work(i):
        slider = ipywidgets.IntSlider(max=1000)
        parts.persist("shared", {f"slider {i}": slider})
        for number in range(1, 16):
            slider.value = number
            change_choice(f"own {i}", lambda kept, n=number: kept | {f"entry {n}": n})
            change_choice("counted", lambda settings: {"times": settings.get("times", 0) + 1})
            assert read_settings("first") == {"kept": True}, "no reader sees half a file"

    in_threads(work)
    assert read_settings("shared") == {f"slider {i}": 15 for i in range(8)}
    for i in range(8):
        assert read_settings(f"own {i}") == {f"entry {number}": number for number in range(1, 16)}
    assert read_settings("counted") == {"times": 8 * 15}
    assert list(choices_file().parent.glob("*.part")) == []


def test_two_quizzes_count_together(corpus, mel_store):
    first, second = (widgets.pair_player(corpus, mel_store) for _ in range(2))
    for player in (first, second):
        player.mode.value = "quiz"
        player.choose[0].click()
    assert read_settings("quiz")["you"][1] == 2
    assert "of 2" in second.verdict.value
