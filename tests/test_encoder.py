"""The encoder is efficientnet_pytorch's network: same weights, outputs and gradients, only computed
faster.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from colalib.course.bench import PlainEncoder
from colalib.encoder import ARCHITECTURES, Encoder, choose_cpu_precision
from colalib.errors import UserError


def make(arch: str = "b0-small", **kwargs) -> Encoder:
    """An encoder whose weights and running statistics are seeded, and far from their start."""
    torch.manual_seed(0)
    encoder = Encoder(arch, std=1.5, **kwargs)
    for name, value in encoder.net.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(0.2 * torch.rand_like(value))
    return encoder


def segments(batch: int = 4, frames: int = 98) -> torch.Tensor:
    return 2 * torch.randn(batch, frames, 64, generator=torch.Generator().manual_seed(1)) - 5


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def gradient(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    h = F.normalize(model(x))
    (h @ h.T).logsumexp(dim=1).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("recipe", ["float32", "bf16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_evaluation_equals_the_package(arch, recipe):
    encoder = make(arch, cpu_precision=recipe).eval()
    with torch.no_grad():
        h = encoder(segments())
        assert h.shape == (4, encoder.dim) and h.dtype == torch.float32
        assert relative(h, PlainEncoder(encoder).eval()(segments())) < 1e-5


# 40 and 98 frames: every 5x5 weight gradient is a matrix product; 400: the larger maps are
# convolutions
@pytest.mark.parametrize("frames", [40, 98, 131, 400])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_equal_the_package(arch, frames):
    encoder, x = make(arch, cpu_precision="float32"), segments(4 if frames < 400 else 2, frames)
    plain = PlainEncoder(encoder).train()
    assert relative(gradient(encoder, x), gradient(plain, x)) < 1e-3


def test_running_statistics_move_at_a_tenth():
    encoder, x = make(cpu_precision="float32"), segments()
    plain = PlainEncoder(encoder).train()
    for m in plain.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 0.1
    encoder(x), plain(x)
    torch.testing.assert_close(
        encoder.net._bn1.running_mean, plain.net._bn1.running_mean, rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(encoder.net._bn1.running_var, plain.net._bn1.running_var, rtol=1e-3, atol=1e-4)


def test_branches_equal_one_after_the_other():
    pair = segments(8)[:4], segments(8)[4:]

    def train(run) -> torch.Tensor:
        encoder = make(cpu_precision="float32")
        anchors, positives = run(encoder)
        (anchors @ positives.T).logsumexp(dim=1).sum().backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters()])

    def in_branches(encoder):
        return encoder.branches(*pair)

    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            found.append(train(in_branches))
    finally:
        torch.set_num_threads(threads)
    expected = train(lambda encoder: [encoder(x) for x in pair])
    assert all(relative(g, expected) < 1e-3 for g in found)
    assert torch.equal(found[1], found[2])


def test_branches_leave_one_encoder():
    encoder, alone = make(cpu_precision="float32"), make(cpu_precision="float32")
    anchors, positives = segments(8)[:4], segments(8)[4:]
    assert (
        relative(
            torch.cat(encoder.branches(anchors, positives)), torch.cat(alone.branches(anchors, positives))
        )
        == 0
    )
    alone = make(cpu_precision="float32")
    alone(anchors)
    # the statistics are the first branch's
    for ours, first in zip(encoder.buffers(), alone.buffers()):
        torch.testing.assert_close(ours, first, rtol=1e-3, atol=1e-4)
    assert encoder.state_dict().keys() == alone.state_dict().keys()
    assert len([*encoder.parameters()]) == len([*alone.parameters()])
    assert len(encoder.branches(anchors)) == 1
    with torch.no_grad():
        both = encoder.eval().branches(anchors, positives)
        assert torch.equal(both[1], encoder(positives))


@pytest.mark.skipif(choose_cpu_precision() != "bf16", reason="no bfloat16 in this CPU's hardware")
def test_bf16_training_is_close_to_float32():
    x = segments(16)
    with torch.no_grad():
        h = make(cpu_precision="bf16")(x)
        assert h.dtype == torch.float32
        assert relative(h, make(cpu_precision="float32")(x)) < 0.05


def test_weights_interchange_with_the_package():
    encoder = make("b0")
    weights = PlainEncoder(encoder).state_dict()
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    other = Encoder("b0").eval()
    other.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(other(segments()), encoder.eval()(segments()))


@pytest.mark.parametrize("frames", [1, 33, 98, 1000])
def test_any_length_and_a_single_segment(frames):
    with torch.no_grad():
        assert make().eval()(segments(1, frames)).shape == (1, 640)


def test_level_of_a_segment_does_not_matter():
    encoder, x = make().eval(), segments()
    with torch.no_grad():
        assert relative(encoder(x + 3.0), encoder(x)) < 1e-4


@pytest.mark.parametrize("recipe", dict.fromkeys(["float32", choose_cpu_precision()]))
def test_training_is_reproducible(recipe):
    def train() -> torch.Tensor:
        encoder = make(cpu_precision=recipe)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            gradient(encoder, segments(8))
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in encoder.parameters()])

    assert torch.equal(train(), train())


def test_unknown_names_are_the_users_mistake():
    with pytest.raises(UserError, match="b0, b0-small"):
        Encoder("b7")
    with pytest.raises(UserError, match="float32, bf16"):
        Encoder("b0", cpu_precision="fp8")
