"""The rules of the HEAR API, and that its embeddings are ours."""

import numpy as np
import pytest
import torch

from colalib import evaluation, hear
from colalib.data.audio import MelConfig, load_audio, log_mel


@pytest.fixture(scope="module")
def model():
    return hear.load_model()


def test_the_model_says_its_sizes(model):
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16_000, 22_050, 44_100, 48_000)
    assert isinstance(model.scene_embedding_size, int)
    assert isinstance(model.timestamp_embedding_size, int)


@pytest.mark.parametrize("seconds", [0.1, 0.98, 2.5])
def test_scenes_and_time_stamps(model, seconds):
    audio = 0.1 * torch.randn(3, int(seconds * model.sample_rate))
    scenes = hear.get_scene_embeddings(audio, model)
    assert scenes.shape == (3, model.scene_embedding_size)
    assert scenes.dtype == torch.float32
    assert scenes.isfinite().all()
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (*times.shape, model.timestamp_embedding_size)
    assert embeddings.dtype == torch.float32
    assert embeddings.isfinite().all()
    assert len(times) == 3
    assert times[0, 0] == 0
    assert 1000 * seconds - 60 < times[0, -1] <= 1000 * seconds
    gaps = times.diff(dim=1)
    assert ((gaps - gaps.mean()).abs() < 1e-3).all()
    assert (gaps <= 50).all()


def test_scenes_are_our_embeddings(model, mel_store, folder):
    audio = torch.from_numpy(load_audio(folder / mel_store.clips["path"][0]))[None]
    ours = evaluation.embed_frames(model.encoder, [mel_store.frames(0)], model.mel)
    # exact: the audio takes the same way through float16 as a store's frames do
    assert np.array_equal(hear.get_scene_embeddings(audio, model).numpy(), ours)


def test_a_time_stamp_hears_what_is_around_it(model):
    audio = torch.zeros(1, 5 * model.sample_rate)
    audio[:, 3 * model.sample_rate :] = 0.1 * torch.randn(2 * model.sample_rate)
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    still = embeddings[0, times[0] < 2500]
    assert torch.allclose(still, still[:1].expand_as(still), atol=1e-4)
    assert (embeddings[0, times[0] == 3000] - still[0]).abs().max() > 0.1
    frames = log_mel(audio[0].numpy(), MelConfig()).astype(np.float16)
    around = model(frames[None, 300 - 49 : 300 + 49])[0]
    assert torch.allclose(around, embeddings[0, times[0] == 3000][0], atol=1e-4)


@pytest.mark.parametrize(
    "audio", [torch.zeros(16_000), torch.zeros(0, 16_000), torch.zeros(1, 16_000, dtype=torch.int16)]
)
def test_other_shapes_are_refused(model, audio):
    with pytest.raises(ValueError, match="shape"):
        hear.get_scene_embeddings(audio, model)
