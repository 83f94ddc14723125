"""The difficulty lab: its numbers follow the settings, and do not depend on the order of clips or changes."""

import numpy as np
import pytest
import torch

from colalib import cola, widgets
from colalib.encoder import Encoder
from colalib.errors import UserError
from colalib.widgets import difficulty, parts


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder().eval()


def found(clips, size, **setting):
    """Return the per cent of pairs that the mean spectrum finds."""
    similarity = difficulty.spectrum_similarity(*difficulty.cut_pairs(clips, **setting))
    return difficulty.share_found(cola.ranks(similarity).numpy() - 1, size)[0]


def test_identical_crops_are_all_found(clips, encoder):
    anchors, positives = difficulty.cut_pairs(clips, distance=0.0)
    assert torch.equal(anchors, positives)
    for similarity in (
        difficulty.spectrum_similarity(anchors, positives),
        difficulty.encoder_similarity(encoder, anchors, positives),
    ):
        assert difficulty.share_found(cola.ranks(similarity).numpy() - 1, len(clips))[0] == 100


def test_stronger_filters_and_wider_masks_lower_the_mean_spectrum(clips):
    filtered = [found(clips, 32, filter_db=db) for db in (0, 3, 12)]
    assert filtered[0] > filtered[1] > filtered[2]
    assert found(clips, 32, distance=0.0, mask_bands=48) < 100
    assert found(clips, 64, filter_db=3) < found(clips, 2, filter_db=3)


def test_crops_lie_as_far_apart_as_asked_or_as_the_clip_allows(clips):
    frames = np.arange(200, dtype=np.float32)[:, None] * np.ones(64, np.float32)  # its value is its time
    ramp = clips.take(np.arange(4))
    ramp.frames = lambda i: frames[: 60 if i == 3 else 200]
    for seconds, expected in ((0.5, 50), (9.0, 102)):
        anchors, positives = difficulty.cut_pairs(ramp, seconds)
        apart = (positives - anchors)[:, :, 0].mean(dim=1)
        assert apart.tolist() == [expected] * 3 + [0], "the last clip is shorter than a segment"


def test_the_share_is_what_drawn_batches_show():
    similarity = torch.randn(60, 60, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(60)
    rng, hits = np.random.default_rng(0), []
    for _ in range(3000):
        drawn = torch.from_numpy(rng.permutation(60)[:8])
        hits.append((cola.ranks(similarity[drawn][:, drawn]) == 1).float().mean())
    nearer = cola.ranks(similarity).numpy() - 1
    assert difficulty.share_found(nearer, 8)[0] == pytest.approx(100 * np.mean(hits), abs=1)


def test_neither_the_order_of_clips_nor_of_changes_matters(clips, encoder, monkeypatch):
    monkeypatch.setattr(parts, "picture", lambda figure, alt: "")  # slow
    few = clips.take(np.arange(12))
    one, other = (widgets.difficulty_lab(c, encoder) for c in (few, few.take(np.arange(12)[::-1])))
    for lab, order in (
        (one, ["filter_db", "mask_bands", "size"]),
        (other, ["size", "mask_bands", "filter_db"]),
    ):
        for name in order:
            lab.sliders[name].value = {"filter_db": 6, "mask_bands": 8, "size": 4}[name]
        lab.sliders["distance"].value = 0.5
    assert one.now == other.now
    curves = [[line.get_ydata() for line in lab.draw(one.now, None).axes[0].lines] for lab in (one, other)]
    for a, b in zip(*curves):
        assert np.allclose(a, b)
    assert len(one.static_figure().axes[0].lines) == len(curves[0]) + 2, "the setting before is a ghost"


def test_one_clip_has_no_distractor(clips):
    with pytest.raises(UserError, match="at least two clips"):
        widgets.difficulty_lab(clips.take(np.arange(1)))
