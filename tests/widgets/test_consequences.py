"""The numbers behind the pictures are right, and the setting before stays in sight."""

import numpy as np
import pytest
import torch

from colalib import widgets
from colalib.cola import contrastive_loss, triplet_loss
from colalib.widgets.consequences import cross_entropy, loss_and_gradient, power, triplet


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path):
    monkeypatch.setenv("COLA_RUNS", str(tmp_path))


def rows(row):
    """Similarities [B, B] in which every row is that of one anchor, its positive on the diagonal."""
    return torch.stack([row.roll(i) for i in range(len(row))])


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_loss_and_gradient_are_those_of_the_objectives(temperature):
    row = torch.linspace(-0.9, 0.8, 7, dtype=torch.float64).roll(3).requires_grad_()
    expected = contrastive_loss(rows(row) / temperature)
    (gradient,) = torch.autograd.grad(expected, row)
    cosines = row.detach().numpy()
    loss, found = loss_and_gradient(lambda x: cross_entropy(x, temperature), cosines)
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    assert np.allclose(found, gradient, atol=1e-5)
    expected = triplet_loss(rows(row), 0.3)
    (gradient,) = torch.autograd.grad(expected, row)
    loss, found = loss_and_gradient(lambda x: triplet(x, 0.3), cosines)
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    assert np.allclose(found, gradient, atol=1e-6)


def test_power_is_what_simulated_experiments_show():
    rng = np.random.default_rng(0)
    n, difference, churn, scatter, seeds = 300, 5.0, 30.0, 1.5, 3
    half, expected = power(np.array(n), difference, churn, scatter, seeds)
    truth = difference + rng.normal(0, scatter * np.sqrt(2 / seeds), 4000)  # points
    better = (churn + truth) / 2 / 100
    shares = np.stack([better, churn / 100 - better, np.full_like(better, 1 - churn / 100)], 1)
    wins = np.array([rng.multinomial(n, share) for share in shares])
    shown = np.abs(100 * (wins[:, 0] - wins[:, 1]) / n) > half
    assert 100 * shown.mean() == pytest.approx(float(expected), abs=3)


@pytest.mark.parametrize(
    "lab", [lambda: widgets.temperature_lab(np.array([0.7, 0.2, 0.6])), widgets.power_lab]
)
def test_the_setting_before_is_a_ghost_and_the_new_one_is_kept(lab):
    def drawn(shown):
        return sum(len(ax.patches) + len(ax.lines) for ax in shown.static_figure().axes)

    shown = lab()
    marks, picture = drawn(shown), shown.picture.value
    slider = next(iter(shown.sliders.values()))
    slider.value = slider.options[-1]
    assert shown.picture.value != picture
    assert drawn(shown) > marks
    assert lab().now == shown.now
