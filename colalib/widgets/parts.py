"""What the widgets are made of: sounds, pictures and tables as HTML, choices that outlive the kernel,
and widgets with a picture that stands in for them.

Takes arrays, tables and figures. The widgets beside it put these together.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from html import escape
from pathlib import Path, PurePath

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from colalib.data import audio
from colalib.data.corpus import UNPRINTABLE
from colalib.evaluation import plots
from colalib.widgets import KEEP_PAGES, PAGE
from colalib.widgets.choices import change_choice, read_settings

WIDE = {"style": {"description_width": "15em"}, "layout": {"width": "32em"}}  # of a control
SLIDER = WIDE | {"continuous_update": False}
ROW = {"flex_flow": "row wrap"}  # layout of a row that breaks where the window is narrow
NO_SOUND = (audio.Unusable, OSError)  # what loading a recording raises: for its own fault, or the machine's
MAX_UPLOAD = 500_000_000  # bytes; 47 minutes of a CD as WAV


class WidgetWithFallback(ipywidgets.VBox):
    """A widget that a picture stands in for where widgets cannot run: on GitHub, in exported HTML."""

    def static_figure(self) -> Figure:
        """Return the picture."""
        raise NotImplementedError

    def without_kernel(self) -> dict | None:
        """Return what a page shows of this widget when there is no kernel (see `PAGE`); None: the picture."""

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = "a widget; a picture stands in where it cannot run"
        figure = self.static_figure()
        data["image/png"] = base64.b64encode(png(figure)).decode()
        plt.close(figure)  # or the notebook would show it once more
        if os.environ.get(KEEP_PAGES) and (page := self.without_kernel()):
            data[PAGE] = page
        return bundle


def persist(widget: str, controls: dict[str, ipywidgets.Widget], trait: str = "value") -> None:
    """Give controls the values of last time, and keep every change from now on.

    Values are kept by the names of `widget` and control in `choices.json` beside the course's runs.
    A value that a control no longer accepts is ignored.
    """
    kept = read_settings(widget)
    for name, control in controls.items():
        if name in kept:
            # traitlets raises errors of its own; such a value is from another version of the widget
            with suppress(Exception):
                setattr(control, trait, tuple(kept[name]) if isinstance(kept[name], list) else kept[name])

        def keep(change, name=name):
            change_choice(widget, lambda settings: settings | {name: change["new"]})

        control.observe(keep, trait)


# --------------------------------------------------------------------------------------------- HTML


def level(wave: np.ndarray) -> str:
    """Return peak and root mean square of samples in ±1, in dB relative to full scale."""
    peak = np.abs(wave).max(initial=0)
    rms = np.sqrt(np.mean(wave**2)) if len(wave) else 0
    # 1e-6 is -120 dB: silence has a level too
    peak, rms = (f"{20 * np.log10(max(value, 1e-6)):.0f}" for value in (peak, rms))
    return f"peak {peak}, rms {rms} dBFS"


def sound(wave: np.ndarray, label: str, sample_rate: int = 16_000) -> str:
    """Return an audio player as HTML, with label, length and level above it.

    It plays nothing by itself and leaves the loudness as it is.
    """
    name = escape(label)
    return (
        f'<div style="line-height:1.4;margin-top:4px"><b>{name}</b> '
        f'<small style="white-space:nowrap">{len(wave) / sample_rate:.1f} s, {level(wave)}</small></div>'
        f'<audio controls preload="auto" aria-label="{name}" style="width:100%;max-width:28em;height:36px" '
        f'src="{plots.player(wave, sample_rate).src_attr()}"></audio>'
    )


def reason(error: Exception) -> str:
    """Return as HTML, in a line, why something could not be done."""
    return escape(getattr(error, "strerror", None) or str(error) or type(error).__name__)


class Refused(ipywidgets.HTML):
    """The last three files that were refused, a line each. They stay while other files are shown."""

    def add(self, name: str, error: Exception) -> None:
        """Add a file and the reason."""
        self.lines = [*getattr(self, "lines", []), f"{escape(name)}: {reason(error)}"][-3:]
        self.value = "<br>".join(self.lines)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
    return file.getvalue()


def picture(figure: Figure, alt: str) -> str:
    """Return a figure as HTML, as wide as there is room. `alt` says in words what it shows."""
    data = base64.b64encode(png(figure)).decode()
    return f'<img style="max-width:100%" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def table(frame: pd.DataFrame) -> str:
    """Return a table of text as HTML. JupyterLab's style of tables does not reach into widgets."""
    html = plots.table(frame).data.replace("text-align: right", "text-align: left")
    return html.replace("<table", "<table style='border-spacing:14px 2px'", 1)


def listing(values: dict[str, str]) -> str:
    """Return names and their values as a small HTML table."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in values.items()
    )
    return f"<table style='font-size:0.92em'>{cells}</table>"


# ------------------------------------------------------------------------------------------ uploads


class FileDrop(anywidget.AnyWidget):
    """A button for audio files, chosen or dropped on it, and one that records with the microphone.

    Calls `on_file(name, load)` for each file and recording. The second button is hidden where the browser
    cannot record. `load()` returns the samples at 16 kHz, or raises one of `NO_SOUND` with the reason.
    """

    _esm = Path(__file__).parent / "drop.js"
    label = traitlets.Unicode("your own file").tag(sync=True)
    limit = traitlets.Int(MAX_UPLOAD).tag(sync=True)  # bytes; the page sends no content of larger files

    def __init__(self, on_file: Callable[[str, Callable[[], np.ndarray]], None]):
        super().__init__()
        self.on_file = on_file
        self.folder = tempfile.TemporaryDirectory()
        self.files: dict[str, Path] = {}  # that are on their way, by the numbers that the page gives them
        self.on_msg(self.take_slice)

    def take_slice(self, _, message: dict, buffers: list) -> None:
        """Append one slice to its file; hand the file over when it is complete."""
        name = shown_name(message["name"])
        upload, size, start = message["id"], message["size"], message["start"]
        if size > self.limit or message.get("error"):
            self.files.pop(upload, None)
            too_large = f"larger than {self.limit / 1e6:.0f} MB: cut it, or save it as FLAC or MP3"
            return self.on_file(name, partial(refuse, message.get("error") or too_large))
        if start == 0:
            self.files[upload] = Path(self.folder.name) / uuid.uuid4().hex
        if upload not in self.files:  # the kernel was started anew meanwhile, or the disk is full
            return
        try:
            with open(self.files[upload], "ab") as file:
                file.write(buffers[0])
        except OSError as error:
            self.files.pop(upload).unlink(missing_ok=True)
            return self.on_file(name, partial(refuse, f"cannot be kept: {error.strerror}"))
        if start + len(buffers[0]) >= size:
            file = self.files.pop(upload)
            try:
                self.on_file(name, partial(audio.load_audio, file))
            finally:
                file.unlink()


def shown_name(path: str) -> str:
    """Return the name of a file as it can be shown: one line of text, not too long."""
    return UNPRINTABLE.sub("_", PurePath(path).name)[:80] or "your file"


def refuse(reason: str) -> None:
    """Raise `audio.Unusable`."""
    raise audio.Unusable(reason)
