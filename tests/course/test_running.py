"""Running the course: what is refused before anything is built."""

from collections import namedtuple

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
