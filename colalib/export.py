"""Export an encoder as an ONNX file, for places without torch: log-mel segments in, block features and h out.

The file carries its mel settings. `data.audio.log_mel` makes the frames, without torch; to cut them into
segments and to pool the results, write `data.segments.split_segments` and `encoder.pool_segments` in numpy.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from colalib.data.segments import SEGMENT_FRAMES
from colalib.encoder import Encoder
from colalib.errors import UserError
from colalib.files import atomic, check_ours
from colalib.training.runs import open_run

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # largest difference from torch, as a share of the largest value


class Outputs(nn.Module):
    """Segments [S, 98, M] → (block features [S, d], h [S, dim])."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, segments: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.block_features(segments), self.encoder(segments)


def to_onnx(encoder: str | Path, out: Path | str) -> float:
    """Write the encoder of a run folder (or `default`) to the ONNX file `out`, and check it with onnxruntime.

    Returns the largest difference from torch, as a share of the largest value. Input `segments` [S,
    98, M] float32; outputs `readout` [S, d], the block features, and `h` [S, dim]. A clip's
    embedding is made by `encoder.pool_segments` of `readout`, then `evaluation.features.mel_profile`.
    Raises `UserError` if a package is missing, `out` is another program's file, or the difference is above
    1e-3, and then leaves it as it was.
    """
    if missing := [name for name in NEEDED if not find_spec(name)]:
        raise UserError(f"export needs {', '.join(missing)}: pip install {' '.join(missing)}")
    import onnxruntime

    run, out = open_run(encoder), Path(out)
    check_ours(out, b'"sample_rate"')  # of the mel settings, at its end
    model = Outputs(run.load_encoder()).eval()
    generator = torch.Generator().manual_seed(0)
    # about the range of log-mel values
    x = 2 * torch.randn(3, SEGMENT_FRAMES, run.mel.n_mels, generator=generator) - 6
    # operators of torchvision that are not there
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        exported = torch.onnx.export(
            model,
            (x,),
            dynamo=True,
            dynamic_shapes={"segments": {0: torch.export.Dim("S")}},
            input_names=["segments"],
            output_names=["readout", "h"],
            verbose=False,
        )
    mel = json.dumps(dataclasses.asdict(run.mel))
    exported.model.metadata_props.update(mel=mel, encoder=run.name, weights=run.weights_hash)
    content = exported.model_proto.SerializeToString()
    x = torch.cat([x, x[:2].flip(0)])  # another number of segments than at export
    with torch.no_grad():
        expected = [y.numpy() for y in model(x)]
    outputs = onnxruntime.InferenceSession(content).run(None, {"segments": x.numpy()})
    worst = max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(expected, outputs))
    if not worst < TOLERANCE:
        raise UserError(f"{out} not written: onnxruntime's results are off by {worst:.1e}")
    with atomic(out) as file:
        file.write(content)
    return float(worst)
