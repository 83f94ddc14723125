"""Cost: what a larger project would take, from constants measured on one machine."""

from __future__ import annotations

from dataclasses import dataclass

from colalib.data.audio import MelConfig

# bytes a second of FMA-large's files (its archive's size, data/README.md)
MP3 = 93 * 2**30 / (106_574 * 30)
# clips and seconds a clip (FMA: arXiv 1612.01840, table 2)
CORPORA = {"fma_small": (8_000, 30.0), "fma_medium": (25_000, 30.0), "fma_large": (106_574, 30.0)}


@dataclass(frozen=True)
class Constants:
    """What one architecture takes on one machine.

    `pairs_per_s`: pairs per second that one device trains on. `weights_mb`: memory of the weights with their
    gradients and AdamW's two averages. `segment_mb`: memory that one segment keeps for the backward pass.
    `prepare_s`: seconds that one core takes to prepare a second of audio (stereo MP3, 44.1 kHz).
    """

    arch: str
    device: str
    pairs_per_s: float
    weights_mb: float
    segment_mb: float
    prepare_s: float


def cost(
    constants: Constants,
    clips: int,
    seconds: float = 30.0,
    epochs: float = 100,
    batch: int = 1024,
    devices: int = 1,
    cores: int = 2,
    speed: float = 1.0,
    chunk: int = 0,
) -> dict[str, float]:
    """Return what preparing `clips` clips and pre-training on them takes: hours, disk and memory (GB).

    `cores` cores prepare. `devices` devices, each `speed` times as fast as the measured one, train for
    `epochs` passes in batches of `batch` pairs. Devices are taken to share the work without loss, and the
    loader to keep up. `chunk` costs another forward pass, about a third of the time. A pair is one pass over
    a clip.
    """
    config, batch = MelConfig(), min(batch, clips)
    frames = 1 + seconds * config.sample_rate / config.hop
    share = 2 * batch / devices  # segments of one device
    rate = constants.pairs_per_s * speed * devices / (4 / 3 if chunk else 1)
    return {
        "audio as MP3 (GB)": clips * seconds * MP3 / 1e9,
        "store (GB)": clips * frames * config.n_mels * 2 / 1e9,
        "preparing (h)": clips * seconds * constants.prepare_s / cores / 3600,
        "steps": epochs * (clips // batch),
        "pre-training (h)": epochs * clips / rate / 3600,
        "memory of a device (GB)": (constants.weights_mb + min(share, chunk or share) * constants.segment_mb)
        / 1e3,
    }
