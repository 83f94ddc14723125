"""MelStore: the log-mel frames of a whole corpus in one folder, memory-mapped.

`build` fills it from a corpus in parallel and lists what it could not use. `MelStore` opens it, for
`clips`, `training` and `evaluation`, at a cost that does not depend on its size.

    config.json       corpus, MelConfig, fingerprint of the table of clips, versions
    frames-00000.npy  a shard: float16 [frames, n_mels] of consecutive clips
    rows-00000.csv    which clips a shard holds; only while the store is not complete
    quarantine.csv    path and reason of every clip that is not in the store
    clips.csv         one row per clip: shard, start, frames, and the corpus' columns;
                      written last, it marks a complete store
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import joblib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from colalib.data import audio
from colalib.data.audio import MelConfig
from colalib.data.corpus import SUPERSET_OF, Corpus
from colalib.errors import UserError
from colalib.files import atomic, fingerprint, locked, read_json, write_json

FORMAT = 1  # of the files in a store
PACKAGES = ("librosa", "numpy", "soundfile", "soxr")  # whose versions a store notes
NUMBERS = ["shard", "start", "frames"]  # where the frames of a clip lie; the other columns are text

# --------------------------------------------------------------------------- the form of the shards


def shard_size(clips: int) -> int:
    """Return the clips per shard: at least 16, so that a shard is worth a process, and at most
    1,000 shards.
    """
    return max(16, -(-clips // 1000))


def shard_path(store: Path, shard: int) -> Path:
    """Return the file of a shard."""
    return store / f"frames-{shard:05d}.npy"


def write_shard_header(file: BinaryIO, frames: int, n_mels: int) -> None:
    """Write the .npy header of a shard. It has the same length for any number of frames."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f2", "fortran_order": False, "shape": (frames, n_mels)}
    )


def to_stored(frames: np.ndarray) -> np.ndarray:
    """Return log-mel frames as a store keeps them: float16 (off by at most 0.004), C order."""
    return np.ascontiguousarray(frames, dtype="<f2")


# ----------------------------------------------------------------------------------------- building


def build(
    corpus: Corpus, out: Path | str, config: MelConfig = MelConfig(), jobs: int = -1, progress: bool = True
) -> MelStore:
    """Write the log-mel frames of every clip of `corpus` to `out`; return the store.

    An interrupted build is continued. A complete store is opened as it is, even if audio files have
    changed since. `jobs` processes share the shards (-1: all cores). Inside `backend(...)`, or any
    `joblib.parallel_config`, these are threads or the machines of a cluster. The bytes on disk
    depend neither on that nor on interruptions. Clips that cannot be used are listed in
    quarantine.csv with the reason.

    Raises `UserError` if `out` was made from other clips or with other mel settings, or if no clip
    is usable.
    """
    # absolute: the machines of a cluster may have other working folders
    out = Path(os.path.abspath(out))
    if corpus.clips.empty:
        raise UserError(f"{corpus.root}: no clips there that belong to {corpus.name}")
    if jobs == 0:
        raise UserError("0 processes cannot do anything: name 1 or more, or -1 for all cores")
    _write_or_check_config(corpus, out, config)
    with locked(out):
        if not (out / "clips.csv").exists():
            _fill(corpus, out, config, jobs, progress)
        for leftover in [*out.glob("rows-*.csv"), *out.glob(".*.part")]:
            leftover.unlink(missing_ok=True)
    return MelStore(out)


def _write_or_check_config(corpus: Corpus, out: Path, config: MelConfig) -> None:
    """Write config.json of a new store; of an old one, check that it was made from the same."""
    content = {
        "store format": FORMAT,
        "corpus": corpus.name,
        "table of clips": fingerprint(corpus.clips.to_csv(index=False).splitlines()),
        "mel": dataclasses.asdict(config),
    }
    if (out / "config.json").exists():
        existing = read_json(out / "config.json", "a store")
        for key, value in content.items():
            if existing.get(key) != value:
                raise UserError(f"{out} was made with another {key}: choose another --out, or delete it")
        return
    # .*.part: all that a killed process may leave before config.json
    if out.exists() and not set(out.iterdir()) <= set(out.glob(".*.part")):
        raise UserError(f"{out} is not a store and not empty: choose another --out")
    content["versions"] = {package: importlib.metadata.version(package) for package in PACKAGES}
    write_json(out / "config.json", content)


def _fill(corpus: Corpus, out: Path, config: MelConfig, jobs: int, progress: bool) -> None:
    """Write the shards that are missing, then quarantine.csv and clips.csv."""
    # consecutive clips share a shard
    root = Path(os.path.abspath(corpus.root))
    paths = [root / path for path in corpus.clips["path"]]
    size = shard_size(len(paths))
    shards = [paths[start : start + size] for start in range(0, len(paths), size)]

    # compute those that an interrupted build did not finish
    todo = [s for s in range(len(shards)) if len(_read_rows(out, s)) != len(shards[s])]
    workers = min(joblib.effective_n_jobs(jobs), max(len(todo), 1))
    try:
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    except ValueError:  # a backend that returns all results at the end
        parallel = joblib.Parallel(n_jobs=workers)
    tasks = (joblib.delayed(_write_shard)(shards[s], out, s, config) for s in todo)
    done = len(paths) - sum(len(shards[s]) for s in todo)
    bar = tqdm(
        total=len(paths), initial=done, desc=f"prepare {corpus.name}", unit="clip", disable=not progress
    )
    with bar, worker_errors():
        for clips in parallel(tasks):
            bar.update(clips)

    # other machines may have written elsewhere
    parts = [_read_rows(out, s) for s in range(len(shards))]
    if any(part.empty for part in parts):
        raise UserError(
            f"parts of the store are missing in {out}: do all machines see that folder? Run the command again"
        )
    _write_tables(corpus, out, pd.concat(parts, ignore_index=True))


def _write_tables(corpus: Corpus, out: Path, rows: pd.DataFrame) -> None:
    """Write quarantine.csv and clips.csv, from one row per clip: shard, start, frames and reason."""
    usable = (rows["reason"] == "").values
    quarantine = pd.DataFrame({"path": corpus.clips["path"], "reason": rows["reason"]})[~usable]
    quarantine = pd.concat([quarantine, corpus.excluded], ignore_index=True)
    with atomic(out / "quarantine.csv", "w") as file:
        quarantine.to_csv(file, index=False)
    if not usable.any():
        first = ": ".join(quarantine.iloc[0])
        raise UserError(
            f"{corpus.root}: none of {len(rows)} clips is usable (first: {first}); "
            f"all reasons are in {out / 'quarantine.csv'}"
        )
    clips = pd.concat([rows[["shard", "start", "frames"]], corpus.clips], axis=1)[usable]
    with atomic(out / "clips.csv", "w") as file:
        clips.to_csv(file, index=False)


def _write_shard(paths: list[Path], out: Path, shard: int, config: MelConfig) -> int:
    """Write one shard, and then its rows, which mark it as finished; return the number of clips."""
    rows = []
    start = 0  # of the next clip, in frames
    with _silent_decoder(), atomic(shard_path(out, shard)) as file:
        write_shard_header(file, 0, config.n_mels)  # keeps the place
        for path in paths:
            position = file.tell()
            frames = 0
            try:
                for block in _stored_frames(path, config):
                    file.write(block.tobytes())
                    frames += len(block)
                rows.append((shard, start, frames, ""))
                start += frames
            except audio.Unusable as error:
                # take back what was written before the fault showed
                file.seek(position)
                file.truncate()
                rows.append((shard, 0, 0, str(error)))
        file.seek(0)
        write_shard_header(file, start, config.n_mels)
    with atomic(_rows_path(out, shard), "w") as file:
        pd.DataFrame(rows, columns=["shard", "start", "frames", "reason"]).to_csv(file, index=False)
    return len(paths)


def _rows_path(out: Path, shard: int) -> Path:
    return out / f"rows-{shard:05d}.csv"


def _read_rows(out: Path, shard: int) -> pd.DataFrame:
    """Return the rows of a shard's clips; no rows if their file is missing or damaged."""
    try:
        return pd.read_csv(_rows_path(out, shard), keep_default_na=False, dtype={"reason": str})
    except (FileNotFoundError, ValueError):  # pandas' own errors are ValueErrors
        return pd.DataFrame()


def _stored_frames(path: Path, config: MelConfig) -> Iterator[np.ndarray]:
    """Yield the log-mel frames of a file in blocks, float16 [T, M]. Raises `audio.Unusable`."""
    return map(to_stored, audio.log_mel_stream(audio.stream(path, config.sample_rate), config))


def log_mel_of_file(path: Path, config: MelConfig) -> tuple[np.ndarray | None, str]:
    """Return the log-mel frames of a file as a store keeps them, float16 [T, M], and "".

    If the file cannot be used, return None and the reason.
    """
    try:
        with _silent_decoder():
            return np.concatenate(list(_stored_frames(path, config))), ""
    except audio.Unusable as error:
        return None, str(error)


# ---------------------------------------------------------------------------------------- processes


@contextmanager
def backend(name: str | None = None, scheduler: str | None = None):
    """Context in which `build` works with another backend of joblib.

    "loky" (processes, the default), "multiprocessing", "threading", or "dask": the cluster whose
    `scheduler` has this address. Its machines must see corpus and store under the same paths.
    Raises `UserError` if there is no such cluster.
    """
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
def worker_errors():
    """Turn the death of a worker process into a `UserError`."""
    try:
        yield
    except Exception as error:
        # BrokenProcessPool is joblib's error, KilledWorker Dask's
        if isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker":
            raise UserError(
                "a worker process died (out of memory, or a file crashed the decoder): "
                "run the command again, perhaps with fewer --jobs"
            ) from None
        raise


@contextmanager
def _silent_decoder():
    """Silence libmpg123, which writes to the process' standard error about damaged MP3s; the reason
    goes to quarantine.csv.

    Does nothing outside the main thread: the file descriptor belongs to all threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


# ------------------------------------------------------------------------------------------ reading


class MelStore:
    """A complete store.

    `clips` is its table: shard, start and frames are numbers, the corpus' columns are text. `mel`
    is its MelConfig, `name` its corpus, `quarantine` the table of what was left out. `ids` [n] are
    the clips' names that are unique across stores. Raises `UserError` if the folder is no complete
    store.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        config = read_json(self.path / "config.json", "a store (made by prepare)")
        if "mel" not in config:
            raise UserError(f"{self.path} is not a store (made by prepare)")
        if not (self.path / "clips.csv").exists():
            raise UserError(f"{self.path} is not finished: run prepare again, it goes on where it stopped")
        try:
            self.name: str = config["corpus"]
            self.mel = MelConfig(**config["mel"])
            self.clips = self._read_table("clips.csv").astype(dict.fromkeys(NUMBERS, np.int64))
            self.quarantine = self._read_table("quarantine.csv")
            self.id_prefix = SUPERSET_OF.get(self.name, self.name)
            self.ids = np.array([f"{self.id_prefix}/{clip}" for clip in self.clips["clip_id"]])
            self._where = self.clips[NUMBERS].values
            self.clips.iloc[0]  # raises IndexError if there is no clip
        except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
            what = f"{type(error).__name__} {error}".splitlines()[0]
            raise UserError(f"{self.path}: damaged ({what}): delete it and prepare it again") from None
        self._shard = lru_cache(maxsize=None)(self._open_shard)

    def __len__(self) -> int:
        return len(self.clips)

    def _read_table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.path / name, dtype=str, keep_default_na=False)

    def _open_shard(self, shard: int) -> np.ndarray:
        path = shard_path(self.path, shard)
        try:
            # a plain view of the map: slices faster than np.memmap
            return np.asarray(np.load(path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: damaged or missing ({error}): delete {self.path} and prepare it again"
            ) from None

    def frames(self, clip: int) -> np.ndarray:
        """Return the log-mel frames of clip number `clip`, float16 [frames, n_mels].

        This is a view of the memory map: it is read when it is used.
        """
        shard, start, length = self._where[clip]
        frames = self._shard(int(shard))[start : start + length]
        if len(frames) < length:
            path = shard_path(self.path, shard)
            raise UserError(f"{path}: too short: delete {self.path} and prepare it again")
        return frames


def open_store(store: MelStore | Path | str) -> MelStore:
    """Return a store, or the store at a path."""
    return store if isinstance(store, MelStore) else MelStore(store)
