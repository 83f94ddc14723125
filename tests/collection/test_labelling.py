"""Labels in index.csv, what to label next, and how good the labels are by now."""

import threading

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers import RATE, tone
from sklearn.linear_model import LogisticRegression

from colalib import files
from colalib.collection import Labels, compact, cross_validated, labels, propose
from colalib.collection.labelling import STRATEGIES, fit_probe
from colalib.collection.simulation import labels_to, simulate, summary
from colalib.data import corpora, store
from colalib.errors import UserError


@pytest.fixture
def unlabelled(tmp_path):
    """A folder with four clips, without an index.csv."""
    root = tmp_path / "field"
    root.mkdir()
    for name in ("-a.wav", "b.wav", "c, d.wav", "é.wav"):
        soundfile.write(root / name, tone(300, 0.3, 1), RATE)
    return root


# -------------------------------------------------------------------------------------- index.csv


def test_the_first_label_makes_an_index_of_all_clips(unlabelled):
    given = Labels(unlabelled)
    assert set(given.read()) == {""}
    assert not given.index.exists()
    assert given.set(["b.wav", "-a.wav"], "wren") == 2
    clips = corpora.load(unlabelled).clips
    assert dict(zip(clips["path"], clips["label"])) == {
        "-a.wav": "wren",
        "b.wav": "wren",
        "c, d.wav": "",
        "é.wav": "",
    }


def test_classes_of_sub_folders_are_kept(tmp_path):
    for name in ("owl/1.wav", "wren/2.wav"):
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / name, tone(300, 0.3, 1), RATE)
    Labels(tmp_path, "weather").set(["owl/1.wav"], "rain")
    clips = corpora.load(tmp_path).clips
    assert clips["label"].tolist() == ["owl", "wren"]
    assert clips["weather"].tolist() == ["rain", ""]


ODD = ["a, b", 'say "it"', "<img src=x onerror=alert(1)>", "🐦 corvo", "צרצר", "'quoted'", "=1+1", "'=x"]
ODD += ["-3", "N/A"]


@pytest.mark.parametrize("label", ODD)
def test_odd_labels_survive(unlabelled, label):
    given = Labels(unlabelled)
    given.set(["b.wav"], f" {label} ")
    assert given.read()["b.wav"] == label
    assert corpora.load(unlabelled).clips.set_index("path").loc["b.wav", "label"] == label


def test_no_label_is_a_formula_in_a_spreadsheet(unlabelled):
    Labels(unlabelled).set(["b.wav"], "=HYPERLINK(1)")
    cells = pd.read_csv(unlabelled / "index.csv")
    assert "'=HYPERLINK(1)" in set(cells["label"])
    assert "'-a.wav" in set(cells["path"])


TABLES = {
    "extra columns": b'path,label,=note,who\nb.wav,,"=1, or so",Ann\n./-a.wav,owl,"two\nlines",\n',
    "of a spreadsheet": b"\xef\xbb\xbfnumber,path,label\r\n007,b.wav,\r\n1.50,-a.wav,owl\r\n",
    "of Excel": b"sep=,\r\npath,label\r\nb.wav,\r\n-a.wav,owl\r\n",
    "two kinds of line ends": b'path,label,note\nb.wav,,"two\r\nlines"\n-a.wav,owl,\n',
    "without labels": b"path,who\nb.wav,Ann\n-a.wav,Bob\n",
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_nothing_else_in_the_index_changes(unlabelled, table):
    index = unlabelled / "index.csv"
    index.write_bytes(table)
    reading = {"dtype": str, "keep_default_na": False, "skiprows": int(table.startswith(b"sep="))}
    before = pd.read_csv(index, **reading)
    given = Labels(unlabelled)
    given.set(["b.wav"], "wren")
    after = pd.read_csv(index, **reading)
    pd.testing.assert_frame_equal(before.drop(columns="label", errors="ignore"), after.drop(columns="label"))
    assert after["label"][0] == "wren"
    assert index.read_bytes()[:3] == table[:3]
    ends = [content.count(b"\r\n") for content in (index.read_bytes(), table)]
    assert ends[0] == ends[1]
    assert (unlabelled / "index.csv.before-1").read_bytes() == table


def test_undo_takes_back_step_by_step(unlabelled):
    given = Labels(unlabelled)
    given.set(["b.wav"], "wren")
    given.set(["b.wav", "é.wav"], "owl")
    assert given.undo() == 2
    assert given.read().to_dict() == {"-a.wav": "", "b.wav": "wren", "c, d.wav": "", "é.wav": ""}
    assert given.undo() == 1
    assert set(given.read()) == {""}
    assert given.undo() == 0


def test_undo_leaves_what_somebody_else_gave_since(unlabelled):
    mine, other = Labels(unlabelled), Labels(unlabelled)
    mine.set(["b.wav", "é.wav"], "wren")
    other.set(["b.wav"], "owl")
    assert mine.undo() == 1
    assert mine.read()[["b.wav", "é.wav"]].tolist() == ["owl", ""]


def test_a_label_given_again_is_no_step(unlabelled):
    given = Labels(unlabelled)
    given.set(["b.wav"], "wren")
    written = given.index.stat().st_mtime_ns
    assert given.set(["b.wav"], "wren") == 0
    assert given.index.stat().st_mtime_ns == written
    assert given.undo() == 1


def test_former_versions_are_kept_but_not_all(unlabelled):
    given = Labels(unlabelled)
    for i in range(labels.KEPT + 3):
        given.set(["b.wav"], f"label {i}")
    kept = sorted(path.name for path in unlabelled.glob("index.csv.*"))
    assert kept == [f"index.csv.before-{i}" for i in range(1, labels.KEPT + 1)]
    assert f"label {labels.KEPT + 1}" in (unlabelled / "index.csv.before-1").read_text()


def test_tries_that_fail_push_no_former_version_out(unlabelled, monkeypatch):
    given = Labels(unlabelled)
    for i in range(labels.KEPT):
        given.set(["b.wav"], f"label {i}")
    kept = {path.name: path.read_bytes() for path in unlabelled.glob("index.csv.*")}
    monkeypatch.setattr(labels.pd.DataFrame, "to_csv", refuse)
    for _ in range(labels.KEPT + 1):
        with pytest.raises(UserError, match="cannot be written"):
            given.set(["b.wav"], "last")
    now = {path.name: path.read_bytes() for path in unlabelled.glob("index.csv.*")}
    assert len(now) == labels.KEPT
    assert set(now.values()) - {(unlabelled / "index.csv").read_bytes()} <= set(kept.values())
    assert len(set(now.values())) == labels.KEPT


def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")


def test_writers_do_not_lose_each_other_s_labels(unlabelled):
    for i in range(9):
        soundfile.write(unlabelled / f"{i}.wav", tone(300, 0.2, i), RATE)
    raised = []

    def work(first):
        try:
            for i in range(first, 9, 3):
                Labels(unlabelled).set([f"{i}.wav"], f"label {i}")
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    found = Labels(unlabelled).read()
    assert [found[f"{i}.wav"] for i in range(9)] == [f"label {i}" for i in range(9)]


def one_line(error) -> str:
    """Return the message of an error, which is one line."""
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("label", ["two\nlines", "a\0b", "x\u2028y", "\ud800"])
def test_a_label_is_a_line_of_text(unlabelled, label):
    with pytest.raises(UserError) as error:
        Labels(unlabelled).set(["b.wav"], label)
    assert "use one line of text" in one_line(error)
    assert not (unlabelled / "index.csv").exists()


def test_a_clip_that_the_index_does_not_name_is_refused(unlabelled):
    (unlabelled / "index.csv").write_text("path\nb.wav\n")
    with pytest.raises(UserError) as error:
        Labels(unlabelled).set(["b.wav", "é.wav"], "wren")
    assert "no row for 'é.wav'" in one_line(error)
    assert (unlabelled / "index.csv").read_text() == "path\nb.wav\n"


@pytest.mark.parametrize("column", ["path", "group", "split", "frames", "", "two\nlines", " label"])
def test_columns_that_hold_no_labels_are_refused(unlabelled, column):
    with pytest.raises(UserError) as error:
        Labels(unlabelled, column)
    one_line(error)


@pytest.mark.parametrize("at", ["lock", "file"])
def test_a_read_only_folder_is_told_in_a_line(unlabelled, monkeypatch, at):
    before = sorted(unlabelled.iterdir())

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(*{"lock": (files.FileLock, "acquire"), "file": (labels, "atomic")}[at], refuse)
    given = Labels(unlabelled)
    with pytest.raises(UserError) as error:
        given.set(["b.wav"], "wren")
    assert "Read-only file system" in one_line(error)
    assert {*unlabelled.iterdir()} - {*before} <= {unlabelled / ".index.csv.lock"}
    assert given.undo() == 0


def test_a_write_that_fails_leaves_the_former_index(unlabelled, monkeypatch):
    given = Labels(unlabelled)
    given.set(["b.wav"], "wren")
    before = given.index.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        given.set(["b.wav"], "owl")
    with pytest.raises(UserError, match="No space left"):
        given.undo()
    monkeypatch.undo()
    assert given.index.read_bytes() == before
    assert not list(unlabelled.glob("*.part"))
    assert given.undo() == 1  # of the step that had been written


# ------------------------------------------------------------------------------- what to label next


@pytest.fixture(scope="module")
def clouds():
    """Features of four classes of 30 clips, compact, and their classes."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(4, 40))
    features = np.concatenate([centre + rng.normal(size=(30, 40)) for centre in centres])
    classes = np.repeat(np.array([*"abcd"], dtype=object), 30)
    return compact(features).transform(features), classes


def some_labels(classes, n):
    """Return labels of n random clips, "" of the others."""
    given = np.full(len(classes), "", dtype=object)
    chosen = np.random.default_rng(1).permutation(len(classes))[:n]
    given[chosen] = classes[chosen]
    return given


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n", [0, 1, 40])
def test_proposals_are_different_clips_without_labels(clouds, strategy, n):
    x, classes = clouds
    given = some_labels(classes, n)
    chosen = propose(x, given, 10, strategy, seed=3)
    assert len(set(chosen)) == 10
    assert set(given[chosen]) == {""}
    assert (propose(x, given, 10, strategy, seed=3) == chosen).all()


def test_the_first_proposals_are_of_all_classes(clouds):
    x, classes = clouds
    first = propose(x, np.full(len(x), "", dtype=object), 4)
    assert set(classes[first]) == {*"abcd"}
    one = np.where(np.arange(len(x)) == 7, "a", "")
    assert set(classes[propose(x, one, 3)]) == {*"bcd"}


def test_uncertain_clips_are_proposed():
    x = np.concatenate([np.linspace(-10, 10, 41)[:, None], np.zeros((41, 1))], axis=1)
    given = np.full(41, "", dtype=object)
    given[[0, 1]], given[[39, 40]] = "left", "right"
    for strategy in ("margin", "entropy"):
        assert sorted(propose(x, given, 3, strategy)) == [19, 20, 21]


def test_different_clips_are_proposed():
    """Of many equal clips that are uncertain, one is enough."""
    x = np.array([[-9.0, 0], [9, 0], *[[0, 0]] * 20, [0.2, 4], [0.2, -4], *[[8, 0]] * 30])
    given = np.full(len(x), "", dtype=object)
    given[:2] = "left", "right"
    chosen = propose(x, given, 10, "margin, diverse")
    assert {22, 23} <= set(chosen)
    assert len(set(chosen)) == 10


def test_what_is_left_is_proposed_at_the_end(clouds):
    x, classes = clouds
    given = some_labels(classes, 117)
    assert set(propose(x, given, 10)) == set(np.flatnonzero(given == ""))
    assert len(propose(x, classes, 10)) == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_clips_are_enough(n):
    features = np.random.default_rng(0).normal(size=(n, 8))
    x = compact(features).transform(features)
    assert len(propose(x, np.full(n, "", dtype=object), 5)) == n


@pytest.mark.parametrize("n", [6, 30, 90])
def test_the_probe_is_the_logistic_regression_of_all_dimensions(clouds, n):
    x, classes = clouds
    chosen = np.random.default_rng(2).permutation(len(x))[:n]
    reference = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8).fit(x[chosen], classes[chosen])
    probe = fit_probe(x[chosen], classes[chosen])
    assert np.allclose(probe.predict_proba(x), reference.predict_proba(x), atol=0.01)


# ----------------------------------------------------------------------------------------- the curve


def test_held_out_groups_tell_the_accuracy(clouds):
    x, classes = clouds
    found = cross_validated(x, some_labels(classes, 40), np.arange(len(x)))
    assert found.labels == 40
    assert 0.9 < found.mean <= 1
    assert found.low < found.mean <= found.high
    shuffled = np.random.default_rng(0).permutation(some_labels(classes, 60))
    assert cross_validated(x, shuffled, np.arange(len(x))).mean < 0.6


def test_twins_do_not_help_each_other():
    """Every clip is there twice, with labels at random: only who knows the twin is right."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 99)).repeat(2, axis=0), np.array([*"ab"])[rng.integers(2, size=30)].repeat(2)
    assert cross_validated(x, y, np.arange(60)).mean > 0.9
    assert cross_validated(x, y, np.arange(60) // 2).mean < 0.75


def test_too_few_labels_have_no_accuracy(clouds):
    x, classes = clouds
    clips = np.arange(len(x))
    assert cross_validated(x, some_labels(classes, 0), clips) is None
    assert cross_validated(x, some_labels(classes, 1), clips) is None
    assert cross_validated(x, np.where(clips < 20, "a", ""), clips) is None
    assert cross_validated(x, classes, np.zeros(len(x))) is None


# ------------------------------------------------------------------------------------ the simulation


def test_labels_to_a_goal():
    curves = np.full((3, 10), 0.9)
    curves[0, :2] = 0.6, 0.7  # at 20 labels 0.7, at 30 labels 0.9
    curves[2] = 0.5
    assert np.allclose(labels_to(curves, 0.8), [25, 10, 110])


def test_a_summary_compares_with_random():
    rng = np.random.default_rng(0)
    slow = np.linspace(0.5, 0.86, 10) + 0.01 * rng.normal(size=(5, 3, 10))
    found = summary({"random": slow, "spread": slow + 0.08})["spread"]
    low, high = found["fewer labels than random"]["ci95"]
    assert 10 < low <= found["fewer labels than random"]["mean"] <= high < 30
    assert np.allclose(found["more accurate than random"], 0.08)
    assert np.allclose(found["more accurate than random, ci95"], 0.08)
    never = summary({"random": slow - 0.3, "spread": slow})["spread"]
    assert never["labels to the goal"]
    assert never["fewer labels than random"] is None


@pytest.mark.slow
def test_the_simulation_gives_the_same_numbers_again(folder, tmp_path):
    clips = corpora.load(folder).clips
    clips["split"] = clips["group"].str[-1].astype(int).mod(3).astype(str)
    made = store.build(corpora.Corpus("tones", folder, clips), tmp_path / "store", jobs=1, progress=False)
    features = np.stack([np.asarray(made.frames(i), np.float32).mean(axis=0) for i in range(len(made))])
    runs = [simulate(made, features, 1, ("random", "spread"), progress=False) for _ in range(2)]
    assert runs[0]["spread"].shape == (3, 1, 10)
    assert np.array_equal(runs[0]["spread"], runs[1]["spread"])
    assert runs[0]["spread"][:, 0, -1].min() > 0.8
