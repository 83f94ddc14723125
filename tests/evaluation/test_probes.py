"""Probes find what is there, and not what is not."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from colalib import evaluation
from colalib.data.splits import Split, evaluation_splits
from colalib.errors import UserError
from colalib.evaluation import probes


@pytest.mark.parametrize("method", [evaluation.linear_probe, evaluation.knn])
def test_probe_and_knn_find_what_is_there_and_not_what_is_not(method):
    rng = np.random.default_rng(0)
    y = np.array(list("abcd") * 60)
    place = {"a": (0, 0), "b": (0, 4), "c": (4, 0), "d": (4, 4)}
    x = np.array([place[v] for v in y]) + rng.normal(size=(240, 2))
    rows = rng.permutation(240)
    split = Split("", rows[:140], rows[140:180], rows[180:])
    assert (method(x, y, split) == y[split.test]).mean() > 0.85
    assert (method(rng.normal(size=(240, 2)), y, split) == y[split.test]).mean() < 0.5


def test_one_class_teaches_nothing():
    split = Split("", np.arange(4), np.arange(4, 6), np.arange(6, 8))
    with pytest.raises(UserError, match="only one class"):
        evaluation.linear_probe(np.eye(8), np.array(list("aaaabbbb")), split)


@pytest.mark.parametrize("classes", ["ab", "abcd"])
def test_temperature_scaled_loss_does_not_mind_a_model_that_is_only_too_sure(classes):
    rng = np.random.default_rng(0)
    y = np.array(list(classes) * 50, dtype=object)
    x = np.array([[classes.index(v), classes.index(v) % 2] for v in y]) + rng.normal(size=(len(y), 2))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    plain = log_loss(y, model.predict_proba(x))
    scaled = evaluation.temperature_scaled_loss(model, x, y)
    # fitted on these very clips it is neither too sure nor too unsure
    assert 0.98 * plain < scaled <= plain + 1e-6
    model[-1].coef_ *= 10
    model[-1].intercept_ *= 10
    assert log_loss(y, model.predict_proba(x)) > 1.5 * plain
    assert np.isclose(evaluation.temperature_scaled_loss(model, x, y), scaled, rtol=0.01)


def test_neighbours_are_near_and_of_another_group():
    angle = np.deg2rad([0, 10, 20, 180, 190, 200])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    nearest = evaluation.neighbours(x, groups=np.array(list("aabccd")), k=2)
    assert nearest[:, 0].tolist() == [2, 2, 1, 5, 5, 4]
    assert nearest.shape == (6, 2)
    one_group = evaluation.neighbours(x, groups=np.array(list("aaaaab")), k=3)
    assert one_group.shape == (6, 1), "one clip is all that the large group leaves"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_effective_rank_counts_directions(n):
    x = np.concatenate([np.eye(n, 8), -np.eye(n, 8)]) + 3
    assert np.isclose(evaluation.effective_rank(x), n)


def test_the_effective_rank_of_a_collapsed_embedding_is_1():
    assert evaluation.effective_rank(np.ones((5, 8))) == 1


@pytest.mark.parametrize("budget", [None, 3])
def test_features_are_evaluated_in_every_fold(clips, mel_store, budget):
    x = evaluation.mel_stats(clips)
    splits = evaluation_splits(mel_store.clips, folds=3)
    predictions = evaluation.evaluate_features(
        mel_store, x, "mel-stats", "label", splits, seed=1, labels_per_class=budget
    )
    assert sorted(predictions["clip_id"]) == sorted(mel_store.clips["clip_id"])
    assert set(predictions["fold"]) == {"fold0", "fold1", "fold2"}
    assert set(predictions["seed"]) == {1}
    assert set(predictions["labels_per_class"]) == {"" if budget is None else "3"}
    assert (predictions["label"] == predictions["predicted"]).mean() > 0.8  # chance is 0.33


def test_a_label_budget_is_all_that_a_probe_is_fitted_on(clips, mel_store, monkeypatch):
    asked = []

    def recorded(x, y, split, refit=True):
        asked.append((sorted(y[split.train]), len(split.valid), refit))
        return y[split.test]

    monkeypatch.setattr(probes, "linear_probe", recorded)
    splits = evaluation_splits(mel_store.clips)
    evaluation.evaluate_features(mel_store, np.zeros((96, 2)), "x", "label", splits, labels_per_class=3)
    labels = 3 * ["high"] + 3 * ["low"] + 3 * ["middle"]
    assert asked == [(labels, len(splits[0].valid), False)], "validation clips only choose C"
