"""The mel laboratory (notebook 1): turn the parameters of a log-mel spectrogram, see it and hear
what is left.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import ipywidgets as w
import numpy as np
from matplotlib.figure import Figure

from colalib.data import audio
from colalib.data.audio import MelConfig
from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.widgets import parts


@dataclass
class MelView:
    """What `analyse` finds."""

    frames: np.ndarray  # log-mel [frames, n_mels]
    filters: np.ndarray  # filterbank [n_mels, n_fft/2 + 1]
    figure: Figure  # spectrogram and filterbank
    numbers: dict[str, str]  # what to write beside it


def analyse(wave: np.ndarray, config: MelConfig) -> MelView:
    """Log-mel frames of a waveform [samples] under `config`, its filterbank, both as a figure, and
    what they cost.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Empty filters")  # counted below
        frames, filters = audio.log_mel(wave, config), audio.mel_filters(config)
    empty = int((filters.max(axis=1) == 0).sum())
    seconds = len(wave) / config.sample_rate
    numbers = {
        "frames": f"{len(frames)}, one every {1000 * config.hop / config.sample_rate:.1f} ms",
        "window": f"{1000 * config.window / config.sample_rate:.0f} ms: tones {2 * config.sample_rate / config.window:.0f} Hz "
        "apart are told apart",
        "values": f"{frames.size:,} for {len(wave):,} samples",
        "on disk": f"{2 * frames.size / 1000:.0f} kB as float16, {2 * frames.size / seconds * 3600 / 1e6:.0f} MB an hour",
        "at the floor": f"{100 * np.mean(frames <= config.silence + 1e-6):.0f}% of the values",
    }
    if empty:
        numbers["empty bands"] = (
            f"{empty}: narrower than a step of the transform; take fewer bands or a longer FFT"
        )
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    plots.spectrogram(frames, config, left, "log-mel spectrogram")
    hertz = np.linspace(0, config.sample_rate / 2, filters.shape[1])
    for k, band in enumerate(filters):
        right.plot(hertz, band / max(band.max(), 1e-12), lw=0.8, color=plots.PALETTE[k % 2])
    right.set(xlabel="frequency (Hz)", yticks=[], title=f"{config.n_mels} mel bands, each to its own height")
    right.set_xlim(0, config.sample_rate / 2)
    return MelView(frames, filters, figure, numbers)


def mel_laboratory(
    sounds: dict[str, Path | str | np.ndarray], seconds: float = 4.0
) -> parts.WidgetWithFallback:
    """Sliders for window, FFT length, hop, bands, range and log floor; spectrogram, filterbank, a
    re-synthesis and the cost follow. `sounds`: name → audio file or waveform [samples] at 16 kHz,
    of which the first `seconds` are taken; a file of one's own can be dropped in."""
    if not sounds:
        raise UserError("a laboratory without a sound: name at least one")
    usual = MelConfig()
    wide = {
        "style": {"description_width": "7em"},
        "layout": w.Layout(width="24em"),
        "continuous_update": False,
    }
    controls = {
        "clip": w.Dropdown(
            options=list(sounds), description="clip", style=wide["style"], layout=wide["layout"]
        ),
        "window": w.IntSlider(25, 5, 120, 5, description="window (ms)", **wide),
        "n_fft": w.SelectionSlider(
            options=[512, 1024, 2048, 4096], value=1024, description="FFT (samples)", **wide
        ),
        "hop": w.FloatSlider(10, min=2.5, max=40, step=2.5, description="hop (ms)", **wide),
        "n_mels": w.IntSlider(64, 8, 256, 8, description="bands", **wide),
        "range": w.IntRangeSlider(
            value=(60, 7800), min=0, max=8000, step=20, description="range (Hz)", **wide
        ),
        "floor": w.FloatLogSlider(
            1e-5, base=10, min=-8, max=0, step=1, description="log floor", readout_format=".0e", **wide
        ),
    }
    reset = w.Button(description="the course's settings", layout=w.Layout(width="12em"))
    figure, original, again, numbers, said = (w.HTML() for _ in range(5))
    state = {"sounds": dict(sounds), "held": False, "figure": Figure()}

    def config() -> MelConfig:
        window = round(controls["window"].value * usual.sample_rate / 1000)
        # the window must fit in
        n_fft = max(controls["n_fft"].value, 1 << (window - 1).bit_length())
        low, high = controls["range"].value
        return replace(
            usual,
            window=window,
            n_fft=n_fft,
            hop=round(controls["hop"].value * usual.sample_rate / 1000),
            n_mels=controls["n_mels"].value,
            fmin=float(low),
            fmax=float(max(high, low + 200)),
            floor=controls["floor"].value,
        )

    def wave() -> np.ndarray:
        chosen = state["sounds"][controls["clip"].value]
        loaded = chosen if isinstance(chosen, np.ndarray) else audio.load_audio(chosen)
        return loaded[: int(seconds * usual.sample_rate)]

    def show(*_) -> None:
        if state["held"]:
            return
        said.value = "working …"
        try:
            x = wave()
        except audio.Unusable as error:
            said.value = parts.text(f"{controls['clip'].value}: {error}")
            return
        view = analyse(x, c := config())
        state["figure"] = view.figure
        words = f"log-mel spectrogram of {controls['clip'].value} with {c.n_mels} bands, and the filterbank"
        figure.value = parts.picture(view.figure, words)
        numbers.value = parts.listing(view.numbers)
        original.value = parts.sound(x, "original")
        heard = audio.resynthesise(view.frames, c)[: len(x)]
        # windows that hardly overlap make it explode
        heard *= min(1.0, np.abs(x).max() / max(np.abs(heard).max(), 1e-9))
        again.value = parts.sound(heard, "re-synthesis from the spectrogram")
        said.value = (
            f"FFT lengthened to {c.n_fft} samples, or the window would not fit"
            if c.n_fft != controls["n_fft"].value
            else ""
        )

    def dropped(name: str, content: bytes) -> None:
        try:
            state["sounds"][f"{name} (yours)"] = parts.decode(name, content)
        except audio.Unusable as error:
            said.value = parts.text(f"{name}: {error}")
            return
        controls["clip"].options = list(state["sounds"])
        controls["clip"].value = f"{name} (yours)"

    def to_usual(_) -> None:
        state["held"] = True
        for name, value in (
            ("window", 25),
            ("n_fft", 1024),
            ("hop", 10),
            ("n_mels", 64),
            ("range", (60, 7800)),
            ("floor", 1e-5),
        ):
            controls[name].value = value
        state["held"] = False
        show()

    parts.persist("mel_laboratory", controls)
    for control in controls.values():
        control.observe(show, "value")
    reset.on_click(to_usual)
    show()
    left = w.VBox(
        [*controls.values(), w.HBox([parts.FileDrop(dropped), reset])], layout=w.Layout(width="26em")
    )
    right = w.VBox([numbers, original, again, said], layout=w.Layout(flex="1 1 20em"))
    row = w.HBox([left, right], layout=w.Layout(flex_flow="row wrap"))
    return parts.WidgetWithFallback([row, figure], lambda: state["figure"])
