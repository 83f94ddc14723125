"""Imports run one way: data → encoder, COLA → training → evaluation → collection → widgets → course, cli."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers import ROOT

# from what needs nothing to what may need everything: a room may import its own modules and earlier rooms
ROOMS = (
    ("caches", "errors", "files", "settings"),
    ("data",),
    ("encoder", "fast_cpu", "cola"),
    ("training",),
    ("evaluation",),
    ("collection",),
    ("widgets",),
    ("course",),
    ("cli", "hear", "peers", "export", "", "__main__"),  # doors: "" is colalib/__init__.py
)
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}


def module_name(path) -> str:
    """Return the dotted name of a file of the package: "colalib.data.store"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "colalib").rglob("*.py"))}


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the modules of colalib that are imported anywhere below `tree`, in functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            # `from a import b` imports the module a.b, or else something out of the module a
            names |= {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys() or {node.module}
    return names & FILES.keys()


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
IMPORTS = {name: imported_modules(tree) for name, tree in TREES.items()}


def room(module: str) -> str:
    """Return the room that a module is in: "data" for "colalib.data.store"."""
    return (module.split(".") + [""])[1]


def test_every_module_is_in_a_room():
    assert {room(module) for module in FILES} == set(LEVEL)
    assert IMPORTS["colalib.training.pretraining"] > {"colalib.cola", "colalib.data.clips"}


@pytest.mark.parametrize("module", FILES)
def test_imports_run_one_way(module):
    here = LEVEL[room(module)]
    backward = {name for name in IMPORTS[module] if LEVEL[room(name)] > here}
    assert not backward


@pytest.mark.parametrize("module", FILES)
def test_the_library_needs_no_widgets_and_no_course(module):
    rooms = {room(name) for name in IMPORTS[module]}
    if room(module) not in ("widgets", "course", "cli"):
        assert not rooms & {"widgets", "course"}


def test_the_command_line_imports_heavy_rooms_inside_its_functions():
    at_import = ast.Module(
        [node for node in TREES["colalib.cli"].body if not isinstance(node, ast.FunctionDef)], []
    )
    assert imported_modules(at_import) == {"colalib.errors", "colalib.settings"}
    assert {"course"} <= {room(name) for name in IMPORTS["colalib.cli"]}


def test_no_imports_go_in_a_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("colalib", ["torch", "pandas", "lightning"]),
        ("colalib.cli", ["torch", "pandas", "lightning"]),
        ("colalib.data.corpora", ["torch", "lightning"]),
        ("colalib.evaluation", ["lightning", "ipywidgets"]),
    ],
)
def test_an_import_does_not_bring_what_it_does_not_need(module, unwanted):
    code = f"import sys, {module}; print(*sorted(sys.modules.keys() & {set(unwanted)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
