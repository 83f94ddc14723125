"""The encoder is efficientnet_pytorch's network: same weights, same outputs."""

import pytest
import torch
from helpers import random_segments, relative, seeded_encoder

from colalib.course.bench import PlainEncoder
from colalib.encoder import ARCHITECTURES, Encoder, choose_device, pool_segments
from colalib.errors import UserError


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_evaluation_equals_the_package(arch, precision):
    encoder = seeded_encoder(arch, cpu_precision=precision).eval()
    with torch.no_grad():
        h = encoder(random_segments())
        expected = PlainEncoder(encoder).eval()(random_segments())
    assert h.shape == (4, encoder.dim)
    assert h.dtype == torch.float32
    assert relative(h, expected) < 1e-5


def test_running_statistics_move_at_a_tenth():
    encoder, x = seeded_encoder(cpu_precision="float32"), random_segments()
    plain = PlainEncoder(encoder).train()
    for m in plain.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 0.1
    encoder(x)
    plain(x)
    ours, theirs = encoder.net._bn1, plain.net._bn1
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-3, atol=1e-4)


def test_weights_interchange_with_the_package():
    encoder = seeded_encoder("b0")
    weights = PlainEncoder(encoder).state_dict()
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    other = Encoder("b0").eval()
    other.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(other(random_segments()), encoder.eval()(random_segments()))


@pytest.mark.parametrize("frames", [1, 33, 98, 1000])
def test_any_length_and_a_single_segment(frames):
    with torch.no_grad():
        assert seeded_encoder().eval()(random_segments(1, frames)).shape == (1, 640)


def test_level_of_a_segment_does_not_matter():
    encoder, x = seeded_encoder().eval(), random_segments()
    with torch.no_grad():
        assert relative(encoder(x + 3.0), encoder(x)) < 1e-4


@pytest.mark.parametrize(("arch", "d"), [("b0-small", 3328), ("b0", 10_112)])
def test_block_features_are_means_then_deviations(arch, d):
    """Deviations are never negative; means are on both sides of zero."""
    with torch.no_grad():
        features = seeded_encoder(arch).eval().block_features(random_segments())
    assert features.shape == (4, d)
    assert features.dtype == torch.float32
    assert (features[:, d // 2 :] >= 0).all()
    assert (features[:, : d // 2] < 0).any()


def test_pooled_segments_have_the_statistics_of_the_whole_clip():
    clip = torch.randn(3, 50, 7)  # segments, frames, features
    features = torch.cat([clip.mean(dim=1), clip.std(dim=1, correction=0)], dim=1)
    whole = clip.flatten(0, 1)
    expected = torch.cat([whole.mean(dim=0), whole.std(dim=0, correction=0)])
    torch.testing.assert_close(pool_segments(features), expected)


def test_unknown_names_are_the_users_mistake():
    with pytest.raises(UserError, match="b0, b0-small"):
        Encoder("b7")
    with pytest.raises(UserError, match="float32, bf16"):
        Encoder("b0", cpu_precision="fp8")
    with pytest.raises(UserError, match="no abacus device"):
        choose_device("abacus")
