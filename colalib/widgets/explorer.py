"""The results explorer (notebook 5): accuracies with intervals, and a confusion matrix whose cells
can be heard.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import ipywidgets as w
import pandas as pd
from matplotlib.figure import Figure

from colalib.data import audio
from colalib.data.corpora import Corpus
from colalib.evaluation import intervals, plots
from colalib.widgets import parts


def confusion(predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    """Clips by class (rows) and answer (columns) of a model, mean over its seeds."""
    of = predictions[predictions["model"] == model]
    classes = sorted(set(of["label"]) | set(of["predicted"]))
    counts = pd.crosstab(of["label"], of["predicted"]).reindex(index=classes, columns=classes, fill_value=0)
    return counts / of["seed"].nunique()


def misclassified(predictions: pd.DataFrame, model: str, label: str, predicted: str) -> list[str]:
    """Ids of the clips of class `label` that a model called `predicted`, those most seeds agree on
    first.
    """
    of = predictions[(predictions["model"] == model) & (predictions["label"] == label)]
    share = (of["predicted"] == predicted).groupby(of["clip_id"]).mean()
    return list(share[share > 0].sort_values(ascending=False, kind="stable").index)


def results_explorer(
    corpus: Corpus, predictions: pd.DataFrame | Path | str | list[Path], seconds: float = 5.0
) -> parts.WidgetWithFallback:
    """Models × tasks with intervals, and the confusion matrix of one: press a cell and hear its
    clips. `predictions`: the table that `evaluation.compare` returns, or files such as
    predictions.csv, one or several. `seconds`: of each clip heard."""
    if not isinstance(predictions, pd.DataFrame):
        files = predictions if isinstance(predictions, list) else [predictions]
        read = [pd.read_csv(file, dtype=str, keep_default_na=False) for file in files]
        predictions = pd.concat(read, ignore_index=True).astype({"seed": int})
    clips = corpus.clips.set_index("clip_id")
    tasks = list(predictions["task"].unique())
    task = w.Dropdown(options=tasks, description="task")
    model = w.Dropdown(options=[], description="model")
    bars, grid, heard = w.HTML(), w.VBox(), w.HTML()
    more = w.Button(icon="forward", layout=w.Layout(width="9em", display="none"))
    state: dict = {"names": [], "cells": w.GridBox(), "left": [], "said": ""}

    def of_task() -> pd.DataFrame:
        return predictions[predictions["task"] == task.value]

    def show_task(*_) -> None:
        summary = intervals.summary(of_task())
        figure = Figure(figsize=(8, 1 + 0.35 * len(summary["results"])), layout="constrained")
        plots.results(summary, figure.subplots(), title=task.value)
        bars.value = parts.picture(figure, f"accuracies on {task.value} with 95% intervals")
        names = [r["model"] for r in summary["results"]]
        kept = model.value
        model.unobserve(show_model, "value")
        model.options = names
        model.value = kept if kept in names else names[-1]
        model.observe(show_model, "value")
        show_model()

    def show_model(*_) -> None:
        counts = confusion(of_task(), model.value)
        most, names = counts.values.max() or 1, list(counts.index)
        if names != state["names"]:  # widgets that are left behind would live on
            for old in state["cells"].children:
                old.close()
            state.update(names=names, cells=lay_out(names))
            grid.children = [w.HTML("rows: what it is; columns: what the model says"), state["cells"]]
        cells = iter(c for c in state["cells"].children if isinstance(c, w.Button))
        for row, column in itertools.product(names, names):
            cell, value = next(cells), counts.loc[row, column]
            shade = 1 - 0.75 * value / most
            hue = (0, 158, 115) if row == column else (213, 94, 0)
            cell.style.button_color = "#" + "".join(f"{int(255 * shade + h * (1 - shade)):02x}" for h in hue)
            cell.description, cell.disabled = f"{value:.0f}" if value else "", not value
            cell.tooltip = f"{row} called {column}: {value:.1f} clips"
        heard.value, more.layout.display = "Press a cell to hear its clips.", "none"

    def lay_out(names: list[str]) -> w.GridBox:
        """A button for each pair of classes, with their names around."""
        tall = "<div style='writing-mode:vertical-rl;white-space:nowrap;margin:auto'>{}</div>"
        cells = [w.HTML(""), *(w.HTML(tall.format(parts.text(name))) for name in names)]
        for row in names:
            cells.append(w.HTML(f"<div style='text-align:right;padding-right:6px'>{parts.text(row)}</div>"))
            for column in names:
                cell = w.Button(layout=w.Layout(width="100%", height="30px", margin="0"))
                cell.on_click(lambda _, r=row, c=column: listen(r, c))
                cells.append(cell)
        columns = f"6em repeat({len(names)}, minmax(28px, 52px))"
        return w.GridBox(cells, layout=w.Layout(grid_template_columns=columns, grid_gap="2px"))

    def listen(label: str, predicted: str) -> None:
        ids = misclassified(of_task(), model.value, label, predicted)
        state.update(
            left=ids, said=f"<p>{parts.text(label)}, called {parts.text(predicted)}: {len(ids)} clips</p>"
        )
        listen_on()

    def listen_on(*_) -> None:
        """The next six clips of the cell that was pressed."""
        now, state["left"] = state["left"][:6], state["left"][6:]
        players = []
        for clip in now:
            try:
                wave = audio.load_audio(corpus.root / clips.loc[clip, "path"])[: int(16_000 * seconds)]
                players.append(parts.sound(wave, clips.loc[clip].get("title") or clip))
            except (audio.Unusable, KeyError) as error:
                players.append(f"<p>{parts.text(f'{clip}: {error}')}</p>")
        heard.value = state["said"] + "".join(players)
        more.description, more.layout.display = (
            f"{len(state['left'])} more",
            "" if state["left"] else "none",
        )

    task.observe(show_task, "value")
    model.observe(show_model, "value")
    more.on_click(listen_on)
    show_task()
    parts.persist("results_explorer", {"task": task, "model": model})
    right = w.VBox([heard, more], layout=w.Layout(flex="1 1 20em", margin="0 0 0 12px"))
    return parts.WidgetWithFallback(
        [
            w.HBox([task, model]),
            bars,
            w.HBox([grid, right], layout=w.Layout(flex_flow="row wrap", align_items="flex-start")),
        ],
        lambda: _static_figure(of_task(), model.value),
    )


def _static_figure(predictions: pd.DataFrame, model: str) -> Figure:
    """Accuracies and one confusion matrix, for where widgets cannot run."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    plots.results(intervals.summary(predictions), left)
    of = predictions[predictions["model"] == model]
    plots.confusion(of, right, model)
    return figure
