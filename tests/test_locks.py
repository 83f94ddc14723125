"""Who writes the same folder or file waits for the other, says so, and then looks at what is there."""

import threading
import time

import pytest

from colalib import files, training
from colalib.data import corpora, store
from colalib.data.corpora import download
from colalib.data.scores import build as scores
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training import finetuning, pretraining
from colalib.widgets import choices


def waits_for(folder, call, capsys, meanwhile=lambda: None):
    """Lock `folder`, start `call` in a thread, and see it wait; return what it returns when it may go on.

    `meanwhile` is done while it waits.
    """
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    with files.locked(folder):
        before = sorted(folder.parent.rglob("*"))
        thread.start()
        said, deadline = "", time.monotonic() + 240
        while "waiting for another process" not in said and thread.is_alive() and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.01)
        assert thread.is_alive(), "it did not wait"
        assert f"waiting for another process that uses {folder}" in said
        assert sorted(folder.parent.rglob("*")) == before, "it wrote something"
        meanwhile()
    thread.join(240)
    (result,) = results
    return result


def test_preparing_waits(folder, mel_store, tmp_path, capsys):
    corpus, out = corpora.load(folder), tmp_path / "s"
    built = waits_for(out, lambda: store.build(corpus, out, jobs=1, progress=False), capsys)
    assert len(built) == len(mel_store)


@pytest.mark.parametrize("kind", [pretraining, finetuning])
def test_a_training_waits(mel_store, tmp_path, monkeypatch, capsys, kind):
    """It finds a finished run afterwards."""
    monkeypatch.setattr(kind, "enter_run", lambda *args: True)
    out = tmp_path / "run"

    def train():
        if kind is pretraining:
            return training.pretrain([mel_store], out, PretrainConfig(steps=1, batch_size=8))
        return training.finetune(mel_store, out, FinetuneConfig(steps=1, batch_size=8))

    assert waits_for(out, train, capsys) == out


def test_rendering_scores_waits_and_leaves_alone_what_is_complete_then(tmp_path, monkeypatch, capsys):
    root = tmp_path / "scores"
    monkeypatch.setattr(scores, "add_missing", None)  # may not be called

    def complete():
        config = {"version": scores.VERSION, "seed": 0, "clips_per_class": 1}
        files.write_json(root / "config.json", config)
        (root / "index.csv").write_text("path\n")

    waits_for(root, lambda: scores.build(root, 1, progress=False), capsys, complete)
    assert (root / "index.csv").read_text() == "path\n"


def test_fetching_waits_and_leaves_alone_what_is_there_then(tmp_path, monkeypatch, capsys):
    archive = download.Archive("http://127.0.0.1:9/made.zip", "sha256:0", "made", 10, 10)
    monkeypatch.setattr(download, "_download", None)  # may not be called
    target = tmp_path / "made"

    def fetch():
        return download.fetch(archive, tmp_path, progress=False)

    assert waits_for(target, fetch, capsys, target.mkdir) == target


def test_a_choice_waits_and_keeps_what_was_chosen_meanwhile(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(choices, "runs_folder", lambda: tmp_path)

    def choose():
        return choices.change_choice("a", lambda settings: {"x": 1})

    def another():
        files.write_json(tmp_path / "choices.json", {"b": {"y": 2}})

    waits_for(tmp_path / "choices.json", choose, capsys, another)
    assert choices.read_choices() == {"a": {"x": 1}, "b": {"y": 2}}


def test_two_writers_of_one_file_do_not_share_its_part(tmp_path):
    target = tmp_path / "a.txt"
    with files.atomic(target, "w") as first:
        first.write("first, ")
        with files.atomic(target, "w") as second:
            second.write("second")
        assert target.read_text() == "second"
        first.write("whole")
    assert target.read_text() == "first, whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
