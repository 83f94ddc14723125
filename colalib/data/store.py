"""MelStore: the log-mel frames of a whole corpus in one folder, memory-mapped.

`build` fills it from a corpus in parallel (decode, mel, float16 shards) and lists what it could not
use; `MelStore` opens it for `segments` and `evaluation` at a cost that does not depend on its size.

    clips.csv        a row a clip: shard, start, frames, and the corpus' columns; written last: it marks a complete store
    frames-00000.npy float16 [frames, n_mels] of consecutive clips
    quarantine.csv   path, reason of every clip that is not in the store
    config.json      corpus, MelConfig, fingerprint of the clip table, versions
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import os
import threading
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from colalib.data import audio
from colalib.data.audio import MelConfig
from colalib.data.corpus import SUPERSET_OF, Corpus
from colalib.errors import UserError
from colalib.files import atomic, fingerprint, locked, read_json, write_json

FORMAT = 1


def build(
    corpus: Corpus, out: Path | str, config: MelConfig = MelConfig(), jobs: int = -1, progress: bool = True
) -> MelStore:
    """Turn every clip of `corpus` into log-mel frames under `out`; go on where an interrupted build
    stopped.

    `jobs` processes share the shards (-1: all cores); inside `backend(...)`, or any
    `joblib.parallel_config`, threads or the machines of a cluster. The result does not depend on
    that or on interruptions, byte for byte. Clips that cannot be used go to quarantine.csv with the
    reason.

    A finished store is opened as it is: audio that was replaced since under the same name is not
    read again.

    Raises `UserError` if `out` was made from other clips or with other mel settings, or if no clip
    is usable.
    """
    out = Path(os.path.abspath(out))  # the machines of a cluster may stand in other folders
    if corpus.clips.empty:
        raise UserError(f"{corpus.root}: no clips there that belong to {corpus.name}")
    if jobs == 0:
        raise UserError("0 processes cannot do anything: name 1 or more, or -1 for all cores")
    table = fingerprint(corpus.clips.to_csv(index=False).splitlines())
    wanted = {
        "store format": FORMAT,
        "corpus": corpus.name,
        "table of clips": table,
        "mel": dataclasses.asdict(config),
    }
    if (out / "config.json").exists():
        made = read_json(out / "config.json", "a store")
        for key in wanted:
            if made.get(key) != wanted[key]:
                raise UserError(f"{out} was made with another {key}: choose another --out, or delete it")
    elif out.exists() and not set(out.iterdir()) <= set(out.glob(".*.part")):
        raise UserError(f"{out} is not a store and not empty: choose another --out")
    else:
        versions = {p: importlib.metadata.version(p) for p in ("librosa", "numpy", "soundfile", "soxr")}
        write_json(out / "config.json", wanted | {"versions": versions})
    with locked(out):
        if not (out / "clips.csv").exists():
            _fill(corpus, out, config, jobs, progress)
        for left in [*out.glob("rows-*.csv"), *out.glob(".*.part")]:
            left.unlink(missing_ok=True)
    return MelStore(out)


def _fill(corpus: Corpus, out: Path, config: MelConfig, jobs: int, progress: bool) -> None:
    n = len(corpus.clips)
    size = max(16, -(-n // 1000))  # clips a shard: small enough to share the work, few enough files
    shards = range(0, n, size)
    root = Path(os.path.abspath(corpus.root))
    paths = [root / path for path in corpus.clips["path"]]
    todo = [s for s in range(len(shards)) if len(_rows(out, s)) != min(size, n - shards[s])]
    workers = min(joblib.effective_n_jobs(jobs), max(len(todo), 1))
    try:
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    except ValueError:  # a backend that gives all results at the end
        parallel = joblib.Parallel(n_jobs=workers)
    work = (joblib.delayed(_write_shard)(paths[shards[s] : shards[s] + size], out, s, config) for s in todo)
    with tqdm(
        total=n,
        initial=n - sum(min(size, n - shards[s]) for s in todo),
        desc=f"prepare {corpus.name}",
        unit="clip",
        disable=not progress,
    ) as bar:
        with worker_errors():
            for done in parallel(work):
                bar.update(done)
    parts = [_rows(out, s) for s in range(len(shards))]
    if any(part.empty for part in parts):
        raise UserError(
            f"parts of the store were not written to {out}: do all machines see that folder? call again"
        )
    rows = pd.concat(parts, ignore_index=True)
    usable = (rows["reason"] == "").values
    quarantine = pd.DataFrame(
        {"path": corpus.clips["path"][~usable].values, "reason": rows["reason"][~usable].values}
    )
    quarantine = pd.concat([quarantine, corpus.excluded], ignore_index=True)
    with atomic(out / "quarantine.csv", "w") as file:
        quarantine.to_csv(file, index=False)
    if not usable.any():
        first = f"{quarantine['path'].iloc[0]}: {quarantine['reason'].iloc[0]}"
        raise UserError(
            f"{corpus.root}: none of {n} clips is usable (first: {first}); all reasons are in {out / 'quarantine.csv'}"
        )
    clips = pd.concat([rows[["shard", "start", "frames"]], corpus.clips], axis=1)[usable]
    with atomic(out / "clips.csv", "w") as file:
        clips.to_csv(file, index=False)


def _rows_file(out: Path, shard: int) -> Path:
    return out / f"rows-{shard:05d}.csv"


def _rows(out: Path, shard: int) -> pd.DataFrame:
    """What is known of a shard's clips: nothing if its file is not there, or damaged."""
    try:
        return pd.read_csv(_rows_file(out, shard), keep_default_na=False, dtype={"reason": str})
    except (FileNotFoundError, ValueError):  # pandas' own errors are ValueErrors
        return pd.DataFrame()


@contextmanager
def backend(name: str | None = None, scheduler: str | None = None):
    """Where `build` does its work: joblib's "loky" (processes, as usual) or "threading"; or "dask",
    a cluster by the address of its scheduler, whose machines see the corpus and the store under the
    same paths. Raises `UserError`."""
    if (name == "dask") != (scheduler is not None):
        raise UserError("a cluster needs both: --backend dask --scheduler ADDRESS")
    if name != "dask":
        with joblib.parallel_config(name) if name else nullcontext():
            yield
        return
    if not find_spec("distributed"):
        raise UserError("Dask is not installed: pip install distributed")
    from distributed import Client

    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise UserError(f"no Dask scheduler at {scheduler}: {str(error).splitlines()[0]}") from None
    with client, joblib.parallel_config("dask"):
        yield


@contextmanager
def _silent_decoder():
    """libmpg123 writes its own remarks on damaged MP3s to the process' standard error; the
    quarantine says it better. (In a thread among others the descriptor is not ours to change.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def to_stored(frames: np.ndarray) -> np.ndarray:
    """Return log-mel frames as a store keeps them: float16, off by at most 0.004, one frame after
    the other in memory.
    """
    return np.ascontiguousarray(frames, dtype="<f2")


def log_mel_of_file(path: Path, config: MelConfig) -> tuple[np.ndarray | None, str]:
    """Return the log-mel frames of a file as a store keeps them, float16 [T, M], or None and the
    reason.
    """
    try:
        with _silent_decoder():
            blocks = audio.log_mel_stream(audio.stream(path, config.sample_rate), config)
            return np.concatenate([to_stored(frames) for frames in blocks]), ""
    except audio.Unusable as error:
        return None, str(error)


@contextmanager
def worker_errors():
    """Turn the death of a worker process into a `UserError`."""
    try:
        yield
    except Exception as error:
        # of Dask
        if isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker":
            raise UserError(
                "a worker process died (out of memory, or a file crashed the decoder): "
                "run the command again, perhaps with fewer --jobs"
            ) from None
        raise


def _write_shard(paths: list[Path], out: Path, shard: int, config: MelConfig) -> int:
    """Compute one shard and the rows that describe it; the rows, written last, mark it as done."""
    rows, start = [], 0
    header = io.BytesIO()  # numpy leaves room in the header for the final number of frames
    with _silent_decoder(), atomic(out / f"frames-{shard:05d}.npy") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f2", "fortran_order": False, "shape": (0, config.n_mels)}
        )
        for path in paths:
            begin, n = file.tell(), 0
            try:
                # [frames, n_mels]
                for frames in audio.log_mel_stream(audio.stream(path, config.sample_rate), config):
                    file.write(to_stored(frames).tobytes())
                    n += len(frames)
                rows.append((shard, start, n, ""))
                start += n
            except audio.Unusable as error:
                file.seek(begin)
                file.truncate()
                rows.append((shard, 0, 0, str(error)))
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f2", "fortran_order": False, "shape": (start, config.n_mels)}
        )
        file.seek(0)
        file.write(header.getvalue())
    with atomic(_rows_file(out, shard), "w") as file:
        pd.DataFrame(rows, columns=["shard", "start", "frames", "reason"]).to_csv(file, index=False)
    return len(paths)


class MelStore:
    """A complete store. `clips` is its table (text columns, but shard, start and frames are
    numbers), `mel` its MelConfig, `name` its corpus, `quarantine` what was left out. Raises
    `UserError` when the folder is no complete store."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        config = read_json(self.path / "config.json", "a store (made by prepare)")
        if "mel" not in config:
            raise UserError(f"{self.path} is not a store (made by prepare)")
        if not (self.path / "clips.csv").exists():
            raise UserError(f"{self.path} is not finished: call prepare again, it goes on where it stopped")
        numbers = {"shard": np.int64, "start": np.int64, "frames": np.int64}
        try:
            self.name: str = config["corpus"]
            self.mel = MelConfig(**config["mel"])
            self.clips = pd.read_csv(self.path / "clips.csv", dtype=str, keep_default_na=False).astype(
                numbers
            )
            self.quarantine = pd.read_csv(self.path / "quarantine.csv", dtype=str, keep_default_na=False)
            self.id_prefix = SUPERSET_OF.get(self.name, self.name)
            # corpus and clip
            self.ids = np.array([f"{self.id_prefix}/{clip}" for clip in self.clips["clip_id"]])
            self._where = self.clips[["shard", "start", "frames"]].values
            self.clips.iloc[0]  # there is one
        except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
            what = f"{type(error).__name__} {error}".splitlines()[0]
            raise UserError(f"{self.path}: damaged ({what}): delete it and prepare it again") from None
        self._shard = lru_cache(maxsize=None)(self._open)

    def __len__(self) -> int:
        return len(self.clips)

    def _open(self, shard: int) -> np.ndarray:
        path = self.path / f"frames-{shard:05d}.npy"
        try:
            # a plain view of the map: slices faster than np.memmap
            return np.asarray(np.load(path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: damaged or missing ({error}): delete {self.path} and prepare it again"
            ) from None

    def frames(self, clip: int) -> np.ndarray:
        """Log-mel frames of clip number `clip`, float16 [frames, n_mels]: a view of the map, read
        when used.
        """
        shard, start, frames = self._where[clip]
        found = self._shard(int(shard))[start : start + frames]
        if len(found) < frames:
            raise UserError(
                f"{self.path}: frames-{shard:05d}.npy is too short: delete the store and prepare it again"
            )
        return found


def open_store(store: MelStore | Path | str) -> MelStore:
    """Return a store, or the store at a path."""
    return store if isinstance(store, MelStore) else MelStore(store)
