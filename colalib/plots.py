"""The course's figures. Every function draws what it is given and computes nothing that belongs to evaluation.

Colours are colour-blind safe (Okabe & Ito 2008) and mean the same in every figure.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Audio
from matplotlib.axes import Axes

from colalib.audio import MelConfig

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#555555"]
MODELS = {
    "chance": "#999999",
    "mel-stats": "#56B4E9",
    "random": "#B8A800",
    "kNN": "#CC79A7",
    "probe": "#009E73",
    "scratch": "#E69F00",
    "fine-tuned": "#0072B2",
}


def style() -> None:
    """Set the course's figure style; called once at the head of every notebook."""
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE)
    plt.rcParams.update(
        {
            "figure.figsize": (9, 3.2),
            "figure.dpi": 100,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titleweight": "bold",
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "image.cmap": "magma",
            "legend.frameon": False,
        }
    )


def colours(names) -> dict[str, str]:
    """One colour a name, the same for the same set of names: the models' own, else the palette in sorted order."""
    order = sorted(set(names))
    return {name: MODELS.get(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(order)}


def player(wave: np.ndarray, sample_rate: int = 16_000) -> Audio:
    """An audio player that plays nothing by itself and leaves the loudness as it is (samples beyond ±1 are clipped)."""
    return Audio(np.clip(wave, -1, 1), rate=sample_rate, normalize=False)


def waveform(wave: np.ndarray, sample_rate: int = 16_000, ax: Axes | None = None, title: str = "") -> Axes:
    """A waveform [samples] over time in seconds."""
    ax = ax or plt.gca()
    ax.plot(np.arange(len(wave)) / sample_rate, wave, lw=0.5)
    ax.set(xlabel="time (s)", ylabel="amplitude", title=title, xlim=(0, len(wave) / sample_rate))
    return ax


def spectrogram(
    frames: np.ndarray, config: MelConfig = MelConfig(), ax: Axes | None = None, title: str = "", **kwargs
) -> Axes:
    """A log-mel spectrogram [frames, mels]: time in seconds, bands marked with their centre frequency in Hz."""
    import librosa

    ax = ax or plt.gca()
    ax.imshow(
        frames.T.astype(np.float32),
        origin="lower",
        aspect="auto",
        extent=(0, config.seconds(len(frames)), 0, frames.shape[1]),
        **kwargs,
    )
    centres = librosa.mel_frequencies(config.n_mels + 2, fmin=config.fmin, fmax=config.fmax)[1:-1]
    ticks = np.arange(3, config.n_mels, max(config.n_mels // 5, 1))
    ax.set(xlabel="time (s)", ylabel="mel band (Hz)", title=title)
    ax.set_yticks(ticks + 0.5, [f"{centres[t]:.0f}" for t in ticks])
    return ax


def curves(
    metrics: dict[str, pd.DataFrame], column: str, ax: Axes | None = None, x: str = "step", title: str = ""
) -> Axes:
    """One column of several runs' metrics.csv over training, e.g. {"scratch": frame}; a run keeps its model's colour."""
    ax = ax or plt.gca()
    colour = colours(metrics)
    for name, frame in metrics.items():
        line = frame[[x, column]].dropna()
        ax.plot(line[x], line[column], label=name, color=colour[name], lw=1.5)
    ax.set(xlabel={"step": "step", "seconds": "time (s)"}.get(x, x), ylabel=column, title=title)
    if len(metrics) > 1:
        ax.legend()
    return ax


def similarity_matrix(similarity: np.ndarray, ax: Axes | None = None, title: str = "") -> Axes:
    """s(anchor i, positive j) [B, B]; the pairs are its diagonal."""
    ax = ax or plt.gca()
    image = ax.imshow(similarity, cmap="viridis")
    ax.set(xlabel="positive j", ylabel="anchor i", title=title)
    ax.figure.colorbar(image, ax=ax, label="similarity", shrink=0.8)
    return ax


def results(summary: dict, ax: Axes | None = None, title: str = "") -> Axes:
    """results.json as points with their 95% intervals, chance as a line."""
    ax = ax or plt.gca()
    rows = summary["results"][::-1]
    colour = colours(r["model"] for r in rows)
    for y, r in enumerate(rows):
        low, high = (100 * v for v in r["ci95"])
        ax.plot([low, high], [y, y], color=colour[r["model"]], lw=3, solid_capstyle="round")
        ax.plot([100 * v for v in r["per_seed"]], [y] * len(r["per_seed"]), "|", color="white", ms=7, mew=1.2)
        ax.plot(100 * r["mean"], y, "o", color=colour[r["model"]], ms=8)
        ax.annotate(f"{100 * r['mean']:.1f}", (high, y), xytext=(6, 0), textcoords="offset points", va="center")
    ax.axvline(100 * summary["chance"], color=MODELS["chance"], ls="--", lw=1)
    ax.annotate("chance", (100 * summary["chance"], len(rows) - 0.4), color=MODELS["chance"], ha="center")
    ax.set(xlabel="accuracy on test clips (%)", title=title or summary["task"], ylim=(-0.6, len(rows) - 0.1))
    ax.set_yticks(range(len(rows)), [r["model"] for r in rows])
    return ax


def confusion(predictions: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Confusion matrix of one model's predictions: each row a true class, in per cent of its clips."""
    ax = ax or plt.gca()
    share = 100 * pd.crosstab(predictions["label"], predictions["predicted"], normalize="index")
    names = sorted(set(predictions["label"]) | set(predictions["predicted"]))
    share = share.reindex(index=names, columns=names, fill_value=0)
    sns.heatmap(
        share, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, ax=ax, cbar_kws={"label": "% of the true class"}
    )
    ax.set(xlabel="predicted", ylabel="true", title=title)
    return ax


def embedding_map(points: np.ndarray, labels, ax: Axes | None = None, title: str = "", legend: bool = True) -> Axes:
    """Points of a two-dimensional map [n, 2], coloured by a label a point."""
    ax = ax or plt.gca()
    labels = np.asarray(labels)
    for name, colour in colours(labels).items():
        chosen = labels == name
        ax.scatter(*points[chosen].T, s=9, color=colour, alpha=0.75, lw=0, label=name or "none")
    ax.set(xticks=[], yticks=[], title=title)
    sns.despine(ax=ax, left=True, bottom=True)
    if legend:
        ax.legend(markerscale=2, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
