"""A small SoundFont 2 sampler in numpy: MIDI notes in, mono float32 samples out.

It plays the General MIDI bank `TimGM6mb.sf2` that ships inside the `pretty_midi` package. Of the
SoundFont 2.01 specification it covers what this bank states and what makes it sound right: zones
with key ranges and their global zones, root key and tuning, sample loops, the volume envelope,
attenuation and velocity. It leaves out filters, modulators, LFOs and pan. Sections named in this
file are those of the specification.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.signal import firwin, oaconvolve

from colalib.errors import UserError

PERCUSSION_BANK = 128
SILENCE_DB = 96.0  # a voice this far down has ended (16 bits)
CONTROL_STEP = 32  # samples between two points of the envelope: 2 ms at 16 kHz
CACHE_SAMPLES = 40_000_000  # pitched waveforms in memory per process: 160 MB of float32

# Numbers of the generators, which are the settings of a zone (section 8.1.3).
(LOOP_START, LOOP_END, INSTRUMENT, KEY_RANGE, ATTENUATION) = (2, 3, 41, 43, 48)
(DELAY, ATTACK, HOLD, DECAY, SUSTAIN, RELEASE, KEY_TO_DECAY) = (33, 34, 35, 36, 37, 38, 40)
(COARSE_TUNE, FINE_TUNE, SAMPLE_ID, SAMPLE_MODES, SCALE_TUNING, ROOT_KEY) = (51, 52, 53, 54, 56, 58)
# What a zone has if it states nothing: 0, but times of 1 ms (-12000 time cents), every key, 100 cents
# per key, and for the root key -1, which means that of the sample's header.
DEFAULTS = dict.fromkeys(range(60), 0)
DEFAULTS |= dict.fromkeys((DELAY, ATTACK, HOLD, DECAY, RELEASE), -12000)
DEFAULTS |= {KEY_RANGE: (0, 127), SCALE_TUNING: 100, ROOT_KEY: -1}

# The records of the `pdta` list (section 7).
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
    """One sample, the notes that it serves, and how it is played."""

    keys: tuple[int, int]  # lowest and highest MIDI key
    start: int  # positions among the bank's samples
    end: int
    loop: tuple[int, int] | None  # None: played once
    rate: int  # Hz
    root: float  # MIDI pitch at which the sample sounds as recorded
    scale: float  # semitones per key: 1, or 0 for a sound without pitch
    gain: float  # from the attenuation
    envelope: tuple[float, ...]  # delay, attack, hold, decay s; sustain dB under the peak; release s
    key_to_decay: float  # time cents per key below 60


def read_chunks(data: memoryview) -> dict[bytes, memoryview]:
    """Return all chunks of a RIFF file by name; those inside lists stand beside the others."""
    chunks = {}
    while len(data) >= 8:
        name = bytes(data[:4])
        size = int.from_bytes(data[4:8], "little")
        if name in (b"RIFF", b"LIST"):
            chunks |= read_chunks(data[12 : 8 + size])  # 12: behind the list's own name
        else:
            chunks[name] = data[8 : 8 + size]
        data = data[8 + size + size % 2 :]  # chunks begin at even positions
    return chunks


class SoundFont:
    """A bank of instruments, played note by note.

    Args:
        path: an `.sf2` file with 16-bit samples.
        rate: sampling rate of the sound that comes out, Hz.

    Raises:
        UserError: the file is no such bank.
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
        """Return one note with its release, [samples] float32 at `rate`.

        It is empty where no zone serves the key.

        Args:
            program: 0-127, General MIDI (flute is 73). In bank 128 it is a drum kit, whose keys are
                its drums.
            key: MIDI key, 0-127 (60 is the middle C, 69 is 440 Hz).
            velocity: 1-127. The amplitude follows (velocity / 127)², the specification's 40 dB curve.
            duration: seconds from key down to key up.
        """
        if (bank, program) not in self.zones:
            raise KeyError(f"the SoundFont has no program {program} in bank {bank}")
        voices = [
            self._voice(zone, key, duration)
            for zone in self.zones[bank, program]
            if zone.keys[0] <= key <= zone.keys[1]
        ]
        out = np.zeros(max((len(voice) for voice in voices), default=0), np.float32)
        for voice in voices:
            out[: len(voice)] += voice
        return out * np.float32((velocity / 127) ** 2)

    def _voice(self, zone: Zone, key: int, duration: float) -> np.ndarray:
        """Return one zone's share of a note, [samples] float32: its waveform times its envelope."""
        envelope = volume_envelope(zone, key, duration, self.rate)
        wave = self._wave(zone, key, len(envelope))
        length = min(len(envelope), len(wave))
        return wave[:length] * envelope[:length] * np.float32(zone.gain)

    def _wave(self, zone: Zone, key: int, length: int) -> np.ndarray:
        """Return the zone's sample at the key's pitch, [samples] float32.

        A sample with a loop has at least `length` samples, any other all there are.
        """
        wave = self._waves.get((zone, key))
        if wave is not None and (zone.loop is None or len(wave) >= length):
            return wave
        step = zone.rate / self.rate * 2 ** ((key - zone.root) * zone.scale / 12)  # in the source, per sample
        if zone.loop is None:
            source = self._source(zone)
            length = int((len(source) - 1) / step)
        else:
            # Half a second or a power of two, so that a longer wave is seldom needed.
            length = max(self.rate // 2, 1 << (length - 1).bit_length())
            source = self._source(zone, int(length * step) + 4)  # 4: neighbours of the last one
        # What would lie above half the output rate is filtered off first. 0.95 and 63 taps leave the
        # filter room to fall.
        if step > 1:
            source = oaconvolve(source, firwin(63, 0.95 / step).astype(np.float32), mode="same")
        positions = np.arange(length) * step
        wave = map_coordinates(source, [positions], np.float32, order=3, mode="nearest")
        if self._cached > CACHE_SAMPLES:
            self._waves = {}
            self._cached = 0
        self._waves[zone, key] = wave
        self._cached += len(wave)
        return wave

    def _source(self, zone: Zone, length: int = 0) -> np.ndarray:
        """Return the zone's sample as float32 in -1..1, a loop repeated up to `length` samples."""
        if zone.loop is None:
            return self.samples[zone.start : zone.end].astype(np.float32) / 32768
        first, stop = zone.loop
        head = self.samples[zone.start : stop]
        body = self.samples[first:stop]
        repeats = max(0, ceil((length - len(head)) / len(body)))
        return np.concatenate([head, *[body] * repeats])[:length].astype(np.float32) / 32768


@cache
def load(rate: int) -> SoundFont:
    """Return the bank in the installed `pretty_midi`, to be played at `rate` Hz.

    The package is found without importing it. The bank is read once per process.
    """
    spec = importlib.util.find_spec("pretty_midi")
    path = Path(spec.submodule_search_locations[0], "TimGM6mb.sf2") if spec else None
    if path is None or not path.is_file():
        raise UserError(
            "TimGM6mb.sf2 was not found: install pretty_midi, which carries it (pip install pretty_midi)"
        )
    return SoundFont(path, rate)


def read_preset(tables: dict[bytes, np.ndarray], number: int) -> list[Zone]:
    """Return all zones of the instruments of a preset."""
    zones = []
    for preset in read_bags(tables, b"phdr", b"pbag", b"pgen", number, INSTRUMENT):
        for generators in read_bags(tables, b"inst", b"ibag", b"igen", preset[INSTRUMENT], SAMPLE_ID):
            zones.append(make_zone(DEFAULTS | generators, tables[b"shdr"][generators[SAMPLE_ID]]))
    return zones


def read_bags(
    tables: dict, headers: bytes, bags: bytes, amounts: bytes, number: int, last: int
) -> list[dict]:
    """Return the generators {number: amount} of each zone of a preset or an instrument.

    The global zone's are merged in (section 7.3). `last` is the generator that every other zone
    ends with: its instrument or its sample.
    """
    first, stop = tables[headers]["bag"][number : number + 2].tolist()
    common = {}
    zones = []
    for bag in range(first, stop):
        begin, end = tables[bags]["gen"][bag : bag + 2].tolist()
        generators = {}
        for oper, amount in tables[amounts][begin:end].tolist():
            # A range is two bytes: lowest, highest.
            generators[oper] = (amount & 255, amount >> 8 & 255) if oper == KEY_RANGE else amount
        if last in generators:
            zones.append(common | generators)
        elif bag == first:
            common = generators  # the global zone, which holds for all others
    return zones


def make_zone(generators: dict, sample: np.void) -> Zone:
    """Return a zone from its generators and its sample's header."""

    def seconds(generator: int) -> float:
        return 2 ** (generators[generator] / 1200)  # from time cents

    loop_start = int(sample["loop_start"]) + generators[LOOP_START]
    loop_end = int(sample["loop_end"]) + generators[LOOP_END]
    looped = generators[SAMPLE_MODES] in (1, 3) and loop_end - loop_start > 1
    root = generators[ROOT_KEY] if generators[ROOT_KEY] >= 0 else int(sample["pitch"])
    cents = generators[FINE_TUNE] + int(sample["correction"])
    tuning = generators[COARSE_TUNE] + cents / 100  # semitones
    scale = generators[SCALE_TUNING] / 100
    sustain = min(SILENCE_DB, max(0.0, generators[SUSTAIN] / 10))  # from centibels
    return Zone(
        keys=generators[KEY_RANGE],
        start=int(sample["start"]),
        end=int(sample["end"]),
        loop=(loop_start, loop_end) if looped else None,
        rate=int(sample["rate"]),
        root=root - (tuning / scale if scale else 0.0),
        scale=scale,
        # From centibels, of which the sound card that the format was made for applied 0.4.
        gain=10 ** (-0.4 * generators[ATTENUATION] / 200),
        envelope=(*map(seconds, (DELAY, ATTACK, HOLD, DECAY)), sustain, seconds(RELEASE)),
        key_to_decay=generators[KEY_TO_DECAY],
    )


def volume_envelope(zone: Zone, key: int, duration: float, rate: int) -> np.ndarray:
    """Return the amplitude over a note's life, [samples] float32.

    The attack is linear, what follows are straight lines in dB (section 8.1.2).
    """
    delay, attack, hold, decay, sustain, release = zone.envelope
    decay *= 2 ** (zone.key_to_decay * (60 - key) / 1200)
    peak = delay + attack
    duration = max(duration, 1 / rate)

    def loss(t: np.ndarray | float) -> np.ndarray | float:
        """dB under the peak while the key is down; in the decay time it would be 100 dB."""
        return np.minimum(np.maximum((t - peak - hold) * (100 / decay), 0), sustain)

    # The note ends when its release is silent, or its decay before the key is up.
    end = duration + max(0.0, (SILENCE_DB - float(loss(duration))) / 100 * release)
    if sustain >= SILENCE_DB:
        end = min(end, peak + hold + decay * SILENCE_DB / 100)
    t = np.arange(0, end + CONTROL_STEP / rate, CONTROL_STEP / rate)
    key_down = np.minimum(t, duration)
    rise = np.minimum(np.maximum((key_down - delay) / attack, 0), 1)
    gain = rise * 10 ** (-(loss(key_down) + (t - key_down) / release * 100) / 20)
    gain[-1] = 0
    gain = gain.astype(np.float32)
    ramp = np.arange(CONTROL_STEP, dtype=np.float32) / CONTROL_STEP
    return (gain[:-1, None] + np.diff(gain)[:, None] * ramp).ravel()  # straight lines between the points
