"""The experiments of notebook 3: what their settings compute, how rates are tuned, and what they write."""

import json

import pytest
import torch
from helpers import ROOT

from colalib import cola
from colalib.course import experiments
from colalib.course.experiments import Setting, Weighted, beyond_edge

H, H_POSITIVE = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))


def similarity(make) -> torch.Tensor:
    """What an objective makes of the same embeddings, with the same projection."""
    torch.manual_seed(0)
    return make()(H, H_POSITIVE)[1]


def test_with_the_identity_a_fixed_and_a_diagonal_w_are_the_bilinear_similarity():
    bilinear = similarity(lambda: cola.Bilinear(20, dropout=0.0))
    for kind in ("fixed", "diagonal"):
        assert torch.allclose(similarity(lambda kind=kind: Weighted(20, kind)), bilinear, atol=1e-5), kind


@pytest.mark.parametrize(("kind", "learned"), [("fixed", 0), ("diagonal", 512), ("paper", 512**2)])
def test_what_of_w_is_learned(kind, learned):
    weight = Weighted(20, kind).weight
    assert weight.requires_grad * weight.numel() == learned


def test_the_papers_w_begins_at_random_and_is_not_divided():
    objective = Weighted(20, "paper")
    assert objective.weight.std().item() == pytest.approx(0.05, rel=0.02)
    g, g_positive = objective.project(H), objective.project(H_POSITIVE)
    assert torch.allclose(objective(H, H_POSITIVE)[1], g @ objective.weight @ g_positive.T, atol=1e-4)


def test_rates_go_on_where_the_best_lies_at_an_edge():
    assert beyond_edge({1.0: 0.1, 4.0: 0.3, 16.0: 0.2}) is None
    assert beyond_edge({1.0: 0.1, 4.0: 0.2, 16.0: 0.3}) == 64
    assert beyond_edge({1.0: 0.3, 4.0: 0.2, 16.0: 0.1}) == 0.25


@pytest.mark.slow
def test_an_experiment_keeps_its_trainings_and_judges_without_test_clips(mel_store, tmp_path, monkeypatch):
    names = ["bilinear, full W", "bilinear, dot product"]
    short = {name: Setting(experiments.SETTINGS[name].objective, 8, 2) for name in names}
    monkeypatch.setattr(experiments, "SETTINGS", short)
    monkeypatch.setattr(experiments, "RATES", (1e-3, 2e-3))
    monkeypatch.setattr(experiments, "SEEDS", 2)
    monkeypatch.setattr(experiments, "beyond_edge", lambda accuracies: None)
    results = experiments.experiment(mel_store, names, tmp_path, jobs=1)
    assert results["model_name"] == ["mel-stats", "random", *names]
    assert results["n_clips"] == (mel_store.clips["split"] != "test").sum()
    row = results["results"][-1]
    assert row["seeds"] == [0, 1]
    assert row["tried"][f"{row['lr']:g}"] == max(row["tried"].values())
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 6  # two rates, and a second seed of the better one, for both
    experiments.experiment(mel_store, names, tmp_path, jobs=1)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_the_results_that_the_course_brings_are_of_these_settings(name):
    file = ROOT / "data" / f"{name.replace('-', '_')}.json"
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["model_name"] == ["mel-stats", "random", *experiments.EXPERIMENTS[name]]
    for row in results["results"][2:]:
        assert row["seeds"] == [0, 1, 2], row["model"]
        # the best rate is no edge of those that were tried
        assert len(row["tried"]) >= 3, row["model"]
        assert f"{row['lr']:g}" not in (min(row["tried"], key=float), max(row["tried"], key=float)), row[
            "model"
        ]
