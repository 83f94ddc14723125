"""The encoder: EfficientNet on log-mel segments → h (COLA, section 2), and its block features.

Segments come from `data.segments`: [B, T, M], time first. h goes to the objectives (`cola.py`) and
to a classifier (`training.finetuning`); block features go to a linear probe or a map
(`evaluation`).

The layers used here (`pointwise`, `depthwise`, `conv_same`, `batch_norm`) are torch's convolutions
and batch norms on maps with channels last, [B, H, W, C]. How they are made fast on a CPU is told in
`fast_cpu.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import efficientnet
from torch import Tensor, nn

from colalib.errors import UserError
from colalib.fast_cpu import (
    CPU_PRECISIONS,
    batch_norm,
    choose_cpu_precision,
    conv_same,
    depthwise,
    pointwise,
    silu,
)
from colalib.settings import ARCHITECTURES


class Encoder(nn.Module):
    """Log-mel segments [B, T, M] → h [B, dim] float32: EfficientNet, then global max pooling (section 2).

    Input: natural-log mel magnitudes, any T. Each segment loses its own mean and is divided by
    `std`, one number computed on the pre-training segments. dim is 1280 for `b0` and 640 for
    `b0-small`, which has half the width and half the depth.

    `net` is efficientnet_pytorch's network with one input channel and no classifier; weights
    interchange with that package. `cpu_precision` is the arithmetic of training on a CPU: "bf16",
    "float32" or "auto" (bf16 where the CPU has it). Evaluation is always float32, because
    embeddings in bfloat16 are off by more than 1%. On a GPU, autocast decides. Raises `UserError`
    for an unknown name.

    >>> Encoder("b0-small")(torch.randn(2, 98, 64)).shape
    torch.Size([2, 640])
    """

    def __init__(self, arch: str = "b0-small", std: float = 1.0, cpu_precision: str = "auto") -> None:
        super().__init__()
        if arch not in ARCHITECTURES:
            raise UserError(f"unknown architecture {arch!r}: choose one of {', '.join(ARCHITECTURES)}")
        if cpu_precision not in ("auto", *CPU_PRECISIONS):
            raise UserError(
                f"unknown precision {cpu_precision!r}: choose one of auto, {', '.join(CPU_PRECISIONS)}"
            )
        width, depth = ARCHITECTURES[arch]
        blocks, params = efficientnet(width, depth, drop_connect_rate=0.0, image_size=None, include_top=False)
        self.arch = arch
        self.cpu_precision = choose_cpu_precision() if cpu_precision == "auto" else cpu_precision
        self.net = EfficientNet(blocks, params)
        self.net._change_in_channels(1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # with the package's 0.01, running statistics lag by hundreds of steps
        self.dim = self.net._bn1.num_features
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, x: Tensor) -> Tensor:
        *_, last = self.feature_maps(x)  # [B, T/32, M/32, dim]
        return last.amax(dim=(1, 2)).float()  # [B, dim]

    def feature_maps(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the output of every block, then of the last layer: [B, T, M] → maps [B, H, W, C].

        H runs along time and W along the bands.
        """
        net = self.net
        # loudness carries no meaning here: each segment loses its own mean
        x = (x - x.mean(dim=(1, 2), keepdim=True)) / self.std  # [B, T, M]
        if self.training and self.cpu_precision == "bf16" and x.device.type == "cpu":
            x = x.bfloat16()
        # [B, T/2, M/2, 32 (b0)]
        x = silu(batch_norm(conv_same(x[..., None], net._conv_stem), net._bn0))
        for block in net._blocks:
            x = mbconv(block, x)
            yield x  # [B, T/2 … T/32, M/2 … M/32, 16 … 320 (b0)]
        yield silu(batch_norm(pointwise(x, net._conv_head), net._bn1))  # [B, T/32, M/32, dim]

    def block_features(self, x: Tensor) -> Tensor:
        """Return what a frozen encoder offers to a probe: block features, [B, T, M] → [B, d] float32.

        d is 3328 for `b0-small` and 10,112 for `b0`.

        For each block: the mean over time of its channels in four ranges of bands (two where a map
        has only two), and the standard deviation. All means come first, then all deviations. The
        last layer is made for the pre-training task; earlier blocks keep more of what other tasks
        need, and of where in the spectrum it is. `pool_segments` joins the segments of a clip.
        """
        maps = islice(self.feature_maps(x), len(self.net._blocks))  # without the last layer
        means, deviations = [], []
        for m in maps:  # [B, H, W, C]
            bands = m.float().tensor_split(min(m.shape[2], 4), dim=2)  # from low to high
            ranges = torch.stack([b.mean(dim=2) for b in bands], dim=3)  # [B, H, C, 4]
            mean = ranges.mean(dim=1, keepdim=True)  # [B, 1, C, 4]
            means.append(mean.flatten(1))
            # by hand: torch.std is several times slower along this axis
            deviations.append((ranges - mean).square().mean(dim=1).sqrt().flatten(1))
        return torch.cat(means + deviations, dim=1)


def pool_segments(features: Tensor) -> Tensor:
    """Join the block features of one clip's segments: [S, d] → [d].

    Gives mean and standard deviation over the whole clip.

    The variance over the clip is the mean of the segments' variances plus the variance of their
    means.
    """
    mean, deviation = features.chunk(2, dim=1)  # [S, d/2] each
    variance = deviation.square().mean(dim=0) + mean.var(dim=0, correction=0)
    return torch.cat([mean.mean(dim=0), variance.sqrt()])


def mbconv(block: nn.Module, x: Tensor) -> Tensor:
    """Run one MBConv block on [B, H, W, C]: expand, depthwise, squeeze and excite, project, skip."""
    y = x
    if block._block_args.expand_ratio != 1:
        # [B, H, W, E], E = expanded channels
        y = silu(batch_norm(pointwise(y, block._expand_conv), block._bn0))
    # [B, H', W', E], each channel by itself
    y = silu(batch_norm(depthwise(y, block._depthwise_conv), block._bn1))
    # squeeze and excite: the mean of each channel over the map decides how much of that channel
    # passes
    # (sum, then divide: the backward pass of mean() would divide the whole map)
    squeezed = y.sum(dim=(1, 2)) / (y.shape[1] * y.shape[2])  # [B, E]
    gate = pointwise(silu(pointwise(squeezed, block._se_reduce)), block._se_expand).sigmoid()  # [B, E]
    # [B, H', W', C']
    y = batch_norm(pointwise(y * gate[:, None, None], block._project_conv), block._bn2)
    if block._depthwise_conv.stride[0] == 1 and y.shape == x.shape:
        y = y + x  # skip connection, where the shape stays
    return y


def choose_device(accelerator: str = "auto") -> torch.device:
    """Return where to compute: "cpu", "cuda", "mps", or for "auto" the fastest there is.

    Raises `UserError` for a device that is not there.
    """
    best = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    )
    if accelerator not in ("auto", "cpu", best.type):
        raise UserError(
            f"this machine has no {accelerator} device that torch can use: leave --accelerator at auto"
        )
    return best if accelerator == "auto" else torch.device(accelerator)
