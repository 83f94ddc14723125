"""Intervals: from predictions on test clips to accuracies and paired differences with their intervals.

`summary` turns a table of predictions (see `training.runs.prediction_table`) into the content of
results.json. Nothing here knows of sound or encoders.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from colalib.errors import UserError
from colalib.files import atomic, check_ours, write_json

DRAWS = 2000  # bootstrap draws
# of fewer, intervals are too narrow: in simulations those of 4 groups missed the truth in a fifth of cases
FEW_GROUPS = 10
SOFTWARE = "colalib"  # what a figure beside results.json says it was written by


def _draws(tables: list[pd.DataFrame], rng: np.random.Generator) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Draw bootstrap weights for the groups [DRAWS, G], and for each number of seeds [DRAWS, S].

    Models with as many seeds share their draws.
    """
    groups = tables[0]["group"].nunique()
    chances = np.full(groups, 1 / groups)
    # in parts, as small numbers: 100,000 groups would take 1.6 GB
    by_group = np.concatenate(
        [rng.multinomial(groups, chances, size=DRAWS // 20).astype(np.int16) for _ in range(20)]
    )
    counts = sorted({table["seed"].nunique() for table in tables}, reverse=True)
    return by_group, {n: rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) for n in counts}


def _right(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return right predictions and all predictions per seed and group, both [S, G]."""
    right = (table["label"] == table["predicted"]).astype(float)
    cells = pd.DataFrame({"seed": table["seed"], "group": table["group"], "right": right, "all": 1.0})
    cells = cells.groupby(["seed", "group"])[["right", "all"]].sum().unstack(fill_value=0)
    return cells["right"].values, cells["all"].values


def _resampled(table: pd.DataFrame, by_group: np.ndarray, by_seeds: dict[int, np.ndarray]) -> np.ndarray:
    """Return the accuracy in every bootstrap draw [DRAWS]."""
    right, total = _right(table)
    by_seed = by_seeds[len(right)]
    return np.einsum("rs,sg,rg->r", by_seed, right, by_group) / np.einsum(
        "rs,sg,rg->r", by_seed, total, by_group
    )


def interval(values: np.ndarray) -> list[float]:
    """Return the central 95% of bootstrap draws."""
    return [round(float(v), 6) for v in np.quantile(values, [0.025, 0.975])]


def summary(predictions: pd.DataFrame, overlap: dict[str, int | None] | None = None) -> dict:
    """Turn predictions of several models on the same test clips of one task into the content of results.json.

    Accuracies are fractions. Intervals are 95% of a bootstrap over groups (tunes, speakers) and
    seeds. Those of differences are paired: the same groups are drawn for both models, and the same
    seeds if they have as many. If all test clips are one group, clips are drawn instead, and the
    intervals hold for that group only. With few groups (`FEW_GROUPS`) intervals are too narrow.
    `overlap`: for each model, the number of test clips that its encoder has heard in training, None where
    nobody knows.

    Raises `UserError` if the models were not judged on the same clips.
    """
    tables = by_model(predictions)
    clips = {frozenset(zip(t["clip_id"], t["group"], t["label"])) for t in tables.values()}
    if len(clips) > 1 or predictions["task"].nunique() > 1:
        raise UserError(
            "the models were judged on different test clips, groups, labels or tasks: "
            "compare runs of one store, label and fold"
        )
    unit = "groups"
    # one speaker, say: what can be drawn are the clips of that one
    if predictions["group"].nunique() == 1:
        unit = "clips of the only group"
        tables = {name: table.assign(group=table["clip_id"]) for name, table in tables.items()}
    by_group, by_seeds = _draws([*tables.values()], np.random.default_rng(0))
    draws = {name: _resampled(table, by_group, by_seeds) for name, table in tables.items()}
    results = [_result(name, table, draws[name], unit, overlap or {}) for name, table in tables.items()]
    means = {result["model"]: result["mean"] for result in results}
    names = list(tables)
    differences = [
        {"a": a, "b": b, "mean": round(means[a] - means[b], 6), "ci95": interval(draws[a] - draws[b])}
        for i, b in enumerate(names)
        for a in names[i + 1 :]
    ]
    first = tables[names[0]]
    first = first[first["seed"] == first["seed"].iloc[0]]
    return {
        "model_name": names,
        "accuracies": [means[name] for name in names],
        "task": predictions["task"].iloc[0],
        "split": "test",
        "n_clips": len(first),
        "n_groups": predictions["group"].nunique(),
        "chance": round(float(first["label"].value_counts(normalize=True).max()), 6),
        "results": results,
        "differences": differences,
    }


def by_model(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the predictions of each model and label budget, in the order of the table.

    Where a model occurs with several budgets, names tell them: "probe", "probe (10 per class)".
    """
    if "labels_per_class" not in predictions:
        predictions = predictions.assign(labels_per_class="")
    budgets = predictions[["model", "labels_per_class"]].drop_duplicates()
    several = budgets["model"].duplicated().any()
    tables = {}
    for model, budget in budgets.itertuples(index=False):
        name = f"{model} ({budget} per class)" if several and budget else model
        chosen = (predictions["model"] == model) & (predictions["labels_per_class"] == budget)
        tables[name] = predictions[chosen]
    return tables


def _result(name: str, table: pd.DataFrame, draws: np.ndarray, unit: str, overlap: dict) -> dict:
    """Return the row of one model for results.json; a label budget is told only where there is one."""
    per_seed = (table["label"] == table["predicted"]).groupby(table["seed"]).mean()
    budget = table["labels_per_class"].iloc[0]
    return {
        "model": name,
        **({"labels_per_class": int(budget)} if budget else {}),
        "seeds": [int(seed) for seed in per_seed.index],
        "per_seed": [round(float(accuracy), 6) for accuracy in per_seed],
        "mean": round(float(per_seed.mean()), 6),
        "ci95": interval(draws),
        "ci_method": f"bootstrap over {unit}" + (" and seeds" if len(per_seed) > 1 else ""),
        "pretrain_overlap": overlap.get(table["model"].iloc[0], 0),
    }


def confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """Count one model's predictions by true class (rows) and predicted class (columns), over all seeds."""
    label, predicted = predictions["label"], predictions["predicted"]
    classes = sorted(set(label) | set(predicted))
    return pd.crosstab(label, predicted).reindex(index=classes, columns=classes, fill_value=0)


def mcnemar(predictions: pd.DataFrame, a: str, b: str) -> dict:
    """Return McNemar's exact test (1947) of two models, by their names in `summary`, on the same clips.

    All seeds of a clip are pooled by majority. Gives the clips that only `a` gets right, those that only `b`
    gets right, and the two-sided p-value.
    """
    tables = by_model(predictions)
    right_a, right_b = (
        (table["label"] == table["predicted"]).groupby(table["clip_id"]).mean() > 0.5
        for table in (tables[a], tables[b])
    )
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": float(p)}


def table(results: dict) -> pd.DataFrame:
    """Return results.json as a table in per cent: model, accuracy, interval, number of seeds."""
    rows = [{"model": "chance", "accuracy": 100 * results["chance"], "95% interval": "", "seeds": 0}]
    for r in results["results"]:
        low, high = (100 * v for v in r["ci95"])
        rows.append(
            {
                "model": r["model"],
                "accuracy": 100 * r["mean"],
                "95% interval": f"{low:.1f} – {high:.1f}",
                "seeds": len(r["seeds"]),
            }
        )
    return pd.DataFrame(rows).round({"accuracy": 1})


def differences(results: dict) -> pd.DataFrame:
    """Return the paired differences of results.json in points, with a reading.

    An interval that holds zero shows no difference.
    """
    rows = []
    for d in results["differences"]:
        low, high = (100 * v for v in d["ci95"])
        better = d["a"] if low > 0 else d["b"] if high < 0 else None
        reading = f"{better} is better" if better else "no difference shown"
        rows.append(
            {
                "a": d["a"],
                "b": d["b"],
                "a - b (points)": round(100 * d["mean"], 1),
                "95% interval": f"{low:+.1f} … {high:+.1f}",
                "reading": reading,
            }
        )
    return pd.DataFrame(rows)


def label_efficiency(budgets: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """Turn predictions by label budget (labelled clips per class) into one row per model and budget.

    Columns: model, labels per class, mean, low, high (95% interval), seeds. Accuracies are
    fractions.
    """
    rows = []
    for labels, predictions in budgets.items():
        for result in summary(predictions)["results"]:
            low, high = result["ci95"]
            row = {"model": result["model"], "labels per class": labels, "mean": result["mean"]}
            rows.append(row | {"low": low, "high": high, "seeds": len(result["seeds"])})
    return pd.DataFrame(rows)


def save(results: dict, out: Path | str, predictions: pd.DataFrame | None = None) -> None:
    """Write results to the JSON file `out`, and the predictions beside it.

    They go to predictions.csv beside results.json, and to x-predictions.csv beside x.json. Raises `UserError`
    as `check_replaceable`.
    """
    check_replaceable(out)
    write_json(Path(out), results)
    if predictions is not None:
        with atomic(_predictions_file(Path(out)), "w") as file:
            predictions.to_csv(file, index=False)


def check_replaceable(out: Path | str, figure: bool = False) -> None:
    """Raise `UserError` if `out`, or the predictions or the `figure` beside it, is a file of another program.

    Such a file would be overwritten. Call this before a long computation.
    """
    out = Path(out)
    signs = {out: b'"model_name"', _predictions_file(out): b"model,task,seed,fold,clip_id,"}
    if figure:
        signs[out.with_suffix(".png")] = f"Software\0{SOFTWARE}".encode()
    for path, sign in signs.items():
        check_ours(path, sign)


def _predictions_file(out: Path) -> Path:
    return out.with_name("predictions.csv" if out.stem == "results" else f"{out.stem}-predictions.csv")
