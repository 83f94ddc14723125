"""Helpers of several test files: sounds, encoders, commands, a run's log, and what git keeps."""

import csv
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from colalib.cli import main
from colalib.encoder import Encoder

ROOT = Path(__file__).parents[1]
RATE = 16_000  # Hz, of the sounds that are made here
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # so that two processes compute the same, bit for bit

SCREENSHOTS = os.environ.get("COLA_SCREENSHOTS")  # folder for the README's pictures: of a real course then
PROFILE = "quick" if SCREENSHOTS else "test"  # of the course that tests execute


def course_places(root: Path) -> dict[str, str]:
    """Return the variables of a course whose runs lie in ROOT/runs/PROFILE, and its data in ROOT/data."""
    runs = root / "runs" / ("quick" if PROFILE == "quick" else "")  # of this profile there is no sub-folder
    return {"COLA_PROFILE": PROFILE, "COLA_RUNS": str(runs), "COLA_DATA": str(root / "data")}


def own_parents(path: Path) -> list[Path]:
    """Return the folders above a path, down from the one that pytest makes for its user, nearest first."""
    return [parent for parent in path.parents if "pytest-of-" in str(parent)]


# ------------------------------------------------------------------------------------------- faults

ALL = os.environ.get("COLA_FAULTS") == "all"  # `make faults`: hundreds of each kind, and not a few


def malformed(good: bytes, rng: random.Random) -> bytes:
    """Return `good` with one kind of damage."""
    n = len(good)
    at, size = rng.randrange(n), rng.randrange(1, max(2, n // 4))
    kinds = {
        "cut": lambda: good[:at],
        "bytes changed": lambda: bytes(rng.randrange(256) if rng.random() < 0.01 else b for b in good),
        "zeros": lambda: good[:at] + bytes(len(good[at : at + size])) + good[at + size :],
        "a part missing": lambda: good[:at] + good[at + size :],
        "a part twice": lambda: good[: at + size] + good[at:],
        "garbage inserted": lambda: good[:at] + rng.randbytes(size) + good[at:],
        "head changed": lambda: (
            bytes(rng.randrange(256) if rng.random() < 0.3 else b for b in good[:64]) + good[64:]
        ),
        "head only": lambda: good[: rng.randrange(1, 64)],
        "no head": lambda: good[rng.randrange(1, 64) :],
        "noise": lambda: rng.randbytes(n),
        "text": lambda: b"<html>404 not found</html>\n" * rng.randrange(1, 50),
        "nothing": lambda: b"",
    }
    return kinds[rng.choice(sorted(kinds))]()


# ------------------------------------------------------------------------------------------- sounds


def tone(pitch: float, seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Return a decaying, repeated harmonic tone with a little noise, float32 [samples]."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 6)) / k for k in range(1, 6))
    beat = np.exp(-((t * rng.uniform(2, 4)) % 1) * 3)
    return (0.2 * wave * beat + 0.003 * rng.standard_normal(len(t))).astype(np.float32)


# ----------------------------------------------------------------------------------------- encoders


def seeded_encoder(arch: str = "b0-small", **kwargs) -> Encoder:
    """Return an encoder whose weights and running statistics are seeded, and far from their start."""
    torch.manual_seed(0)
    encoder = Encoder(arch, std=1.5, **kwargs)
    for name, value in encoder.net.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(0.2 * torch.rand_like(value))
    return encoder


def random_segments(batch: int = 4, frames: int = 98) -> torch.Tensor:
    """Return seeded segments [batch, frames, 64] in about the range of log-mel values."""
    return 2 * torch.randn(batch, frames, 64, generator=torch.Generator().manual_seed(1)) - 5


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the distance of `a` from `b` as a share of the size of `b`."""
    return ((a - b).norm() / b.norm()).item()


# ----------------------------------------------------------------------------------------- commands


def command(*words) -> list[str]:
    """Return the words of a command of colalib."""
    return [sys.executable, "-m", "colalib", *map(str, words)]


def run_command(*words, **environment) -> subprocess.CompletedProcess:
    """Run a command of colalib in a process of its own, to its end."""
    return subprocess.run(command(*words), capture_output=True, text=True, env=os.environ | environment)


def call(capsys, *words) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, standard output and standard error."""
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def messages(error: str) -> list[str]:
    """Return the lines of standard error that are colalib's, without progress bars."""
    return [line for line in error.replace("\r", "\n").splitlines() if line.startswith("colalib: ")]


def send_when(process: subprocess.Popen, condition, sign: int) -> None:
    """Wait until `condition()` holds, then send a signal. Nothing is sent to a process that ended."""
    deadline = time.monotonic() + 240  # seconds: only a test that hangs waits so long
    while time.monotonic() < deadline and process.poll() is None and not condition():
        time.sleep(0.005)
    process.send_signal(sign)


# --------------------------------------------------------------------------------------------- runs


def metrics(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv."""
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(run: Path, name: str) -> list[float]:
    """Return the values of one column of metrics.csv; rows where it is empty are left out."""
    return [float(row[name]) for row in metrics(run) if row[name]]


# ---------------------------------------------------------------------------------------- git


def git(*words: str, root: Path = ROOT, stdin: bytes = b"") -> bytes | None:
    """Return what a command of git prints; None without git, or outside a checkout."""
    if not shutil.which("git"):
        return None
    done = subprocess.run(["git", *words], cwd=root, input=stdin, capture_output=True)
    return None if done.returncode else done.stdout


def committed(path: Path, root: Path = ROOT) -> str:
    """Return the text of a file as git keeps it; without git, as it lies in the folder.

    A learner runs and saves notebooks: that copy is theirs, and no matter of a test.
    """
    kept = git("show", f":{path.relative_to(root).as_posix()}", root=root)
    return path.read_text(encoding="utf-8") if kept is None else kept.decode()


def committed_sizes(root: Path = ROOT) -> dict[str, int]:
    """Return the bytes of every file that git keeps, by its path; nothing without git."""
    listed = git("ls-files", "-s", "-z", root=root) or b""
    # each: mode, object and stage, a tab, the path
    entries = [line.split("\t") for line in listed.decode().split("\0") if line]
    objects = "\n".join(about.split()[1] for about, _ in entries)
    sizes = git("cat-file", "--batch-check=%(objectsize)", root=root, stdin=objects.encode()) or b""
    return {path: int(size) for (_, path), size in zip(entries, sizes.split())}
