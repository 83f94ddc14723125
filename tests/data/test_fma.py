"""FMA, on a miniature with its exact folders and table."""

import pytest

from colalib.data import corpora, store
from colalib.data.clips import pretraining_clips
from colalib.errors import UserError


def test_small_has_the_official_split_by_artist(fma):
    corpus = corpora.load("fma_small", data=fma)
    assert corpus.clips["path"].tolist() == ["000/000002.mp3", "000/000005.mp3", "000/000010.mp3"]
    assert corpus.clips["split"].tolist() == ["train", "valid", "test"]
    assert corpus.clips["label"].tolist() == ["Hip-Hop", "Rock", "Hip-Hop"]
    assert corpus.clips["group"].tolist() == ["1", "2", "3"]


def test_large_leaves_out_what_is_unusable_and_what_small_tests_on(fma, tmp_path):
    corpus = corpora.load("fma_large", data=fma)
    assert corpus.clips["clip_id"].tolist() == ["000002", "000005", "000010", "000140", "001040"]
    reasons = dict(zip(corpus.excluded["path"], corpus.excluded["reason"]))
    assert reasons["099/099134.mp3"] == "silent"
    assert reasons["098/098565.mp3"].startswith("short")
    assert "stricter side" in reasons["001/001041.mp3"]
    built = store.build(corpus, tmp_path / "store", jobs=1, progress=False)
    assert set(built.quarantine["path"]) == set(reasons)
    seen = {clip.split("/")[1] for clip in pretraining_clips([built]).ids}
    assert seen == {"000002", "000005", "000140", "001040"}


def test_missing_files_are_told(fma):
    with pytest.raises(UserError, match=r"fma_medium not found: fetch it .*or unpack fma_medium\.zip"):
        corpora.load("fma_medium", data=fma)


def test_another_table_is_refused(fma):
    (fma / "fma_metadata" / "tracks.csv").write_text("track_id,title\n1,a\n")
    with pytest.raises(UserError, match="not FMA's table"):
        corpora.load("fma_small", data=fma)
