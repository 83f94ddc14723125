"""What the widgets are made of: sounds and pictures as HTML, choices that outlive the kernel,
panels with a still picture.

Takes arrays and figures; the widgets beside it put these together.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from html import escape as text
from pathlib import Path

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
import traitlets
from matplotlib.figure import Figure

from colalib.data import audio
from colalib.files import write_json
from colalib.widgets.choices import choices_file, read_choices


def level(wave: np.ndarray) -> str:
    """Peak and root mean square of samples in ±1, in dB under full scale."""
    peak, rms = np.abs(wave).max(initial=0), np.sqrt(np.mean(wave**2)) if len(wave) else 0
    peak, rms = (f"{20 * np.log10(max(v, 1e-6)):.0f}" for v in (peak, rms))
    return f"peak {peak}, rms {rms} dBFS"


def sound(wave: np.ndarray, label: str, sample_rate: int = 16_000) -> str:
    """A player as HTML: label, length and level above it. Plays nothing by itself and leaves the
    loudness as it is.
    """
    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), sample_rate, format="WAV", subtype="PCM_16")
    name = text(label)
    return (
        f'<div style="line-height:1.4;margin-top:4px"><b>{name}</b> '
        f'<small style="white-space:nowrap">{len(wave) / sample_rate:.1f} s, {level(wave)}</small></div>'
        f'<audio controls preload="auto" aria-label="{name}" style="width:100%;max-width:28em;height:36px" '
        f'src="data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"></audio>'
    )


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
    return file.getvalue()


def picture(figure: Figure, alt: str) -> str:
    """A figure as HTML, as wide as there is room; `alt` says in words what it shows."""
    data = base64.b64encode(png(figure)).decode()
    return f'<img style="max-width:100%" alt="{text(alt)}" src="data:image/png;base64,{data}">'


class WidgetWithFallback(ipywidgets.VBox):
    """A widget with a stand-in: where widgets cannot run (GitHub, exported HTML) the picture that
    `static_figure()` draws is shown.
    """

    def __init__(self, children, static_figure: Callable[[], Figure]):
        super().__init__(children)
        self.static_figure = static_figure

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = "a widget; where it cannot run, a picture stands in"
        figure = self.static_figure()
        data["image/png"] = base64.b64encode(png(figure)).decode()
        plt.close(figure)  # or the notebook would show it once more
        return bundle


def persist(widget: str, controls: dict[str, ipywidgets.Widget], trait: str = "value") -> None:
    """Give controls the values they had last time, and write down every change from now on, in
    `choices.json` beside the course's runs. A value that a control no longer takes is passed
    over."""
    kept = read_choices().get(widget, {})
    for name, control in controls.items():
        if name in kept:
            # traitlets raises kinds of its own; the choice is from another version of the widget
            with suppress(Exception):
                setattr(control, trait, tuple(kept[name]) if isinstance(kept[name], list) else kept[name])

        def changed(change, name=name):
            every = read_choices()
            every.setdefault(widget, {})[name] = change["new"]
            write_json(choices_file(), every)

        control.observe(changed, trait)


def rows(frame: pd.DataFrame) -> str:
    """A table of text as HTML."""
    page = frame.to_html(index=False, border=0, justify="left")
    return page.replace("<th>", "<th style='padding-right:14px'>").replace(
        "<td>", "<td style='padding-right:14px'>"
    )


class FileDrop(anywidget.AnyWidget):
    """A button that takes audio files, chosen or dropped on it; `on_file(name, content)` is called
    for each.
    """

    _esm = """
    export default { render({ model, el }) {
      const input = document.createElement("input"), button = document.createElement("button");
      Object.assign(input, { type: "file", multiple: true, accept: "audio/*,.flac,.wav,.mp3,.ogg", hidden: true });
      Object.assign(button, { textContent: model.get("label"), title: "choose files, or drop them here" });
      button.className = "jupyter-widgets jupyter-button widget-button";
      button.style.width = "auto";
      const mark = (on) => (event) => { event.preventDefault(); button.style.outline = on ? "2px dashed #0072b2" : ""; };
      async function take(files) {
        for (const file of files) // in slices: a server closes the connection on a message above 10 MiB
          for (let start = 0; start === 0 || start < file.size; start += 4e6) {
            const slice = await file.slice(start, start + 4e6).arrayBuffer();
            model.send({ name: file.name, start, size: file.size }, undefined, [slice]);
          }
        input.value = "";
      }
      button.onclick = () => input.click();
      input.onchange = () => take(input.files);
      button.ondragover = mark(true);
      button.ondragleave = mark(false);
      button.ondrop = (event) => { mark(false)(event); event.stopPropagation(); take(event.dataTransfer.files); };
      el.append(button, input);
    } };
    """
    label = traitlets.Unicode("a file of yours").tag(sync=True)

    def __init__(self, on_file: Callable[[str, bytes], None]):
        super().__init__()
        held = bytearray()

        def take(_, content, buffers) -> None:
            if content["start"] == 0:
                held.clear()
            held.extend(buffers[0])
            if len(held) >= content["size"]:
                on_file(Path(content["name"]).name, bytes(held))

        self.on_msg(take)


def decode(name: str, content: bytes) -> np.ndarray:
    """An uploaded audio file as samples at 16 kHz; raises `audio.Unusable` with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"upload{Path(name).suffix}"
        file.write_bytes(content)
        return audio.load_audio(file)


def listing(rows: dict[str, str]) -> str:
    """Names and values as a small HTML table."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{text(k)}</th><td>{text(v)}</td></tr>" for k, v in rows.items()
    )
    return f"<table style='font-size:0.92em'>{cells}</table>"
