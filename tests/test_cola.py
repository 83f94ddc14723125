"""Losses against loops and against their limits."""

import math

import pytest
import torch
from torch.nn import functional as F

from colalib import cola


@pytest.fixture
def h():
    torch.manual_seed(0)
    return torch.randn(6, 32), torch.randn(6, 32)


def test_contrastive_loss_by_hand(h):
    s = h[0] @ h[1].T
    one_way = (
        -sum(math.log(math.exp(s[i, i]) / sum(math.exp(s[i, j]) for j in range(6))) for i in range(6)) / 6
    )
    other_way = (
        -sum(math.log(math.exp(s[i, i]) / sum(math.exp(s[j, i]) for j in range(6))) for i in range(6)) / 6
    )
    assert float(cola.contrastive_loss(s, symmetric=False)) == pytest.approx(one_way, rel=1e-4)
    assert float(cola.contrastive_loss(s)) == pytest.approx((one_way + other_way) / 2, rel=1e-4)


def test_contrastive_loss_at_chance_and_at_best():
    assert float(cola.contrastive_loss(torch.zeros(50, 50))) == pytest.approx(math.log(50))
    assert float(cola.contrastive_loss(100 * torch.eye(50))) == pytest.approx(0)


def test_triplet_loss_by_hand(h):
    s = cola.cosine_similarity(*h)
    terms = [max(0.0, 0.5 - float(s[i, i]) + float(s[i, j])) for i in range(6) for j in range(6) if i != j]
    assert float(cola.triplet_loss(s, margin=0.5)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert float(cola.triplet_loss(torch.eye(6), margin=0.5)) == 0


def test_ranks():
    s = torch.tensor([[3.0, 2.0, 1.0], [5.0, 4.0, 6.0], [1.0, 2.0, 3.0]])
    assert cola.ranks(s).tolist() == [1, 3, 1]


def test_cosine_similarity(h):
    expected = F.cosine_similarity(h[0][:, None], h[1][None], dim=2)
    assert torch.allclose(cola.cosine_similarity(*h), expected, atol=1e-6)


@pytest.mark.parametrize("name", cola.OBJECTIVES)
def test_objectives_learn_the_pairs(name):
    """On fixed embeddings that share only a part with their positives, each objective brings the
    positives to rank 1.
    """
    torch.manual_seed(0)
    common = torch.randn(32, 8)
    a, p = (torch.cat([common, torch.randn(32, 24)], dim=1) for _ in range(2))
    objective = cola.OBJECTIVES[name](32, size=16, dropout=0.0)
    optimiser = torch.optim.Adam(objective.parameters(), lr=1e-2)
    before, _ = objective(a, p)
    for _ in range(150):
        optimiser.zero_grad()
        loss, similarity = objective(a, p)
        loss.backward()
        optimiser.step()
    assert similarity.shape == (32, 32) and loss < before
    assert cola.ranks(similarity).float().mean() < 1.5


def test_bilinear_has_no_symmetry_and_no_temperature(h):
    objective = cola.Bilinear(32, size=16, dropout=0.0).eval()
    ga, gp = objective.project(h[0]), objective.project(h[1])
    objective.weight.data = torch.randn(16, 16)
    _, s = objective(*h)
    assert float(s[1, 2].detach()) == pytest.approx(
        float((ga[1] @ objective.weight @ gp[2]).detach()) / 4, abs=1e-5
    )
    assert not torch.allclose(s, s.T)
    assert ga.abs().max() <= 1
