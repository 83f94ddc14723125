"""The results explorer: confusions, and the clips behind them, for any number of classes."""

import numpy as np
import pandas as pd
import pytest
from ipywidgets.widgets import widget
from matplotlib.figure import Figure
from widget_helpers import parts_of, press

from colalib import widgets
from colalib.evaluation import intervals, plots
from colalib.widgets import explorer


def test_confusions_and_the_clips_behind_them(predictions):
    probe = predictions[predictions["model"] == "probe"]
    counts = intervals.confusion(probe)
    assert counts.values.sum() == 2 * 96
    assert counts.loc["low", "low"] == 2 * 32
    clips = explorer.misclassified(probe, "high", "low")
    assert 2 * len(clips) == counts.loc["high", "low"] > 0


def test_pressing_a_cell_brings_its_clips(corpus, predictions):
    shown = widgets.results_explorer(corpus, predictions)
    assert "<audio" not in shown.heard.value
    assert shown.counts.loc["low", "low"] == 32
    assert shown.counts.loc["low", "high"] == 0
    press(shown.matrix, "low", "low")
    first = shown.heard.value
    assert first.count("<audio") == 6
    shown.more.click()
    assert shown.heard.value != first
    assert shown.heard.value.count("<audio") == 6


def test_the_page_gets_the_counts(corpus, predictions):
    shown = widgets.results_explorer(corpus, predictions)
    content = shown.matrix.content
    assert content["classes"] == ["high", "low", "middle"]
    counts = np.frombuffer(content["counts"], np.float32).reshape(3, 3)
    assert np.array_equal(counts, shown.counts)
    assert counts.sum() == 96
    shown.model.value = "random"
    assert not np.array_equal(np.frombuffer(shown.matrix.content["counts"], np.float32).reshape(3, 3), counts)


def test_models_with_several_label_budgets_are_told_apart(corpus, predictions):
    budgets = [predictions.assign(labels_per_class=budget) for budget in ("10", "")]
    shown = widgets.results_explorer(corpus, pd.concat(budgets))
    shown.model.value = "probe (10 per class)"
    assert shown.counts.loc["low", "low"] == 32


def test_the_explorer_leaves_no_widgets_behind(corpus, predictions):
    shown = widgets.results_explorer(corpus, predictions)
    before = len(widget._instances)
    for name in ("random", "probe", "random"):
        shown.model.value = name
    assert len(widget._instances) == before


def many_classes(corpus, n):
    """Return predictions with `n` classes, each clip taken for its own class or the next one."""
    ids = np.resize(corpus.clips["clip_id"].values, 4 * n)
    labels = [f"class {i:03d}" for i in range(n)]
    rows = {"label": np.repeat(labels, 4), "predicted": np.roll(np.repeat(labels, 4), 1)}
    clips = pd.DataFrame({"clip_id": [f"{i} {clip}" for i, clip in enumerate(ids)], **rows})
    return clips.assign(group=clips["clip_id"], task="many/label", fold="", model="probe", seed=0)


@pytest.mark.parametrize("n", [50, 200])
def test_many_classes_are_one_message(corpus, n):
    shown = widgets.results_explorer(corpus, many_classes(corpus, n))
    assert len(parts_of(shown)) < 20
    assert len(shown.matrix.content["classes"]) == n
    counts = np.frombuffer(shown.matrix.content["counts"], np.float32)
    assert len(counts) == n * n
    assert counts.sum() == 4 * n
    press(shown.matrix, "class 002", "class 001")
    assert "class 002, called class 001: 1 clips" in shown.heard.value


def test_a_figure_of_many_classes_has_no_numbers_in_its_cells(corpus):
    axes = Figure().subplots(1, 2)
    assert len(plots.confusion(many_classes(corpus, 20), axes[0]).texts) == 400
    assert len(plots.confusion(many_classes(corpus, 50), axes[1]).texts) == 0


def test_clips_that_cannot_be_heard_say_why(corpus, predictions):
    shown = widgets.results_explorer(corpus, predictions)
    paths = shown.clips["path"].to_numpy(copy=True)
    paths[:] = "nowhere.wav"
    shown.clips["path"] = paths
    press(shown.matrix, "low", "low")
    assert shown.heard.value.count("file not found") == 6
    shown.clips = shown.clips.iloc[:0]
    press(shown.matrix, "low", "low")
    assert shown.heard.value.count("not in this corpus") == 6
