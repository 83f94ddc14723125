"""Any folder as a corpus: its three forms, and what is refused."""

import ntpath
import os
import unicodedata

import numpy as np
import pytest
import soundfile

from colalib.data import corpora
from colalib.errors import UserError
from colalib.files import MAP_GENERATOR


def write_files(root, paths):
    """Write a short audio file at each path below `root`; return `root`."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / path, np.zeros(100), 16_000)
    return root


def test_index_csv(folder):
    corpus = corpora.load(folder)
    assert list(corpus.clips.columns) == ["clip_id", "path", "label", "group", "split", "parity"]
    assert len(corpus.clips) == 96
    assert (corpus.clips["clip_id"] == corpus.clips["path"]).all()
    counts = corpus.clips.groupby(["label", "split"]).size().unstack()
    assert (counts["train"] >= 16).all()
    assert (counts["test"] >= 4).all()
    assert (counts["valid"] >= 4).all()
    assert (corpus.clips.groupby("group")["split"].nunique() == 1).all()


def test_one_folder_per_class(tmp_path):
    write_files(tmp_path, ["dog/1.wav", "dog/2.WAV", "cat/1.flac", "cat/.hidden.wav"])
    (tmp_path / "cat" / "notes.txt").write_text("not audio")
    corpus = corpora.load(tmp_path)
    assert corpus.clips["label"].tolist() == ["cat", "dog", "dog"]
    assert corpora.load(tmp_path, labels="none").clips["label"].tolist() == ["", "", ""]


def test_unlabelled_audio(tmp_path):
    corpus = corpora.load(write_files(tmp_path, ["a.wav", "deep/er/b.ogg", "one/c.wav"]))
    assert corpus.clips["path"].tolist() == ["a.wav", "deep/er/b.ogg", "one/c.wav"]
    assert (corpus.clips["label"] == "").all()
    with pytest.raises(UserError, match=r"a\.wav does not lie in a sub-folder"):
        corpora.load(tmp_path, labels="folder")


def test_linked_folders_are_followed_once(tmp_path):
    write_files(tmp_path / "elsewhere", ["1.wav"])
    write_files(tmp_path / "corpus", ["cat/1.wav"])
    (tmp_path / "corpus" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "cat" / "loop").symlink_to(tmp_path / "corpus")
    assert corpora.load(tmp_path / "corpus").clips["path"].tolist() == ["cat/1.wav", "dog/1.wav"]


def test_a_folder_without_audio_is_refused(tmp_path):
    with pytest.raises(UserError, match="no audio files"):
        corpora.load(tmp_path)


def test_a_name_that_is_no_folder_is_refused():
    with pytest.raises(UserError, match="no corpus and no folder named nothing"):
        corpora.load("nothing")


def test_files_that_are_no_audio_are_counted_by_their_endings(tmp_path):
    write_files(tmp_path, ["cat/1.wav", "dog/1.wav"])
    assert corpora.load(tmp_path).note == ""
    for name in ("a.txt", "cat/b.TXT", "cat/c.txt", "cat/README", "dog/d.pdf", ".hidden.txt", "index.csv"):
        (tmp_path / name).write_text("path")
    note = corpora.load(tmp_path, labels="folder").note
    assert note == "5 other files were not looked at: .txt 3, no ending 1, .pdf 1"
    for ending in ("x", "y", "z"):
        (tmp_path / f"a.{ending}").write_text("")
    assert corpora.load(tmp_path, labels="folder").note.endswith(", …")


def test_audio_files_that_an_index_does_not_name_are_counted(tmp_path):
    write_files(tmp_path, ["a.wav", "b.wav", "deep/c.wav"])
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "index.csv").write_text("path\n./a.wav\n")
    note = corpora.load(tmp_path).note
    assert note == "2 audio files are not named in index.csv (the first: 'b.wav')"
    (tmp_path / "index.csv").write_text("path\na.wav\nb.wav\ndeep/c.wav\n")
    assert corpora.load(tmp_path).note == ""


GOOD = "path,label,group,split\na.wav,x,1,train\nb.wav,y,2,valid\nc.wav,x,3,test\n"


@pytest.mark.parametrize(
    "index,message",
    [
        (GOOD.replace("path", "file"), "no column 'path'"),
        (GOOD.replace("group", "label"), "column 'label' stands twice"),
        (GOOD.replace("valid", "extra"), "unknown split 'extra'"),
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
        ("path,label\n\xff\xfe", "not UTF-8: save it as"),
    ],
)
def test_an_index_that_breaks_a_rule_is_refused_in_one_line(tmp_path, index, message):
    (tmp_path / "index.csv").write_bytes(index.encode("latin-1"))
    with pytest.raises(UserError, match=message) as error:
        corpora.load(tmp_path)
    assert "\n" not in str(error.value)
    assert tmp_path.name in str(error.value)  # where it is wrong


def test_a_path_on_a_drive_of_its_own_is_refused_where_there_are_drives(tmp_path, monkeypatch):
    (tmp_path / "index.csv").write_text("path\na.wav\nC:b.wav\n")
    assert len(corpora.load(tmp_path).clips) == 2
    monkeypatch.setattr(os.path, "splitdrive", ntpath.splitdrive)
    with pytest.raises(UserError, match=r"'C:b\.wav' leaves the corpus folder"):
        corpora.load(tmp_path)


def test_labels_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    (tmp_path / "index.csv").write_text("path,label\na.wav,007\nb.wav,NA\nc.wav,1e3\n")
    assert corpora.load(tmp_path).clips["label"].tolist() == ["007", "NA", "1e3"]


def test_names_that_would_break_a_table_are_listed_not_lost(tmp_path):
    for name in ("12:30.wav", "a\nb.wav", "Icon\r.wav", "a\\b.wav"):
        (tmp_path / name).write_bytes(b"")
    corpus = corpora.load(tmp_path)
    assert set(corpus.excluded["path"]) == {"a\\nb.wav", "Icon\\r.wav"}
    assert set(corpus.clips["path"]) == {"12:30.wav", "a\\b.wav"}


@pytest.mark.parametrize(
    "words", [("Train", "Valid", "Test"), ("TRAINING", "validation", "testing"), ("train", "dev", "test")]
)
def test_the_usual_words_for_the_sides_are_understood(tmp_path, words):
    index = GOOD
    for word, usual in zip(words, ("train", "valid", "test")):
        index = index.replace(usual, word)
    (tmp_path / "index.csv").write_text(index)
    assert set(corpora.load(tmp_path).clips["split"]) == {"train", "valid", "test"}


@pytest.mark.parametrize("comma", ["", "x;1,5\n"])  # a cell with a comma: two columns for a reader of CSV
def test_an_index_with_semicolons_is_told(tmp_path, comma):
    (tmp_path / "index.csv").write_text(GOOD.replace(",", ";") + comma)
    with pytest.raises(UserError, match=r"separated by ';': save the table with commas"):
        corpora.load(tmp_path)


def test_empty_rows_and_columns_of_a_spreadsheet_are_left_out(tmp_path):
    rows = [line + ",," for line in GOOD.splitlines()]
    (tmp_path / "index.csv").write_text("\n".join([*rows, ",,,,,", ",,,,,"]) + "\n")
    clips = corpora.load(tmp_path).clips
    assert list(clips["path"]) == ["a.wav", "b.wav", "c.wav"]
    assert "" not in clips.columns


def test_a_column_without_a_name_is_told(tmp_path):
    (tmp_path / "index.csv").write_text("path,\na.wav,x\n")
    with pytest.raises(UserError, match=r"column 2 has no name"):
        corpora.load(tmp_path)


def test_two_ways_to_write_a_path_are_one_clip(tmp_path):
    (tmp_path / "index.csv").write_text("path\na.wav\n./a.wav\n")
    with pytest.raises(UserError, match=r"'a.wav' stands twice"):
        corpora.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_told(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.wav").write_bytes(b"x")
    (tmp_path / "b").mkdir(mode=0)
    with pytest.raises(UserError, match=r"b: cannot be read"):
        corpora.load(tmp_path)


def test_a_map_of_ours_does_not_hear_itself(tmp_path):
    write_files(tmp_path, ["a.wav", "map-sounds/0123456789abcdef.mp3", "their-sounds/b.wav"])
    (tmp_path / "map.html").write_text(f"<!doctype html>{MAP_GENERATOR}")
    (tmp_path / "their.html").write_text("<!doctype html>")
    assert list(corpora.load(tmp_path).clips["path"]) == ["a.wav", "their-sounds/b.wav"]


def test_excel_may_write_its_separator_first(tmp_path):
    write_files(tmp_path, ["a.wav", "b.wav"])
    (tmp_path / "index.csv").write_text("sep=,\npath,label,group\na.wav,x,1\nb.wav,y\n")
    clips = corpora.load(tmp_path).clips
    assert clips[["path", "label", "group"]].values.tolist() == [["a.wav", "x", "1"], ["b.wav", "y", "b.wav"]]


def test_letters_may_be_written_in_two_ways(tmp_path):
    on_disk, in_table = (unicodedata.normalize(form, "Café/é.wav") for form in ("NFC", "NFD"))
    write_files(tmp_path, [on_disk])
    (tmp_path / "index.csv").write_text(f"path\n{in_table}\n", encoding="utf-8")
    corpus = corpora.load(tmp_path)
    assert list(corpus.clips["path"]) == [on_disk]
    assert corpus.note == ""
    one, two = (unicodedata.normalize(form, "Beyoncé") for form in ("NFC", "NFD"))
    table = f"path,label,group,split\na.wav,{one},{one},train\nb.wav,{two},{one}2,train\n"
    (tmp_path / "index.csv").write_text(table, encoding="utf-8")
    assert corpora.load(tmp_path).clips["label"].nunique() == 1
    (tmp_path / "index.csv").write_text(table + f"c.wav,x,{two},test\n", encoding="utf-8")
    with pytest.raises(UserError, match="is in more than one split"):
        corpora.load(tmp_path)
