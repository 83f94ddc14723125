"""The notebooks: they run from top to bottom, equal their sources, and are fit to be kept."""

import base64
import io
import json
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupytext.compare import compare_notebooks
from PIL import Image

from colalib import course

NOTEBOOKS = course.notebooks()


def source(notebook: Path) -> Path:
    return notebook.parent / "source" / f"{notebook.stem}.py"


def test_the_course_is_complete():
    names = [
        "sound_to_mel",
        "segment_pairs",
        "contrastive_pretraining",
        "fine_tuning",
        "evaluation",
        "embedding_map",
    ]
    names.append("scaling_up")
    assert [n.stem for n in NOTEBOOKS] == [f"{i:02d}_{name}" for i, name in enumerate(names, start=1)]
    assert sorted(p.stem for p in (NOTEBOOKS[0].parent / "source").glob("*.py")) == [
        n.stem for n in NOTEBOOKS
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook_equals_its_source(notebook):
    compare_notebooks(
        nbformat.read(notebook, 4), jupytext.read(source(notebook)), fmt="py:percent", compare_outputs=False
    )


def test_a_drifted_pair_is_noticed():
    drifted = jupytext.read(source(NOTEBOOKS[0]))
    code = next(cell for cell in drifted.cells if cell.cell_type == "code")
    code.source += "\nprint(1)"
    with pytest.raises(Exception, match="differ"):
        compare_notebooks(nbformat.read(NOTEBOOKS[0], 4), drifted, fmt="py:percent", compare_outputs=False)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook_is_fit_to_be_kept(notebook):
    """Under 1 MB, executed with figures, no audio, no widget state, no error, no path of the
    machine that ran it.
    """
    text = notebook.read_text(encoding="utf-8")
    content = json.loads(text)
    assert len(text) < 1_000_000 and "data:audio" not in text and "widgets" not in content["metadata"]
    assert str(Path.home()) + "/" not in text and str(course.home()) not in text
    outputs = [o for cell in content["cells"] for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not any(o["output_type"] == "error" for o in outputs)


def test_the_course_runs(executed):
    ended, runs = executed
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    first = ended.stdout.splitlines()[0]
    assert "minutes" in first and "GB of disk" in first and "download" in first
    assert "mel-stats" in ended.stdout and "results.json" in ended.stdout and "Next:" in ended.stdout
    assert sorted(p.name for p in (runs / "notebooks").iterdir()) == [n.name for n in NOTEBOOKS]


def test_the_course_leaves_results(executed):
    _, runs = executed
    results = json.loads((runs / "results.json").read_text())
    wanted = {"mel-stats", "random", "probe", "kNN", "scratch", "fine-tuned"}
    assert wanted <= set(results["model_name"]) and results["chance"] == pytest.approx(0.125, abs=0.03)
    assert results["task"] == "scores/label" and len(results["accuracies"]) == len(results["model_name"])


def test_executed_notebooks_have_figures_and_players(executed):
    _, runs = executed
    for copy in (runs / "notebooks").iterdir():
        content = nbformat.read(copy, 4)
        assert "widgets" not in content.metadata, (
            "exported, the widgets would hide the pictures that stand in for them"
        )
        outputs = [o for cell in content.cells for o in cell.get("outputs", [])]
        assert any("image/png" in o.get("data", {}) for o in outputs), copy.name
        assert all(o["output_type"] != "error" for o in outputs)
    text = (runs / "notebooks" / NOTEBOOKS[1].name).read_text()
    assert "data:audio/wav" in text and "autoplay" not in text


def test_a_failing_cell_ends_the_course(tmp_path, capsys):
    failing = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("print('so far')"), nbformat.v4.new_code_cell("1 / 0")]
    )
    nbformat.write(failing, tmp_path / "failing.ipynb")
    assert not course.execute(tmp_path / "failing.ipynb", tmp_path / "out" / "failing.ipynb")
    assert "failing.ipynb: a cell failed: ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert "so far" in (tmp_path / "out" / "failing.ipynb").read_text()


def test_stripping_keeps_figures_and_drops_audio_and_widgets():
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(picture, "PNG")
    outputs = [
        nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(picture.getvalue()).decode()}),
        nbformat.v4.new_output(
            "display_data", {"text/html": "<audio src='data:audio/wav;base64,xx'>", "text/plain": "x"}
        ),
        nbformat.v4.new_output(
            "display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}
        ),
        nbformat.v4.new_output(
            "display_data",
            {
                "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
                "image/png": base64.b64encode(picture.getvalue()).decode(),
            },
        ),
        nbformat.v4.new_output("stream", name="stderr", text="50%"),
        nbformat.v4.new_output("stream", name="stdout", text="kept"),
    ]
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)])
    content.metadata["widgets"] = {"state": {}}
    kept = course.stripped(content).cells[0].outputs
    assert [list(o.get("data", {"stream": 0})) for o in kept] == [
        ["image/png"],
        ["text/plain"],
        ["image/png"],
        ["stream"],
    ]
    assert "listen" in kept[1].data["text/plain"] and "widgets" not in course.stripped(content).metadata
