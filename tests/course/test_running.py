"""Running the course: what is refused before anything is built."""

import json
import signal
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from helpers import send_when

from colalib.course import running
from colalib.errors import UserError


def test_a_small_disk_is_told_before_anything_is_built(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLA_RUNS", str(tmp_path))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(running.shutil, "disk_usage", lambda _: usage(1e9, 1e9 - 1e6, 1e6))
    monkeypatch.setattr(running, "store", None)  # it would raise
    with pytest.raises(UserError, match=r"only 0\.0 GB of disk are free"):
        running.run()
    assert "notebooks, about" in capsys.readouterr().out


def test_only_some_notebooks():
    assert [notebook.stem[:2] for notebook in running.notebooks(["01", "03"])] == ["01", "03"]
    with pytest.raises(UserError, match="no notebook begins with 99: there are 01_sound_to_mel, "):
        running.notebooks(["01", "99"])


@pytest.mark.slow
def test_a_notebook_runs_in_this_interpreter_and_leaves_no_kernel(tmp_path, monkeypatch):
    """Whatever kernel is installed as `python3`."""
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "another", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    code = "import os, sys; print(sys.executable); print(os.getpid())"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert running.execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    executable, process = nbformat.read(tmp_path / "b.ipynb", 4).cells[0].outputs[0].text.split()
    assert executable == sys.executable
    assert not psutil.pid_exists(int(process))


EXECUTE = """
import sys
from pathlib import Path
from colalib.course.running import execute
execute(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_no_fault_of_a_notebook(tmp_path, sign):
    """The command line then says that finished parts are kept."""
    code = f"import time; open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(3600)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    words = [sys.executable, "-c", EXECUTE, str(tmp_path / "a.ipynb"), str(tmp_path / "b.ipynb")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    send_when(process, (tmp_path / "begun").exists, sign)
    out, error = process.communicate(timeout=240)
    assert error.splitlines()[-1] == "KeyboardInterrupt"
    assert "its kernel died" not in out


def test_ctrl_c_is_left_to_jupyterlab(monkeypatch, capsys):
    """It asks whether it should stop."""
    before, seen = signal.getsignal(signal.SIGINT), []

    def run(command, cwd):
        signal.raise_signal(signal.SIGINT)
        seen.append(command)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(running, "own_copies", lambda: [running.home() / "my-notebooks" / "01_a.ipynb"])
    monkeypatch.setattr(running.subprocess, "run", run)
    try:
        assert running.lab() == 3
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen[0][1:4] == ["-m", "jupyter", "lab"]
    assert "To start one afresh, delete it there" in capsys.readouterr().out


def test_a_learner_works_in_copies_that_stay(tmp_path, monkeypatch, capsys):
    shipped = tmp_path / "notebooks"
    shipped.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    nbformat.write(notebook, shipped / "01_a.ipynb")
    nbformat.write(notebook, shipped / "02_b.ipynb")
    monkeypatch.setattr(running, "home", lambda: tmp_path)
    first, second = running.own_copies()
    assert first == tmp_path / "my-notebooks" / "01_a.ipynb"
    answered = nbformat.read(first, 4)
    assert answered.metadata.jupytext.formats == "ipynb", "not paired with a source"
    answered.cells[0].source = "my answer"
    nbformat.write(answered, first)  # as JupyterLab saves it
    second.write_text("damaged")
    mine = {file: file.read_bytes() for file in (first, second)}

    running.own_copies()
    assert [*first.parent.glob("01*")] == [first], "the course has not changed"
    notebook.cells.append(nbformat.v4.new_code_cell("2"))
    nbformat.write(notebook, shipped / "01_a.ipynb")
    capsys.readouterr()
    running.own_copies()
    (newer,) = set(first.parent.glob("01*")) - {first}
    assert (
        f"01_a.ipynb has changed: your copy stays, the new version is {newer.name}" in capsys.readouterr().out
    )
    assert len(nbformat.read(newer, 4).cells) == 2
    running.own_copies()
    assert capsys.readouterr().out == "", "said once"
    assert {file: file.read_bytes() for file in mine} == mine
    first.unlink()
    running.own_copies()
    assert len(nbformat.read(first, 4).cells) == 2, "a deleted copy is made afresh"
