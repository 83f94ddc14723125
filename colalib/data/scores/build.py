"""The demo corpus: eight kinds of music, real scores played on sampled instruments.

Scores come from music21's bundled corpus (`reading`), sounds from the SoundFont inside pretty_midi
(`soundfont`). Both come with the packages, so nothing is downloaded. `build` plans the clips, has
them rendered, and writes audio files and the `index.csv` that `colalib.data.corpora.load` reads.

Every class is played by every instrument family, though two of them play it more often. Levels,
rooms and lengths are drawn alike for all classes. What tells classes apart is rhythm, texture and
harmony.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable
from itertools import zip_longest
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from joblib import delayed
from tqdm.auto import tqdm

from colalib.data.processes import number_of, parallel, worker_errors
from colalib.data.scores import CLIPS_PER_CLASS, reading
from colalib.data.scores.reading import CLASSES, Piece
from colalib.data.scores.rendering import RATE, render
from colalib.errors import UserError
from colalib.files import atomic, locked, read_json, write_json

VERSION = 1  # of what a clip sounds like: raise it when rendering changes
CLIPS_PER_TUNE = 3  # a class has as many tunes as that takes, or all there are
# Tunes go to these by turns: 70 % train, 10 % valid, 20 % test.
SPLITS = ("train", "train", "test", "train", "train", "valid", "train", "train", "test", "train")
MIN_TUNES = len(SPLITS)  # a small corpus, too, has tunes in every split
AUDIO = "audio/{}.mp3"  # a clip's file
DRAWN = "parsed/clips/{}.json"  # what was drawn for it
COLUMNS = (
    "path", "label", "group", "split", "family", "metre", "title", "source",
    "program", "programs", "tempo", "key_shift", "accompaniment", "drums", "level_db", "seconds",
)  # fmt: skip
# Measured: a clip takes 50 kB as MP3, 180 kB as FLAC, which is written faster. Ogg files differ at
# each writing, by a random serial number. Compression 0 sounds best, 1 takes least.
MP3 = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.2}


class Clip(NamedTuple):
    """One clip of the corpus, as planned."""

    name: str  # class/tune-take: the file's name, and what its random numbers depend on
    kind: str
    piece: Piece
    split: str


def build(
    root: Path, clips_per_class: int = CLIPS_PER_CLASS, seed: int = 0, jobs: int = 2, progress: bool = True
) -> None:
    """Render the corpus into `root`, or complete an interrupted one; a complete one stays as it is.

    Args:
        root: gets `audio/<class>/<tune>-<take>.mp3`, `config.json`, `parsed/`, and at last
            `index.csv`.
        clips_per_class: another number than before adds what is missing.
        seed: decides tunes, splits and every clip. The same seed gives the same files, whatever
            `jobs`.
        jobs: number of processes.

    Raises:
        UserError: `root` holds a corpus of another seed or version, or something else.
    """
    root = Path(root)
    if clips_per_class < 1:
        raise UserError(f"clips_per_class is {clips_per_class}: a class needs at least one clip")
    number_of(jobs, 1)  # 0 is refused before anything is written
    config = {"version": VERSION, "seed": seed, "clips_per_class": clips_per_class}
    if is_complete(root, config):
        return  # needs neither a lock nor the right to write
    with locked(root):
        if is_complete(root, config):  # another process was here
            return
        (root / "index.csv").unlink(missing_ok=True)
        write_json(root / "config.json", config)
        add_missing(root, clips_per_class, seed, jobs, progress)


def is_complete(root: Path, config: dict) -> bool:
    """Return whether the corpus is there as `config` describes it.

    Raises `UserError` if the folder holds a corpus of another seed or version, or something that was not
    made here.
    """
    if not root.exists() or all(path.match(".config.json.*.part") for path in root.iterdir()):
        return False
    before = read_json(root / "config.json", "a rendered corpus, so its files are left alone")
    if before.keys() != config.keys():
        raise UserError(
            f"{root} is not a rendered corpus, so its files are left alone: choose another --data"
        )
    if (before["version"], before["seed"]) != (config["version"], config["seed"]):
        raise UserError(
            f"{root} holds scores version {before['version']} with seed {before['seed']}, not version "
            f"{config['version']} with seed {config['seed']}: choose another folder with --data"
        )
    return before == config and (root / "index.csv").exists()


def add_missing(root: Path, clips_per_class: int, seed: int, jobs: int, progress: bool) -> None:
    """Render the clips that are missing, and write index.csv."""

    tunes = read_tunes(root, max(MIN_TUNES, ceil(clips_per_class / CLIPS_PER_TUNE)), seed, jobs, progress)
    clips = plan_clips(tunes, clips_per_class)
    missing = [(root, clip, seed) for clip in clips if not (root / AUDIO.format(clip.name)).exists()]
    run(render_clip, missing, jobs, "scores: rendering", progress)
    write_index(root, clips)


def read_tunes(root: Path, wanted: int, seed: int, jobs: int, progress: bool) -> dict[str, list[Piece]]:
    """Return up to `wanted` tunes of each class, no tune twice.

    What was read is stored in `root/parsed` for the next call. The order of the tunes does not
    depend on how many are wanted, nor does the split of a tune. So a large corpus for pre-training
    and the small one never disagree on what is a test tune.
    """
    lists = reading.candidates(seed)
    tunes: dict[str, list[Piece]] = {kind: [] for kind in CLASSES}
    melodies = reading.Melodies()
    start = 0
    size = ceil(wanted * 1.2)  # mostly enough: some cannot be read, are not fit or are there already
    while any(len(tunes[kind]) < wanted and start < len(lists[kind]) for kind in CLASSES):
        # Every class goes equally far into its list, one candidate by turns. Otherwise what counts
        # as a repetition would depend on `wanted`.
        turns = zip_longest(*(lists[kind][start : start + size] for kind in CLASSES))
        batch = [
            (candidate, kind, root / "parsed" / kind / f"{candidate.name}.json")
            for turn in turns
            for kind, candidate in zip(CLASSES, turn, strict=True)
            if candidate
        ]
        missing = [arguments for arguments in batch if not arguments[-1].exists()]
        run(parse, missing, jobs, "scores: reading pieces", progress)
        for _, kind, path in batch:
            for piece in load_pieces(path):
                if melodies.add(piece):
                    tunes[kind].append(piece)
        start += size
        size = max(8, wanted // 4)  # a few more, but enough for all processes
    return {kind: pieces[:wanted] for kind, pieces in tunes.items()}


def parse(candidate: reading.Candidate, kind: str, path: Path) -> None:
    """Read one score and write its pieces to `path`, an empty list if there are none to play."""
    pieces = reading.read_pieces(candidate, kind)
    with atomic(path, "w") as file:
        file.write(json.dumps([vars(piece) for piece in pieces]))


def load_pieces(path: Path) -> list[Piece]:
    """Return the pieces that `parse` wrote."""
    pieces = [Piece(**fields) for fields in json.loads(path.read_text("utf-8"))]
    for piece in pieces:
        piece.notes = [reading.WrittenNote(*note) for note in piece.notes]
    return pieces


def plan_clips(tunes: dict[str, list[Piece]], clips_per_class: int) -> list[Clip]:
    """Return the clips of all classes: a take of each tune, then a second take of each, and so on."""
    clips = []
    for kind, pieces in tunes.items():
        for turn in range(clips_per_class):
            take, number = divmod(turn, len(pieces))
            name = f"{kind}/{pieces[number].name}-{take}"
            clips.append(Clip(name, kind, pieces[number], SPLITS[number % len(SPLITS)]))
    return clips


def render_clip(root: Path, clip: Clip, seed: int) -> None:
    """Write a clip's audio, and a small JSON file with what was drawn for it."""
    # By the clip's name, so the random numbers depend neither on other clips nor on `jobs`.
    rng = np.random.default_rng([seed, zlib.crc32(clip.name.encode())])
    samples, drawn = render(clip.piece, clip.kind, rng)
    write_json(root / DRAWN.format(clip.name), drawn)
    # The audio comes last: where it is, the clip is complete.
    with atomic(root / AUDIO.format(clip.name)) as file:
        soundfile.write(file, samples, RATE, **MP3)


def write_index(root: Path, clips: list[Clip]) -> None:
    """Write `index.csv`, one row per clip; its presence says that the corpus is complete."""
    with atomic(root / "index.csv", "w") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for clip in clips:
            row = {
                "path": AUDIO.format(clip.name),
                "label": clip.kind,
                "group": f"{clip.kind}/{clip.piece.name}",
                "split": clip.split,
                "title": clip.piece.title,
                "source": clip.piece.source,
            }
            writer.writerow(row | json.loads((root / DRAWN.format(clip.name)).read_text("utf-8")))


def run(task: Callable, arguments: list[tuple], jobs: int, text: str, progress: bool) -> None:
    """Call `task(*a)` for each `a` of `arguments` in `jobs` processes, with a progress bar."""
    if not arguments:
        return  # not even a bar
    results = parallel(jobs, len(arguments))(delayed(task)(*a) for a in arguments)
    with worker_errors():
        for _ in tqdm(results, desc=text, total=len(arguments), disable=not progress):
            pass
