"""Whole files or none: everything that is kept is written beside its place and then moved there, by one process of several."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from colalib.errors import UserError


@contextmanager
def atomic(path: Path, mode: str = "wb"):
    """Open a file to write; it appears at `path` whole when the block ends, and not at all when the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path):
    """Hold `folder` (which need not exist yet) against other processes that would fill it; they wait for their turn."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield


def leads() -> bool:
    """Whether this process is the first of those that train together, as torchrun, Slurm and Lightning tell it by variables:
    it writes, and speaks, for all."""
    told = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return all(os.environ.get(name, "0") == "0" for name in told)


def write_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON."""
    with atomic(path, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_json(path: Path, what: str) -> dict:
    """Read a JSON object; `what` names the folder's kind in the error, e.g. "a store (made by prepare)"."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        return content
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent} is not {what}: it has no {path.name}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}): make it again") from None


def fingerprint(lines) -> str:
    """Short SHA-256 of a sequence of texts."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
