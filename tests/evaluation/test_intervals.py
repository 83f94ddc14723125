"""Accuracies, intervals and differences from predictions of known accuracy."""

import json

import numpy as np
import pandas as pd
import pytest

from colalib.errors import UserError
from colalib.evaluation import intervals


def make_predictions(n=200, groups=40, seeds=(0, 1, 2), accuracy=(("weak", 0.4), ("strong", 0.6))):
    """Return predictions of models with known accuracies; whole groups share their difficulty."""
    rng = np.random.default_rng(0)
    labels = np.array(list("abcd") * (n // 4))
    hard = rng.random(groups)
    clips = {
        "task": "t/label",
        "fold": "",
        "clip_id": [str(i) for i in range(n)],
        "group": [str(i % groups) for i in range(n)],
        "label": labels,
    }
    parts = []
    for model, p in accuracy:
        for seed in seeds:
            right = rng.random(n) < np.clip(p + 0.8 * (hard[np.arange(n) % groups] - 0.5), 0, 1)
            predicted = np.where(right, labels, "other")
            parts.append(pd.DataFrame(clips | {"model": model, "seed": seed, "predicted": predicted}))
    return pd.concat(parts, ignore_index=True)


def test_summary_has_the_form_of_results_json():
    results = intervals.summary(make_predictions(), {"strong": 7})
    assert json.loads(json.dumps(results)) == results
    assert results["model_name"] == ["weak", "strong"]
    assert results["accuracies"] == [r["mean"] for r in results["results"]]
    assert results["task"] == "t/label"
    assert results["n_clips"] == 200
    assert results["chance"] == 0.25
    strong = results["results"][1]
    assert strong["seeds"] == [0, 1, 2]
    assert np.mean(strong["per_seed"]) == pytest.approx(strong["mean"], abs=1e-3)
    assert strong["ci95"][0] < strong["mean"] < strong["ci95"][1]
    assert strong["pretrain_overlap"] == 7
    assert "labels_per_class" not in strong
    (difference,) = results["differences"]
    assert (difference["a"], difference["b"]) == ("strong", "weak")
    assert difference["mean"] == pytest.approx(strong["mean"] - results["results"][0]["mean"], abs=1e-3)
    assert 0 < difference["ci95"][0] < difference["mean"] < difference["ci95"][1]


def test_a_label_budget_is_in_the_name_where_there_are_several():
    few = make_predictions(accuracy=(("probe", 0.3),)).assign(labels_per_class="10")
    every = make_predictions(accuracy=(("probe", 0.6),)).assign(labels_per_class="")
    results = intervals.summary(pd.concat([few, every]))
    assert results["model_name"] == ["probe (10 per class)", "probe"]
    assert [r.get("labels_per_class") for r in results["results"]] == [10, None]
    assert intervals.summary(few)["model_name"] == ["probe"]


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


@pytest.mark.parametrize(("groups", "least", "most"), [(30, 87, 100), (4, 65, 88)])
def test_interval_covers_the_truth(groups, least, most):
    """Over 100 draws of groups and clips the 95% interval contains the true accuracy about that
    often, but less often with few groups.
    """
    hits = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        p = rng.beta(6, 4, size=groups)  # a group's own accuracy; its mean is 0.6
        right = rng.random((groups, 8)) < p[:, None]
        table = pd.DataFrame(
            {
                "group": np.repeat(np.arange(groups), 8),
                "label": "x",
                "predicted": np.where(right.ravel(), "x", "y"),
            }
        )
        table = table.assign(model="m", task="t", seed=0, clip_id=np.arange(8 * groups))
        low, high = intervals.summary(table)["results"][0]["ci95"]
        hits += low <= 0.6 <= high
    assert least <= hits <= most


def test_an_interval_does_not_depend_on_how_many_seeds_other_models_have():
    rng = np.random.default_rng(0)
    clips = pd.DataFrame({"clip_id": [str(i) for i in range(40)], "task": "t", "label": "a"})
    clips["group"] = clips["clip_id"]

    def predicted(model, chances):
        """Return predictions with a seed per chance of being right."""
        return pd.concat(
            clips.assign(model=model, seed=seed, predicted=np.where(rng.random(40) < chance, "a", "b"))
            for seed, chance in enumerate(chances)
        )

    two, three = predicted("two", (0.9, 0.4)), predicted("three", (0.6, 0.6, 0.6))
    alone = intervals.summary(two)["results"][0]["ci95"]
    beside = intervals.summary(pd.concat([two, three]))["results"][0]["ci95"]
    assert np.allclose(alone, beside, atol=0.04)
    assert alone[1] - alone[0] > 0.4


def test_the_only_group_is_resampled_by_clips():
    one = make_predictions(seeds=(0,)).assign(group="a speaker")
    (weak, _) = intervals.summary(one)["results"]
    assert weak["ci_method"] == "bootstrap over clips of the only group"
    assert weak["ci95"][0] < weak["mean"] < weak["ci95"][1]


@pytest.mark.parametrize("column", ["clip_id", "group", "label"])
def test_models_on_different_clips_are_not_compared(column):
    table = make_predictions(seeds=(0,))
    table.loc[table.index[-1], column] = "another"
    with pytest.raises(UserError, match="different test clips, groups, labels or tasks"):
        intervals.summary(table)


def test_the_number_of_groups_is_told():
    assert intervals.summary(make_predictions(groups=6))["n_groups"] == 6


def test_mcnemar_by_hand():
    table = make_predictions(n=8, groups=8, seeds=(0,), accuracy=(("a", 1.0), ("b", 1.0)))
    table["predicted"] = table["label"]
    table.loc[(table["model"] == "b") & table["clip_id"].isin(list("01234")), "predicted"] = "other"
    table.loc[(table["model"] == "a") & (table["clip_id"] == "7"), "predicted"] = "other"
    result = intervals.mcnemar(table, "a", "b")
    assert (result["only_a"], result["only_b"]) == (5, 1)
    assert result["p"] == pytest.approx(2 * 7 / 64)
    few = table[table["model"] == "a"].assign(labels_per_class="2", predicted="other")
    budgets = pd.concat([table.assign(labels_per_class=""), few])
    assert intervals.mcnemar(budgets, "a", "b") == result
    assert intervals.mcnemar(budgets, "a (2 per class)", "b")["only_a"] == 0


def test_tables_say_what_an_interval_shows():
    results = intervals.summary(make_predictions())
    table = intervals.table(results)
    assert list(table["model"]) == ["chance", "weak", "strong"]
    assert table["accuracy"][0] == 25.0
    (reading,) = intervals.differences(results)["reading"]
    assert reading == "strong is better"
    results["differences"][0]["ci95"] = [-0.01, 0.2]
    (reading,) = intervals.differences(results)["reading"]
    assert reading == "no difference shown"


def test_label_efficiency_has_a_row_per_model_and_budget():
    budgets = {
        5: make_predictions(accuracy=(("probe", 0.3),)),
        50: make_predictions(accuracy=(("probe", 0.6),)),
    }
    table = intervals.label_efficiency(budgets)
    assert list(table["labels per class"]) == [5, 50]
    assert table["mean"][0] < table["mean"][1]
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] < table["high"]).all()


def test_predictions_lie_beside_their_results(tmp_path):
    predictions = make_predictions(seeds=(0,))
    results = intervals.summary(predictions)
    intervals.save(results, tmp_path / "results.json", predictions)
    intervals.save(results, tmp_path / "folds.json", predictions)
    names = {"results.json", "predictions.csv", "folds.json", "folds-predictions.csv"}
    assert {p.name for p in tmp_path.iterdir()} == names
