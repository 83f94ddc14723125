"""An encoder as an ONNX file, for places without torch: log-mel segments in, read-out and h out.

The file carries its mel settings; `audio.log_mel` and `segments.cut` (numpy only) make its input.
"""

from __future__ import annotations

import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from colalib.audio import MelConfig
from colalib.errors import UserError
from colalib.files import atomic
from colalib.models import Encoder
from colalib.runs import load_trained
from colalib.segments import FRAMES

NEEDED = ("onnx", "onnxscript", "onnxruntime")


class Outputs(nn.Module):
    """Segments [S, 98, M] → (read-out [S, d], h [S, dim])."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Segments [S, 98, M] → (readout [S, d], h [S, dim])."""
        return self.encoder.readout(segments), self.encoder(segments)


def to_onnx(encoder: str | Path, out: Path | str) -> float:
    """Write the encoder of a run folder (or `default`) to the ONNX file `out`, and run it: returns the largest difference
    from torch, as a share of the largest value. Input `segments` [S, 98, M] float32; outputs `readout` [S, d], of which
    `models.whole_clip` makes a clip's embedding, and `h` [S, dim]. Raises `UserError` if a package is missing or the difference
    is above 1e-3, and then leaves no file."""
    if missing := [name for name in NEEDED if not find_spec(name)]:
        raise UserError(f"export needs {', '.join(missing)}: pip install {' '.join(missing)}")
    import onnxruntime

    loaded, out = load_trained(encoder), Path(out)
    mel = loaded.mel or {}
    model = Outputs(loaded.encoder).eval()
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(3, FRAMES, MelConfig(**mel).n_mels, generator=generator) - 6
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # operators of torchvision that are not there
    names = {"input_names": ["segments"], "output_names": ["readout", "h"]}
    shapes = {"segments": {0: torch.export.Dim("S")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        made = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    made.model.metadata_props.update(mel=json.dumps(mel), encoder=loaded.name, weights=loaded.weights)
    content = made.model_proto.SerializeToString()
    x = torch.cat([x, x[:2].flip(0)])  # another number of segments than at export
    with torch.no_grad():
        expected = [y.numpy() for y in model(x)]
    got = onnxruntime.InferenceSession(content).run(None, {"segments": x.numpy()})
    worst = max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(expected, got))
    if not worst < 1e-3:
        raise UserError(f"{out} not written: onnxruntime's results are off by {worst:.1e}")
    with atomic(out) as file:
        file.write(content)
    return float(worst)
