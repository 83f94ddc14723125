"""An audit finds the faults that were planted, and says what it did not look for."""

import re

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers import RATE, call, messages, tone
from planting import recall

from colalib.collection import audit, levels, page
from colalib.collection.audit import KINDS, isolated
from colalib.collection.duplicates import align, changes
from colalib.collection.levels import measure
from colalib.collection.opening import Collection
from colalib.collection.page import place
from colalib.collection.wrong_labels import label_probabilities
from colalib.data import decoding
from colalib.data.audio import log_mel
from colalib.data.tables import read_table
from colalib.errors import UserError


@pytest.fixture(scope="module")
def audited(planted_store):
    return audit(planted_store.path, jobs=1)


def test_near_duplicates_are_found(audited, planted):
    found = recall(audited.findings, planted[1])
    assert found["copies found"] >= 0.95 * found["copies"]
    assert found["other pairs"] <= 1
    pairs = audited.findings[audited.findings["kind"].isin(["leakage", "duplicate"])]
    assert set(pairs["kind"]) == {"leakage"} == set(audited.findings["kind"].head(len(pairs)))


def test_a_shift_in_time_says_where_to_listen(audited):
    findings = audited.findings
    later = findings[(findings["kind"] == "leakage") & findings["other"].str.startswith("copy-later")]
    assert len(later) == 2
    assert np.allclose(later["other_second"] - later["second"], 0.5, atol=0.02)


def test_swapped_labels_are_on_top(audited, planted):
    found = recall(audited.findings, planted[1])
    (note,) = (note for note in audited.notes if "agrees with" in note)
    assert 75 <= int(re.search(r"(\d+)%", note)[1]) <= 100 * (1 - found["labels"] / len(planted[1]))
    assert found["labels in the first 10%"] >= 0.8 * found["labels"]


def test_the_table_is_in_order(audited):
    findings = audited.findings
    order = [[*KINDS].index(kind) for kind in findings["kind"]]
    assert order == sorted(order)
    for _, part in findings.groupby("kind"):
        assert list(part["rank"]) == list(range(1, len(part) + 1))
        assert part["score"].is_monotonic_decreasing


def test_embeddings_are_kept_beside_the_store(audited, planted_store):
    (kept,) = (planted_store.path / "embeddings").glob("*.npy")
    assert np.load(kept).shape == (len(planted_store), 4032)


def test_the_command_writes_a_table_and_a_page(planted_store, tmp_path, capsys):
    code, out, _ = call(capsys, "audit", planted_store.path, "--out", tmp_path / "audit")
    assert code == 0
    assert "leakage: 1" in out
    table = read_table(tmp_path / "audit" / "findings.csv")
    assert list(table["kind"].unique()) == [k for k in KINDS if k in set(table["kind"])]
    html = (tmp_path / "audit" / "findings.html").read_text(encoding="utf-8")
    assert "data:audio/mpeg;base64," in html
    assert "low, &quot;deep&quot;" in html
    assert 'low, "deep"' not in html
    assert "http://" not in html.replace("http-equiv", "")
    assert "https://" not in html


def test_names_are_escaped_on_the_page(audited):
    findings = audited.findings.head(1).assign(clip_id="<script>alert(1)</script>", words="<b>&")
    html = page.make_page(type(audited)("<i>", 3, findings, ["<u>"], None))
    for raw in ("<script", "<b>", "<i>", "<u>"):
        assert raw not in html
    assert "no sound" in html


def write(root, **waves) -> None:
    root.mkdir(exist_ok=True)
    for name, wave in waves.items():
        soundfile.write(root / f"{name}.wav", wave, RATE, subtype="FLOAT")


def test_one_clip_has_no_others(tmp_path):
    write(tmp_path / "one", a=tone(300, 1, 1))
    audited = audit(tmp_path / "one", encoder="mel-stats", jobs=1)
    assert audited.clips == 1
    assert not set(audited.findings["kind"]) & {"leakage", "duplicate", "label", "lonely"}
    assert any("labels were not checked" in note for note in audited.notes)
    assert any("too few" in note for note in audited.notes)


def test_equal_clips_are_duplicates(tmp_path):
    wave = tone(300, 1, 1)
    write(tmp_path / "equal", **{f"a{i}": wave for i in range(24)})
    audited = audit(tmp_path / "equal", jobs=1)
    found = audited.findings[audited.findings["kind"].isin(["leakage", "duplicate"])]
    assert len(set(found["path"]) | set(found["other_path"])) == 24
    assert np.isfinite(audited.findings["score"]).all()


def test_what_is_lonely_or_clipped_is_found(tmp_path):
    waves = {f"a{i:02d}": tone(300 + i, 1, i) for i in range(24)}
    waves["noise"] = 0.2 * np.random.default_rng(0).standard_normal(RATE)
    waves["clipped"] = np.clip(4 * waves["a00"], -1, 1)
    write(tmp_path / "tones", **waves)
    findings = audit(tmp_path / "tones", encoder="mel-stats", jobs=1).findings
    of = {kind: list(part["path"]) for kind, part in findings.groupby("kind")}
    assert of["lonely"][0] == "noise.wav"
    assert of["clipped"] == ["clipped.wav"]


def burst(seed: int) -> np.ndarray:
    """Return 0.1 s of silence and 0.4 s of noise that dies away: a clip that is one event."""
    seconds = np.arange(int(0.4 * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(seconds)) * np.exp(-seconds / 0.1)
    return np.concatenate([np.zeros(RATE // 10), 0.2 * noise])


def test_short_clips_of_like_events_are_not_one_recording(tmp_path):
    bursts = {f"b{i}": burst(i) for i in range(12)}
    alike, _, _ = align(*(changes(log_mel(bursts[name].astype(np.float32))) for name in ("b0", "b1")))
    assert alike > 0.6, "they begin and die away alike"
    write(tmp_path / "bursts", **bursts)
    soundfile.write(tmp_path / "bursts" / "copy.mp3", 0.5 * bursts["b3"], RATE)
    found = audit(tmp_path / "bursts", encoder="mel-stats", jobs=1).findings
    pairs = found[found["kind"].isin(["leakage", "duplicate"])]
    assert {frozenset(pair) for pair in pairs[["path", "other_path"]].values} == {
        frozenset(["b3.wav", "copy.mp3"])
    }


def test_without_the_recordings_levels_are_not_measured(planted_store, monkeypatch):
    monkeypatch.setattr(type(planted_store), "known_audio", None)
    audited = audit(planted_store, encoder="mel-stats", jobs=1)
    assert any("levels were not measured" in note for note in audited.notes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no corpus and no folder named nowhere"),
        (["{folder}", "--label", "mood"], "no column 'mood': there are clip_id"),
        (["{folder}", "--out", "{folder}/m0.wav/x"], "cannot be written"),
        (["{empty}"], "no audio files"),
    ],
)
def test_mistakes_get_one_line(planted, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    words = [word.format(folder=planted[0], empty=tmp_path / "empty") for word in words]
    code, _, error = call(capsys, "audit", *words, "--encoder", "mel-stats")
    assert code == 2
    assert message in error
    assert len(messages(error)) == 1
    assert not list(tmp_path.rglob("findings.*"))


def test_align_finds_the_shift():
    rng = np.random.default_rng(0)
    wave = tone(300, 3, 1) + 0.02 * rng.standard_normal(3 * RATE).astype(np.float32)
    a, b = changes(log_mel(wave)), changes(log_mel(0.3 * wave[RATE:]))
    likeness, elsewhere, shift = align(a, b)
    assert likeness > 0.9
    assert elsewhere < 0.5
    assert shift == 100  # frames of 10 ms


def test_where_a_clip_was_cut_does_not_count():
    seconds = np.arange(RATE) / RATE
    phase = 2 * np.pi * 220 * seconds + 0.3 * np.sin(2 * np.pi * 6 * seconds)  # a held note with vibrato
    wave = sum(0.1 / k * np.sin(k * phase) for k in range(1, 20)).astype(np.float32)
    likeness, _, _ = align(changes(log_mel(wave)), changes(log_mel(wave[RATE // 10 :][: RATE // 2])))
    assert likeness > 0.95


def test_levels(tmp_path):
    t = np.arange(2 * RATE) / RATE
    sine = np.sin(2 * np.pi * 100 * t).astype(np.float32)
    half = np.where(t < 1, 0.5 * sine, 0).astype(np.float32)
    write(tmp_path, full=sine, clipped=np.clip(1.5 * sine, -1, 1), half=half, fade=sine * np.hanning(len(t)))
    full, clipped, half, fade = (measure(tmp_path / f"{n}.wav") for n in ("full", "clipped", "half", "fade"))
    assert full.clipped == 0  # loud, but round
    assert 0.4 < clipped.clipped < 0.6
    assert half.silent == pytest.approx(0.5, abs=0.03)
    assert half.silence == pytest.approx((1, 2), abs=0.06)
    assert half.begin > -1
    assert half.end < -60
    assert max(fade.begin, fade.end) < -40
    assert measure(tmp_path / "gone.wav") is None
    assert pd.notna(full.seconds)


def test_where_to_listen_to_what_is_wrong_with_levels(tmp_path):
    t = np.arange(20 * RATE) / RATE
    sine = 0.5 * np.sin(2 * np.pi * 440 * t) * np.minimum(t, 1)  # fades in, and ends abruptly
    write(tmp_path / "clips", end=sine, middle=np.where((t > 9) & (t < 16), 0, sine * np.minimum(20 - t, 1)))
    findings = audit(tmp_path / "clips", encoder="mel-stats", jobs=1).findings.set_index(["kind", "path"])
    assert findings.loc[("silent", "middle.wav"), "second"] == pytest.approx(9, abs=0.06)
    begin = place("end.wav", findings.loc[("cut off", "end.wav"), "second"])[1]
    assert begin == pytest.approx(14, abs=0.06), "the last six seconds are heard"


def test_a_clip_in_which_nothing_changes_is_audited_too(tmp_path):
    steady = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    write(tmp_path / "clips", steady=steady, **{f"t{i}": tone(200 + 90 * i, 1, i) for i in range(5)})
    assert not np.any(changes(log_mel(steady.astype(np.float32))))
    audited = audit(tmp_path / "clips", encoder="mel-stats", jobs=1)
    assert audited.clips == 6


def test_a_wrong_column_is_told_before_anything_is_embedded(planted_store, monkeypatch):
    monkeypatch.setattr(Collection, "vectors", None)
    with pytest.raises(UserError, match="no column 'mood'"):
        audit(planted_store, label="mood", jobs=1)


def test_names_from_right_to_left_are_isolated():
    assert isolated("low, deep") == "low, deep"
    assert isolated("שלום") == "\u2068שלום\u2069"


def test_findings_of_another_program_stay(planted_store, tmp_path, capsys):
    for name in ("findings.csv", "findings.html"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        code, _, error = call(capsys, "audit", planted_store, "--out", folder)
        assert code == 2
        assert f"{name} was not written by colalib" in error
        assert (folder / name).read_text() == "mine"


def test_classes_of_a_few_clips_are_audited_too(tmp_path):
    for label, pitch in (("low", 200), ("high", 2000)):
        (tmp_path / label).mkdir()
        for i in range(3):
            soundfile.write(tmp_path / label / f"{i}.wav", tone(pitch + 7 * i, 1.0, i), RATE)
    assert audit(tmp_path, encoder="mel-stats", jobs=1).clips == 6


def test_a_split_that_we_drew_is_not_leaked_across(tmp_path):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", tone(300, 2.0, 0), RATE)
    assert audit(tmp_path, encoder="mel-stats", jobs=1).counts()["duplicate"] == 1
    (tmp_path / "index.csv").write_text("path,split\na.wav,train\nb.wav,test\n")
    assert audit(tmp_path, encoder="mel-stats", jobs=1).counts()["leakage"] == 1


def test_a_small_encoder_is_audited_too(tmp_path):
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b"], 100).astype(object)
    vectors = rng.normal(size=(200, 3)) + 3 * (y == "a")[:, None]  # fewer columns than components
    found = label_probabilities(vectors, y, np.arange(200))
    assert (found["best"] == y).mean() > 0.9


def test_levels_where_the_channels_change_within_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK_SECONDS", 0.5)
    with open(tmp_path / "joined.mp3", "wb") as joined:
        for channels in (2, 1):
            soundfile.write(tmp_path / "part.mp3", np.tile(tone(300, 2.0, 0)[:, None], channels), RATE)
            joined.write((tmp_path / "part.mp3").read_bytes())
    assert measure(tmp_path / "joined.mp3").seconds == pytest.approx(4, abs=0.2)


def test_levels_do_not_depend_on_the_blocks_that_are_read(tmp_path, monkeypatch):
    samples = np.clip(np.random.default_rng(0).uniform(-1.3, 1.3, (3 * RATE + 100, 2)), -1, 1)
    samples[RATE : 2 * RATE] = 0
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    whole = measure(tmp_path / "a.wav")
    rate, blocks = levels.decode(tmp_path / "a.wav")
    (block,) = blocks
    cuts = [1, 2, 700, RATE + 33]  # within a unit of 10 ms, and between two clipped samples
    monkeypatch.setattr(levels, "decode", lambda path: (rate, iter(np.split(block, cuts))))
    assert measure(tmp_path / "a.wav") == whole
    assert whole.silence == pytest.approx((1, 2))
