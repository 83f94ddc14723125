"""Embeddings are the same from every kind of source, and what cannot be used is told in a line."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers import RATE, tone

import colalib
from colalib import evaluation
from colalib.data import audio, corpora, store
from colalib.errors import UserError


def test_a_folder_a_store_files_and_a_file_give_the_same(folder, mel_store, tmp_path):
    of_folder, of_store = colalib.embed(folder), colalib.embed(mel_store.path)
    assert of_folder.vectors.shape == (96, 4032)
    assert np.array_equal(of_folder.vectors, of_store.vectors)
    assert list(of_folder.clips["clip_id"]) == list(mel_store.clips["clip_id"])
    assert list(of_store.clips["clip_id"]) == list(mel_store.clips["clip_id"])
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    path = folder / mel_store.clips["path"][3]
    of_list = colalib.embed([path, tmp_path / "broken.wav"])
    assert len(of_list.vectors) == 1
    # another number of segments at a time: sums in another order
    assert np.allclose(of_list.vectors[0], of_store.vectors[3], rtol=1e-4, atol=1e-4)
    assert len(of_list.left_out) == 1
    assert of_list.left_out["path"][0].endswith("broken.wav")
    assert np.array_equal(colalib.embed(path, accelerator="cpu").vectors, of_list.vectors)


@pytest.mark.parametrize("encoder", ["default", pytest.param("random", marks=pytest.mark.slow), "mel-stats"])
def test_a_file_gives_what_its_store_gives(folder, tmp_path, encoder):
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "low" / "0-0.flac", tmp_path / "one")
    built = store.build(corpora.load(tmp_path / "one"), tmp_path / "store", jobs=1, progress=False)
    of_store = colalib.embed(built.path, encoder)
    of_file = colalib.embed(tmp_path / "one" / "0-0.flac", encoder)
    assert np.array_equal(of_file.vectors, of_store.vectors)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_samples_give_what_their_file_gives(tmp_path, rate, channels):
    """Frames go through float16 on both ways, so what remains is the resampler's rounding."""
    samples = np.stack([tone(300, 1.5, 1, rate), tone(500, 1.5, 2, rate)], axis=1)[:, :channels]
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    of_file = colalib.embed(tmp_path / "a.wav")
    of_samples = colalib.embed((samples, rate))
    assert of_samples.vectors.shape == (1, 4032)
    assert of_samples.vectors.dtype == np.float32
    scale = np.abs(of_file.vectors).max()
    assert np.abs(of_samples.vectors - of_file.vectors).max() < 1e-3 * scale  # float16: 2**-11
    assert len(of_samples.clips) == 1
    assert len(of_samples.left_out) == 0
    if channels == 1:
        assert np.array_equal(colalib.embed((samples[:, 0], rate)).vectors, of_samples.vectors)


GOOD = tone(300, 1.0, 1)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        ((32_768 * GOOD).astype(np.int16), RATE, "int16 samples: give floats"),
        (np.where(np.arange(RATE) == 7000, np.nan, GOOD), RATE, "not finite"),
        (GOOD[None], RATE, r"shape \[1, 16000\]: give \[samples\]"),
        (GOOD.reshape(100, 10, 16), RATE, r"shape \[100, 10, 16\]"),
        (np.float32(0.5), RATE, r"shape \[\]"),
        (np.zeros((RATE, 0)), RATE, r"shape \[16000, 0\]"),
        (0 * GOOD, RATE, "silent: peak digital zero"),
        (GOOD[:160], RATE, "too short: 10 ms"),
        (GOOD[:0], RATE, r"shape \[0\]: give \[samples\]"),
        (1e9 * GOOD, RATE, "samples up to"),
        (GOOD, 0, "sample rate of 0 Hz"),
    ],
)
def test_samples_that_cannot_be_used(samples, rate, message):
    with pytest.raises(UserError, match=message) as error:
        colalib.embed((samples, rate))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [([], "no files"), ("nowhere", "no corpus and no folder"), ("nowhere.wav", "none of 1 clips is usable")],
)
def test_sources_that_are_not_there(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        colalib.embed(source)


def test_embeddings_in_a_file(mel_store, folder, pretrained, tmp_path):
    for source in (mel_store.path, folder):
        embedded = evaluation.embed_to_file(source, pretrained, tmp_path / "e.npz")
        with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
            assert np.array_equal(arrays["embedding"], embedded.vectors)
            assert arrays["clip_id"].dtype.kind == "U"
            assert list(arrays["clip_id"]) == list(mel_store.clips["clip_id"])
            assert list(arrays["label"]) == list(mel_store.clips["label"])


def test_embeddings_over_time(folder, mel_store, tmp_path):
    path = folder / mel_store.clips["path"][0]  # 2 s: 201 frames
    over_time = colalib.embed(path, every=0.5)
    assert over_time.clips["start"].tolist() == [0.0, 0.5, 1.0]
    assert over_time.vectors.shape == (3, 4032)
    samples, rate = soundfile.read(path)
    # a window is embedded as a clip of its own; its edges hear silence, not their neighbours
    window = colalib.embed((samples[: int(0.97 * rate)], rate)).vectors[0]
    distance = np.linalg.norm(over_time.vectors - window, axis=1)
    assert distance[0] < 0.5 * distance[1:].min()
    of_store = evaluation.embed_to_file(mel_store.path, "mel-stats", tmp_path / "e.npz", every=0.25)
    assert len(of_store.vectors) == 5 * 96
    with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
        assert arrays["start"][:6].tolist() == [0, 0.25, 0.5, 0.75, 1, 0]
        assert len(set(arrays["clip_id"][:5])) == 1


def test_a_short_clip_is_one_window():
    over_time = colalib.embed((tone(300, 0.4, 1), RATE), every=0.1)
    assert over_time.clips["start"].tolist() == [0.0]
    assert np.array_equal(over_time.vectors, colalib.embed((tone(300, 0.4, 1), RATE)).vectors)


def test_windows_closer_than_frames_are_refused():
    with pytest.raises(UserError, match=r"choose 0\.01 to 1,000,000 seconds"):
        colalib.embed((tone(300, 1, 1), RATE), every=0.001)


def test_a_table_for_an_atlas(folder, mel_store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "e.parquet"
    embedded = evaluation.embed_to_file(mel_store.path, "mel-stats", out)
    table = parquet.read_table(out).to_pylist()
    assert len(table) == 96
    row = table[5]
    assert row["clip_id"] == mel_store.clips["clip_id"][5]
    assert row["label"] == mel_store.clips["label"][5]
    assert np.array_equal(np.float32(row["vector"]), embedded.vectors[5])
    assert np.isfinite([row["projection_x"], row["projection_y"]]).all()
    near = evaluation.neighbours(embedded.vectors, np.arange(96), 15)
    assert row["neighbors"]["ids"] == near[5].tolist()
    assert row["neighbors"]["distances"] == sorted(row["neighbors"]["distances"])
    (tmp_path / "a.mp3").write_bytes(row["audio"]["bytes"])
    assert soundfile.info(tmp_path / "a.mp3").duration == pytest.approx(2, abs=0.1)
    assert row["audio"]["path"].endswith(".mp3")


def test_one_clip_has_a_table_too(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    soundfile.write(tmp_path / "a.wav", tone(300, 1, 1), RATE)
    evaluation.embed_to_file(tmp_path / "a.wav", "mel-stats", tmp_path / "e.parquet")
    (row,) = parquet.read_table(tmp_path / "e.parquet").to_pylist()
    assert (row["projection_x"], row["projection_y"]) == (1, 0)


def test_equal_clips_have_places_in_the_table(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for i in range(5):
        soundfile.write(tmp_path / f"{i}.wav", tone(300, 1, 1), RATE)
    evaluation.embed_to_file(tmp_path, "mel-stats", tmp_path / "e.parquet")
    table = parquet.read_table(tmp_path / "e.parquet").to_pandas()
    assert np.isfinite(table[["projection_x", "projection_y"]]).all(axis=None)


def test_a_folder_of_names_that_are_no_text_has_nothing_to_embed(tmp_path):
    soundfile.write(tmp_path / "a\nb.wav", tone(300, 1, 1), RATE)
    with pytest.raises(UserError, match=r"none of 0 clips is usable .*: rename it"):
        colalib.embed(tmp_path, "mel-stats")


def test_without_pyarrow_a_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.embedding_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install pyarrow"):
        evaluation.embed_to_file(tmp_path, "mel-stats", tmp_path / "e.parquet")


def test_text_is_kept_alike_with_and_without_pyarrow():
    assert pd.Series(["a"], dtype="string").dtype.storage == "python"


def test_files_on_several_drives_are_refused(monkeypatch, tmp_path):
    def of_windows(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", of_windows)
    with pytest.raises(UserError, match="several drives"):
        colalib.embed([tmp_path / "a.wav", tmp_path / "b.wav"])


def test_files_may_be_a_tuple(folder):
    files = tuple(sorted(folder.rglob("*.flac"))[:2])
    assert len(evaluation.embed(files, "mel-stats").vectors) == 2
    with pytest.raises(UserError, match="no files to embed"):
        evaluation.embed((), "mel-stats")


def test_a_store_that_is_open_is_a_source_too(mel_store):
    assert np.array_equal(
        colalib.embed(mel_store, "mel-stats").vectors, colalib.embed(mel_store.path, "mel-stats").vectors
    )


def test_columns_whose_names_are_taken_are_kept(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(300, 1.0, 1), RATE)
    columns = "vector,audio,neighbors,projection_x,a/b,a:b"
    (tmp_path / "index.csv").write_text(f"path,{columns}\na.wav,1,2,3,4,5,6\n")
    evaluation.embed_to_file(tmp_path, "mel-stats", tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as arrays:
        assert (arrays["vector"].item(), arrays["a_b"].item(), arrays["a_b_"].item()) == ("1", "5", "6")
        assert arrays["embedding"].shape == (1, 128)
    parquet = pytest.importorskip("pyarrow.parquet")
    evaluation.embed_to_file(tmp_path, "mel-stats", tmp_path / "e.parquet")
    (row,) = parquet.read_table(tmp_path / "e.parquet").to_pylist()
    assert [row[f"{name}_"] for name in ("vector", "audio", "projection_x")] == ["1", "2", "4"]
    assert len(row["vector"]) == 128
    assert row["audio"]["path"] == "a.wav.mp3"


def test_a_file_is_decoded_once_for_all_its_previews(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(300, 3.0, 1), RATE)
    decoded, stream = [], audio.stream
    monkeypatch.setattr(audio, "stream", lambda path, *rate: decoded.append(path) or stream(path, *rate))
    path, gone = tmp_path / "a.wav", tmp_path / "gone.wav"
    sounds = [*audio.previews([(path, 0.0), (path, 1.0), (gone, 0.0), (path, 2.0)])]
    assert sounds[2] == b""
    assert len(sounds[0]) > len(sounds[1]) > len(sounds[3]) > 0
    assert len(decoded) == 3  # places that follow each other
    assert sounds[1] == audio.to_mp3(audio.load_audio(path)[RATE:])


def test_a_preview_of_a_long_recording_decodes_no_more_than_it_needs(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", tone(300, 100.0, 1), RATE)
    blocks, stream = [], audio.stream
    monkeypatch.setattr(audio, "stream", lambda path, *_: (blocks.append(b) or b for b in stream(path)))
    starts = [28.0, 1.0, 28.5]  # from one block into the next, and not in order
    sounds = audio.previews_of_file(tmp_path / "a.flac", starts)
    assert sum(map(len, blocks)) <= 60 * RATE
    wave = audio.load_audio(tmp_path / "a.flac")
    assert sounds == [audio.to_mp3(wave[int(start * RATE) :]) for start in starts]
    (end,) = audio.previews_of_file(tmp_path / "a.flac", [97.0])
    assert end == audio.to_mp3(wave[97 * RATE :])


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_file_of_another_program_stays(mel_store, tmp_path, suffix):
    out = tmp_path / f"mine.{suffix}"
    if suffix == "npz":
        np.savez(out, a=np.zeros(3))
    else:
        pytest.importorskip("pyarrow")
        pd.DataFrame({"a": [1, 2]}).to_parquet(out)
    content = out.read_bytes()
    with pytest.raises(UserError, match="not written by colalib"):
        evaluation.embed_to_file(mel_store.path, "mel-stats", out)
    assert out.read_bytes() == content
    out.unlink()
    for _ in range(2):  # but one of ours is written anew
        evaluation.embed_to_file(mel_store.path, "mel-stats", out)
