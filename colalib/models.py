"""Encoders and what sits on them: EfficientNet on log-mel segments → h, projection g, similarities, classifier.

Data comes from `segments` ([B, frames, mels], time first) and goes to `objectives` and `training`.
"""

from __future__ import annotations

import copy
import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache, partial

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import efficientnet
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from colalib.errors import UserError

# width and depth multipliers of the EfficientNet family (Tan & Le 2019, table 1); b0-small is for laptops
ARCHITECTURES = {"b0": (1.0, 1.0), "b0-small": (0.5, 0.5)}
RECIPES = ("float32", "bf16")


def choose_recipe() -> str:
    """Arithmetic of training on this CPU: "bf16" where it multiplies bfloat16 in hardware, else "float32"."""
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent from some torch versions and platforms
    return "bf16" if any(getattr(torch.cpu, flag, lambda: False)() for flag in flags) else "float32"


def choose_device(accelerator: str = "auto") -> torch.device:
    """Where to compute: "cpu", "cuda", "mps", or "auto", the fastest there is. Raises `UserError` for what is not there."""
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if accelerator not in ("auto", "cpu", best.type):
        raise UserError(f"this machine has no {accelerator} device that torch can use: leave --accelerator at auto")
    return best if accelerator == "auto" else torch.device(accelerator)


class Encoder(nn.Module):
    """Log-mel segment → embedding h (COLA, arXiv 2010.10915, section 2: EfficientNet-B0, global max pooling).

    Input `[B, T, M]`: natural-log mel magnitudes, time first, any T. Each segment loses its own mean and is divided
    by `std`, one number computed on the pre-training clips. Output `[B, dim]` float32, dim 1280 (`b0`) or 640
    (`b0-small`).

    `net` is efficientnet_pytorch's network (no head, one input channel) and its weights interchange with the
    package's; only the order of work is our own, because on a CPU it is 2 to 4 times faster (`python -m colalib
    bench`): channels last throughout, so that a 1x1 convolution is one matrix product, and `_Depthwise` below.
    `recipe` is the arithmetic of training on a CPU: "bf16", "float32" or "auto" (`choose_recipe`). Evaluation is
    always float32, as embeddings in bfloat16 are off by more than 1%; on a GPU autocast decides.
    """

    def __init__(self, arch: str = "b0-small", std: float = 1.0, recipe: str = "auto") -> None:
        super().__init__()
        if arch not in ARCHITECTURES:
            raise UserError(f"unknown architecture {arch!r}: choose one of {', '.join(ARCHITECTURES)}")
        if recipe not in ("auto", *RECIPES):
            raise UserError(f"unknown recipe {recipe!r}: choose one of auto, {', '.join(RECIPES)}")
        width, depth = ARCHITECTURES[arch]
        blocks, params = efficientnet(width, depth, drop_connect_rate=0.0, image_size=None, include_top=False)
        self.arch = arch
        self.recipe = choose_recipe() if recipe == "auto" else recipe
        self.net = EfficientNet(blocks, params)
        self.net._change_in_channels(1)
        for m in self.net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = 0.1  # with the package's 0.01 the running statistics lag hundreds of steps behind
        self.dim = self.net._bn1.num_features
        self.register_buffer("std", torch.tensor(float(std)))
        self._twin: list[Encoder] = []  # a list, so that its weights are not counted twice

    def forward(self, x: Tensor) -> Tensor:
        *_, last = self.feature_maps(x)  # [B, T/32, M/32, dim]
        return last.amax(dim=(1, 2)).float()  # [B, dim]

    def branches(self, *xs: Tensor, chunk: int = 0) -> list[Tensor]:
        """`[self(x) for x in xs]` for one or two batches; in training on a CPU, forward and backward of two at the same time.

        Two threads with a branch each are faster than two threads that share every operation of one after the other
        (`python -m colalib bench`). Each branch is normalised by its own batch, as it is one after the other; the
        running statistics of BatchNorm are then those of the first.

        With `chunk`, so many segments at a time, and the backward pass computes each chunk once more: memory for one
        chunk instead of the batch, the same gradients (GradCache, Gao et al. 2021, arXiv 2101.06983). BatchNorm then
        takes the statistics of a chunk.
        """
        if chunk and self.training:
            again = partial(checkpoint, self, use_reentrant=False, context_fn=lambda: (nullcontext(), self._still()))
            return [torch.cat([again(part) for part in x.split(chunk)]) for x in xs]
        # DDP sees only the gradients of its own graph
        if not self.training or xs[0].device.type != "cpu" or is_initialized():
            return [self(x) for x in xs]
        if not self._twin:
            shared = {id(p): p for p in self.parameters()}
            self._twin.append(copy.deepcopy(self, shared))  # the same weights, own running statistics
        self._twin[0].train()
        trigger = torch.zeros((), requires_grad=True)  # without it autograd would see nothing to differentiate
        return list(_Branches.apply(trigger, [self, *self._twin], xs))

    @contextmanager
    def _still(self) -> Iterator[None]:
        """BatchNorm's running statistics stay as they are."""
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        usual = norms[0].momentum
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:  # torch ends a recomputation by an exception as soon as it has what it needs
            for norm in norms:
                norm.momentum = usual

    def readout(self, x: Tensor) -> Tensor:
        """`[B, T, M]` → `[B, d]` float32, for frozen use: means over time of each block's output, in four ranges of bands (two
        where a map has two), then the standard deviations. d is 3328 for `b0-small`, 10,112 for `b0`. `whole_clip` joins the
        segments of a clip.

        The last layer is made for the task of pre-training; the earlier ones keep more of what other tasks need, and
        where in the spectrum it is.
        """
        *maps, _ = self.feature_maps(x)
        means, spreads = [], []
        for m in maps:
            bands = m.float().tensor_split(min(m.shape[2], 4), dim=2)  # from low to high
            ranges = torch.stack([b.mean(dim=2) for b in bands], dim=3)  # [B, H, C, 4]
            mean = ranges.mean(dim=1, keepdim=True)
            # by hand, as torch.std is several times slower along this axis
            means.append(mean.flatten(1))
            spreads.append((ranges - mean).square().mean(dim=1).sqrt().flatten(1))
        return torch.cat(means + spreads, dim=1)

    def feature_maps(self, x: Tensor) -> Iterator[Tensor]:
        """`[B, T, M]` → the output of every block, then of the head: `[B, H, W, C]`, H ~ time and W ~ mel bands."""
        net = self.net
        x = (x - x.mean(dim=(1, 2), keepdim=True)) / self.std  # [B, T, M]
        if self.training and self.recipe == "bf16" and x.device.type == "cpu":
            x = x.bfloat16()
        x = F.silu(_batch_norm(_conv_same(x[..., None], net._conv_stem), net._bn0))  # [B, T/2, M/2, 32 (b0)]
        for block in net._blocks:
            x = _mbconv(block, x)
            yield x  # [B, T/2 … T/32, M/2 … M/32, 16 … 320 (b0)]
        yield F.silu(_batch_norm(_pointwise(x, net._conv_head), net._bn1))  # [B, T/32, M/32, dim]


class _Branches(torch.autograd.Function):
    """`encoder(x)` for encoders of the same weights and as many batches, forward and backward in threads."""

    @staticmethod
    def forward(ctx, trigger: Tensor, encoders: list[Encoder], xs: tuple[Tensor, ...]):
        ctx.outputs = list(in_threads(torch.enable_grad()(lambda branch: branch[0](branch[1])), zip(encoders, xs)))
        return tuple(h.detach() for h in ctx.outputs)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        # adds to the weights' gradients itself; a sum of two does not depend on which comes first
        list(in_threads(lambda branch: branch[0].backward(branch[1]), zip(ctx.outputs, grads)))
        return None, None, None


def whole_clip(readouts: Tensor) -> Tensor:
    """`Encoder.readout` of a clip's segments `[S, d]` → its embedding `[d]`: means and standard deviations over the time of all
    of them. (The variance of the whole is the mean of the variances plus the variance of the means.)"""
    mean, spread = readouts.chunk(2, dim=1)
    return torch.cat([mean.mean(dim=0), (spread.square().mean(dim=0) + mean.var(dim=0, correction=0)).sqrt()])


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, size: int = 64) -> Tensor:
    """`function(x)`, `size` rows at a time: an hour has 7,000 segments."""
    return torch.cat([function(part) for part in x.split(size)])


def in_threads(function: Callable, items: Iterable) -> Iterator:
    """`map(function, items)`, two calls at a time where torch has two threads or more, each with half of them. Results come
    in order; only a few items are taken in advance. `function` sets its own grad mode."""
    threads = torch.get_num_threads()
    if threads < 2:
        yield from map(function, items)
        return

    waiting = deque()
    for item in items:
        waiting.append(_workers(threads // 2).submit(function, item))
        if len(waiting) > 2:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@lru_cache(maxsize=1)
def _workers(threads: int) -> ThreadPoolExecutor:
    with suppress(AttributeError, OSError, TypeError):  # only glibc has it
        # keep freed memory: a fifth of a step goes into handing activations to the system and back, page by page
        mallopt, m_trim_threshold, m_mmap_max = ctypes.CDLL(None).mallopt, -1, -4
        mallopt(m_mmap_max, 0), mallopt(m_trim_threshold, 2**31 - 1)
    return ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(threads,))  # of each worker, not of all


def _mbconv(block: nn.Module, x: Tensor) -> Tensor:
    """The package's MBConvBlock on `[B, H, W, C]`: expand, depthwise, squeeze and excite, project, skip."""
    y = x
    if block._block_args.expand_ratio != 1:
        y = F.silu(_batch_norm(_pointwise(y, block._expand_conv), block._bn0))  # [B, H, W, E], E = expanded C
    depthwise = block._depthwise_conv
    if y.device.type == "cpu":
        y = _Depthwise.apply(y, depthwise.weight, depthwise.stride[0])
    else:
        y = _conv_same(y, depthwise)  # [B, H', W', E]
    y = F.silu(_batch_norm(y, block._bn1))
    # sum, then divide: the backward of mean() would divide the whole map
    s = y.sum(dim=(1, 2)) / (y.shape[1] * y.shape[2])  # [B, E]
    s = _pointwise(F.silu(_pointwise(s, block._se_reduce)), block._se_expand).sigmoid()  # [B, E]
    y = _batch_norm(_pointwise(y * s[:, None, None], block._project_conv), block._bn2)  # [B, H', W', C']
    if depthwise.stride[0] > 1 or y.shape != x.shape:  # no skip connection, as in the package
        return y
    return y + x


def _pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """1x1 convolution of `[..., C]` as a matrix product."""
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    return F.linear(x, conv.weight.flatten(1).to(x.dtype), bias)


def _batch_norm(x: Tensor, bn: nn.Module) -> Tensor:
    return bn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # [B, H, W, C], seen as [B, C, H, W] for the module's sake


def _same_padding(n: int, k: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding before and after an axis of length n."""
    total = max((-(-n // stride) - 1) * stride + k - n, 0)
    return total // 2, total - total // 2


def _conv_same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolution of `[B, H, W, C]` with "same" padding → `[B, ceil(H/stride), ceil(W/stride), C']`."""
    k, stride = conv.kernel_size[0], conv.stride[0]
    top, bottom = _same_padding(x.shape[1], k, stride)
    left, right = _same_padding(x.shape[2], k, stride)
    x = F.pad(x, (0, 0, left, right, top, bottom)).permute(0, 3, 1, 2)
    return F.conv2d(x, conv.weight.to(x.dtype), stride=stride, groups=conv.groups).permute(0, 2, 3, 1)


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution with "same" padding for the CPU, `[B, H, W, C]` → `[B, ceil(H/stride), ceil(W/stride), C]`.

    Equal to `_conv_same`; two of oneDNN's kernels are avoided because they take most of a training step:
    - the strided backward (in bfloat16 10 to 20 times slower than in float32) and the padded copy before it:
      a strided convolution is the plain one of which every second output is kept;
    - the 5x5 weight gradient. On a small map it is a matrix product per channel over the batch, which gives every
      pair (input position, output position); the pairs that one tap of the kernel joins are then added up.
    """

    max_pairs = 40_000  # of positions: above, memory grows and the convolution in float32 is faster

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        k = weight.shape[-1]
        y = F.conv2d(x.permute(0, 3, 1, 2), weight.to(x.dtype), padding=k // 2, groups=len(weight)).permute(0, 2, 3, 1)
        return y if stride == 1 else y[_kept(x)].contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        (_, H, W, _), k = x.shape, weight.shape[-1]
        full = grad.contiguous()
        if ctx.stride == 2:
            full = grad.new_zeros(x.shape)
            full[_kept(x)] = grad
        if k == 3:
            grad_x, grad_weight = _depthwise_backward(full, x, weight.to(x.dtype), (True, True))
        else:
            grad_x, _ = _depthwise_backward(full, x, weight.to(x.dtype), (True, False))
            if H * W * grad.shape[1] * grad.shape[2] <= _Depthwise.max_pairs:
                pairs = torch.einsum("bpc,bqc->cpq", x.flatten(1, 2), grad.flatten(1, 2))  # [C, HW, H'W']
                grad_weight = pairs.flatten(1) @ _taps(H, W, k, ctx.stride).to(x.dtype)  # [C, k*k]
            else:
                _, grad_weight = _depthwise_backward(full.float(), x.float(), weight, (False, True))
        return grad_x, grad_weight.view_as(weight).to(weight.dtype), None


def _depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> list[Tensor | None]:
    """Gradients of a plain depthwise convolution for x and for the weight; `torch.nn.grad` would lose the format."""
    grad, x, pad = grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight.shape[-1] // 2
    args = (None, (1, 1), (pad, pad), (1, 1), False, (0, 0), len(weight), (*wanted, False))
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, *args)
    return [grad_x if grad_x is None else grad_x.permute(0, 2, 3, 1), grad_weight]


def _kept(x: Tensor) -> tuple[slice, ...]:
    """The outputs of a plain convolution on `[B, H, W, C]` that one of stride 2 with "same" padding has."""
    return slice(None), slice((x.shape[1] - 1) % 2, None, 2), slice((x.shape[2] - 1) % 2, None, 2)


@lru_cache(maxsize=16)
def _taps(h: int, w: int, k: int, stride: int) -> Tensor:
    """`[h*w*h'*w', k*k]` of 0 and 1: the tap of a k×k kernel that joins an input position to an output position."""

    def axis(n: int) -> Tensor:  # [n, n', k]
        outputs = torch.arange(-(-n // stride)) * stride - _same_padding(n, k, stride)[0]
        tap = torch.arange(n)[:, None] - outputs  # [n, n']
        return (tap[..., None] == torch.arange(k)).float()

    return torch.einsum("hak,wbl->hwabkl", axis(h), axis(w)).reshape(-1, k * k)
