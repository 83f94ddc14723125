"""The encoder's arithmetic in the order that a CPU likes.

It is 2 to 4 times as fast as the plain package, with the same results.

`python -m colalib bench` measures it; tests compare it with efficientnet_pytorch. Three things make
the difference:
- Maps keep their channels last, [B, H, W, C], so that a 1×1 convolution is one matrix product
  (`pointwise`).
- Depthwise convolutions avoid two slow kernels (`depthwise`).
- Anchors and positives are encoded in two threads at the same time (`encode_batches`), and freed
  memory is kept (`keep_freed_memory`).

Nothing here is needed to understand COLA: `encoder.py` and `cola.py` call these functions as if
they were torch's.
"""

from __future__ import annotations

import copy
import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CPU_PRECISIONS = ("float32", "bf16")


def choose_cpu_precision() -> str:
    """Return "bf16" where this CPU multiplies bfloat16 in hardware, else "float32".

    Without such hardware bf16 is slow.
    """
    # absent from some torch versions and platforms
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16" if any(getattr(torch.cpu, flag, lambda: False)() for flag in flags) else "float32"


# ------------------------------------------------------------------------------------------- layers


def pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the 1×1 convolution of [..., C] as a matrix product → [..., C']."""
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    return F.linear(x, conv.weight.flatten(1).to(x.dtype), bias)


def batch_norm(x: Tensor, bn: nn.Module) -> Tensor:
    """Return the batch norm of [B, H, W, C]; the module sees it as [B, C, H, W]."""
    return bn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def silu(x: Tensor) -> Tensor:
    """Return the swish of x; where no gradient is wanted, in the memory of x."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def conv_same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the convolution of [B, H, W, C] with TensorFlow's "same" padding.

    The result is [B, ⌈H/stride⌉, ⌈W/stride⌉, C'].
    """
    k, stride = conv.kernel_size[0], conv.stride[0]
    top, bottom = _same_padding(x.shape[1], k, stride)
    left, right = _same_padding(x.shape[2], k, stride)
    padding = (top, left)
    if (top, left) != (bottom, right):  # the convolution itself pads both ends alike, without a copy
        x, padding = F.pad(x, (0, 0, left, right, top, bottom)), 0
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    x = x.permute(0, 3, 1, 2)
    return F.conv2d(x, conv.weight.to(x.dtype), bias, stride, padding, groups=conv.groups).permute(0, 2, 3, 1)


def depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the depthwise convolution of [B, H, W, C] with "same" padding.

    The result is [B, ⌈H/stride⌉, ⌈W/stride⌉, C].
    """
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return _Depthwise.apply(x, conv.weight, conv.stride[0])
    return conv_same(x, conv)


def _same_padding(n: int, k: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after an axis of length n for a kernel of length k."""
    total = max((-(-n // stride) - 1) * stride + k - n, 0)
    return total // 2, total - total // 2


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution for the CPU. Equal to `conv_same`, but without two of oneDNN's kernels.

    These two would take most of a training step:
    - The strided backward pass (in bfloat16 10 to 20 times slower than in float32) and the padded
      copy before it. Here a strided convolution is the plain one, of which every second output is
      kept.
    - The gradient of a 5×5 weight. On a small map it is computed as one matrix product per channel
      over the batch, which gives every pair (input position, output position). The pairs that one
      tap of the kernel joins are then added up.
    """

    max_pairs = 40_000  # of positions. Above this, memory grows and the convolution in float32 is faster

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        k = weight.shape[-1]
        y = F.conv2d(x.permute(0, 3, 1, 2), weight.to(x.dtype), padding=k // 2, groups=len(weight)).permute(
            0, 2, 3, 1
        )
        return y if stride == 1 else y[_strided(x)].contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        (_, H, W, _), k = x.shape, weight.shape[-1]
        full = grad.contiguous()
        if ctx.stride == 2:  # outputs that were thrown away have no gradient
            full = grad.new_zeros(x.shape)
            full[_strided(x)] = grad
        if k == 3:
            grad_x, grad_weight = _depthwise_backward(full, x, weight.to(x.dtype), (True, True))
        else:
            grad_x, _ = _depthwise_backward(full, x, weight.to(x.dtype), (True, False))
            if H * W * grad.shape[1] * grad.shape[2] <= _Depthwise.max_pairs:
                # [C, HW, H'W']
                pairs = torch.einsum("bpc,bqc->cpq", x.flatten(1, 2), grad.flatten(1, 2))
                grad_weight = pairs.flatten(1) @ _taps(H, W, k, ctx.stride).to(x.dtype)  # [C, k*k]
            else:
                _, grad_weight = _depthwise_backward(full.float(), x.float(), weight, (False, True))
        return grad_x, grad_weight.view_as(weight).to(weight.dtype), None


def _depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> list[Tensor | None]:
    """Return the gradients of a plain depthwise convolution for x and for the weight, as far as `wanted`.

    `torch.nn.grad` would do the same but loses the memory format.
    """
    grad, x, pad = grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight.shape[-1] // 2
    args = (None, (1, 1), (pad, pad), (1, 1), False, (0, 0), len(weight), (*wanted, False))
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, *args)
    return [grad_x if grad_x is None else grad_x.permute(0, 2, 3, 1), grad_weight]


def _strided(x: Tensor) -> tuple[slice, ...]:
    """Return which outputs of a plain convolution on [B, H, W, C] one with stride 2 has."""
    return slice(None), slice((x.shape[1] - 1) % 2, None, 2), slice((x.shape[2] - 1) % 2, None, 2)


@lru_cache(maxsize=16)
def _taps(h: int, w: int, k: int, stride: int) -> Tensor:
    """Return which tap of a k×k kernel joins an input position to an output position.

    [h*w*h'*w', k*k] of 0 and 1.
    """

    def axis(n: int) -> Tensor:  # [n, n', k]
        outputs = torch.arange(-(-n // stride)) * stride - _same_padding(n, k, stride)[0]
        tap = torch.arange(n)[:, None] - outputs  # [n, n']
        return (tap[..., None] == torch.arange(k)).float()

    return torch.einsum("hak,wbl->hwabkl", axis(h), axis(w)).reshape(-1, k * k)


def fold_batch_norms(encoder: nn.Module) -> nn.Module:
    """Return a copy of a trained encoder for embedding: each batch norm is part of the convolution before it.

    The running statistics of a frozen encoder are constants, so that the norm is a factor and a
    summand per channel. Results are equal up to rounding. The copy cannot be trained.
    """
    folded = copy.deepcopy(encoder).eval().requires_grad_(False)
    layers = [(folded.net, "_conv_stem", "_bn0"), (folded.net, "_conv_head", "_bn1")]
    for block in folded.net._blocks:
        layers += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if block._block_args.expand_ratio != 1:
            layers.append((block, "_expand_conv", "_bn0"))
    for owner, conv, norm in layers:
        conv, bn = getattr(owner, conv), getattr(owner, norm)
        factor = bn.weight / (bn.running_var + bn.eps).sqrt()  # [C]
        conv.weight *= factor[:, None, None, None]
        conv.bias = nn.Parameter(bn.bias - bn.running_mean * factor, requires_grad=False)
        setattr(owner, norm, nn.Identity())
    return folded


# ------------------------------------------------------------------------------------ whole batches


def encode_batches(encoder: nn.Module, batches: list[Tensor], chunk: int = 0) -> list[Tensor]:
    """Return `[encoder(x) for x in batches]` for one or two batches [B, T, M] → [B, dim] each.

    In training on a CPU, two batches are encoded at the same time, forward and backward: two
    threads with a batch each are faster than two threads that share every operation. Each batch is
    normalised by its own statistics, as it is one after the other; the running statistics of
    BatchNorm are then those of the first batch.

    With `chunk`, so many segments are encoded at a time, and the backward pass computes each chunk
    once more: memory for one chunk instead of the batch, the same gradients (GradCache, Gao et al.
    2021, arXiv 2101.06983). BatchNorm then takes the statistics of a chunk.
    """
    if chunk and encoder.training:
        recompute = partial(
            checkpoint,
            encoder,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _frozen_statistics(encoder)),
        )
        return [torch.cat([recompute(part) for part in x.split(chunk)]) for x in batches]
    # with several processes DDP sees only the gradients of its own graph
    if not encoder.training or batches[0].device.type != "cpu" or is_initialized():
        return [encoder(x) for x in batches]
    # without it autograd would see nothing to differentiate
    trigger = torch.zeros((), requires_grad=True)
    return list(_InThreads.apply(trigger, [encoder, _replica(encoder)], batches))


class _InThreads(torch.autograd.Function):
    """Encode each batch by its encoder, forward and backward in threads. The encoders share their weights."""

    @staticmethod
    def forward(ctx, trigger: Tensor, encoders: list[nn.Module], batches: list[Tensor]):
        encode = torch.enable_grad()(lambda job: job[0](job[1]))
        ctx.outputs = list(parallel_map(encode, zip(encoders, batches)))
        return tuple(h.detach() for h in ctx.outputs)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        # each thread adds to the weights' gradients itself; a sum of two does not depend on which
        # comes first
        list(parallel_map(lambda job: job[0].backward(job[1]), zip(ctx.outputs, grads)))
        return None, None, None


# beside the encoders: not part of them
_replicas: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def _replica(encoder: nn.Module) -> nn.Module:
    """Return an encoder with the same weights and running statistics of its own; made at the first call."""
    if encoder not in _replicas:
        shared = {id(p): p for p in encoder.parameters()}
        _replicas[encoder] = copy.deepcopy(encoder, shared)
    return _replicas[encoder].train()


@contextmanager
def _frozen_statistics(encoder: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are."""
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = norms[0].momentum
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:  # torch ends a recomputation by an exception as soon as it has what it needs
        for norm in norms:
            norm.momentum = usual


def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, size: int = 32) -> Tensor:
    """Return `function(x)`, computed `size` rows at a time: an hour of sound has 7,000 segments.

    With 64 rows a CPU's maps leave its cache, and each comes from the system anew: half as fast.
    """
    return torch.cat([function(part) for part in x.split(size)])


def parallel_map(function: Callable, items: Iterable) -> Iterator:
    """Yield `map(function, items)` in order; two calls at a time, each with half of torch's threads.

    With one thread it is `map`. Only a few items are taken in advance. `function` sets its own grad
    mode.
    """
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
    # of each worker, not of all
    return ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(threads,))


if hasattr(os, "register_at_fork"):  # a forked process has no threads: it starts its own
    os.register_at_fork(after_in_child=_workers.cache_clear)


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back, for this whole process: for trainings only.

    Without it a fifth of a training step is spent on handing activations to the system and back,
    page by page. Elsewhere than with glibc it does nothing.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt, m_trim_threshold, m_mmap_max = ctypes.CDLL(None).mallopt, -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
