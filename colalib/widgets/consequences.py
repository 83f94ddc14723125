"""What a setting does, as a picture beside its sliders: temperature and margin (notebook 3), power (6).

The setting before the last change stays in the picture as a ghost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ipywidgets as w
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import softmax
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional as F

from colalib.evaluation import plots
from colalib.widgets import parts
from colalib.widgets.parts import SLIDER

GHOST = "#999999"
Draw = Callable[[dict[str, float], dict[str, float] | None], Figure]


class SlidersAndPicture(parts.WidgetWithFallback):
    """Sliders, and the picture that `draw` makes of their values and of those before."""

    def __init__(self, name: str, sliders: dict[str, w.Widget], draw: Draw, alt: str):
        super().__init__()
        self.sliders, self.draw, self.alt = sliders, draw, alt
        self.before, self.picture = None, w.HTML()
        parts.persist(name, sliders)
        self.now = self.values()
        for slider in sliders.values():
            slider.observe(self.show, "value")
        self.picture.value = parts.picture(self.static_figure(), alt)
        self.children = [*sliders.values(), self.picture]

    def values(self) -> dict[str, float]:
        """Return what the sliders say."""
        return {name: slider.value for name, slider in self.sliders.items()}

    def show(self, _) -> None:
        """Draw the new setting, and the former as a ghost."""
        self.before, self.now = self.now, self.values()
        self.picture.value = parts.picture(self.static_figure(), self.alt)

    def static_figure(self) -> Figure:
        """Return the picture as it is shown."""
        return self.draw(self.now, self.before)


def temperature_lab(row: np.ndarray) -> SlidersAndPicture:
    """Show what temperature and margin make of one anchor's cosines, `row` [B] with the positive first.

    Probabilities, loss, and the gradient of the loss with respect to each cosine.
    """
    row = np.asarray(row, float)
    row = np.concatenate([row[:1], np.sort(row[1:])[::-1]])  # the nearest distractors next to the positive
    sliders = {
        "temperature": w.SelectionSlider(
            options=[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], value=0.2, description="temperature", **SLIDER
        ),
        "margin": w.FloatSlider(0.5, min=0, max=1.5, step=0.05, description="margin (triplet)", **SLIDER),
    }
    alt = "probability of each candidate, and the gradients of two losses, at this temperature and margin"
    return SlidersAndPicture("temperature_lab", sliders, lambda now, before: draw_row(row, now, before), alt)


def loss_and_gradient(loss: Callable[[Tensor], Tensor], row: np.ndarray) -> tuple[float, np.ndarray]:
    """Return `loss` of cosines [B], and its gradient with respect to each of them [B]."""
    row = torch.tensor(row, requires_grad=True)
    value = loss(row)
    (gradient,) = torch.autograd.grad(value, row)
    return value.item(), gradient.numpy()


def cross_entropy(row: Tensor, temperature: float) -> Tensor:
    """Return the loss of one anchor whose cosines are `row` [B], its positive first."""
    return F.cross_entropy(row / temperature, torch.tensor(0))


def triplet(row: Tensor, margin: float) -> Tensor:
    """Return the mean triplet loss of one anchor whose cosines are `row` [B], its positive first."""
    return F.relu(margin - row[0] + row[1:]).mean()


def draw_row(row: np.ndarray, now: dict[str, float], before: dict[str, float] | None) -> Figure:
    """Draw probabilities and gradients of one row of cosines."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    places = np.arange(len(row))
    colours = [plots.ROLES["positive"]] + [plots.ROLES["distractor"]] * (len(row) - 1)
    for values, ghost in ((before, True), (now, False)):
        if values is None:
            continue
        temperature, margin = values["temperature"], values["margin"]
        p = softmax(row / temperature)
        loss, gradient = loss_and_gradient(partial(cross_entropy, temperature=temperature), row)
        hinge, push = loss_and_gradient(partial(triplet, margin=margin), row)
        look = {"fill": False, "ec": GHOST, "lw": 1} if ghost else {"color": colours}
        for ax, heights in zip(axes, (100 * p, gradient, push)):
            ax.bar(places, heights, **look, zorder=1 if ghost else 2, width=0.9 if ghost else 0.6)
    axes[0].set(title=f"τ = {now['temperature']:g}: loss {loss:.2f}", ylabel="probability (%)")
    axes[1].set(title="gradient of the cross-entropy", ylabel="per unit of cosine")
    axes[2].set(
        title=f"margin {now['margin']:g}: triplet loss {hinge:.2f}", ylabel="gradient per unit of cosine"
    )
    for ax in axes:
        ax.set_xlabel("candidate (0 is the positive)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.axhline(0, color="black", lw=0.8)
    return figure


def power_lab(n: int = 300) -> SlidersAndPicture:
    """Show how wide a paired interval is, and how often an experiment shows a difference that is there.

    Normal approximation: the difference of two accuracies over n test clips, of which a share is answered
    right by one model alone, partly by churn, and the mean over runs that scatter.
    """
    options = [50, 100, 200, 300, 500, 800, 1000, 2000, 5000, 10_000]
    sliders = {
        "n": w.SelectionSlider(options=sorted({*options, n}), value=n, description="test clips", **SLIDER),
        "difference": w.FloatSlider(
            3.2, min=0.2, max=15, step=0.2, description="true difference (points)", **SLIDER
        ),
        "d": w.IntSlider(30, min=2, max=80, step=2, description="d: one alone is right (%)", **SLIDER),
        "c": w.IntSlider(10, min=0, max=60, step=1, description="c: churn (% of all clips)", **SLIDER),
        "scatter": w.FloatSlider(
            1.5, min=0, max=6, step=0.1, description="scatter of runs (points)", **SLIDER
        ),
        "seeds": w.IntSlider(3, min=1, max=20, description="runs of each model", **SLIDER),
    }
    alt = "half width of the interval and power against the number of test clips"
    return SlidersAndPicture("power_lab", sliders, draw_power, alt)


def power(
    n: np.ndarray, difference: float, d: float, c: float, scatter: float, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the half width of a paired 95% interval in points, and the power in %, for n test clips.

    All but n and `seeds` are in points or % of all clips. d: right by one of two runs, one of each model.
    c: churn, right by one of two runs of one model (the mean of both models). It is a part of d that
    averages out over runs; what is left of it after few runs is in their `scatter`, the standard deviation
    of a run's accuracy.
    """
    clips = np.maximum((d - c) / 100 - (difference / 100) ** 2, 0) / n
    error = 100 * np.sqrt(clips + 2 * (scatter / 100) ** 2 / seeds)
    z = difference / error
    return 1.96 * error, 100 * (norm.cdf(z - 1.96) + norm.cdf(-z - 1.96))


def draw_power(now: dict[str, float], before: dict[str, float] | None) -> Figure:
    """Draw half width and power against the number of test clips."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    clips = np.geomspace(30, 20_000, 100)
    for values, colour in ((before, GHOST), (now, plots.PALETTE[0])):
        if values is None:
            continue
        others = {name: value for name, value in values.items() if name != "n"}
        for ax, curve, point in zip(axes, power(clips, **others), power(np.array(values["n"]), **others)):
            ax.plot(clips, curve, color=colour)
            ax.plot(values["n"], point, "o", color=colour)
    axes[0].axhline(now["difference"], ls="--", lw=1, color="black", label="true difference")
    axes[0].legend()
    axes[0].set(
        title=f"n = {now['n']:,}: ± {power(now['n'], **others)[0]:.1f} points", ylabel="half width (points)"
    )
    axes[0].set_ylim(0, None)
    axes[1].set(title=f"shown by {point:.0f}% of such experiments", ylabel="power (%)", ylim=(0, 103))
    for ax in axes:
        ax.set(xscale="log", xlabel="test clips")
        ax.set_xticks([50, 200, 1000, 5000, 20_000], ["50", "200", "1,000", "5,000", "20,000"])
        ax.minorticks_off()
    return figure
