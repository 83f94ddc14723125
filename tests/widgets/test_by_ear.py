"""Labelling by ear: what the buttons write, what is proposed, and what is shown."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from widget_helpers import Tags, html_of

from colalib import widgets
from colalib.collection import Labels, labels
from colalib.data import corpora

SCRIPT = "<img src=x onerror=alert(1)>"


@pytest.fixture
def shown(folder, mel_store, tmp_path):
    """A labeller of 24 clips of a folder without labels; clips of a class lie together."""
    clips = mel_store.clips.iloc[::4].reset_index(drop=True)
    root = tmp_path / "field"
    for path in clips["path"]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / path, root / path)
    clips[["path", "group"]].to_csv(root / "index.csv", index=False)
    centres = {"low": -5, "middle": 0, "high": 5}
    x = np.random.default_rng(0).normal(size=(24, 8)) + clips["label"].map(centres).to_numpy()[:, None]
    space = widgets.Space(x, SimpleNamespace(embedding_=x[:, :2]))
    store = SimpleNamespace(clips=clips, mel=mel_store.mel)
    return widgets.labeller(corpora.load(root), store, space)


def give(shown, name, clips):
    """Label some clips as a person does: drag around them, type, press."""
    shown.page.picked = list(clips)
    shown.name.value = name
    shown.all.click()


def written(shown):
    """Return the labels in index.csv, in the order of the clips."""
    table = pd.read_csv(shown.labels.index, dtype=str, keep_default_na=False).set_index("path")
    return table.loc[shown.paths, "label"].tolist()


def test_the_selected_clip_is_labelled(shown):
    shown.page.selected = 3
    assert shown.page.titles[3] in shown.selected.value
    assert "no label" in shown.selected.value
    shown.page.picked = [2, 3, 4]
    shown.name.value = " wren "
    shown.this.click()
    assert written(shown) == ["wren" if i == 3 else "" for i in range(24)]
    assert "1 clip labelled wren." in shown.message.value
    assert "wren" in shown.selected.value
    assert shown.page.picked == [2, 4]  # what is left to label


def test_all_clips_in_the_list_are_labelled(shown):
    shown.page.picked = [1, 2, 7]
    assert "(3)" in shown.all.description
    give(shown, "owl", [1, 2, 7])
    assert [i for i, label in enumerate(written(shown)) if label == "owl"] == [1, 2, 7]
    assert shown.page.picked == []
    assert shown.name.options == ("owl",)


def test_the_map_is_coloured_by_the_labels(shown):
    assert shown.page.columns["label"]["names"] == [""]  # not by those of the store
    give(shown, "owl", [1, 2])
    column = shown.page.columns["label"]
    assert column["names"] == ["", "owl"]
    assert [i for i, code in enumerate(column["codes"]) if code] == [1, 2]


def test_undo_takes_back_the_last_label(shown):
    give(shown, "owl", [1, 2])
    give(shown, "wren", [2, 3])
    shown.back.click()
    assert written(shown)[:4] == ["", "owl", "owl", ""]
    assert "2 clips set back." in shown.message.value
    shown.back.click()
    shown.back.click()
    assert set(written(shown)) == {""}
    assert "0 clips set back." in shown.message.value


@pytest.mark.parametrize(("name", "clips", "said"), [("", [1], "Type what you hear."), ("owl", [], "Choose")])
def test_what_is_missing_is_said(shown, name, clips, said):
    before = shown.labels.index.read_bytes()
    give(shown, name, clips)
    assert said in shown.message.value
    assert shown.labels.index.read_bytes() == before


def test_clips_without_labels_are_proposed(shown):
    shown.next.click()
    assert len(set(shown.page.picked)) == 10
    give(shown, "owl", shown.page.picked)
    shown.next.click()
    assert {shown.given()[i] for i in shown.page.picked} == {""}
    give(shown, "wren", range(24))
    shown.next.click()
    assert shown.page.picked == []
    assert "All clips have a label." in shown.message.value


def test_the_curve_grows_and_shrinks_with_the_labels(shown):
    assert shown.curve == []
    assert "The curve begins" in shown.picture.value
    give(shown, "low", range(16, 22))
    give(shown, "high", range(6))
    give(shown, "middle", range(8, 14))
    assert [point.labels for point in shown.curve] == [12, 18]
    assert shown.curve[-1].mean > 0.9
    assert "18: " in Tags(shown.picture.value).tags[0][1]["alt"]
    shown.back.click()
    assert [point.labels for point in shown.curve] == [12]


def test_labels_of_somebody_else_are_shown_too(shown):
    other = Labels(shown.labels.root)
    other.set([shown.paths[5]], "rain")
    give(shown, "owl", [1])
    assert shown.given()[5] == "rain"
    assert written(shown)[5] == "rain"


def test_a_read_only_folder_is_told_in_a_line(shown, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(labels, "locked", refuse)
    give(shown, "owl", [1, 2])
    assert "Read-only file system" in shown.message.value
    assert shown.page.picked == [1, 2]
    assert set(shown.given()) == {""}
    monkeypatch.undo()
    shown.all.click()
    assert written(shown)[1:3] == ["owl", "owl"]


def test_labels_are_shown_as_text(shown):
    shown.page.selected = 1
    give(shown, SCRIPT, [1, 2])
    read = Tags(html_of(shown))
    assert read.text.count(SCRIPT) == 2  # the message, and the clip that is selected
    assert not [tag for tag in read.tags if "onerror" in tag[1]]
    assert written(shown)[1] == SCRIPT


def test_a_picture_stands_in_for_the_labeller(shown):
    assert shown._repr_mimebundle_()["image/png"]
    give(shown, "cost_$5_$6", range(8))
    give(shown, "_silence_", range(8, 20))
    assert shown._repr_mimebundle_()["image/png"]
