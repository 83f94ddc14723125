"""An encoder of others to put beside ours: `--encoder colalib.peers`.

Google's speech embedding (Lin et al. 2020, arXiv 2002.01322): 0.33 million weights, trained on
speech, as it comes with openwakeword (`pip install colalib[peers]`). This file shows how little an
encoder needs for `probe`, `compare --frozen` and `embed`: the calls of the HEAR interface.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from colalib.errors import UserError

HOP = 160  # samples; openwakeword takes whole frames of 10 ms only
MIN_SAMPLES = 80 * HOP  # of one embedding: 76 frames, and what the windows' ends take


class SpeechEmbedding:
    """The speech embedding: 16 kHz in, 96 numbers every 80 ms out."""

    sample_rate = 16_000  # Hz
    timestamp_embedding_size = 96
    scene_embedding_size = 192

    def __init__(self):
        try:
            from openwakeword.utils import AudioFeatures
        except ImportError:
            raise UserError(
                "the speech embedding needs another package: pip install 'colalib[peers]'"
            ) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnxruntime says that there is no CUDA
            self.features = AudioFeatures()


def load_model(model_file_path: str = "") -> SpeechEmbedding:
    """Return the speech embedding; it has one set of weights. Raises `UserError` if it is not installed."""
    return SpeechEmbedding()


def get_scene_embeddings(audio: Tensor, model: SpeechEmbedding) -> Tensor:
    """Return mean and standard deviation over time: [n, samples] → [n, 192] float32.

    `audio` is mono at 16 kHz, in [-1, 1]. Silence fills the last frame, and clips up to 0.8 s.
    """
    n = audio.shape[1]
    samples = np.pad(audio.cpu().numpy(), ((0, 0), (0, max(-n % HOP, MIN_SAMPLES - n))))
    samples = (samples * 32767).clip(-32768, 32767).astype(np.int16)
    frames = torch.from_numpy(model.features.embed_clips(samples))  # [n, t, 96]
    return torch.cat([frames.mean(dim=1), frames.std(dim=1, correction=0)], dim=1)
