"""From an audio file to log-mel frames: decode, mix to mono, resample, STFT, mel, log.

Takes paths from `corpora`, gives arrays to `store`. Nothing here knows of corpora or of torch.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import librosa
import numpy as np
import scipy.fft
import soundfile
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse import csr_array

MIN_SECONDS = 0.1  # seconds; a clip shorter than this is not usable
MAX_PEAK = 1e6  # times full scale; samples above are no sound
# errors that are no fault of the file
SYSTEM_ERRNOS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
MIN_PEAK_DB = -80.0  # dBFS; a clip whose peak lies lower counts as silent


@dataclass(frozen=True)
class MelConfig:
    """Parameters of the log-mel spectrogram. Defaults: COLA (arXiv 2010.10915, section 3.1) with
    librosa's conventions.
    """

    sample_rate: int = 16_000  # Hz
    n_fft: int = 1024  # samples; the 400-sample window is zero-padded to this
    window: int = 400  # samples of the Hann window (25 ms)
    hop: int = 160  # samples between frames (10 ms)
    n_mels: int = 64  # bands
    fmin: float = 60.0  # Hz, lower edge of the lowest band
    fmax: float = 7800.0  # Hz, upper edge of the highest band
    floor: float = 1e-5  # smallest mel magnitude before the logarithm

    @property
    def silence(self) -> float:
        """The value of a silent frame, ln(floor); short clips are padded with it."""
        return float(np.log(self.floor))

    def seconds(self, frames: float) -> float:
        """Duration in seconds of so many hops."""
        return frames * self.hop / self.sample_rate


class Unusable(Exception):
    """A clip that cannot be used; its text is the reason that the quarantine list shows."""


def load_audio(path: Path | str, sample_rate: int = 16_000) -> np.ndarray:
    """Decode a file (anything libsndfile reads), mix it to mono and resample it (soxr HQ, librosa's
    default).

    Returns float32 [samples] in [-1, 1]. Raises `Unusable` with the reason when the file is
    missing, not audio, cut short, shorter than 0.1 s, silent (peak under -80 dBFS) or has samples
    that are not numbers; `OSError` where the machine is at fault: too many open files, no memory, a
    broken disk.
    """
    return np.concatenate(list(stream(path, sample_rate)))


def stream(path: Path | str, sample_rate: int = 16_000) -> Iterator[np.ndarray]:
    """`load_audio` in blocks of up to 30 seconds, float32 [samples], so that ten hours need no more
    memory than a minute. What is wrong with a file as a whole, such as silence, is raised at its
    end."""
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise Unusable("empty file")
        with soundfile.SoundFile(path) as file:
            rate, promised = file.samplerate, file.frames
            # a damaged header: a second would become hours, or nothing
            if not 1000 <= rate <= 1_000_000:
                raise Unusable(f"sample rate of {rate} Hz")
            resampler = (
                soxr.ResampleStream(rate, sample_rate, 1, dtype="float32") if rate != sample_rate else None
            )
            read, peak, done = 0, 0.0, False
            while not done:
                block = file.read(30 * rate, dtype="float32", always_2d=True)  # [samples, channels]
                read, done = read + len(block), len(block) < 30 * rate
                mono = to_mono(block)
                wave = resampler.resample_chunk(mono, last=done) if resampler else mono
                if not np.isfinite(wave).all():
                    raise Unusable("samples that are not finite numbers")
                peak = max(peak, np.abs(wave).max(initial=0.0))
                if peak > MAX_PEAK:
                    raise Unusable(f"samples up to {peak:.0e}, where 1 is full scale")
                yield wave
    except FileNotFoundError:
        raise Unusable("file not found") from None
    except (OSError, soundfile.LibsndfileError) as error:
        if getattr(error, "errno", None) in SYSTEM_ERRNOS:
            raise
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        if "File does not exist" in reason:  # libsndfile's word for an .mp3 without any MPEG frame
            reason = "not audio"
        raise Unusable(f"unreadable: {reason.strip().rstrip('.')}") from None
    # an MP3's promise is off by up to a quarter of a second
    if read < 0.9 * promised and promised - read > rate:
        raise Unusable(f"truncated: {read / rate:.1f} of {promised / rate:.1f} s could be decoded")
    _check_sound(read / rate, peak)


def _check_sound(seconds: float, peak: float) -> None:
    """Raise `Unusable` for a clip that is too short or silent."""
    if seconds < MIN_SECONDS:
        raise Unusable(f"too short: {1000 * seconds:.0f} ms (at least {1000 * MIN_SECONDS:.0f} ms)")
    if peak < 10 ** (MIN_PEAK_DB / 20):
        level = f"{20 * np.log10(peak):.0f} dBFS" if peak > 0 else "digital zero"
        raise Unusable(f"silent: peak {level} (at least {MIN_PEAK_DB:.0f} dBFS)")


def from_array(samples: np.ndarray, sample_rate: int, target_rate: int = 16_000) -> np.ndarray:
    """Mix samples [n] or [n, channels] in [-1, 1] to mono and resample them → float32 [n'].

    Raises `Unusable` for what `load_audio` would refuse, and for samples of another shape or type.
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 0 < samples.shape[1] <= max(len(samples), 1)):
        raise Unusable(f"shape {list(samples.shape)}: give [samples] or [samples, channels]")
    if not np.issubdtype(samples.dtype, np.floating):
        raise Unusable(f"{samples.dtype} samples: give floats in [-1, 1] (divide int16 by 32768)")
    if not 1000 <= sample_rate <= 1_000_000:
        raise Unusable(f"sample rate of {sample_rate} Hz")
    wave = to_mono((samples if samples.ndim == 2 else samples[:, None]).astype(np.float32))
    if not np.isfinite(wave).all():
        raise Unusable("samples that are not finite numbers")
    peak = float(np.abs(wave).max(initial=0.0))
    if peak > MAX_PEAK:
        raise Unusable(f"samples up to {peak:.0e}, where 1 is full scale")
    _check_sound(len(wave) / sample_rate, peak)
    return soxr.resample(wave, sample_rate, target_rate) if sample_rate != target_rate else wave


def to_mono(block: np.ndarray) -> np.ndarray:
    """The mean of the channels, [samples, channels] → [samples]: channel by channel, many times
    faster than `mean(axis=1)`.
    """
    mono = block[:, 0]
    if block.shape[1] > 1:
        mono = mono.copy()
        for channel in block.T[1:]:
            mono += channel
        mono /= block.shape[1]
    return mono


@lru_cache
def mel_filters(config: MelConfig) -> np.ndarray:
    """Slaney mel filterbank [n_mels, n_fft/2 + 1]."""
    return librosa.filters.mel(
        sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.fmin, fmax=config.fmax
    )


def log_mel(wave: np.ndarray, config: MelConfig = MelConfig()) -> np.ndarray:
    """Waveform [samples] → natural-log mel magnitudes, float32 [frames, n_mels], time first.

    Equals `log(max(librosa.feature.melspectrogram(power=1.0, ...), floor))`; frames = 1 + samples
    // hop.
    """
    return np.concatenate(list(log_mel_stream([wave], config)))


def log_mel_stream(blocks: Iterable[np.ndarray], config: MelConfig = MelConfig()) -> Iterator[np.ndarray]:
    """`log_mel` of a waveform that comes in blocks, 2,000 frames at a time: the complex spectrum of
    an hour would take gigabytes. The result does not depend on how the waveform was cut."""
    edge = np.zeros(config.n_fft // 2, np.float32)
    held, samples, emitted = edge, 0, 0
    for block in blocks:
        held, samples = np.concatenate([held, block]), samples + len(block)
        while len(held) >= 1999 * config.hop + config.n_fft:
            yield _log_mel_block(held[: 1999 * config.hop + config.n_fft], config)
            held, emitted = held[2000 * config.hop :], emitted + 2000
    held = np.concatenate([held, edge])
    while (left := 1 + samples // config.hop - emitted) > 0:
        frames = min(left, 2000)
        yield _log_mel_block(held[: (frames - 1) * config.hop + config.n_fft], config)
        held, emitted = held[frames * config.hop :], emitted + frames


def _log_mel_block(wave: np.ndarray, config: MelConfig) -> np.ndarray:
    """Log-mel frames [frames, n_mels] of a waveform that begins with the first frame and ends with
    the last.
    """
    # sparse: the sum doesn't depend on the number of threads, as BLAS's does
    filters = csr_array(mel_filters(config))
    # as librosa.stft, but only the samples under the window are copied, and squares are added
    # without complex numbers
    edge = (config.n_fft - config.window) // 2
    count = 1 + (len(wave) - config.n_fft) // config.hop
    # [frames, window]
    frames = sliding_window_view(wave[edge:], config.window)[:: config.hop][:count]
    window = librosa.filters.get_window("hann", config.window).astype(np.float32)
    spectrum = scipy.fft.rfft(frames * window, n=config.n_fft)  # [frames, n_fft/2 + 1]
    power = spectrum.real**2 + spectrum.imag**2
    out = (filters @ np.sqrt(power, out=power).T).T  # [frames, n_mels]
    return np.log(np.maximum(out, config.floor, out=out), out=out)


def resynthesise(frames: np.ndarray, config: MelConfig = MelConfig()) -> np.ndarray:
    """Log-mel frames [frames, n_mels] → a waveform that has them, float32 [samples], phases by
    Griffin-Lim (32 rounds): what the encoder gets, made audible. Silence is what lies at the
    floor."""
    magnitude = np.exp(frames.astype(np.float32).T) - config.floor  # [n_mels, frames]
    wave = librosa.feature.inverse.mel_to_audio(
        np.maximum(magnitude, 0),
        sr=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop,
        win_length=config.window,
        power=1.0,
        fmin=config.fmin,
        fmax=config.fmax,
    )
    return wave.astype(np.float32)
