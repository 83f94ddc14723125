"""Features of clips: from log-mel frames to one vector per clip.

All ways from sound to an embedding lead through `embed_frames`. `feature_source` says what features come
from: a trained encoder, a random one, or mel statistics. Features go to `probes`, maps and `comparison`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from colalib.data.clips import Clips, pretraining_clips
from colalib.data.segments import EVAL_HOP_FRAMES, clip_batches, random_crop, segment_std
from colalib.data.splits import Split
from colalib.data.store import MelStore
from colalib.data.streams import stream
from colalib.encoder import Encoder, batch_norms, choose_device, pool_segments
from colalib.fast_cpu import in_batches, parallel_map
from colalib.files import atomic, fingerprint
from colalib.training.runs import Run, open_run

# What `embed_frames` computes: part of the key of kept features, so that these are not used after a change.
READOUT = "mean and standard deviation of every block in four ranges of bands, over the whole clip"


def embed_frames(
    encoder: Encoder,
    clips: Iterable[np.ndarray],
    silence: float,
    total: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return clip embeddings, float32 [n, d], from the log-mel frames [T, M] of each clip.

    `Encoder.block_features` of segments of 98 frames every 49, joined per clip by `pool_segments`. `silence`
    pads clips shorter than a segment. Computes on the device where the encoder is. `total` is the number of
    clips, for the progress bar.
    """
    encoder = encoder.eval()
    device = next(encoder.parameters()).device

    @torch.no_grad()
    def embed_batch(batch: tuple[Tensor, Tensor]) -> np.ndarray:
        x, clip_index = batch  # [S, T, M], [S]
        features = in_batches(encoder.block_features, x.to(device)).cpu()  # [S, d]
        n = int(clip_index[-1]) + 1
        return np.stack([pool_segments(features[clip_index == i]).numpy() for i in range(n)])  # [n, d]

    vectors = []
    with tqdm(total=total, desc="embed", unit="clip", disable=not progress, delay=1) as bar:
        for part in parallel_map(embed_batch, clip_batches(clips, EVAL_HOP_FRAMES, silence)):
            vectors.append(part)
            bar.update(len(part))
    return np.concatenate(vectors)


def mel_stats(clips: Iterable[np.ndarray]) -> np.ndarray:
    """Return the simplest features, float32 [n, 2 M]: mean and standard deviation over time of each band."""
    clips = (frames.astype(np.float32) for frames in clips)  # [T, M]
    return np.stack([np.concatenate([x.mean(axis=0), x.std(axis=0)]) for x in clips])


def calibrate_batchnorm(encoder: Encoder, clips: Clips, seed: int = 0, batches: int = 20) -> Encoder:
    """Give an untrained encoder the normalisation that training would have given it, and return it.

    Sets `std` and BatchNorm's running statistics, averaged over `batches` batches of 64 random segments.
    Without it a random encoder is a straw man.
    """
    rng = stream("calibration", seed)
    encoder.std.fill_(segment_std(clips, seed))
    norms = batch_norms(encoder)
    usual = norms[0].momentum
    encoder.train()
    with torch.no_grad():
        for batch in range(batches):
            for norm in norms:
                norm.momentum = 1 / (batch + 1)  # a plain average over the batches
            chosen = rng.integers(len(clips), size=64)
            crops = [random_crop(clips.frames(i), rng, silence=clips.mel.silence) for i in chosen]
            encoder(torch.from_numpy(np.stack(crops)))
    for norm in norms:
        norm.momentum = usual
    return encoder.eval()


class MelStatsSource:
    """Mel statistics as a source of features."""

    name = "mel-stats"
    mel = None  # any mel settings will do

    def of_clips(self, clips: Iterable[np.ndarray], total: int | None = None) -> np.ndarray:
        """Return features [n, 2 M] of clips given as log-mel frames [T, M]."""
        return mel_stats(clips)

    def of_store(self, store: MelStore, keep: Path | None = None) -> np.ndarray:
        """Return features [n, 2 M] of all clips of a store."""
        return mel_stats(Clips.of_store(store))

    def overlap(self, store: MelStore, splits: list[Split]) -> int:
        """Return 0: nothing was trained."""
        return 0


class EncoderSource:
    """A frozen encoder as a source of features: that of a finished `run`, or random weights.

    A random encoder (`run` is None) has seeded weights of `arch`, calibrated on clips that pre-training could
    have seen. The encoder is loaded when it is first needed.
    """

    def __init__(
        self,
        run: Run | None,
        arch: str = "b0-small",
        seed: int = 0,
        accelerator: str = "auto",
        progress: bool = False,
    ):
        self.run = run
        self.name = run.name if run else "random"
        self.mel = run.mel if run else None
        self.arch = run.description["arch"] if run else arch
        self.seed = seed
        self.device = choose_device(accelerator)
        self.progress = progress

    def encoder(self, calibration: Clips | None = None) -> Encoder:
        """Return the encoder; a random one is calibrated on the clips `calibration`."""
        if self.run:
            return self.run.load_encoder().to(self.device)
        torch.manual_seed(self.seed)
        return calibrate_batchnorm(Encoder(self.arch), calibration, self.seed).to(self.device)

    def of_clips(
        self,
        clips: Iterable[np.ndarray],
        silence: float,
        total: int | None = None,
        calibration: Clips | None = None,
    ) -> np.ndarray:
        """Return embeddings [n, d] of clips given as log-mel frames [T, M]."""
        return embed_frames(self.encoder(calibration), clips, silence, total, self.progress)

    def of_store(self, store: MelStore, keep: Path | None = None) -> np.ndarray:
        """Return embeddings [n, d] of all clips of a store.

        `keep`: a folder where they are kept and found again, by clips, weights and read-out.
        """
        if self.run:
            self.run.check_mel(store)
        weights = self.run.weights_hash if self.run else f"{self.arch} {self.seed}"
        key = [*store.ids, *shard_states(store), repr(store.mel), weights, READOUT]
        file = keep and Path(keep) / f"{self.name}-{fingerprint(key)}.npy"
        if file and file.exists():
            with suppress(ValueError, EOFError):  # damaged: computed again
                features = np.load(file)
                if features.ndim == 2 and len(features) == len(store):
                    return features
        clips = Clips.of_store(store)
        calibration = None if self.run else pretraining_clips([store]) or clips
        features = self.of_clips(clips, store.mel.silence, len(clips), calibration)
        if file:
            with atomic(file) as target:
                np.save(target, features)
        return features

    def overlap(self, store: MelStore, splits: list[Split]) -> int:
        """Return how many test clips of `splits` the encoder saw in pre-training."""
        return self.run.overlap(store, splits) if self.run else 0


def shard_states(store: MelStore) -> list[str]:
    """Return name, size and time of each file of frames: they change when a store is made anew."""
    files = sorted(store.path.glob("frames-*.npy"))
    return [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]


def feature_source(
    encoder: str | Path,
    arch: str = "b0-small",
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = False,
) -> MelStatsSource | EncoderSource:
    """Return what features come from: "mel-stats", "random" (of `arch`, `seed`), "default", or a run folder.

    Raises `UserError` if there is no such run or device.
    """
    if str(encoder) == "mel-stats":
        return MelStatsSource()
    run = None if str(encoder) == "random" else open_run(encoder)
    return EncoderSource(run, arch, seed, accelerator, progress)
