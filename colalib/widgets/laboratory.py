"""The mel laboratory (notebook 1): change the parameters of a log-mel spectrogram, see it, and hear what is
left of the sound.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as w
import numpy as np
from matplotlib.figure import Figure

from colalib.data import audio
from colalib.data.audio import MelConfig
from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.widgets import parts

RATE = MelConfig().sample_rate
WIDE = {"style": {"description_width": "7em"}, "layout": {"width": "24em"}}  # of the controls


@dataclass
class MelView:
    """What the laboratory shows of a sound."""

    frames: np.ndarray  # log-mel [frames, n_mels]
    filters: np.ndarray  # filterbank [n_mels, n_fft/2 + 1]
    figure: Figure  # spectrogram and filterbank
    numbers: dict[str, str]  # what to write beside it


def analyse(wave: np.ndarray, config: MelConfig) -> MelView:
    """Return log-mel frames of a waveform [samples] under `config`, the filterbank, and what they cost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Empty filters")  # they are counted instead
        frames = audio.log_mel(wave, config)
        filters = audio.mel_filters(config)
    numbers = describe(wave, frames, filters, config)
    return MelView(frames, filters, draw(frames, filters, config), numbers)


def describe(wave: np.ndarray, frames: np.ndarray, filters: np.ndarray, config: MelConfig) -> dict[str, str]:
    """Return resolution, size and emptiness of log-mel frames in words."""
    rate = config.sample_rate
    stored = 2 * frames.size  # bytes as float16
    per_hour = stored / (len(wave) / rate) * 3600
    # half the width of the main lobe of a Hann window
    apart = 2 * rate / config.window
    numbers = {
        "frames": f"{len(frames)}, one every {1000 * config.hop / rate:.1f} ms",
        "window": f"{1000 * config.window / rate:.0f} ms: separates tones that are {apart:.0f} Hz apart",
        "values": f"{frames.size:,} for {len(wave):,} samples",
        "on disk": f"{stored / 1000:.0f} kB as float16, {per_hour / 1e6:.0f} MB per hour",
        "at the floor": f"{100 * np.mean(frames <= config.silence + 1e-6):.0f}% of the values",
    }
    if empty := int((filters.max(axis=1) == 0).sum()):
        numbers["empty bands"] = f"{empty}: narrower than a bin of the FFT. Use fewer bands or a longer FFT."
    return numbers


def draw(frames: np.ndarray, filters: np.ndarray, config: MelConfig) -> Figure:
    """Draw log-mel frames, and the bands of the filterbank beside them."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    plots.spectrogram(frames, config, left, "log-mel spectrogram")
    nyquist = config.sample_rate / 2
    hertz = np.linspace(0, nyquist, filters.shape[1])
    for number, band in enumerate(filters):
        # an empty band has no height to divide by
        right.plot(hertz, band / max(band.max(), 1e-12), lw=0.8, color=plots.PALETTE[number % 2])
    title = f"{config.n_mels} mel bands, each scaled to its own height"
    right.set(xlabel="frequency (Hz)", yticks=[], title=title, xlim=(0, nyquist))
    return figure


def mel_laboratory(sounds: dict[str, Path | str | np.ndarray], seconds: float = 4.0) -> MelLaboratory:
    """Show sliders for a log-mel spectrogram; picture, re-synthesis and cost follow them.

    `sounds`: name → audio file or waveform [samples] at 16 kHz, of which the first `seconds` are used. You
    can add a file of your own.
    """
    return MelLaboratory(sounds, seconds)


class MelLaboratory(parts.WidgetWithFallback):
    """A clip to choose, sliders, players, numbers and a picture. `view` is what is shown now."""

    def __init__(self, sounds: dict[str, Path | str | np.ndarray], seconds: float):
        super().__init__()
        if not sounds:
            raise UserError("the mel laboratory has no sounds: give at least one")
        self.sounds = dict(sounds)
        self.seconds = seconds
        self.view: MelView | None = None
        self.resetting = False
        self.sliders = sliders()
        self.usual = {name: slider.value for name, slider in self.sliders.items()}
        self.clip = w.Dropdown(options=list(sounds), description="clip", **WIDE)
        self.drop = parts.FileDrop(self.add_file)
        self.reset = w.Button(description="the course's settings", layout={"width": "12em"})
        self.picture, self.original, self.resynthesis, self.numbers, self.message = (
            w.HTML() for _ in range(5)
        )
        controls = {"clip": self.clip} | self.sliders
        parts.persist("mel_laboratory", controls)
        for control in controls.values():
            control.observe(self.show, "value")
        self.reset.on_click(self.restore)
        self.show()
        buttons = w.HBox([self.drop, self.reset])
        left = w.VBox([*controls.values(), buttons], layout={"width": "26em"})
        outputs = [self.numbers, self.original, self.resynthesis, self.message]
        right = w.VBox(outputs, layout={"flex": "1 1 20em"})
        self.children = [w.HBox([left, right], layout=parts.ROW), self.picture]

    def config(self) -> MelConfig:
        """Return the settings that the sliders say."""
        value = {name: slider.value for name, slider in self.sliders.items()}
        window = round(value["window"] * RATE / 1000)
        low, high = value["range"]
        return MelConfig(
            window=window,
            n_fft=max(value["n_fft"], 1 << (window - 1).bit_length()),  # the window must fit in
            hop=round(value["hop"] * RATE / 1000),
            n_mels=value["n_mels"],
            fmin=float(low),
            fmax=float(max(high, low + 200)),  # a range without width has no bands
            floor=value["floor"],
        )

    def wave(self) -> np.ndarray:
        """Return the samples of the chosen clip. Raises one of `parts.NO_SOUND`."""
        chosen = self.sounds[self.clip.value]
        wave = chosen if isinstance(chosen, np.ndarray) else audio.load_audio(chosen)
        return wave[: int(self.seconds * RATE)]

    def show(self, *_) -> None:
        """Show the chosen clip under the chosen settings."""
        if self.resetting:
            return
        self.message.value = "working …"
        try:
            wave = self.wave()
        except parts.NO_SOUND as error:
            self.message.value = f"{parts.escape(self.clip.value)}: {parts.reason(error)}"
            return
        config = self.config()
        self.view = analyse(wave, config)
        words = f"log-mel spectrogram of {self.clip.value} with {config.n_mels} bands, and the filterbank"
        self.picture.value = parts.picture(self.view.figure, words)
        self.numbers.value = parts.listing(self.view.numbers)
        self.original.value = parts.sound(wave, "original")
        rebuilt = audio.resynthesise(self.view.frames, config)[: len(wave)]
        # no louder than the original: it explodes where windows hardly overlap
        rebuilt *= min(1.0, np.abs(wave).max() / max(np.abs(rebuilt).max(), 1e-9))
        self.resynthesis.value = parts.sound(rebuilt, "re-synthesis from the spectrogram")
        longer = config.n_fft != self.sliders["n_fft"].value
        words = f"The FFT was lengthened to {config.n_fft} samples, because the window must fit into it."
        self.message.value = words if longer else ""

    def add_file(self, name: str, load: Callable[[], np.ndarray]) -> None:
        """Add an uploaded file to the clips, and show it."""
        try:
            self.sounds[f"{name} (yours)"] = load()
        except parts.NO_SOUND as error:
            self.message.value = f"{parts.escape(name)}: {parts.reason(error)}"
            return
        self.clip.options = list(self.sounds)
        self.clip.value = f"{name} (yours)"

    def restore(self, _) -> None:
        """Put all sliders back to the course's settings."""
        self.resetting = True  # shown once, not after every slider
        for name, value in self.usual.items():
            self.sliders[name].value = value
        self.resetting = False
        self.show()

    def static_figure(self) -> Figure:
        """Return spectrogram and filterbank as they are shown."""
        return self.view.figure if self.view else Figure()


def sliders() -> dict[str, w.Widget]:
    """Return a slider for each parameter, at the course's settings."""
    usual = MelConfig()
    options = {"continuous_update": False, **WIDE}
    sizes = [512, 1024, 2048, 4096]
    decades = {"base": 10, "min": -8, "max": 0, "step": 1, "readout_format": ".0e"}
    return {
        "window": w.IntSlider(25, min=5, max=120, step=5, description="window (ms)", **options),
        "n_fft": w.SelectionSlider(options=sizes, value=usual.n_fft, description="FFT (samples)", **options),
        "hop": w.FloatSlider(10, min=2.5, max=40, step=2.5, description="hop (ms)", **options),
        "n_mels": w.IntSlider(usual.n_mels, min=8, max=256, step=8, description="bands", **options),
        "range": w.IntRangeSlider(
            value=(60, 7800), min=0, max=8000, step=20, description="range (Hz)", **options
        ),
        "floor": w.FloatLogSlider(usual.floor, description="log floor", **decades, **options),
    }
