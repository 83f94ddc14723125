"""Rendering: one clip as samples. The notes of `performing` are sounded by `soundfont`, in a room,
with noise, at a drawn level.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import oaconvolve

from colalib.data.scores import soundfont
from colalib.data.scores.performing import Note, perform
from colalib.data.scores.reading import Piece

RATE = 16000  # Hz: what the log-mel front end works at, so you hear what the encoder gets
SECONDS = (8.0, 10.0)  # shortest and longest clip


def render(piece: Piece, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    """Return one clip, [samples] float32 at `RATE`, and what was drawn for it."""
    seconds = float(rng.uniform(*SECONDS))
    notes, drawn = perform(piece, kind, seconds, rng)
    length = int(seconds * RATE)
    clip = add_room(mix(notes, length), rng)

    # Faint noise, 60 to 85 dB under the peak: recordings know no digital silence.
    clip *= np.float32(1 / max(np.abs(clip).max(), 1e-6))  # 1e-6: no division by 0
    clip += rng.standard_normal(length, np.float32) * np.float32(10 ** (rng.uniform(-85, -60) / 20))
    # 10 ms at both ends, against clicks.
    fade = np.linspace(0, 1, int(0.01 * RATE), dtype=np.float32)
    clip[: len(fade)] *= fade
    clip[-len(fade) :] *= fade[::-1]
    # The peak's level, at least 1 dB under full scale, because MP3 overshoots.
    level = float(rng.uniform(-18, 0)) - 1
    clip *= np.float32(10 ** (level / 20) / np.abs(clip).max())
    return clip, drawn | {"level_db": round(level, 1), "seconds": round(length / RATE, 3)}


def mix(notes: list[Note], length: int) -> np.ndarray:
    """Return the sum of all notes, [length] float32; what sounds longer is cut off."""
    bank = soundfont.load(RATE)
    out = np.zeros(length, np.float32)
    for note in notes:
        start = int(note.start * RATE)
        if start < length:
            sound = bank.note(note.program, note.key, note.velocity, note.duration, note.bank)
            sound = sound[: length - start]
            out[start : start + len(sound)] += sound
    return out


def add_room(dry: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add a synthetic room, [samples] → [samples]: noise that decays by 60 dB, after a delay."""
    seconds = rng.uniform(0.2, 1.2)  # to decay by 60 dB: a living room to a concert hall or so
    wet = 10 ** (-rng.uniform(6, 24) / 20)  # loudness of the echo beside the direct sound: -6 to -24 dB
    t = np.arange(int(seconds * RATE), dtype=np.float32) / np.float32(RATE)
    decay = np.exp(t * np.float32(-np.log(1000) / seconds))  # 60 dB is a factor of 1000
    echo = rng.standard_normal(len(t), np.float32) * decay
    # Walls absorb the highest frequencies: a mean of 3 samples does too.
    echo = np.convolve(echo, np.ones(3, np.float32) / 3)[: len(t)]
    echo *= np.float32(wet / np.sqrt((echo**2).sum()))
    delay = int(rng.uniform(0.005, 0.02) * RATE)  # s until the first echo: walls 1 to 3 m away
    out = dry.copy()
    out[delay:] += oaconvolve(dry, echo)[: len(dry) - delay]
    return out
