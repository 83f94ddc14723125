"""Reading: what a score is, which scores music21's bundled corpus holds, and which are played.

`candidates` lists the scores of each class, `read_pieces` reads one of them, and `Melodies`
recognises a tune that is there already. The module `performing` plays the pieces.
"""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from colalib.errors import UserError

# Scores in several voices, by class: MusicXML files in music21's corpus.
SCORE_FILES = {
    "chorale": ("bach/bwv*.mxl",),
    "trecento": ("trecento/*.xml",),
    "quartet": ("beethoven/**/*.mxl", "haydn/**/*.mxl", "mozart/**/*.mxl", "schumann_robert/opus41*/*.mxl"),
}
# Left out of the quartets: a piano sonata, and the Great Fugue, which has no movements.
NOT_QUARTETS = {"k545", "opus133.mxl"}

# Tunes in one voice, by class: the time signatures that a tune of the class may have.
TUNE_METRES = {
    "air": {"C", "C|", "4/4", "2/2", "2/4", "3/4", "6/8"},
    "jig": {"6/8"},
    "slip-jig": {"9/8"},
    "reel": {"C", "C|", "4/4", "2/2"},
    "hornpipe": {"C", "C|", "4/4", "2/2"},
}
# What the field R: of a tune says about its class.
RHYTHMS = {"air": "air", "jig": "jig", "doublejig": "jig", "slipjig": "slip-jig", "reel": "reel",
           "hornpipe": "hornpipe"}  # fmt: skip
# O'Neill's "Music of Ireland" is numbered by kind: first and last number of each.
ONEILL_NUMBERS = {"air": (1, 625), "jig": (701, 1115), "slip-jig": (1116, 1175), "reel": (1176, 1555),
                  "hornpipe": (1556, 1780)}  # fmt: skip

CLASSES = (*SCORE_FILES, *TUNE_METRES)  # a class's place decides its random numbers: keep the order

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # semitones above C
# By the upper number of the time signature.
METRES = {"2": "duple", "4": "duple", "3": "triple", "6": "compound", "9": "compound", "12": "compound"}

SAME_TIME = 1e-3  # quarter notes: less than any note's length, more than rounding errors


class WrittenNote(NamedTuple):
    """One note of a score; times are in quarter notes from the beginning."""

    voice: int  # 0 is the melody
    onset: float
    length: float
    key: int  # MIDI


@dataclass
class Piece:
    """A composition, or a movement of one; times are in quarter notes."""

    name: str
    title: str
    source: str  # the collection, and the file or the number in it
    sharps: int  # of the key signature, flats negative
    bars: list[float]  # where each bar starts; the first may be an upbeat
    metres: list[str]  # time signature of each bar, such as "6/8"
    notes: list[WrittenNote]  # by onset
    end: float


class Candidate(NamedTuple):
    """A score that could be played: a MusicXML file, or one tune of a file in ABC notation."""

    name: str
    path: Path
    title: str = ""  # of a tune
    abc: str = ""  # the text of a tune; empty for a MusicXML file


def bar_length(metre: str) -> float:
    """Return the number of quarter notes in a bar."""
    beats, unit = metre.split("/")
    return sum(float(beat) for beat in beats.split("+")) * 4 / float(unit)


def metre_class(metre: str) -> str:
    """Return "duple", "triple" or "compound", or "" for a time signature that is none of them."""
    return METRES.get(metre.split("/")[0], "")


def music21_corpus() -> Path:
    """Return the folder of scores inside the installed music21 (found without importing it)."""
    spec = importlib.util.find_spec("music21")
    folder = Path(spec.submodule_search_locations[0], "corpus") if spec else None
    if folder is None or not (folder / "bach").is_dir():
        raise UserError(
            "music21's bundled scores were not found: install music21 with its corpus (pip install music21)"
        )
    return folder


def candidates(seed: int) -> dict[str, list[Candidate]]:
    """Return the scores of each class, in an order that depends on nothing but `seed`."""
    root = music21_corpus()
    lists = score_candidates(root) | tune_candidates(root)
    for number, kind in enumerate(CLASSES):
        # O'Neill's collection has some numbers twice: the last one counts.
        lists[kind] = list({candidate.name: candidate for candidate in lists[kind]}.values())
        np.random.default_rng([seed, number]).shuffle(lists[kind])
    return lists


def score_candidates(root: Path) -> dict[str, list[Candidate]]:
    """Return the MusicXML files of each class in several voices."""
    lists: dict[str, list[Candidate]] = {kind: [] for kind in SCORE_FILES}
    for kind, patterns in SCORE_FILES.items():
        for path in [path for pattern in patterns for path in sorted(root.glob(pattern), key=Path.as_posix)]:
            if NOT_QUARTETS & set(path.parts) or "_bak" in path.stem:  # "_bak": an older version
                continue
            name = path.stem  # of a chorale, such as bwv66.6
            if kind == "trecento":
                name = slug(path.stem)
            elif kind == "quartet":  # the files are called movement1 and so on: their folders count too
                name = slug("-".join(path.relative_to(root).with_suffix("").parts))
            lists[kind].append(Candidate(name, path))
    return lists


def tune_candidates(root: Path) -> dict[str, list[Candidate]]:
    """Return the tunes of each class in one voice, from the two collections in ABC notation."""
    lists: dict[str, list[Candidate]] = {kind: [] for kind in TUNE_METRES}
    # by the text of the path: Windows would sort without regard to capitals
    files = [*root.glob("oneills1850/*.abc"), *root.glob("ryansMammoth/*.abc")]
    for path in sorted(files, key=Path.as_posix):
        collection = path.parent.name
        from_oneill = collection == "oneills1850"
        # Each tune begins with its number, X:; what comes before the first one is no tune.
        for text in re.split(r"(?m)^(?=X:)", path.read_text("utf-8", errors="replace"))[1:]:
            # Reversed, so that the first of several fields with one name counts.
            lines = reversed(re.findall(r"(?m)^([XTRM]):(.*)$", text))
            fields = {name: value.strip() for name, value in lines}
            kind = tune_class(fields, from_oneill)
            if kind and fields.get("M") in TUNE_METRES[kind] and fields.get("T"):
                number = fields["X"] if from_oneill else path.stem
                name = slug(f"{collection[:6]}-{number}"[:40])  # a file name of bearable length
                lists[kind].append(Candidate(name, path, fields["T"], text))
    return lists


def tune_class(fields: dict[str, str], from_oneill: bool) -> str | None:
    """Return the class of a tune by its field R:, else by its number in O'Neill's collection."""
    rhythm = re.sub(r"[^a-z]", "", fields.get("R", "").lower())
    if rhythm:
        return RHYTHMS.get(rhythm)
    number = int(re.sub(r"\D", "", fields.get("X", "")) or 0)
    for kind, (first, last) in ONEILL_NUMBERS.items():
        if from_oneill and first <= number <= last:
            return kind
    return None


def slug(text: str) -> str:
    """Return `text` in lower-case letters, digits and hyphens, for file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read_pieces(candidate: Candidate, kind: str) -> list[Piece]:
    """Return the pieces of one score that are fit to be played; none if it cannot be read."""
    name, path, title, abc = candidate
    source = path.relative_to(music21_corpus()).as_posix()
    try:
        if abc:
            pieces = [read_abc(abc, name, title, f"{source}#{name}")]
        else:
            pieces = read_musicxml(path, name, source)
    except (ImportError, MemoryError, OSError):  # not the fault of a score
        raise
    except Exception:  # music21 refuses a handful of transcriptions, each with an error of its own
        return []
    return [piece for piece in pieces if is_fit(piece, kind)]


def is_fit(piece: Piece, kind: str) -> bool:
    """True if the piece is long enough, in instruments' range, and in the right number of voices."""
    melody = [note for note in piece.notes if note.voice == 0]
    voices = len({note.voice for note in piece.notes})
    # A clip of a shorter piece could be mostly repetition.
    long_enough = len(melody) >= 24 and len(piece.bars) >= 8 and piece.end >= 24
    # These keys are on a piano (21 to 108) even after a shift by 3 semitones.
    in_range = all(24 <= note.key <= 103 for note in piece.notes)
    # With more than 7 voices, instruments double singers.
    right_voices = voices == 1 if kind in TUNE_METRES else 2 <= voices <= 7
    return long_enough and in_range and right_voices


class Melodies:
    """The tunes so far, to recognise the same one under another name, key or number."""

    def __init__(self) -> None:
        self.titles: set[str] = set()
        self.tunes_with: dict[tuple, list[int]] = defaultdict(list)  # figure → numbers of tunes
        self.sizes: list[int] = []  # figures in each tune

    def add(self, piece: Piece) -> bool:
        """Remember a tune and return True, or return False if it is there already.

        A tune is there already if its title is, or if another one shares 30 % of the figures at the
        beginning of the melody (of the tune that has fewer).
        """
        # Only tunes in ABC notation have titles of their own; their sources hold a "#".
        title = re.sub(r"[^a-z]|^the ", "", piece.title.lower())
        if "#" in piece.source and title in self.titles:
            return False
        # A figure is six steps in a row, in semitones: the same in any key.
        steps = np.diff([note.key for note in piece.notes if note.voice == 0])
        steps = steps[steps != 0][:100].tolist()  # the beginning; repeated notes do not count
        figures = {tuple(steps[i : i + 6]) for i in range(len(steps) - 5)}
        shared = Counter(number for figure in figures for number in self.tunes_with[figure])
        for number, count in shared.items():
            if count >= 0.3 * min(len(figures), self.sizes[number]):
                return False
        self.titles.add(title)
        for figure in figures:
            self.tunes_with[figure].append(len(self.sizes))
        self.sizes.append(len(figures))
        return True


@dataclass
class PartState:
    """What holds in a MusicXML part until it is stated anew, also from movement to movement."""

    divisions: float = 1.0  # of a quarter note: the unit of durations
    shift: int = 0  # semitones from written to sounding pitch
    metre: str = "4/4"


def read_musicxml(path: Path, name: str, source: str) -> list[Piece]:
    """Return the movements of a MusicXML file, plain (.xml) or compressed (.mxl).

    music21 reads these files too, at 0.3 to 4 s each. This reader takes only who plays what when.
    """
    if path.suffix == ".mxl":
        with zipfile.ZipFile(path) as archive:
            inner = next(n for n in archive.namelist() if n.endswith("xml") and not n.startswith("META-INF"))
            root = ElementTree.fromstring(archive.read(inner))
    else:
        root = ElementTree.fromstring(path.read_bytes())
    movements: list[Piece] = []
    for voice, part in enumerate(root.findall("part")):
        state = PartState()
        for number, measures in enumerate(split_movements(part.findall("measure"), path)):
            # The first part says how many movements there are.
            if voice == 0:
                title = f"{name}-{number + 1}" if number else name
                movements.append(Piece(title, title, source, 0, [], [], [], 0.0))
            if number < len(movements):
                read_part(measures, voice, movements[number], state)
    for piece in movements:
        piece.notes.sort(key=lambda note: (note.onset, note.voice, note.key))
    return movements


def split_movements(measures: list, path: Path) -> list[list]:
    """Split a part into one list of measures per movement, in files that hold several.

    A movement begins where key and time signature are both stated anew, 150 bars or more after the
    last one began: within a movement they are mostly stated sooner.
    """
    # music21's corpus names whole works opus132.mxl, single movements movement1.mxl or bwv66.6.mxl.
    if "opus" not in path.stem:
        return [measures]
    movements: list[list] = []
    for measure in measures:
        stated = measure.find("attributes/key") is not None and measure.find("attributes/time") is not None
        if not movements or (stated and len(movements[-1]) >= 150):
            movements.append([])
        movements[-1].append(measure)
    return movements


def read_part(measures: list, voice: int, piece: Piece, state: PartState) -> None:
    """Add one part's notes to the piece, and its bars if it is the first part; update `state`."""
    start = 0.0  # of the bar
    open_ties: dict[int, int] = {}  # key → index of the note that a tie prolongs
    for measure in measures:
        now = furthest = onset = 0.0  # from the start of the bar
        for element in measure:
            length = float(element.findtext("duration") or 0) / state.divisions
            if element.tag == "attributes":
                read_attributes(element, state)
                if voice == 0 and not piece.bars and element.find("key/fifths") is not None:
                    piece.sharps = int(element.findtext("key/fifths"))
            elif element.tag == "forward":
                now += length
            elif element.tag == "backup":
                now -= length
            elif element.tag == "note" and element.find("grace") is None:
                # The other notes of a chord begin with its first.
                if element.find("chord") is None:
                    onset = now
                    now += length
                if element.find("pitch") is not None and element.find("cue") is None:
                    key = sounding_key(element.find("pitch")) + state.shift
                    ties = {tie.get("type") for tie in element.findall("tie")}
                    add_note(piece.notes, WrittenNote(voice, start + onset, length, key), ties, open_ties)
            furthest = max(furthest, now)
        if voice == 0:
            piece.bars.append(start)
            piece.metres.append(state.metre)
        start += furthest
    piece.end = max(piece.end, start)


def read_attributes(element: ElementTree.Element, state: PartState) -> None:
    """Update `state` by what an <attributes> element states."""
    state.divisions = float(element.findtext("divisions") or state.divisions)
    if element.find("time/beats") is not None:
        state.metre = f"{element.findtext('time/beats')}/{element.findtext('time/beat-type')}"
    transpose = element.find("transpose")
    if transpose is not None:
        octaves = int(transpose.findtext("octave-change") or 0)
        state.shift = int(float(transpose.findtext("chromatic") or 0)) + 12 * octaves


def sounding_key(pitch: ElementTree.Element) -> int:
    """Return the MIDI key of a <pitch> element; octave 4 begins with key 60."""
    alter = round(float(pitch.findtext("alter") or 0))
    return 12 * (int(pitch.findtext("octave")) + 1) + STEPS[pitch.findtext("step")] + alter


def add_note(notes: list[WrittenNote], note: WrittenNote, ties: set, open_ties: dict[int, int]) -> None:
    """Append a note, or prolong the one that it is tied to."""
    if "stop" in ties and note.key in open_ties:
        first = notes[open_ties[note.key]]
        length = note.onset + note.length - first.onset
        notes[open_ties[note.key]] = first._replace(length=length)
    else:
        open_ties[note.key] = len(notes)
        notes.append(note)
    if "start" not in ties:
        del open_ties[note.key]


def read_abc(text: str, name: str, title: str, source: str) -> Piece:
    """Return one tune in ABC notation, read by music21."""
    from music21 import abcFormat
    from music21.abcFormat import translate

    score = translate.abcToStreamScore(abcFormat.ABCFile().readstr(text))
    metre = "4/4"
    bars: list[float] = []
    metres: list[str] = []
    for measure in score.parts[0].getElementsByClass("Measure"):
        # music21 gives upbeats, and what overfills a bar, time signatures such as 1/8. The tune's own
        # are no shorter than 3/8: 1.5 quarter notes.
        signature = measure.timeSignature
        if signature is not None and signature.barDuration.quarterLength >= 1.5:
            metre = signature.ratioString
        # Around a repeat sign a bar is written in two halves: they are one bar in time.
        start = float(measure.offset)
        length = float(measure.duration.quarterLength)
        if len(bars) > 1 and start - bars[-1] + length <= bar_length(metre) + SAME_TIME:
            continue
        bars.append(start)
        metres.append(metre)
    flat = score.flatten()
    notes = [
        WrittenNote(0, float(note.offset), float(note.quarterLength), note.pitches[-1].midi)
        for note in flat.notes
        if note.quarterLength > 0 and note.pitches  # grace notes have length 0
    ]
    signatures = flat.getElementsByClass("KeySignature")
    sharps = signatures[0].sharps if signatures else 0
    return Piece(name, title, source, sharps, bars, metres, notes, float(score.duration.quarterLength))
