"""Two experiments whose results notebook 3 draws: what the similarity does, and what the batch size does.

    python -m colalib.course.experiments similarity data/scores.store --out data/similarity.json
    python -m colalib.course.experiments batch-size data/scores.store --out data/batch_size.json

Each takes about an hour on 2 cores. Every setting is trained with several learning rates and one seed.
The best rate is kept, and trained with two more seeds. What judges is a linear probe on h, the encoder's
output, averaged over a clip's segments: five folds of whole groups over the clips that are not test. So
the test clips stay unheard and unseen. Finished trainings are kept in a folder beside the result, and
found again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from colalib import cola
from colalib.data.clips import Clips, pretraining_clips, split_validation
from colalib.data.segments import SEGMENT_FRAMES, clip_batches, pair_batch, segment_std
from colalib.data.splits import Split
from colalib.data.store import MelStore, open_store
from colalib.encoder import Encoder
from colalib.errors import UserError
from colalib.evaluation import intervals
from colalib.evaluation.features import calibrate_batchnorm, mel_stats
from colalib.fast_cpu import encode_batches
from colalib.files import atomic, fingerprint, write_json
from colalib.settings import PretrainConfig
from colalib.training.callbacks import Schedule
from colalib.training.runs import prediction_table

RATES = (5e-4, 2e-3, 8e-3)  # tried first; if the best lies at an edge, four times more or less is tried too
SEEDS = 3
FOLDS = 5
PAIR_DRAWS = 8  # how often the fixed validation pairs are drawn


class Weighted(cola.Bilinear):
    """COLA's objective with another W: "fixed" (the identity: a dot product), "diagonal", or "paper".

    "paper": W begins as small random numbers (standard deviation 0.05, as in the paper's code), and the
    similarity is not divided by √512.
    """

    def __init__(self, dim: int, kind: str):
        super().__init__(dim, dropout=0.0)
        size = len(self.weight)
        self.scale = 1.0 if kind == "paper" else size**-0.5
        if kind == "paper":
            nn.init.normal_(self.weight, std=0.05)
        elif kind == "diagonal":
            self.weight = nn.Parameter(torch.ones(size))
        else:
            self.weight.requires_grad_(False)

    def forward(self, anchor, positive):
        g_anchor, g_positive = self.project(anchor), self.project(positive)  # [B, size]
        weighted = g_anchor * self.weight if self.weight.ndim == 1 else g_anchor @ self.weight
        similarity = weighted @ g_positive.T * self.scale  # [B, B]
        return cola.contrastive_loss(similarity), similarity


@dataclass
class Setting:
    """What is trained: an objective (a function of h's size), pairs per step, and steps."""

    objective: type | partial
    batch_size: int = 64
    steps: int = 300


BILINEAR = partial(cola.Bilinear, dropout=0.0)
SIMILARITY = {
    **{
        f"cosine, τ = {t}": Setting(partial(cola.Cosine, dropout=0.0, temperature=t))
        for t in (0.05, 0.1, 0.2, 0.5)
    },
    "bilinear, dot product": Setting(partial(Weighted, kind="fixed")),
    "bilinear, diagonal W": Setting(partial(Weighted, kind="diagonal")),
    "bilinear, full W": Setting(BILINEAR),
    "bilinear, the paper's W": Setting(partial(Weighted, kind="paper")),
}
BATCH_SIZE = {  # equal steps, then as many pairs as 64 per step see
    "16 pairs, 300 steps": Setting(BILINEAR, 16),
    "64 pairs, 300 steps": Setting(BILINEAR, 64),
    "256 pairs, 300 steps": Setting(BILINEAR, 256),
    "16 pairs, 1,200 steps": Setting(BILINEAR, 16, 1200),
    "256 pairs, 75 steps": Setting(BILINEAR, 256, 75),
}
EXPERIMENTS = {"similarity": SIMILARITY, "batch-size": BATCH_SIZE}
SETTINGS = SIMILARITY | BATCH_SIZE


def train(setting: Setting, clips: Clips, rate: float, seed: int) -> tuple[Encoder, nn.Module]:
    """Return a trained encoder and its objective; schedule and augmentations are those of `pretrain`."""
    config = PretrainConfig(batch_size=setting.batch_size, seed=seed)
    torch.manual_seed(seed)
    encoder = Encoder(config.arch, segment_std(clips, seed))
    objective = setting.objective(encoder.dim)
    parameters = [p for p in (*encoder.parameters(), *objective.parameters()) if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay)
    schedule = Schedule(config, setting.steps)
    for step in range(setting.steps):
        schedule.done = schedule.share(step)
        optimiser.param_groups[0]["lr"] = rate * schedule.factor(step)
        pairs = pair_batch(clips, step, setting.batch_size, seed, config.filter_db, config.mask_bands)
        loss, _ = objective(*encode_batches(encoder, pairs))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return encoder.eval(), objective.eval()


@torch.no_grad()
def embed(encoder: Encoder, clips: Clips) -> np.ndarray:
    """Return h [n, d] of clips, averaged over their segments."""
    means = []
    for segments, owner in clip_batches(clips, SEGMENT_FRAMES, clips.mel.silence):
        h = encoder(segments)  # [S, d]
        means += [h[owner == i].mean(dim=0).numpy() for i in range(int(owner[-1]) + 1)]
    return np.stack(means)


def probe(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return predictions [n] of a linear probe on features [n, d], of each fold by a fit on the others."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    return cross_val_predict(model, features, labels, groups=groups, cv=GroupKFold(FOLDS))


@torch.no_grad()
def pairs_found(encoder: Encoder, objective: nn.Module, clips: Clips) -> float:
    """Return the share of fixed pairs of all `clips` whose positive ranks first, without augmentations."""
    ranks = []
    for step in range(PAIR_DRAWS):
        anchors, positives = pair_batch(clips, step, len(clips), seed=0)
        _, similarity = objective(encoder(anchors), encoder(positives))
        ranks.append(cola.ranks(similarity))
    return (torch.cat(ranks) == 1).float().mean().item()


def run(path: Path, name: str, rate: float, seed: int, keep: Path) -> dict:
    """Train one setting on the store at `path`, or find it kept; return what it came to.

    That is predictions [n], the share of pairs found, and the seconds of the training.
    """
    store = open_store(path)
    file = keep / f"{name.replace(' ', '-').replace(',', '')}-{rate:g}-{seed}-{fingerprint(store.ids)}.npz"
    if not file.exists():
        clips = pretraining_clips([store])
        train_clips, valid_clips = split_validation(clips)
        begun = time.monotonic()
        encoder, objective = train(SETTINGS[name], train_clips, rate, seed)
        seconds = time.monotonic() - begun
        predicted = probe(embed(encoder, clips), clips.column("label"), clips.groups)
        found = pairs_found(encoder, objective, valid_clips)
        with atomic(file) as target:
            np.savez(target, predicted=predicted.astype(str), found=found, seconds=seconds)
    with np.load(file) as saved:
        return {name: saved[name] for name in saved.files}


def table(store: MelStore, name: str, seed: int, predicted: np.ndarray) -> pd.DataFrame:
    """Return predictions in the form that `intervals.summary` reads."""
    rows = np.flatnonzero(store.clips["split"] != "test")
    return prediction_table(store, Split("", rows[:0], rows[:0], rows), "label", predicted, name, seed)


def baselines(store: MelStore) -> list[pd.DataFrame]:
    """Return the predictions from mel statistics and from random weights with calibrated BatchNorm."""
    clips = pretraining_clips([store])
    labels = clips.column("label")
    parts = [table(store, "mel-stats", 0, probe(mel_stats(clips), labels, clips.groups))]
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        encoder = calibrate_batchnorm(Encoder("b0-small"), clips, seed)
        parts.append(table(store, "random", seed, probe(embed(encoder, clips), labels, clips.groups)))
    return parts


def experiment(store: MelStore, settings: list[str], keep: Path, jobs: int = 2) -> dict:
    """Tune and train all settings; return the content of results.json, with the rates that were tried."""
    parallel = Parallel(n_jobs=jobs)
    labels = pretraining_clips([store]).column("label")

    def trained(runs: list[tuple[str, float, int]]) -> list[dict]:
        return parallel(delayed(run)(store.path, name, rate, seed, keep) for name, rate, seed in runs)

    tried: dict[str, dict[float, float]] = {name: {} for name in settings}
    wanted = [(name, rate, 0) for name in settings for rate in RATES]
    while wanted:
        for (name, rate, _), result in zip(wanted, trained(wanted)):
            tried[name][rate] = float((result["predicted"] == labels).mean())
        wanted = [(name, beyond, 0) for name in settings if (beyond := beyond_edge(tried[name]))]
    best = {name: max(rates, key=rates.get) for name, rates in tried.items()}
    chosen = [(name, best[name], seed) for name in settings for seed in range(SEEDS)]
    results = trained(chosen)
    parts = baselines(store)
    parts += [table(store, name, seed, r["predicted"]) for (name, _, seed), r in zip(chosen, results)]
    content = intervals.summary(pd.concat(parts, ignore_index=True))
    content |= {"split": f"train and valid, {FOLDS} folds of groups"}
    for row in content["results"]:
        if row["model"] in settings:
            of_model = [r for (name, _, _), r in zip(chosen, results) if name == row["model"]]
            row["lr"] = best[row["model"]]
            row["tried"] = {f"{rate:g}": round(a, 4) for rate, a in sorted(tried[row["model"]].items())}
            row["pairs_found"] = [round(float(r["found"]), 4) for r in of_model]
            row["seconds"] = [round(float(r["seconds"])) for r in of_model]
    return content


def beyond_edge(accuracies: dict[float, float]) -> float | None:
    """Return the next learning rate to try if the best one is the largest or smallest so far."""
    best = max(accuracies, key=accuracies.get)
    if best == max(accuracies):
        return 4 * best
    return best / 4 if best == min(accuracies) else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*EXPERIMENTS])
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time")
    args = parser.parse_args()
    if args.out.suffix != ".json":
        parser.error(f"--out must end in .json, not {args.out.name!r}")
    try:
        store = open_store(args.store)
    except UserError as error:
        parser.error(str(error))
    content = experiment(store, [*EXPERIMENTS[args.name]], args.out.with_suffix(""), args.jobs)
    command = f"python -m colalib.course.experiments {args.name} {args.store} --out {args.out}"
    write_json(args.out, {"command": command} | content)


if __name__ == "__main__":
    main()
