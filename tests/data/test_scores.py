"""The demo corpus: the sampler plays in tune, and what `build` writes is complete, balanced, and
the same every time.
"""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from colalib.data.corpora import composing, scores, soundfont
from colalib.errors import UserError

CLIPS = 42  # a class: 14 tunes


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scores")
    scores.build(root, clips_per_class=CLIPS, progress=False)
    return root


@pytest.fixture(scope="session")
def rows(corpus) -> list[dict]:
    with (corpus / "index.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def hashes(root: Path) -> dict[str, str]:
    files = [root / "index.csv", *(root / "audio").glob("*/*")]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def cents_off(sound: np.ndarray, key: int, rate: int) -> float:
    """How far the strongest partial is from the nearest harmonic of a MIDI key (or of the octave
    under it), in cents.
    """
    size = 1 << 18
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size))
    harmonic = 2 * np.argmax(spectrum) * rate / size / librosa.midi_to_hz(key)
    return 1200 * np.log2(harmonic / round(harmonic))


@pytest.mark.parametrize("family", composing.FAMILIES)
def test_sampler_is_in_tune(family):
    bank = soundfont.load(44100)
    for program in composing.FAMILIES[family]:
        for key in (48, 57, 64, 72):
            sound = bank.note(program, key, 100, 1.0)[4000:30000]
            assert np.isfinite(sound).all() and np.abs(sound).max() > 0.001
            assert abs(cents_off(sound, key, 44100)) < 25, (program, key)


def test_velocity_and_duration_are_heard():
    bank = soundfont.load(16000)
    soft, loud = (np.abs(bank.note(73, 72, velocity, 1.0)).max() for velocity in (50, 100))
    assert loud == pytest.approx(4 * soft, rel=0.01)  # 40 dB curve: twice the velocity, 12 dB
    short, long = (len(bank.note(73, 72, 90, duration)) for duration in (0.25, 4.0))
    assert long - short == pytest.approx(3.75 * 16000, abs=800)
    tail = bank.note(73, 72, 90, 4.0)[48000:60000]
    assert np.sqrt(np.mean(tail**2)) > 0.01  # the loop holds the tone


def test_drums_are_drums():
    bank = soundfont.load(16000)

    def centroid(key: int) -> float:
        sound = bank.note(0, key, 100, 0.4, soundfont.PERCUSSION_BANK)
        power = np.abs(np.fft.rfft(sound)) ** 2
        return float((np.fft.rfftfreq(len(sound), 1 / 16000) * power).sum() / power.sum())

    assert centroid(composing.KICK) < 400 < centroid(composing.SNARE) < centroid(composing.CLOSED_HAT)


@pytest.mark.parametrize(
    "path", ["bach/bwv66.6.mxl", "haydn/opus1no1/movement1.mxl", "trecento/PMFC_04-Cara mi donna.xml"]
)
def test_musicxml_reader_agrees_with_music21(path):
    from music21 import converter

    file = scores.music21_corpus() / path
    (piece,) = composing.read_musicxml(file, "x", path)
    score = converter.parse(file, forceSource=True)
    theirs = {
        (voice, round(float(note.getOffsetInHierarchy(score)), 3), pitch.midi)
        for voice, part in enumerate(score.parts)
        for note in part.toSoundingPitch().stripTies().recurse().notes
        if not note.duration.isGrace
        for pitch in note.pitches
    }
    ours = {(voice, round(onset, 3), key) for voice, onset, _, key in piece.notes}
    assert len(ours & theirs) >= 0.98 * len(ours | theirs)


def test_balanced_classes_and_splits(rows):
    assert Counter(row["label"] for row in rows) == dict.fromkeys(scores.CLASSES, CLIPS)
    sides: dict[str, set] = {}
    for row in rows:
        sides.setdefault(row["group"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    for kind in scores.CLASSES:
        shares = Counter(row["split"] for row in rows if row["label"] == kind)
        assert shares["train"] / CLIPS == pytest.approx(0.7, abs=0.05)
        assert shares["test"] / CLIPS == pytest.approx(0.2, abs=0.05)


def test_no_tune_under_two_names(rows):
    titles: dict[str, set] = {}
    for row in rows:
        if "#" in row["source"]:
            titles.setdefault(row["title"].lower(), set()).add(row["group"])
    assert all(len(groups) == 1 for groups in titles.values())


def test_label_columns(rows):
    assert tuple(rows[0]) == scores.COLUMNS
    assert {row["family"] for row in rows} == set(composing.FAMILIES)
    assert {row["metre"] for row in rows} <= {"duple", "triple", "compound", ""}
    assert sum(row["metre"] == "" for row in rows) < 0.1 * len(rows)
    assert {row["metre"] for row in rows if row["label"] in ("jig", "slip-jig")} <= {"compound", ""}
    for kind in scores.CLASSES:  # an instrument family alone never gives a class away
        assert len({row["family"] for row in rows if row["label"] == kind}) == len(composing.FAMILIES)


def test_audio_is_sound(corpus, rows):
    for row in rows[::4]:
        samples, rate = soundfile.read(corpus / row["path"], dtype="float32")
        assert rate == scores.RATE and samples.ndim == 1
        assert scores.SECONDS[0] - 0.01 <= len(samples) / rate <= scores.SECONDS[1] + 0.01
        peak = np.abs(samples).max()
        assert 0.05 < peak < 1.0, row["path"]
        assert np.abs(samples[[0, -1]]).max() < 0.02 * peak  # no click at the edges
        frames = samples[: len(samples) // rate * rate].reshape(-1, rate)
        assert (np.abs(frames).max(axis=1) > 1e-3 * peak).mean() > 0.6  # not mostly rests


def mel_statistics(path: Path) -> np.ndarray:
    """Mean and standard deviation over time of the log-mel, [128]."""
    samples, rate = soundfile.read(path, dtype="float32")
    mel = librosa.feature.melspectrogram(
        y=samples,
        sr=rate,
        n_fft=1024,
        win_length=400,
        hop_length=160,
        n_mels=64,
        fmin=60,
        fmax=7800,
        power=1.0,
    )
    mel = np.log(np.maximum(mel, 1e-5))
    return np.r_[mel.mean(axis=1), mel.std(axis=1)]


def test_timbre_alone_is_not_enough(corpus, rows):
    """Mel statistics do better than chance and far from well: what is left is rhythm and texture."""
    features = np.array(Parallel(2)(delayed(mel_statistics)(corpus / row["path"]) for row in rows))
    labels, groups = ([row[column] for row in rows] for column in ("label", "group"))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2000))
    accuracy = cross_val_score(model, features, labels, groups=groups, cv=GroupKFold(5)).mean()
    assert 0.25 < accuracy < 0.60


def test_complete_corpus_is_left_alone(corpus, monkeypatch):
    monkeypatch.setattr(scores, "read_all", lambda *_: pytest.fail("built again"))
    scores.build(corpus, clips_per_class=CLIPS, progress=False)
    with pytest.raises(UserError, match=r"seed 0.*delete that folder"):
        scores.build(corpus, clips_per_class=CLIPS, seed=1, progress=False)


def test_same_bytes_whatever_the_jobs_and_after_an_interrupt(corpus, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    scores.build(two, clips_per_class=4, jobs=2, progress=False)

    real, calls = scores.render_tune, []

    def fail_at_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(scores, "render_tune", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        scores.build(one, clips_per_class=4, jobs=1, progress=False)
    assert not (one / "index.csv").exists() and len(list(one.glob("audio/*/*"))) == 2
    monkeypatch.setattr(scores, "render_tune", real)
    scores.build(one, clips_per_class=4, jobs=1, progress=False)
    assert hashes(one) == hashes(two)

    # A tune is on the same side in a small corpus and a large one, and a shared clip is the same
    # file.
    def sides(root: Path) -> dict[str, str]:
        with (root / "index.csv").open(encoding="utf-8", newline="") as file:
            return {row["group"]: row["split"] for row in csv.DictReader(file)}

    small, large = sides(one), sides(corpus)
    assert all(large[group] == split for group, split in small.items())
    assert all(
        hashes(corpus)[path] == digest for path, digest in hashes(one).items() if path.startswith("audio")
    )
    assert json.loads((one / "config.json").read_text())["clips_per_class"] == 4
