"""Opening a collection: a folder, a store or a known corpus, with the embeddings of its clips.

`search` and `audit` begin here. A store keeps its embeddings in its folder `embeddings`, where the next call
finds them. A folder or a corpus is prepared into a temporary store, and embedded anew each time.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from colalib.data import corpora, store
from colalib.data.store import MelStore
from colalib.evaluation.sources import Source, feature_source
from colalib.files import atomic

BLOCK = 1024  # rows in memory at a time: 16 MB of the default encoder's embeddings
NO_LENGTH = 1e-2  # of a standardised embedding, where 63 is usual: the mean itself


@dataclass
class Collection:
    """Clips with their embeddings: `table`, a row per clip; `vectors` float32 [n, d], perhaps memory-mapped.

    They are computed when they are first asked for, and kept in the folder `keep` if there is one. `audio`
    is the folder of the recordings, or None if it is gone. `note`: see `Corpus`.
    """

    store: MelStore
    features: Source
    keep: Path | None
    audio: Path | None
    note: str = ""

    @cached_property
    def vectors(self) -> np.ndarray:
        return self.features.of_store(self.store, self.keep)

    @property
    def table(self) -> pd.DataFrame:
        return self.store.clips

    @property
    def notes(self) -> list[str]:
        """What was not looked at, a line each."""
        notes = [self.note] if self.note else []
        if len(left_out := self.store.quarantine):
            path, reason = left_out.iloc[0][["path", "reason"]]
            notes.append(f"{len(left_out)} files cannot be used; the first: {path}: {reason}")
        return notes


@contextmanager
def open_collection(
    source: str | Path,
    encoder: str | Path = "default",
    accelerator: str = "auto",
    jobs: int = -1,
    progress: bool = False,
    arch: str = "b0-small",
    seed: int = 0,
) -> Iterator[Collection]:
    """Open a folder, a store or a known corpus, and embed its clips; see `evaluation.embed` for `encoder`.

    Raises `UserError` if there is no such source or encoder, or no usable clip.
    """
    features = feature_source(encoder, arch, seed, accelerator, progress)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if isinstance(source, MelStore) or store.is_store(source):
            opened = store.open_store(source)
            audio, note, keep = opened.known_audio, "", opened.path / "embeddings"
            if not os.access(keep if keep.exists() else opened.path, os.W_OK):
                keep = None  # someone else's: embedded anew each time
        else:
            corpus = corpora.load(source)
            mel = {"config": features.mel} if features.mel else {}
            opened = store.build(corpus, Path(folder) / "store", jobs=jobs, progress=progress, **mel)
            audio, note, keep = corpus.root, corpus.note, None
        yield Collection(opened, features, keep, audio, note)


@dataclass
class Scale:
    """What standardises embeddings [n, d]: `mean` and `deviation` [d], and their `lengths` [n] afterwards.

    A column that is the same in all rows is only centred, as in scikit-learn's StandardScaler.
    """

    mean: np.ndarray
    deviation: np.ndarray
    lengths: np.ndarray

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """Return standardised rows [m, d]."""
        return (rows - self.mean) / self.deviation


def scale_of(vectors: np.ndarray) -> Scale:
    """Return the scale of embeddings [n, d], read in blocks; of memory-mapped ones it is kept beside them."""
    mapped = getattr(vectors, "filename", None)
    file = mapped and Path(mapped).with_suffix(".scale.npz")
    if file and file.exists():
        # damaged: computed again
        with suppress(ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
            with np.load(file) as kept:
                return Scale(**kept)
    n = len(vectors)
    mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in blocks(vectors)) / n
    mean = mean.astype(np.float32)
    variance = sum(np.square(block - mean).sum(axis=0, dtype=np.float64) for _, block in blocks(vectors)) / n
    deviation = np.sqrt(variance).astype(np.float32)
    deviation[deviation <= 1e-6 * np.abs(mean)] = 1  # what float32 leaves of equal values
    scale = Scale(mean, deviation, np.empty(n, np.float32))
    for rows, block in blocks(vectors):
        scale.lengths[rows] = np.linalg.norm(scale.transform(block), axis=1)
    if file:
        with atomic(file) as target:
            np.savez(target, **vars(scale))
    return scale


def similarities(vectors: np.ndarray, scale: Scale, query: np.ndarray) -> np.ndarray:
    """Return the cosine similarity [n] of a standardised query [d] to all embeddings [n, d].

    The similarity with an embedding that is the mean itself, and so has no direction, is 0; that of two such
    is 1.
    """
    length = np.linalg.norm(query)
    if length < NO_LENGTH:
        return (scale.lengths < NO_LENGTH).astype(np.float32)
    weights = query / length / scale.deviation  # so that a block is centred only, and not divided
    products = [(block - scale.mean) @ weights for _, block in blocks(vectors)]
    return np.where(
        scale.lengths < NO_LENGTH, 0, np.concatenate(products) / np.maximum(scale.lengths, NO_LENGTH)
    )


def blocks(vectors: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield embeddings in blocks of bounded memory, with the rows that each holds."""
    for start in range(0, len(vectors), BLOCK):
        yield slice(start, start + BLOCK), np.asarray(vectors[start : start + BLOCK])
