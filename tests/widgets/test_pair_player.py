"""The pair player: questions as pre-training asks them, and a quiz that keeps score."""

from types import SimpleNamespace

import numpy as np
import pytest

from colalib import evaluation, widgets
from colalib.data import audio
from colalib.data.clips import pretraining_clips
from colalib.encoder import Encoder
from colalib.widgets import pairs
from colalib.widgets.choices import read_settings


def test_a_question_has_one_answer(mel_store):
    rng, answers = np.random.default_rng(0), []
    groups = mel_store.clips["group"].values
    for _ in range(60):
        q = pairs.draw(mel_store, rng)
        same = [clip == q.anchor[0] for clip, _ in q.candidates]
        assert same.index(True) == q.answer
        assert sum(same) == 1
        assert all(groups[clip] != groups[q.anchor[0]] for clip, _ in q.candidates if clip != q.anchor[0])
        answers.append(q.answer)
    assert set(answers) == {0, 1, 2, 3}


def test_an_encoder_finds_the_anchor_itself(mel_store):
    q = pairs.draw(mel_store, np.random.default_rng(1))
    anchor = pairs.segment(mel_store, q.anchor)
    others = [pairs.segment(mel_store, c) for c in q.candidates]
    encoder = evaluation.calibrate_batchnorm(Encoder(), pretraining_clips([mel_store]))
    assert anchor.shape == (98, 64)
    cosines = pairs.similarities(encoder, anchor, [*others, anchor])
    assert cosines.argmax() == 4
    assert cosines[4] == pytest.approx(1)


def test_the_quiz_keeps_score(corpus, mel_store):
    player = widgets.pair_player(corpus, mel_store, {"random": Encoder()})
    player.mode.value = "quiz"
    assert "positive" not in "".join(card.value for card in player.cards)
    button = player.choose[0]
    button.click()
    button.click()  # once more: it counts once
    assert {name: asked for name, (_, asked) in read_settings("quiz").items()} == {"you": 1, "random": 1}
    assert "right so far: you" in player.verdict.value
    assert button.disabled
    seen = [card.value for card in player.cards]
    again = widgets.pair_player(corpus, mel_store, {"random": Encoder()})  # as after a restart
    assert [card.value for card in again.cards] != seen, "another question"
    player.forget.click()
    assert read_settings("quiz") == {}


def test_after_an_answer_the_similarities_are_shown(corpus, mel_store, monkeypatch):
    loads, encoder = [], Encoder()
    run = SimpleNamespace(load_encoder=lambda: encoder)
    monkeypatch.setattr(pairs, "open_run", lambda name: loads.append(name) or run)
    player = widgets.pair_player(corpus, mel_store)
    player.mode.value = "quiz"
    assert "cosine" not in player.verdict.value
    assert loads == [], "only an answer needs the encoder"
    player.choose[1].click()
    anchor, *candidates = (pairs.segment(mel_store, place) for _, place in player.question.crops())
    for cosine in pairs.similarities(encoder, anchor, candidates):
        assert f"{cosine:.3f}" in player.verdict.value
    assert f"candidate {player.question.answer + 1} (positive)" in player.verdict.value
    player.another.click()
    assert "cosine" not in player.verdict.value
    player.choose[0].click()
    assert loads == ["default"], "once"


def test_augmentations_are_seen_heard_and_kept(corpus, mel_store):
    player = widgets.pair_player(corpus, mel_store)
    before = [card.value for card in player.cards]
    player.switches["random_band_mask"].value = True
    altered = [card.value for card in player.cards]
    assert all(a != b for a, b in zip(before, altered))
    assert widgets.pair_player(corpus, mel_store).switches["random_band_mask"].value
    player.switches["random_band_mask"].value = False
    assert [card.value for card in player.cards] == before, "the same question"
    player.another.click()
    assert [card.value for card in player.cards] != before


@pytest.mark.parametrize("error", [audio.Unusable("gone"), PermissionError(13, "Permission denied")])
def test_a_recording_that_cannot_be_heard_says_why(corpus, mel_store, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(audio, "load_audio", fail)
    player = widgets.pair_player(corpus, mel_store)
    reason = getattr(error, "strerror", None) or str(error)
    for card in player.cards:
        assert f"cannot be played: {reason}" in card.value
        assert "<img" in card.value, "the picture is there"


def test_a_page_without_a_kernel_gets_a_quiz(corpus, mel_store, monkeypatch):
    monkeypatch.setattr(pairs.quiz, "QUESTIONS", 2)
    player = widgets.pair_player(corpus, mel_store, {"random": Encoder()})
    html = player.without_kernel()["html"]
    assert html.count("<section") == 2
    assert html.count('data-right="1"') == 2
    assert html.count('data-right="0"') == 6
    assert html.count("<audio") == 2 * 5
    assert "random chose candidate" in html
    assert read_settings("quiz") == {}, "nobody has answered"


def test_a_page_without_a_kernel_has_the_default_encoder(corpus, mel_store, monkeypatch):
    monkeypatch.setattr(pairs.quiz, "QUESTIONS", 1)
    assert "default chose candidate" in widgets.pair_player(corpus, mel_store).without_kernel()["html"]
