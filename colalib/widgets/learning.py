"""Watch it learn (notebook 7): the map of the same clips at every snapshot of a pre-training, one at a time.

Features come from `evaluation.sources`; the page is that of `maps`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.linalg import orthogonal_procrustes
from sklearn.preprocessing import StandardScaler

from colalib.data.corpus import Corpus
from colalib.data.store import MelStore
from colalib.errors import UserError
from colalib.evaluation import intervals, neighbours, plots
from colalib.evaluation.flattening import flatten
from colalib.evaluation.sources import snapshot_features
from colalib.training.runs import Run
from colalib.widgets import parts
from colalib.widgets.maps import make_page, page_sounds

EPOCHS = 200  # of a map that starts from its neighbour's: it then keeps as many neighbours as one of its own
PICTURES = 6  # snapshots in the still picture


def align(points: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Shift, turn and mirror a map [n, 2] so that its points lie as near to those of `to` as they can."""
    centred = points - points.mean(axis=0)
    turn, _ = orthogonal_procrustes(centred, to - to.mean(axis=0))
    return centred @ turn + to.mean(axis=0)


def aligned_maps(features: list[np.ndarray]) -> list[np.ndarray]:
    """Return a map [n, 2] of the same n clips in each of several spaces [n, d]; points move little.

    UMAP is fitted to the last space. Going backwards, each map starts from the one after it, and is then
    aligned with it: UMAP alone would turn and rearrange every map anew. Raises `UserError` for fewer than
    4 clips.
    """
    maps: list[np.ndarray] = []
    for x in reversed(features):
        start = {"init": maps[0], "n_epochs": EPOCHS} if maps else {}
        points = flatten(StandardScaler().fit_transform(x), **start)
        maps.insert(0, align(points, maps[0]) if maps else points)
    return maps


def neighbour_accuracy(spaces: dict[str, np.ndarray], clips: pd.DataFrame, column: str) -> list[dict]:
    """Return how often a clip's nearest neighbour has its label, in each space: name → features [n, d].

    The clip's own group is left out. One entry per space: mean, low and high end of the 95% interval, and
    the same in words. Raises `UserError` if the labelled clips are of fewer than two groups.
    """
    labelled = np.flatnonzero(clips[column].to_numpy(dtype=object) != "")
    clips = clips.iloc[labelled]
    groups, labels = clips["group"].values, clips[column].to_numpy(dtype=object)
    if len(set(groups)) < 2:
        raise UserError(f"the clips with a {column} are of fewer than two groups: choose more clips")
    table = clips[["clip_id", "group"]].assign(label=labels, task=column, seed=0)
    answers = []
    for name, features in spaces.items():
        nearest = neighbours(features[labelled], groups, k=1)[:, 0]
        answers.append(table.assign(model=name, predicted=labels[nearest]))
    scores = []
    for result in intervals.summary(pd.concat(answers))["results"]:
        mean, (low, high) = result["mean"], result["ci95"]
        words = f"the nearest neighbour has the same {column} for {100 * mean:.0f}% of the clips"
        words += f" (95% interval {100 * low:.0f} to {100 * high:.0f}%)"
        scores.append({"words": words, "mean": mean, "low": low, "high": high})
    return scores


class WatchItLearn(parts.WidgetWithFallback):
    """The map of the clips in `rows` of a store at each snapshot of a pre-training, one at a time.

    A slider or the play button goes through the steps, and the points move to their new places. Press a
    point to hear it. Beside the map stands how often a clip's nearest neighbour has the same value of
    `column`; the clip's own group is left out. Raises `UserError` if the run has no snapshots.
    """

    def __init__(
        self, corpus: Corpus, store: MelStore, run: Path | str, rows: np.ndarray, column: str = "label"
    ):
        super().__init__()
        features = snapshot_features(Run(run), store, rows, progress=True)
        self.clips, self.column = store.clips.iloc[rows], column
        self.maps = dict(zip((f"step {step}" for step in features), aligned_maps([*features.values()])))
        spaces = dict(zip(self.maps, features.values()))
        self.scores = neighbour_accuracy(spaces, self.clips, column)
        pages = {name: (spaces[name], points) for name, points in self.maps.items()}
        sounds = page_sounds([corpus.root / path for path in self.clips["path"]])
        self.page = make_page(self.clips, pages, [column], sounds, scores=self.scores)
        parts.persist("watch_it_learn", {"moment": self.page}, "moment")
        self.children = [self.page]

    def without_kernel(self) -> dict:
        """Return the page with the maps."""
        return {"map": self.page.packed()}

    def static_figure(self) -> Figure:
        """Return some of the maps as a figure, from the first to the last, in one frame."""
        names = list(self.maps)
        chosen = np.unique(np.linspace(0, len(names) - 1, PICTURES).round().astype(int))
        figure = Figure(figsize=(11, 3.6 * -(-len(chosen) // 3) + 0.6), layout="constrained")
        axes = figure.subplots(-(-len(chosen) // 3), min(3, len(chosen)), squeeze=False).ravel()
        every = np.concatenate([*self.maps.values()])
        for i, ax in zip(chosen, axes):
            title = f"{names[i]}: {100 * self.scores[i]['mean']:.0f}%"
            legend = "below" if i == chosen[-1] else None
            plots.embedding_map(self.maps[names[i]], self.clips[self.column], ax, title, legend)
            ax.update_datalim(every)
            ax.autoscale_view()
        for ax in axes[len(chosen) :]:
            ax.remove()
        return figure
