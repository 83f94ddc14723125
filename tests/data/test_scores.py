"""The demo corpus: the sampler plays in tune; `build` writes it complete, balanced, always alike."""

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

from colalib.data import corpora
from colalib.data.scores import build as building
from colalib.data.scores import performing, reading, rendering, soundfont
from colalib.errors import UserError

CLIPS = 42  # per class: 14 tunes
FLUTE = 73  # General MIDI


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scores")
    building.build(root, clips_per_class=CLIPS, progress=False)
    return root


@pytest.fixture(scope="session")
def rows(corpus) -> list[dict]:
    return read_rows(corpus)


def read_rows(root: Path) -> list[dict]:
    with (root / "index.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def hashes(root: Path) -> dict[str, str]:
    files = [root / "index.csv", *(root / "audio").glob("*/*")]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def cents_off(sound: np.ndarray, key: int, rate: int) -> float:
    """Return how far the strongest partial is from a harmonic of a MIDI key, in cents.

    The harmonics of the octave under it count as well.
    """
    size = 1 << 18
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size))
    harmonic = 2 * np.argmax(spectrum) * rate / size / librosa.midi_to_hz(key)
    return 1200 * np.log2(harmonic / round(harmonic))


@pytest.mark.parametrize("family", performing.FAMILIES)
def test_sampler_is_in_tune(family):
    bank = soundfont.load(44100)
    for program in performing.FAMILIES[family]:
        for key in (48, 57, 64, 72):
            sound = bank.note(program, key, 100, 1.0)[4000:30000]
            assert np.isfinite(sound).all()
            assert np.abs(sound).max() > 0.001
            assert abs(cents_off(sound, key, 44100)) < 25, (program, key)


def test_velocity_and_duration_are_heard():
    bank = soundfont.load(16000)
    soft = np.abs(bank.note(FLUTE, 72, 50, 1.0)).max()
    loud = np.abs(bank.note(FLUTE, 72, 100, 1.0)).max()
    assert loud == pytest.approx(4 * soft, rel=0.01)  # 40 dB curve: twice the velocity, 12 dB
    short = bank.note(FLUTE, 72, 90, 0.25)
    long = bank.note(FLUTE, 72, 90, 4.0)
    assert len(long) - len(short) == pytest.approx(3.75 * 16000, abs=800)
    assert np.sqrt(np.mean(long[48000:60000] ** 2)) > 0.01  # the loop sustains the tone


def test_drums_are_drums():
    bank = soundfont.load(16000)

    def centroid(key: int) -> float:
        sound = bank.note(0, key, 100, 0.4, soundfont.PERCUSSION_BANK)
        power = np.abs(np.fft.rfft(sound)) ** 2
        return float((np.fft.rfftfreq(len(sound), 1 / 16000) * power).sum() / power.sum())

    assert centroid(performing.KICK) < 400
    assert 400 < centroid(performing.SNARE) < centroid(performing.CLOSED_HAT)


@pytest.mark.parametrize(
    "path", ["bach/bwv66.6.mxl", "haydn/opus1no1/movement1.mxl", "trecento/PMFC_04-Cara mi donna.xml"]
)
def test_musicxml_reader_agrees_with_music21(path):
    from music21 import converter

    file = reading.music21_corpus() / path
    (piece,) = reading.read_musicxml(file, "x", path)
    score = converter.parse(file, forceSource=True)
    expected = {
        (voice, round(float(note.getOffsetInHierarchy(score)), 3), pitch.midi)
        for voice, part in enumerate(score.parts)
        for note in part.toSoundingPitch().stripTies().recurse().notes
        if not note.duration.isGrace
        for pitch in note.pitches
    }
    notes = {(note.voice, round(note.onset, 3), note.key) for note in piece.notes}
    assert len(notes & expected) >= 0.98 * len(notes | expected)


@pytest.mark.slow
def test_balanced_classes_and_splits(rows):
    assert Counter(row["label"] for row in rows) == dict.fromkeys(reading.CLASSES, CLIPS)
    splits: dict[str, set] = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(of_group) == 1 for of_group in splits.values())
    for kind in reading.CLASSES:
        shares = Counter(row["split"] for row in rows if row["label"] == kind)
        assert shares["train"] / CLIPS == pytest.approx(0.7, abs=0.05)
        assert shares["test"] / CLIPS == pytest.approx(0.2, abs=0.05)


@pytest.mark.slow
def test_no_tune_under_two_names(rows):
    titles: dict[str, set] = {}
    for row in rows:
        if "#" in row["source"]:
            titles.setdefault(row["title"].lower(), set()).add(row["group"])
    assert all(len(groups) == 1 for groups in titles.values())


@pytest.mark.slow
def test_label_columns(rows):
    assert tuple(rows[0]) == building.COLUMNS
    assert {row["family"] for row in rows} == set(performing.FAMILIES)
    assert {row["metre"] for row in rows} <= {"duple", "triple", "compound", ""}
    assert sum(row["metre"] == "" for row in rows) < 0.1 * len(rows)
    assert {row["metre"] for row in rows if row["label"] in ("jig", "slip-jig")} <= {"compound", ""}
    for kind in reading.CLASSES:  # an instrument family alone never gives a class away
        assert {row["family"] for row in rows if row["label"] == kind} == set(performing.FAMILIES)


@pytest.mark.slow
def test_audio_is_sound(corpus, rows):
    for row in rows[::4]:
        samples, rate = soundfile.read(corpus / row["path"], dtype="float32")
        assert rate == rendering.RATE
        assert samples.ndim == 1
        assert rendering.SECONDS[0] - 0.01 <= len(samples) / rate <= rendering.SECONDS[1] + 0.01
        peak = np.abs(samples).max()
        assert 0.05 < peak < 1.0, row["path"]
        assert np.abs(samples[[0, -1]]).max() < 0.02 * peak  # no click at the edges
        frames = samples[: len(samples) // rate * rate].reshape(-1, rate)
        assert (np.abs(frames).max(axis=1) > 1e-3 * peak).mean() > 0.6  # not mostly rests


def mel_statistics(path: Path) -> np.ndarray:
    """Return the mean and standard deviation over time of the log-mel, [128]."""
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


@pytest.mark.slow
def test_timbre_alone_is_not_enough(corpus, rows):
    """Mel statistics do better than chance and far from well: what is left is rhythm and texture."""
    features = np.array(Parallel(2)(delayed(mel_statistics)(corpus / row["path"]) for row in rows))
    labels = [row["label"] for row in rows]
    groups = [row["group"] for row in rows]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2000))
    accuracy = cross_val_score(model, features, labels, groups=groups, cv=GroupKFold(5)).mean()
    assert 0.25 < accuracy < 0.60


def test_a_broken_installation_is_no_fault_of_the_scores(monkeypatch):
    """Else every tune would be kept as one that cannot be played."""

    def broken(*_):
        raise ImportError("music21")

    monkeypatch.setattr(reading, "read_abc", broken)
    with pytest.raises(ImportError):
        reading.read_pieces(reading.candidates(0)["jig"][0], "jig")


@pytest.mark.slow
def test_complete_corpus_is_left_alone(corpus, monkeypatch):
    monkeypatch.setattr(building, "read_tunes", lambda *_: pytest.fail("built again"))
    building.build(corpus, clips_per_class=CLIPS, progress=False)
    with pytest.raises(UserError, match=r"seed 0.*choose another folder"):
        building.build(corpus, clips_per_class=CLIPS, seed=1, progress=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("small")
    building.build(root, clips_per_class=1, jobs=2, progress=False)
    return root


@pytest.mark.slow
def test_same_bytes_whatever_the_jobs_and_after_an_interrupt(small, tmp_path, monkeypatch):
    render_clip = building.render_clip
    calls = []

    def fail_at_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        render_clip(*arguments)

    monkeypatch.setattr(building, "render_clip", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        building.build(tmp_path, clips_per_class=1, jobs=1, progress=False)
    assert not (tmp_path / "index.csv").exists()
    assert len(list(tmp_path.glob("audio/*/*"))) == 2
    monkeypatch.setattr(building, "render_clip", render_clip)
    building.build(tmp_path, clips_per_class=1, jobs=1, progress=False)
    assert hashes(tmp_path) == hashes(small)
    assert json.loads((tmp_path / "config.json").read_text())["clips_per_class"] == 1


@pytest.mark.slow
def test_small_corpus_agrees_with_a_large_one(small, corpus):
    """A tune is in the same split, and a clip of both is the same file."""
    splits = {row["group"]: row["split"] for row in read_rows(corpus)}
    for row in read_rows(small):
        assert splits[row["group"]] == row["split"]
    files = hashes(corpus)
    for path, digest in hashes(small).items():
        if path.startswith("audio"):
            assert files[path] == digest


@pytest.mark.parametrize("config", [None, "{}", '{"name": "mine", "version": 1}', "not json"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, config):
    root = tmp_path / "scores"
    root.mkdir()
    (root / "index.csv").write_text("path\nmine.wav\n")
    if config is not None:
        (root / "config.json").write_text(config)
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    with pytest.raises(UserError):
        corpora.load("scores", data=tmp_path)
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before
