"""The project's own files: what they name fits together, and what they set up or build works."""

import functools
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
import zipfile

import pytest
import yaml
from helpers import ROOT, committed, committed_sizes
from packaging.requirements import Requirement
from packaging.version import Version

from colalib.cli import build_parser

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CONSTRAINTS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def test_conda_gets_the_same_packages():
    """environment.yml takes only python and pip from conda-forge. pip installs the project itself,
    so its dependencies are the one list in pyproject.toml, under the same constraints.
    """
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


def pinned_version(name: str) -> str:
    """Return the version of a package in constraints.txt."""
    normal = re.sub(r"[-_.]+", "-", name).lower()
    (pin,) = [c for c in CONSTRAINTS if re.sub(r"[-_.]+", "-", c.name).lower() == normal]
    (version,) = [s.version for s in pin.specifier]
    return version


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *EXTRAS])
def test_every_dependency_has_a_tested_version_in_its_range(text):
    requirement = Requirement(text)
    assert Version(pinned_version(requirement.name)) in requirement.specifier


def test_tracked_files_are_small_and_of_this_project():
    sizes = committed_sizes()
    if not sizes:
        pytest.skip("not a git checkout")
    assert sizes["Makefile"] > 1000
    for name, size in sizes.items():
        most = 10 if name == "colalib/default/encoder.safetensors" else 1
        assert size < most * 1_000_000, f"{name} is over {most} MB"


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_notebook_that_a_learner_ran_is_not_what_is_tested(tmp_path):
    """What is tested is what git keeps; without git, the files."""
    notebook = tmp_path / "a notebook.ipynb"
    notebook.write_text("kept")
    assert committed(notebook, tmp_path) == "kept", "no checkout yet"
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    notebook.write_text("2.9 MB of outputs")
    assert committed(notebook, tmp_path) == "kept"
    assert committed_sizes(tmp_path) == {notebook.name: 4}


def test_no_test_file_needs_another():
    for path in (ROOT / "tests").rglob("test_*.py"):
        imported = re.findall(r"^(?:from|import) (test_\w+|conftest)", path.read_text(), flags=re.MULTILINE)
        assert not imported, path


# ------------------------------------------------------------------------------------------ set-up

needs_make = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("make"), reason="tries the Makefile on Linux"
)


def make(folder, *words) -> subprocess.CompletedProcess:
    """Run make in a folder, without the settings of pip and of an outer make."""
    outer = ("PIP_", "MAKE", "MFLAGS", "TORCH_INDEX")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(outer)}
    environment |= {"PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True)


@needs_make
def test_python_outside_the_range_is_refused(tmp_path):
    """`make` with an interpreter that says it is 3.10 stops with one line."""
    fake = tmp_path / "python"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exec python3 -c "import sys; sys.version_info = (3, 10, 0); $2"\n'
    )
    fake.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = make(tmp_path, "course", f"PYTHON={fake}")
    assert done.returncode != 0
    assert "Python 3.10 is not supported: use 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()


def write_wheel(folder, version: str) -> None:
    """Write a package named torch that holds nothing."""
    about = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch/__init__.py", "")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", f"torch/__init__.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n")


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Addresses of two indexes on this machine: `cpu` has the pinned torch and a newer one, `other`
    has only another one.
    """
    root, pinned = tmp_path_factory.mktemp("indexes"), pinned_version("torch")
    for name, versions in {"cpu": [f"{pinned}+cpu", "99.0+cpu"], "other": ["0.1"]}.items():
        folder = root / name / "torch"
        folder.mkdir(parents=True)
        for version in versions:
            write_wheel(folder, version)
        links = [f'<a href="{p.name.replace("+", "%2B")}">{p.name}</a>' for p in sorted(folder.iterdir())]
        (folder / "index.html").write_text("<!DOCTYPE html>" + "\n".join(links))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {name: f"http://127.0.0.1:{server.server_port}/{name}" for name in ("cpu", "other")}
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory):
    """A folder with the Makefile and a virtual environment in which nothing is installed yet."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "Makefile", root)
    shutil.copy(ROOT / "constraints.txt", root)
    done = make(root, ".venv/made", f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def checkout(empty_environment, tmp_path):
    return shutil.copytree(empty_environment, tmp_path / "checkout", symlinks=True)


def installed_torch(checkout) -> list[str]:
    """Return the version of torch in the environment, if there is one."""
    code = "import importlib.metadata as m; print(*[d.version for d in m.distributions(name='torch')])"
    words = [checkout / ".venv" / "bin" / "python", "-I", "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


@needs_make
@pytest.mark.slow
def test_without_a_gpu_torch_is_the_pinned_cpu_build(checkout, indexes):
    done = make(checkout, ".venv/torch", f"CPU_INDEX={indexes['cpu']}", "NVIDIA=")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"torch: from {indexes['cpu']}"]
    assert installed_torch(checkout) == [f"{pinned_version('torch')}+cpu"]
    again = make(checkout, ".venv/torch", f"CPU_INDEX={indexes['cpu']}", "NVIDIA=")
    assert "up to date" in again.stdout


@needs_make
@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["NVIDIA=a driver"], ["NVIDIA=", "TORCH_INDEX="], ["SYSTEM=Darwin", "NVIDIA="]]
)
def test_elsewhere_and_on_request_torch_comes_from_the_default_index(checkout, indexes, words):
    done = make(checkout, ".venv/torch", f"CPU_INDEX={indexes['cpu']}", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["torch: from pip's default index"]
    assert installed_torch(checkout) == [], "it comes with everything else"


@needs_make
@pytest.mark.slow
def test_an_index_that_does_not_answer_is_passed_over(checkout):
    """It takes connections and says nothing: without a limit this would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/cpu"
        done = make(checkout, ".venv/torch", f"CPU_INDEX={address}", "NVIDIA=")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["torch: from pip's default index"]
    assert done.stderr.splitlines() == [f"{address} cannot be reached"]
    assert installed_torch(checkout) == []


@needs_make
@pytest.mark.slow
def test_an_index_without_the_pinned_torch_is_an_error_only_if_it_was_named(checkout, indexes):
    named = make(checkout, ".venv/torch", f"TORCH_INDEX={indexes['other']}", "NVIDIA=")
    assert named.returncode != 0
    assert not (checkout / ".venv" / "torch").exists()
    chosen = make(checkout, ".venv/torch", f"CPU_INDEX={indexes['other']}", "NVIDIA=")
    assert chosen.returncode == 0, chosen.stderr
    assert chosen.stdout.splitlines()[-1] == "torch: not there, so from pip's default index"
    assert installed_torch(checkout) == []
    right = make(checkout, "-B", ".venv/torch", f"TORCH_INDEX={indexes['cpu']}", f"PYTHON={sys.executable}")
    assert right.returncode == 0, right.stderr
    assert installed_torch(checkout) == [f"{pinned_version('torch')}+cpu"]


NOTES_ITS_WORDS = """#!/bin/sh
for word in "$@"; do printf '%s\\0' "$word"; done >> words
printf '\\n' >> words
"""


@needs_make
@pytest.mark.parametrize("size", ["small", "large"])
def test_fma_is_fetched_prepared_trained_on_and_compared(tmp_path, size):
    """The commands of `make fma-small` and `make fma-large`, in a folder with a space in its name."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(NOTES_ITS_WORDS)
    (tmp_path / "bin" / "python").chmod(0o755)
    done = make(tmp_path, f"fma-{size}", "BIN=bin", "DATA=/my disk", "-o", ".venv/ready")
    assert done.returncode == 0, done.stderr
    calls = [line.split("\0")[:-1] for line in (tmp_path / "words").read_text().splitlines()]
    assert {tuple(words[:2]) for words in calls} == {("-m", "colalib")}
    parsed = [build_parser().parse_args(words[2:]) for words in calls]  # each option is one
    steps = [words[2] for words in calls]
    assert steps == ["fetch", "prepare", "fetch", "prepare", "pretrain", "compare"]
    assert [parsed[i].name for i in (0, 2)] == ["fma_small", f"fma_{size}"]
    assert parsed[0].data == parsed[1].data == "/my disk"
    assert parsed[3].out == f"/my disk/fma_{size}.store"
    assert parsed[4].store == [parsed[3].out]
    assert parsed[4].resume
    assert parsed[5].store == parsed[1].out == "/my disk/fma_small.store"
    assert parsed[5].encoder == [parsed[4].out]


# ------------------------------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that nothing is left in the checkout."""
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "colalib", root / "colalib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root / "dist"), str(root)]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (root / "dist").glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_all_of_the_package_and_nothing_else(wheel):
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "colalib").rglob("*") if p.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files
    assert {
        "colalib/default/encoder.safetensors",
        "colalib/widgets/maps.js",
        "colalib/widgets/maps.css",
    } <= names


INSTALLED = """
import numpy as np
import colalib, colalib.hear
from colalib.widgets import maps
print(colalib.__file__)
print(colalib.embed((0.1 * np.sin(np.arange(16_000) / 10), 16_000)).vectors.shape)
print(colalib.hear.load_model().scene_embedding_size)
print("export default" in str(maps.Map._esm))
"""


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(target)}

    def run(*words) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "pretrain" in run("-m", "colalib", "--help")
    file, shape, size, has_script = run("-c", INSTALLED).splitlines()
    assert file == str(target / "colalib" / "__init__.py")
    assert shape == "(1, 4032)"
    assert size == "4032"
    assert has_script == "True"
