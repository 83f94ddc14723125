"""The difficulty lab (notebook 2): how often the positive is found, against the number of candidates.

Pairs are cut from the frames of `Clips`. A mean spectrum and an encoder look for the positive.
"""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

import ipywidgets as w
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import hypergeom
from torch import Tensor

from colalib import cola
from colalib.data import segments
from colalib.data.clips import Clips
from colalib.encoder import Encoder
from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.fast_cpu import fold_batch_norms, in_batches
from colalib.training.runs import open_run
from colalib.widgets.consequences import GHOST, SlidersAndPicture
from colalib.widgets.parts import SLIDER

PAIRS = 200  # at most: twice as many segments take a second or two to encode
INDEPENDENT = -1.0  # as a distance
LOOKS = {  # name → colour and marker
    "mean spectrum": (plots.MODELS["mel-stats"], "o"),
    "encoder": (plots.MODELS["default"], "s"),
}


def difficulty_lab(clips: Clips, encoder: Encoder | None = None) -> SlidersAndPicture:
    """Show how often the positive is found among B candidates, by its mean spectrum and by an encoder.

    Sliders set the distance of the two crops in time, filters and masks for each crop, and B. Pairs come
    from up to 200 of `clips`. `encoder`: by default the one that comes with the course. Raises `UserError`
    if there are fewer than two clips.
    """
    if len(clips) < 2:
        raise UserError("the difficulty lab needs at least two clips: a distractor comes from another clip")
    # chosen by their names, so that the order of the clips does not matter
    clips = clips.take(np.argsort([crc32(i.encode()) for i in clips.ids], kind="stable")[:PAIRS])
    encoder = fold_batch_norms(encoder or open_run("default").load_encoder())

    @lru_cache
    def nearer(distance: float, filter_db: float, mask_bands: int) -> dict[str, np.ndarray]:
        anchors, positives = cut_pairs(clips, distance, filter_db, mask_bands)
        found = {
            "mean spectrum": spectrum_similarity(anchors, positives),
            "encoder": encoder_similarity(encoder, anchors, positives),
        }
        return {name: cola.ranks(similarity).numpy() - 1 for name, similarity in found.items()}

    distances = [
        ("independent", INDEPENDENT),
        *((f"{s:g} s", s) for s in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0)),
    ]
    sizes = candidates(len(clips))
    sliders = {
        "distance": w.SelectionSlider(
            options=distances, value=INDEPENDENT, description="distance of the crops", **SLIDER
        ),
        "filter_db": w.FloatSlider(0, min=0, max=12, step=0.5, description="filter (dB)", **SLIDER),
        "mask_bands": w.IntSlider(0, min=0, max=48, step=4, description="mask, at most (bands)", **SLIDER),
        "size": w.SelectionSlider(
            options=sizes, value=min(32, sizes[-1]), description="candidates B", **SLIDER
        ),
    }

    def draw(now: dict[str, float], before: dict[str, float] | None) -> Figure:
        settings = [
            [v[name] for name in ("distance", "filter_db", "mask_bands")] for v in (before or now, now)
        ]
        return draw_curves(*(nearer(*values) for values in settings), now["size"])

    alt = "pairs found by the mean spectrum and by an encoder against the number of candidates"
    return SlidersAndPicture("difficulty_lab", sliders, draw, alt)


def candidates(pairs: int) -> list[int]:
    """Return the numbers of candidates B to ask for: powers of two, as far as there are pairs."""
    return [2**k for k in range(1, 9) if 2**k <= pairs]


def cut_pairs(
    clips: Clips, distance: float = INDEPENDENT, filter_db: float = 0, mask_bands: int = 0
) -> tuple[Tensor, Tensor]:
    """Return anchors and positives, one pair per clip, float32 [n, T, M] each.

    The positive begins `distance` seconds after the anchor, or as late as its clip allows; with
    `INDEPENDENT` both places are drawn alike. Each crop is changed by itself, with `random_filter` of
    `filter_db` and `random_band_mask` of up to `mask_bands`. The random numbers belong to the clip's name:
    they are the same at every setting.
    """
    sides = ([], [])
    frames_apart = round(distance * clips.mel.sample_rate / clips.mel.hop)
    for name, frames in zip(clips.ids, clips):
        place, second, *changes = (np.random.default_rng([crc32(name.encode()), k]) for k in range(6))
        if distance == INDEPENDENT:
            starts = [segments.crop_start(len(frames), rng) for rng in (place, second)]
        else:
            # the anchor lies where there is room for the positive behind it
            apart = min(frames_apart, max(len(frames) - segments.SEGMENT_FRAMES, 0))
            start = segments.crop_start(len(frames) - apart, place)
            starts = [start, start + apart]
        for side, start, *rngs in zip(sides, starts, changes[:2], changes[2:]):
            crop = segments.crop(frames, start, silence=clips.mel.silence)
            crop = segments.random_filter(crop, rngs[0], filter_db)
            side.append(segments.random_band_mask(crop, rngs[1], mask_bands))
    return tuple(torch.from_numpy(np.stack(side)) for side in sides)


def spectrum_similarity(anchors: Tensor, positives: Tensor) -> Tensor:
    """Return minus the distance between mean spectra without level, [n, T, M] each → [n, n]."""
    a, p = (x.mean(dim=1) - x.mean(dim=(1, 2))[:, None] for x in (anchors, positives))  # [n, M]
    return -torch.cdist(a, p, compute_mode="donot_use_mm_for_euclid_dist")


@torch.no_grad()
def encoder_similarity(encoder: Encoder, anchors: Tensor, positives: Tensor) -> Tensor:
    """Return the cosine similarity of h, [n, T, M] each → [n, n]."""
    return cola.cosine_similarity(in_batches(encoder, anchors), in_batches(encoder, positives))


def share_found(nearer: np.ndarray, size: int) -> tuple[float, float]:
    """Return how many positives are found among `size` candidates in %, and half its 95% interval.

    `nearer` [n]: distractors that are nearer than the positive. Exact for candidates drawn at random: an
    anchor finds its positive if none of its size - 1 distractors is one of these.
    """
    found = 100 * hypergeom.pmf(0, len(nearer) - 1, nearer, size - 1)  # [n]
    return float(found.mean()), float(1.96 * found.std() / np.sqrt(len(found)))


def draw_curves(before: dict[str, np.ndarray], now: dict[str, np.ndarray], size: int) -> Figure:
    """Draw pairs found against B for each method (name → nearer distractors [n]), those before in grey."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    ax = figure.subplots()
    sizes = candidates(len(now["encoder"]))
    for name, (colour, marker) in LOOKS.items():
        for results, ghost in ((before, True), (now, False)):
            if ghost and before is now:  # only B was changed
                continue
            share, half = np.array([share_found(results[name], b) for b in sizes]).T
            label = f"{'before, ' * ghost}{name}: {share_found(results[name], size)[0]:.0f}% found"
            look = {"color": GHOST, "alpha": 0.6} if ghost else {"color": colour}
            ax.plot(sizes, share, marker=marker, label=label, **look)
            if not ghost:
                ax.fill_between(sizes, share - half, share + half, color=colour, alpha=0.2, lw=0)
    ax.plot(sizes, 100 / np.array(sizes), "--", color="black", lw=1, label=f"guessing: {100 / size:.0f}%")
    ax.axvline(size, color="black", lw=0.8, ls=":")
    ax.set(xscale="log", xlabel="candidates B", ylabel="pairs found (%)", ylim=(0, 103))
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.set_title(f"{len(now['encoder'])} pairs; B = {size}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
