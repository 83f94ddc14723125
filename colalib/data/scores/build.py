"""The demo corpus: eight kinds of music, real scores played on sampled instruments, rendered on
this machine.

Scores come from music21's bundled corpus, sounds from the SoundFont inside pretty_midi; both come
with the packages, so nothing is downloaded. `build` writes audio files and an `index.csv` that
`colalib.data.corpora.load` reads.

Every class is played by every instrument family, though it has two that it is played on more often;
levels, rooms and lengths are drawn alike for all. What tells classes apart is rhythm, texture and
harmony.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from math import ceil
from pathlib import Path

import numpy as np
import soundfile
from joblib import Parallel, delayed
from scipy.signal import oaconvolve
from tqdm.auto import tqdm

from colalib.data.scores import soundfont
from colalib.data.scores.composing import MANNERS, Piece, perform, read_abc, read_musicxml
from colalib.errors import UserError

VERSION = 1  # of what a clip sounds like: raise it when rendering changes
CLASSES = tuple(MANNERS)
CLIPS_PER_CLASS = 200
RATE = 16000  # Hz: what the log-mel front end works at, so one hears what it sees
# Measured: FLAC is written fastest but takes 180 kB a clip; MP3 takes 50 kB and is the same at each
# writing, which the
# random serial numbers of Ogg files prevent.
MP3 = {"bitrate_mode": "VARIABLE", "compression_level": 0.2}
SECONDS = (8.0, 10.0)  # the length of a clip
CLIPS_PER_TUNE = 3  # a class has as many tunes as that takes, or all there are
MIN_TUNES = 10
# by turns
SPLITS = ("train", "train", "test", "train", "train", "valid", "train", "train", "test", "train")
COLUMNS = (
    "path", "label", "group", "split", "family", "metre",
    "title", "source", "program", "programs", "tempo", "key_shift", "accompaniment", "drums", "level_db", "seconds",
)  # fmt: skip


# ------------------------------------------------------------------------------------- what to play

# O'Neill's "Music of Ireland" is numbered by kind; where a tune has no R: field its number tells.
ONEILL_RANGES = {"air": (1, 625), "jig": (701, 1115), "slip-jig": (1116, 1175), "reel": (1176, 1555),
                 "hornpipe": (1556, 1780)}  # fmt: skip
RHYTHMS = {"reel": "reel", "jig": "jig", "doublejig": "jig", "slipjig": "slip-jig", "hornpipe": "hornpipe",
           "air": "air"}  # fmt: skip
ABC_METRES = {"jig": {"6/8"}, "slip-jig": {"9/8"}, "reel": {"C", "C|", "4/4", "2/2"}, "hornpipe": {"C", "C|", "4/4", "2/2"},
              "air": {"C", "C|", "4/4", "2/2", "2/4", "3/4", "6/8"}}  # fmt: skip


def music21_corpus() -> Path:
    """The folder of scores inside the installed music21 (found without importing it)."""
    spec = importlib.util.find_spec("music21")
    folder = Path(spec.submodule_search_locations[0], "corpus") if spec else None
    if folder is None or not (folder / "bach").is_dir():
        raise UserError(
            "music21's bundled scores were not found: install music21 with its corpus (pip install music21)"
        )
    return folder


def candidates(seed: int) -> dict[str, list[tuple]]:
    """class → all that could be played, shuffled: (name, path) of MusicXML, (name, path, ABC text,
    title) of tunes.
    """
    root = music21_corpus()
    found: dict[str, list[tuple]] = {kind: [] for kind in CLASSES}
    found["chorale"] = [(path.stem, path) for path in sorted(root.glob("bach/bwv*.mxl"))]
    found["trecento"] = [
        (slug(path.stem), path) for path in sorted(root.glob("trecento/*.xml")) if "_bak" not in path.stem
    ]
    for pattern in (
        "beethoven/**/*.mxl",
        "haydn/**/*.mxl",
        "mozart/**/*.mxl",
        "schumann_robert/opus41*/*.mxl",
    ):
        # Not quartets, or not of movements: the piano sonata K. 545 and the Great Fugue.
        paths = [path for path in sorted(root.glob(pattern)) if not {"k545", "opus133.mxl"} & set(path.parts)]
        found["quartet"] += [
            (slug("-".join(path.relative_to(root).with_suffix("").parts)), path) for path in paths
        ]
    for path in sorted([*root.glob("oneills1850/*.abc"), *root.glob("ryansMammoth/*.abc")]):
        for text in re.split(r"(?m)^(?=X:)", path.read_text("utf-8", errors="replace"))[1:]:
            fields = {
                name: value.strip() for name, value in reversed(re.findall(r"(?m)^([XTRM]):(.*)$", text))
            }
            kind = dance_kind(fields, "oneills" in path.parts[-2])
            if kind and fields.get("M") in ABC_METRES[kind] and fields.get("T"):
                number = fields["X"] if "oneills" in path.parts[-2] else path.stem
                found[kind].append((slug(f"{path.parts[-2][:6]}-{number}"[:40]), path, text, fields["T"]))
    for number, kind in enumerate(CLASSES):
        # O'Neill's has some twice
        found[kind] = list({candidate[0]: candidate for candidate in found[kind]}.values())
        np.random.default_rng([seed, number]).shuffle(found[kind])
    return found


def dance_kind(fields: dict[str, str], from_oneill: bool) -> str | None:
    """The class of a tune by its R: field, else by its number in O'Neill's collection."""
    if rhythm := re.sub(r"[^a-z]", "", fields.get("R", "").lower()):
        return RHYTHMS.get(rhythm)
    number = int(re.sub(r"\D", "", fields.get("X", "")) or 0)
    return next(
        (k for k, (low, high) in ONEILL_RANGES.items() if from_oneill and low <= number <= high), None
    )


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read_pieces(candidate: tuple, kind: str) -> list[dict]:
    """The pieces in one score file that are fit to be played, as plain dictionaries; none if it
    cannot be read.
    """
    name, path, *tune = candidate
    collection = path.relative_to(music21_corpus()).as_posix()
    try:
        if tune:
            pieces = [read_abc(tune[0], name, tune[1], f"{collection}#{name}")]
        else:
            pieces = read_musicxml(path, name, collection)
    except Exception:  # a handful of the transcriptions have errors that music21 refuses
        return []
    return [asdict(piece) for piece in pieces if fit(piece, kind)]


def fit(piece: Piece, kind: str) -> bool:
    """Long enough, in the range of instruments, and of several voices where the kind has them."""
    melody = [note for note in piece.notes if note[0] == 0]
    voices = len({note[0] for note in piece.notes})
    return (
        len(melody) >= 24
        and len(piece.bars) >= 8
        and piece.end >= 24
        and all(24 <= note[3] <= 103 for note in piece.notes)
        and (voices == 1 if kind not in ("chorale", "trecento", "quartet") else 2 <= voices <= 7)
    )


def read_all(root: Path, wanted: int, seed: int, jobs: int, progress: bool) -> dict[str, list[Piece]]:
    """class → its tunes in order, no tune twice; what was read is kept in `root/parsed`.

    The order of the tunes does not depend on how many are wanted, nor does the split of a tune: a
    large corpus for pre-training and the small one never disagree on what is a test tune.
    """
    lists = candidates(seed)
    tunes: dict[str, list[Piece]] = {kind: [] for kind in CLASSES}
    known = Melodies()
    done, batch = 0, ceil(wanted * 1.2)
    while any(len(tunes[kind]) < wanted and done < len(lists[kind]) for kind in CLASSES):
        # Every class goes equally far into its list, or what counts as a repetition would depend on
        # `wanted`.
        part = [(kind, c) for kind in CLASSES for c in lists[kind][done : done + batch]]
        paths = [root / "parsed" / kind / f"{c[0]}.json" for kind, c in part]
        missing = [(c, kind, path) for (kind, c), path in zip(part, paths, strict=True) if not path.exists()]
        run(read_one, missing, jobs, "scores: reading pieces", progress)
        read: dict[str, list[list[Piece]]] = {kind: [] for kind in CLASSES}
        for (kind, _), path in zip(part, paths, strict=True):
            read[kind].append([Piece(**piece) for piece in json.loads(path.read_text("utf-8"))])
        for turn in range(batch):
            for kind in CLASSES:
                for piece in read[kind][turn] if turn < len(read[kind]) else []:
                    if known.add(piece, kind):
                        tunes[kind].append(piece)
        done, batch = done + batch, max(8, wanted // 4)
    return {kind: found[:wanted] for kind, found in tunes.items()}


class Melodies:
    """Remembers tunes, to recognise the same one under another name, key or number."""

    def __init__(self) -> None:
        self.titles: set[tuple[str, str]] = set()
        self.grams: dict[tuple, list[int]] = {}
        self.sizes: list[int] = []

    def add(self, piece: Piece, kind: str) -> bool:
        """False if the tune is known: same title, or 30 % of the 6-note figures of its first 100
        notes shared.
        """
        keys = np.array([note[3] for note in piece.notes if note[0] == 0])
        steps = np.diff(keys)
        steps = steps[steps != 0][:100].tolist()
        grams = {tuple(steps[i : i + 6]) for i in range(len(steps) - 5)}
        shared: dict[int, int] = {}
        for gram in grams:
            for number in self.grams.get(gram, ()):
                shared[number] = shared.get(number, 0) + 1
        title = re.sub(r"[^a-z]|^the ", "", piece.title.lower())
        if any(count >= 0.3 * min(len(grams), self.sizes[number]) for number, count in shared.items()):
            return False
        if "#" in piece.source and title in self.titles:  # only ABC tunes have titles of their own
            return False
        self.titles.add(title)
        for gram in grams:
            self.grams.setdefault(gram, []).append(len(self.sizes))
        self.sizes.append(len(grams))
        return True


def read_one(candidate: tuple, kind: str, path: Path) -> None:
    write_text(path, json.dumps(read_pieces(candidate, kind)))


# ---------------------------------------------------------------------------------------- rendering


def render(piece: Piece, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    """One clip, [samples] float32 at `RATE`, and what was drawn for it."""
    seconds = float(rng.uniform(*SECONDS))
    notes, drawn = perform(piece, kind, seconds, rng)
    bank = soundfont.load(RATE)
    length = int(seconds * RATE)
    out = np.zeros(length, np.float32)
    for note in notes:
        start = int(note.start * RATE)
        if start < length:
            sound = bank.note(note.program, note.key, note.velocity, note.duration, note.bank)[
                : length - start
            ]
            out[start : start + len(sound)] += sound
    out = in_room(out, rng)
    out *= np.float32(1 / max(np.abs(out).max(), 1e-6))
    out += rng.standard_normal(length, np.float32) * np.float32(10 ** (rng.uniform(-85, -60) / 20))
    fade = np.linspace(0, 1, int(0.01 * RATE), dtype=np.float32)
    out[: len(fade)] *= fade
    out[-len(fade) :] *= fade[::-1]
    level = float(rng.uniform(-18, 0)) - 1  # of the peak, dB under full scale
    out *= np.float32(10 ** (level / 20) / np.abs(out).max())
    return out, drawn | {"level_db": round(level, 1), "seconds": round(length / RATE, 3)}


def in_room(dry: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds a synthetic room: noise that decays by 60 dB in 0.2 to 1.2 s, 6 to 24 dB under the
    direct sound.
    """
    seconds, wet = rng.uniform(0.2, 1.2), 10 ** (-rng.uniform(6, 24) / 20)
    t = np.arange(int(seconds * RATE), dtype=np.float32) / np.float32(RATE)
    echo = rng.standard_normal(len(t), np.float32) * np.exp(t * np.float32(-np.log(1000) / seconds))
    # walls absorb the highest frequencies
    echo = np.convolve(echo, np.ones(3, np.float32) / 3)[: len(t)]
    echo *= np.float32(wet / np.sqrt((echo**2).sum()))
    delay = int(rng.uniform(0.005, 0.02) * RATE)
    out = dry.copy()
    out[delay:] += oaconvolve(dry, echo)[: len(dry) - delay]
    return out


def clip_generator(seed: int, clip: str) -> np.random.Generator:
    """Randomness of one clip: by its name, so it depends neither on the others nor on the number of
    processes.
    """
    return np.random.default_rng([seed, zlib.crc32(clip.encode())])


def render_tune(root: Path, piece: Piece, kind: str, seed: int, takes: list[int]) -> None:
    """Audio and a small JSON with what was drawn, for the takes that are not there yet."""
    for take in takes:
        clip = clip_name(kind, piece, take)
        audio = root / "audio" / f"{clip}.mp3"
        samples, drawn = render(piece, kind, clip_generator(seed, clip))
        write_text(root / "parsed" / "clips" / f"{clip}.json", json.dumps(drawn))
        audio.parent.mkdir(parents=True, exist_ok=True)
        temporary = audio.with_name(f".{audio.name}.{os.getpid()}")
        soundfile.write(temporary, samples, RATE, format="MP3", subtype="MPEG_LAYER_III", **MP3)
        os.replace(temporary, audio)


def clip_name(kind: str, piece: Piece, take: int) -> str:
    return f"{kind}/{piece.name}-{take}"


# ----------------------------------------------------------------------------------------- building


def build(
    root: Path, clips_per_class: int = CLIPS_PER_CLASS, seed: int = 0, jobs: int = 2, progress: bool = True
) -> None:
    """Renders the corpus into `root`, or completes what an interrupted call left; a complete one
    returns at once.

    Args: root: gets `audio/<class>/<tune>-<take>.mp3`, `index.csv` (written last), `config.json`
    and `parsed/`. clips_per_class: another number than before adds what is missing. seed: decides
    tunes, splits and every clip. The same seed gives the same files, whatever `jobs`. jobs:
    processes.

    Raises:
        UserError: `root` holds a corpus of another seed or version.
    """
    root = Path(root)
    config = {"version": VERSION, "seed": seed, "clips_per_class": clips_per_class}
    if clips_per_class < 1:
        raise UserError(f"clips_per_class is {clips_per_class}: a class needs at least one clip")
    if (root / "config.json").exists():
        before = json.loads((root / "config.json").read_text("utf-8"))
        if (before["version"], before["seed"]) != (VERSION, seed):
            raise UserError(
                f"{root} holds scores version {before['version']} with seed {before['seed']}, not version {VERSION} with "
                f"seed {seed}: delete that folder or choose another"
            )
        if before == config and (root / "index.csv").exists():
            return
    (root / "index.csv").unlink(missing_ok=True)
    write_text(root / "config.json", json.dumps(config))

    tunes = read_all(root, max(MIN_TUNES, ceil(clips_per_class / CLIPS_PER_TUNE)), seed, jobs, progress)
    plan = [
        (kind, turn % len(tunes[kind]), turn // len(tunes[kind]))
        for kind in CLASSES
        for turn in range(clips_per_class)
    ]
    takes: dict[tuple[str, int], list[int]] = {}
    for kind, number, take in plan:
        if not (root / "audio" / f"{clip_name(kind, tunes[kind][number], take)}.mp3").exists():
            takes.setdefault((kind, number), []).append(take)
    work = [(root, tunes[kind][number], kind, seed, missing) for (kind, number), missing in takes.items()]
    run(render_tune, work, jobs, "scores: rendering", progress)
    write_index(root, tunes, plan)


def write_index(root: Path, tunes: dict[str, list[Piece]], plan: list[tuple[str, int, int]]) -> None:
    """`index.csv`: a row a clip; its presence says that the corpus is complete."""
    temporary = root / f".index.csv.{os.getpid()}"
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for kind, number, take in plan:
            piece = tunes[kind][number]
            clip = clip_name(kind, piece, take)
            drawn = json.loads((root / "parsed" / "clips" / f"{clip}.json").read_text("utf-8"))
            writer.writerow(
                {
                    "path": f"audio/{clip}.mp3",
                    "label": kind,
                    "group": f"{kind}/{piece.name}",
                    "split": SPLITS[number % len(SPLITS)],
                    "title": piece.title,
                    "source": piece.source,
                    **drawn,
                }
            )
    os.replace(temporary, root / "index.csv")


def run(task: Callable, arguments: list[tuple], jobs: int, text: str, progress: bool) -> None:
    """Calls `task(*a)` for all arguments in `jobs` processes, with a progress bar."""
    if not arguments:
        return
    done: Iterator = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(task)(*a) for a in arguments
    )
    for _ in tqdm(done, desc=text, total=len(arguments), disable=not progress):
        pass


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
