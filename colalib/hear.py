"""Our encoders behind the HEAR API (Turian et al. 2022, arXiv 2203.03022; https://hearbenchmark.com/hear-api.html), so that
public benchmarks can judge them: `python -m heareval.embeddings.runner colalib.hear --model runs/mine --tasks-dir tasks`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from colalib.audio import MelConfig, log_mel
from colalib.evaluation import HOP
from colalib.models import in_parts, whole_clip
from colalib.runs import load_trained
from colalib.segments import FRAMES, cut

EVERY = 50  # milliseconds between time stamps


class Model(nn.Module):
    """An encoder with what the API asks for: `sample_rate` in Hz, and the sizes of its embeddings."""

    def __init__(self, name: str):
        super().__init__()
        loaded = load_trained(name)
        self.encoder, self.mel = loaded.encoder, MelConfig(**(loaded.mel or {}))
        self.sample_rate = self.mel.sample_rate
        size = self.encoder.readout(torch.zeros(1, FRAMES, self.mel.n_mels)).shape[1]
        self.scene_embedding_size = self.timestamp_embedding_size = size

    @torch.no_grad()
    def forward(self, segments: np.ndarray) -> Tensor:
        """Log-mel segments `[S, 98, M]` → `[S, d]` float32."""
        device = next(self.encoder.parameters()).device
        return in_parts(self.encoder.eval().readout, torch.from_numpy(segments).float().to(device))


def load_model(model_file_path: str = "") -> Model:
    """The encoder of a finished run folder; without a path the one that comes with the package. Raises `UserError`."""
    return Model(model_file_path or "default")


def get_scene_embeddings(audio: Tensor, model: Model) -> Tensor:
    """Mono audio `[n, samples]` at `model.sample_rate`, in [-1, 1] → clip embeddings `[n, d]` float32 over segments of
    98 frames every 49, as `evaluation.embed` gives them. Raises `ValueError` for another shape."""
    return torch.stack(
        [whole_clip(model(cut(log_mel(wave, model.mel), HOP, silence=model.mel.silence))) for wave in _waves(audio)]
    )


def get_timestamp_embeddings(audio: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Mono audio `[n, samples]` at `model.sample_rate`, in [-1, 1] → (embeddings `[n, t, d]` float32, their times in ms
    `[n, t]`): every 50 ms from 0, each of the 98 frames around its time, with silence beyond the ends. Raises `ValueError` for
    another shape."""
    found, half = [], FRAMES // 2
    step = EVERY * model.sample_rate // (1000 * model.mel.hop)  # frames
    for wave in _waves(audio):
        frames = np.pad(log_mel(wave, model.mel), ((half, half), (0, 0)), constant_values=model.mel.silence)
        starts = range(0, len(frames) - 2 * half, step)
        found.append(model(np.stack([frames[s : s + FRAMES] for s in starts])))
    embeddings = torch.stack(found)
    times = torch.arange(embeddings.shape[1], dtype=torch.float32) * EVERY
    return embeddings, times.to(embeddings.device).repeat(len(audio), 1)


def _waves(audio: Tensor) -> np.ndarray:
    if audio.ndim != 2 or not len(audio) or not audio.is_floating_point():
        raise ValueError(f"floats of shape [n, samples] are asked for, not {audio.dtype} of {list(audio.shape)}")
    return audio.detach().cpu().numpy().astype(np.float32)
