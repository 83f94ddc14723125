"""The calculator of notebook 7: what a larger project would cost, by constants measured here."""

from __future__ import annotations

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from colalib.training.cost import CORPORA, Constants, cost
from colalib.widgets.parts import WidgetWithFallback, listing, persist


def calculator(measured: list[Constants]) -> WidgetWithFallback:
    """Sliders for clips, passes, batch, cores and devices; hours, disk and memory follow, by
    constants `measured` here, one for each architecture."""
    by_arch = {c.arch: c for c in measured}

    def slider(text, low, high, value, kind=ipywidgets.IntSlider, **more):
        wide = {"style": {"description_width": "13em"}, "layout": {"width": "30em"}}
        return kind(value=value, min=low, max=high, description=text, **wide, **more)

    corpus = ipywidgets.ToggleButtons(options=[*CORPORA, "other"], style={"button_width": "10em"})
    corpus.tooltips = [f"{n:,} clips of {s:g} s" for n, s in CORPORA.values()] + ["by the sliders below"]
    arch = ipywidgets.ToggleButtons(options=list(by_arch), style={"button_width": "10em"})
    controls = {
        "clips": slider(
            "clips", 2, 6, 4, ipywidgets.FloatLogSlider, base=10, step=0.05, readout_format=",.0f"
        ),
        "seconds": slider("seconds a clip", 1, 300, 30),
        "epochs": slider("passes over the clips", 1, 500, 100),
        "batch": slider(
            "pairs a batch", 4, 13, 10, ipywidgets.FloatLogSlider, base=2, step=1, readout_format="d"
        ),
        "cores": slider("cores that prepare", 1, 64, 2),
        "devices": slider("devices that train", 1, 16, 1),
        "speed": slider(
            "a device against this one",
            0,
            3,
            0,
            ipywidgets.FloatLogSlider,
            base=10,
            step=0.1,
            readout_format=".0f",
        ),
        "chunk": slider("segments a chunk (0: all)", 0, 512, 0, step=32),
    }
    for name in ("clips", "batch", "speed"):
        controls[name].value = {"clips": 10_000, "batch": 1024, "speed": 1}[name]
    persist("calculator", {"corpus": corpus, "arch": arch} | controls)
    answer = ipywidgets.HTML()

    def told() -> dict:
        chosen = {name: control.value for name, control in controls.items()}
        chosen["clips"], chosen["batch"] = round(chosen["clips"]), round(chosen["batch"])
        if corpus.value in CORPORA:
            chosen["clips"], chosen["seconds"] = CORPORA[corpus.value]
        return chosen

    def show(_=None):
        for name in ("clips", "seconds"):
            controls[name].layout.display = "none" if corpus.value in CORPORA else ""
        found = cost(by_arch[arch.value], **told())
        lines = {name: f"{value:,.0f}" if value >= 100 else f"{value:.2g}" for name, value in found.items()}
        answer.value = listing({"clips": f"{told()['clips']:,}"} | lines)

    def static_figure() -> Figure:
        figure, axes = plt.subplots(1, 2, figsize=(9, 2.4))
        for ax, name in zip(axes, ("store (GB)", "pre-training (h)")):
            values = [cost(by_arch[arch.value], *CORPORA[c])[name] for c in CORPORA]
            ax.barh(list(CORPORA), values)
            ax.bar_label(ax.containers[0], fmt="{:,.0f}", padding=3)
            ax.margins(x=0.15)
            ax.invert_yaxis()
            ax.set(title=name)
        figure.suptitle(f"{arch.value}, one device like this one", y=1.15)
        return figure

    for control in (corpus, arch, *controls.values()):
        control.observe(show, "value")
    show()
    wrap = ipywidgets.Layout(flex_flow="row wrap", grid_gap="24px")
    return WidgetWithFallback(
        [corpus, arch, ipywidgets.HBox([ipywidgets.VBox([*controls.values()]), answer], layout=wrap)],
        static_figure,
    )
