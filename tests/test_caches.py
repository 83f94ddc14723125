"""Where no cache can be written, librosa and matplotlib are imported all the same, and silently."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
IMPORTS = """
import os
import colalib
import librosa, matplotlib.pyplot
librosa.filters.get_window("hann", 400), librosa.mel_frequencies(4)
print(os.environ["NUMBA_CACHE_DIR"], os.environ["MPLCONFIGDIR"])
"""


def run(code: str, *before: str) -> subprocess.CompletedProcess:
    """Run Python without a home folder, from the root of the file system."""
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR")}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    environment |= {"HOME": "/nonexistent", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [*before, sys.executable, "-c", code]
    return subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("setpriv") or os.geteuid() != 0, reason="only root can be another user, on Linux"
)
def test_another_user_without_a_home_needs_no_cache():
    if run("import numba", *AS_NOBODY).returncode:
        pytest.skip("the packages cannot be read by other users")
    done = run(IMPORTS, *AS_NOBODY)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for folder in done.stdout.split():
        assert not Path(folder).exists(), "it goes with the process"


@pytest.mark.skipif(os.name == "nt", reason="a Windows user has a home")
def test_a_place_that_can_be_written_is_kept():
    """As somebody who may write nowhere; then with folders that they named."""
    nowhere = "import os; os.access = lambda *_: False; "
    shown = "import colalib; print(*(os.environ.get(n) for n in ('NUMBA_CACHE_DIR', 'MPLCONFIGDIR')))"
    first, second = run(nowhere + shown).stdout.split()
    assert first == second != "None"
    assert not Path(first).exists()
    named = "os.environ |= {'NUMBA_CACHE_DIR': 'a', 'MPLCONFIGDIR': 'b'}; "
    assert run(nowhere + named + shown).stdout.split() == ["a", "b"]
    everywhere = "import os; os.access = lambda *_: True; "
    assert run(everywhere + shown).stdout.split() == ["None", "None"]
