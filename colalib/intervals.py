"""Numbers one can trust: predictions on test clips → accuracies and paired differences with their intervals.

`summary` turns a table of predictions (model, task, seed, clip_id, group, label, predicted) into `results.json`. Knows
nothing of sound or encoders.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from colalib.errors import UserError
from colalib.files import atomic, write_json

DRAWS = 2000  # bootstrap draws


def _draws(tables: list[pd.DataFrame], rng: np.random.Generator) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Bootstrap weights for the groups [DRAWS, G], and for each number of seeds that occurs [DRAWS, S]: models with as many
    seeds share their draws."""
    groups = tables[0]["group"].nunique()
    by_group = rng.multinomial(groups, np.full(groups, 1 / groups), size=DRAWS)
    counts = sorted({table["seed"].nunique() for table in tables}, reverse=True)
    return by_group, {n: rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) for n in counts}


def _right(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Right predictions and predictions per seed and group, both [S, G]."""
    right = (table["label"] == table["predicted"]).astype(float)
    cells = pd.DataFrame({"seed": table["seed"], "group": table["group"], "right": right, "all": 1.0})
    cells = cells.groupby(["seed", "group"])[["right", "all"]].sum().unstack(fill_value=0)
    return cells["right"].values, cells["all"].values


def _resampled(table: pd.DataFrame, by_group: np.ndarray, by_seeds: dict[int, np.ndarray]) -> np.ndarray:
    """Accuracy in every bootstrap draw [DRAWS]."""
    right, total = _right(table)
    by_seed = by_seeds[len(right)]
    return np.einsum("rs,sg,rg->r", by_seed, right, by_group) / np.einsum("rs,sg,rg->r", by_seed, total, by_group)


def interval(values: np.ndarray) -> list[float]:
    """The central 95% of bootstrap draws."""
    return [round(float(v), 4) for v in np.quantile(values, [0.025, 0.975])]


def summary(predictions: pd.DataFrame, overlap: dict[str, int] | None = None) -> dict:
    """Predictions of several models on the same test clips of one task → the content of results.json.

    Accuracies are fractions. Intervals are 95% of a bootstrap over groups (tunes, speakers) and seeds; those of
    differences are paired: the same groups are drawn for both models, and the same seeds if they have as many. Where all
    test clips are one group, clips are drawn, and the intervals hold for that group only. `overlap`: for each model the
    number of test clips that its encoder saw in pre-training.

    Raises `UserError` if the models were not judged on the same clips.
    """
    models = list(dict.fromkeys(predictions["model"]))
    tables = {m: predictions[predictions["model"] == m] for m in models}
    clips = {m: frozenset(t["clip_id"]) for m, t in tables.items()}
    if len({*clips.values()}) > 1 or predictions["task"].nunique() > 1:
        raise UserError(
            "the models were judged on different test clips or tasks: compare runs of one store, label and fold"
        )
    unit = "groups"
    if predictions["group"].nunique() == 1:  # one speaker, say: what can be drawn are the clips of that one
        unit = "clips of the only group"
        tables = {m: t.assign(group=t["clip_id"]) for m, t in tables.items()}
    rng = np.random.default_rng(0)
    by_group, by_seeds = _draws([*tables.values()], rng)
    draws = {m: _resampled(t, by_group, by_seeds) for m, t in tables.items()}
    results, differences = [], []
    for m, table in tables.items():
        per_seed = (table["label"] == table["predicted"]).groupby(table["seed"]).mean()
        results.append(
            {
                "model": m,
                "seeds": [int(s) for s in per_seed.index],
                "per_seed": [round(float(v), 4) for v in per_seed],
                "mean": round(float(per_seed.mean()), 4),
                "ci95": interval(draws[m]),
                "ci_method": f"bootstrap over {unit}" + (" and seeds" if len(per_seed) > 1 else ""),
                "pretrain_overlap": int((overlap or {}).get(m, 0)),
            }
        )
    means = {r["model"]: r["mean"] for r in results}
    for i, b in enumerate(models):
        for a in models[i + 1 :]:
            ci = interval(draws[a] - draws[b])
            differences.append({"a": a, "b": b, "mean": round(means[a] - means[b], 4), "ci95": ci})
    first = tables[models[0]]
    first = first[first["seed"] == first["seed"].iloc[0]]
    counts = first["label"].value_counts(normalize=True)
    return {
        "model_name": models,
        "accuracies": [means[m] for m in models],
        "task": predictions["task"].iloc[0],
        "split": "test",
        "n_clips": len(first),
        "chance": round(float(counts.max()), 4),
        "results": results,
        "differences": differences,
    }


def mcnemar(predictions: pd.DataFrame, a: str, b: str) -> dict:
    """Exact McNemar test between two models on the same clips (McNemar 1947), all seeds of a clip pooled by majority:
    clips that only `a` gets right, clips that only `b` gets right, and the two-sided p-value."""
    right = predictions.assign(right=predictions["label"] == predictions["predicted"])
    table = right.groupby(["clip_id", "model"])["right"].mean().unstack() > 0.5
    only_a, only_b = int((table[a] & ~table[b]).sum()), int((table[b] & ~table[a]).sum())
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": float(p)}


def table(results: dict) -> pd.DataFrame:
    """results.json as a table of per cent: model, accuracy, interval, difference from the row above it."""
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
    """The paired differences of results.json in points, with what they may be read as: an interval that holds zero shows
    no difference."""
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
    """Predictions of `supervised` by labelled clips a class → a row a model and budget: model, labels a class, mean, low, high
    (95%), seeds. Accuracies are fractions."""
    rows = []
    for labels, predictions in budgets.items():
        for r in summary(predictions)["results"]:
            low, high = r["ci95"]
            rows.append(
                {"model": r["model"].split(" (")[0], "labels a class": labels, "mean": r["mean"]}
                | {"low": low, "high": high, "seeds": len(r["seeds"])}
            )
    return pd.DataFrame(rows)


def save(results: dict, out: Path | str, predictions: pd.DataFrame | None = None) -> None:
    """Write results to `out`, and the predictions beside it: of results.json to predictions.csv, of x.json to
    x-predictions.csv."""
    out = Path(out)
    write_json(out, results)
    if predictions is not None:
        with atomic(
            out.with_name("predictions.csv" if out.stem == "results" else f"{out.stem}-predictions.csv"), "w"
        ) as file:
            predictions.to_csv(file, index=False)
