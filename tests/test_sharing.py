"""A data folder that several share: two programs that begin at once, and a folder that is read-only."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import command, own_parents

from colalib.data.store import MelStore

pytestmark = pytest.mark.slow


def words(data) -> list:
    """Return the command that renders the smallest demo corpus and prepares it, as notebooks do."""
    out = data / "scores-1.store"
    return ["prepare", "scores", "--clips-per-class", 1, "--data", data, "--out", out, "--jobs", 1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A data folder, and how two programs ended that prepared it at the same time."""
    data = tmp_path_factory.mktemp("shared") / "data"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command(*words(data)), **options) for _ in range(2)]
    return data, [(*process.communicate(), process.returncode) for process in both]


def test_two_programs_that_begin_at_once_wait_for_each_other(shared):
    """As two notebooks do: one does the work, and both have the whole of it."""
    data, ends = shared
    for out, error, code in ends:
        assert code == 0, error
        assert "scores-1.store: 8 clips" in out
    rendered = sum("scores: rendering" in error for _, error, _ in ends)
    assert rendered == 1
    assert len(MelStore(data / "scores-1.store")) == 8
    assert not list(data.rglob("*.part"))


AS_NOBODY = """
import contextlib, io, json, os, sys
from colalib.cli import main
first, second = json.loads(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()):
    for words in first:
        main(words)  # loads all that it needs
if os.geteuid() == 0:
    os.setegid(65534), os.seteuid(65534)
for words in second:
    main(words)
"""


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs another user")
def test_data_that_are_read_only_can_be_used(shared, mel_store, tmp_path):
    """Of a teacher, say: what is complete needs neither a lock nor the right to write."""
    data = tmp_path / "data"
    shutil.copytree(shared[0], data)
    shutil.copytree(mel_store.path, data / "tones.store")
    for parent in own_parents(tmp_path):
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    for lock in data.glob(".*.lock"):
        lock.unlink()
    before = sorted(data.rglob("*"))
    for path in [data, *before]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    commands = []
    for place, tones in ((shared[0], mel_store.path), (data, data / "tones.store")):
        probe = ["probe", tones, "--encoder", "mel-stats"]
        listing = ["corpora", "--data", place]
        commands.append([[str(word) for word in each] for each in (words(place), probe, listing)])
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, json.dumps(commands)], capture_output=True, text=True
    )
    for folder in [data, *(path for path in before if path.is_dir())]:
        folder.chmod(0o755)  # so that pytest can remove them
    assert done.returncode == 0, done.stderr
    assert "8 clips" in done.stdout
    assert "mel-stats" in done.stdout
    assert sorted(data.rglob("*")) == before
