"""Files: in which folders they lie, and how they are written whole or not at all.

A file is written under another name beside its place and then moved there. Of several processes of
one training only the main one writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from colalib.errors import UserError

STOP = getattr(signal, "SIGBREAK", signal.SIGTERM)  # what asks a process to end; SIGBREAK on Windows
MAP_GENERATOR = '<meta name="generator" content="colalib">'  # tells a map of ours from other pages


def home() -> Path:
    """Return the checkout of the course, if colalib is installed from one (as `make` does); else the
    current folder.
    """
    folder = Path(__file__).parents[1]
    return folder if (folder / "notebooks" / "source").is_dir() else Path.cwd()


def data_folder(data: str | Path | None = None) -> Path:
    """Return the folder of the corpora.

    This is `data`, else the variable COLA_DATA, else `data/` in `home`.
    """
    if data or os.environ.get("COLA_DATA"):
        return Path(data or os.environ["COLA_DATA"])
    return home() / "data"


def runs_folder() -> Path:
    """Return the folder for runs, executed notebooks and results.

    This is the variable COLA_RUNS, else `runs/` in `home`. Each profile of the
    course (variable COLA_PROFILE) except `quick` has its own folder in it.
    """
    base = Path(os.environ.get("COLA_RUNS") or home() / "runs")
    profile = os.environ.get("COLA_PROFILE", "quick")
    return base if profile == "quick" else base / profile


@contextmanager
def atomic(path: Path, mode: str = "wb"):
    """Open a file to write. It appears at `path` when the block ends, and not at all if the block
    fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own for each writer: threads, processes and machines may write the same file
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.part")
    # text: the same bytes on every system
    encoding = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(part, mode, **encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # on the disk before it is renamed
        _replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder, and raise `UserError` if no file can be written in it: before anything is computed."""
    try:
        try_writing(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}): choose another --out") from None


def try_writing(folder: Path) -> None:
    """Make a folder, and raise `OSError` if no file can be written in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_ours(path: Path, sign: bytes) -> None:
    """Raise `OSError` if `path` cannot be written, `UserError` if it is a file of another program.

    One of ours has `sign` in its first 1,000 bytes or its last 100,000. Call this before a long computation.
    """
    try_writing(path.parent)
    if path.exists() and not is_ours(path, sign):
        raise UserError(f"{path} was not written by colalib: move it away, or choose another --out")


def is_ours(path: Path, sign: bytes) -> bool:
    """Return whether a file is empty, or has `sign` in its first 1,000 bytes or its last 100,000."""
    with open(path, "rb") as file:
        head = file.read(1000)
        file.seek(max(os.fstat(file.fileno()).st_size - 100_000, 0))
        return not head or sign in head or sign in file.read()


def file_state(path: Path) -> str:
    """Return what tells a file from others: time of change, size, and a hash of 12 kB of it; "" for none."""
    try:
        if not path.is_file():  # a pipe would wait
            return ""
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.blake2b(digest_size=8)
            for place in (0, status.st_size // 2, max(status.st_size - 4096, 0)):
                file.seek(place)
                digest.update(file.read(4096))
            return f"{status.st_mtime_ns} {status.st_size} {digest.hexdigest()}"
    except OSError:
        return ""


def has_changed(path: Path, state: str, copy: bool) -> bool:
    """Return whether a file is another than when `state` was taken, or was not there then.

    A `copy` is the same file if its size and its sample are. One that is gone has not changed.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return False
        if not copy:
            return not state.startswith(f"{status.st_mtime_ns} {status.st_size} ")
        return file_state(path).partition(" ")[2] != state.partition(" ")[2]
    except OSError:
        return False


def _replace(part: Path, path: Path) -> None:
    """Move a file to its place, so that the move too outlives a power cut."""
    for wait in (0.1, 0.3, 1.0, 3.0, 0.0):
        try:
            os.replace(part, path)
            break
        except PermissionError:  # on Windows, while another program has the file open
            if os.name != "nt" or not wait:
                raise
            time.sleep(wait)
    if os.name != "nt":
        with suppress(OSError):  # not every file system can, and not every folder can be read
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove the parts that killed writers of these files left in `folder`; no other file is touched."""
    for name in names:
        for part in folder.glob(f".{name}.*.part"):
            part.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path):
    """Lock `folder`, which need not exist yet: other processes and threads that want it wait, and say so."""
    folder = Path(os.path.abspath(folder))
    if not folder.name:
        raise UserError(f"{folder} is a whole disk: name a folder on it")
    try_writing(folder.parent)  # where it cannot be written, a lock would wait for ever
    file = folder.with_name(f".{folder.name}.lock")
    if file.exists() and file.stat().st_size:  # ours are empty, but on disks that cannot lock files
        raise UserError(f"{file} belongs to another process or program: if nothing runs, move it away")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"waiting for another process that uses {folder}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_main_process() -> bool:
    """Return whether this is the main process (rank 0) of a training. Only it writes and prints.

    torchrun, Slurm and Lightning set the rank in environment variables.
    """
    ranks = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def write_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON."""
    with atomic(path, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_json(path: Path, what: str) -> dict:
    """Return a JSON object from a file. Raises `UserError`.

    `what` is what its folder should be, for the message: "a store (made by prepare)".
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        return content
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent} is not {what}: it has no {path.name}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}): create it again") from None


def fingerprint(lines: Iterable[str]) -> str:
    """Return a short SHA-256 of lines of text, 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
