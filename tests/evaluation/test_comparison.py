"""Comparisons: every model in one table, on the same clips."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from colalib import evaluation, training
from colalib.data import corpora, store
from colalib.errors import UserError
from colalib.evaluation import intervals
from colalib.settings import FinetuneConfig, PretrainConfig
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


@pytest.mark.slow
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


def test_a_fold_in_a_name_needs_folds(mel_store, finetuned, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="needs a corpus with folds, or --folds"):
        evaluation.compare(mel_store, "runs/without-{fold}", tmp_path, progress=False)
    shutil.copytree(finetuned, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["config"]["fold"] = "f1"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is for fold 'f1', which"):
        evaluation.evaluate(mel_store, [tmp_path / "run"])


@pytest.fixture
def in_folds(folder, tmp_path):
    """The tones in two folds of whole groups, and an encoder for each that has not heard it."""
    table = pd.read_csv(folder / "index.csv")
    table["split"] = np.where(table["parity"] == "even", "1", "2")
    copied = tmp_path / "folded"
    shutil.copytree(folder, copied)
    table.to_csv(copied / "index.csv", index=False)
    folded = store.build(corpora.load(copied), tmp_path / "store", jobs=1, progress=False)
    for fold in ("1", "2"):
        config = PretrainConfig(steps=2, batch_size=8)
        training.pretrain([folded], tmp_path / f"without-{fold}", config, progress=False, leave_out=fold)
    return folded, str(tmp_path / "without-{fold}")


def test_each_fold_has_an_encoder_that_has_not_heard_it(in_folds, tmp_path):
    folded, encoder = in_folds
    results, predictions = evaluation.compare(
        folded, encoder, tmp_path / "out", seeds=1, finetune=SHORT, progress=False
    )
    assert {r["pretrain_overlap"] for r in results["results"]} == {0}
    assert results["n_clips"] == len(folded) == 96, "every clip is tested once"
    for fold in ("1", "2"):
        run = Run(tmp_path / f"without-{fold}")
        heard = np.isin(folded.ids, [*run.seen_clip_ids])
        assert list(heard) == list(folded.clips["split"] != fold)
        alone = evaluation.probe(folded, run.path, fold=fold, progress=False)[1]
        chosen = (predictions["model"] == "probe") & predictions["clip_id"].isin(alone["clip_id"])
        assert list(predictions["predicted"][chosen]) == list(alone["predicted"])
        tuned = Run(tmp_path / "out" / f"fine-tuned-label-all-{fold}-0")
        assert tuned.description["data"]["weights"] == run.weights_hash
    # the encoder of the other fold has heard these clips, and the table says so
    results = evaluation.probe(folded, tmp_path / "without-1", fold="2", progress=False)[0]
    assert results["results"][0]["pretrain_overlap"] == results["n_clips"]


def test_a_fold_that_is_not_there_cannot_be_left_out(mel_store, tmp_path):
    with pytest.raises(UserError, match="no fold '7'"):
        training.pretrain([mel_store], tmp_path / "run", PretrainConfig(steps=1), leave_out="7")
    assert not (tmp_path / "run").exists()


def test_new_folds_and_supervised_runs_do_not_go_together(mel_store, pretrained, tmp_path):
    with pytest.raises(UserError, match="leave out --folds, or add --frozen"):
        evaluation.compare(mel_store, pretrained, tmp_path / "out", folds=3, finetune=SHORT, progress=False)
    assert not (tmp_path / "out").exists()


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
