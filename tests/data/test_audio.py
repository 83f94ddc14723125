"""Decoding and log-mel against librosa, and what is refused."""

import errno
import tracemalloc

import librosa
import numpy as np
import pytest
import soundfile
from conftest import tone

from colalib.data import audio
from colalib.data.audio import MelConfig, Unusable


def reference(wave: np.ndarray, config: MelConfig = MelConfig()) -> np.ndarray:
    """librosa's log-mel, [frames, n_mels]."""
    mel = librosa.feature.melspectrogram(
        y=wave,
        sr=config.sample_rate,
        n_fft=config.n_fft,
        win_length=config.window,
        hop_length=config.hop,
        n_mels=config.n_mels,
        fmin=config.fmin,
        fmax=config.fmax,
        power=1.0,
    )
    return np.log(np.maximum(mel, config.floor)).T


@pytest.mark.parametrize("samples", [1600, 15_999, 16_000, 16_161, 700_000])
def test_log_mel_is_librosas(samples):
    wave = tone(220, samples / 16_000, seed=samples)
    ours = audio.log_mel(wave)
    assert ours.shape == (1 + len(wave) // 160, 64) and ours.dtype == np.float32
    assert np.abs(ours - reference(wave)).max() < 1e-3


def test_stored_frames_are_librosas(mel_store, folder):
    path = folder / mel_store.clips["path"][0]
    stored = mel_store.frames(0).astype(np.float32)
    assert np.abs(stored - reference(librosa.load(path, sr=16_000)[0])).max() < 1e-3 + 0.004


@pytest.mark.parametrize("rate,channels", [(8000, 1), (16_000, 1), (22_050, 2), (44_100, 2), (96_000, 2)])
@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_load_audio_is_librosas(tmp_path, rate, channels, kind):
    check_against_librosa(tmp_path / f"a.{kind}", rate, channels)


@pytest.mark.parametrize("kind", ["ogg", "mp3"])
def test_load_audio_is_librosas_lossy(tmp_path, kind):
    check_against_librosa(tmp_path / f"a.{kind}", 44_100, 2)


def check_against_librosa(path, rate, channels):
    left = tone(300, 1.5, 1, rate)
    soundfile.write(path, np.stack([left, 0.5 * left], axis=1)[:, :channels], rate)
    ours, theirs = audio.load_audio(path), librosa.load(path, sr=16_000, mono=True)[0]
    n = min(len(ours), len(theirs))
    assert abs(len(ours) - len(theirs)) <= 2 and np.abs(ours[:n] - theirs[:n]).max() < 2e-3


def test_long_file_is_read_in_blocks(tmp_path):
    wave = np.tile(tone(300, 20, 1, 44_100), 4)  # 80 s: three blocks
    soundfile.write(tmp_path / "a.wav", wave, 44_100)
    ours, whole = (
        audio.load_audio(tmp_path / "a.wav"),
        librosa.resample(wave, orig_sr=44_100, target_sr=16_000),
    )
    assert abs(len(ours) - len(whole)) <= 2
    n = min(len(ours), len(whole))
    assert np.abs(ours[:n] - whole[:n]).max() < 1e-3


def broken_files(root):
    """A file of every kind that cannot be used → what its reason must say."""
    good = tone(300, 2, 1)
    (root / "empty.wav").write_bytes(b"")
    (root / "text.mp3").write_text("this is not music")
    soundfile.write(root / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(root / "faint.wav", 5e-5 * good, 16_000, subtype="FLOAT")
    soundfile.write(root / "short.wav", good[:160], 16_000)
    with_nan = good.copy()
    with_nan[7000] = np.nan
    soundfile.write(root / "nan.wav", with_nan, 16_000, subtype="FLOAT")
    soundfile.write(root / "whole.flac", np.tile(good, 20), 16_000)
    (root / "cut.flac").write_bytes(
        (root / "whole.flac").read_bytes()[: (root / "whole.flac").stat().st_size // 4]
    )
    (root / "whole.flac").unlink()
    (root / "directory.wav").mkdir()
    return {
        "empty.wav": "empty file",
        "text.mp3": "unreadable",
        "silent.wav": "silent: peak digital zero",
        "faint.wav": "silent: peak -9",
        "short.wav": "too short: 10 ms",
        "nan.wav": "not finite",
        "cut.flac": "unreadable",
        "gone.wav": "file not found",
        "directory.wav": "unreadable",
    }


def test_unusable_files_say_why(tmp_path):
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(Unusable, match=reason):
            audio.load_audio(tmp_path / name)


def test_resynthesis_keeps_the_pitch():
    wave = tone(440, 1.5, 1)
    again = audio.resynthesise(audio.log_mel(wave))
    peak = [
        np.abs(np.fft.rfft(w * np.hanning(len(w))))[: len(w) // 8].argmax() * 16_000 / len(w)
        for w in (wave, again)
    ]
    assert abs(peak[1] / peak[0] - 1) < 0.06 and np.isfinite(again).all()


def test_memory_does_not_grow_with_a_clip(tmp_path):
    """Four minutes at 44.1 kHz in stereo take no more than one, and give the frames of the whole."""
    peaks = {}
    for minutes in (1, 4):
        path = tmp_path / f"{minutes}.wav"
        wave = 0.1 * np.random.default_rng(0).standard_normal(44_100 * 20).astype(np.float32)
        with soundfile.SoundFile(path, "w", 44_100, 2) as file:
            for _ in range(3 * minutes):
                file.write(np.stack([wave, wave], axis=1))
        tracemalloc.start()
        frames = sum(len(block) for block in audio.log_mel_stream(audio.stream(path)))
        peaks[minutes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert frames == 1 + 60 * minutes * 100
    assert peaks[4] < 1.1 * peaks[1]
    path = tmp_path / "1.wav"
    streamed = np.concatenate(list(audio.log_mel_stream(audio.stream(path))))
    assert np.array_equal(streamed, audio.log_mel(audio.load_audio(path)))


def test_errors_of_the_machine_are_not_the_file_s(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.1), 16_000)

    def full(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(audio.soundfile, "SoundFile", full)
    with pytest.raises(OSError, match="Too many"):
        audio.load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [1, 2_000_000_000])
def test_sample_rates_that_cannot_be(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.full(100, 0.1), rate)
    with pytest.raises(audio.Unusable, match=f"sample rate of {rate} Hz"):
        audio.load_audio(tmp_path / "a.wav")
