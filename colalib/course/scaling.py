"""Scaling: constants of this machine, measured in a few seconds. `training.cost` multiplies them."""

from __future__ import annotations

import timeit

import torch

from colalib.cola import Cola
from colalib.course import bench
from colalib.encoder import choose_device
from colalib.fast_cpu import encode_batches
from colalib.settings import PretrainConfig
from colalib.training.cost import Constants


def measure(arch: str = "b0-small", accelerator: str = "auto", batch: int = 64, rounds: int = 3) -> Constants:
    """Return `Constants` of this machine, the best of `rounds` steps and files; takes a few seconds."""
    device = choose_device(accelerator)
    module = Cola(PretrainConfig(arch=arch), 1.0).to(device)
    optimizer = module.configure_optimizers()
    pair = torch.randn(2, batch, 98, 64, device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            loss, _ = module.objective(*encode_batches(module.encoder, list(pair)))
        loss.backward()
        optimizer.step()
        if device.type != "cpu":
            torch.accelerator.synchronize()

    step()
    seconds = min(timeit.repeat(step, number=1, repeat=rounds))
    weights = 16 * sum(p.numel() for p in module.parameters()) / 1e6
    prepare = bench.preparing_parts(rounds=rounds)["prepare"] / 30
    return Constants(arch, device.type, batch / seconds, weights, bench.activations(arch), prepare)
