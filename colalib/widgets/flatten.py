"""The UMAP laboratory (notebook 7): a map of chosen settings, and how much of the space it keeps."""

from __future__ import annotations

import ipywidgets as w
import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.evaluation.flattening import flatten
from colalib.widgets import parts
from colalib.widgets.consequences import GHOST
from colalib.widgets.parts import SLIDER, WIDE

POINTS = 400  # at most: a map of so many takes a few seconds
NEAREST = 10


class UmapLab(parts.WidgetWithFallback):
    """Controls of UMAP, the map that they give, and two numbers: how much of the space the map keeps.

    `spaces`: name → vectors [n, d], for example an encoder or a layer; `labels` [n] colour the points. At
    most 400 points are drawn, chosen at random. Standardise the vectors before, if their columns have
    different spreads. Raises `UserError` if vectors and labels do not belong together.

    `numbers` are those of this map, `before` of the last one.
    """

    def __init__(self, spaces: dict[str, np.ndarray], labels: np.ndarray):
        super().__init__()
        self.labels = np.asarray(labels)
        n = len(self.labels)
        for name, x in spaces.items():
            if np.ndim(x) != 2 or len(x) != n or not np.isfinite(x).all():
                raise UserError(
                    f"{name}: shape {np.shape(x)}: give a finite vector [n, d] for each of {n} labels"
                )
        if not spaces or n <= 2 * NEAREST:
            raise UserError(
                f"{len(spaces)} spaces of {n} points: at least one of {2 * NEAREST + 1} is needed"
            )
        self.chosen = np.sort(np.random.default_rng(0).permutation(n)[:POINTS])
        self.spaces = {name: np.asarray(x)[self.chosen] for name, x in spaces.items()}
        self.numbers, self.before = {}, {}
        sizes = [k for k in (2, 5, 10, 15, 30, 50, 100, 200) if k < len(self.chosen)]
        self.controls = {
            "space": w.Dropdown(options=list(spaces), description="space", **WIDE),
            "neighbours": w.SelectionSlider(options=sizes, value=15, description="neighbours", **SLIDER),
            "min_dist": w.FloatSlider(
                0.1, min=0, max=1, step=0.05, description="smallest distance", **SLIDER
            ),
            "metric": w.Dropdown(
                options=["euclidean", "cosine", "manhattan"], description="distance in the space", **WIDE
            ),
            "seed": w.IntSlider(0, min=0, max=20, description="seed", **SLIDER),
        }
        parts.persist("umap_lab", self.controls)
        self.button = w.Button(description="draw the map", button_style="primary")
        self.message, self.picture = w.HTML(), w.HTML()
        self.button.on_click(self.run)
        self.children = [*self.controls.values(), w.HBox([self.button, self.message]), self.picture]
        self.run()

    def run(self, *_) -> None:
        """Compute the map of the settings, and show it with its numbers beside those of the map before."""
        self.button.disabled, self.message.value = True, "working: a few seconds …"
        values = {name: control.value for name, control in self.controls.items()}
        x, metric = self.spaces[values["space"]], values["metric"]
        try:
            self.points = flatten(x, values["neighbours"], values["min_dist"], metric, values["seed"])
            self.before = self.numbers
            self.numbers = {
                "neighbours kept": kept_neighbours(x, self.points, metric),
                "trustworthiness": float(trustworthiness(x, self.points, n_neighbors=NEAREST, metric=metric)),
            }
            self.title = (
                f"{values['space']}: {values['neighbours']} neighbours, smallest distance "
                f"{values['min_dist']:g}, {metric}, seed {values['seed']}"
            )
            words = ", ".join(f"{name} {100 * value:.0f}%" for name, value in self.numbers.items())
            self.picture.value = parts.picture(self.static_figure(), f"map of {self.title}; {words}")
        finally:
            self.button.disabled, self.message.value = False, ""

    def static_figure(self) -> Figure:
        """Return the map, and its numbers beside those of the map before."""
        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 1])
        plots.embedding_map(self.points, self.labels[self.chosen], left, self.title)
        guesses = [NEAREST / (len(self.points) - 1), 0.5]  # of points dealt out at random
        for place, (name, value) in enumerate(self.numbers.items()):
            if self.before:
                former = 100 * self.before[name]
                right.bar(place, former, width=0.8, fill=False, ec=GHOST, lw=1.5)
                right.text(
                    place, -16, f"before {former:.0f}%", ha="center", va="top", fontsize=9, color="#666666"
                )
            right.bar(place, 100 * value, width=0.5, color=plots.PALETTE[0])
            right.plot([place - 0.4, place + 0.4], [100 * guesses[place]] * 2, "--", color="black", lw=1)
        right.set_xticks([0, 1], [f"{name}\n{100 * v:.0f}%" for name, v in self.numbers.items()], fontsize=9)
        right.set(ylim=(0, 103), ylabel="%", title="what the map keeps\n(dashed: at random)")
        return figure


def kept_neighbours(x: np.ndarray, flat: np.ndarray, metric: str = "euclidean") -> float:
    """Return the share of the 10 nearest in x [n, d] that are among the 10 nearest in `flat` [n, 2]."""
    near = [
        NearestNeighbors(n_neighbors=NEAREST, metric=distance).fit(points).kneighbors(return_distance=False)
        for points, distance in ((x, metric), (flat, "euclidean"))
    ]
    return float(np.mean([len(set(a) & set(b)) / NEAREST for a, b in zip(*near)]))
