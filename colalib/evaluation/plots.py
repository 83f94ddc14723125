"""Plots: the course's figures. Each function draws what it is given; nothing is evaluated here.

Colours mean the same in every figure. Those of Okabe & Ito (2008), with brown for yellow, and dark grey
for black: all stay apart for the colour-blind.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Audio
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colalib.data.audio import MelConfig
from colalib.evaluation import intervals

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8B5A2B", "#555555"]
SHAPES = "o^sX"  # of points whose colours repeat
MODELS = {
    "chance": "#999999",
    "mel-stats": "#56B4E9",
    "random": "#8B5A2B",
    "kNN": "#CC79A7",
    "probe": "#009E73",
    "pre-trained": "#009E73",
    "trained": "#009E73",
    "scratch": "#E69F00",
    "fine-tuned": "#0072B2",
    "default": "#D55E00",
    "bilinear": "#009E73",  # of the objectives
    "cosine": "#CC79A7",
    "triplet": "#D55E00",
} | dict.fromkeys(("16 pairs", "64 pairs", "256 pairs"), "#009E73")  # of the bilinear objective

ROLES = {"anchor": "#0072B2", "positive": "#009E73", "distractor": "#D55E00"}


def style() -> None:
    """Set the course's figure style. Each notebook calls it once, at its head."""
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
    """Return one colour per name; the same set of names always gets the same colours.

    Models and objectives have colours of their own, also as "random, calibrated" and "probe (10 per class)".
    Other names get the palette in sorted order.
    """
    order = sorted(set(names))
    return {
        name: MODELS.get(name.split(",")[0].split(" (")[0], PALETTE[i % len(PALETTE)])
        for i, name in enumerate(order)
    }


def plain(name: str) -> str:
    """Return a name, label or title so that matplotlib shows it as it is.

    Otherwise text between two `$` is mathematics, and a legend leaves out what begins with `_`.
    """
    name = str(name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def player(wave: np.ndarray, sample_rate: int = 16_000) -> Audio:
    """Return an audio player for samples at `sample_rate`.

    It plays nothing by itself and keeps the loudness as it is. Samples beyond ±1 are clipped.
    """
    return Audio(np.clip(wave, -1, 1), rate=sample_rate, normalize=False)


def waveform(
    wave: np.ndarray, sample_rate: int = 16_000, ax: Axes | None = None, title: str = "", lw: float = 0.5
) -> Axes:
    """Draw a waveform [samples] over time in seconds."""
    ax = ax or plt.gca()
    ax.plot(np.arange(len(wave)) / sample_rate, wave, lw=lw)
    ax.set(xlabel="time (s)", ylabel="amplitude", title=plain(title), xlim=(0, len(wave) / sample_rate))
    return ax


def spectrogram(
    frames: np.ndarray, config: MelConfig = MelConfig(), ax: Axes | None = None, title: str = "", **kwargs
) -> Axes:
    """Draw a log-mel spectrogram [T, M]: time in seconds, bands marked in Hz at round numbers."""
    ax = ax or plt.gca()
    ax.imshow(
        frames.T.astype(np.float32),
        origin="lower",
        aspect="auto",
        extent=(0, config.seconds(len(frames)), 0, frames.shape[1]),
        **kwargs,
    )
    ax.set(xlabel="time (s)", ylabel="mel band (Hz)", title=plain(title))
    # a label is about 0.2 inches high
    ticks = mel_ticks(config, apart=0.2 * config.n_mels / (ax.bbox.height / ax.figure.dpi))
    ax.set_yticks(list(ticks.values()), list(ticks))
    return ax


def mel_ticks(config: MelConfig, apart: float = 5.0) -> dict[str, float]:
    """Return marks for an axis of mel bands: label in Hz → place in bands, from low to high.

    They are round frequencies, at least `apart` bands from each other. The middle of band i is at i + 0.5.
    """
    import librosa

    # the edges of the range are the middles of two more bands
    middles = librosa.mel_frequencies(config.n_mels + 2, fmin=config.fmin, fmax=config.fmax)
    places = np.arange(config.n_mels + 2) - 0.5
    marks = {}
    for hertz in (16_000, 8000, 4000, 2000, 1000, 500, 200, 100):
        place = float(np.interp(hertz, middles, places, left=-1, right=-1))
        if 0 <= place <= config.n_mels and place <= min(marks.values(), default=np.inf) - apart:
            marks[f"{hertz // 1000}k" if hertz >= 1000 else f"{hertz}"] = place
    # a narrow range may hold no round frequency
    return dict(reversed(marks.items())) or {f"{middles[i]:.0f}": i - 0.5 for i in (1, config.n_mels)}


def panels(pictures: list[tuple], title: str = "", columns: int | None = None, height: float = 2.9) -> Figure:
    """Draw log-mel spectrograms side by side on one colour scale.

    `pictures`: (title, frames [T, M]), or (title, frames, MelConfig) for other settings than the default.
    """
    columns = columns or len(pictures)
    rows = -(-len(pictures) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(10, height * rows), squeeze=False)
    low = min(frames.min() for _, frames, *_ in pictures)
    high = max(frames.max() for _, frames, *_ in pictures)
    for ax, (name, frames, *config) in zip(axes.flat, pictures):
        spectrogram(frames, *config, ax=ax, title=name, vmin=low, vmax=high)
    if rows > 1:
        for ax in axes.flat:
            ax.label_outer()
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    for ax in list(axes.flat)[len(pictures) :]:
        ax.set_visible(False)
    fig.colorbar(axes[0, 0].images[0], ax=axes, label="ln magnitude", pad=0.01)
    if title:
        fig.suptitle(plain(title), fontsize=11)
    return fig


def crops(
    frames: np.ndarray, starts: dict[str, int], length: int, config: MelConfig = MelConfig(), title: str = ""
) -> Figure:
    """Draw a clip's log-mel frames [T, M] with the crops from `starts` marked, and these below.

    A role (anchor, positive, distractor) has its own colour.
    """
    fig, axes = plt.subplot_mosaic([["clip"] * len(starts), list(starts)], figsize=(10, 5.2))
    bounds = {"vmin": float(frames.min()), "vmax": float(frames.max())}
    spectrogram(frames, config, ax=axes["clip"], title=title, **bounds)
    for i, (name, start) in enumerate(starts.items()):
        colour = ROLES.get(name, PALETTE[i % len(PALETTE)])
        box = (config.seconds(start), 0.5 + i), config.seconds(length), frames.shape[1] - 1 - 2 * i
        axes["clip"].add_patch(plt.Rectangle(*box, fill=False, ec="white", lw=4.5))
        axes["clip"].add_patch(plt.Rectangle(*box, fill=False, ec=colour, lw=2.5))
        spectrogram(
            frames[start : start + length],
            config,
            ax=axes[name],
            title=f"{name}: from {config.seconds(start):.2f} s",
            **bounds,
        )
        axes[name].title.set_color(colour)
        for spine in axes[name].spines.values():
            spine.set(visible=True, color=colour, lw=3)
    fig.colorbar(axes["clip"].images[0], ax=list(axes.values()), label="ln magnitude", pad=0.01)
    return fig


def pairs(
    anchors: np.ndarray,
    positives: np.ndarray,
    names: list[str] | None = None,
    config: MelConfig = MelConfig(),
) -> Figure:
    """Draw a batch of pairs: anchors [B, T, M] in the upper row, the positive of each [B, T, M] below it."""
    fig, axes = plt.subplots(2, len(anchors), figsize=(10, 3.6), sharex=True, sharey=True, squeeze=False)
    for row, (role, batch) in enumerate({"anchor": anchors, "positive": positives}.items()):
        for column, segment in enumerate(batch):
            ax = spectrogram(np.asarray(segment), config, ax=axes[row, column])
            ax.set(xlabel="time (s)" if row else "", ylabel=f"{role}\nmel band (Hz)" if column == 0 else "")
            if row == 0:
                ax.set_title(plain(names[column] if names else column), fontsize=9)
        axes[row, 0].yaxis.label.set_color(ROLES[role])
    return fig


def curves(
    metrics: dict[str, pd.DataFrame],
    column: str,
    ax: Axes | None = None,
    title: str = "",
    clips: int | None = None,
    dashed: bool = False,
) -> Axes:
    """Draw one column of several runs' metrics over training, e.g. {"scratch": metrics}.

    A run has its model's colour.

    `clips`: an accuracy was counted on so many; its 95% binomial interval is drawn as a band. `dashed`: the
    line stands beside another column of the same runs, so it is not in the legend.
    """
    ax = ax or plt.gca()
    colour = colours(metrics)
    for name, frame in metrics.items():
        line = frame[["step", column]].dropna()
        drawn = {"ls": "--", "marker": ".", "ms": 4} if dashed else {"label": plain(name)}
        ax.plot(line["step"], line[column], color=colour[name], lw=1.5, **drawn)
        if clips:
            half = 1.96 * np.sqrt(line[column] * (1 - line[column]) / clips)
            low, high = (line[column] - half).clip(lower=0), (line[column] + half).clip(upper=1)
            ax.fill_between(line["step"], low, high, color=colour[name], alpha=0.15, lw=0)
    ax.set(xlabel="step", ylabel=column, title=plain(title))
    if len(metrics) > 1:
        ax.legend()
    return ax


def similarity_matrix(similarity: np.ndarray, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw s(anchor i, positive j) [B, B]; the pairs are on the diagonal."""
    ax = ax or plt.gca()
    image = ax.imshow(similarity, cmap="viridis")
    ax.set(xlabel="positive j", ylabel="anchor i", title=plain(title))
    bar = ax.figure.colorbar(image, ax=ax, label="similarity", shrink=0.8)
    bar.formatter.set_useOffset(False)
    return ax


def table(frame: pd.DataFrame, decimals: int = 1) -> HTML:
    """Return a table without row numbers as HTML; the same HTML at each run."""
    return HTML(frame.to_html(index=False, border=0, float_format=f"%.{decimals}f"))


def results(summary: dict, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw results.json: points with their 95% intervals, white ticks for the seeds, chance as a line."""
    ax = ax or plt.gca()
    rows = summary["results"][::-1]
    colour = colours(r["model"] for r in rows)
    for y, r in enumerate(rows):
        low, high = (100 * v for v in r["ci95"])
        ax.plot([low, high], [y, y], color=colour[r["model"]], lw=3, solid_capstyle="round")
        ax.plot([100 * v for v in r["per_seed"]], [y] * len(r["per_seed"]), "|", color="white", ms=7, mew=1.2)
        ax.plot(100 * r["mean"], y, "o", color=colour[r["model"]], ms=8)
        ax.annotate(
            f"{100 * r['mean']:.1f}",
            (high, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            bbox={"fc": "white", "ec": "none", "pad": 1},  # the line of chance may pass here
        )
    ax.margins(x=0.15)  # room for the last number
    ax.axvline(100 * summary["chance"], color=MODELS["chance"], ls="--", lw=1)
    ax.annotate(" chance", (100 * summary["chance"], -0.6), color=MODELS["chance"], va="bottom", fontsize=9)
    ax.set(
        xlabel="accuracy on test clips (%)",
        title=plain(title or summary["task"]),
        ylim=(-0.6, len(rows) - 0.1),
    )
    ax.set_yticks(range(len(rows)), [plain(r["model"]) for r in rows])
    return ax


def differences(summary: dict, pairs: list[tuple[str, str]], ax: Axes | None = None, title: str = "") -> Axes:
    """Draw paired differences a - b of results.json with their 95% intervals, for chosen `pairs` (a, b).

    A point is filled if its interval leaves out zero.
    """
    ax = ax or plt.gca()
    by_pair = {(d["a"], d["b"]): d for d in summary["differences"]}
    for y, (a, b) in enumerate(pairs[::-1]):
        d = by_pair.get((a, b)) or by_pair[b, a]
        sign = 100 if (a, b) in by_pair else -100  # in points; the other way round the sign changes
        low, high = sorted(sign * v for v in d["ci95"])
        colour = colours(summary["model_name"])[a]
        face = "white" if low <= 0 <= high else colour
        ax.plot([low, high], [y, y], color=colour, lw=3, solid_capstyle="round")
        ax.plot(sign * d["mean"], y, "o", color=colour, ms=8, markerfacecolor=face, mew=2)
    ax.axvline(0, color="black", lw=1)
    ax.set(
        xlabel="difference in accuracy (points), 95% interval",
        title=plain(title),
        ylim=(-0.6, len(pairs) - 0.4),
    )
    ax.set_yticks(range(len(pairs)), [plain(f"{a} − {b}") for a, b in pairs[::-1]])
    return ax


def label_efficiency(table: pd.DataFrame, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw `intervals.label_efficiency`: accuracy over labelled clips per class, with 95% intervals."""
    ax = ax or plt.gca()
    colour = colours(table["model"])
    for i, (name, rows) in enumerate(table.groupby("model", sort=False)):
        # side by side, so that no bar hides another
        x = rows["labels per class"] * 1.03 ** (2 * i - 1)
        bars = 100 * np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
        ax.errorbar(
            x, 100 * rows["mean"], bars, fmt="o-", color=colour[name], lw=1.5, capsize=3, label=plain(name)
        )
    ticks = sorted(set(table["labels per class"]))
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="labelled clips per class", ylabel="accuracy on test clips (%)", title=plain(title))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def confusion(predictions: pd.DataFrame, ax: Axes | None = None, title: str = "", bar: bool = True) -> Axes:
    """Draw the confusion matrix of one model: each row is a true class, in per cent of its clips."""
    ax = ax or plt.gca()
    counts = intervals.confusion(predictions)
    share = 100 * counts.div(counts.sum(axis=1), axis=0).fillna(0)  # 0 for a class that has no clips
    share = share.rename(index=plain, columns=plain)
    style = {"fmt": ".0f", "annot_kws": {"size": 9}, "cmap": "Blues", "vmin": 0, "vmax": 100}
    readable = len(share) <= 20  # numbers in more rows would cover each other
    colour_bar = {"label": "% of the true class"} if bar else None
    sns.heatmap(share, ax=ax, annot=readable, cbar=bar, cbar_kws=colour_bar, **style)
    ax.set(xlabel="predicted", ylabel="true", title=plain(title))
    ax.tick_params(axis="x", rotation=45)
    ax.tick_params(axis="y", rotation=0)
    return ax


def embedding_map(
    points: np.ndarray, labels, ax: Axes | None = None, title: str = "", legend: str | None = "right"
) -> Axes:
    """Draw points of a map [n, 2], coloured by one label per point; points without a label are grey.

    Where there are more labels than colours, the next ones have another shape. `legend`: "right", "below"
    or None.
    """
    ax = ax or plt.gca()
    labels = np.asarray(labels)
    known = sorted(set(labels) - {""})
    colour = {"": "#CCCCCC"} | colours(known)
    shape = {"": SHAPES[0]} | {name: SHAPES[i // len(PALETTE) % len(SHAPES)] for i, name in enumerate(known)}
    order = np.random.default_rng(0).permutation(len(points))  # mixed, so that no class lies on top
    for marker in dict.fromkeys(shape.values()):
        rows = [i for i in order if shape[labels[i]] == marker]
        of_rows = [colour[name] for name in labels[rows]]
        ax.scatter(*points[rows].T, s=9, c=of_rows, marker=marker, alpha=0.75, lw=0)
    for name in sorted(set(labels)):
        ax.scatter([], [], s=9, color=colour[name], marker=shape[name], label=plain(name) or "none")
    ax.set(xticks=[], yticks=[], title=plain(title))
    ax.set_aspect("equal", adjustable="datalim")
    sns.despine(ax=ax, left=True, bottom=True)
    where = {"right": {"loc": "center left", "bbox_to_anchor": (1, 0.5)}}
    where["below"] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": 3, "columnspacing": 0.8}
    if legend:
        ax.legend(markerscale=2, fontsize=8, handletextpad=0.1, **where[legend])
    return ax
