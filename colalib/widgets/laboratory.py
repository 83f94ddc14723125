"""The mel laboratory (notebook 1): change the parameters of a log-mel spectrogram, see it, and hear what is
left of the sound. The setting before stays in sight.
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
LOWEST_FLOOR = -8  # power of ten
WIDE = {"style": {"description_width": "7em"}, "layout": {"width": "24em"}}  # of the controls


@dataclass
class MelView:
    """What the laboratory shows of a sound under `config`."""

    config: MelConfig
    frames: np.ndarray  # log-mel [frames, n_mels]
    filters: np.ndarray  # filterbank [n_mels, n_fft/2 + 1]
    numbers: dict[str, str]  # what to write beside it


def analyse(wave: np.ndarray, config: MelConfig) -> MelView:
    """Return log-mel frames of a waveform [samples] under `config`, the filterbank, and what they cost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Empty filters")  # they are counted instead
        frames = audio.log_mel(wave, config)
        filters = audio.mel_filters(config)
    return MelView(config, frames, filters, describe(wave, frames, filters, config))


def resolution(config: MelConfig) -> float:
    """Return how far apart in Hz two equal tones show two peaks, whatever their phases.

    2.5 times the rate divided by the window: the spectrum between them is then at least 3 dB lower. At 2, the
    main lobes of the Hann window only touch; where the tones are in phase, there is no dip between them.
    """
    return 2.5 * config.sample_rate / config.window


def describe(wave: np.ndarray, frames: np.ndarray, filters: np.ndarray, config: MelConfig) -> dict[str, str]:
    """Return resolution, size and emptiness of log-mel frames in words."""
    rate = config.sample_rate
    stored = 2 * frames.size  # bytes as float16
    per_hour = stored / (len(wave) / rate) * 3600
    window = f"{1000 * config.window / rate:.0f} ms"
    numbers = {
        "frames": f"{len(frames)}, one every {1000 * config.hop / rate:.1f} ms",
        "window": f"{window}: two equal tones show two peaks from {resolution(config):.0f} Hz apart",
        "values": f"{frames.size:,} for {len(wave):,} samples",
        "on disk": f"{stored / 1000:.0f} kB as float16, {per_hour / 1e6:.0f} MB per hour",
        "at the floor": f"{100 * np.mean(frames <= config.silence + 1e-6):.0f}% of the values",
    }
    if empty := int((filters.max(axis=1) == 0).sum()):
        numbers["empty bands"] = f"{empty}: narrower than a bin of the FFT. Use fewer bands or a longer FFT."
    return numbers


def in_words(config: MelConfig) -> dict[str, str]:
    """Return the settings as the sliders name them, with units."""
    milliseconds = 1000 / config.sample_rate
    return {
        "window": f"{config.window * milliseconds:g} ms",
        "FFT": f"{config.n_fft} samples",
        "hop": f"{config.hop * milliseconds:g} ms",
        "bands": f"{config.n_mels}",
        "range": f"{config.fmin:g} to {config.fmax:g} Hz",
        "log floor": f"{config.floor:.0e}",
    }


def colour_range(wave: np.ndarray) -> dict[str, float]:
    """Return the ends of the colour scale for a waveform: they depend on the sound, not on the sliders.

    Nearly all log-mel values under the course's settings are between them, with the lowest floor there is.
    """
    low, high = np.quantile(audio.log_mel(wave, MelConfig(floor=10.0**LOWEST_FLOOR)), [0.01, 1])
    return {"vmin": float(low), "vmax": float(max(high, low + 1))}  # silence has no range of its own


def draw(view: MelView, before: MelView | None, colours: dict[str, float]) -> Figure:
    """Draw log-mel frames, above them those of the setting before, and the bands of the filterbank beside."""
    figure = Figure(figsize=(11, 5.2 if before else 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2, 1])
    settings = in_words(view.config)
    former = in_words(before.config) if before else settings
    changed = [name for name in settings if settings[name] != former[name]]
    views = [("before", before, former)] if before else []
    views.append(("now" if before else "log-mel spectrogram", view, settings))
    axes = left.subplots(len(views), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, shown, values) in zip(axes, views):
        title += "".join(f", {name} {values[name]}" for name in changed)
        plots.spectrogram(shown.frames, shown.config, ax, title, **colours).label_outer()
    left.colorbar(axes[-1].images[0], ax=axes, label="ln magnitude", pad=0.01)
    config = view.config
    ax = right.subplots()
    nyquist = config.sample_rate / 2
    hertz = np.linspace(0, nyquist, view.filters.shape[1])
    for number, band in enumerate(view.filters):
        # an empty band has no height to divide by
        ax.plot(hertz, band / max(band.max(), 1e-12), lw=0.8, color=plots.PALETTE[number % 2])
    title = f"{config.n_mels} mel bands, each scaled to its own height"
    ax.set(xlabel="frequency (Hz)", yticks=[], title=title, xlim=(0, nyquist))
    return figure


class MelLaboratory(parts.WidgetWithFallback):
    """Sliders for a log-mel spectrogram; picture, re-synthesis and cost follow them.

    `sounds`: name → audio file or waveform [samples] at 16 kHz, of which the first `seconds` are used. You
    can add a file of your own.

    `view` is what is shown now, `before` the same clip under the setting before.
    """

    def __init__(self, sounds: dict[str, Path | str | np.ndarray], seconds: float = 4.0):
        super().__init__()
        if not sounds:
            raise UserError("the mel laboratory has no sounds: give at least one")
        self.sounds = dict(sounds)
        self.seconds = seconds
        self.view: MelView | None = None
        self.before: MelView | None = None
        self.shown = ""  # clip
        self.resetting = False
        self.sliders = sliders()
        self.usual = {name: slider.value for name, slider in self.sliders.items()}
        self.clip = w.Dropdown(options=list(sounds), description="clip", **WIDE)
        self.drop, self.refused = parts.FileDrop(self.add_file), parts.Refused()
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
        outputs = [self.numbers, self.original, self.resynthesis, self.message, self.refused]
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
        self.before = self.view if self.shown == self.clip.value else None
        self.shown = self.clip.value
        self.view = analyse(wave, config)
        self.colours = colour_range(wave)
        words = f"log-mel spectrogram of {self.clip.value} with {config.n_mels} bands, and the filterbank"
        words += "; above it that of the setting before" if self.before else ""
        self.picture.value = parts.picture(self.static_figure(), words)
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
        shown = f"{name} (yours)"
        try:
            self.sounds[shown] = load()
        except parts.NO_SOUND as error:
            self.refused.add(name, error)
            return
        if shown == self.clip.value:  # another sound of that name
            self.show()
        self.clip.options = list(self.sounds)
        self.clip.value = shown

    def restore(self, _) -> None:
        """Put all sliders back to the course's settings."""
        self.resetting = True  # shown once, not after every slider
        for name, value in self.usual.items():
            self.sliders[name].value = value
        self.resetting = False
        self.show()

    def static_figure(self) -> Figure:
        """Return spectrograms and filterbank as they are shown."""
        return draw(self.view, self.before, self.colours) if self.view else Figure()


def sliders() -> dict[str, w.Widget]:
    """Return a slider for each parameter, at the course's settings."""
    usual = MelConfig()
    options = {"continuous_update": False, **WIDE}
    sizes = [512, 1024, 2048, 4096]
    decades = {"base": 10, "min": LOWEST_FLOOR, "max": 0, "step": 1, "readout_format": ".0e"}
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
