"""Running the course: what is refused before anything is built."""

import json
import sys
from collections import namedtuple

import nbformat
import psutil
import pytest

from colalib.course import running
from colalib.errors import UserError


def test_a_small_disk_is_told_before_anything_is_built(monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(running.shutil, "disk_usage", lambda _: usage(1e9, 1e9 - 1e6, 1e6))
    monkeypatch.setattr(running, "store", None)  # it would raise
    with pytest.raises(UserError, match=r"only 0\.0 GB of disk are free"):
        running.run()
    assert "notebooks, about" in capsys.readouterr().out


def test_only_some_notebooks():
    assert [notebook.stem[:2] for notebook in running.notebooks(["01", "03"])] == ["01", "03"]
    with pytest.raises(UserError, match="no such notebooks"):
        running.notebooks(["99"])


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
