"""Work shared by processes: backends of joblib, and decoders that crash or talk.

`store` builds, and `evaluation.embedding` decodes, inside them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import joblib

from colalib.errors import UserError, first_line

CRASHED = "unreadable: the decoder crashed"


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
        raise UserError(f"no Dask scheduler at {scheduler}: {first_line(error)}") from None
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
                "run the command again when more memory is free (prepare: perhaps with fewer --jobs)"
            ) from None
        raise


def number_of(jobs: int, tasks: int) -> int:
    """Return how many processes share so many tasks. Raises `UserError` if `jobs` is 0."""
    if jobs == 0:
        raise UserError("0 processes cannot do anything: name 1 or more, or -1 for all cores")
    return min(joblib.effective_n_jobs(jobs), max(tasks, 1))


def parallel(jobs: int, tasks: int) -> joblib.Parallel:
    """Return what runs so many tasks in `jobs` processes, and yields each result when it is there."""
    workers = number_of(jobs, tasks)
    try:
        return joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    except ValueError:  # a backend that returns all results at the end
        return joblib.Parallel(n_jobs=workers)


DECODE = """
import json, sys
from pathlib import Path
from colalib.data.store import MelConfig, log_mel_of_file
for path in json.load(sys.stdin):
    print(flush=True)
    log_mel_of_file(Path(path), MelConfig())
"""


def crashing(paths: list[Path]) -> Iterator[Path]:
    """Yield the files whose decoding ends the process, by trying them in another one."""
    while paths:
        given = json.dumps([*map(str, paths)]).encode()
        done = subprocess.run([sys.executable, "-c", DECODE], input=given, capture_output=True)
        # 1: an exception, -9: killed, perhaps for its memory. Neither is a crash.
        if done.returncode in (0, 1, -9) or not done.stdout:
            return
        tried = len(done.stdout.splitlines())  # a line per file
        yield paths[tried - 1]
        paths = paths[tried:]


@contextmanager
def silent_decoder():
    """Silence libmpg123, which writes to standard error; the reason goes to quarantine.csv.

    Outside the main thread this does nothing: the file descriptor belongs to all threads.
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
