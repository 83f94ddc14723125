"""Probes: what can be read out of frozen features by a linear model or by nearest neighbours.

Features [n, d] come from `sources`, splits from `data.splits`; predictions go to `intervals`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import entropy
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy

from colalib.data.splits import Split, subsample_labels
from colalib.data.store import MelStore
from colalib.errors import UserError
from colalib.training.runs import prediction_table

# inverse regularisation of the logistic regression, chosen on the validation side
C_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
# tried when a classifier's outputs are judged (see below)
TEMPERATURES = np.geomspace(0.05, 20, 41)
NEIGHBOUR_BLOCK = 1000  # rows compared with all others at a time: 1,000 × n distances in memory


def temperature_scaled_loss(model: ClassifierMixin, x: np.ndarray, y: np.ndarray) -> float:
    """Return the cross-entropy of a fitted classifier after temperature scaling, in nats.

    It is insensitive to overconfidence.

    Features [n, d], labels [n]. The outputs are divided by the temperature of `TEMPERATURES` that
    suits them best (Guo et al. 2017, arXiv 1706.04599). It is finer than accuracy, where one or two
    clips decide.
    """
    z = torch.from_numpy(model.decision_function(x))
    # two classes: scikit-learn gives one column
    z = z if z.ndim == 2 else torch.stack([-z / 2, z / 2], dim=1)
    true = torch.from_numpy(np.searchsorted(model.classes_, y))
    return min(cross_entropy(z / t, true).item() for t in TEMPERATURES)


def linear_probe(x: np.ndarray, y: np.ndarray, split: Split, refit: bool = True) -> np.ndarray:
    """Fit a multinomial logistic regression on standardised features [n, d]; return test predictions.

    C is the value of `C_GRID` with the least `temperature_scaled_loss` on the validation side. Then
    the model is fitted on train + valid, or without `refit` on train alone. If no class of the
    training side has a validation clip, the middle C is taken. Raises `UserError` if the training
    side has only one class.
    """
    if len(set(y[split.train])) < 2:
        raise UserError(
            "the training side has only one class, from which nothing can be learned: label more clips"
        )

    def regression(c: float) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=300)

    valid = split.valid[np.isin(y[split.valid], y[split.train])]
    # in small matrices BLAS threads only wait for each other: one thread for each C instead
    with warnings.catch_warnings(), threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        best = C_GRID[len(C_GRID) // 2]
        if len(valid):
            scaler = StandardScaler().fit(x[split.train])
            train, held = scaler.transform(x[split.train]), scaler.transform(x[valid])
            slowest_first = C_GRID[::-1]
            fitted = pool.map(lambda c: regression(c).fit(train, y[split.train]), slowest_first)
            models = dict(zip(slowest_first, fitted))
            losses = {c: temperature_scaled_loss(models[c], held, y[valid]) for c in C_GRID}
            best = min(losses, key=losses.get)
        rows = np.concatenate([split.train, split.valid]) if refit else split.train
        return make_pipeline(StandardScaler(), regression(best)).fit(x[rows], y[rows]).predict(x[split.test])


def knn(x: np.ndarray, y: np.ndarray, split: Split, k: int = 5) -> np.ndarray:
    """Let the k nearest clips of train + valid vote, weighted by distance; return test predictions.

    Distance is the cosine distance of standardised features [n, d].
    """
    rows = np.concatenate([split.train, split.valid])
    model = make_pipeline(
        StandardScaler(), KNeighborsClassifier(min(k, len(rows)), metric="cosine", weights="distance")
    )
    return model.fit(x[rows], y[rows]).predict(x[split.test])


def neighbours(x: np.ndarray, groups: np.ndarray, k: int = 5) -> np.ndarray:
    """Return the k nearest clips of every clip, nearest first: features [n, d] → numbers [n, k].

    By cosine similarity of standardised features. A clip's own group is left out: another take of
    the same tune, or another sentence of the same speaker, is near for reasons that do not matter
    here. There are fewer columns if a group leaves fewer others.
    """
    x = normalize(StandardScaler().fit_transform(x))
    groups = pd.factorize(np.asarray(groups))[0]
    k = min(k, len(x) - np.bincount(groups).max())
    blocks = []
    for start in range(0, len(x), NEIGHBOUR_BLOCK):
        block = slice(start, start + NEIGHBOUR_BLOCK)
        distance = np.where(groups[block, None] == groups, np.inf, -x[block] @ x.T)  # [block, n]
        nearest = np.argpartition(distance, k, axis=1)[:, :k]  # not yet in order
        order = np.argsort(np.take_along_axis(distance, nearest, axis=1), axis=1)
        blocks.append(np.take_along_axis(nearest, order, axis=1))
    return np.concatenate(blocks)


def effective_rank(x: np.ndarray) -> float:
    """Return in how many directions the rows of x [n, d] differ: from 1 to d, and never above n - 1.

    The exponential of the entropy of the singular values' shares (Roy & Vetterli, EUSIPCO 2007), of x
    less its mean. 1 if all rows are equal but for rounding.
    """
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    values = values[values > 1e-6 * np.linalg.norm(x)]  # float32's rounding is no direction
    return float(np.exp(entropy(values)))


def evaluate_features(
    store: MelStore,
    features: np.ndarray,
    model: str,
    label: str,
    splits: list[Split],
    seed: int = 0,
    method: Callable[[np.ndarray, np.ndarray, Split], np.ndarray] = linear_probe,
    labels_per_class: int | None = None,
) -> pd.DataFrame:
    """Return the predictions of `method` on frozen features [n, d] for every split, as one table.

    With `labels_per_class` a linear probe learns from so many training clips per class, drawn by
    `seed`. Validation labels then only choose C, as in fine-tuning they only choose the epoch.
    """
    y = store.clips[label].to_numpy(dtype=object)
    if labels_per_class is not None:
        method = partial(linear_probe, refit=False)
        splits = [replace(s, train=subsample_labels(y, s.train, labels_per_class, seed)) for s in splits]
    return pd.concat(
        [
            prediction_table(store, s, label, method(features, y, s), model, seed, labels_per_class)
            for s in splits
        ]
    )
