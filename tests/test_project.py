"""The project's own files: environments name the same packages, sizes stay small, nothing points
elsewhere.
"""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def test_conda_gets_the_same_packages():
    """environment.yml takes only python and pip from conda-forge; pip installs the project itself,
    so its dependencies are the one list in pyproject.toml, under the same constraints."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    names = {Requirement(text.replace("=", "==")).name for text in conda}
    assert names == {"python", "pip"}
    assert pip == {"pip": ["-c constraints.txt", "-e ."]}
    version = next(text for text in conda if text.startswith("python")).split("=")[1]
    assert Version(version) in Requirement(f"python{PROJECT['requires-python']}").specifier


EXTRAS = [
    text
    for extra in PROJECT["optional-dependencies"].values()
    for text in extra
    if not text.startswith("colalib[")
]


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *EXTRAS])
def test_every_dependency_has_a_tested_version_in_its_range(text):
    requirement = Requirement(text)
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    (pinned,) = [c for c in CONSTRAINTS if re.sub(r"[-_.]+", "-", c.name).lower() == name]
    (version,) = [s.version for s in pinned.specifier]
    assert Version(version) in requirement.specifier


def test_tracked_files_are_small_and_of_this_project():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.exists():
            most = 10 if name == "colalib/default/encoder.safetensors" else 1
            assert path.stat().st_size < most * 1_000_000, f"{name} is over {most} MB"


def test_python_outside_the_range_is_refused(tmp_path):
    """`make` with an interpreter that says it is 3.10 stops with one line."""
    fake = tmp_path / "python"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exec python3 -c "import sys; sys.version_info = (3, 10, 0); $2"\n'
    )
    fake.chmod(0o755)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    ended = subprocess.run(["make", "course", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode != 0 and "Python 3.10 is not supported: use 3.11, 3.12 or 3.13" in ended.stderr
    assert not (tmp_path / ".venv").exists()
