"""Public corpora whose lists are missing or damaged: one line."""

import pandas as pd
import pytest

from colalib.data import corpora
from colalib.errors import UserError

NESTED = "[" * 100_000
LISTS = {  # corpus → the list that is damaged, and others that must be there
    "esc50": ("esc50/meta/esc50.csv",),
    "esc10": ("esc50/meta/esc50.csv",),
    "nsynth": ("nsynth/valid/examples.json",),
    "speech_commands": (
        "speech_commands/validation_list.txt",
        "speech_commands/testing_list.txt",
        "speech_commands/yes/0_nohash_0.wav",
    ),
    "fma_small": ("fma_metadata/tracks.csv", "fma_small/000/000002.mp3"),
}
CONTENTS = {
    "empty": "",
    "number": "5",
    "null": "null",
    "text": '"text"',
    "list": "[1, 2]",
    "list of lists": "[[1], [2]]",
    "object": '{"a": 5}',
    "nothing known": '{"a": {"pitch": 1}}',
    "half": '{"a": {"pitch"',
    "nested": NESTED,
    "nested objects": '{"a":' * 100_000,
    "missing columns": "filename,fold\na.wav,1\n",
    "two header rows": ",set,set\n,split,subset\ntrack_id,,\na,training,small\n",
    "rows of other lengths": "a,b\n1,2,3\n1,2,3,4,5\n",
    "zero bytes": "\0" * 100,
}


@pytest.mark.parametrize("damage", CONTENTS)
@pytest.mark.parametrize("corpus", LISTS)
def test_a_damaged_list_is_told_in_one_line(corpus, damage, tmp_path):
    for name in LISTS[corpus]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("yes/0_nohash_0.wav")
    (tmp_path / LISTS[corpus][0]).write_text(CONTENTS[damage])
    with pytest.raises(UserError) as error:
        corpora.load(corpus, data=tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert str(tmp_path) in str(error.value) or corpus in str(error.value)


def test_bytes_that_are_no_text_are_told(tmp_path):
    for corpus, names in LISTS.items():
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"\xff\xfe\x80,\xff\n")
        with pytest.raises(UserError):
            corpora.load(corpus, data=tmp_path)


@pytest.mark.parametrize("table", ["split", "subset", "id", "genre_top"])
def test_fmas_table_without_a_column_is_told(fma, table):
    file = fma / "fma_metadata" / "tracks.csv"
    columns = pd.read_csv(file, index_col=0, header=[0, 1])
    columns.drop(columns=table, level=1).to_csv(file)
    with pytest.raises(UserError, match="not FMA's table of tracks"):
        corpora.load("fma_small", data=fma)


def test_a_missing_list_is_told(tmp_path):
    (tmp_path / "esc50").mkdir()
    with pytest.raises(UserError, match=r"esc50\.csv not found: the corpus is not complete"):
        corpora.load("esc50", data=tmp_path)
