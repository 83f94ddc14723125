"""Our encoders behind the HEAR API, so that public benchmarks can judge them.

HEAR: Turian et al. 2022, arXiv 2203.03022; https://hearbenchmark.com/hear-api.html. For example:
`python -m heareval.embeddings.runner colalib.hear --model runs/mine --tasks-dir tasks`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from colalib.data.audio import log_mel
from colalib.data.segments import SEGMENT_FRAMES, split_segments
from colalib.data.store import to_stored
from colalib.evaluation.features import embed_frames
from colalib.fast_cpu import in_batches
from colalib.training.runs import open_run

TIMESTAMP_HOP_MS = 50  # the longest that the API advises


class Model(nn.Module):
    """An encoder with what the API asks for: `sample_rate` in Hz, and the sizes of its embeddings."""

    def __init__(self, name: str):
        super().__init__()
        run = open_run(name)
        self.encoder = run.load_encoder()
        self.mel = run.mel
        self.sample_rate = self.mel.sample_rate
        silent = np.zeros((SEGMENT_FRAMES, self.mel.n_mels), np.float32)
        self.timestamp_embedding_size = self(silent[None]).shape[1]
        self.scene_embedding_size = embed_frames(self.encoder, [silent], self.mel).shape[1]

    @torch.no_grad()
    def forward(self, segments: np.ndarray) -> Tensor:
        """Return the block features of log-mel segments: [S, 98, M] → [S, d] float32."""
        device = next(self.encoder.parameters()).device
        return in_batches(self.encoder.eval().block_features, torch.from_numpy(segments).float().to(device))


def load_model(model_file_path: str = "") -> Model:
    """Return the encoder of a finished run folder; without a path the one that comes with the package.

    Raises `UserError` if there is no such run.
    """
    return Model(model_file_path or "default")


def get_scene_embeddings(audio: Tensor, model: Model) -> Tensor:
    """Return the embeddings of clips, as `evaluation.embed` gives them: [n, samples] → [n, d] float32.

    `audio` is mono at `model.sample_rate`, in [-1, 1]. Raises `ValueError` for another shape.
    """
    vectors = embed_frames(model.encoder, _log_mels(audio, model), model.mel)
    return torch.from_numpy(vectors).to(next(model.parameters()).device)


def get_timestamp_embeddings(audio: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Return embeddings from 0, at most 50 ms apart: ([n, t, d] float32, their times in ms [n, t]).

    Each comes from the 98 frames around its time, with silence beyond the ends. `audio` [n,
    samples] is mono at `model.sample_rate`, in [-1, 1]. Raises `ValueError` for another shape.
    """
    half = SEGMENT_FRAMES // 2
    step = max(TIMESTAMP_HOP_MS * model.sample_rate // (1000 * model.mel.hop), 1)  # frames
    embeddings = []
    for log_mels in _log_mels(audio, model):
        # one frame less behind: the last segment begins at the last frame
        padded = np.pad(log_mels, ((half, half - 1), (0, 0)), constant_values=model.mel.silence)
        embeddings.append(model(split_segments(padded, step)))
    embeddings = torch.stack(embeddings)
    times = torch.arange(embeddings.shape[1], dtype=torch.float32) * 1000 * model.mel.seconds(step)
    return embeddings, times.to(embeddings.device).repeat(len(audio), 1)


def _log_mels(audio: Tensor, model: Model) -> list[np.ndarray]:
    """Return the log-mel frames of each clip, as a store would keep them."""
    if audio.ndim != 2 or not len(audio) or not audio.is_floating_point():
        raise ValueError(f"expected floats of shape [n, samples], not {audio.dtype} of {list(audio.shape)}")
    waves = audio.detach().cpu().numpy().astype(np.float32)
    return [to_stored(log_mel(wave, model.mel)) for wave in waves]
