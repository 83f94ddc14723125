"""Scores become notes in time: reads music21's bundled scores and performs excerpts of them.

A score file (MusicXML or ABC) is read into a `Piece`; `perform` plays some seconds of it in one of
many guises (instruments, tempo, key, dynamics, accompaniment) and returns `Note`s for the sampler
in `soundfont.py`.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from colalib.data.scores.soundfont import PERCUSSION_BANK

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
METRES = {"2": "duple", "4": "duple", "3": "triple", "6": "compound", "9": "compound", "12": "compound"}

# General MIDI programs by instrument family, each with the MIDI keys where its samples sound
# natural.
FAMILIES = {
    "keyboard": {0: (28, 100), 1: (28, 100), 6: (36, 88), 8: (48, 96)},  # pianos, harpsichord, celesta
    "organ": {16: (36, 96), 19: (36, 96), 20: (36, 91), 21: (41, 91)},  # organs and accordion
    "plucked": {24: (40, 84), 25: (40, 84), 46: (31, 96), 105: (45, 88)},  # guitars, harp, banjo
    "strings": {40: (55, 98), 41: (48, 86), 42: (36, 74), 48: (36, 96)},  # violin, viola, cello, ensemble
    "winds": {
        73: (59, 96),
        74: (60, 96),
        68: (58, 90),
        71: (50, 90),
        70: (34, 70),
    },  # flute … clarinet, bassoon
    "brass": {56: (55, 86), 60: (41, 77), 57: (40, 74), 61: (40, 84)},  # trumpet, horn, trombone, section
}
CHORD_PROGRAMS = (0, 24, 25, 21, 46, 105)
BASS_PROGRAMS = (32, 33, 43, 58)
KITS = (0, 8, 32, 40)  # standard, room, jazz, brush
KICK, STICK, SNARE, CLOSED_HAT, OPEN_HAT, TAMBOURINE, RIDE = 36, 37, 38, 42, 46, 54, 51


class Note(NamedTuple):
    """One note as it is played."""

    bank: int
    program: int
    key: int  # MIDI
    velocity: int
    start: float  # s
    duration: float  # s


@dataclass
class Piece:
    """A composition; all times are in quarter notes."""

    name: str
    title: str
    source: str  # the collection, and the file or the number in it
    sharps: int  # of the key signature, flats negative
    bars: list[float]  # where each bar starts; the first may be an upbeat
    metres: list[str]  # time signature of each bar, such as "6/8"
    # voice (0 is the melody), onset, length, MIDI key; by onset
    notes: list[tuple[int, float, float, int]]
    end: float


# ------------------------------------------------------------------------------------------ reading


def read_musicxml(path: Path, name: str, source: str) -> list[Piece]:
    """The movements of a MusicXML file, plain or to_mp3.

    music21 reads these files too, at 0.3 to 4 s each; an encoder of audio needs only who plays what
    when.
    """
    if path.suffix == ".mxl":
        with zipfile.ZipFile(path) as archive:
            inner = next(n for n in archive.namelist() if n.endswith("xml") and not n.startswith("META-INF"))
            root = ElementTree.fromstring(archive.read(inner))
    else:
        root = ElementTree.fromstring(path.read_bytes())
    movements: list[Piece] = []
    for voice, part in enumerate(root.findall("part")):
        state = (1.0, 0, "4/4")
        for number, measures in enumerate(split_movements(part.findall("measure"), path)):
            if voice == 0:
                label = f"{name}-{number + 1}" if number else name
                movements.append(Piece(label, label, source, 0, [], [], [], 0.0))
            if number < len(movements):
                state = read_part(measures, voice, movements[number], state)
    for piece in movements:
        piece.notes.sort(key=lambda note: (note[1], note[0], note[3]))
    return movements


def split_movements(measures: list, path: Path) -> list[list]:
    """One list a movement, in files that hold several.

    A movement begins where key and time signature are both stated anew, 150 bars or more after the
    last one began.
    """
    # movement1.mxl, bwv66.6.mxl: the music21 corpus names whole works opus132.mxl
    if "opus" not in path.stem:
        return [measures]
    movements: list[list] = []
    for measure in measures:
        stated = measure.find("attributes/key") is not None and measure.find("attributes/time") is not None
        if not movements or (stated and len(movements[-1]) >= 150):
            movements.append([])
        movements[-1].append(measure)
    return movements


def read_part(
    measures: list, voice: int, piece: Piece, state: tuple[float, int, str]
) -> tuple[float, int, str]:
    """Adds one part's notes to the piece, and its bars if it is the first part.

    `state`, as the movement before left it: divisions of a quarter note, transposition in
    semitones, time signature.
    """
    (divisions, shift, metre), start = state, 0.0
    open_ties: dict[int, int] = {}  # key → index of the note that a tie prolongs
    for measure in measures:
        now = furthest = onset = 0.0
        for element in measure:
            length = float(element.findtext("duration") or 0) / divisions
            if element.tag == "attributes":
                divisions = float(element.findtext("divisions") or divisions)
                if element.find("time/beats") is not None:
                    metre = f"{element.findtext('time/beats')}/{element.findtext('time/beat-type')}"
                if voice == 0 and not piece.bars and element.find("key/fifths") is not None:
                    piece.sharps = int(element.findtext("key/fifths"))
                if (transpose := element.find("transpose")) is not None:
                    shift = int(float(transpose.findtext("chromatic") or 0))
                    shift += 12 * int(transpose.findtext("octave-change") or 0)
            elif element.tag in ("backup", "forward"):
                now += length if element.tag == "forward" else -length
            elif element.tag == "note" and element.find("grace") is None:
                if element.find("chord") is None:
                    onset, now = now, now + length
                if (pitch := element.find("pitch")) is not None and element.find("cue") is None:
                    alter = round(float(pitch.findtext("alter") or 0))
                    key = (
                        12 * (int(pitch.findtext("octave")) + 1)
                        + STEPS[pitch.findtext("step")]
                        + alter
                        + shift
                    )
                    ties = {tie.get("type") for tie in element.findall("tie")}
                    if "stop" in ties and key in open_ties:
                        before = piece.notes[open_ties[key]]
                        piece.notes[open_ties[key]] = (*before[:2], start + onset + length - before[1], key)
                    else:
                        open_ties[key] = len(piece.notes)
                        piece.notes.append((voice, start + onset, length, key))
                    if "start" not in ties:
                        del open_ties[key]
            furthest = max(furthest, now)
        if voice == 0:
            piece.bars.append(start)
            piece.metres.append(metre)
        start += furthest
    piece.end = max(piece.end, start)
    return divisions, shift, metre


def read_abc(text: str, name: str, title: str, source: str) -> Piece:
    """One tune in ABC notation, read by music21."""
    from music21 import abcFormat
    from music21.abcFormat import translate

    score = translate.abcToStreamScore(abcFormat.ABCFile().readstr(text))
    flat, metre, bars, metres = score.flatten(), "4/4", [], []
    for measure in score.parts[0].getElementsByClass("Measure"):
        # no upbeat
        if measure.timeSignature is not None and measure.timeSignature.barDuration.quarterLength >= 1.5:
            metre = measure.timeSignature.ratioString
        start, bar = float(measure.offset), bar_length(metre)
        # Around a repeat sign a bar is written in two halves: they are one bar in time.
        if len(bars) > 1 and start - bars[-1] + float(measure.duration.quarterLength) <= bar + 1e-3:
            continue
        bars.append(start)
        metres.append(metre)
    signatures = flat.getElementsByClass("KeySignature")
    notes = [
        (0, float(note.offset), float(note.quarterLength), note.pitches[-1].midi)
        for note in flat.notes
        if note.quarterLength > 0 and note.pitches
    ]
    sharps = signatures[0].sharps if signatures else 0
    return Piece(name, title, source, sharps, bars, metres, notes, float(score.duration.quarterLength))


def bar_length(metre: str) -> float:
    """Quarter notes in a bar."""
    beats, unit = metre.split("/")
    return sum(float(beat) for beat in beats.split("+")) * 4 / float(unit)


def metre_class(metre: str) -> str:
    """duple, triple or compound; empty where the time signature is none of them."""
    beats = metre.split("/")[0]
    return "triple" if metre == "3/8" else METRES.get(beats, "")


# --------------------------------------------------------------------------------------- performing


@dataclass
class Manner:
    """How one kind of music is played: the ranges that a performance draws from."""

    beat: tuple[float, float] | None = None  # beats a minute; None: from how dense the notes are
    # median seconds between onsets, where `beat` is None
    onset_gap: tuple[float, float] = (0.2, 0.4)
    swing: tuple[float, float] = (0.5, 0.5)  # share of the beat that the first of two halves takes
    families: tuple[str, ...] = ()  # played on these `PREFERENCE` times as often as on each other family
    accompanied: float = 0.0  # probability of chords and bass
    drums: float = 0.0  # probability of a drum kit, where accompanied


PREFERENCE = 3.0  # six tenths of a class' clips are in its two usual families; every family plays every class
MANNERS = {
    "chorale": Manner(beat=(60, 96), families=("organ", "brass")),
    "trecento": Manner(onset_gap=(0.2, 0.4), families=("winds", "brass")),
    "quartet": Manner(onset_gap=(0.14, 0.32), families=("strings", "keyboard")),
    "air": Manner(beat=(52, 88), swing=(0.5, 0.54), families=("plucked", "winds"), accompanied=0.6),
    "jig": Manner(beat=(96, 132), families=("organ", "winds"), accompanied=0.7, drums=0.5),
    "slip-jig": Manner(beat=(96, 132), families=("strings", "plucked"), accompanied=0.7, drums=0.5),
    "reel": Manner(
        beat=(88, 120), swing=(0.5, 0.54), families=("strings", "plucked"), accompanied=0.7, drums=0.5
    ),
    # Written in even quavers, hornpipes are by custom played long-short.
    "hornpipe": Manner(
        beat=(66, 96), swing=(0.6, 0.68), families=("keyboard", "organ"), accompanied=0.7, drums=0.5
    ),
}


def beat_length(kind: str, metre: str) -> float:
    """Quarter notes in a beat: 1.5 in compound time, 2 in reels and hornpipes (two beats a bar),
    otherwise 1.
    """
    if metre_class(metre) == "compound":
        return 1.5
    return bar_length(metre) / 2 if kind in ("reel", "hornpipe") else 4 / max(4, float(metre.split("/")[1]))


def perform(piece: Piece, kind: str, seconds: float, rng: np.random.Generator) -> tuple[list[Note], dict]:
    """Some seconds of a piece, played in one drawn guise.

    Args:
        kind: a key of `MANNERS`.
        seconds: how long the excerpt sounds; a shorter piece is repeated from its beginning.
        rng: decides everything; the same state gives the same notes.

    Returns:
        Notes, and what was drawn: family, programs, metre, tempo, key shift, accompaniment, drums.
    """
    manner = MANNERS[kind]
    bar = choose_bar(piece, rng)
    metre, origin = piece.metres[bar], piece.bars[bar]
    beat = beat_length(kind, metre)
    if manner.beat:
        tempo = float(rng.uniform(*manner.beat)) * beat  # quarters a minute
    else:
        gaps = np.diff(np.unique([note[1] for note in piece.notes if note[1] >= origin][:200]))
        tempo = 60 * float(np.median(gaps)) / float(rng.uniform(*manner.onset_gap)) if len(gaps) else 90.0
    tempo = float(np.clip(tempo, 40, 260))
    length = seconds * tempo / 60
    shift = int(rng.integers(-3, 4))
    swing = float(rng.uniform(*manner.swing))
    if np.mean([note[1] % 0.5 > 0 for note in piece.notes]) > 0.1 or beat == 1.5:
        swing = 0.5  # written long-short already, or no pairs of quavers

    repeats = range(int((origin + length) // piece.end) + 1)
    written = [(v, t + n * piece.end, d, k + shift) for n in repeats for v, t, d, k in piece.notes]
    written = [note for note in written if origin <= note[1] < origin + length]
    bars = [(b + n * piece.end, m) for n in repeats for b, m in zip(piece.bars, piece.metres, strict=True)]
    bars = [(b, m) for b, m in bars if origin <= b < origin + length]

    def at(quarters: float) -> float:
        """Seconds from the start of the excerpt; the swing lengthens the first half of each swung
        pair.
        """
        pair = 1.0  # two quavers
        whole, part = divmod(quarters - origin, pair)
        half = pair / 2
        bent = part * 2 * swing if part < half else pair * swing + (part - half) * 2 * (1 - swing)
        return (whole * pair + bent) * 60 / tempo

    weights = np.array([PREFERENCE if name in manner.families else 1.0 for name in FAMILIES])
    family = str(rng.choice(list(FAMILIES), p=weights / weights.sum()))
    programs = choose_programs(written, family, rng)
    loudness, contrast = rng.uniform(70, 105), rng.uniform(0, 14)
    phrase, articulation = rng.uniform(2.5, 6.0), rng.uniform(0.75, 1.0)
    notes = []
    for voice, onset, quarters, key in written:
        program, octaves = programs[voice]
        accent = 6 if abs((onset - origin) / beat % 1) < 1e-6 else 0
        swell = contrast * np.sin(2 * np.pi * at(onset) / phrase)
        velocity = loudness + accent + swell + rng.normal(0, 5) - (10 if voice else 0)
        begin, end = at(onset), at(onset + quarters * articulation)
        notes.append(make_note(0, program, key + 12 * octaves, velocity, begin, end, rng))

    drums = False
    if rng.random() < manner.accompanied:
        harmony = [(b, m, chords_of(b, m, written, piece.sharps + 7 * shift)) for b, m in bars]
        notes += accompany(harmony, kind, at, loudness, rng)
        drums = bool(rng.random() < manner.drums)
        if drums:
            notes += drum(bars, kind, at, loudness, rng)
        accompaniment = "chords"
    else:
        accompaniment = "none"
    drawn = {
        "family": family,
        "metre": metre_class(metre) if all(metre_class(m) == metre_class(metre) for _, m in bars) else "",
        "program": programs[0][0] if 0 in programs else next(iter(programs.values()))[0],
        "programs": " ".join(str(p) for p in sorted({p for p, _ in programs.values()})),
        "tempo": round(tempo, 1),
        "key_shift": shift,
        "accompaniment": accompaniment,
        "drums": "kit" if drums else "none",
    }
    return notes, drawn


def make_note(bank: int, program: int, key: int, velocity: float, begin: float, end: float, rng) -> Note:
    """A note with a person's timing: 8 ms of spread."""
    start = max(0.0, begin + rng.normal(0, 0.008))
    return Note(
        bank, program, int(key), int(np.clip(round(velocity), 20, 127)), start, max(0.05, end - begin)
    )


def choose_bar(piece: Piece, rng: np.random.Generator) -> int:
    """A bar to begin with: not the upbeat, and where all voices have something to play."""
    onsets = np.array([note[1] for note in piece.notes])
    voices = np.array([note[0] for note in piece.notes])
    first = (
        1 if len(piece.bars) > 1 and piece.bars[1] - piece.bars[0] < bar_length(piece.metres[0]) - 1e-3 else 0
    )
    best, most = first, -1
    for bar in rng.integers(first, len(piece.bars), 8).tolist():
        near = (onsets >= piece.bars[bar]) & (onsets < piece.bars[bar] + 8)
        heard = len(np.unique(voices[near])) if np.any(np.abs(onsets - piece.bars[bar]) < 1e-3) else 0
        if heard > most:
            best, most = bar, heard
    return best


def choose_programs(written: list, family: str, rng: np.random.Generator) -> dict[int, tuple[int, int]]:
    """voice → (program, octaves up): one family, or a mixed ensemble in three of ten performances.

    A voice goes by whole octaves to where the instrument sounds natural; the fewest octaves win.
    """
    mixed, out = rng.random() < 0.3, {}
    favourite = int(rng.choice(list(FAMILIES[family])))
    for voice in sorted({note[0] for note in written}):
        keys = [note[3] for note in written if note[0] == voice]
        middle, lowest, highest = float(np.median(keys)), min(keys), max(keys)
        chosen = FAMILIES[family] if voice == 0 or not mixed else FAMILIES[str(rng.choice(list(FAMILIES)))]

        def octaves(program: int, chosen=chosen, lowest=lowest, highest=highest, middle=middle) -> int:
            low, high = chosen[program]
            outside = {
                o: max(0, low - lowest - 12 * o) + max(0, highest + 12 * o - high) for o in (0, 1, -1, 2, -2)
            }
            return min(outside, key=lambda o: (outside[o], abs(o), abs(middle + 12 * o - 66)))

        order = [favourite] if favourite in chosen else []
        order += rng.permutation(list(chosen)).tolist()
        program = min(order, key=lambda p: abs(octaves(p)))
        out[voice] = (program, octaves(program))
    return out


# ------------------------------------------------------------------------------------ accompaniment


def chords_of(bar: float, metre: str, written: list, sharps: int) -> list[tuple[float, float, list[int]]]:
    """(start, end, pitch classes with the root first) for each half bar, or each bar in triple
    time.

    Of the six major and minor triads of the key the one that shares most sounding time with the
    notes.
    """
    length = bar_length(metre)
    parts = 2 if metre_class(metre) == "duple" or metre in ("6/8", "12/8") else 1
    tonic = 7 * sharps % 12
    triads = [[(tonic + r) % 12, (tonic + r + t) % 12, (tonic + r + 7) % 12] for r, t in
              ((0, 4), (7, 4), (5, 4), (9, 3), (2, 3), (4, 3))]  # fmt: skip
    found = []
    for part in range(parts):
        start, end = bar + part * length / parts, bar + (part + 1) * length / parts
        weights = np.zeros(12)
        for _, onset, quarters, key in written:
            weights[key % 12] += max(0.0, min(end, onset + quarters) - max(start, onset))
        scores = [weights[triad].sum() - 0.01 * rank for rank, triad in enumerate(triads)]
        found.append((start, end, triads[int(np.argmax(scores))]))
    return found


def accompany(harmony: list, kind: str, at, loudness: float, rng: np.random.Generator) -> list[Note]:
    """Chords and bass in one of three styles: vamp (bass, chord), strum, or broken chords (held
    chords in airs).
    """
    style = str(rng.choice(["broken", "held"] if kind == "air" else ["vamp", "strum", "broken"]))
    program, bass = int(rng.choice(CHORD_PROGRAMS)), int(rng.choice(BASS_PROGRAMS))
    soft = loudness - rng.uniform(12, 28)
    notes = []

    def play(program: int, keys: list[int], velocity: float, start: float, end: float) -> None:
        notes.extend(
            make_note(0, program, key, velocity + rng.normal(0, 4), at(start), at(end), rng) for key in keys
        )

    for _, metre, chords in harmony:
        beat = beat_length(kind, metre)
        quick = 0.5 if beat == 1.5 or kind == "air" else beat / 4
        for start, end, (root, third, fifth) in chords:
            low = 36 + (root - 36) % 12 + (12 if bass == 43 else 0) % 12
            upper = sorted(52 + (pitch - 52) % 12 for pitch in (root, third, fifth))
            if style == "held":
                play(program, upper, soft, start, end)
                play(bass, [low], soft, start, end)
                continue
            for n, now in enumerate(np.arange(start, end - 1e-6, beat)):
                play(bass, [low if n % 2 == 0 else low + 7], soft + 8, now, now + beat * 0.8)
                if style == "vamp":
                    play(program, upper, soft, now + (1.0 if beat == 1.5 else beat / 2), now + beat)
                elif style == "strum":
                    rhythm = (0, 1.0) if beat == 1.5 else (0, beat / 2, beat * 0.75)
                    for offset in rhythm:
                        play(program, upper, soft, now + offset, now + offset + 0.45)
                else:
                    for i in range(round(beat / quick)):
                        play(
                            program,
                            [upper[(0, 1, 2, 1)[i % 4]]],
                            soft + 4,
                            now + i * quick,
                            now + (i + 1.5) * quick,
                        )
    return notes


def drum(bars: list, kind: str, at, loudness: float, rng: np.random.Generator) -> list[Note]:
    """A drum kit that fits the metre: kick on the beat, an answer after it, cymbals on the
    subdivisions.
    """
    kit, soft = int(rng.choice(KITS)), loudness - rng.uniform(0, 20)
    top, answer = int(rng.choice([CLOSED_HAT, RIDE, TAMBOURINE])), int(rng.choice([SNARE, STICK]))
    busy = rng.random() < 0.6
    notes = []

    def hit(key: int, when: float, loss: float) -> None:
        velocity = soft - loss + rng.normal(0, 5)
        notes.append(make_note(PERCUSSION_BANK, kit, key, velocity, at(when), at(when) + 0.4, rng))

    for bar, metre in bars:
        beat, length = beat_length(kind, metre), bar_length(metre)
        compound = beat == 1.5
        for n, now in enumerate(np.arange(bar, bar + length - 1e-6, beat)):
            if compound:
                hit(KICK if n == 0 else answer, now, 0)
                offsets = (0, 0.5, 1.0) if busy else (0, 1.0)
            else:
                hit(KICK, now, 0)
                hit(answer, now + beat / 2, 4)
                offsets = np.arange(0, beat, beat / 4 if busy else beat / 2)
            for i, offset in enumerate(offsets):
                hit(
                    OPEN_HAT if top == CLOSED_HAT and compound and i == 2 else top,
                    now + offset,
                    12 if i else 6,
                )
    return notes
