"""What is written runs: examples in docstrings, Python in README.md, commands in all pages."""

import doctest
import importlib
import re
import shlex
import shutil

import matplotlib
import numpy as np
import pytest
import soundfile
import torch
from helpers import RATE, ROOT, tone

from colalib.cli import build_parser
from colalib.training.runs import DEFAULT

EXAMPLES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in (ROOT / "colalib").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        *ROOT.glob("*.md"),
        ROOT / "data" / "README.md",
        DEFAULT / "README.md",
        ROOT / "notebooks" / "at_scale.md",
    ]
}


def test_there_are_examples():
    assert {"colalib.cola", "colalib.encoder", "colalib.evaluation.embedding"} <= set(EXAMPLES)


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings_run(module):
    names = {"np": np, "torch": torch}
    result = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


# ------------------------------------------------------------------------------------------ Python


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of a page whose language matches."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [code for name, code in fenced if re.fullmatch(language, name)]


SNIPPETS = [(page, code) for page, text in PAGES.items() for code in blocks(text, "python")]


def test_the_readme_has_python():
    assert "README.md" in [page for page, _ in SNIPPETS]


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[page for page, _ in SNIPPETS])
def test_python_in_pages_runs(page, code, mel_store, tmp_path, monkeypatch):
    """In a folder that has what a reader has by then: recordings, a store, a run."""
    files = ["recordings/dog/1.wav", "recordings/cat/2.flac"]
    files += re.findall(r"""["']([\w./-]+\.(?:wav|flac|ogg|mp3))["']""", code)
    for i, name in enumerate(files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, tone(220 + 50 * i, 1.5, i), RATE)
    shutil.copytree(mel_store.path, tmp_path / "stores" / "mine")
    shutil.copytree(DEFAULT, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")  # no windows
    exec(compile(code, page, "exec"), {"__name__": "__main__"})


# ---------------------------------------------------------------------------------------- commands


def commands(text: str) -> list[str]:
    """Return the commands of colalib on a page: in code blocks, and between backticks."""
    code = "\n".join(blocks(text, "(?:sh|bash|console|)"))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\\\n", " ", code).splitlines()  # a backslash joins two lines
    lines += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]
    parts = [part for line in lines for part in re.split(r"; | && | \| ", line.split(" #")[0])]
    start = r"\s*(?:do |[A-Z_]+=\S+ |\$ )*(?:\S*python3? -m colalib|colalib) (?=[a-z-])"
    return [" ".join(re.sub(start, "", part).split()) for part in parts if re.match(start, part)]


COMMANDS = [(page, command) for page, text in PAGES.items() for command in commands(text)]


def test_commands_are_found_where_they_stand():
    page = """Try `python -m colalib bench`, or `colalib fetch\nesc50`; not `colalib.hear` of `colalib`.
```sh
colalib() { .venv/bin/python -m colalib "$@"; }
colalib prepare DIR --out s   # a comment
for k in 0 1; do colalib pretrain s \\
    --seed $k; done
```
"""
    assert commands(page) == [
        "prepare DIR --out s",
        "pretrain s --seed $k",
        "bench",
        "fetch esc50",
    ]


def test_the_readme_has_commands():
    named = {command.split()[0] for page, command in COMMANDS if page == "README.md"}
    assert {"course", "prepare", "pretrain", "probe", "finetune", "compare", "embed", "export"} <= named


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_in_pages_are_understood(page, command):
    words = shlex.split(re.sub(r"\$\w+", "1", command))  # $k is a number in a loop
    try:
        build_parser().parse_args([word for word in words if word not in ("…", "...")])
    except SystemExit as end:
        assert end.code == 0, f"{page}: {command}"  # --help
