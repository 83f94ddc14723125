"""Losses against loops and against their limits; the loss of several processes against that of one."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from colalib import cola
from colalib.settings import PretrainConfig

OBJECTIVES = {"bilinear": cola.Bilinear, "cosine": cola.Cosine, "triplet": cola.Triplet}


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


def test_who_hears_no_difference_ranks_last():
    assert cola.ranks(torch.ones(4, 4)).tolist() == [4] * 4


def test_nan_ranks_last():
    s = torch.eye(3)
    s[1, 1] = math.nan
    assert cola.ranks(s).tolist() == [1, 3, 1]


def test_cosine_similarity(h):
    expected = F.cosine_similarity(h[0][:, None], h[1][None], dim=2)
    assert torch.allclose(cola.cosine_similarity(*h), expected, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_learn_the_pairs(name):
    """On fixed embeddings that share only a part with their positives, each objective brings the
    positives to rank 1.
    """
    torch.manual_seed(0)
    common = torch.randn(32, 8)
    a, p = (torch.cat([common, torch.randn(32, 24)], dim=1) for _ in range(2))
    objective = OBJECTIVES[name](32, size=16, dropout=0.0)
    optimiser = torch.optim.Adam(objective.parameters(), lr=1e-2)
    before, _ = objective(a, p)
    for _ in range(150):
        optimiser.zero_grad()
        loss, similarity = objective(a, p)
        loss.backward()
        optimiser.step()
    assert similarity.shape == (32, 32)
    assert loss < before
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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_settings_name_the_objective(name):
    config = PretrainConfig(objective=name, dropout=0.25, temperature=0.7, margin=0.9, symmetric=False)
    objective = cola.build_objective(config, dim=32)
    assert type(objective) is OBJECTIVES[name]
    assert {m.p for m in objective.modules() if isinstance(m, nn.Dropout)} == {0.25}
    set_here = {"symmetric": False, "temperature": 0.7, "margin": 0.9}
    assert all(getattr(objective, key, value) == value for key, value in set_here.items())


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("bilinear", lambda s: cola.contrastive_loss(s, symmetric=False)),
        ("cosine", lambda s: cola.contrastive_loss(s / 0.7, symmetric=False)),
        ("triplet", lambda s: cola.triplet_loss(s, margin=0.9)),
    ],
)
def test_the_settings_are_in_the_loss(h, name, by_hand):
    config = PretrainConfig(objective=name, temperature=0.7, margin=0.9, symmetric=False)
    loss, similarity = cola.build_objective(config, dim=32).eval()(*h)
    assert loss == by_hand(similarity)
    assert loss != cola.build_objective(PretrainConfig(objective=name), dim=32).eval()(*h)[0]


# ------------------------------------------------------------------------------- several processes


class Toy(nn.Module):
    """An encoder without BatchNorm, and an objective."""

    def __init__(self, name: str):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(98 * 64, 32), nn.Tanh())
        self.objective = OBJECTIVES[name](32, size=16, dropout=0.0)

    def forward(self, anchors, positives):
        h = [cola.gather_embeddings(self.encoder(x)) for x in (anchors, positives)]
        return self.objective(*h)[0]


def half(rank: int, folder: str) -> None:
    """Be one of two processes, with its half of the batch; leave loss and gradients in a file."""
    pair = torch.load(f"{folder}/pair.pt")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in OBJECTIVES:
        model = DistributedDataParallel(Toy(name))
        loss = model(*(x.chunk(2)[rank] for x in pair))
        loss.backward()
        torch.save([loss.detach()] + [p.grad for p in model.parameters()], f"{folder}/{name}-{rank}.pt")
    del model, loss  # before the group: torch 2.13 can hang where the model is the last to hold it
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_half_the_batch_are_one_with_the_whole(tmp_path):
    pair = torch.randn(2, 8, 98, 64, generator=torch.Generator().manual_seed(1))
    torch.save(pair, tmp_path / "pair.pt")
    both = [subprocess.Popen([sys.executable, __file__, str(rank), tmp_path]) for rank in range(2)]
    try:
        assert [process.wait(600) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    for name in OBJECTIVES:
        model = Toy(name)
        loss = model(*pair)
        loss.backward()
        whole = [loss.detach()] + [p.grad for p in model.parameters()]
        for rank in range(2):
            parts = torch.load(tmp_path / f"{name}-{rank}.pt")
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(parts, whole)), name
        assert any(p.grad.abs().max() > 1e-3 for p in model.encoder.parameters())


if __name__ == "__main__":  # one of the two processes
    half(int(sys.argv[1]), sys.argv[2])
