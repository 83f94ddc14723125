"""Any folder as a corpus: the three forms, and what is wrong with it in one line."""

import numpy as np
import pandas as pd
import pytest
import soundfile

from colalib.data import corpora
from colalib.data.corpus import evaluation_splits, split_by_group
from colalib.errors import UserError


def make(root, paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / path, np.zeros(100), 16_000)
    return root


def test_index_csv(folder):
    corpus = corpora.load(folder)
    assert list(corpus.clips.columns) == ["clip_id", "path", "label", "group", "split", "parity"]
    assert (corpus.clips["clip_id"] == corpus.clips["path"]).all() and len(corpus.clips) == 96
    shares = corpus.clips.groupby(["label", "split"]).size().unstack()
    assert (shares["train"] >= 16).all() and (shares["test"] >= 4).all() and (shares["valid"] >= 4).all()
    assert (corpus.clips.groupby("group")["split"].nunique() == 1).all()


def test_one_folder_a_class(tmp_path):
    make(tmp_path, ["dog/1.wav", "dog/2.WAV", "cat/1.flac", "cat/.hidden.wav"])
    (tmp_path / "cat" / "notes.txt").write_text("not audio")
    corpus = corpora.load(tmp_path)
    assert corpus.clips["label"].tolist() == ["cat", "dog", "dog"]
    assert corpora.load(tmp_path, labels="none").clips["label"].tolist() == ["", "", ""]


def test_unlabelled_audio(tmp_path):
    corpus = corpora.load(make(tmp_path, ["a.wav", "deep/er/b.ogg", "one/c.wav"]))
    assert corpus.clips["path"].tolist() == ["a.wav", "deep/er/b.ogg", "one/c.wav"]
    assert (corpus.clips["label"] == "").all()
    with pytest.raises(UserError, match=r"a\.wav does not lie in a sub-folder"):
        corpora.load(tmp_path, labels="folder")


def test_linked_folders_are_followed_once(tmp_path):
    make(tmp_path / "elsewhere", ["1.wav"])
    make(tmp_path / "corpus", ["cat/1.wav"])
    (tmp_path / "corpus" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "cat" / "loop").symlink_to(tmp_path / "corpus")
    assert corpora.load(tmp_path / "corpus").clips["path"].tolist() == ["cat/1.wav", "dog/1.wav"]


def test_no_audio(tmp_path):
    with pytest.raises(UserError, match="no audio files"):
        corpora.load(tmp_path)
    with pytest.raises(UserError, match="no corpus and no folder named nothing"):
        corpora.load("nothing")


GOOD = "path,label,group,split\na.wav,x,1,train\nb.wav,y,2,valid\nc.wav,x,3,test\n"


@pytest.mark.parametrize(
    "index,message",
    [
        (GOOD.replace("path", "file"), "no column 'path'"),
        (GOOD.replace("group", "label"), "column 'label' stands twice"),
        (GOOD.replace("valid", "dev"), "unknown split 'dev'"),
        (GOOD.replace("train", "0").replace("valid", "0").replace("test", "0"), "unknown split '0'"),
        (GOOD.replace("valid", "1"), "unknown split '1'"),
        (GOOD.replace("train", ""), "unknown split ''"),
        (GOOD.replace("b.wav", "a.wav"), "clip_id 'a.wav' stands twice"),
        (GOOD.replace("x,3", "x,1"), "group '1' is in more than one split"),
        (GOOD.replace("b.wav", "../b.wav"), "leaves the corpus folder"),
        (GOOD.replace("b.wav", "/etc/b.wav"), "leaves the corpus folder"),
        (GOOD.replace("b.wav", "C:/b.wav"), "leaves the corpus folder"),
        (GOOD.replace("b.wav", ""), "leaves the corpus folder"),
        ("path\n", "no clips"),
        ("", "not a readable CSV"),
        ("path,label\na,b,c,d\n", "not a readable CSV"),
        ("path,label\n\xff\xfe", "not a readable CSV"),
    ],
)
def test_what_is_wrong_with_an_index(tmp_path, index, message):
    (tmp_path / "index.csv").write_bytes(index.encode("latin-1"))
    with pytest.raises(UserError, match=message) as error:
        corpora.load(tmp_path)
    assert ("\n" not in str(error.value) and "index.csv" in str(error.value)) or tmp_path.name in str(
        error.value
    )


def test_labels_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    (tmp_path / "index.csv").write_text("path,label\na.wav,007\nb.wav,NA\nc.wav,1e3\n")
    assert corpora.load(tmp_path).clips["label"].tolist() == ["007", "NA", "1e3"]


def test_split_by_group_is_stratified_and_seeded():
    rng = np.random.default_rng(0)
    labels = pd.Series(rng.choice(list("abcd"), 2000))
    groups = pd.Series([f"{label}{rng.integers(60)}" for label in labels])
    side = split_by_group(labels, groups, seed=3)
    shares = pd.crosstab(labels, side, normalize="index")
    assert np.allclose(shares[["train", "valid", "test"]], [0.7, 0.1, 0.2], atol=0.02)
    assert (pd.Series(side).groupby(groups).nunique() == 1).all()
    assert (side == split_by_group(labels, groups, seed=3)).all() and (
        side != split_by_group(labels, groups, seed=4)
    ).any()


def test_splits_named_and_folds():
    clips = pd.DataFrame({"label": list("xy") * 30, "group": [str(i) for i in range(60)]})
    clips["split"] = ["train"] * 40 + ["valid"] * 8 + ["test"] * 12
    (one,) = evaluation_splits(clips)
    assert [len(one.train), len(one.valid), len(one.test)] == [40, 8, 12]
    clips["split"] = ["train"] * 48 + ["test"] * 12
    (one,) = evaluation_splits(clips)
    assert len(one.train) + len(one.valid) == 48 and 4 <= len(one.valid) <= 8
    clips["split"] = np.repeat(list("12345"), 12)
    five = evaluation_splits(clips)
    assert [s.fold for s in five] == list("12345") and sorted(np.concatenate([s.test for s in five])) == list(
        range(60)
    )
    assert (clips["split"].iloc[five[4].valid] == "1").all() and not set(five[0].train) & set(five[0].test)
    assert evaluation_splits(clips, fold="3")[0].fold == "3"
    three = evaluation_splits(clips, folds=3)
    assert sorted(np.concatenate([s.test for s in three])) == list(range(60))
    for wrong, message in (({"fold": "9"}, "no fold '9'"), ({"label": "colour"}, "no column 'colour'")):
        with pytest.raises(UserError, match=message):
            evaluation_splits(clips, **wrong)
    clips["label"] = "x"
    with pytest.raises(UserError, match="fewer than two classes"):
        evaluation_splits(clips)


def test_names_that_would_break_a_table_are_listed_not_lost(tmp_path):
    for name in ("12:30.wav", "a\nb.wav", "Icon\r.wav", "a\\b.wav"):
        (tmp_path / name).write_bytes(b"")
    found = corpora.load(tmp_path)
    assert set(found.excluded["path"]) == {"a\\nb.wav", "Icon\\r.wav"}
    assert set(found.clips["path"]) == {"12:30.wav", "a\\b.wav"}
