"""Melodies, and what may happen to a copy of a recording."""

import io

import numpy as np
import soundfile
from helpers import RATE

LABELS = ['low, "deep"', "middle 🎵", "=high"]


def melody(seed: int, label: int, seconds: float = 2.5) -> np.ndarray:
    """Return notes at random times in the register of a label, with a little noise, float32 [samples]."""
    rng = np.random.default_rng(seed)
    wave = 0.003 * rng.standard_normal(int(seconds * RATE))
    for start in rng.uniform(0, seconds - 0.2, 8):
        pitch = 150 * 3**label * 2 ** rng.uniform(0, 1)
        t = np.arange(len(wave) - int(start * RATE)) / RATE
        decay = np.exp(-t * rng.uniform(4, 15))
        note = sum(np.sin(2 * np.pi * pitch * k * t) * rng.uniform(0.2, 1) / k for k in range(1, 4))
        wave[-len(t) :] += 0.12 * note * decay
    return wave.astype(np.float32)


def as_mp3(wave: np.ndarray) -> np.ndarray:
    """Return what MP3 makes of samples."""
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="MP3", subtype="MPEG_LAYER_III")
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


COPIES = {
    "equal": lambda wave: wave,
    "mp3": as_mp3,
    "louder": lambda wave: 2 * wave,
    "quieter": lambda wave: wave / 2,
    "later": lambda wave: np.concatenate([np.zeros(RATE // 2, np.float32), wave]),
    "cut": lambda wave: wave[RATE // 4 : RATE // 4 + len(wave) // 2],
}
