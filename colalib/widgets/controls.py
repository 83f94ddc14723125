"""Controls for the settings of a training, made from what the config dataclasses say of themselves."""

from __future__ import annotations

import dataclasses
import math

import ipywidgets as w

WIDE = {"style": {"description_width": "14.5em"}, "layout": {"width": "29em"}}
LARGEST_INT = 2**31 - 1  # that a number field can hold


def controls(kind: type, names: tuple[str, ...]) -> dict[str, w.Widget]:
    """Return a control for each of `names` among the settings of a config dataclass."""
    return {field.name: control(field) for field in dataclasses.fields(kind) if field.name in names}


def control(field: dataclasses.Field) -> w.Widget:
    """Return a control for a setting, as its metadata describe it.

    Its text is the tooltip; the paper's value stands behind the name.
    """
    about, default = field.metadata, field.default
    paper = about.get("paper")
    label = about.get("label", field.name.replace("_", " "))
    if isinstance(paper, int | float) and not isinstance(paper, bool):
        label += f" (paper {paper:g})"
    common = {"description": label, "tooltip": about["text"], **WIDE}
    slider = {"value": default, "continuous_update": False, **common}
    low, high = about.get("between") or about.get("limits") or (0, None)
    if "choices" in about:
        options = [(f"{name} (paper)" if name == paper else name, name) for name in about["choices"]]
        return w.Dropdown(options=options, value=default, **common)
    if isinstance(default, bool):
        return w.Checkbox(default, **common)
    if default is None:  # an optional number
        return w.Text("", placeholder="all" if "label" in field.name else "", **common)
    if high is None or high > LARGEST_INT:
        return w.BoundedIntText(default, min=low, max=LARGEST_INT, **common)
    if isinstance(default, int) and high > 128:  # too many values for a slider in steps of 1
        return w.SelectionSlider(options=powers_of_two(low, high), **slider)
    if isinstance(default, int):
        return w.IntSlider(min=low, max=high, **slider)
    if low and high / low >= 50:  # over several decades
        return w.SelectionSlider(options=[(f"{v:g}", v) for v in round_numbers(low, high)], **slider)
    return w.FloatSlider(min=low, max=high, step=0.5 if high - low > 5 else 0.05, **slider)


def powers_of_two(low: int, high: int) -> list[int]:
    """Return the powers of two from `low` to `high`."""
    return [2**p for p in range(math.ceil(math.log2(low)), int(math.log2(high)) + 1)]


def round_numbers(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`, three per decade."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    values = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    return [*(value for value in values if low <= value <= high), high]


def arguments(controls: dict[str, w.Widget]) -> list[str]:
    """Return what the controls say, as options of the command line."""
    given = []
    for name, control in controls.items():
        flag = name.replace("_", "-")
        if isinstance(control.value, bool):
            given.append(f"--{flag}" if control.value else f"--no-{flag}")
        elif control.value != "":
            given += [f"--{flag}", str(control.value)]
    return given
