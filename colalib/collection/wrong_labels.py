"""Likely wrong labels: clips whose label a probe, which has not seen their group, holds for unlikely."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

FOLDS = 5
COMPONENTS = 128  # principal components of the embeddings: quick, and wrong labels are not learned by heart
C = 0.01  # inverse regularisation of the logistic regression on them


def label_probabilities(vectors: np.ndarray, y: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    """Return how likely the label of each clip is, out of fold: no clip is judged by its own group.

    `vectors` [n, d], labels [n] as text ("" for none), groups [n]. Columns: row (clip number), given (its
    probability), best (the likeliest label), best_probability. Clips without a label, and those of a class
    that only one group has, are not judged.
    """
    judged = y != ""
    several = pd.Series(groups[judged]).groupby(y[judged]).nunique() > 1
    judged &= np.isin(y, several.index[several])
    rows = np.flatnonzero(judged)
    classes = np.unique(y[rows])
    columns = ["row", "given", "best", "best_probability"]
    if len(classes) < 2:
        return pd.DataFrame(columns=columns)
    x, y, groups = np.asarray(vectors)[rows], y[rows], groups[rows]
    probability = np.full((len(rows), len(classes)), np.nan)
    largest = pd.Series(y).value_counts().max()  # scikit-learn refuses more folds than that
    folds = StratifiedGroupKFold(min(FOLDS, len(set(groups)), largest), shuffle=True, random_state=0)
    with warnings.catch_warnings(), threadpool_limits(2):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer clips than folds
        for train, test in folds.split(x, y, groups):
            if len(set(y[train])) < 2:
                continue
            pca = PCA(min(COMPONENTS, len(train) - 1, x.shape[1]), random_state=0)
            probe = make_pipeline(StandardScaler(), pca, LogisticRegression(C=C, max_iter=300))
            known = np.searchsorted(classes, probe.fit(x[train], y[train]).classes_)
            probability[np.ix_(test, known)] = probe.predict_proba(x[test])
    given = probability[np.arange(len(rows)), np.searchsorted(classes, y)]
    judged = ~np.isnan(given)  # the training side had clips of its class
    rows, given, probability = rows[judged], given[judged], np.nan_to_num(probability[judged])
    best = probability.argmax(axis=1)
    return pd.DataFrame(
        {"row": rows, "given": given, "best": classes[best], "best_probability": probability.max(axis=1)}
    )
