"""The numbers behind the pictures are right, and the setting before stays in sight."""

import numpy as np
import pytest
import torch

from colalib import widgets
from colalib.cola import contrastive_loss, triplet_loss
from colalib.widgets.consequences import cross_entropy, loss_and_gradient, power, triplet


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
    n, difference, alone, scatter, seeds = 300, 5.0, 30.0, 1.5, 3
    half, expected = power(np.array(n), difference, alone, 0, scatter, seeds)
    truth = difference + rng.normal(0, scatter * np.sqrt(2 / seeds), 4000)  # points
    better = (alone + truth) / 2 / 100
    shares = np.stack([better, alone / 100 - better, np.full_like(better, 1 - alone / 100)], 1)
    wins = np.array([rng.multinomial(n, share) for share in shares])
    shown = np.abs(100 * (wins[:, 0] - wins[:, 1]) / n) > half
    assert 100 * shown.mean() == pytest.approx(float(expected), abs=3)


@pytest.mark.parametrize("runs_of_each", [1, 4, 20])
def test_churn_averages_out_over_runs(runs_of_each):
    rng, n, tossed, only_a, only_b = np.random.default_rng(0), 400, 0.3, 0.12, 0.08
    alone, churn = only_a + only_b + tossed / 2, tossed / 2  # on the tossed clips every run tosses a coin
    clips = rng.multinomial(n, [only_a, only_b, tossed, 1 - only_a - only_b - tossed], size=20_000)
    a, b = (rng.binomial(clips[:, 2] * runs_of_each, 0.5) / runs_of_each for _ in range(2))
    found = 100 * (clips[:, 0] - clips[:, 1] + a - b) / n
    scatter = 100 * np.sqrt(tossed / 4 / n)  # of one run's accuracy, from its tosses
    half, _ = power(np.array(n), 100 * (only_a - only_b), 100 * alone, 100 * churn, scatter, runs_of_each)
    assert 1.96 * found.std() == pytest.approx(float(half), rel=0.03)


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
