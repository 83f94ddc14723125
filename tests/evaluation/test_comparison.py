"""Comparisons: every model in one table, on the same clips."""

import json

import numpy as np
import pandas as pd
import pytest

from colalib import evaluation, training
from colalib.errors import UserError
from colalib.evaluation import comparison, intervals
from colalib.settings import FinetuneConfig
from colalib.training.runs import Run

SHORT = FinetuneConfig(steps=2, batch_size=8)


def test_probe_reports_what_pretraining_saw(mel_store, pretrained):
    results, predictions = evaluation.probe(mel_store, pretrained, progress=False)
    assert results["results"][0]["pretrain_overlap"] == 0
    assert len(predictions) == results["n_clips"]
    results, predictions = evaluation.probe(mel_store, pretrained, folds=4, progress=False)
    seen = (mel_store.clips["split"] != "test").sum()
    assert results["results"][0]["pretrain_overlap"] == seen
    assert len(predictions) == 96


def test_probe_of_the_simplest_features_and_of_a_random_encoder(mel_store):
    assert evaluation.probe(mel_store, "mel-stats")[0]["accuracies"][0] > 0.8
    results, _ = evaluation.probe(mel_store, "random", label="parity", progress=False)
    assert results["task"].endswith("/parity")


def test_compare_puts_everything_in_one_table(mel_store, pretrained, tmp_path):
    results, predictions = evaluation.compare(
        mel_store, pretrained, tmp_path, seeds=2, labels_per_class=(2, None), finetune=SHORT, progress=False
    )
    names = ["mel-stats", "random", "probe", "kNN"]
    names += [f"{model} (2 per class)" for model in ("mel-stats", "probe", "scratch", "fine-tuned")]
    names += ["scratch", "fine-tuned"]
    assert results["model_name"] == names
    assert [len(r["seeds"]) for r in results["results"]] == [1, 2, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [r.get("labels_per_class") for r in results["results"]] == [None] * 4 + [2] * 4 + [None] * 2
    assert len(results["differences"]) == 45
    assert set(predictions["seed"]) == {0, 1}
    assert len([*tmp_path.glob("[!.]*-split-*")]) == 8, "a run for each model, budget and seed"
    intervals.save(results, tmp_path / "results.json", predictions)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == len(predictions)


def test_several_encoders_are_seeds_of_one(mel_store, pretrained, tmp_path):
    results, predictions = evaluation.compare(
        mel_store, ["default", pretrained], tmp_path, seeds=1, progress=False
    )
    seeds = {r["model"]: r["seeds"] for r in results["results"]}
    assert seeds == {"mel-stats": [0], "random": [0], "probe": [0, 1], "kNN": [0, 1]}
    for seed, encoder in enumerate(("default", pretrained)):
        alone = evaluation.probe(mel_store, encoder, progress=False)[1]["predicted"]
        chosen = (predictions["model"] == "probe") & (predictions["seed"] == seed)
        assert list(predictions["predicted"][chosen]) == list(alone)


def test_new_folds_and_supervised_runs_do_not_go_together(mel_store, pretrained, tmp_path):
    with pytest.raises(UserError, match="leave out --folds, or add --frozen"):
        evaluation.compare(mel_store, pretrained, tmp_path / "out", folds=3, finetune=SHORT, progress=False)
    assert not (tmp_path / "out").exists()


def test_ablation_has_a_row_per_setting(mel_store, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "ABLATION", {"bilinear": {}, "bilinear, 4 pairs": {"batch_size": 4}})
    results, _ = evaluation.ablation(mel_store, tmp_path, 0.2, SHORT, seeds=1, progress=False)
    names = ["mel-stats", "random", "bilinear", "bilinear, 4 pairs", "scratch", "fine-tuned"]
    assert results["model_name"] == names
    config = Run(tmp_path / "bilinear-4-pairs-0").config
    assert config.batch_size == 4
    assert config.epochs == 0.2


def test_saved_classifiers_side_by_side(mel_store, pretrained, tmp_path):
    runs = []
    for seed in (0, 1):
        config = FinetuneConfig(steps=2, batch_size=8, seed=seed)
        runs.append(training.finetune(mel_store, tmp_path / f"run{seed}", config, pretrained, progress=False))
    results, predictions = evaluation.evaluate(mel_store, runs)
    assert results["model_name"] == ["run0", "run1"]
    for run in runs:
        again = predictions[predictions["model"] == run.name]
        assert np.array_equal(Run(run).predictions()["predicted"], again["predicted"])
    with pytest.raises(UserError, match="is no classifier"):
        evaluation.evaluate(mel_store, [pretrained])
    with pytest.raises(UserError, match="named twice"):
        evaluation.evaluate(mel_store, [runs[0], runs[0]])
    other = training.finetune(mel_store, tmp_path / "b" / "run0", SHORT, progress=False)
    names = evaluation.evaluate(mel_store, [runs[0], other])[0]["model_name"]
    assert names == [str(runs[0]), str(other)], "two folders of one name go by their paths"
