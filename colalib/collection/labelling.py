"""Labelling by ear: which clips to label next, and how good a probe of the labels is by now.

Features [n, d] come from `evaluation`, labels from `labels`. `simulation` measures what proposals save.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from colalib.evaluation.probes import C_GRID

COMPONENTS = 256  # of the features: they hold 99.6% of the variance of ESC-10, at a tenth of the time
CANDIDATES = 3  # times as many uncertain clips as are proposed: among these, different ones are chosen
FOLDS = 5  # of the cross-validation
STRATEGIES = ("random", "spread", "entropy", "margin", "margin, diverse", "half and half")


def compact(features: np.ndarray) -> Pipeline:
    """Return what standardises features [n, d] and leaves their first principal components, fitted.

    The clips need no labels for this. So ten labels are enough for a probe, and it is fitted in
    hundredths of a second.
    """
    components = max(1, min(COMPONENTS, len(features) - 1, features.shape[1]))
    with np.errstate(invalid="ignore"):  # one clip has no variance
        return make_pipeline(StandardScaler(), PCA(components, random_state=0)).fit(features)


def fit_probe(x: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """Return a linear probe of `compact` features [n, d] with labels [n].

    As in `evaluation.probes`, with the middle C of its grid: few labels leave none to choose it by.
    """
    # the weights of a penalised regression lie in the span of its clips: of few clips it has few dimensions,
    # in which the same probe is fitted in a third of the time
    span = np.linalg.qr(x.T)[0]  # [d, min(n, d)]
    probe = LogisticRegression(C=C_GRID[len(C_GRID) // 2], max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(x @ span, labels)
    probe.coef_, probe.n_features_in_ = probe.coef_ @ span.T, x.shape[1]
    return probe


def propose(
    x: np.ndarray, labels: np.ndarray, n: int, strategy: str = "half and half", seed: int = 0
) -> np.ndarray:
    """Return the numbers of up to n clips to label next, from `compact` features [clips, d].

    `labels` [clips] are text, "" for clips without one; only these are proposed. While fewer than two
    classes are labelled, every strategy but "random" is "spread". The strategies:

    - "spread": k-means with a cluster for each labelled and each proposed clip. Proposed are the most
      central clips of the largest clusters without a label.
    - "margin", "entropy": the clips about which the probe is least certain. The margin is the distance
      between the two highest probabilities.
    - "margin, diverse": k-means with n clusters among the 3 · n clips of the smallest margin. Of each
      cluster the clip with the smallest margin is proposed.
    - "half and half": one half by "spread", the other by "margin, diverse".
    """
    labels = np.asarray(labels, dtype=object)
    labelled = labels != ""
    free = np.flatnonzero(~labelled)
    n = min(n, len(free))
    if strategy == "random":
        return np.random.default_rng(seed).permutation(free)[:n]
    if n == len(free):
        return free
    if strategy == "spread" or len(set(labels[labelled])) < 2:
        return spread(x, labelled, n, seed)
    half = spread(x, labelled, n - n // 2, seed) if strategy == "half and half" else free[:0]
    free = np.setdiff1d(free, half)
    probability = fit_probe(x[labelled], labels[labelled]).predict_proba(x[free])
    order = free[np.argsort(-uncertainty(probability, strategy), kind="stable")]
    rest = n - len(half)
    if strategy in ("margin", "entropy") or not rest:
        return np.concatenate([half, order[:rest]])
    return np.concatenate([half, diverse(x, order[: CANDIDATES * rest], rest, seed)])


def uncertainty(probability: np.ndarray, strategy: str) -> np.ndarray:
    """Return how uncertain a probe is about each clip, from its probabilities [clips, classes]."""
    if strategy == "entropy":
        return -(probability * np.log(probability + 1e-12)).sum(axis=1)
    second, best = np.sort(probability, axis=1)[:, -2:].T
    return second - best


def spread(x: np.ndarray, labelled: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Return n clips without label that lie apart from each other and from the labelled ones [clips]."""
    k = int(labelled.sum()) + n
    means = k_means(x, k, 1, seed)
    distance = np.linalg.norm(x - means.cluster_centers_[means.labels_], axis=1)
    clips = pd.DataFrame({"cluster": means.labels_, "labelled": labelled, "distance": distance})
    clusters = clips.groupby("cluster")["labelled"].agg(["sum", "size"])
    # clusters with the fewest labels first, of these the largest; of each cluster the most central first
    clips = clips.join(clusters, on="cluster")[~labelled].sort_values("distance", kind="stable")
    clips["place"] = clips.groupby("cluster").cumcount()
    order = clips.sort_values(["place", "sum", "size"], ascending=[True, True, False], kind="stable")
    return order.index[:n].to_numpy()


def diverse(x: np.ndarray, candidates: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Return n of the candidates (clip numbers, the most uncertain first) that differ from each other."""
    cluster = k_means(x[candidates], n, 3, seed).labels_
    first = np.unique(cluster, return_index=True)[1]  # clips that are equal may leave a cluster empty
    rest = np.setdiff1d(np.arange(len(candidates)), first)[: n - len(first)]
    return candidates[np.sort(np.concatenate([first, rest]))]


def k_means(x: np.ndarray, k: int, starts: int, seed: int) -> KMeans:
    """Return k-means of x [n, d], fitted. Where clips are equal, it may find fewer than k clusters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(k, n_init=starts, random_state=seed).fit(x)


@dataclass
class Accuracy:
    """Share of labelled clips that a probe of other labelled clips gets right, with its 95% interval."""

    labels: int
    mean: float
    low: float
    high: float


def cross_validated(x: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Accuracy | None:
    """Return how well a probe predicts labels that it was not fitted on; None while that cannot be told.

    `compact` features [clips, d], labels [clips] ("" for none), groups [clips]. The labelled clips are
    divided into up to five folds of whole groups; each is predicted by a probe of the others. The interval
    is binomial (Wilson). At least two groups are needed, and two classes in each training part.
    """
    chosen = np.flatnonzero(np.asarray(labels, dtype=object) != "")
    x, y, groups = x[chosen], np.asarray(labels, dtype=object)[chosen], np.asarray(groups)[chosen]
    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        return None
    right = []
    for train, test in GroupKFold(folds).split(x, y, groups):
        if len(set(y[train])) < 2:
            return None
        right.extend(fit_probe(x[train], y[train]).predict(x[test]) == y[test])
    interval = binomtest(int(sum(right)), len(right)).proportion_ci(method="wilson")
    return Accuracy(len(right), float(np.mean(right)), interval.low, interval.high)
