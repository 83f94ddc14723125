"""A training as a process of its own: started, found again by a later kernel, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from colalib.errors import UserError
from colalib.files import STOP, read_json, write_json
from colalib.training.runs import Run

# A kernel ignores SIGINT between cells, and its children would inherit that. Once the training runs,
# STOP is answered by a checkpoint (`training.callbacks.LastCheckpoint`); before that, as Ctrl-C.
COMMAND = (
    f"import signal; [signal.signal(s, signal.default_int_handler) for s in ({signal.SIGINT:d}, {STOP:d})]; "
    "from colalib.cli import main; main()"
)


class Job:
    """One training by the command line, in a process of its own.

    What it prints goes to `RUN.log.txt` beside the run folder. Its process number and its arguments go to
    `RUN.job.json`, by which a later kernel finds it again and resumes it.
    """

    def __init__(self, out: Path):
        out = Path(os.path.abspath(out))
        self.run = Run(out)
        self.log = out.with_name(f"{out.name}.log.txt")
        self.record = out.with_name(f"{out.name}.job.json")
        self.started: subprocess.Popen | None = None  # if this kernel started it

    @classmethod
    def start(cls, out: Path, arguments: list[str]) -> Job:
        """Start the command line with `arguments`, to train into the run folder `out`.

        A run that is there already keeps the arguments that it was begun with: with others it could not
        be resumed, and will not be trained now either. Raises `OSError` or `ValueError` if the process
        cannot be started, then none is left running; `UserError` if log or record is a file of others.
        """
        job = cls(out)
        given = job.given() if job.run.exists else arguments
        for file in (job.log, job.record):
            if file.exists() and "process" not in job.recorded():
                raise UserError(f"{file} was not written by a training: move it away, or choose another name")
        job.log.parent.mkdir(parents=True, exist_ok=True)
        # so that interrupting the kernel does not interrupt the training
        apart = {"start_new_session": True}
        if os.name == "nt":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        command = [sys.executable, "-c", COMMAND, *arguments, "--out", str(job.run.path)]
        # a progress bar that is never due: the log keeps words only
        environment = os.environ | {"TQDM_DELAY": "inf"}
        with open(job.log, "wb") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            job.started = subprocess.Popen(command, env=environment, **streams, **apart)
        try:
            write_json(job.record, {"process": job.started.pid, "given": given})
        except OSError:  # a training that no kernel could find or stop
            job.started.kill()
            job.started.wait()
            job.log.unlink(missing_ok=True)
            raise
        return job

    def recorded(self) -> dict:
        """Return what the record says; nothing without a record, or if it is damaged."""
        with suppress(OSError, UserError):
            return read_json(self.record, "a training")
        return {}

    def given(self) -> list[str]:
        """Return the arguments that the run was begun with; nothing if they are not known."""
        given = self.recorded().get("given")
        return given if isinstance(given, list) and all(isinstance(word, str) for word in given) else []

    def process(self) -> psutil.Process | None:
        """Return the process, if it runs."""
        if self.started is not None and self.started.poll() is not None:
            return None
        try:
            process = psutil.Process(self.recorded()["process"])
            # another process may have the number by now; the last argument of ours is the run folder
            out = os.path.realpath(process.cmdline()[-1])
            ours = out == os.path.realpath(self.run.path) and process.status() != "zombie"
            return process if ours else None
        # no record or a damaged one, no such process, or one without a command line
        except (LookupError, TypeError, ValueError, OverflowError, psutil.Error):
            return None

    def stop(self) -> None:
        """Ask the process to end: it writes a checkpoint within a few steps, and can be resumed."""
        with suppress(psutil.Error):  # it has ended by now
            if process := self.process():
                process.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGTERM)

    def error(self) -> str:
        """Return what it printed, unless it finished or was interrupted."""
        text = self.log.read_text("utf-8", errors="replace").strip() if self.log.exists() else ""
        lines = text.splitlines()
        refused = any(line.startswith(("colalib: ", "Traceback")) or ": error: " in line for line in lines)
        if "colalib: interrupted" in text or (self.run.finished and not refused):
            return ""
        return (
            text
            if refused
            else f"{text}\nIt ended without an error message: killed, or out of memory.".strip()
        )
