"""Features, probe, kNN, and the numbers that are drawn from predictions."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from colalib import cola, evaluation, training
from colalib.data import audio, corpora, segments, store
from colalib.data.clips import Clips, split_validation
from colalib.data.corpus import Corpus, Split
from colalib.data.segments import pair_batch
from colalib.encoder import Encoder
from colalib.errors import UserError
from colalib.evaluation import intervals
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training import runs


@pytest.fixture(scope="module")
def pretrained(mel_store, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    return training.pretrain([mel_store], run, PretrainConfig(steps=20, batch_size=16), progress=False)


@pytest.fixture
def clips(mel_store):
    return Clips([mel_store], [np.arange(len(mel_store))])


def test_mel_stats_by_hand(clips, mel_store):
    x = evaluation.mel_stats(clips)
    frames = mel_store.frames(7).astype(np.float32)
    assert x.shape == (96, 128) and np.allclose(x[7], np.concatenate([frames.mean(0), frames.std(0)]))


def test_embedding_by_hand(clips, mel_store):
    encoder = Encoder("b0-small", std=2.0).eval()
    x = evaluation.embed(encoder, clips, progress=False)
    frames = mel_store.frames(7).astype(np.float32)
    with torch.no_grad():
        *maps, _ = encoder.feature_maps(torch.from_numpy(np.stack([frames[s : s + 98] for s in (0, 49, 98)])))
    means, spreads = [], []
    for m in maps:  # [3, time, bands, channels]
        ranges = np.stack(
            [part.mean(axis=2) for part in np.split(m.numpy(), min(m.shape[2], 4), axis=2)], axis=3
        )
        means.append(ranges.mean(axis=(0, 1)).ravel())  # [channels × ranges]
        spreads.append(ranges.std(axis=(0, 1)).ravel())
    assert x.shape == (96, 3328) and x.dtype == np.float32
    assert np.allclose(x[7], np.concatenate(means + spreads), rtol=1e-3, atol=1e-4)


def test_calibration_gives_batchnorm_the_data(clips):
    torch.manual_seed(0)
    encoder = evaluation.calibrate_batchnorm(Encoder("b0-small"), clips)
    assert float(encoder.std) == pytest.approx(segments.segment_std(clips, 0)) and not encoder.training
    rng = np.random.default_rng(1)
    x = torch.from_numpy(np.stack([clips.crop(i, rng) for i in rng.integers(96, size=256)]))
    norm = encoder.net._bn0
    with torch.no_grad():
        mean = norm.running_mean.clone()
        encoder.train()
        norm.momentum = 1.0
        encoder(x)
        seen = norm.running_mean
    assert torch.allclose(mean, seen, atol=0.2 * float(seen.abs().max()))


def test_probe_and_knn_find_what_is_there_and_not_what_is_not():
    rng = np.random.default_rng(0)
    y = np.array(list("abcd") * 60)
    place = {"a": (0, 0), "b": (0, 4), "c": (4, 0), "d": (4, 4)}
    x = np.array([place[v] for v in y]) + rng.normal(size=(240, 2))
    rows = rng.permutation(240)
    split = Split("", rows[:140], rows[140:180], rows[180:])
    for method in (evaluation.linear_probe, evaluation.knn):
        assert (method(x, y, split) == y[split.test]).mean() > 0.85
        assert (method(rng.normal(size=(240, 2)), y, split) == y[split.test]).mean() < 0.5


@pytest.mark.parametrize("classes", ["ab", "abcd"])
def test_tempered_loss_is_the_same_for_a_model_that_is_only_too_sure(classes):
    rng = np.random.default_rng(0)
    y = np.array(list(classes) * 50, dtype=object)
    x = np.array([[classes.index(v), classes.index(v) % 2] for v in y]) + rng.normal(size=(len(y), 2))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    known = log_loss(y, model.predict_proba(x))
    found = evaluation.temperature_scaled_loss(model, x, y)
    # fitted on these very clips it is neither too sure nor too unsure
    assert 0.98 * known < found <= known + 1e-6
    model[-1].coef_ *= 10
    model[-1].intercept_ *= 10
    assert log_loss(y, model.predict_proba(x)) > 1.5 * known
    assert np.isclose(evaluation.temperature_scaled_loss(model, x, y), found, rtol=0.01)


def make_predictions(n=200, groups=40, seeds=(0, 1, 2), accuracy=(("weak", 0.4), ("strong", 0.6))):
    """Predictions of models with known accuracies; whole groups share their difficulty."""
    rng = np.random.default_rng(0)
    labels = np.array(list("abcd") * (n // 4))
    hard = rng.random(groups)
    parts = []
    for model, p in accuracy:
        for seed in seeds:
            right = rng.random(n) < np.clip(p + 0.8 * (hard[np.arange(n) % groups] - 0.5), 0, 1)
            predicted = np.where(right, labels, "other")
            parts.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "task": "t/label",
                        "seed": seed,
                        "fold": "",
                        "clip_id": [str(i) for i in range(n)],
                        "group": [str(i % groups) for i in range(n)],
                        "label": labels,
                        "predicted": predicted,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def test_summary_has_the_form_of_results_json():
    results = intervals.summary(make_predictions(), {"strong": 7})
    assert json.loads(json.dumps(results)) == results
    assert results["model_name"] == ["weak", "strong"] and results["accuracies"] == [
        r["mean"] for r in results["results"]
    ]
    assert results["task"] == "t/label" and results["n_clips"] == 200 and results["chance"] == 0.25
    strong = results["results"][1]
    assert strong["seeds"] == [0, 1, 2] and np.mean(strong["per_seed"]) == pytest.approx(
        strong["mean"], abs=1e-3
    )
    assert strong["ci95"][0] < strong["mean"] < strong["ci95"][1] and strong["pretrain_overlap"] == 7
    (difference,) = results["differences"]
    assert (difference["a"], difference["b"]) == ("strong", "weak")
    assert difference["mean"] == pytest.approx(strong["mean"] - results["results"][0]["mean"], abs=1e-3)
    assert 0 < difference["ci95"][0] < difference["mean"] < difference["ci95"][1]


def test_intervals_know_groups_and_pairs():
    """An interval over groups is wider than one that takes clips as independent; a paired one is
    narrower.
    """
    one = make_predictions(seeds=(0,))
    by_group = intervals.summary(one)
    by_clip = intervals.summary(one.assign(group=one["clip_id"]))
    width = [np.diff(r["results"][0]["ci95"])[0] for r in (by_group, by_clip)]
    assert width[0] > 1.1 * width[1]
    twin = pd.concat([one[one.model == "weak"], one[one.model == "weak"].assign(model="twin")])
    assert intervals.summary(twin)["differences"][0]["ci95"] == [0, 0]


def test_interval_covers_the_truth():
    """Over 100 draws of groups and clips the 95% interval contains the true accuracy about that
    often.
    """
    hits = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        p = rng.beta(6, 4, size=30)  # a group's own accuracy; its mean is 0.6
        right = rng.random((30, 8)) < p[:, None]
        table = pd.DataFrame(
            {
                "group": np.repeat(np.arange(30), 8),
                "label": "x",
                "predicted": np.where(right.ravel(), "x", "y"),
            }
        )
        table = table.assign(model="m", task="t", seed=0, clip_id=np.arange(240))
        low, high = intervals.summary(table)["results"][0]["ci95"]
        hits += low <= 0.6 <= high
    assert 87 <= hits <= 100


def test_models_on_different_clips_are_not_compared():
    table = make_predictions(seeds=(0,))
    with pytest.raises(UserError, match="different test clips"):
        intervals.summary(table.iloc[:-4])


def test_mcnemar_by_hand():
    table = make_predictions(n=8, groups=8, seeds=(0,), accuracy=(("a", 1.0), ("b", 1.0)))
    table["predicted"] = table["label"]
    table.loc[(table["model"] == "b") & table["clip_id"].isin(list("01234")), "predicted"] = "other"
    table.loc[(table["model"] == "a") & (table["clip_id"] == "7"), "predicted"] = "other"
    found = intervals.mcnemar(table, "a", "b")
    assert (found["only_a"], found["only_b"]) == (5, 1) and found["p"] == pytest.approx(2 * 7 / 64)


def test_probe_reports_what_pretraining_saw(mel_store, pretrained):
    results, predictions = evaluation.probe(mel_store, pretrained, progress=False)
    assert results["results"][0]["pretrain_overlap"] == 0 and len(predictions) == results["n_clips"]
    results, predictions = evaluation.probe(mel_store, pretrained, folds=4, progress=False)
    seen = (mel_store.clips["split"] != "test").sum()
    assert results["results"][0]["pretrain_overlap"] == seen and len(predictions) == 96
    assert evaluation.probe(mel_store, "mel-stats")[0]["accuracies"][0] > 0.8
    assert evaluation.probe(mel_store, "random", label="parity", progress=False)[0]["task"].endswith(
        "/parity"
    )


def test_compare_puts_everything_in_one_table(mel_store, pretrained, tmp_path):
    config = FinetuneConfig(steps=2, batch_size=8)
    results, predictions = evaluation.compare(
        mel_store, pretrained, tmp_path, seeds=2, labels_per_class=(2, None), finetune=config, progress=False
    )
    names = [
        "mel-stats",
        "random",
        "probe",
        "kNN",
        "mel-stats (2 a class)",
        "probe (2 a class)",
        "scratch (2 a class)",
        "fine-tuned (2 a class)",
        "scratch",
        "fine-tuned",
    ]
    assert results["model_name"] == names
    assert [len(r["seeds"]) for r in results["results"]] == [1, 2, 1, 1, 2, 2, 2, 2, 2, 2]
    assert len(results["differences"]) == 45 and set(predictions["seed"]) == {0, 1}
    runs = sorted(p.name for p in tmp_path.glob("[!.]*-split-*"))
    assert len(runs) == 8
    intervals.save(results, tmp_path / "results.json", predictions)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == len(predictions)


def test_ablation_has_a_row_a_setting(mel_store, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "ABLATION", {"bilinear": {}, "bilinear, 4 pairs": {"batch_size": 4}})
    config = FinetuneConfig(steps=2, batch_size=8)
    results, _ = evaluation.ablation(mel_store, tmp_path, 0.2, config, seeds=1, progress=False)
    names = ["mel-stats", "random", "bilinear", "bilinear, 4 pairs", "scratch", "fine-tuned"]
    assert results["model_name"] == names
    made = json.loads((tmp_path / "bilinear-4-pairs-0" / "config.json").read_text())["config"]
    assert made["batch_size"] == 4 and made["epochs"] == 0.2


def test_saved_classifiers_side_by_side(mel_store, pretrained, tmp_path):
    runs = []
    for seed in (0, 1):
        config = FinetuneConfig(steps=2, batch_size=8, seed=seed)
        runs.append(training.finetune(mel_store, tmp_path / f"run{seed}", config, pretrained, progress=False))
    results, predictions = evaluation.evaluate(mel_store, runs)
    assert results["model_name"] == ["run0", "run1"]
    for run in runs:
        saved = evaluation.read_predictions(run)
        again = predictions[predictions["model"] == run.name]
        assert (saved["predicted"].values == again["predicted"].values).all()
    with pytest.raises(UserError, match="is no classifier"):
        evaluation.evaluate(mel_store, [pretrained])
    with pytest.raises(UserError, match="named twice"):
        evaluation.evaluate(mel_store, [runs[0], runs[0]])
    other = training.finetune(
        mel_store, tmp_path / "b" / "run0", FinetuneConfig(steps=1, batch_size=8), progress=False
    )
    assert len(set(evaluation.evaluate(mel_store, [runs[0], other])[0]["model_name"])) == 2


def test_an_interval_does_not_depend_on_how_many_seeds_other_models_have():
    rng = np.random.default_rng(0)

    def predicted(model, seeds, chance):
        table = pd.DataFrame(
            {"clip_id": [str(i) for i in range(40)], "task": "t", "label": "a", "model": model}
        )
        table["group"] = table["clip_id"]
        right = [
            table.assign(seed=s, predicted=np.where(rng.random(40) < chance[s], "a", "b"))
            for s in range(seeds)
        ]
        return pd.concat(right)

    two, three = predicted("two", 2, (0.9, 0.4)), predicted("three", 3, (0.6, 0.6, 0.6))
    alone = evaluation.summary(two)["results"][0]["ci95"]
    beside = evaluation.summary(pd.concat([two, three]))["results"][0]["ci95"]
    assert np.allclose(alone, beside, atol=0.04) and alone[1] - alone[0] > 0.4


@pytest.mark.parametrize("sizes", [(900, 100), (400, 300, 300), (7, 1), (1,) * 40, (10,)])
def test_few_clips_are_held_out_for_validation(sizes):
    class Some:
        groups = np.repeat([f"g{i}" for i in range(len(sizes))], sizes)

        def __len__(self):
            return len(self.groups)

        def take(self, chosen):
            made = Some()
            made.groups = self.groups[chosen]
            return made

    for seed in range(20):
        train, valid = split_validation(Some(), seed)
        assert len(train) >= 0.6 * sum(sizes) and len(valid) >= 2
        assert not set(train.groups) & set(valid.groups) or len(train) == len(valid) == sum(sizes)


def test_embeddings_in_a_file(mel_store, folder, pretrained, tmp_path):
    for source in (mel_store.path, folder):
        assert evaluation.embed_to_file(source, pretrained, tmp_path / "e.npz").vectors.shape == (96, 3328)
        with np.load(tmp_path / "e.npz", allow_pickle=False) as made:
            assert made["embedding"].shape == (96, 3328) and made["clip_id"].dtype.kind == "U"
            assert list(made["label"]) == list(mel_store.clips["label"])


def test_a_part_of_a_corpus_has_the_ids_of_the_whole(folder, tmp_path):
    corpus = corpora.load(folder)
    whole, part = (
        store.build(Corpus(name, folder, corpus.clips), tmp_path / name, jobs=1, progress=False)
        for name in ("esc50", "esc10")
    )
    assert list(whole.ids) == list(part.ids)
    with pytest.raises(UserError, match="comes twice"):
        training.pretrain([whole, part], tmp_path / "run", PretrainConfig(steps=2), progress=False)


def test_a_long_clip_is_embedded_in_parts(clips, monkeypatch):
    sizes, encoder = [], Encoder().eval()
    whole = evaluation.embed(encoder, clips.take([0]), progress=False)
    frames = np.concatenate([clips.frames(0)] * 40)  # 80 s
    monkeypatch.setattr(Clips, "frames", lambda self, i: frames)
    usual = encoder.block_features
    monkeypatch.setattr(encoder, "readout", lambda x: (sizes.append(len(x)), usual(x))[1])
    assert evaluation.embed(encoder, clips.take([0]), progress=False).shape == whole.shape
    assert max(sizes) == 64 and sum(sizes) > 150


def test_the_default_encoder_is_what_its_card_says():
    """Trained with the default settings on `scores` alone, on no test tune; small enough to ship."""
    made = json.loads((runs.DEFAULT / "config.json").read_text())
    assert made["kind"] == "pretrain" and made["data"]["corpora"] == ["scores"]
    length = {"steps": made["config"]["steps"], "minutes": made["config"]["minutes"]}
    usual = dataclasses.asdict(PretrainConfig(**length))
    assert usual | made["config"] == usual  # (a setting may be newer)
    assert made["mel"] == dataclasses.asdict(audio.MelConfig())
    assert sum(file.stat().st_size for file in runs.DEFAULT.iterdir()) < 10e6
    loaded = runs.load_encoder("default")
    assert loaded.name == "default" and len(loaded.seen) == made["data"]["n_clips"]
    card = (runs.DEFAULT / "README.md").read_text()
    for fact in (f"--steps {length['steps']}", f"{made['data']['n_clips']:,} clips", loaded.weights):
        assert fact in card


def test_the_default_encoder_finds_the_positive_in_music_it_has_not_heard(tmp_path):
    """Accuracy of picking the other crop of the same clip, against the calibrated random encoder."""
    corpus = corpora.load("scores", clips_per_class=12, data=tmp_path, jobs=2)
    music = store.build(corpus, tmp_path / "store", progress=False)
    rows = np.flatnonzero(music.clips["split"] == "test")
    loaded = runs.load_encoder("default")
    assert not loaded.seen & set(music.ids[rows])
    clips = Clips([music], [rows])
    calibrated = evaluation.calibrate_batchnorm(Encoder("b0-small"), clips)
    found = {}
    for name, encoder in (("default", loaded.encoder), ("random", calibrated)):
        with torch.no_grad():
            ranks = [
                cola.ranks(cola.cosine_similarity(encoder(a), encoder(b))).float()
                for a, b in (pair_batch(clips, step, len(clips), seed=0) for step in range(10))
            ]
        found[name] = (torch.cat(ranks) == 1).float().mean()
    assert found["default"] > found["random"] + 0.1
