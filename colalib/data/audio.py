"""From an audio file to log-mel frames: decode, mix to mono, resample, STFT, mel bands, logarithm.

Paths come from `corpora`, frames go to `store`. This module knows neither corpora nor torch.
"""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import librosa
import numpy as np
import scipy.fft
import soundfile
import soxr
from joblib import Parallel, delayed
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse import csr_array

from colalib.data.decoding import Unusable, check_rate, decode
from colalib.errors import UserError
from colalib.settings import read_config, setting

MIN_SECONDS = 0.1  # a shorter clip is not usable
MIN_PEAK_DB = -80.0  # dBFS; a clip with a lower peak counts as silent
PREVIEW = 6.0  # seconds of a preview; 20 kB each
MAX_PEAK = 1e6  # times full scale; larger samples are not sound
BLOCK_FRAMES = 2000  # computed at a time: the complex spectrum of an hour would take gigabytes


@dataclass(frozen=True)
class MelConfig:
    """Settings of the log-mel spectrogram.

    Defaults: COLA (arXiv 2010.10915, section 3.1) with librosa's conventions.
    """

    sample_rate: int = setting(16_000, "Hz", limits=(1000, 1_000_000))
    n_fft: int = setting(1024, "samples; the window is zero-padded to this", limits=(16, 65_536))
    window: int = setting(400, "samples of the Hann window (25 ms)", limits=(16, 65_536))
    hop: int = setting(160, "samples between frames (10 ms)", limits=(1, 65_536))
    n_mels: int = setting(64, "bands", limits=(1, 1024))
    fmin: float = setting(60.0, "Hz, lower edge of the lowest band", limits=(0, None))
    fmax: float = setting(7800.0, "Hz, upper edge of the highest band", limits=(1, None))
    floor: float = setting(1e-5, "smallest mel magnitude before the logarithm", limits=(1e-30, 1))

    @property
    def silence(self) -> float:
        """The value of a silent frame, ln(floor); short clips are padded with it."""
        return float(np.log(self.floor))

    @classmethod
    def read(cls, values: dict, where: Path | str) -> MelConfig:
        """Return the settings that a file holds. Raises `UserError` if they cannot be used."""
        config = read_config(cls, values, where)
        if config.window > config.n_fft or not config.fmin < config.fmax <= config.sample_rate / 2:
            raise UserError(
                f"{where}: mel settings that contradict each other: "
                "window over n_fft, or fmin, fmax and half the sample rate not in this order"
            )
        return config

    def seconds(self, frames: float) -> float:
        """Return the duration of `frames` hops in seconds."""
        return frames * self.hop / self.sample_rate


# ---------------------------------------------------------------------------------------- waveforms


def load_audio(path: Path | str, sample_rate: int = 16_000) -> np.ndarray:
    """Decode a file, mix it to mono and resample it; return float32 [samples].

    ±1 is full scale, which files of floats may exceed.

    Reads what libsndfile and FFmpeg read. Resamples by soxr HQ, librosa's default. Raises `Unusable` if the
    file is missing, not audio, cut short, shorter than 0.1 s, silent (peak under -80 dBFS), or has NaN or
    infinite samples. Raises `OSError` if the machine is at fault: no permission, too many open files, a
    broken disk.
    """
    return np.concatenate(list(stream(path, sample_rate)))


def stream(path: Path | str, sample_rate: int = 16_000) -> Iterator[np.ndarray]:
    """Yield what `load_audio` returns, in blocks of up to 30 s, float32 [samples].

    Raises as `load_audio` does. A fault of the whole file, such as silence, is raised at its end.
    """
    rate, blocks = decode(Path(path))
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32") if rate != sample_rate else None
    samples, level = 0, Level()
    for block in blocks:
        samples += len(block)
        mono = to_mono(block)
        level.add(block, mono)
        yield resampler.resample_chunk(mono) if resampler else mono
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)  # what the filter still holds
    level.check(samples / rate)


def from_array(samples: np.ndarray, sample_rate: int, target_rate: int = 16_000) -> np.ndarray:
    """Mix samples [n] or [n, channels] in [-1, 1] to mono and resample them → float32 [n'].

    Raises `Unusable` as `load_audio` does, and for samples of another shape or type.
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or not samples.size or samples[:1].size > len(samples):
        raise Unusable(f"shape {list(samples.shape)}: give [samples] or [samples, channels]")
    if not np.issubdtype(samples.dtype, np.floating):
        raise Unusable(f"{samples.dtype} samples: give floats in [-1, 1] (divide int16 by 32768)")
    check_rate(sample_rate)
    samples = samples.astype(np.float32).reshape(len(samples), -1)  # [n, channels]
    wave = to_mono(samples)
    level = Level()
    level.add(samples, wave)
    level.check(len(samples) / sample_rate)
    return soxr.resample(wave, sample_rate, target_rate) if sample_rate != target_rate else wave


class Level:
    """The level of a clip, collected block by block, to tell whether it is sound at all."""

    def __init__(self):
        self.low, self.high = np.inf, -np.inf  # of the mono mix
        self.loudest = 0.0  # of any channel

    def add(self, block: np.ndarray, mono: np.ndarray) -> None:
        """Add samples [n, channels] and their mono mix [n]. Raises `Unusable` for what is not sound."""
        if not np.isfinite(block).all():
            raise Unusable("samples that are not finite numbers")
        self.loudest = max(self.loudest, float(np.abs(block).max(initial=0.0)))
        if self.loudest > MAX_PEAK:
            raise Unusable(f"samples up to {self.loudest:.0e}, where 1 is full scale")
        self.low = min(self.low, float(mono.min(initial=np.inf)))
        self.high = max(self.high, float(mono.max(initial=-np.inf)))

    def check(self, seconds: float) -> None:
        """Raise `Unusable` for a clip that is too short or silent."""
        if seconds < MIN_SECONDS:
            raise Unusable(f"too short: {int(1000 * seconds)} ms (at least {1000 * MIN_SECONDS:.0f} ms)")
        faintest = 10 ** (MIN_PEAK_DB / 20)
        peak = max(-self.low, self.high)
        if self.loudest >= faintest > peak:
            raise Unusable("silent: its channels cancel each other when they are mixed to mono")
        if peak < faintest:
            level = f"{20 * np.log10(peak):.0f} dBFS" if peak > 0 else "digital zero"
            raise Unusable(f"silent: peak {level} (at least {MIN_PEAK_DB:.0f} dBFS)")
        if self.high - self.low < faintest:
            raise Unusable("silent: a constant value and nothing else")


def to_mp3(wave: np.ndarray) -> bytes:
    """Return the first 6 s of samples at 16 kHz as MP3."""
    file = io.BytesIO()
    part = np.clip(wave[: int(PREVIEW * 16_000)], -1, 1)
    soundfile.write(file, part, 16_000, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.8)
    return file.getvalue()


def previews(places: Iterable[tuple[Path, float]]) -> Iterator[bytes]:
    """Yield an MP3 of 6 s for each (path, second to begin at), in their order; nothing for a damaged file.

    Places in one file that follow each other are decoded together, and two files at a time.
    """
    files = itertools.groupby(places, key=lambda place: place[0])
    parallel = Parallel(n_jobs=2, prefer="threads", return_as="generator")
    parts = parallel(delayed(previews_of_file)(path, [start for _, start in of]) for path, of in files)
    return itertools.chain.from_iterable(parts)


def previews_of_file(path: Path, starts: list[float]) -> list[bytes]:
    """Return an MP3 of 6 s of a recording from each second in `starts`."""
    sounds, size = [b""] * len(starts), int(PREVIEW * 16_000)
    pending = deque(sorted((int(start * 16_000), i) for i, start in enumerate(starts)))
    begin, held = 0, np.zeros(0, np.float32)  # of the recording: one of hours is not held as a whole,
    try:
        for block in stream(path):
            held = np.concatenate([held, block])
            while pending and pending[0][0] + size <= begin + len(held):
                place, i = pending.popleft()
                sounds[i] = to_mp3(held[place - begin :])
            if not pending:  # nor decoded to its end
                break
            done = min(pending[0][0] - begin, len(held))
            begin, held = begin + done, held[done:]
    except (Unusable, OSError):
        return [b""] * len(starts)
    for place, i in pending:
        sounds[i] = to_mp3(held[place - begin :])
    return sounds


def to_mono(block: np.ndarray) -> np.ndarray:
    """Return the mean of the channels, [samples, channels] → [samples].

    Adds channel by channel, which is many times faster than `mean(axis=1)`.
    """
    mono = block[:, 0]
    if block.shape[1] > 1:
        mono = mono.copy()
        for channel in block.T[1:]:
            mono += channel
        mono /= block.shape[1]
    return mono


# ------------------------------------------------------------------------------------------ log-mel


@lru_cache
def mel_filters(config: MelConfig) -> np.ndarray:
    """Return the Slaney mel filterbank, [n_mels, n_fft/2 + 1]."""
    return librosa.filters.mel(
        sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.fmin, fmax=config.fmax
    )


def log_mel(wave: np.ndarray, config: MelConfig = MelConfig()) -> np.ndarray:
    """Return the natural logarithm of mel magnitudes, [samples] → float32 [frames, n_mels].

    Equals `log(max(librosa.feature.melspectrogram(power=1.0, ...), floor))` with time first.
    There are 1 + samples // hop frames.

    >>> log_mel(np.zeros(16_000, np.float32)).shape
    (101, 64)
    """
    return np.concatenate(list(log_mel_stream([wave], config)))


def log_mel_stream(blocks: Iterable[np.ndarray], config: MelConfig = MelConfig()) -> Iterator[np.ndarray]:
    """Yield `log_mel` of a waveform that comes in blocks, up to 2,000 frames at a time.

    The result does not depend on where the waveform was cut into blocks.
    """
    edge = np.zeros(config.n_fft // 2, np.float32)  # so that frames are centred
    block_samples = (BLOCK_FRAMES - 1) * config.hop + config.n_fft  # under BLOCK_FRAMES windows
    buffer = edge
    samples = 0
    done = 0  # frames
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        samples += len(block)
        while len(buffer) >= block_samples:
            yield _log_mel_block(buffer[:block_samples], config)
            buffer = buffer[BLOCK_FRAMES * config.hop :]
            done += BLOCK_FRAMES
    buffer = np.concatenate([buffer, edge])
    total = 1 + samples // config.hop
    while done < total:
        frames = min(total - done, BLOCK_FRAMES)
        yield _log_mel_block(buffer[: (frames - 1) * config.hop + config.n_fft], config)
        buffer = buffer[frames * config.hop :]
        done += frames


def _log_mel_block(wave: np.ndarray, config: MelConfig) -> np.ndarray:
    """Return log-mel frames [frames, n_mels]; `wave` begins with the first frame and ends with the
    last.
    """
    # sparse: the sum does not depend on the number of threads, as BLAS's does
    filters = csr_array(mel_filters(config))
    # as librosa.stft, but only the samples under the window are copied, and squares are added
    # without complex numbers
    edge = (config.n_fft - config.window) // 2
    count = 1 + (len(wave) - config.n_fft) // config.hop
    frames = sliding_window_view(wave[edge:], config.window)[:: config.hop][:count]  # [frames, window]
    window = librosa.filters.get_window("hann", config.window).astype(np.float32)
    spectrum = scipy.fft.rfft(frames * window, n=config.n_fft)  # [frames, n_fft/2 + 1]
    power = spectrum.real**2 + spectrum.imag**2
    out = (filters @ np.sqrt(power, out=power).T).T  # [frames, n_mels]
    return np.log(np.maximum(out, config.floor, out=out), out=out)


def resynthesise(frames: np.ndarray, config: MelConfig = MelConfig()) -> np.ndarray:
    """Return a waveform with the given log-mel frames [frames, n_mels] → float32 [samples].

    This makes audible what the encoder gets. Values at the floor become silence. The phases are
    estimated by Griffin-Lim (32 rounds).
    """
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
