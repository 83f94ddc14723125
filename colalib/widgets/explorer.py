"""The results explorer (notebook 5): accuracies with intervals, and a confusion matrix whose cells can be heard."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as w
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from colalib import audio, intervals, plots
from colalib.corpora import Corpus
from colalib.widgets import parts


def confusion(predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    """Clips by class (rows) and answer (columns) of a model, mean over its seeds."""
    of = predictions[predictions["model"] == model]
    classes = sorted(set(of["label"]) | set(of["predicted"]))
    counts = pd.crosstab(of["label"], of["predicted"]).reindex(index=classes, columns=classes, fill_value=0)
    return counts / of["seed"].nunique()


def mistaken(predictions: pd.DataFrame, model: str, label: str, predicted: str) -> list[str]:
    """Ids of the clips of class `label` that a model called `predicted`, those most seeds agree on first."""
    of = predictions[(predictions["model"] == model) & (predictions["label"] == label)]
    share = (of["predicted"] == predicted).groupby(of["clip_id"]).mean()
    return list(share[share > 0].sort_values(ascending=False, kind="stable").index)


def results_explorer(corpus: Corpus, predictions: pd.DataFrame | Path | str, seconds: float = 5.0) -> parts.Panel:
    """Models × tasks with intervals, and the confusion matrix of one: press a cell and hear its clips. `predictions`: the table
    that `evaluation.compare` returns, or a predictions.csv. `seconds`: of each clip heard."""
    if not isinstance(predictions, pd.DataFrame):
        predictions = pd.read_csv(predictions, dtype=str, keep_default_na=False).astype({"seed": int})
    clips = corpus.clips.set_index("clip_id")
    tasks = sorted(predictions["task"].unique())
    task = w.Dropdown(options=tasks, description="task")
    model = w.Dropdown(options=[], description="model")
    bars, grid, heard = w.HTML(), w.VBox(), w.HTML()

    def of_task() -> pd.DataFrame:
        return predictions[predictions["task"] == task.value]

    def show_task(*_) -> None:
        summary = intervals.summary(of_task())
        figure = Figure(figsize=(8, 1 + 0.35 * len(summary["results"])), layout="constrained")
        plots.results(summary, figure.subplots(), title=task.value)
        bars.value = parts.picture(figure, f"accuracies on {task.value} with 95% intervals")
        names = [r["model"] for r in summary["results"]]
        kept = model.value
        model.options = names
        model.value = kept if kept in names else names[-1]
        show_model()

    def show_model(*_) -> None:
        if model.value is None:
            return
        counts = confusion(of_task(), model.value)
        most = counts.values.max() or 1
        cells = [w.HTML("")] + [
            w.HTML(f"<div style='writing-mode:vertical-rl;margin:auto;height:100%'>{parts.text(c)}</div>")
            for c in counts.columns
        ]
        for row in counts.index:
            cells.append(w.HTML(f"<div style='text-align:right;padding-right:6px'>{parts.text(row)}</div>"))
            for column in counts.columns:
                value = counts.loc[row, column]
                cell = w.Button(
                    description=f"{value:.0f}" if value else "",
                    tooltip=f"{row} called {column}: {value:.1f} clips",
                    disabled=not value,
                    layout=w.Layout(width="100%", height="30px", margin="0"),
                )
                shade = 1 - 0.75 * value / most
                hue = (0, 158, 115) if row == column else (213, 94, 0)
                cell.style.button_color = "#" + "".join(f"{int(255 * shade + h * (1 - shade)):02x}" for h in hue)
                cell.on_click(lambda _, r=row, c=column: listen(r, c))
                cells.append(cell)
        n = len(counts)
        columns = f"6em repeat({n}, minmax(28px, 52px))"
        grid.children = [
            w.HTML("rows: what it is; columns: what the model says"),
            w.GridBox(cells, layout=w.Layout(grid_template_columns=columns, grid_gap="2px")),
        ]
        heard.value = "Press a cell to hear its clips."

    def listen(label: str, predicted: str) -> None:
        ids = mistaken(of_task(), model.value, label, predicted)
        parts_ = [
            f"<p>{parts.text(label)}, called {parts.text(predicted)}: {len(ids)} clips"
            + (", the first six" if len(ids) > 6 else "")
            + "</p>"
        ]
        for clip in ids[:6]:
            try:
                wave = audio.load_audio(corpus.root / clips.loc[clip, "path"])[: int(16_000 * seconds)]
                parts_.append(parts.sound(wave, clips.loc[clip].get("title") or clip))
            except (audio.Unusable, KeyError) as error:
                parts_.append(f"<p>{parts.text(f'{clip}: {error}')}</p>")
        heard.value = "".join(parts_)

    task.observe(show_task, "value")
    model.observe(show_model, "value")
    show_task()
    parts.remember("results_explorer", {"task": task, "model": model})
    right = w.VBox([heard], layout=w.Layout(flex="1 1 20em"))
    return parts.Panel(
        [w.HBox([task, model]), bars, w.HBox([grid, right], layout=w.Layout(flex_flow="row wrap"))],
        lambda: _still(of_task(), model.value),
    )


def _still(predictions: pd.DataFrame, model: str) -> Figure:
    """Accuracies and one confusion matrix, for where widgets cannot run."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    plots.results(intervals.summary(predictions), left)
    counts = confusion(predictions, model)
    right.imshow(np.sqrt(counts.values), cmap="Greens")
    right.set_xticks(range(len(counts)), counts.columns, rotation=45, ha="right")
    right.set_yticks(range(len(counts)), counts.index)
    right.set(title=model, xlabel="says", ylabel="is")
    return figure
