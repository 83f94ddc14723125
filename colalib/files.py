"""Files: where things lie, and how they are written whole or not at all.

Everything that is kept is written beside its place and then moved there. Of several processes only
the main one writes.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from colalib.errors import UserError


def checkout() -> Path | None:
    """Return the checkout of the course, if colalib is installed from one (as `make` does)."""
    folder = Path(__file__).parents[1]
    return folder if (folder / "notebooks").is_dir() else None


def data_folder(data: str | Path | None = None) -> Path:
    """Return where corpora lie: `data`, else the variable COLA_DATA, else `data/` of the checkout,
    else `./data`.
    """
    if data or os.environ.get("COLA_DATA"):
        return Path(data or os.environ["COLA_DATA"])
    return (checkout() or Path()) / "data"


def runs_folder() -> Path:
    """Return where runs, executed notebooks and results go: the variable COLA_RUNS, else `runs/` of
    the checkout.

    Each profile of the course (variable COLA_PROFILE) but `quick` has a folder of its own there.
    """
    base = Path(os.environ.get("COLA_RUNS") or (checkout() or Path.cwd()) / "runs")
    profile = os.environ.get("COLA_PROFILE", "quick")
    return base if profile == "quick" else base / profile


@contextmanager
def atomic(path: Path, mode: str = "wb"):
    """Open a file to write; it appears at `path` whole when the block ends, and not at all when the
    block fails.
    """
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
    """Hold `folder` (which need not exist yet) against other processes that would fill it; they
    wait for their turn.
    """
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield


def is_main_process() -> bool:
    """True in the main process (rank 0) of a training. Only it writes files and prints.

    torchrun, Slurm and Lightning tell a process its rank by environment variables.
    """
    ranks = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def write_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON."""
    with atomic(path, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_json(path: Path, what: str) -> dict:
    """Read a JSON object; `what` names the folder's kind in the error, e.g. "a store (made by
    prepare)".
    """
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
