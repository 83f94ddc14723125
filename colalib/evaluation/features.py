"""Features of clips: from log-mel frames to one vector per clip.

All ways from sound to an embedding of ours lead through `embed_frames`. `sources` calls it for stores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from colalib.data.audio import MelConfig
from colalib.data.clips import Clips
from colalib.data.segments import EVAL_HOP_FRAMES, clip_batches, random_crops, segment_std
from colalib.data.streams import stream
from colalib.encoder import Encoder, pool_segments
from colalib.fast_cpu import fold_batch_norms, in_batches, parallel_map

# What `embed_frames` computes: part of the key of kept features, so that these are not used after a change.
READOUT = "block features in four ranges of bands over the whole clip, 11 numbers per mel band"
ORDER_SECONDS = 3.0  # in longer clips, what came first is a matter of where the recording was cut


def embed_frames(
    encoder: Encoder,
    clips: Iterable[np.ndarray],
    mel: MelConfig,
    total: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return clip embeddings, float32 [n, d], from the log-mel frames [T, M] of each clip.

    `Encoder.block_features` of segments of 98 frames every 49, joined per clip by `pool_segments`,
    then `mel_profile`. Clips shorter than a segment are padded with silence. Computes on the device
    where the encoder is. `total` is the number of clips, for the progress bar.
    """
    device = next(encoder.parameters()).device
    encoder = fold_batch_norms(encoder)

    @torch.no_grad()
    def embed_batch(batch: tuple[Tensor, Tensor]) -> np.ndarray:
        x, clip_index = batch  # [S, T, M], [S]
        features = in_batches(encoder.block_features, x.to(device)).cpu()  # [S, d]
        n = int(clip_index[-1]) + 1
        return np.stack([pool_segments(features[clip_index == i]).numpy() for i in range(n)])  # [n, d]

    profiles = deque()  # of clips whose blocks are still to come

    def profiled() -> Iterator[np.ndarray]:
        for frames in clips:
            profiles.append(mel_profile(frames, mel))
            yield frames

    vectors = []
    with tqdm(total=total, desc="embed", unit="clip", disable=not progress, delay=1) as bar:
        for part in parallel_map(embed_batch, clip_batches(profiled(), EVAL_HOP_FRAMES, mel.silence)):
            vectors += [np.concatenate([blocks, profiles.popleft()]) for blocks in part]
            bar.update(len(part))
    return np.stack(vectors)


def mel_profile(frames: np.ndarray, mel: MelConfig) -> np.ndarray:
    """Return what the mel bands themselves tell about a clip, float32 [11 M], from its frames [T, M].

    Per band: mean, three quantiles and maximum (all without the clip's mean level), deviation, skew,
    how much it changes from frame to frame and within 40 ms, and for short clips the order of events:
    the first two cosines over time, which fade out between 2 and 3 seconds.
    """
    x = frames.astype(np.float32)
    mean, deviation = mean_and_deviation(x)
    level = mean.mean()
    skew = (((x - mean) / (deviation + 1e-3)) ** 3).mean(axis=0)
    change = np.abs(np.diff(x, axis=0)).mean(axis=0) if len(x) > 1 else 0 * mean
    later = (x[4:] - x[:-4]).std(axis=0) if len(x) > 4 else 0 * mean  # frames are 10 ms apart
    ranked = np.sort(x, axis=0)[[int(q * (len(x) - 1)) for q in (0.1, 0.5, 0.9, 1)]]  # [4, M]
    angles = np.pi * np.outer([1, 2], (np.arange(len(x)) + 0.5) / len(x))  # [2, T]
    order = np.cos(angles) @ x / len(x) * np.clip(ORDER_SECONDS - mel.seconds(len(x)), 0, 1)  # [2, M]
    columns = [mean - level, *(ranked - level), deviation, skew, change, later, *order]
    return np.concatenate(columns).astype(np.float32)


def mel_stats(clips: Iterable[np.ndarray]) -> np.ndarray:
    """Return the simplest features, float32 [n, 2 M]: mean and standard deviation over time of each band."""
    return np.stack([np.concatenate(mean_and_deviation(frames.astype(np.float32))) for frames in clips])


def mean_and_deviation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over time of each band, [T, M] → float32 [M] each.

    Summed in float64: in float32 an hour at the floor would deviate.
    """
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    variance = np.square(x - mean).mean(axis=0, dtype=np.float64)
    return mean, np.sqrt(variance).astype(np.float32)


def calibrate_batchnorm(encoder: Encoder, clips: Clips, seed: int = 0) -> Encoder:
    """Give an untrained encoder the normalisation that training would have given it, and return it.

    Sets `std` and BatchNorm's running statistics, averaged over 20 batches of 64 random segments. Without it
    a random encoder is a straw man.
    """
    rng = stream("calibration", seed)
    encoder.std.fill_(segment_std(clips, seed))
    drawn = (rng.integers(len(clips), size=64) for _ in range(20))
    update_bn((torch.from_numpy(random_crops(clips, chosen, rng)) for chosen in drawn), encoder)
    return encoder.eval()
