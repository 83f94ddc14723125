"""Performing: how a piece is played, as notes with times in seconds.

`perform` takes a `Piece` from `reading` and plays some seconds of it in one of many guises: tempo,
key, instruments, dynamics, accompaniment, drums. The sampler in `soundfont` sounds the `Note`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from colalib.data.scores.reading import SAME_TIME, Piece, WrittenNote, bar_length, metre_class
from colalib.data.scores.soundfont import PERCUSSION_BANK

# General MIDI programs by instrument family, each with the lowest and highest MIDI key where its
# samples sound natural.
FAMILIES = {
    "keyboard": {0: (28, 100), 1: (28, 100), 6: (36, 88), 8: (48, 96)},  # pianos, harpsichord, celesta
    "organ": {16: (36, 96), 19: (36, 96), 20: (36, 91), 21: (41, 91)},  # organs and accordion
    "plucked": {24: (40, 84), 25: (40, 84), 46: (31, 96), 105: (45, 88)},  # guitars, harp, banjo
    "strings": {40: (55, 98), 41: (48, 86), 42: (36, 74), 48: (36, 96)},  # violin, viola, cello, ensemble
    "winds": {73: (59, 96), 74: (60, 96), 68: (58, 90), 71: (50, 90), 70: (34, 70)},  # flute … bassoon
    "brass": {56: (55, 86), 60: (41, 77), 57: (40, 74), 61: (40, 84)},  # trumpet, horn, trombone, section
}
CHORD_PROGRAMS = (0, 24, 25, 21, 46, 105)  # piano, guitars, accordion, harp, banjo
BASS_PROGRAMS = (32, 33, 43, 58)  # acoustic and electric bass, double bass, tuba
KITS = (0, 8, 32, 40)  # standard, room, jazz, brush
# MIDI keys of the drums.
(KICK, STICK, SNARE, CLOSED_HAT, OPEN_HAT, RIDE, TAMBOURINE) = (36, 37, 38, 42, 46, 51, 54)
CHORD_LOWEST = 52  # MIDI key: chords lie in the octave from here, under most melodies,
BASS_LOWEST = 36  # and the roots of the bass in the octave from here
# Triads of a major key, the more usual first: semitones above the tonic, each from its root up.
TRIADS = ((0, 4, 7), (7, 11, 2), (5, 9, 0), (9, 0, 4), (2, 5, 9), (4, 7, 11))
COMPOUND_BEAT = 1.5  # quarter notes: three quavers, as in 6/8
PREFERENCE = 3.0  # so 60 % of a class's clips are in its two usual families, and 10 % in each other one
NEARLY_EVEN = (0.5, 0.54)  # swing
UNEVEN = (0.6, 0.68)  # hornpipes are written in even quavers, and by custom played long-short


@dataclass
class Manner:
    """How one kind of music is played: the ranges that a performance draws from."""

    beat: tuple[float, float] | None = None  # beats per minute; None: tempo from `onset_gap`
    onset_gap: tuple[float, float] = (0.2, 0.4)  # median seconds between onsets, without `beat`
    swing: tuple[float, float] = (0.5, 0.5)  # share of a quarter note that its first quaver takes
    families: tuple[str, ...] = ()  # those that play it `PREFERENCE` times as often as another
    accompanied: float = 0.0  # probability of chords and bass
    drums: float = 0.0  # probability of a drum kit, where accompanied


MANNERS = {
    "chorale": Manner((60, 96), families=("organ", "brass")),
    "trecento": Manner(families=("winds", "brass")),
    "quartet": Manner(onset_gap=(0.14, 0.32), families=("strings", "keyboard")),
    "air": Manner((52, 88), swing=NEARLY_EVEN, families=("plucked", "winds"), accompanied=0.6),
    "jig": Manner((96, 132), families=("organ", "winds"), accompanied=0.7, drums=0.5),
    "slip-jig": Manner((96, 132), families=("strings", "plucked"), accompanied=0.7, drums=0.5),
    "reel": Manner((88, 120), swing=NEARLY_EVEN, families=("strings", "plucked"), accompanied=0.7, drums=0.5),
    "hornpipe": Manner((66, 96), swing=UNEVEN, families=("keyboard", "organ"), accompanied=0.7, drums=0.5),
}  # fmt: skip


class Note(NamedTuple):
    """One note as it is played."""

    bank: int
    program: int
    key: int  # MIDI
    velocity: int
    start: float  # s
    duration: float  # s


@dataclass
class Excerpt:
    """The part of a piece that is played, its tempo and its key; times are in quarter notes."""

    kind: str
    origin: float  # where in the piece it begins
    beat: float  # of the first bar
    tempo: float  # quarter notes per minute
    swing: float
    shift: int  # semitones from the written key
    sharps: int  # of the key as it sounds
    notes: list[WrittenNote]  # in the key as it sounds
    bars: list[tuple[float, str]]  # start and time signature

    def seconds(self, quarters: float) -> float:
        """Return the time from the start; swing lengthens the first quaver of each pair."""
        pairs, part = divmod(quarters - self.origin, 1.0)  # a pair of quavers is a quarter note
        first_half = part * 2 * self.swing
        second_half = self.swing + (part - 0.5) * 2 * (1 - self.swing)
        return (pairs + (first_half if part < 0.5 else second_half)) * 60 / self.tempo


def perform(piece: Piece, kind: str, seconds: float, rng: np.random.Generator) -> tuple[list[Note], dict]:
    """Play `seconds` of a piece in one guise; return the notes, and what was drawn for them.

    `kind` is a key of `MANNERS`. A shorter piece is repeated from its beginning. The same state of
    `rng` gives the same notes.
    """
    manner = MANNERS[kind]
    excerpt = choose_excerpt(piece, kind, seconds, rng)
    weights = np.array([PREFERENCE if name in manner.families else 1.0 for name in FAMILIES])
    family = str(rng.choice(list(FAMILIES), p=weights / weights.sum()))
    programs = choose_programs(excerpt.notes, family, rng)

    loudness = rng.uniform(70, 105)  # MIDI velocity: about mezzo-forte to fortissimo
    notes = play_voices(excerpt, programs, loudness, rng)
    accompanied = rng.random() < manner.accompanied
    drums = False
    if accompanied:
        notes += accompany(excerpt, loudness, rng)
        drums = rng.random() < manner.drums
        if drums:
            notes += drum(excerpt, loudness, rng)

    metre_classes = {metre_class(metre) for _, metre in excerpt.bars}
    melody = min(programs)  # 0, unless the melody rests all the time
    drawn = {
        "family": family,
        "metre": metre_classes.pop() if len(metre_classes) == 1 else "",
        "program": programs[melody][0],
        "programs": " ".join(map(str, sorted({program for program, _ in programs.values()}))),
        "tempo": round(excerpt.tempo, 1),
        "key_shift": excerpt.shift,
        "accompaniment": "chords" if accompanied else "none",
        "drums": "kit" if drums else "none",
    }
    return notes, drawn


def choose_excerpt(piece: Piece, kind: str, seconds: float, rng: np.random.Generator) -> Excerpt:
    """Draw where to begin, tempo, key and swing, and cut `seconds` from the piece."""
    bar = choose_bar(piece, rng)
    origin = piece.bars[bar]
    beat = beat_length(kind, piece.metres[bar])
    tempo = choose_tempo(piece, kind, origin, beat, rng)
    shift = int(rng.integers(-3, 4))  # -3 to 3 semitones: other keys, yet near the written range
    swing = float(rng.uniform(*MANNERS[kind].swing))
    # Even where the score is long-short already (a tenth of its onsets lie off the quavers), or
    # where quavers come in threes.
    if np.mean([note.onset % 0.5 > 0 for note in piece.notes]) > 0.1 or beat == COMPOUND_BEAT:
        swing = 0.5

    end = origin + seconds * tempo / 60
    notes = []
    bars = []
    for turn in range(int(end // piece.end) + 1):
        offset = turn * piece.end
        for voice, onset, length, key in piece.notes:
            if origin <= onset + offset < end:
                notes.append(WrittenNote(voice, onset + offset, length, key + shift))
        for start, metre in zip(piece.bars, piece.metres, strict=True):
            if origin <= start + offset < end:
                bars.append((start + offset, metre))
    # A semitone up is seven sharps more.
    return Excerpt(kind, origin, beat, tempo, swing, shift, piece.sharps + 7 * shift, notes, bars)


def choose_bar(piece: Piece, rng: np.random.Generator) -> int:
    """Draw a bar to begin with: not the upbeat, and where all voices have something to play."""
    onsets = np.array([note.onset for note in piece.notes])
    voices = np.array([note.voice for note in piece.notes])
    upbeat = len(piece.bars) > 1 and piece.bars[1] - piece.bars[0] < bar_length(piece.metres[0]) - SAME_TIME

    def voices_heard(bar: int) -> int:
        start = piece.bars[bar]
        if not np.any(np.abs(onsets - start) < SAME_TIME):
            return 0  # nothing begins with the bar
        return len(np.unique(voices[(onsets >= start) & (onsets < start + 8)]))  # 8: two bars of 4/4

    # The best of eight draws.
    return max(rng.integers(int(upbeat), len(piece.bars), 8).tolist(), key=voices_heard)


def choose_tempo(piece: Piece, kind: str, origin: float, beat: float, rng: np.random.Generator) -> float:
    """Draw the tempo in quarter notes per minute, by the beat or by how dense the notes are."""
    manner = MANNERS[kind]
    if manner.beat:
        tempo = float(rng.uniform(*manner.beat)) * beat
    else:
        # 200 notes: about as many as a dense clip holds.
        onsets = np.unique([note.onset for note in piece.notes if note.onset >= origin][:200])
        if len(onsets) > 1:
            tempo = 60 * float(np.median(np.diff(onsets))) / float(rng.uniform(*manner.onset_gap))
        else:
            tempo = 90.0  # nothing to go by: a walking pace
    return float(np.clip(tempo, 40, 260))  # odd scores stay within what people play


def beat_length(kind: str, metre: str) -> float:
    """Return the number of quarter notes in a beat.

    1.5 in compound time, half a bar in reels and hornpipes, otherwise the note that the time
    signature counts, but a quarter note at most.
    """
    if metre_class(metre) == "compound":
        return COMPOUND_BEAT
    if kind in ("reel", "hornpipe"):
        return bar_length(metre) / 2
    return 4 / max(4, float(metre.split("/")[1]))


def choose_programs(notes: list[WrittenNote], family: str, rng: np.random.Generator) -> dict[int, tuple]:
    """Draw the instruments: voice → (program, octaves up).

    All are of one family; in three of ten performances the lower voices are of any. A voice goes by
    whole octaves to where the instrument sounds natural; the fewest octaves win.
    """
    mixed = rng.random() < 0.3
    favourite = int(rng.choice(list(FAMILIES[family])))
    programs = {}
    for voice in sorted({note.voice for note in notes}):
        keys = [note.key for note in notes if note.voice == voice]
        any_family = mixed and voice != 0
        ranges = FAMILIES[str(rng.choice(list(FAMILIES))) if any_family else family]
        # Among equals the favourite comes first, so that voices tend to share an instrument.
        order = [favourite] if favourite in ranges else []
        order += rng.permutation(list(ranges)).tolist()
        octaves = {program: octaves_up(keys, *ranges[program]) for program in order}
        program = min(order, key=lambda program: abs(octaves[program]))
        programs[voice] = (program, octaves[program])
    return programs


def octaves_up(keys: list[int], low: int, high: int) -> int:
    """Return by how many octaves (-2 to 2) `keys` must move to fit best between `low` and `high`."""
    middle = float(np.median(keys))

    def misfit(octaves: int) -> tuple:
        moved = 12 * octaves
        outside = max(0, low - min(keys) - moved) + max(0, max(keys) + moved - high)
        # 66: of two octaves that fit alike, the one nearer to the middle of most instruments.
        return outside, abs(octaves), abs(middle + moved - 66)

    return min((0, 1, -1, 2, -2), key=misfit)


def play_voices(excerpt: Excerpt, programs: dict, loudness: float, rng: np.random.Generator) -> list[Note]:
    """Play the written notes with accents on the beat, and phrases that swell."""
    contrast = rng.uniform(0, 14)  # velocity: how much a phrase swells
    phrase = rng.uniform(2.5, 6.0)  # s: about a breath
    articulation = rng.uniform(0.75, 1.0)  # share of its length that a note sounds: detached to legato
    notes = []
    for voice, onset, length, key in excerpt.notes:
        program, octaves = programs[voice]
        start = excerpt.seconds(onset)
        on_beat = abs((onset - excerpt.origin) / excerpt.beat % 1) < 1e-6
        accent = 6 if on_beat else 0  # heard, but no thump
        swell = contrast * np.sin(2 * np.pi * start / phrase)
        # 5: no two notes are struck alike. 10: the melody stands out.
        velocity = loudness + accent + swell + rng.normal(0, 5) - (10 if voice else 0)
        end = excerpt.seconds(onset + length * articulation)
        notes.append(make_note(0, program, key + 12 * octaves, velocity, start, end, rng))
    return notes


def make_note(bank: int, program: int, key: int, velocity: float, start: float, end: float, rng) -> Note:
    """Return a note with a person's timing: a standard deviation of 8 ms."""
    velocity = int(np.clip(round(velocity), 20, 127))  # 20 is still heard, 127 the most in MIDI
    played = max(0.0, start + rng.normal(0, 0.008))
    return Note(bank, program, int(key), velocity, played, max(0.05, end - start))  # 50 ms: no mere click


def chords_of(bar: float, metre: str, notes: list[WrittenNote], sharps: int) -> list[tuple]:
    """Return the chords of a bar: start, end, and pitch classes from the root up.

    There are two in duple time, 6/8 and 12/8, otherwise one. Each is the triad of the key that shares the
    most sounding time with the notes.
    """
    length = bar_length(metre)
    parts = 2 if metre_class(metre) == "duple" or metre in ("6/8", "12/8") else 1
    tonic = 7 * sharps % 12  # each sharp is a fifth up from C
    triads = [[(tonic + step) % 12 for step in triad] for triad in TRIADS]
    chords = []
    for part in range(parts):
        start = bar + part * length / parts
        end = bar + (part + 1) * length / parts
        sounding = np.zeros(12)  # quarter notes of each pitch class
        for note in notes:
            sounding[note.key % 12] += max(0.0, min(end, note.onset + note.length) - max(start, note.onset))
        # 0.01: of equals, the more usual triad.
        scores = [sounding[triad].sum() - 0.01 * rank for rank, triad in enumerate(triads)]
        chords.append((start, end, triads[int(np.argmax(scores))]))
    return chords


def accompany(excerpt: Excerpt, loudness: float, rng: np.random.Generator) -> list[Note]:
    """Play chords and bass; an excerpt has one of three styles of chords, in airs one of two."""
    style = str(rng.choice(["broken", "held"] if excerpt.kind == "air" else ["vamp", "strum", "broken"]))
    program = int(rng.choice(CHORD_PROGRAMS))
    bass = int(rng.choice(BASS_PROGRAMS))
    soft = loudness - rng.uniform(12, 28)  # under the melody
    notes = []

    def play(program: int, keys: list[int], velocity: float, start: float, end: float) -> None:
        begin = excerpt.seconds(start)
        stop = excerpt.seconds(end)
        for key in keys:
            varied = velocity + rng.normal(0, 4)  # no two notes are struck alike
            notes.append(make_note(0, program, key, varied, begin, stop, rng))

    for bar, metre in excerpt.bars:
        beat = beat_length(excerpt.kind, metre)
        quick = 0.5 if beat == COMPOUND_BEAT or excerpt.kind == "air" else beat / 4  # of broken chords
        for start, end, chord in chords_of(bar, metre, excerpt.notes, excerpt.sharps):
            root = BASS_LOWEST + chord[0]  # both count from C
            upper = sorted(CHORD_LOWEST + (pitch - CHORD_LOWEST) % 12 for pitch in chord)
            if style == "held":
                play(program, upper, soft, start, end)
                play(bass, [root], soft, start, end)
                continue
            for number, now in enumerate(np.arange(start, end - 1e-6, beat)):
                # The bass plays root and fifth by turns, a little louder than the chord.
                play(bass, [root if number % 2 == 0 else root + 7], soft + 8, now, now + beat * 0.8)
                for stroke_start, stroke_end, chosen in chord_strokes(style, now, beat, quick):
                    # Single notes are louder than full chords.
                    velocity = soft + 4 if style == "broken" else soft
                    play(program, [upper[i] for i in chosen], velocity, stroke_start, stroke_end)
    return notes


def chord_strokes(style: str, now: float, beat: float, quick: float) -> list[tuple]:
    """Return the strokes in the beat at `now`: start, end, and which notes of the chord."""
    compound = beat == COMPOUND_BEAT
    if style == "vamp":  # after the bass, until the next one
        return [(now + (1.0 if compound else beat / 2), now + beat, (0, 1, 2))]
    if style == "strum":  # long, short; in simple time long, short, short
        offsets = (0, 1.0) if compound else (0, beat / 2, beat * 0.75)
        return [(now + offset, now + offset + 0.45, (0, 1, 2)) for offset in offsets]
    # Broken: up and down again, each note held into the next one.
    up_and_down = (0, 1, 2, 1)
    count = round(beat / quick)
    return [(now + i * quick, now + (i + 1.5) * quick, (up_and_down[i % 4],)) for i in range(count)]


def drum(excerpt: Excerpt, loudness: float, rng: np.random.Generator) -> list[Note]:
    """Play a drum kit: a kick on the beat, an answer to it, cymbals on the parts of the beat."""
    kit = int(rng.choice(KITS))
    soft = loudness - rng.uniform(0, 20)  # no louder than the melody
    top = int(rng.choice([CLOSED_HAT, RIDE, TAMBOURINE]))
    answer = int(rng.choice([SNARE, STICK]))
    busy = rng.random() < 0.6  # plays all parts of the beat
    notes = []

    def hit(drum: int, when: float, loss: float) -> None:
        velocity = soft - loss + rng.normal(0, 5)
        start = excerpt.seconds(when)
        notes.append(make_note(PERCUSSION_BANK, kit, drum, velocity, start, start + 0.4, rng))

    for bar, metre in excerpt.bars:
        beat = beat_length(excerpt.kind, metre)
        compound = beat == COMPOUND_BEAT
        for number, now in enumerate(np.arange(bar, bar + bar_length(metre) - 1e-6, beat)):
            if compound:
                hit(KICK if number == 0 else answer, now, 0)
                offsets = (0, 0.5, 1.0) if busy else (0, 1.0)
            else:
                hit(KICK, now, 0)
                hit(answer, now + beat / 2, 4)
                offsets = np.arange(0, beat, beat / 4 if busy else beat / 2)
            for i, offset in enumerate(offsets):
                opened = top == CLOSED_HAT and compound and i == 2  # leads into the next beat
                # On the beat louder than after it, and always softer than the drums.
                hit(OPEN_HAT if opened else top, now + offset, 12 if i else 6)
    return notes
