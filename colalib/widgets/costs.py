"""The calculator (notebook 8): what a larger project would cost, by constants measured on this machine."""

from __future__ import annotations

import ipywidgets as w
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from colalib.training.cost import CORPORA, Constants, cost
from colalib.widgets import parts


class Calculator(parts.WidgetWithFallback):
    """Sliders for clips, passes, batch, cores and devices, and the hours, disk and memory that follow.

    `measured`: constants measured on this machine, one for each architecture.
    """

    def __init__(self, measured: list[Constants]):
        super().__init__()
        self.constants = {constants.arch: constants for constants in measured}
        wide = {"button_width": "10em"}
        self.corpus = w.ToggleButtons(options=[*CORPORA, "other"], style=wide)
        sizes = [f"{clips:,} clips of {seconds:g} s" for clips, seconds in CORPORA.values()]
        self.corpus.tooltips = [*sizes, "set by the sliders below"]
        self.arch = w.ToggleButtons(options=list(self.constants), style=wide)
        self.sliders = sliders()
        self.costs = w.HTML()
        controls = {"corpus": self.corpus, "arch": self.arch} | self.sliders
        parts.persist("calculator", controls)
        for control in controls.values():
            control.observe(self.show, "value")
        self.show()
        below = [w.VBox(list(self.sliders.values())), self.costs]
        self.children = [self.corpus, self.arch, w.HBox(below, layout=parts.ROW | {"grid_gap": "24px"})]

    def project(self) -> dict[str, float]:
        """Return the size of the project, as arguments of `cost`."""
        project = {name: slider.value for name, slider in self.sliders.items()}
        # logarithmic sliders give fractions
        project |= {"clips": round(project["clips"]), "batch": round(project["batch"])}
        if self.corpus.value in CORPORA:
            project["clips"], project["seconds"] = CORPORA[self.corpus.value]
        return project

    def show(self, *_) -> None:
        """Show the costs, and the sliders that apply."""
        for name in ("clips", "seconds"):
            self.sliders[name].layout.display = "none" if self.corpus.value in CORPORA else ""
        project = self.project()
        costs = cost(self.constants[self.arch.value], **project)
        texts = {name: two_digits(value) for name, value in costs.items()}
        self.costs.value = parts.listing({"clips": f"{project['clips']:,}"} | texts)

    def static_figure(self) -> Figure:
        """Return store and hours of the known corpora as bars."""
        figure, axes = plt.subplots(1, 2, figsize=(9, 2.4))
        costs = [cost(self.constants[self.arch.value], *size) for size in CORPORA.values()]
        for ax, name in zip(axes, ("store (GB)", "pre-training (h)")):
            values = [of_corpus[name] for of_corpus in costs]
            bars = ax.barh(list(CORPORA), values)
            ax.bar_label(bars, list(map(two_digits, values)), padding=3)
            ax.margins(x=0.15)  # room for the numbers
            ax.invert_yaxis()
            ax.set(title=name)
        figure.suptitle(f"{self.arch.value}, one device like this one", y=1.15)
        return figure


def two_digits(value: float) -> str:
    """Return a number as text: two significant digits below 100, whole above."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.2g}"


def sliders() -> dict[str, w.Widget]:
    """Return a slider for each argument of `cost` that makes up a project."""

    def linear(label: str, low: int, high: int, value: int, step: int = 1) -> w.IntSlider:
        return w.IntSlider(value, min=low, max=high, step=step, description=label, **parts.WIDE)

    def logarithmic(label: str, base: int, low: int, high: int, value: int, step: float, readout: str):
        options = {"base": base, "min": low, "max": high, "step": step, "readout_format": readout}
        return w.FloatLogSlider(value, description=label, **options, **parts.WIDE)

    return {
        "clips": logarithmic("clips", 10, 2, 6, 10_000, 0.05, ",.0f"),
        "seconds": linear("seconds per clip", 1, 300, 30),
        "epochs": linear("passes over the clips", 1, 500, 100),
        "batch": logarithmic("pairs per batch", 2, 4, 13, 1024, 1, "d"),
        "cores": linear("cores that prepare", 1, 64, 2),
        "devices": linear("devices that train", 1, 16, 1),
        "speed": logarithmic("speed (this device: 1)", 10, 0, 3, 1, 0.1, ".0f"),
        "chunk": linear("segments per chunk (0: all)", 0, 512, 0, step=32),
    }
