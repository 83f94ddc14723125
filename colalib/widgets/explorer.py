"""The results explorer (notebook 5): accuracies with intervals, and a confusion matrix whose cells can
be heard.
"""

from __future__ import annotations

from pathlib import Path

import anywidget
import ipywidgets as w
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from colalib.data import audio
from colalib.data.corpus import Corpus
from colalib.evaluation import intervals, plots
from colalib.training.runs import read_predictions
from colalib.widgets import parts

HERE = Path(__file__).parent
SECONDS = 5  # of each clip that is heard
CLIPS_AT_ONCE = 6  # players that fit beside the matrix


class Matrix(anywidget.AnyWidget):
    """A confusion matrix, drawn in the page from one message: hundreds of classes are a small one.

    The page sends {"label", "predicted"} of a cell that is pressed.
    """

    _esm = HERE / "matrix.js"
    _css = HERE / "matrix.css"
    # "classes": names; "counts": float32 [classes, classes], clips of a true class (row) by answer
    content = traitlets.Dict().tag(sync=True)


def misclassified(predictions: pd.DataFrame, label: str, predicted: str) -> list[str]:
    """Return the ids of the clips of class `label` that one model called `predicted`.

    Clips on which most seeds agree come first.
    """
    of_class = predictions[predictions["label"] == label]
    share = (of_class["predicted"] == predicted).groupby(of_class["clip_id"]).mean()
    return list(share[share > 0].sort_values(ascending=False, kind="stable").index)


class ResultsExplorer(parts.WidgetWithFallback):
    """The accuracies of models on tasks, and the confusion matrix of one model.

    Press a cell of the matrix to hear its clips, the first 5 s of each. `predictions`: a table such
    as `evaluation.compare` returns beside its results, or one or several files such as predictions.csv.

    `counts` holds the clips per true class (row) and answer of the chosen model, as a mean over its seeds.
    """

    def __init__(self, corpus: Corpus, predictions: pd.DataFrame | Path | str | list[Path]):
        super().__init__()
        if not isinstance(predictions, pd.DataFrame):
            files = predictions if isinstance(predictions, list) else [predictions]
            predictions = pd.concat([read_predictions(file) for file in files], ignore_index=True)
        self.corpus = corpus
        self.predictions = predictions
        self.clips = corpus.clips.set_index("clip_id")
        self.heading = ""  # of the pressed cell
        self.waiting: list[str] = []  # its clips that are not shown yet
        self.task = w.Dropdown(options=list(predictions["task"].unique()), description="task")
        self.model = w.Dropdown(options=[], description="model")
        self.bars = w.HTML()
        self.counts = pd.DataFrame()
        self.matrix = Matrix(layout={"max_width": "100%"})
        self.matrix.on_msg(lambda _, cell, buffers: self.listen(cell["label"], cell["predicted"]))
        self.heard = w.HTML()
        self.more = w.Button(icon="forward", layout={"width": "9em", "display": "none"})
        self.more.on_click(self.listen_on)
        self.task.observe(self.show_task, "value")
        self.model.observe(self.show_model, "value")
        self.show_task()
        parts.persist("results_explorer", {"task": self.task, "model": self.model})
        caption = w.HTML("rows: the true class; columns: the model's answer")
        right = w.VBox([self.heard, self.more], layout={"flex": "1 1 20em", "margin": "0 0 0 12px"})
        below = [w.VBox([caption, self.matrix], layout={"max_width": "100%"}), right]
        row = w.HBox(below, layout=parts.ROW | {"align_items": "flex-start"})
        self.children = [w.HBox([self.task, self.model], layout=parts.ROW), self.bars, row]

    def of_task(self) -> pd.DataFrame:
        """Return the predictions of the chosen task."""
        return self.predictions[self.predictions["task"] == self.task.value]

    def of_model(self) -> pd.DataFrame:
        """Return the predictions of the chosen model on the chosen task."""
        return intervals.by_model(self.of_task())[self.model.value]

    def show_task(self, *_) -> None:
        """Show the accuracies of the chosen task, and offer its models."""
        summary = intervals.summary(self.of_task())
        figure = Figure(figsize=(8, 1 + 0.35 * len(summary["results"])), layout="constrained")
        plots.results(summary, figure.subplots(), title=self.task.value)
        self.bars.value = parts.picture(figure, f"accuracies on {self.task.value} with 95% intervals")
        names = summary["model_name"]
        chosen = self.model.value if self.model.value in names else names[-1]
        # the matrix is drawn once, not at every step of this change
        self.model.unobserve(self.show_model, "value")
        self.model.options = names
        self.model.value = chosen
        self.model.observe(self.show_model, "value")
        self.show_model()

    def show_model(self, *_) -> None:
        """Show the confusion matrix of the chosen model."""
        predictions = self.of_model()
        self.counts = intervals.confusion(predictions) / predictions["seed"].nunique()
        counts = self.counts.to_numpy(np.float32).tobytes()
        self.matrix.content = {"classes": list(self.counts.index), "counts": counts}
        self.heard.value = "Press a cell to hear its clips."
        self.more.layout.display = "none"

    def listen(self, label: str, predicted: str) -> None:
        """Show players for the first clips of a cell."""
        self.waiting = misclassified(self.of_model(), label, predicted)
        words = f"{label}, called {predicted}: {len(self.waiting)} clips"
        self.heading = f"<p>{parts.escape(words)}</p>"
        self.listen_on()

    def listen_on(self, *_) -> None:
        """Show players for the next clips of the pressed cell."""
        now = self.waiting[:CLIPS_AT_ONCE]
        self.waiting = self.waiting[CLIPS_AT_ONCE:]
        self.heard.value = self.heading + "".join(map(self.player, now))
        self.more.description = f"{len(self.waiting)} more"
        self.more.layout.display = "" if self.waiting else "none"

    def player(self, clip_id: str) -> str:
        """Return a player for a clip as HTML, or the reason why it cannot be heard."""
        try:
            clip = self.clips.loc[clip_id]
            wave = audio.load_audio(self.corpus.root / clip["path"])
        except KeyError:
            return f"<p>{parts.escape(clip_id)}: not in this corpus</p>"
        except parts.NO_SOUND as error:
            return f"<p>{parts.escape(clip_id)}: {parts.reason(error)}</p>"
        return parts.sound(wave[: 16_000 * SECONDS], clip.get("title") or clip_id)

    def static_figure(self) -> Figure:
        """Return the accuracies and the confusion matrix of the chosen model."""
        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        plots.results(intervals.summary(self.of_task()), left)
        plots.confusion(self.of_model(), right, self.model.value)
        return figure
