"""Files are written whole or not at all, by one process; and where things lie."""

import json
import os
from pathlib import Path

import pytest
from helpers import ROOT

from colalib import files
from colalib.errors import UserError


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with files.atomic(target, "w") as file:
        file.write("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["a.txt"]


def test_a_failed_block_leaves_the_file_as_it_was(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("before")
    with pytest.raises(ZeroDivisionError), files.atomic(target, "w") as file:
        file.write("half")
        raise ZeroDivisionError
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_damaged_json_is_told_with_its_path(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        files.read_json(tmp_path / "config.json", "a run")


def test_a_missing_file_says_what_the_folder_is_not(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config\.json"):
        files.read_json(tmp_path / "config.json", "a run")


def test_json_comes_back(tmp_path):
    files.write_json(tmp_path / "a.json", {"é": [1, None]})
    assert files.read_json(tmp_path / "a.json", "it") == {"é": [1, None]}
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, None]}


def test_a_fingerprint_depends_on_every_line():
    assert files.fingerprint(["a", "b"]) == files.fingerprint(["a", "b"])
    assert files.fingerprint(["a", "b"]) != files.fingerprint(["b", "a"])
    assert files.fingerprint(["a", "b"]) != files.fingerprint(["a"])


def test_folders_lie_in_the_checkout_unless_a_variable_says_otherwise(monkeypatch):
    for name in ("COLA_DATA", "COLA_RUNS", "COLA_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert files.checkout() == ROOT
    assert files.data_folder() == ROOT / "data"
    assert files.runs_folder() == ROOT / "runs"
    monkeypatch.setenv("COLA_DATA", "/elsewhere")
    monkeypatch.setenv("COLA_RUNS", "/others")
    monkeypatch.setenv("COLA_PROFILE", "full")
    assert files.data_folder() == Path("/elsewhere")
    assert files.data_folder("named") == Path("named")
    assert files.runs_folder() == Path("/others/full")


@pytest.mark.parametrize(
    ("variables", "main"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "1"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_one_process_is_the_main_one(monkeypatch, variables, main):
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert files.is_main_process() == main
