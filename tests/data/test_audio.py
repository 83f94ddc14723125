"""Decoding and log-mel compared with librosa's, and files that are refused."""

import tracemalloc

import librosa
import numpy as np
import pytest
import soundfile
from helpers import tone

from colalib.data import audio
from colalib.data.audio import MelConfig, Unusable


def reference(wave: np.ndarray, config: MelConfig = MelConfig()) -> np.ndarray:
    """Return librosa's log-mel frames, [frames, n_mels]."""
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
    assert ours.shape == (1 + len(wave) // 160, 64)
    assert ours.dtype == np.float32
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
    """Write a file, and compare `load_audio` with librosa's."""
    left = tone(300, 1.5, 1, rate)
    soundfile.write(path, np.stack([left, 0.5 * left], axis=1)[:, :channels], rate)
    assert_nearly_equal(audio.load_audio(path), librosa.load(path, sr=16_000, mono=True)[0], 2e-3)


def assert_nearly_equal(ours, theirs, tolerance):
    """Two waveforms agree, but for up to two samples at the end."""
    assert abs(len(ours) - len(theirs)) <= 2
    n = min(len(ours), len(theirs))
    assert np.abs(ours[:n] - theirs[:n]).max() < tolerance


def test_long_file_is_read_in_blocks(tmp_path):
    wave = np.tile(tone(300, 20, 1, 44_100), 4)  # 80 s: three blocks
    soundfile.write(tmp_path / "a.wav", wave, 44_100)
    whole = librosa.resample(wave, orig_sr=44_100, target_sr=16_000)
    assert_nearly_equal(audio.load_audio(tmp_path / "a.wav"), whole, 1e-3)


def test_unusable_files_say_why(broken_files):
    root, reasons = broken_files
    for name, reason in reasons.items():
        with pytest.raises(Unusable, match=reason):
            audio.load_audio(root / name)


@pytest.mark.parametrize("channels", [1, 2])
def test_samples_in_memory_equal_those_of_a_file(tmp_path, channels):
    samples = np.stack([tone(300, 1, 1, 44_100), tone(400, 1, 2, 44_100)], axis=1)[:, :channels]
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    assert np.abs(audio.from_array(samples, 44_100) - audio.load_audio(tmp_path / "a.wav")).max() < 1e-3


@pytest.mark.parametrize(
    "samples,rate,reason",
    [
        (np.zeros((2, 3, 4)), 16_000, r"shape \[2, 3, 4\]"),
        (np.zeros((2, 16_000)), 16_000, r"shape \[2, 16000\]"),
        (np.zeros(16_000, np.int16), 16_000, "int16 samples: give floats"),
        (np.full(16_000, 0.1), 1, "sample rate of 1 Hz"),
        (np.full(16_000, np.nan), 16_000, "not finite"),
        (np.full(16_000, 1e8), 16_000, r"samples up to 1e\+08"),
        (np.full(160, 0.1), 16_000, "too short: 10 ms"),
        (np.zeros(16_000), 16_000, "silent"),
    ],
)
def test_samples_that_cannot_be_used_say_why(samples, rate, reason):
    with pytest.raises(Unusable, match=reason):
        audio.from_array(samples, rate)


def test_resynthesis_keeps_the_pitch():
    wave = tone(440, 1.5, 1)
    again = audio.resynthesise(audio.log_mel(wave))
    assert np.isfinite(again).all()
    pitches = [
        np.abs(np.fft.rfft(w * np.hanning(len(w))))[: len(w) // 8].argmax() * 16_000 / len(w)
        for w in (wave, again)
    ]
    assert abs(pitches[1] / pitches[0] - 1) < 0.06


def test_memory_does_not_grow_with_a_clip(tmp_path):
    """Two minutes at 44.1 kHz in stereo take no more memory than one."""
    peaks = {}
    for minutes in (1, 2):
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
    assert peaks[2] < 1.1 * peaks[1]


def test_frames_do_not_depend_on_the_blocks(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.tile(tone(300, 20, 1, 44_100), 4), 44_100)  # three blocks
    streamed = np.concatenate(list(audio.log_mel_stream(audio.stream(tmp_path / "a.flac"))))
    assert np.array_equal(streamed, audio.log_mel(audio.load_audio(tmp_path / "a.flac")))


@pytest.mark.parametrize("rate", [1, 2_000_000_000])
def test_impossible_sample_rates_are_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.full(100, 0.1), rate)
    with pytest.raises(Unusable, match=f"sample rate of {rate} Hz"):
        audio.load_audio(tmp_path / "a.wav")


def test_channels_that_cancel_are_told(tmp_path):
    x = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "a.wav", np.stack([x, -x], axis=1), 16_000)
    with pytest.raises(Unusable, match="its channels cancel"):
        audio.load_audio(tmp_path / "a.wav")


def test_a_constant_is_not_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.3), 16_000, subtype="FLOAT")
    with pytest.raises(Unusable, match="a constant value"):
        audio.load_audio(tmp_path / "a.wav")
