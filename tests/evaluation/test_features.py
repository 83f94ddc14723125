"""Features: against a calculation by hand, and kept for the next time."""

import dataclasses
import os

import numpy as np
import pytest
import scipy
import torch

from colalib import cola, evaluation, training
from colalib.data import corpora, segments, store
from colalib.data.audio import MelConfig
from colalib.data.clips import Clips
from colalib.data.splits import evaluation_splits
from colalib.encoder import Encoder
from colalib.errors import UserError
from colalib.evaluation import features
from colalib.evaluation.features import mel_profile
from colalib.evaluation.sources import EncoderSource, feature_source
from colalib.training.runs import open_run


def test_mel_stats_by_hand(clips, mel_store):
    x = evaluation.mel_stats(clips)
    frames = mel_store.frames(7).astype(np.float32)
    assert x.shape == (96, 128)
    assert np.allclose(x[7], np.concatenate([frames.mean(0), frames.std(0)]))


def test_embedding_by_hand(clips, mel_store):
    encoder = Encoder("b0-small", std=2.0).eval()
    x = evaluation.embed_frames(encoder, clips, mel_store.mel)
    frames = mel_store.frames(7).astype(np.float32)
    with torch.no_grad():
        *maps, _ = encoder.feature_maps(torch.from_numpy(np.stack([frames[s : s + 98] for s in (0, 49, 98)])))
    means, spreads = [], []
    for m in maps:  # [3, time, bands, channels]
        parts = np.split(m.numpy(), min(m.shape[2], 4), axis=2)
        ranges = np.stack([part.mean(axis=2) for part in parts], axis=3)
        means.append(ranges.mean(axis=(0, 1)).ravel())  # [channels × ranges]
        spreads.append(ranges.std(axis=(0, 1)).ravel())
    assert x.shape == (96, 4032)
    assert x.dtype == np.float32
    assert np.allclose(x[7, :3328], np.concatenate(means + spreads), rtol=1e-3, atol=1e-4)
    assert np.array_equal(x[7, 3328:], mel_profile(frames, mel_store.mel))


@pytest.fixture
def two_threads():
    """`make test` gives torch one thread, learners have more."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_threads_give_what_one_gives(clips, mel_store, finetuned, two_threads):
    module, run = training.load_classifier(finetuned)
    split = evaluation_splits(mel_store.clips)[0]
    features = evaluation.embed_frames(module.encoder, clips, mel_store.mel)
    predicted = training.predict(module, mel_store, split, run.name)["predicted"]
    torch.set_num_threads(1)
    assert np.allclose(features, evaluation.embed_frames(module.encoder, clips, mel_store.mel), atol=1e-4)
    assert list(predicted) == list(run.predictions()["predicted"])


def test_mel_profile_by_hand():
    frames = np.random.default_rng(0).normal(size=(101, 64)).astype(np.float32)
    profile = mel_profile(frames, MelConfig()).reshape(11, 64)
    level = frames.mean()
    assert np.allclose(profile[0], frames.mean(axis=0) - level, atol=1e-5)
    for row, share in zip(profile[1:5], (0.1, 0.5, 0.9, 1)):
        assert np.allclose(row, np.quantile(frames, share, axis=0) - level, atol=1e-5)
    assert np.allclose(profile[5], frames.std(axis=0), atol=1e-5)
    assert np.allclose(profile[6], scipy.stats.skew(frames, axis=0), atol=0.01)
    assert np.allclose(profile[7], np.abs(frames[1:] - frames[:-1]).mean(axis=0), atol=1e-5)
    assert np.allclose(profile[8], (frames[4:] - frames[:-4]).std(axis=0), atol=1e-5)
    transform = scipy.fft.dct(frames, axis=0) / 202  # scipy's has a factor of 2
    assert np.allclose(profile[9:], transform[1:3], atol=1e-5)


def test_hours_of_a_steady_band_have_no_deviation():
    hour = np.full((360_000, 2), -11.516, np.float16)
    mean, deviation = features.mean_and_deviation(hour.astype(np.float32))
    assert np.array_equal(mean, np.float32(hour[0]))
    assert not deviation.any()


def test_a_profile_tells_order_in_short_clips_only_and_no_level():
    rising = np.linspace(0, 1, 98, dtype=np.float32)[:, None] * np.ones(64, np.float32)
    there, back = mel_profile(rising, MelConfig()), mel_profile(rising[::-1], MelConfig())
    assert np.allclose(there[9 * 64 : 10 * 64], -back[9 * 64 : 10 * 64], atol=1e-5)
    assert np.allclose(there[: 9 * 64], back[: 9 * 64], atol=1e-4)
    assert not mel_profile(np.tile(rising, (4, 1)), MelConfig())[9 * 64 :].any()
    assert np.allclose(mel_profile(rising - 3, MelConfig()), there, atol=1e-4)
    assert np.isfinite(mel_profile(rising[:1], MelConfig())).all()


def test_calibration_gives_batchnorm_the_data(clips):
    torch.manual_seed(0)
    encoder = evaluation.calibrate_batchnorm(Encoder("b0-small"), clips)
    assert float(encoder.std) == pytest.approx(segments.segment_std(clips, 0))
    assert not encoder.training
    rng = np.random.default_rng(1)
    crops = [segments.random_crop(clips.frames(i), rng) for i in rng.integers(96, size=256)]
    norm = encoder.net._bn0
    mean = norm.running_mean.clone()
    with torch.no_grad():
        encoder.train()
        norm.momentum = 1.0
        encoder(torch.from_numpy(np.stack(crops)))
    expected = norm.running_mean
    assert torch.allclose(mean, expected, atol=0.2 * float(expected.abs().max()))


def test_a_long_clip_is_embedded_in_parts(clips, monkeypatch):
    encoder, sizes = Encoder().eval(), []
    block_features = encoder.block_features
    monkeypatch.setattr(encoder, "block_features", lambda x: (sizes.append(len(x)), block_features(x))[1])
    frames = np.concatenate([clips.frames(0)] * 40)  # 80 s
    assert evaluation.embed_frames(encoder, [frames], MelConfig()).shape == (1, 4032)
    assert max(sizes) == 32
    assert sum(sizes) == 1 + (len(frames) - 98) // 49


def test_kept_features_are_used_again_unless_they_are_damaged(mel_store, pretrained, tmp_path, monkeypatch):
    source = EncoderSource(open_run(pretrained))
    expected = np.array(source.of_store(mel_store, tmp_path))  # a copy: kept ones are memory-mapped
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(source, "of_clips", None)  # it would raise
    assert np.array_equal(source.of_store(mel_store, tmp_path), expected)
    monkeypatch.undo()
    whole = file.read_bytes()
    for damaged in (whole[:1000], b""):
        file.write_bytes(damaged)
        assert np.array_equal(source.of_store(mel_store, tmp_path), expected)
        assert file.read_bytes() == whole


def test_kept_features_belong_to_their_frames_and_weights(folder, pretrained, tmp_path, monkeypatch):
    # how a random encoder is calibrated does not matter here, and takes long
    monkeypatch.setattr(features, "calibrate_batchnorm", lambda encoder, *_: encoder.eval())
    own = store.build(corpora.load(folder), tmp_path / "store", jobs=1, progress=False)
    keep = tmp_path / "features"
    EncoderSource(open_run(pretrained)).of_store(own, keep)
    EncoderSource(open_run("default")).of_store(own, keep)
    EncoderSource(None, seed=0).of_store(own, keep)
    EncoderSource(None, seed=1).of_store(own, keep)
    assert len([*keep.iterdir()]) == 4
    os.utime(own.path / "frames-00000.npy", (0, 0))  # as if they were made anew
    EncoderSource(open_run(pretrained)).of_store(own, keep)
    assert len([*keep.iterdir()]) == 5


def test_a_source_is_named_by_what_it_is(pretrained, mel_store):
    names = {"mel-stats": "mel-stats", "random": "random", "default": "default", pretrained: "pretrained"}
    for encoder, name in names.items():
        assert feature_source(encoder).name == name
    with pytest.raises(UserError, match="is not a run"):
        feature_source(mel_store.path)


def test_an_encoder_needs_a_store_with_its_mel_settings(mel_store, pretrained, monkeypatch):
    monkeypatch.setattr(mel_store, "mel", dataclasses.replace(mel_store.mel, floor=1e-4))
    with pytest.raises(UserError, match="other mel settings"):
        EncoderSource(open_run(pretrained)).of_store(mel_store)


@pytest.mark.slow
def test_the_default_encoder_finds_the_positive_in_music_it_has_not_heard(tmp_path):
    """Accuracy of picking the other crop of the same clip, against the calibrated random encoder."""
    corpus = corpora.load("scores", clips_per_class=12, data=tmp_path, jobs=2)
    music = store.build(corpus, tmp_path / "store", progress=False)
    rows = np.flatnonzero(music.clips["split"] == "test")
    run = open_run("default")
    assert not run.seen_clip_ids & set(music.ids[rows])
    clips = Clips([music], [rows])
    random = evaluation.calibrate_batchnorm(Encoder("b0-small"), clips)
    accuracy = {}
    for name, encoder in (("default", run.load_encoder()), ("random", random)):
        right = []
        for step in range(10):
            anchors, positives = segments.pair_batch(clips, step, len(clips), seed=0)
            with torch.no_grad():
                similarity = cola.cosine_similarity(encoder(anchors), encoder(positives))
            right.append(cola.ranks(similarity) == 1)
        accuracy[name] = torch.cat(right).float().mean()
    assert accuracy["default"] > accuracy["random"] + 0.1
