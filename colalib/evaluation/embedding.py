"""`embed`: from audio to embeddings, without a store in between.

Files are decoded by several processes, and their log-mel frames are embedded as `features` does it.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs

from colalib.data import audio, corpora
from colalib.data.audio import MelConfig
from colalib.data.corpus import AUDIO, Corpus
from colalib.data.store import MelStore, is_store, log_mel_of_file, to_stored, worker_errors
from colalib.errors import UserError
from colalib.evaluation.features import EncoderSource, MelStatsSource, feature_source
from colalib.files import atomic

FILES_PER_PROCESS = 4  # decoded before they are embedded: the frames of an hour take 46 MB
NOTHING_LEFT_OUT = pd.DataFrame({"path": [], "reason": []}, dtype=str)


@dataclass
class Embedded:
    """Embeddings of audio: `vectors` float32 [n, d], and `clips`, their table with a row each.

    `clips` has the columns clip_id and path, and what else the corpus' table has. `left_out` lists path and
    reason of each clip that could not be used.
    """

    vectors: np.ndarray
    clips: pd.DataFrame
    left_out: pd.DataFrame


def embed(
    source: str | Path | list[str | Path] | tuple[np.ndarray, int],
    encoder: str | Path = "default",
    accelerator: str = "auto",
    jobs: int = -1,
    arch: str = "b0-small",
    seed: int = 0,
    progress: bool = False,
) -> Embedded:
    """Return embeddings of audio; also known as `colalib.embed`.

    `source` is a file, a list of files, a folder (as `corpora.load` reads it), a store, or
    `(samples, sample_rate)` with samples [n] or [n, channels] in [-1, 1]. `encoder` is "default", a run
    folder, "random" (of `arch` and `seed`) or "mel-stats". `jobs` processes decode files (-1: all cores).

    >>> tone = np.sin(np.arange(32_000) / 10)
    >>> embed((tone, 16_000)).vectors.shape
    (1, 3328)

    Raises `UserError` if there is no such folder or encoder, or no usable clip.
    """
    features = feature_source(encoder, arch, seed, accelerator, progress)
    if isinstance(source, str | Path) and is_store(source):
        store = MelStore(source)
        table = store.clips.drop(columns=["shard", "start", "frames"])
        return Embedded(features.of_store(store), table, store.quarantine)
    mel = features.mel or MelConfig()
    if isinstance(source, tuple):
        frames = [log_mel_of_array(*source, mel)]
        return Embedded(
            _embed(features, frames, mel), pd.DataFrame({"clip_id": ["samples"]}), NOTHING_LEFT_OUT
        )
    files = DecodedFiles(corpus_of(source), mel, jobs)
    vectors = _embed(features, files, mel, len(files.corpus.clips))
    return Embedded(vectors, files.corpus.clips[files.usable].reset_index(drop=True), files.left_out)


def _embed(features: EncoderSource | MelStatsSource, clips, mel: MelConfig, total: int = 1) -> np.ndarray:
    """Return the features of clips given as an iterable of log-mel frames [T, M]."""
    if isinstance(features, MelStatsSource):
        return features.of_clips(clips)
    calibration = None
    if features.run is None:  # a random encoder is calibrated on the clips first, so all must be in memory
        frames = list(clips)
        keep = clips.for_pretraining if isinstance(clips, DecodedFiles) else np.ones(len(frames), bool)
        calibration = FramesInMemory([f for f, k in zip(frames, keep) if k] or frames, mel)
        clips = frames
    return features.of_clips(clips, mel.silence, total, calibration)


def log_mel_of_array(samples: np.ndarray, sample_rate: int, mel: MelConfig) -> np.ndarray:
    """Return the log-mel frames [T, M] of samples [n] or [n, channels]. Raises `UserError`."""
    try:
        return to_stored(audio.log_mel(audio.from_array(samples, sample_rate, mel.sample_rate), mel))
    except audio.Unusable as error:
        raise UserError(f"the samples cannot be used: {error}") from None


def corpus_of(source: str | Path | list[str | Path]) -> Corpus:
    """Return the corpus of a folder, a file or a list of files. Raises `UserError`."""
    one = isinstance(source, str | Path)
    if one and (
        Path(source).is_dir() or (Path(source).suffix.lower() not in AUDIO and not Path(source).exists())
    ):
        return corpora.load(source)
    files = [Path(os.path.abspath(file)) for file in ([source] if one else source)]
    if not files:
        raise UserError("no files to embed")
    root = Path(os.path.commonpath([file.parent for file in files]))
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
    """Iterable over the log-mel frames [T, M] of a corpus' files, decoded by `jobs` processes.

    Files that cannot be used are passed over; `usable` [n] and `left_out` then tell which, and why. Raises
    `UserError` at the end if no file could be used.
    """

    def __init__(self, corpus: Corpus, mel: MelConfig, jobs: int):
        if jobs == 0:
            raise UserError("0 processes cannot do anything: name 1 or more, or -1 for all cores")
        self.corpus = corpus
        self.mel = mel
        self.jobs = jobs
        self.reasons: list[str] = []  # "" for a usable file

    def __iter__(self) -> Iterator[np.ndarray]:
        root = Path(os.path.abspath(self.corpus.root))
        paths = [root / path for path in self.corpus.clips["path"]]
        processes = min(effective_n_jobs(self.jobs), max(len(paths), 1))
        parallel = Parallel(n_jobs=processes)
        for start in range(0, len(paths), FILES_PER_PROCESS * processes):
            part = paths[start : start + FILES_PER_PROCESS * processes]
            with worker_errors():
                decoded = parallel(delayed(log_mel_of_file)(path, self.mel) for path in part)
            self.reasons += [reason for _, reason in decoded]
            yield from (frames for frames, _ in decoded if frames is not None)
        if not self.usable.any():
            first = "; ".join(": ".join(row) for row in self.left_out.values[:1])
            raise UserError(f"{self.corpus.root}: none of {len(paths)} clips is usable (first: {first})")

    @property
    def usable(self) -> np.ndarray:
        """Which files could be used, bool [n]."""
        return np.array([reason == "" for reason in self.reasons])

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


def embed_to_file(
    source: str | Path, encoder: str | Path, out: Path | str, accelerator: str = "auto", **options
) -> Embedded:
    """Write `embed` to an .npz file, and return it.

    The file holds clip_id, embedding float32 [n, d], and the table's other columns as fixed-width text (no
    pickle).
    """
    embedded = embed(source, encoder, accelerator, **options)
    columns = {c: np.array(embedded.clips[c].tolist(), dtype=str) for c in embedded.clips}
    with atomic(Path(out)) as file, zipfile.ZipFile(file, "w") as archive:
        # np.savez would take a column named `file` for its own argument
        for name, values in {"embedding": embedded.vectors, **columns}.items():
            name = re.sub(r"[^\w .-]", "_", name).lstrip(".")  # a column is not a path
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
    return embedded
