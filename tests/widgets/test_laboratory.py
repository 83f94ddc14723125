"""The mel laboratory, and the sounds that a learner brings."""

import base64

import numpy as np
import pytest
from widget_helpers import send

from colalib import widgets
from colalib.data.audio import MelConfig
from colalib.widgets import laboratory, parts


def test_sound_keeps_its_loudness_and_plays_nothing_by_itself():
    wave = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    shown = parts.sound(wave, "a <b>")
    assert "autoplay" not in shown
    assert "a &lt;b&gt;" in shown
    assert "1.0 s, peak -12, rms -15 dBFS" in shown
    data = base64.b64decode(shown.split("base64,")[1].split('"')[0])
    assert np.abs(np.frombuffer(data[44:], np.int16)).max() == pytest.approx(0.25 * 32768, rel=1e-3)


def test_analysis_counts_and_warns():
    wave = np.random.default_rng(0).normal(scale=0.1, size=16_000).astype(np.float32)
    view = laboratory.analyse(wave, MelConfig())
    assert view.frames.shape == (101, 64)
    assert view.filters.shape == (64, 513)
    assert "empty bands" not in view.numbers
    assert view.numbers["frames"] == "101, one every 10.0 ms"
    assert "6,464" in view.numbers["values"]
    many = laboratory.analyse(wave, MelConfig(n_mels=256, n_fft=512))
    assert int(many.numbers["empty bands"].split(":")[0]) > 0


def deepest(gap: float, window: int, phase: float) -> float:
    """Return by how many dB the spectrum of two equal tones, `gap` Hz apart, falls between them."""
    hertz = np.linspace(1000, 1000 + gap, 101)
    time = (np.arange(window) - window / 2) / 16_000  # the phase is that in the middle of the window
    tones = np.cos(2 * np.pi * 1000 * time) + np.cos(2 * np.pi * (1000 + gap) * time + phase)
    taps = np.sin(np.pi * np.arange(window) / window) ** 2
    spectrum = np.abs(np.exp(-2j * np.pi * hertz[:, None] * time) @ (taps * tones))
    return 20 * np.log10(min(spectrum[0], spectrum[-1]) / spectrum.min())


@pytest.mark.parametrize("window", [400, 1600])
def test_tones_as_far_apart_as_it_says_show_two_peaks_at_every_phase(window):
    config = MelConfig(window=window, n_fft=2048)
    apart = laboratory.resolution(config)
    assert min(deepest(apart, window, phase) for phase in np.linspace(0, 2 * np.pi, 24)) > 3
    assert deepest(0.8 * apart, window, 0) < 0.1, "where the main lobes touch, tones in phase have no dip"
    view = laboratory.analyse(np.ones(16_000, np.float32), config)
    assert f"{apart:.0f} Hz apart" in view.numbers["window"]


@pytest.fixture
def silent(monkeypatch):
    """The laboratory without its slowest part."""
    monkeypatch.setattr(laboratory.audio, "resynthesise", lambda frames, config: np.zeros(10))


@pytest.mark.usefixtures("silent")
def test_the_setting_before_stays_in_sight_on_the_same_colours(folder):
    files = sorted(folder.rglob("*.flac"))[:2]
    lab = widgets.mel_laboratory({"one": files[0], "two": files[1]})

    def spectrograms():
        return [ax for part in lab.static_figure().subfigs for ax in part.axes if ax.images]

    (only,) = spectrograms()
    lab.sliders["floor"].value = 1e-2
    before, now = spectrograms()
    assert before.images[0].get_clim() == now.images[0].get_clim() == only.images[0].get_clim()
    assert np.array_equal(before.images[0].get_array(), only.images[0].get_array())
    assert now.images[0].get_array().min() == pytest.approx(np.log(1e-2))
    assert (before.get_title(), now.get_title()) == ("before, log floor 1e-05", "now, log floor 1e-02")
    lab.clip.value = "two"
    assert len(spectrograms()) == 1, "another clip has no setting before"


def test_laboratory_follows_its_sliders_and_goes_back(folder):
    lab = widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))})
    assert lab.config() == MelConfig()
    before = lab.numbers.value
    lab.sliders["n_mels"].value = 16
    assert lab.numbers.value != before
    lab.reset.click()
    assert lab.numbers.value == before


def test_a_sound_that_cannot_be_read_is_told_in_a_line(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    lab = widgets.mel_laboratory({"text": tmp_path / "text.wav", "long": tmp_path / ("x" * 300)})
    assert lab.message.value.startswith("text: unreadable")
    lab.clip.value = "long"
    assert lab.message.value == "long: File name too long"


# ------------------------------------------------------------------------------------------ uploads


@pytest.fixture
def drop(monkeypatch):
    """A button for files that only collects them: name → content, or the reason why not."""
    came = []

    def take(name, load):
        try:
            came.append((name, load()))
        except parts.NO_SOUND as error:
            came.append((name, str(error)))

    monkeypatch.setattr(parts.audio, "load_audio", lambda file: file.read_bytes())
    drop = parts.FileDrop(take)
    drop.came = came
    return drop


def on_disk(drop):
    """Return the files that a drop button has on disk."""
    return list(parts.Path(drop.folder.name).iterdir())


def test_a_large_file_comes_in_slices(drop):
    content = bytes(range(256)) * 40_000  # 10 MB
    for start in range(0, len(content), 4_000_000):
        send(drop, "a/b.wav", content[start : start + 4_000_000], start, len(content))
    send(drop, "empty.wav", b"", upload=2)
    assert drop.came == [("b.wav", content), ("empty.wav", b"")]
    assert on_disk(drop) == []


def test_two_drops_at_once_stay_apart(drop):
    for start in (0, 3):
        for upload, content in {0.1: b"aaabbb", 0.2: b"cccddd"}.items():
            send(drop, "same.wav", content[start : start + 3], start, 6, upload)
    assert drop.came == [("same.wav", b"aaabbb"), ("same.wav", b"cccddd")]


def test_a_file_above_the_limit_is_told_before_anything_is_kept(drop):
    send(drop, "album.wav", b"", size=500_000_001)
    assert [name for name, _ in drop.came] == ["album.wav"]
    assert drop.came[0][1].startswith("larger than 500 MB")
    assert on_disk(drop) == []
    send(drop, "album.wav", b"x" * 10, start=10, size=500_000_001)
    assert on_disk(drop) == []


def test_what_the_browser_cannot_read_is_told(drop):
    send(drop, "folder", b"", size=4096, error="the browser cannot read it (a folder)")
    assert drop.came == [("folder", "the browser cannot read it (a folder)")]


def test_a_file_whose_beginning_another_kernel_took_is_passed_over(drop):
    send(drop, "a.wav", b"end", start=3, size=6)
    assert drop.came == []


def test_a_full_disk_is_told(drop):
    drop.folder.cleanup()  # nothing can be written there now
    send(drop, "a.wav", b"abc", size=6)
    send(drop, "a.wav", b"def", start=3, size=6)
    assert drop.came == [("a.wav", "cannot be kept: No such file or directory")]


ODD_NAMES = [
    "a\0b.flac",
    "x" * 300 + ".flac",
    "clip.raw",
    "",
    "..",
    "line\nbreak.flac",
    "\ud800.flac",
    "noending",
]


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_no_obstacle(folder, name):
    lab = widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))})
    send(lab.drop, name, b"no sound")
    assert "unreadable" in lab.refused.value
    assert len(lab.refused.value.splitlines()) == 1
    assert len(lab.refused.value) < 300
    send(lab.drop, name, next(folder.rglob("*.flac")).read_bytes())
    assert lab.clip.value.endswith(" (yours)")
    assert lab.clip.value.isprintable()
    assert lab.message.value == ""


@pytest.mark.usefixtures("silent")
def test_another_sound_of_the_same_name_is_shown(folder):
    files = sorted(folder.rglob("*.flac"))
    lab = widgets.mel_laboratory({"a tone": files[0]})
    players = []
    for file in (files[0], files[-1]):
        send(lab.drop, "take.flac", file.read_bytes())
        players.append(lab.original.value)
    assert players[0] != players[1]


@pytest.mark.usefixtures("silent")
def test_a_file_that_is_no_sound_is_refused_in_a_line(folder):
    lab = widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))})
    send(lab.drop, "a.wav", b"no sound")
    assert lab.refused.value.startswith("a.wav: unreadable")
    send(lab.drop, "b.flac", next(folder.rglob("*.flac")).read_bytes())
    assert lab.clip.value == "b.flac (yours)"
    assert lab.refused.value.startswith("a.wav: unreadable"), "it stays"
    for name in "cdef":
        send(lab.drop, f"{name}.wav", b"no sound")
    assert [line[0] for line in lab.refused.value.split("<br>")] == ["d", "e", "f"]
