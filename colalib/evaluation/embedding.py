"""`embed`: from audio to embeddings, without a store in between.

Files are decoded by several processes, and their log-mel frames are embedded as `features` does it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from colalib.data import audio, corpora
from colalib.data.audio import MelConfig
from colalib.data.clips import Clips
from colalib.data.corpus import AUDIO, Corpus
from colalib.data.processes import CRASHED, crashing, number_of, worker_errors
from colalib.data.segments import SEGMENT_FRAMES
from colalib.data.store import NUMBERS, MelStore, is_store, log_mel_of_file, open_store, to_stored
from colalib.errors import UserError
from colalib.evaluation.sources import EncoderSource, ModuleSource, Source, feature_source

FILES_PER_PROCESS = 4  # decoded before they are embedded: the frames of an hour take 46 MB
NOTHING_LEFT_OUT = pd.DataFrame({"path": [], "reason": []}, dtype=str)


@dataclass
class Embedded:
    """Embeddings of audio: `vectors` float32 [n, d], and `clips`, their table with a row each.

    `clips` has the columns clip_id and path, and what else the corpus' table has; for embeddings over time
    also `start`, where the window begins, in seconds. `left_out` lists path and reason of each clip that
    could not be used, and `note` tells of other files that lie there (see `Corpus`). `root` is the folder of
    the audio, if it is known.
    """

    vectors: np.ndarray
    clips: pd.DataFrame
    left_out: pd.DataFrame
    root: Path | None = None
    note: str = ""


def embed(
    source: str | Path | MelStore | list[str | Path] | tuple[np.ndarray, int],
    encoder: str | Path = "default",
    accelerator: str = "auto",
    jobs: int = -1,
    arch: str = "b0-small",
    seed: int = 0,
    progress: bool = False,
    every: float | None = None,
) -> Embedded:
    """Return embeddings of audio; also known as `colalib.embed`.

    `source` is a file, a list of files, a folder (as `corpora.load` reads it), a store, or
    `(samples, sample_rate)` with samples [n] or [n, channels] in [-1, 1]. `encoder` is "default", a
    run folder, "random" (of `arch` and `seed`), "mel-stats", or "MODULE[:PATH]" (see
    `feature_source`). `jobs` processes decode files (-1: all cores). With `every` there is a row for each
    window of 0.98 s, one window every so many seconds, instead of one per clip.

    >>> tone = np.sin(np.arange(32_000) / 10)
    >>> embed((tone, 16_000)).vectors.shape
    (1, 4032)
    >>> embed((tone, 16_000), every=0.5).clips["start"].tolist()
    [0.0, 0.5, 1.0]

    Raises `UserError` if there is no such folder or encoder, or no usable clip.
    """
    features = feature_source(encoder, arch, seed, accelerator, progress)
    if isinstance(source, MelStore) or (isinstance(source, str | Path) and is_store(source)):
        store = open_store(source)
        windows = Windows(features, store.mel, every)
        table = store.clips.drop(columns=NUMBERS)
        vectors = windows.of_store(store) if every else features.of_store(store)
        return Embedded(vectors, windows.rows(table), store.quarantine, store.known_audio)
    mel = features.mel or MelConfig()
    windows = Windows(features, mel, every)
    if isinstance(source, tuple) and source and not isinstance(source[0], str | Path):
        vectors = _embed_samples(features, *source, mel, windows)
        return Embedded(vectors, windows.rows(pd.DataFrame({"clip_id": ["samples"]})), NOTHING_LEFT_OUT)
    files = DecodedFiles(corpus_of(source), decoder(features, mel), jobs)
    vectors = _embed(features, files, mel, windows, len(files.corpus.clips))
    clips = files.corpus.clips[files.usable].reset_index(drop=True)
    return Embedded(vectors, windows.rows(clips), files.left_out, files.corpus.root, files.corpus.note)


def _embed(features: Source, clips, mel: MelConfig, windows: Windows, total: int = 1) -> np.ndarray:
    """Return the features of clips given as an iterable of what the source takes: see its `of_clips`."""
    if not isinstance(features, EncoderSource):
        return features.of_clips(windows.cut(clips), windows.total(total))
    calibration = None
    if features.run is None:  # a random encoder is calibrated on the clips first, so all must be in memory
        frames = list(clips)
        keep = clips.for_pretraining if isinstance(clips, DecodedFiles) else np.ones(len(frames), bool)
        calibration = FramesInMemory([f for f, k in zip(frames, keep) if k] or frames, mel)
        clips = frames
    return features.of_clips(windows.cut(clips), mel, windows.total(total), calibration)


def _embed_samples(
    features: Source, samples: np.ndarray, sample_rate: int, mel: MelConfig, windows: Windows
) -> np.ndarray:
    """Return the features [1, d] of samples [n] or [n, channels]. Raises `UserError`."""
    waves = isinstance(features, ModuleSource)
    try:
        wave = audio.from_array(samples, sample_rate, features.sample_rate if waves else mel.sample_rate)
        return _embed(features, [wave if waves else to_stored(audio.log_mel(wave, mel))], mel, windows)
    except audio.Unusable as error:
        raise UserError(f"the samples cannot be used: {error}") from None


class Windows:
    """Windows of one segment (0.98 s) every so many seconds, which are embedded as clips of their own.

    `every` None leaves clips whole. Where a clip would have more than `most`, they lie further apart. What is
    left over at the end of a clip is not used; a shorter clip is one window. A window that is embedded lies
    in the same space as whole clips. Raises `UserError` for an `every` below the 10 ms between frames or
    above a million seconds.
    """

    def __init__(self, features: Source, mel: MelConfig, every: float | None, most: int | None = None):
        self.features = features
        self.every = every
        waves = isinstance(features, ModuleSource)
        self.rate = features.sample_rate if waves else mel.sample_rate / mel.hop  # samples or frames per s
        self.size = round(mel.seconds(SEGMENT_FRAMES) * self.rate)
        if every is not None and not mel.hop / mel.sample_rate <= every <= 1e6:
            raise UserError(
                f"a window every {every:g} s: choose {mel.hop / mel.sample_rate:g} to 1,000,000 seconds"
            )
        self.hop = every and max(round(every * self.rate), 1)
        self.most = most
        self.starts: list[np.ndarray] = []  # per clip, in seconds

    def cut(self, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the windows of clips [T, …]: whole clips without `every`."""
        if not self.every:
            yield from clips
            return
        for clip in clips:
            hop = max(self.hop, len(clip) // self.most) if self.most else self.hop
            starts = np.arange(0, max(len(clip) - self.size, 0) + 1, hop)
            self.starts.append(starts / self.rate)
            yield from (clip[start : start + self.size] for start in starts)

    def of_store(self, store: MelStore, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the features [windows, d] of the clips of a store, or of those in `rows`, in their order."""
        rows = np.arange(len(store)) if rows is None else rows
        if isinstance(self.features, ModuleSource):
            clips = self.features.waves(store, rows)
        else:
            clips = Clips.of_store(store).take(rows)
        return embed_clips(self.features, self.cut(clips), store)

    def total(self, clips: int) -> int | None:
        """Return how many rows there will be, if that is known."""
        return None if self.every else clips

    def rows(self, clips: pd.DataFrame) -> pd.DataFrame:
        """Return the table of windows for a table of clips."""
        if not self.every:
            return clips
        table = clips.loc[clips.index.repeat([len(starts) for starts in self.starts])]
        table.insert(1, "start", np.concatenate(self.starts))
        return table.reset_index(drop=True)


def embed_clips(features: Source, clips: Iterable[np.ndarray], store: MelStore) -> np.ndarray:
    """Return the features [n, d] of any clips (frames or samples, as the source takes them).

    They lie in the space of the store's clips: a random encoder is calibrated on these.
    """
    if not isinstance(features, EncoderSource):
        return features.of_clips(clips)
    features.check_mel(store)
    return features.of_clips(clips, store.mel, calibration=features.calibration(store))


def decoder(features: Source, mel: MelConfig) -> Callable[[Path], tuple]:
    """Return what decodes a file for a source: to log-mel frames or samples and "", or None and a reason."""
    if isinstance(features, ModuleSource):
        return partial(wave_of_file, sample_rate=features.sample_rate)
    return partial(log_mel_of_file, config=mel)


def wave_of_file(path: Path, sample_rate: int) -> tuple[np.ndarray | None, str]:
    """Return the samples [n] of a file and "", or None and the reason why it cannot be used."""
    try:
        return audio.load_audio(path, sample_rate), ""
    except audio.Unusable as error:
        return None, str(error)


def corpus_of(source: str | Path | list[str | Path]) -> Corpus:
    """Return the corpus of a folder, a file or several files. Raises `UserError`."""
    one = isinstance(source, str | Path)
    if one and (
        Path(source).is_dir() or (Path(source).suffix.lower() not in AUDIO and not Path(source).exists())
    ):
        return corpora.load(source)
    files = [Path(os.path.abspath(file)) for file in ([source] if one else source)]
    if not files:
        raise UserError("no files to embed")
    try:
        root = Path(os.path.commonpath([file.parent for file in files]))
    except ValueError:  # Windows
        raise UserError("the files lie on several drives: embed those of each drive by themselves") from None
    return Corpus(
        "files", root, pd.DataFrame({"path": [file.relative_to(root).as_posix() for file in files]})
    )


@dataclass
class FramesInMemory:
    """Clips whose log-mel frames [T, M] are in memory: as much of `Clips` as calibration needs."""

    all_frames: list[np.ndarray]
    mel: MelConfig

    def __len__(self) -> int:
        return len(self.all_frames)

    def frames(self, i: int) -> np.ndarray:
        return self.all_frames[i]


class DecodedFiles:
    """Iterable over the files of a corpus, decoded by `jobs` processes: log-mel frames [T, M] or samples [n].

    `decode` returns these for a path and "", or None and a reason. Files that cannot be used are
    passed over; `usable` [n] and `left_out` then tell which, and why. Raises `UserError` at the end
    if no file could be used.
    """

    def __init__(self, corpus: Corpus, decode: Callable[[Path], tuple], jobs: int):
        self.processes = number_of(jobs, len(corpus.clips))
        self.corpus = corpus
        self.decode = decode
        self.reasons: list[str] = []  # "" for a usable file

    def __iter__(self) -> Iterator[np.ndarray]:
        root = Path(os.path.abspath(self.corpus.root))
        paths = [root / path for path in self.corpus.clips["path"]]
        parallel = Parallel(n_jobs=self.processes)
        for start in range(0, len(paths), FILES_PER_PROCESS * self.processes):
            part = paths[start : start + FILES_PER_PROCESS * self.processes]
            with worker_errors():
                decoded = self.decode_all(part, parallel)
            self.reasons += [reason for _, reason in decoded]
            yield from (frames for frames, _ in decoded if frames is not None)
        if not self.usable.any():
            first = "; ".join(": ".join(row) for row in self.left_out.values[:1])
            raise UserError(f"{self.corpus.root}: none of {len(paths)} clips is usable (first: {first})")

    def decode_all(self, paths: list[Path], parallel: Parallel) -> list[tuple]:
        """Return what `decode` says of each file; those that crash the decoder cannot be used."""
        crashed: set[Path] = set()
        while True:
            others = [path for path in paths if path not in crashed]
            try:
                decoded = iter(parallel(delayed(self.decode)(path) for path in others))
                return [(None, CRASHED) if path in crashed else next(decoded) for path in paths]
            except BrokenProcessPool:
                found = set(crashing(others))
                if not found:
                    raise
                crashed |= found

    @property
    def usable(self) -> np.ndarray:
        """Which files could be used, bool [n]."""
        return np.array([reason == "" for reason in self.reasons], dtype=bool)

    @property
    def for_pretraining(self) -> np.ndarray:
        """Which of the usable files pre-training could see: those that are not on the test side."""
        return self.corpus.clips["split"][self.usable].values != "test"

    @property
    def left_out(self) -> pd.DataFrame:
        """Path and reason of each file that could not be used."""
        reasons = pd.Series(self.reasons, dtype=str)
        table = pd.DataFrame({"path": self.corpus.clips["path"], "reason": reasons})[~self.usable]
        return pd.concat([table, self.corpus.excluded], ignore_index=True)
