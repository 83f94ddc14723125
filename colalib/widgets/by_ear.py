"""Labelling by ear (notebook 7): clips are chosen on the map and named; a probe of the labels is judged.

Labels go to the folder's index.csv by `collection.Labels`; the map is that of `maps`.
"""

from __future__ import annotations

from types import SimpleNamespace

import ipywidgets as w
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colalib.collection import Labels, compact, cross_validated, propose
from colalib.collection.labelling import Accuracy
from colalib.data.corpus import Corpus
from colalib.data.store import MelStore
from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.widgets import parts
from colalib.widgets.maps import EmbeddingMap, Space, encode_column

BATCH = 10  # clips that are proposed at a time


class Labeller(parts.WidgetWithFallback):
    """A map on which you give clips labels by ear; they are written to the folder's index.csv.

    Press a point, type what you hear, and label this clip; or drag around several and label all of them.
    *What to label next* lists ten clips that are worth a label: different ones, and some about which a linear
    probe of your labels is uncertain. After each step the probe is fitted again. Its accuracy on held-out
    labels is drawn over the number of labels.

    `store`: made of the corpus; `column`: of labels in index.csv. Raises `UserError` if index.csv cannot
    be read.
    """

    def __init__(self, corpus: Corpus, store: MelStore, space: Space, column: str = "label"):
        super().__init__()
        self.labels = Labels(corpus.root, column)
        self.column = column
        self.paths = store.clips["path"].to_numpy(dtype=object)
        self.groups = store.clips["group"].to_numpy(dtype=object)
        self.x = compact(space.features).transform(space.features)
        self.curve: list[Accuracy] = []  # one for each number of labels, in the order of the steps
        # the clips as the map shows them: with the labels of index.csv, not with those of the store
        self.clips = store.clips.assign(**{column: self.read()})
        own = SimpleNamespace(clips=self.clips, mel=store.mel)
        self.map = EmbeddingMap(corpus, own, {"clips": space._replace(encoder=None)}, [column], k=5)
        self.page = self.map.page
        self.make_parts()
        self.refresh()

    def make_parts(self) -> None:
        """Make controls and outputs, and connect them with what they do."""
        narrow = {"width": "max-content"}
        self.name = w.Combobox(placeholder="what you hear", description="label", ensure_option=False)
        self.this = w.Button(description="Label this clip", button_style="primary", layout=narrow)
        self.all = w.Button(description="Label all in the list", layout=narrow)
        self.back = w.Button(description="Undo", icon="undo", layout=narrow)
        self.next = w.Button(description="What to label next", icon="magic", layout=narrow)
        self.selected, self.message, self.picture = w.HTML(), w.HTML(), w.HTML()
        self.this.on_click(lambda _: self.label(self.this_clip()))
        self.all.on_click(lambda _: self.label(list(self.page.picked)))
        self.back.on_click(self.undo)
        self.next.on_click(self.propose)
        self.page.observe(self.show_chosen, ["selected", "picked"])
        row = w.HBox([self.name, self.this, self.all, self.back, self.next], layout=parts.ROW)
        self.children = [self.map, row, self.selected, self.message, self.picture]

    def read(self) -> np.ndarray:
        """Return the label of each clip [n] as index.csv has it now, "" for none."""
        given = self.labels.read()
        given = given[~given.index.duplicated()]
        return given.reindex(self.paths, fill_value="").to_numpy(dtype=object)

    def this_clip(self) -> list[int]:
        """Return the number of the clip that is selected, as a list; empty without one."""
        return [self.page.selected] if 0 <= self.page.selected < len(self.paths) else []

    # what the buttons do

    def label(self, clips: list[int]) -> None:
        """Give clips the label that is typed, and take them off the list."""
        name = self.name.value.strip()
        if not name or not clips:
            self.say("Choose a clip on the map." if name else "Type what you hear.")
            return
        self.write(lambda: self.labels.set(self.paths[clips], name), f"labelled {parts.escape(name)}")
        done = set(clips) & set(np.flatnonzero(self.given() == name))
        self.page.picked = [clip for clip in self.page.picked if clip not in done]

    def undo(self, _) -> None:
        """Take back the last label."""
        self.write(self.labels.undo, "set back")

    def write(self, change, words: str) -> None:
        """Change labels, tell how many, and show them; or tell why that cannot be."""
        try:
            changed = change()
            self.refresh()
        except UserError as error:
            self.say(f"<span role='alert' style='color:#b00020'>{parts.reason(error)}</span>")
            return
        self.say(f"{changed} clip{'' if changed == 1 else 's'} {words}.")

    def propose(self, _) -> None:
        """List the clips that are worth a label now."""
        given = self.given()
        chosen = propose(self.x, given, BATCH, seed=int((given != "").sum()))
        self.page.picked = [int(clip) for clip in chosen]
        how = "Press each to hear it, then label it." if len(chosen) else "All clips have a label."
        self.say(f"{len(chosen)} clips to label next. {how}")

    # what is shown

    def given(self) -> np.ndarray:
        """Return the labels that are shown [n], "" for none."""
        return self.clips[self.column].to_numpy(dtype=object)

    def refresh(self) -> None:
        """Show the labels that are in index.csv now: colours, names to choose from, and the curve."""
        self.clips[self.column] = given = self.read()
        self.page.columns = {self.column: encode_column(given)}
        self.name.options = sorted(set(given) - {""})
        accuracy = cross_validated(self.x, given, self.groups)
        labels = int((given != "").sum())
        # after an undo there are fewer labels: the later points go
        self.curve = [point for point in self.curve if point.labels < labels]
        self.curve += [accuracy] if accuracy else []
        words = "accuracy on held-out labels over the number of labels: " + ", ".join(
            f"{point.labels}: {100 * point.mean:.0f}%" for point in self.curve
        )
        figure = Figure(figsize=(5.2, 2.8), layout="constrained")
        self.draw_curve(figure.subplots())
        nothing = "<i>The curve begins when a few clips of two labels have theirs.</i>"
        self.picture.value = parts.picture(figure, words) if self.curve else nothing
        self.show_chosen()

    def show_chosen(self, *_) -> None:
        """Tell which clip is selected, and how many are in the list."""
        self.all.description = f"Label all in the list ({len(self.page.picked)})"
        if clips := self.this_clip():
            title, label = self.page.titles[clips[0]], self.given()[clips[0]]
            self.selected.value = (
                f"<b>This clip:</b> {parts.escape(title)} · {parts.escape(label) or 'no label'}"
            )

    def say(self, words: str) -> None:
        """Show a message, given as HTML."""
        self.message.value = f"<span role='status'>{words}</span>"

    def draw_curve(self, ax: Axes) -> None:
        """Draw the accuracy on held-out labels over the number of labels, with its 95% intervals."""
        labels = [point.labels for point in self.curve]
        low, mean, high = (
            [100 * getattr(point, part) for point in self.curve] for part in ("low", "mean", "high")
        )
        ax.fill_between(labels, low, high, color=plots.MODELS["probe"], alpha=0.2, lw=0)
        ax.errorbar(
            labels[-1:],
            mean[-1:],
            [np.subtract(mean, low)[-1:], np.subtract(high, mean)[-1:]],
            color=plots.MODELS["probe"],
        )
        ax.plot(labels, mean, marker="o", color=plots.MODELS["probe"])
        ax.set(xlabel="labels given", ylabel="accuracy (%)", ylim=(0, 103), title="held-out labels")

    def static_figure(self) -> Figure:
        """Return the map as a figure, and the curve beside it if there is one."""
        figure = Figure(figsize=(10, 4) if self.curve else (6, 4), layout="constrained")
        axes = figure.subplots(1, 2 if self.curve else 1, squeeze=False)[0]
        points = next(iter(self.map.spaces.values())).reducer.embedding_
        plots.embedding_map(points, self.clips[self.column], axes[0], self.column)
        if self.curve:
            self.draw_curve(axes[1])
        return figure
