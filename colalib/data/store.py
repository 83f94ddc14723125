"""MelStore: the log-mel frames of a whole corpus in one folder, memory-mapped.

`build` fills it from a corpus in parallel and lists what it could not use. `MelStore` opens it, for
`clips`, `training` and `evaluation`, at a cost that does not depend on its size.

    config.json       corpus, MelConfig, fingerprint of the table of clips, folder of the audio, versions
    frames-00000.npy  a shard: float16 [frames, n_mels] of consecutive clips
    rows-00000.csv    what became of each file of a shard; only while the store is not complete
    files.csv         the same of all files, and the state in which each was read
    quarantine.csv    path and reason of every clip that is not in the store
    duplicates.csv    clips whose frames are equal to another clip's
    clips.csv         one row per clip: shard, start, frames, and the corpus' columns;
                      written last, it marks a complete store
    embeddings/       of `search`, `audit` and the like, kept for the next call
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import joblib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from colalib.data import audio
from colalib.data.audio import MelConfig
from colalib.data.corpus import SUPERSET_OF, Corpus
from colalib.data.processes import CRASHED, crashing, number_of, parallel, silent_decoder, worker_errors
from colalib.data.tables import read_table, write_table
from colalib.errors import UserError, first_line
from colalib.files import (
    atomic,
    file_state,
    fingerprint,
    has_changed,
    locked,
    read_json,
    remove_leftovers,
    write_json,
)

FORMAT = 1  # of the files in a store
PACKAGES = ("librosa", "numpy", "soundfile", "soxr")  # whose versions a store notes
NOT_FOUND = "file not found"  # the reason that may change by itself
ROWS = ["shard", "start", "frames", "reason", "hash", "file"]  # what is noted of each file, in this order
MADE = {  # what else a store may have been made of, by the part of its config.json that differs
    "table of clips": "of other clips: files were added, removed or relabelled since",
    "mel": "with other mel settings",
}
NUMBERS = ["shard", "start", "frames"]  # where the frames of a clip lie; the other columns are text

# --------------------------------------------------------------------------- the form of the shards


def shard_size(clips: int) -> int:
    """Return the number of clips per shard: enough shards to share the work, but at most 1,000."""
    return max(16, math.ceil(clips / 1000))


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

    An interrupted build is continued. Where audio files have changed since, or were missing and are
    there now, their shards are written anew; files that are gone stay in the store. `jobs` processes
    share the shards (-1: all cores). Inside `backend(...)`, or any `joblib.parallel_config`, these are
    threads or the machines of a cluster. The bytes on disk depend neither on that nor on
    interruptions. Clips that cannot be used are listed in quarantine.csv with the reason; with several
    processes also those that crash the decoder.

    Raises `UserError` if `out` was made from other clips, with other mel settings or from another
    folder whose files differ, or if no clip is usable.
    """
    # absolute: the machines of a cluster may have other working folders
    out = Path(os.path.abspath(out))
    if corpus.clips.empty:
        raise UserError(f"{corpus.root}: no clips there that belong to {corpus.name}")
    number_of(jobs, len(corpus.clips))  # 0 is refused before anything is written
    MelConfig.read(dataclasses.asdict(config), "config")  # raises what is wrong with it
    content = _config(corpus, config)
    if (out / "config.json").exists() and (out / "clips.csv").exists():
        _check_config(out, content)
        if not _changed(corpus, out):
            return MelStore(out)  # needs neither a lock nor the right to write
    with locked(out):
        _enter(corpus, out, content)
        if changed := _changed(corpus, out):
            text = f"{out}: {len(changed)} files are new or have changed (the first: {changed[0]})"
            print(f"{text}: they are read, with the clips of the same shards", file=sys.stderr, flush=True)
            (out / "clips.csv").unlink(missing_ok=True)
        if not (out / "clips.csv").exists():
            _fill(corpus, out, config, jobs, progress)
        _remove_rows(out)
    return MelStore(out)


def _config(corpus: Corpus, config: MelConfig) -> dict:
    """Return what a store is made from, as config.json tells it."""
    return {
        "store format": FORMAT,
        "corpus": corpus.name,
        "table of clips": fingerprint(corpus.clips.to_csv(index=False).splitlines()),
        "mel": dataclasses.asdict(config),
    }


def _changed(corpus: Corpus, out: Path) -> list[str]:
    """Return the paths that are other files now than when they were read, or were not there then.

    Raises `UserError` if these are files of another folder, or share a shard with clips whose files are
    gone.
    """
    made_from, all_changed = _made_from(out), []
    for rows in _read_rows(corpus, out):
        changed = rows["path"][rows["changed"]]
        if changed.empty:
            continue
        others = changed[rows["file"] != ""]
        if len(others) and made_from != os.path.abspath(corpus.root):
            raise UserError(
                f"{out} was made from {made_from}, and {corpus.root / others.iloc[0]} differs from the file "
                "there: choose another --out"
            )
        gone = [path for path in rows["path"][rows["reason"] == ""] if not (corpus.root / path).exists()]
        if gone:
            raise UserError(
                f"{corpus.root / changed.iloc[0]} is another file than {out} holds, and {gone[0]}, which "
                "would be read again with it, is gone: bring it back, or choose another --out"
            )
        all_changed += [*changed]
    return all_changed


def _shards(corpus: Corpus) -> list[list[str]]:
    """Return the paths of each shard: consecutive clips share one."""
    paths = [*corpus.clips["path"]]
    size = shard_size(len(paths))
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def _made_from(out: Path) -> str:
    """Return the folder of the audio that a store was made from, "" if it does not tell."""
    return read_json(out / "config.json", "a store").get("audio", "")


def _check_config(out: Path, content: dict) -> None:
    """Raise `UserError` if the store was made from something else than `content` tells."""
    existing = read_json(out / "config.json", "a store")
    for key, value in content.items():
        if existing.get(key) != value:
            raise UserError(f"{out} was made {MADE.get(key, f'with another {key}')}: choose another --out")


def _enter(corpus: Corpus, out: Path, content: dict) -> None:
    """Write config.json of a new store; of an old one, check that it was made from the same."""
    if (out / "config.json").exists():
        _check_config(out, content)
        remove_leftovers(out, "config.json", "frames-*", "rows-*", "*.csv")
        return
    # a killed process may have left a part of config.json and nothing else
    if out.exists() and not set(out.iterdir()) <= set(out.glob(".config.json.*.part")):
        raise UserError(f"{out} is not a store and not empty: choose another --out")
    remove_leftovers(out, "config.json")
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    # where the audio lies: for encoders that hear it themselves (`MelStore.audio_root`)
    audio_root = os.path.abspath(corpus.root)
    known = {"versions": versions, "audio": audio_root, "own split": corpus.own_split}
    write_json(out / "config.json", content | known)


def _remove_rows(out: Path) -> None:
    """Remove the rows of a store that is complete, or has to be filled anew."""
    for rows in out.glob("rows-[0-9][0-9][0-9][0-9][0-9].csv"):
        rows.unlink(missing_ok=True)


def _start_anew(out: Path) -> None:
    """Forget what was read: the next call reads all files."""
    (out / "files.csv").unlink(missing_ok=True)
    _remove_rows(out)


def _fill(corpus: Corpus, out: Path, config: MelConfig, jobs: int, progress: bool) -> None:
    """Write the shards that are missing, then quarantine.csv and clips.csv."""
    root = Path(os.path.abspath(corpus.root))
    shards = _shards(corpus)
    total = len(corpus.clips)
    bar = tqdm(total=total, desc=f"prepare {corpus.name}", unit="clip", disable=not progress)
    crashed: set[Path] = set()
    with bar, worker_errors():
        while True:
            # compute those that an interrupted build did not finish, or whose files have changed
            read = _read_rows(corpus, out)
            todo = [s for s, rows in enumerate(read) if rows.empty or rows["changed"].any()]
            bar.update(total - sum(len(shards[s]) for s in todo) - bar.n)
            tasks = [
                joblib.delayed(_write_shard)([root / path for path in shards[s]], out, s, config, crashed)
                for s in todo
            ]
            try:
                for clips in parallel(jobs, len(todo))(tasks):
                    bar.update(clips)
                break
            except BrokenProcessPool:
                # a worker that died leaves a part of its shard
                begun = [s for s in todo if list(out.glob(f".{shard_path(out, s).name}.*.part"))]
                found = {path for s in begun for path in crashing([root / p for p in shards[s]])} - crashed
                if not found:
                    raise
                crashed |= found
                remove_leftovers(out, "frames-*", "rows-*")

    # other machines may have written elsewhere
    parts = _read_rows(corpus, out)
    if any(part.empty for part in parts):
        raise UserError(
            f"parts of the store are missing in {out}: do all machines see that folder? Run the command again"
        )
    _write_tables(corpus, out, pd.concat(parts, ignore_index=True))


def _write_tables(corpus: Corpus, out: Path, rows: pd.DataFrame) -> None:
    """Write the tables of a store, from one row per clip (see `_write_shard`); clips.csv is the last."""
    # what is missing may come back: a drive that is mounted again
    missing = (rows["reason"] == NOT_FOUND).sum()
    if missing > len(rows) / 2:
        _start_anew(out)
        raise UserError(
            f"{corpus.root}: {missing} of {len(rows)} files were not found (is the drive there?): "
            "correct that and run the command again"
        )
    usable = (rows["reason"] == "").values
    quarantine = pd.DataFrame({"path": corpus.clips["path"], "reason": rows["reason"]})[~usable]
    quarantine = pd.concat([quarantine, corpus.excluded], ignore_index=True)
    write_table(out / "quarantine.csv", quarantine)
    if not usable.any():
        _start_anew(out)
        first = ": ".join(quarantine.iloc[0])
        raise UserError(
            f"{corpus.root}: none of {len(rows)} clips is usable (first: {first}); "
            f"all reasons are in {out / 'quarantine.csv'}"
        )
    write_table(out / "files.csv", rows[ROWS])
    write_table(out / "duplicates.csv", _duplicates(corpus.clips[usable], rows["hash"][usable]))
    clips = pd.concat([rows[["shard", "start", "frames"]], corpus.clips], axis=1)[usable]
    with atomic(out / "clips.csv", "w") as file:
        clips.to_csv(file, index=False)


def _duplicates(clips: pd.DataFrame, hashes: pd.Series) -> pd.DataFrame:
    """Return the clips whose frames are equal to another's: clip_id, split, group, and the first one's id."""
    first = clips["clip_id"].groupby(hashes).transform("first")
    several = hashes.duplicated(keep=False) & (hashes != "")
    return clips[["clip_id", "split", "group"]].assign(same_as=first)[several]


def _write_shard(paths: list[Path], out: Path, shard: int, config: MelConfig, crashed: set[Path]) -> int:
    """Write one shard, and then its rows, which mark it as finished; return the number of clips.

    The files `crashed` end the process that decodes them, and are only listed.
    """
    if (out / "files.csv").exists():  # what it says of this shard is no longer true
        with atomic(_rows_path(out, shard), "w"):
            pass
    rows = []
    start = 0  # of the next clip, in frames
    with silent_decoder(), atomic(shard_path(out, shard)) as file:
        write_shard_header(file, 0, config.n_mels)  # keeps the place
        for path in paths:
            position = file.tell()
            frames = 0
            state = file_state(path)
            digest = hashlib.blake2b(digest_size=8)
            try:
                if path in crashed:
                    raise audio.Unusable(CRASHED)
                for block in _stored_frames(path, config):
                    file.write(block.tobytes())
                    digest.update(block.tobytes())
                    frames += len(block)
                rows.append((shard, start, frames, "", digest.hexdigest(), state))
                start += frames
            except audio.Unusable as error:
                # take back what was written before the fault showed
                file.seek(position)
                file.truncate()
                rows.append((shard, 0, 0, str(error), "", state))
        file.seek(0)
        write_shard_header(file, start, config.n_mels)
    with atomic(_rows_path(out, shard), "w") as file:
        pd.DataFrame(rows, columns=ROWS).to_csv(file, index=False)
    return len(paths)


def _rows_path(out: Path, shard: int) -> Path:
    return out / f"rows-{shard:05d}.csv"


def _read_rows(corpus: Corpus, out: Path) -> list[pd.DataFrame]:
    """Return the rows of each shard's clips; none if they are not written yet, or damaged.

    `path` and `changed` tell whether a clip is another file now, or was not there before.
    """
    finished = _read_table_of_rows(out / "files.csv")
    copy = _made_from(out) != os.path.abspath(corpus.root)
    shards, end = [], 0
    for shard, paths in enumerate(_shards(corpus)):
        start, end = end, end + len(paths)
        written = _rows_path(out, shard)  # newer than files.csv
        rows = _read_table_of_rows(written) if written.exists() else finished[start:end]
        rows = rows.assign(path=paths) if len(rows) == len(paths) else rows[:0].assign(path="")
        states = zip(rows["path"], rows["file"])
        changed = [has_changed(corpus.root / path, state, copy) for path, state in states]
        shards.append(rows.assign(changed=np.array(changed, bool)).reset_index(drop=True))
    return shards


def _read_table_of_rows(path: Path) -> pd.DataFrame:
    try:
        text = dict.fromkeys(("reason", "hash", "file"), str)
        return pd.read_csv(path, keep_default_na=False, dtype=text)[ROWS]
    except (FileNotFoundError, ValueError, KeyError):  # pandas' own errors are ValueErrors
        return pd.DataFrame(columns=ROWS)


def _stored_frames(path: Path, config: MelConfig) -> Iterator[np.ndarray]:
    """Yield the log-mel frames of a file in blocks, float16 [T, M]. Raises `audio.Unusable`."""
    return map(to_stored, audio.log_mel_stream(audio.stream(path, config.sample_rate), config))


def log_mel_of_file(path: Path, config: MelConfig) -> tuple[np.ndarray | None, str]:
    """Return the log-mel frames of a file as a store keeps them, float16 [T, M], and "".

    If the file cannot be used, return None and the reason.
    """
    try:
        with silent_decoder():
            return np.concatenate(list(_stored_frames(path, config))), ""
    except audio.Unusable as error:
        return None, str(error)


# ------------------------------------------------------------------------------------------ reading


class MelStore:
    """A complete store.

    `clips` is its table: shard, start and frames are numbers, the corpus' columns are text. `mel`
    is its MelConfig, `name` its corpus, `quarantine` the table of what was left out, `duplicates` the
    table of clips that equal another. `own_split` is that of its Corpus. `ids` [n] are the clips' names that
    are unique across stores. Raises `UserError` if the folder is no complete store.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        config = read_json(self.path / "config.json", "a store (made by prepare)")
        if "mel" not in config:
            raise UserError(f"{self.path} is not a store (made by prepare)")
        self._completed = self._time_of_table()
        if self._completed is None:
            raise UserError(f"{self.path} is not finished: run prepare again, it goes on where it stopped")
        try:
            self.name: str = config["corpus"]
            self._audio = config.get("audio")  # stores of an earlier version do not tell
            self.own_split = bool(config.get("own split", True))
            self.mel = MelConfig.read(config["mel"], self.path / "config.json")
            self.clips = pd.read_csv(self.path / "clips.csv", dtype=str, keep_default_na=False)
            self.clips = self.clips.astype(dict.fromkeys(NUMBERS, np.int64))
            self.quarantine = read_table(self.path / "quarantine.csv")
            duplicates = self.path / "duplicates.csv"  # stores of an earlier version have none
            self.duplicates = read_table(duplicates) if duplicates.exists() else pd.DataFrame()
            self.id_prefix = SUPERSET_OF.get(self.name, self.name)
            self.ids = np.array([f"{self.id_prefix}/{clip}" for clip in self.clips["clip_id"]])
            self._where = self.clips[NUMBERS].values
            self.clips.iloc[0]  # raises IndexError if there is no clip
        except UserError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, FileNotFoundError) as error:
            raise UserError(
                f"{self.path}: damaged ({first_line(error)}): prepare it again, to another folder"
            ) from None
        self._shard = lru_cache(maxsize=most_open_files() // 4)(self._open_shard)

    def __len__(self) -> int:
        return len(self.clips)

    def _time_of_table(self) -> int | None:
        """Return when clips.csv was written, in ns; None if it is not there."""
        with suppress(FileNotFoundError):
            return os.stat(self.path / "clips.csv").st_mtime_ns

    def _open_shard(self, shard: int) -> np.ndarray:
        path = shard_path(self.path, shard)
        try:
            # a plain view of the map: slices faster than np.memmap
            frames = np.asarray(np.load(path, mmap_mode="r"))
        except (FileNotFoundError, ValueError, EOFError) as error:
            raise UserError(
                f"{path}: damaged or missing ({error}): prepare it again, to another folder"
            ) from None
        if frames.ndim != 2 or frames.shape[1] != self.mel.n_mels or frames.dtype != np.float16:
            raise UserError(f"{path}: frames of another form: prepare it again, to another folder")
        # asked after the shard was opened: `build` removes the table before it replaces a shard
        if self._time_of_table() != self._completed:
            raise UserError(f"{self.path} was prepared again while it was open: begin again")
        return frames

    def frames(self, clip: int) -> np.ndarray:
        """Return the log-mel frames of clip number `clip`, float16 [frames, n_mels].

        This is a view of the memory map: it is read when it is used.
        """
        shard, start, length = self._where[clip]
        frames = self._shard(int(shard))[start : start + length]
        if len(frames) < length:
            path = shard_path(self.path, shard)
            raise UserError(f"{path}: too short: prepare it again, to another folder")
        return frames

    @property
    def known_audio(self) -> Path | None:
        """The folder of the audio that the store was made from, if it is there."""
        return Path(self._audio) if self._audio and Path(self._audio).is_dir() else None

    def audio_root(self) -> Path:
        """Return the folder of the audio that the store was made from. Raises `UserError` if it is gone."""
        if not self._audio:
            raise UserError(
                f"{self.path} does not tell where its audio lies: prepare it again, to another folder"
            )
        if not Path(self._audio).is_dir():
            raise UserError(
                f"{self._audio}: the audio of {self.path} is no longer there: "
                "bring it back, or prepare it again, to another folder"
            )
        return Path(self._audio)


@lru_cache(maxsize=1)
def most_open_files() -> int:
    """Return how many files this process may have open; the soft limit is raised first, where it may be."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 8192
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if 0 <= soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 8192)


def is_store(path: Path | str) -> bool:
    """Return whether a folder is a store, complete or not: it has the config.json of one."""
    try:
        return "store format" in read_json(Path(path) / "config.json", "a store")
    except UserError:
        return False


def open_store(store: MelStore | Path | str) -> MelStore:
    """Return a store, or the store at a path."""
    return store if isinstance(store, MelStore) else MelStore(store)
