"""FMA from a local folder, on a miniature of its exact tree and table."""

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import tone

from colalib import corpora, store, training
from colalib.errors import UserError

TRACKS = [  # id, subset, split, artist, genre
    (2, "small", "training", 1, "Hip-Hop"),
    (5, "small", "validation", 2, "Rock"),
    (10, "small", "test", 3, "Hip-Hop"),
    (140, "medium", "training", 4, "Rock"),
    (1040, "large", "training", 5, None),
    (1041, "large", "training", 3, None),  # its artist is on the test side
    (99134, "large", "training", 6, "Rock"),  # known to be silent
    (98565, "medium", "training", 7, "Rock"),  # known to be short
]


@pytest.fixture
def fma(tmp_path):
    """A folder like FMA's: tracks.csv with two header rows and a row with the index' name, MP3s by id."""
    columns = pd.MultiIndex.from_tuples(
        [("artist", "id"), ("set", "split"), ("set", "subset"), ("track", "genre_top"), ("track", "title")]
    )
    rows = [(artist, split, subset, genre, 'a, "title"\nof two lines') for _, subset, split, artist, genre in TRACKS]
    table = pd.DataFrame(rows, columns=columns, index=pd.Index([t[0] for t in TRACKS], name="track_id"))
    (tmp_path / "fma_metadata").mkdir()
    table.to_csv(tmp_path / "fma_metadata" / "tracks.csv")
    lines = (tmp_path / "fma_metadata" / "tracks.csv").read_text().splitlines()
    assert lines[2].startswith("track_id")
    for name, subsets in {"fma_small": ["small"], "fma_large": ["small", "medium", "large"]}.items():
        for track, subset, *_ in TRACKS:
            if subset in subsets:
                path = tmp_path / name / f"{track:06d}"[:3] / f"{track:06d}.mp3"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, np.tile(tone(300 + track % 7, 1, track, 44_100), 3), 44_100)
    return tmp_path


def test_small(fma):
    corpus = corpora.load("fma_small", data=fma)
    assert corpus.clips["path"].tolist() == ["000/000002.mp3", "000/000005.mp3", "000/000010.mp3"]
    assert corpus.clips["split"].tolist() == ["train", "valid", "test"]
    assert corpus.clips["label"].tolist() == ["Hip-Hop", "Rock", "Hip-Hop"]
    assert corpus.clips["group"].tolist() == ["1", "2", "3"]


def test_large_leaves_out_what_is_unusable_and_what_small_tests_on(fma, tmp_path):
    corpus = corpora.load("fma_large", data=fma)
    assert corpus.clips["clip_id"].tolist() == ["000002", "000005", "000010", "000140", "001040"]
    reasons = dict(zip(corpus.excluded["path"], corpus.excluded["reason"]))
    assert reasons["099/099134.mp3"] == "silent" and reasons["098/098565.mp3"].startswith("short")
    assert "stricter side" in reasons["001/001041.mp3"]
    made = store.build(corpus, tmp_path / "store", jobs=1, progress=False)
    assert set(made.quarantine["path"]) == set(reasons)
    seen = {clip.split("/")[1] for clip in training.pretraining_clips([made]).ids}
    assert seen == {"000002", "000005", "000140", "001040"}


def test_missing_or_wrong_files(fma, tmp_path):
    with pytest.raises(UserError, match=r"fma_medium not found: unpack fma_medium\.zip"):
        corpora.load("fma_medium", data=fma)
    (fma / "fma_metadata" / "tracks.csv").write_text("track_id,title\n1,a\n")
    with pytest.raises(UserError, match="not FMA's table"):
        corpora.load("fma_small", data=fma)
