"""The arithmetic for CPUs: the gradients of the plain package, pairs in two threads, chunks."""

import pytest
import torch
from helpers import random_segments, relative, seeded_encoder
from torch import nn
from torch.nn import functional as F

from colalib.cola import Bilinear
from colalib.course.bench import PlainEncoder
from colalib.encoder import ARCHITECTURES, Encoder
from colalib.fast_cpu import (
    choose_cpu_precision,
    encode_batches,
    fold_batch_norms,
    in_batches,
    parallel_map,
)


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the gradients of all weights for a loss that depends on every embedding."""
    h = F.normalize(model(x))
    (h @ h.T).logsumexp(dim=1).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# 40 and 98 frames: every 5x5 weight gradient is a matrix product; 400: the larger maps are
# convolutions
@pytest.mark.parametrize("frames", [40, 98, 131, 400])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_equal_the_package(arch, frames):
    encoder = seeded_encoder(arch, cpu_precision="float32")
    x = random_segments(4 if frames < 400 else 2, frames)
    plain = PlainEncoder(encoder).train()
    assert relative(gradient(encoder, x), gradient(plain, x)) < 1e-3


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_folded_batch_norms_give_the_same_features(arch):
    encoder, x = seeded_encoder(arch), random_segments(8)
    with torch.no_grad():
        for _ in range(5):  # running statistics that differ from 0 and 1
            encoder.train()(random_segments(8))
        expected = encoder.eval().block_features(x)
        folded = fold_batch_norms(encoder)
        assert relative(folded.block_features(x), expected) < 1e-4
        assert torch.equal(encoder.block_features(x), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


@pytest.mark.skipif(choose_cpu_precision() != "bf16", reason="no bfloat16 in this CPU's hardware")
def test_bf16_training_is_close_to_float32():
    x = random_segments(16)
    with torch.no_grad():
        h = seeded_encoder(cpu_precision="bf16")(x)
        expected = seeded_encoder(cpu_precision="float32")(x)
    assert h.dtype == torch.float32
    assert relative(h, expected) < 0.05


@pytest.mark.parametrize("precision", dict.fromkeys(["float32", choose_cpu_precision()]))
def test_training_is_reproducible(precision):
    def train() -> torch.Tensor:
        encoder = seeded_encoder(cpu_precision=precision)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            gradient(encoder, random_segments(8))
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in encoder.parameters()])

    assert torch.equal(train(), train())


# ------------------------------------------------------------------------------- pairs of batches


def test_two_batches_at_once_equal_one_after_the_other():
    pair = random_segments(8).split(4)

    def gradients(encode) -> torch.Tensor:
        encoder = seeded_encoder(cpu_precision="float32")
        anchors, positives = encode(encoder)
        (anchors @ positives.T).logsumexp(dim=1).sum().backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters()])

    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(gradients(lambda encoder: encode_batches(encoder, pair)))
    finally:
        torch.set_num_threads(threads)
    expected = gradients(lambda encoder: [encoder(x) for x in pair])
    for result in results:
        assert relative(result, expected) < 1e-3
    assert torch.equal(results[1], results[2])


def test_two_batches_at_once_leave_one_encoder():
    pair = random_segments(8).split(4)
    encoder, same, alone = (seeded_encoder(cpu_precision="float32") for _ in range(3))
    assert torch.equal(torch.cat(encode_batches(encoder, pair)), torch.cat(encode_batches(same, pair)))
    alone(pair[0])
    # the running statistics are the first batch's
    for ours, first in zip(encoder.buffers(), alone.buffers()):
        torch.testing.assert_close(ours, first, rtol=1e-3, atol=1e-4)
    assert encoder.state_dict().keys() == alone.state_dict().keys()
    assert len([*encoder.parameters()]) == len([*alone.parameters()])
    assert len(encode_batches(encoder, pair[:1])) == 1
    with torch.no_grad():
        assert torch.equal(encode_batches(encoder.eval(), pair)[1], encoder(pair[1]))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_chunks_have_the_gradients_of_the_batch(precision):
    """BatchNorm's statistics are a chunk's: in the plain pass beside it they are, too."""
    torch.manual_seed(0)
    pair = torch.randn(2, 12, 98, 64)
    start = Encoder("b0-small", cpu_precision=precision).state_dict()

    def trained(encode):
        """Return the loss, the gradients and the running means after one pass."""
        encoder = Encoder("b0-small", cpu_precision=precision).train()
        encoder.load_state_dict(start)
        torch.manual_seed(1)
        loss = Bilinear(encoder.dim, dropout=0.0)(*encode(encoder))[0]
        loss.backward()
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {norm.momentum for norm in norms} == {0.1}, "the next step moves them too"
        return loss.detach(), [p.grad for p in encoder.parameters()], [n.running_mean for n in norms]

    plain = trained(lambda encoder: [torch.cat([encoder(part) for part in x.split(4)]) for x in pair])
    chunked = trained(lambda encoder: encode_batches(encoder, list(pair), chunk=4))
    assert torch.allclose(plain[0], chunked[0], rtol=1e-4)
    for a, b in zip(plain[1], chunked[1]):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * a.abs().max())
    for a, b in zip(plain[2], chunked[2]):
        assert torch.allclose(a, b, atol=1e-5)


# ------------------------------------------------------------------------------------ whole clips


def test_in_batches_takes_so_many_rows_at_a_time():
    sizes = []
    doubled = in_batches(lambda x: (sizes.append(len(x)), 2 * x)[1], torch.arange(10), size=4)
    assert sizes == [4, 4, 2]
    assert doubled.tolist() == list(range(0, 20, 2))


@pytest.mark.parametrize("threads", [1, 2])
def test_parallel_map_keeps_the_order_and_takes_few_items_in_advance(threads):
    usual, taken = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        results = parallel_map(lambda i: i * i, (taken.append(i) or i for i in range(20)))
        assert next(results) == 0
        assert len(taken) <= 3
        assert list(results) == [i * i for i in range(1, 20)]
    finally:
        torch.set_num_threads(usual)
