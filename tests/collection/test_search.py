"""The nearest clips of a collection, and where in them."""

import sys

import numpy as np
import pytest
import soundfile
from helpers import RATE, call, messages
from planting import melody

from colalib.collection import search
from colalib.collection.opening import Collection, Scale, blocks, scale_of, similarities
from colalib.data.tables import read_table
from colalib.errors import UserError
from colalib.evaluation import embed, neighbours


def test_the_nearest_are_those_of_neighbours(planted_store):
    found = search(planted_store.path, "m5.wav", k=5)
    vectors = embed(planted_store.path).vectors
    ids = planted_store.clips["clip_id"].values
    row = list(ids).index("m5.wav")
    assert list(found["clip_id"]) == list(ids[neighbours(vectors, np.arange(len(ids)), 5)[row]])
    assert found["similarity"].is_monotonic_decreasing
    assert found["similarity"].between(-1, 1).all()


def test_a_file_finds_itself_and_where(planted, planted_store, tmp_path):
    excerpt = melody(6 * 4, 0)[RATE:]
    soundfile.write(tmp_path / "query.wav", excerpt, RATE, subtype="FLOAT")
    found = search(planted_store.path, tmp_path / "query.wav", k=3)
    hit = found[found["clip_id"] == "m24.wav"]
    assert len(hit) == 1
    # segments lie 0.49 s apart
    assert hit["second"].item() - hit["query_second"].item() == pytest.approx(1, abs=0.3)


def test_a_file_of_the_collection_is_its_clip(planted, planted_store):
    by_id = search(planted_store.path, "m5.wav", k=3)
    by_file = search(planted_store.path, planted[0] / "m5.wav", k=3)
    assert by_file.equals(by_id)


def test_other_groups_leave_out_its_own(planted_store):
    found = search(planted_store.path, "m5.wav", k=80, other_groups=True)
    assert not (found["group"] == "g0").any()
    assert len(found) == len(planted_store) - 6


def test_a_folder_gives_what_its_store_gives(planted, planted_store):
    of_folder = search(planted[0], "m5.wav", k=3, encoder="mel-stats", jobs=1)
    assert of_folder.equals(search(planted_store.path, "m5.wav", k=3, encoder="mel-stats"))


def test_a_long_recording_does_not_blur_where_the_others_match(planted, tmp_path, monkeypatch):
    root = tmp_path / "clips"
    root.mkdir()
    for name in ("m3", "m9"):
        (root / f"{name}.wav").symlink_to(planted[0] / f"{name}.wav")
    long = np.concatenate([melody(seed, 0) for seed in range(20, 28)])  # 20 s
    soundfile.write(root / "long.wav", long, RATE, subtype="FLOAT")
    monkeypatch.setattr(sys.modules[search.__module__], "MOST_SEGMENTS", 8)
    soundfile.write(tmp_path / "query.wav", melody(9, 0)[RATE:], RATE, subtype="FLOAT")
    found = search(root, tmp_path / "query.wav", jobs=1).set_index("clip_id")
    hit = found.loc["m9.wav"]
    assert hit["second"] - hit["query_second"] == pytest.approx(1, abs=0.3)


def test_seconds_are_told_of_the_first_hits(planted_store, monkeypatch):
    monkeypatch.setattr(sys.modules[search.__module__], "PLACED", 2)
    found = search(planted_store.path, "m5.wav", k=5, encoder="mel-stats")
    assert found["second"].notna().tolist() == [True, True, False, False, False]


def test_a_wrong_name_is_told_before_anything_is_embedded(planted, monkeypatch):
    monkeypatch.setattr(Collection, "vectors", None)
    with pytest.raises(UserError, match="neither a clip_id"):
        search(planted[0], "m555.wav", jobs=1)


def test_a_damaged_scale_is_computed_again(planted_store):
    found = search(planted_store.path, "m5.wav", k=5)
    (kept,) = (planted_store.path / "embeddings").glob("*.scale.npz")
    for content in (b"", kept.read_bytes()[:100]):
        kept.write_bytes(content)
        assert search(planted_store.path, "m5.wav", k=5).equals(found)


def test_the_command_prints_and_writes(planted_store, tmp_path, capsys):
    out = tmp_path / "found.csv"
    code, text, _ = call(capsys, "search", planted_store.path, "m2.wav", "-k", 4, "--out", out)
    assert code == 0
    table = read_table(out)
    assert len(table) == 4
    assert set(table["label"]) <= {'low, "deep"', "middle 🎵", "=high"}
    assert table["clip_id"][0] in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{store}", "m5.waw"], "'m5.waw' is neither a clip_id of planted"),
        (["{store}", "m5.waw"], "the nearest names are 'm5.wav'"),
        (["{store}", "{store}"], "is neither a clip_id"),
        (["{store}", "broken.wav"], "broken.wav: empty file"),
        (["{store}", "query.wav", "--other-groups"], "other groups than its own are not known"),
        (["one", "query.wav", "--encoder", "mel-stats"], "has no other clip"),
    ],
)
def test_mistakes_get_one_line(planted_store, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.wav").write_bytes(b"")
    (tmp_path / "one").mkdir()
    soundfile.write("query.wav", melody(1000, 1), RATE)
    soundfile.write("one/query.wav", melody(1000, 1), RATE)
    code, _, error = call(capsys, "search", *(word.format(store=planted_store.path) for word in words))
    assert code == 2
    assert message in error
    assert len(messages(error)) == 1


def test_similarities_in_blocks_are_exact_and_kept(tmp_path):
    rng = np.random.default_rng(0)
    vectors = (100 + rng.standard_normal((2500, 40))).astype(np.float32)
    vectors[:, 3] = 7.1  # the same in all
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    scale = scale_of(mapped)
    assert isinstance(scale, Scale)
    assert (tmp_path / "v.scale.npz").exists()
    again = scale_of(np.load(tmp_path / "v.npy", mmap_mode="r"))
    assert np.array_equal(again.lengths, scale.lengths)
    z = scale.transform(vectors.astype(np.float64))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    assert np.allclose(similarities(mapped, scale, scale.transform(vectors[7])), z @ z[7], atol=1e-4)
    assert max(len(block) for _, block in blocks(mapped)) <= 1024


def test_equal_embeddings_are_alike():
    vectors = np.full((3, 8), 2.5, np.float32)
    scale = scale_of(vectors)
    assert similarities(vectors, scale, scale.transform(vectors[0])).tolist() == [1, 1, 1]


def test_a_linked_clip_does_not_find_itself(tmp_path, capsys):
    (tmp_path / "here").mkdir()
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", melody(i, i), RATE)
        (tmp_path / "here" / f"{i}.wav").symlink_to(tmp_path / f"{i}.wav")
    (tmp_path / "here" / "notes.txt").write_text("")
    words = ["search", tmp_path / "here", tmp_path / "here" / "1.wav", "--encoder", "mel-stats"]
    code, text, error = call(capsys, *words)
    assert code == 0
    assert {"0.wav", "2.wav"} <= {*text.split()}
    assert "1.wav" not in text.split()
    assert "note: 1 other files were not looked at: .txt 1" in error
