"""The notebooks run from top to bottom, equal their sources, and can be kept under version control."""

import ast
import base64
import io
import json
import re
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
import umap
from helpers import call, committed
from jupytext.compare import compare_notebooks
from PIL import Image
from site_helpers import links_are_whole
from widget_helpers import Tags

from colalib import course
from colalib.course import running

NOTEBOOKS = running.notebooks()


def source(notebook: Path) -> Path:
    """Return the py:percent source of a notebook."""
    return notebook.parent / "source" / f"{notebook.stem}.py"


def outputs(content: nbformat.NotebookNode) -> list[dict]:
    """Return the outputs of all cells."""
    return [output for cell in content.cells for output in cell.get("outputs", [])]


def has_figure(content: nbformat.NotebookNode) -> bool:
    return any("image/png" in output.get("data", {}) for output in outputs(content))


def has_error(content: nbformat.NotebookNode) -> bool:
    return any(output["output_type"] == "error" for output in outputs(content))


def test_the_course_is_complete():
    names = [
        "01_sound_to_mel",
        "02_segment_pairs",
        "03_contrastive_pretraining",
        "04_fine_tuning",
        "05_evaluation",
        "06_what_a_result_shows",
        "07_embedding_map",
        "08_scaling_up",
    ]
    sources = (NOTEBOOKS[0].parent / "source").glob("*.py")
    assert [notebook.stem for notebook in NOTEBOOKS] == names
    assert sorted(file.stem for file in sources) == names


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook_equals_its_source(notebook):
    content = nbformat.reads(committed(notebook), 4)
    from_source = jupytext.reads(committed(source(notebook)), fmt="py:percent")
    compare_notebooks(content, from_source, fmt="py:percent", compare_outputs=False)


def test_a_drifted_pair_is_noticed():
    drifted = jupytext.reads(committed(source(NOTEBOOKS[0])), fmt="py:percent")
    code = next(cell for cell in drifted.cells if cell.cell_type == "code")
    code.source += "\nprint(1)"
    content = nbformat.reads(committed(NOTEBOOKS[0]), 4)
    with pytest.raises(Exception, match="differ"):
        compare_notebooks(content, drifted, fmt="py:percent", compare_outputs=False)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook_is_small_and_holds_figures_but_neither_audio_nor_widget_state(notebook):
    text = committed(notebook)
    content = nbformat.reads(text, 4)
    assert len(text) < 1_000_000
    assert "data:audio" not in text
    assert "widgets" not in content.metadata
    assert has_figure(content)
    assert not has_error(content)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_a_cell_can_be_read_at_a_glance(notebook):
    cells = [c.source.splitlines() for c in jupytext.read(source(notebook)).cells if c.cell_type == "code"]
    assert not {lines[0]: len(lines) for lines in cells if len(lines) > 20}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook_names_no_folder_of_the_machine_that_ran_it(notebook):
    text = committed(notebook)
    assert not re.search(r"/home/|/Users/|/root/|/tmp/", text)
    assert str(course.home()) not in text


def test_the_course_runs(executed):
    process, runs = executed
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    first_line = process.stdout.splitlines()[0]
    for needed in ("minutes", "GB of disk", "download"):
        assert needed in first_line
    for printed in ("mel-stats", "results.json", "Next:"):
        assert printed in process.stdout
    copies = sorted(file.name for file in (runs / "notebooks").iterdir())
    assert copies == [notebook.name for notebook in NOTEBOOKS]


def test_the_course_leaves_results(executed):
    _, runs = executed
    results = json.loads((runs / "results.json").read_text())
    models = {"mel-stats", "random", "probe", "kNN", "scratch", "fine-tuned"}
    assert models <= set(results["model_name"])
    assert results["chance"] == pytest.approx(0.125, abs=0.03)
    assert results["task"] == "scores/label"
    assert len(results["accuracies"]) == len(results["model_name"])


def test_executed_notebooks_have_figures_and_players(executed):
    _, runs = executed
    for copy in (runs / "notebooks").iterdir():
        content = nbformat.read(copy, 4)
        assert "widgets" not in content.metadata, (
            "exported, the widgets would hide the pictures that stand in for them"
        )
        assert has_figure(content), copy.name
        assert not has_error(content), copy.name
    text = (runs / "notebooks" / NOTEBOOKS[1].name).read_text()
    assert "data:audio/wav" in text
    assert "autoplay" not in text


def test_the_executed_course_is_a_site_in_which_the_maps_move(executed, tmp_path, capsys):
    _, runs = executed
    code, out, error = call(capsys, "site", "--runs", runs, "--out", tmp_path / "site")
    assert code == 0, error
    assert "open it in a browser" in out
    shown = [Tags(page.read_text(encoding="utf-8")).tags for page in (tmp_path / "site").glob("0*.html")]
    frames = [attributes["title"] for tags in shown for tag, attributes in tags if tag == "iframe"]
    assert frames == ["Watch it learn", "Embedding map"]
    quizzes = [a for tags in shown for _, a in tags if "cola-quiz" in (a.get("class") or "").split()]
    assert len(quizzes) == 1
    assert links_are_whole(tmp_path / "site") > 100


def test_a_failing_cell_ends_the_course(tmp_path, capsys):
    failing = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("print('so far')"), nbformat.v4.new_code_cell("1 / 0")]
    )
    nbformat.write(failing, tmp_path / "failing.ipynb")
    assert not running.execute(tmp_path / "failing.ipynb", tmp_path / "out" / "failing.ipynb")
    assert "failing.ipynb: a cell failed: ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert "so far" in (tmp_path / "out" / "failing.ipynb").read_text()


def test_a_kernel_that_dies_ends_the_course(tmp_path, capsys):
    dying = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os; os._exit(1)")])
    nbformat.write(dying, tmp_path / "dying.ipynb")
    assert not running.execute(tmp_path / "dying.ipynb", tmp_path / "out" / "dying.ipynb")
    assert "dying.ipynb: its kernel died" in capsys.readouterr().out


def test_stripping_keeps_figures_and_drops_audio_and_widgets():
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    widget = "application/vnd.jupyter.widget-view+json"
    displayed = [
        {"image/png": picture},
        {"text/html": "<audio src='data:audio/wav;base64,xx'>", "text/plain": "x"},
        {widget: {}, "text/plain": "bar"},
        {widget: {"model_id": "1"}, "image/png": picture},
    ]
    cell = nbformat.v4.new_code_cell("")
    cell.outputs = [nbformat.v4.new_output("display_data", data) for data in displayed]
    cell.outputs += [
        nbformat.v4.new_output("stream", name="stderr", text="50%"),
        nbformat.v4.new_output("stream", name="stdout", text="a result"),
    ]
    content = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    stripped = running.stripped(content)
    figure, audio, widget_picture, printed = stripped.cells[0].outputs
    assert list(figure.data) == ["image/png"]
    assert list(audio.data) == ["text/plain"]
    assert "listen" in audio.data["text/plain"]
    assert list(widget_picture.data) == ["image/png"]
    assert printed.text == "a result"
    assert "widgets" not in stripped.metadata


def test_a_map_of_too_few_clips_is_refused_in_one_line():
    """Notebook 7, cell "flatten"; with four clips there is a map, also if they are equal."""
    cells = jupytext.reads(committed(source(NOTEBOOKS[6])), fmt="py:percent").cells
    cell = next(cell for cell in cells if "def flatten" in cell.source)
    (function,) = [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
    space = {"umap": umap, "np": np}
    exec(compile(ast.Module([function], []), "flatten", "exec"), space)
    for n in (0, 1, 3):
        with pytest.raises(ValueError, match=f"^{n} clips are too few for UMAP: take at least 4$"):
            space["flatten"](np.ones((n, 8), np.float32))
    for x in (np.ones((4, 8), np.float32), np.eye(4, 8, dtype=np.float32)):
        points = space["flatten"](x).embedding_
        assert points.shape == (4, 2)
        assert np.isfinite(points).all()
