"""Encoders of others behind the HEAR interface: the same probes, embeddings and messages as ours."""

import shutil
import sys

import numpy as np
import pytest

import colalib
from colalib import evaluation
from colalib.data.corpora import load
from colalib.data.store import build
from colalib.errors import UserError
from colalib.evaluation.sources import feature_source
from colalib.settings import FinetuneConfig

LOUDNESS = """
import torch

class Model(torch.nn.Module):
    sample_rate, scene_embedding_size, timestamp_embedding_size = 22050, 3, 3

def load_model(path=""):
    if path == "missing.pt":
        raise RuntimeError("no such weights")
    return Model()

def get_scene_embeddings(audio, model):
    if audio.shape[1] < 10_000:
        raise IndexError("too short for me")
    if audio.abs().amax() > 1.5:
        return torch.full((1, 3), torch.nan)
    return torch.stack([audio.mean(1), audio.std(1), audio.abs().amax(1)], 1)
"""


@pytest.fixture
def loudness(tmp_path, monkeypatch):
    """A module with the interface that can be imported under this name."""
    (tmp_path / "loudness_encoder.py").write_text(LOUDNESS)
    monkeypatch.syspath_prepend(tmp_path)
    return "loudness_encoder"


def test_our_own_module_gives_our_embeddings(folder, tmp_path):
    sounds = tmp_path / "few"
    sounds.mkdir()
    for file in sorted(folder.rglob("*.flac"))[:6]:
        shutil.copy(file, sounds)
    few = build(load(sounds), tmp_path / "s", jobs=1, progress=False)
    ours, theirs = feature_source("default"), feature_source("colalib.hear")
    expected = ours.of_store(few)
    assert np.allclose(theirs.of_store(few), expected, rtol=1e-3, atol=1e-3)
    assert np.allclose(colalib.embed(sounds, "colalib.hear").vectors, expected, rtol=1e-3, atol=1e-3)


def test_a_module_is_probed_compared_and_kept(mel_store, loudness, tmp_path):
    results, _ = evaluation.probe(mel_store, loudness, progress=False)
    assert results["results"][0]["model"] == loudness
    assert results["results"][0]["pretrain_overlap"] is None, "nobody knows"
    table, _ = evaluation.compare(mel_store, loudness, tmp_path / "out", seeds=1, progress=False)
    overlap = {row["model"]: row["pretrain_overlap"] for row in table["results"]}
    assert overlap == {"mel-stats": 0, "random": 0, "probe": None, "kNN": None}
    (kept,) = (tmp_path / "out" / "features").glob(f"{loudness}-*.npy")
    assert np.load(kept).shape == (96, 3)


def test_a_module_embeds_samples_at_its_own_rate(loudness):
    tone = np.sin(np.arange(44_100) / 10).astype(np.float32)
    (vector,) = colalib.embed((tone, 44_100), loudness).vectors
    assert vector[1] == pytest.approx(np.sqrt(0.5), abs=0.02)


def test_what_is_wrong_with_a_module_is_said(mel_store, loudness, tmp_path):
    with pytest.raises(UserError, match="json does not have the HEAR interface: it lacks load_model"):
        feature_source("json")
    with pytest.raises(UserError, match="cannot be loaded: no such weights"):
        feature_source(f"{loudness}:missing.pt")
    with pytest.raises(UserError, match="add --frozen"):
        finetune = FinetuneConfig(steps=1)
        evaluation.compare(mel_store, loudness, tmp_path, finetune=finetune, progress=False)


@pytest.mark.parametrize(
    ("samples", "words"), [(0.5 * np.ones(8000), "cannot embed a clip: too short"), (2.0, "NaN")]
)
def test_what_goes_wrong_in_a_module_is_said(loudness, samples, words):
    tone = samples * np.sin(np.arange(np.size(samples) if np.ndim(samples) else 44_100) / 10)
    with pytest.raises(UserError, match=f"{loudness}.*{words}"):
        colalib.embed((tone, 22_050), loudness)


def test_features_of_a_module_whose_code_or_weights_changed_are_not_used_again(
    mel_store, loudness, tmp_path, monkeypatch
):
    weights = tmp_path / "weights.pt"
    for content in ("one", "three"):
        weights.write_text(content)
        feature_source(f"{loudness}:{weights}").of_store(mel_store, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_module_needs_the_audio_of_a_store(folder, loudness, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    store = build(load(copy), tmp_path / "store", progress=False)
    assert feature_source(loudness).of_store(store).shape == (96, 3)
    shutil.rmtree(copy)
    with pytest.raises(UserError, match="is no longer there: bring it back, or prepare it again"):
        feature_source(loudness).of_store(store)


def test_the_speech_embedding_stands_beside_ours(mel_store, monkeypatch):
    pytest.importorskip("openwakeword")
    source = feature_source("colalib.peers")
    rng = np.random.default_rng(0)
    waves = [rng.normal(0, 0.1, n).astype(np.float32) for n in (800, 16_001, 159_999)]
    features = source.of_clips(waves)
    assert features.shape == (3, source.model.scene_embedding_size)
    assert not np.allclose(features[1], features[2], rtol=0.05), "the mean is over all of a clip"
    results, _ = evaluation.probe(mel_store, "colalib.peers", progress=False)
    assert results["accuracies"][0] > 0.8, "tones of three octaves"
    monkeypatch.setitem(sys.modules, "openwakeword.utils", None)
    with pytest.raises(UserError, match=r"pip install 'colalib\[peers\]'"):
        feature_source("colalib.peers")
