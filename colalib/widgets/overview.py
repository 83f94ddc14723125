"""What the training panel shows of runs: which lie in a folder, a table, curves, a similarity matrix.

A folder may hold anything. What cannot be read as a run is passed over, and `faults` names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from colalib.cola import Cola
from colalib.data.clips import Clips
from colalib.data.corpus import UNPRINTABLE
from colalib.data.segments import pair_batch, pair_starts
from colalib.errors import UserError
from colalib.evaluation import effective_rank, neighbours, plots
from colalib.training.runs import CONFIGS, Run, read_checkpoint
from colalib.widgets.job import Job

CURVES = {"loss": "loss (nats)", "accuracy": "accuracy", "rank": "rank of the positive"}
COLUMNS = ["step", *(f"{side}/{name}" for side in ("train", "valid") for name in CURVES)]  # of metrics.csv
JUDGED = 256  # pairs at most: half a second for the default encoder
LARGEST = 1e12  # far above any step, loss or rank; a figure of numbers near the largest float fails


def runs_of(folder: Path, kind: str) -> list[Run]:
    """Return the runs of a kind ("pretrain", "finetune") in a folder, oldest first."""
    return [run for run in run_folders(folder) if not config_fault(run) and run.kind == kind]


def faults(folder: Path, kind: str) -> list[str]:
    """Return a line for each folder that cannot be read as a run, and each run whose curves are damaged."""
    lines = [config_fault(run) for run in run_folders(folder)]
    lines += [
        f"{run.name}: metrics.csv is damaged, so its curves are not complete"
        for run in runs_of(folder, kind)
        if metrics_damaged(run)
    ]
    return [line for line in lines if line]


def run_folders(folder: Path) -> list[Run]:
    """Return all folders in a folder that have a config.json, oldest first."""

    def written(file: Path) -> float:
        try:
            return file.stat().st_mtime
        except OSError:  # gone again, or not to be read
            return 0.0

    return [Run(file.parent) for file in sorted(folder.glob("*/config.json"), key=written)]


def config_fault(run: Run) -> str:
    """Return in a line why a folder cannot be read as a run; nothing if it can."""
    if UNPRINTABLE.search(run.name):
        return f"{run.name!r}: its name is not a line of text"
    try:
        if run.kind not in CONFIGS:
            return f"{run.name} is not a run (made by pretrain or finetune)"
        run.config  # noqa: B018  (raises if it is damaged)
    except UserError as error:
        return str(error).replace(str(run.path), run.name)
    except Exception as error:  # damage has many forms
        return f"{run.name}: config.json cannot be read ({type(error).__name__}: {error})"
    return ""


def metrics_damaged(run: Run) -> bool:
    """Return whether metrics.csv is there, but not a table of numbers."""
    if not (run.path / "metrics.csv").exists():
        return False
    table = raw_metrics(run)
    numbers = table.apply(pd.to_numeric, errors="coerce")
    return not {"step", "train/loss"} <= set(table) or (numbers.isna() & table.notna()).any(axis=None)


def raw_metrics(run: Run) -> pd.DataFrame:
    """Return metrics.csv as far as it can be read, without the columns that nobody draws."""
    table = run.metrics()
    if not isinstance(table.index, pd.RangeIndex):  # rows are longer than the head
        return pd.DataFrame()
    return table[[column for column in COLUMNS if column in table]]


def metrics_of(run: Run) -> pd.DataFrame:
    """Return metrics.csv as numbers, one row per logged step; what is no number is NaN."""
    table = raw_metrics(run).reindex(columns=COLUMNS).apply(pd.to_numeric, errors="coerce").astype(float)
    table = table.where(table.abs() < LARGEST)
    return table[table["step"] >= 0]


def state(run: Run) -> str:
    """Return "training", "finished" or "stopped"."""
    if Job(run.path).process():
        return "training"
    return "finished" if run.finished else "stopped"


def run_table(folder: Path, kind: str, judged: Callable[[Run], dict] | None = None) -> pd.DataFrame:
    """Return one row per run of a kind in a folder, oldest first.

    State, steps, what `judged` says of it, and the settings that differ from the defaults. By default it
    says the best validation accuracy: of the weights that a fine-tuning keeps.
    """
    usual = dataclasses.asdict(CONFIGS[kind]())
    rows = []
    for run in runs_of(folder, kind):
        metrics = metrics_of(run)
        config = dataclasses.asdict(run.config)
        changed = {name: value for name, value in config.items() if value != usual[name]}
        rows.append(
            {
                "run": run.name,
                "state": state(run),
                "steps": f"{metrics['step'].max():.0f}" if len(metrics) else "0",
                **(judged or kept_accuracy)(run),
                "settings": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changed.items()),
            }
        )
    table = pd.DataFrame(rows, columns=None if rows else ["run", "state", "settings"]).fillna("")
    return table[[*table.columns.drop("settings"), "settings"]]


def kept_accuracy(run: Run) -> dict[str, str]:
    """Return the best validation accuracy of a run so far."""
    valid = metrics_of(run)["valid/accuracy"].dropna()
    return {"validation accuracy (%)": f"{100 * valid.max():.1f}" if len(valid) else ""}


def last_weights(run: Run) -> tuple[Cola, int]:
    """Return the encoder and the objective of a pre-training's last checkpoint, and its step."""
    module = Cola(run.config, std=1.0)  # the checkpoint brings its own
    checkpoint = read_checkpoint(run.path / "last.ckpt")
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval(), checkpoint["global_step"]


@torch.no_grad()
def similarities(run: Run, clips: Clips, pairs: int = 24) -> tuple[np.ndarray, int]:
    """Return similarities of anchors and positives from `clips` [pairs, pairs], and their step.

    By the run's own objective, with the weights of its last checkpoint.
    """
    module, step = last_weights(run)
    anchors, positives = pair_batch(clips, 0, min(pairs, len(clips)), seed=0)
    return module.objective(module.encoder(anchors), module.encoder(positives))[1].numpy(), step


@torch.no_grad()
def judge(run: Run, clips: Clips) -> dict[str, str]:
    """Return what a pre-training's last weights are worth on `clips`: on the same pair of each for every run.

    The share of pairs found among all these positives; how often the nearest clip of another group, by h,
    has the same label (nothing without labels); the effective rank of h.
    """
    module, _ = last_weights(run)
    n = min(len(clips), JUDGED)
    chosen, _ = pair_starts(clips, 0, n, seed=0)
    anchors, positives = (module.encoder(side) for side in pair_batch(clips, 0, n, seed=0))
    found = module.objective(anchors, positives)[1].argmax(dim=1) == torch.arange(n)
    h, groups, labels = anchors.numpy(), clips.groups[chosen], clips.column("label")[chosen]
    known = labels != ""
    same = ""
    if len(set(groups[known])) > 1:
        nearest = neighbours(h[known], groups[known], k=1)[:, 0]
        same = f"{100 * np.mean(labels[known][nearest] == labels[known]):.0f}"
    return {
        f"pairs found among {n} (%)": f"{100 * found.double().mean():.0f}",
        "nearest clip has the same label (%)": same,
        "effective rank of h": f"{effective_rank(h):.1f}",
    }


def curves(runs: dict[str, pd.DataFrame]) -> Figure:
    """Draw the curves of runs over steps: loss, accuracy, and in pre-training the rank of the positive.

    `runs`: name → metrics. Validation is dashed.
    """
    logged = [name for name in CURVES if any(m[f"train/{name}"].notna().any() for m in runs.values())]
    figure = Figure(figsize=(8.1, 2.3 + 0.2 * len(runs) * (len(runs) > 1)), layout="constrained")
    axes = figure.subplots(1, max(len(logged), 1), squeeze=False)[0]
    for ax, name in zip(axes, logged):
        for side in ("train", "valid"):
            plots.curves(runs, f"{side}/{name}", ax, dashed=side == "valid")
        ax.set(xlabel="step (dashed: validation)", ylabel="", title=CURVES[name], ylim=(0, None))
        if ax.get_legend():
            ax.get_legend().remove()
    if len(runs) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
