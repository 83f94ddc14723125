"""The UMAP laboratory: its numbers, the map before beside them, and text as text."""

import numpy as np
import pytest

from colalib import widgets
from colalib.errors import UserError
from colalib.widgets import flatten


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)


@pytest.fixture
def lab(x, monkeypatch):
    """A laboratory of a plane, whose map is the plane itself, dealt out anew for a seed above 0."""

    def place(x, neighbours, min_dist, metric, seed):  # stands for UMAP, which takes long
        return np.random.default_rng(seed).permutation(x) if seed else x

    monkeypatch.setattr(flatten, "flatten", place)
    return widgets.umap_lab({"<b>plane": x, "other": -x}, ["<i>a", "b"] * 30)


def test_a_perfect_map_keeps_everything_and_the_map_before_stays_in_sight(lab):
    assert lab.numbers == {"neighbours kept": 1, "trustworthiness": 1}
    bars = len(lab.static_figure().axes[1].patches)
    picture = lab.picture.value
    lab.controls["seed"].value = 1
    assert lab.picture.value == picture, "only the button draws"
    lab.button.click()
    assert lab.before == {"neighbours kept": 1, "trustworthiness": 1}
    assert lab.numbers["neighbours kept"] == pytest.approx(10 / 59, abs=0.08), "what guessing keeps"
    assert lab.numbers["trustworthiness"] == pytest.approx(0.5, abs=0.15)
    assert len(lab.static_figure().axes[1].patches) == 2 * bars
    assert not lab.button.disabled
    assert lab.message.value == ""
    assert "<b>" not in lab.picture.value


def test_neighbours_are_those_of_the_metric(x):
    assert flatten.kept_neighbours(x, 3 * x) == 1
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert flatten.kept_neighbours(x, directions, "cosine") == 1
    assert flatten.kept_neighbours(x, directions) < 0.9


def test_what_does_not_belong_together_is_told(x):
    with pytest.raises(UserError, match=r"a: shape \(60, 2\)"):
        widgets.umap_lab({"a": x}, ["b"] * 59)
    with pytest.raises(UserError, match="at least one of 21"):
        widgets.umap_lab({"a": x[:20]}, ["b"] * 20)
    with pytest.raises(UserError, match="finite"):
        widgets.umap_lab({"a": np.full((60, 2), np.nan)}, ["b"] * 60)
