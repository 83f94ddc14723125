"""The exported encoder computes what torch computes."""

import json

import numpy as np
import pytest
import torch
from helpers import call

from colalib.errors import UserError
from colalib.export import to_onnx
from colalib.training.runs import open_run


@pytest.mark.slow
def test_an_export_from_the_shell_equals_torch(tmp_path, capsys):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    out = tmp_path / "encoder.onnx"
    code, text, error = call(capsys, "export", "--encoder", "default", "--out", out)
    assert code == 0, error
    assert text.startswith(f"{out}: written")
    assert float(text.split()[-1]) < 1e-4  # the difference that it names
    session = runtime.InferenceSession(out)
    x = torch.randn(7, 98, 64) - 5
    readout, h = session.run(None, {"segments": x.numpy()})
    encoder = open_run("default").load_encoder()
    with torch.no_grad():
        assert np.allclose(readout, encoder.block_features(x), atol=1e-3)
        assert np.allclose(h, encoder(x), atol=1e-3)
    assert call(capsys, "export", "--encoder", "default", "--out", out)[0] == 0, "ours is written anew"
    properties = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert json.loads(properties["mel"])["n_mels"] == 64
    assert properties["encoder"] == "default"


def test_a_model_of_another_program_stays(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "mine.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    with pytest.raises(UserError, match="not written by colalib"):
        to_onnx("default", tmp_path / "mine.onnx")


def test_what_is_no_run_cannot_be_exported(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        to_onnx(tmp_path, tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()
