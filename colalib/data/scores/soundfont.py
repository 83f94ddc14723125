"""A small SoundFont 2 sampler in numpy: MIDI notes in, mono float32 samples out.

What it plays is the General MIDI bank `TimGM6mb.sf2` that ships inside the `pretty_midi` package.
Of the SoundFont 2.01 specification it covers what such a bank needs to sound right: zones with key
and velocity ranges and their global zones, root key and tuning, sample loops, the volume envelope,
attenuation and velocity. It leaves out filters, modulators, LFOs and pan.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.signal import firwin, oaconvolve

from colalib.errors import UserError

PERCUSSION_BANK = 128
SILENCE_DB = 96.0  # a voice this far down has ended (16 bits)
CONTROL_STEP = 32  # samples between two points of the envelope: 2 ms at 16 kHz
CACHE_SAMPLES = 40_000_000  # pitched waveforms kept per process: 160 MB of float32

# Generator numbers, SoundFont 2.01 specification, section 8.1.3.
(START, END, LOOP_START, LOOP_END, START_COARSE) = (0, 1, 2, 3, 4)
(END_COARSE, LOOP_START_COARSE, LOOP_END_COARSE) = (12, 45, 50)
(DELAY, ATTACK, HOLD, DECAY, SUSTAIN, RELEASE, KEY_TO_HOLD, KEY_TO_DECAY) = range(33, 41)
(INSTRUMENT, KEY_RANGE, VELOCITY_RANGE, FIXED_KEY, FIXED_VELOCITY, ATTENUATION) = (41, 43, 44, 46, 47, 48)
(COARSE_TUNE, FINE_TUNE, SAMPLE_ID, SAMPLE_MODES, SCALE_TUNING, ROOT_KEY) = (51, 52, 53, 54, 56, 58)
DEFAULTS = {time: -12000 for time in (DELAY, ATTACK, HOLD, DECAY, RELEASE)} | {
    SCALE_TUNING: 100,
    ROOT_KEY: -1,
}
ANY_KEY = (0, 127)

# The records of the `pdta` list, section 7.
RECORDS = {
    b"phdr": [("name", "S20"), ("preset", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("unused", "S12")],
    b"pbag": [("gen", "<u2"), ("mod", "<u2")],
    b"pgen": [("oper", "<u2"), ("amount", "<i2")],
    b"inst": [("name", "S20"), ("bag", "<u2")],
    b"ibag": [("gen", "<u2"), ("mod", "<u2")],
    b"igen": [("oper", "<u2"), ("amount", "<i2")],
    b"shdr": [
        ("name", "S20"), ("start", "<u4"), ("end", "<u4"), ("loop_start", "<u4"), ("loop_end", "<u4"),
        ("rate", "<u4"), ("pitch", "u1"), ("correction", "i1"), ("link", "<u2"), ("type", "<u2"),
    ],
}  # fmt: skip


class Zone(NamedTuple):
    """One sample with the notes it serves and how it is played."""

    keys: tuple[int, int]  # lowest and highest MIDI key
    velocities: tuple[int, int]
    start: int  # sample positions in the bank
    end: int
    loop: tuple[int, int] | None  # None: played once
    rate: int  # Hz
    root: float  # MIDI pitch at which the sample sounds as recorded
    scale: float  # semitones per key: 1, or 0 for a sound without pitch
    fixed_key: int  # -1: the key played
    gain: float  # from the attenuation
    # delay, attack, hold, decay s; sustain dB; release s
    envelope: tuple[float, float, float, float, float, float]
    key_to_hold: float  # cents of time per key below 60
    key_to_decay: float


def default_soundfont() -> Path:
    """The bank shipped inside the installed `pretty_midi` package (found without importing it)."""
    spec = importlib.util.find_spec("pretty_midi")
    path = Path(spec.submodule_search_locations[0], "TimGM6mb.sf2") if spec else None
    if path is None or not path.is_file():
        raise UserError(
            "TimGM6mb.sf2 was not found: install pretty_midi, which carries it (pip install pretty_midi)"
        )
    return path


def read_chunks(data: memoryview) -> dict[bytes, memoryview]:
    """All leaf chunks of a RIFF file by name; lists are opened."""
    chunks, position = {}, 0
    while position + 8 <= len(data):
        name, size = (
            bytes(data[position : position + 4]),
            int.from_bytes(data[position + 4 : position + 8], "little"),
        )
        body = data[position + 8 : position + 8 + size]
        if name in (b"RIFF", b"LIST"):
            chunks |= read_chunks(body[4:])
        else:
            chunks[name] = body
        position += 8 + size + size % 2
    return chunks


class SoundFont:
    """A bank of instruments, played note by note.

    Args:
        path: an `.sf2` file with 16-bit samples.
        rate: sampling rate of what is rendered, Hz.
    """

    def __init__(self, path: Path, rate: int) -> None:
        chunks = read_chunks(memoryview(path.read_bytes()))
        if not {b"smpl", *RECORDS} <= chunks.keys():
            raise UserError(f"{path} is not a SoundFont 2 file with 16-bit samples")
        self.rate = rate
        self.samples = np.frombuffer(chunks[b"smpl"], "<i2")  # [bank samples]
        tables = {name: np.frombuffer(chunks[name], np.dtype(fields)) for name, fields in RECORDS.items()}
        self.zones = {
            (int(header["bank"]), int(header["preset"])): read_preset(tables, number)
            for number, header in enumerate(tables[b"phdr"][:-1])
        }
        self._waves: dict[tuple[Zone, int], np.ndarray] = {}
        self._cached = 0

    def note(self, program: int, key: int, velocity: int, duration: float, bank: int = 0) -> np.ndarray:
        """One note, release included.

        Args: program: 0-127, General MIDI (flute is 73); with bank 128 a drum kit, whose keys are
        its drums. key: MIDI key, 0-127 (60 is the middle C, 69 is 440 Hz). velocity: 1-127; the
        amplitude follows (velocity / 127)², the specification's 40 dB curve. duration: seconds from
        key down to key up.

        Returns:
            [samples] float32 at `rate`; empty where no zone serves the key.
        """
        if (bank, program) not in self.zones:
            raise KeyError(f"the SoundFont has no program {program} in bank {bank}")
        voices = [
            self._voice(zone, key, duration)
            for zone in self.zones[bank, program]
            if zone.keys[0] <= key <= zone.keys[1] and zone.velocities[0] <= velocity <= zone.velocities[1]
        ]
        out = np.zeros(max((len(voice) for voice in voices), default=0), np.float32)
        for voice in voices:
            out[: len(voice)] += voice
        return out * np.float32((velocity / 127) ** 2)

    def _voice(self, zone: Zone, key: int, duration: float) -> np.ndarray:
        """One zone's share of a note: its pitched waveform times its volume envelope, [samples]
        float32.
        """
        envelope = volume_envelope(zone, key, duration, self.rate)
        wave = self._wave(zone, zone.fixed_key if zone.fixed_key >= 0 else key, len(envelope))
        length = min(len(envelope), len(wave))
        return wave[:length] * envelope[:length] * np.float32(zone.gain)

    def _wave(self, zone: Zone, key: int, length: int) -> np.ndarray:
        """The zone's sample at the key's pitch, loops unrolled: at least `length` samples, or all
        there is.
        """
        wave = self._waves.get((zone, key))
        ends = zone.loop is None
        if wave is not None and (ends or len(wave) >= length):
            return wave
        # source samples per output sample
        step = zone.rate / self.rate * 2 ** ((key - zone.root) * zone.scale / 12)
        if not ends:
            # to be asked seldom for more
            length = max(self.rate // 2, 1 << (length - 1).bit_length())
        source = self._unrolled(zone, int(length * step) + 4 if not ends else None)
        if step > 1:  # what would lie above half the output rate is filtered off first
            source = oaconvolve(source, firwin(63, 0.95 / step).astype(np.float32), mode="same")
        positions = np.arange(
            min(length, int((len(source) - 1) / step)) if not ends else int((len(source) - 1) / step)
        )
        wave = map_coordinates(source, [positions * step], np.float32, order=3, mode="nearest")
        if self._cached > CACHE_SAMPLES:
            self._waves, self._cached = {}, 0
        self._waves[zone, key], self._cached = wave, self._cached + len(wave)
        return wave

    def _unrolled(self, zone: Zone, length: int | None) -> np.ndarray:
        """The zone's sample as float32 in -1..1, its loop repeated up to `length` source samples."""
        if zone.loop is None or length is None:
            return self.samples[zone.start : zone.end].astype(np.float32) / 32768
        head = self.samples[zone.start : zone.loop[1]]
        body = self.samples[zone.loop[0] : zone.loop[1]]
        repeats = max(0, -(-(length - len(head)) // len(body)))
        return np.concatenate([head, *[body] * repeats])[:length].astype(np.float32) / 32768


@cache
def load(rate: int, path: Path | None = None) -> SoundFont:
    """The bank at `path` (default: the one in `pretty_midi`), read once per process."""
    return SoundFont(path or default_soundfont(), rate)


def read_preset(tables: dict[bytes, np.ndarray], number: int) -> list[Zone]:
    """All zones of one preset: each of its instruments' zones, preset generators added (section
    9.4).
    """
    zones = []
    for of_preset in read_bags(tables, b"phdr", b"pbag", b"pgen", number, INSTRUMENT):
        for of_instrument in read_bags(tables, b"inst", b"ibag", b"igen", of_preset[INSTRUMENT], SAMPLE_ID):
            generators = DEFAULTS | of_instrument
            for oper, amount in of_preset.items():
                if oper not in (INSTRUMENT, KEY_RANGE, VELOCITY_RANGE):
                    generators[oper] = generators.get(oper, 0) + amount
            for oper in (KEY_RANGE, VELOCITY_RANGE):
                (low, high), (low2, high2) = (side.get(oper, ANY_KEY) for side in (of_preset, of_instrument))
                generators[oper] = (max(low, low2), min(high, high2))
            zones.append(make_zone(generators, tables[b"shdr"][generators[SAMPLE_ID]]))
    return zones


def read_bags(
    tables: dict, headers: bytes, bags: bytes, generators: bytes, number: int, last: int
) -> list[dict]:
    """Generators {number: amount} of each zone of a preset or an instrument, global zone merged in
    (section 7.3).
    """
    first, stop = (int(tables[headers][number + n]["bag"]) for n in (0, 1))
    shared, zones = {}, []
    for bag in range(first, stop):
        begin, end = (int(tables[bags][bag + n]["gen"]) for n in (0, 1))
        found = {}
        for oper, amount in tables[generators][begin:end].tolist():
            found[oper] = (amount & 255, amount >> 8 & 255) if oper in (KEY_RANGE, VELOCITY_RANGE) else amount
        if last in found:
            zones.append(shared | found)
        # only the first zone may lack its instrument or sample: it holds for all others
        elif bag == first:
            shared = found
    return zones


def make_zone(generators: dict, sample: np.void) -> Zone:
    """A zone from its generators and its sample's header."""

    def value(oper: int) -> int:
        return generators.get(oper, 0)

    def seconds(oper: int) -> float:
        return 2 ** (value(oper) / 1200)  # time cents

    def position(field: str, fine: int, coarse: int) -> int:
        return int(sample[field]) + value(fine) + 32768 * value(coarse)

    loop = (
        position("loop_start", LOOP_START, LOOP_START_COARSE),
        position("loop_end", LOOP_END, LOOP_END_COARSE),
    )
    looped = value(SAMPLE_MODES) in (1, 3) and loop[1] - loop[0] > 1
    pitch = int(sample["pitch"]) if sample["pitch"] <= 127 else 60
    root = value(ROOT_KEY) if value(ROOT_KEY) >= 0 else pitch
    tuning = value(COARSE_TUNE) + (value(FINE_TUNE) + int(sample["correction"])) / 100  # semitones
    scale = value(SCALE_TUNING) / 100
    return Zone(
        keys=generators[KEY_RANGE],
        velocities=generators[VELOCITY_RANGE],
        start=position("start", START, START_COARSE),
        end=position("end", END, END_COARSE),
        loop=loop if looped else None,
        rate=int(sample["rate"]),
        root=root - (tuning / scale if scale else 0.0),
        scale=scale,
        fixed_key=generators.get(FIXED_KEY, -1),
        gain=10
        ** (
            -0.4 * value(ATTENUATION) / 200
        ),  # centibels, at the 0.4 of the sound card the format was made for
        envelope=(
            *(seconds(oper) for oper in (DELAY, ATTACK, HOLD, DECAY)),
            min(SILENCE_DB, max(0.0, value(SUSTAIN) / 10)),
            seconds(RELEASE),
        ),
        key_to_hold=value(KEY_TO_HOLD),
        key_to_decay=value(KEY_TO_DECAY),
    )


def volume_envelope(zone: Zone, key: int, duration: float, rate: int) -> np.ndarray:
    """Amplitude over a note's life, [samples] float32: linear attack, then straight lines in dB
    (section 8.1.2).
    """
    delay, attack, hold, decay, sustain, release = zone.envelope
    hold *= 2 ** (zone.key_to_hold * (60 - key) / 1200)
    decay *= 2 ** (zone.key_to_decay * (60 - key) / 1200)
    peak, duration = delay + attack, max(duration, 1 / rate)

    def loss(t: np.ndarray | float) -> np.ndarray | float:
        """dB under the peak at time t while the key is down; the decay time is that of a fall by
        100 dB.
        """
        return np.minimum(np.maximum((t - peak - hold) * (100 / decay), 0), sustain)

    at_release = float(loss(duration))
    tail = max(0.0, (SILENCE_DB - at_release) / 100 * release)
    # silent before the key is up
    held = peak + hold + decay * SILENCE_DB / 100 if sustain >= SILENCE_DB else np.inf
    t = np.arange(0, min(duration + tail, held) + CONTROL_STEP / rate, CONTROL_STEP / rate)
    down = np.minimum(t, duration)
    rise = np.minimum(np.maximum((down - delay) / attack, 0), 1)
    gain = rise * 10 ** (-(loss(down) + (t - down) / release * 100) / 20)
    gain[-1] = 0
    gain, ramp = gain.astype(np.float32), np.arange(CONTROL_STEP, dtype=np.float32) / CONTROL_STEP
    return (gain[:-1, None] + np.diff(gain)[:, None] * ramp).ravel()  # straight lines between the points
