"""Every exercise has a solution that passes its check, and the lesson runs with all of them in place."""

import re

import jupytext
import nbformat
import pytest
from helpers import course_places

from colalib.course import running

NOTEBOOKS = running.notebooks()
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)


def solved(content: nbformat.NotebookNode) -> list[str]:
    """Put the solutions in the place of what is to be written; return the names of the functions."""
    names = []
    for i, cell in enumerate(content.cells):
        if cell.cell_type == "code" and "raise NotImplementedError" in cell.source:
            (name,) = re.findall(r"^def (\w+)\(", cell.source, re.MULTILINE)
            text = "\n".join(c.source for c in content.cells[i:] if c.cell_type == "markdown")
            (solution,) = (s for s in SOLUTION.findall(text) if f"def {name}(" in s)
            cell.source = solution
            names.append(name)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_every_solution_passes_and_the_lesson_runs_with_it(executed, notebook, tmp_path, monkeypatch):
    _, runs = executed
    content = jupytext.read(notebook.parent / "source" / f"{notebook.stem}.py")
    names = solved(content)
    assert names
    nbformat.write(content, tmp_path / notebook.name)
    for name, value in course_places(runs.parents[1]).items():
        monkeypatch.setenv(name, value)
    copy = tmp_path / "executed.ipynb"
    assert running.execute(tmp_path / notebook.name, copy), copy.read_text()[-2000:]
    outputs = [out for cell in nbformat.read(copy, 4).cells for out in cell.get("outputs", [])]
    text = "".join(out.get("text", "") for out in outputs)
    for name in names:
        assert f"{name}: passed" in text, re.findall(rf"{name}: .*", text)
