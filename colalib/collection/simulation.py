"""What proposals save: labelling is simulated on sets whose labels are known.

`python -m colalib.collection.simulation STORE … --out data/labelling.json` makes the file again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from colalib.collection.labelling import STRATEGIES, compact, fit_probe, propose
from colalib.data.splits import evaluation_splits
from colalib.data.store import MelStore, open_store
from colalib.errors import UserError
from colalib.evaluation import feature_source
from colalib.evaluation.intervals import DRAWS, interval
from colalib.files import write_json

BATCH = 10  # clips that are labelled at a time
BATCHES = 10
POOL = 400  # at most so many clips may be labelled
GOAL = 0.8  # accuracy


def label_and_judge(
    pool: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], strategy: str, seed: int
) -> list[float]:
    """Label clips of the pool as a strategy proposes them; return the test accuracy after each batch.

    Pool and test are `compact` features [n, d] and true labels [n].
    """
    (x, y), (x_test, y_test) = pool, test
    labels = np.full(len(y), "", dtype=object)
    accuracies = []
    for batch in range(BATCHES):
        chosen = propose(x, labels, BATCH, strategy, seed * BATCHES + batch)
        labels[chosen] = y[chosen]
        given = labels != ""
        if len(set(labels[given])) == 1:  # no probe yet: the only class is the answer
            answers = np.full(len(y_test), labels[given][0], dtype=object)
        else:
            answers = fit_probe(x[given], labels[given]).predict(x_test)
        accuracies.append(float(np.mean(answers == y_test)))
    return accuracies


def simulate(
    store: MelStore, features: np.ndarray, seeds: int, strategies=STRATEGIES, progress: bool = True
) -> dict[str, np.ndarray]:
    """Return for each strategy the test accuracies [folds, seeds, batches] on a store with folds.

    Each fold is the test once; the others are the pool, and only from them the features are reduced. Of a
    larger pool each seed draws 400 clips.
    """
    y = store.clips["label"].to_numpy(dtype=object)
    splits = evaluation_splits(store.clips)
    bar = tqdm(total=len(splits) * seeds * len(strategies), desc=store.name, disable=not progress)
    accuracies = {strategy: np.empty((len(splits), seeds, BATCHES)) for strategy in strategies}
    for f, split in enumerate(splits):
        others = np.sort(np.concatenate([split.train, split.valid]))
        for seed in range(seeds):
            rows = np.random.default_rng(seed).permutation(others)[:POOL]
            reduce = compact(features[rows])
            pool, test = ((reduce.transform(features[side]), y[side]) for side in (rows, split.test))
            for strategy in strategies:
                accuracies[strategy][f, seed] = label_and_judge(pool, test, strategy, seed)
                bar.update()
    bar.close()
    return accuracies


def labels_to(curves: np.ndarray, goal: float = GOAL) -> np.ndarray:
    """Return after how many labels each curve [r, batches] reaches the goal for the first time.

    Between two batches it is a straight line. A curve that stays below gets one batch more than there are.
    """
    there = curves >= goal
    first = np.where(there.any(axis=1), there.argmax(axis=1), BATCHES)
    numbers = np.empty(len(curves))
    for r, b in enumerate(first):
        between = 1.0
        if 0 < b < BATCHES:
            below, above = curves[r, b - 1 : b + 1]
            between = (goal - below) / (above - below)
        numbers[r] = BATCH * (b + between)
    return numbers


def summary(accuracies: dict[str, np.ndarray]) -> dict:
    """Return accuracies and labels to the goal of each strategy, with 95% intervals, and against "random".

    `accuracies`: [folds, seeds, batches] of each strategy. The intervals are of a bootstrap over folds and
    seeds; differences are paired: the same folds and seeds are drawn for both. Labels to a goal that the
    mean does not reach are None.
    """
    folds, seeds, _ = accuracies["random"].shape
    rng = np.random.default_rng(0)
    by_fold, by_seed = (rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n for n in (folds, seeds))
    mean = {name: a.mean(axis=(0, 1)) for name, a in accuracies.items()}  # [batches]
    drawn = {name: np.einsum("rf,rs,fsb->rb", by_fold, by_seed, a) for name, a in accuracies.items()}
    needed = {name: labels_to(mean[name][None])[0] for name in mean}
    needed_drawn = {name: labels_to(drawn[name]) for name in mean}
    rows = {}
    for name in mean:
        ends = [interval(drawn[name][:, b]) for b in range(BATCHES)]
        gain = drawn[name] - drawn["random"]
        rows[name] = {
            "accuracy": mean[name].round(4).tolist(),
            "ci95": ends,
            "labels to the goal": with_interval(needed[name], needed_drawn[name]),
        }
        if needed[name] > BATCH * BATCHES:
            rows[name]["labels to the goal"] = None  # it is not reached
        if name != "random":
            reached = max(needed["random"], needed[name]) <= BATCH * BATCHES
            rows[name] |= {
                "fewer labels than random": with_interval(
                    needed["random"] - needed[name], needed_drawn["random"] - needed_drawn[name]
                )
                if reached
                else None,
                "more accurate than random": (mean[name] - mean["random"]).round(4).tolist(),
                "more accurate than random, ci95": [interval(gain[:, b]) for b in range(BATCHES)],
            }
    return rows


def with_interval(number: float, draws: np.ndarray) -> dict:
    """Return a number of labels and its interval, to a tenth."""
    return {"mean": round(float(number), 1), "ci95": [round(end, 1) for end in interval(draws)]}


def main(arguments: list[str] | None = None) -> None:
    """Simulate labelling on some stores and write what it gave."""
    parser = argparse.ArgumentParser(prog="python -m colalib.collection.simulation", description=__doc__)
    parser.add_argument("stores", nargs="+", metavar="STORE", help="with labels and folds")
    parser.add_argument("--encoder", default="default", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=10, help="repetitions per fold; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args(arguments)
    words = ["python", "-m", "colalib.collection.simulation", *map(str, arguments or sys.argv[1:])]
    content = {
        "command": shlex.join(words),
        "what": "test accuracy of a linear probe after each batch of labels; a strategy proposes the clips "
        "of a batch, and all folds but the tested one are the pool",
        "intervals": f"95%, bootstrap over folds and seeds, {DRAWS} draws",
        "encoder": given.encoder,
        "seeds": list(range(given.seeds)),
        "labels": [BATCH * (b + 1) for b in range(BATCHES)],
        "pool": f"at most {POOL} clips",
        "goal": GOAL,
        "sets": {},
    }
    try:
        for store in map(open_store, given.stores):
            features = feature_source(given.encoder).of_store(store)
            accuracies = simulate(store, features, given.seeds)
            found = {"clips": len(store), "folds": len(accuracies["random"])}
            content["sets"][store.name] = found | {"strategies": summary(accuracies)}
            write_json(given.out, content)
    except UserError as error:
        sys.exit(f"colalib: {error}")


if __name__ == "__main__":
    main()
