"""The widgets without a browser: what they compute, what they remember, what they show where they
cannot run.
"""

import base64
import json
import time

import ipywidgets as w
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from ipywidgets.widgets import widget
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from colalib import cli, course, evaluation, training, widgets
from colalib.data import audio, corpora
from colalib.data.audio import MelConfig
from colalib.data.clips import Clips, pretraining_clips
from colalib.encoder import Encoder
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training.runs import read_checkpoint
from colalib.widgets import explorer, laboratory, maps, pairs, panel, parts


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLA_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLA_PROFILE", raising=False)


@pytest.fixture
def corpus(folder):
    return corpora.load(folder)


def named(shown, kind, text=""):
    """The first widget of a class under `shown` whose description holds `text`."""
    if isinstance(shown, kind) and text in getattr(shown, "description", ""):
        return shown
    for child in getattr(shown, "children", ()):
        if (found := named(child, kind, text)) is not None:
            return found
    return None


# -------------------------------------------------------------------------------------------- parts


def test_sound_keeps_its_loudness_and_plays_nothing_by_itself():
    wave = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    shown = parts.sound(wave, "a <b>")
    assert "autoplay" not in shown and "a &lt;b&gt;" in shown and "1.0 s, peak -12, rms -15 dBFS" in shown
    data = base64.b64decode(shown.split("base64,")[1].split('"')[0])
    assert np.abs(np.frombuffer(data[44:], np.int16)).max() == pytest.approx(0.25 * 32768, rel=1e-3)


def test_choices_survive(corpus, mel_store):
    first = widgets.pair_player(corpus, mel_store)
    named(first, widgets_of("ToggleButtons")).value = "quiz"
    assert course.choices()["pair_player"]["mode"] == "quiz"
    assert named(widgets.pair_player(corpus, mel_store), widgets_of("ToggleButtons")).value == "quiz"


def widgets_of(name):
    import ipywidgets

    return getattr(ipywidgets, name)


@pytest.mark.parametrize("damage", ["", "[]", '{"pair_player": {"mode": "dance"}}'])
def test_damaged_choices_are_passed_over(corpus, mel_store, damage):
    course.runs().mkdir(parents=True)
    course.choices_file().write_text(damage)
    assert named(widgets.pair_player(corpus, mel_store), widgets_of("ToggleButtons")).value == "listen"


# ----------------------------------------------------------------------------------- mel laboratory


def test_analysis_counts_and_warns():
    wave = np.random.default_rng(0).normal(scale=0.1, size=16_000).astype(np.float32)
    view = laboratory.analyse(wave, MelConfig())
    assert (
        view.frames.shape == (101, 64)
        and view.filters.shape == (64, 513)
        and "empty bands" not in view.numbers
    )
    assert view.numbers["frames"] == "101, one every 10.0 ms" and "6,464" in view.numbers["values"]
    many = laboratory.analyse(wave, MelConfig(n_mels=256, n_fft=512))
    assert int(many.numbers["empty bands"].split(":")[0]) > 0


def test_laboratory_follows_its_sliders_and_goes_back(folder):
    shown = widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))})
    numbers = shown.children[0].children[1].children[0]
    before = numbers.value
    named(shown, widgets_of("IntSlider"), "bands").value = 16
    assert numbers.value != before
    named(shown, widgets_of("Button"), "settings").click()
    assert numbers.value == before


def test_a_file_that_is_no_sound_is_refused_in_a_line(folder):
    shown = widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))})
    said = shown.children[0].children[1].children[-1]
    drop = named(shown, parts.FileDrop)
    drop._handle_custom_msg({"name": "a.wav", "start": 0, "size": 8}, [memoryview(b"no sound")])
    assert said.value.startswith("a.wav: unreadable")
    good = next(folder.rglob("*.flac")).read_bytes()
    drop._handle_custom_msg({"name": "b.flac", "start": 0, "size": len(good)}, [memoryview(good)])
    assert named(shown, widgets_of("Dropdown"), "clip").value == "b.flac (yours)"


# -------------------------------------------------------------------------------------- pair player


def test_a_question_has_one_answer(mel_store):
    rng, answers = np.random.default_rng(0), []
    groups = mel_store.clips["group"].values
    for _ in range(60):
        q = pairs.draw(mel_store, rng)
        same = [clip == q.anchor[0] for clip, _ in q.candidates]
        assert same.index(True) == q.answer and sum(same) == 1
        assert all(groups[clip] != groups[q.anchor[0]] for clip, _ in q.candidates if clip != q.anchor[0])
        answers.append(q.answer)
    assert set(answers) == {0, 1, 2, 3}


def test_an_encoder_finds_the_anchor_itself(mel_store):
    q = pairs.draw(mel_store, np.random.default_rng(1))
    anchor = pairs.segment(mel_store, q.anchor)
    others = [pairs.segment(mel_store, c) for c in q.candidates]
    encoder = evaluation.calibrate_batchnorm(Encoder(), pretraining_clips([mel_store]))
    assert anchor.shape == (98, 64) and pairs.choice(encoder, anchor, [*others, anchor]) == 4


def test_the_quiz_keeps_score(corpus, mel_store):
    shown = widgets.pair_player(corpus, mel_store, {"random": Encoder()})
    named(shown, widgets_of("ToggleButtons")).value = "quiz"
    assert "positive" not in "".join(v.children[0].value for v in shown.children[1].children)
    button = named(shown, widgets_of("Button"), "this one")
    button.click()
    verdict, forget = shown.children[2].children
    button.click()  # once more: it counts once
    assert {name: asked for name, (_, asked) in course.choices()["quiz"].items()} == {"you": 1, "random": 1}
    assert "right so far: you" in verdict.value and button.disabled
    seen = [v.children[0].value for v in shown.children[1].children]
    again = widgets.pair_player(corpus, mel_store, {"random": Encoder()})  # as after a restart
    assert [v.children[0].value for v in again.children[1].children] != seen, "another question"
    forget.click()
    assert course.choices()["quiz"] == {}


# ----------------------------------------------------------------------------------- training panel


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_untouched_controls_say_the_defaults(kind):
    made = panel.controls(kind, panel.SHOWN[kind])
    assert set(made) == set(panel.SHOWN[kind])
    command = "pretrain" if kind is PretrainConfig else "finetune"
    given = [command, "store", *panel.arguments(made), "--out", "run", "--minutes", "1"]
    args = cli.parser().parse_args(given)
    assert cli.configure(kind, args, {}) == kind(minutes=1)


def wait(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)


def test_training_stops_resumes_and_finishes(mel_store, tmp_path):
    run = tmp_path / "panel" / "run-1"
    given = ["pretrain", str(mel_store.path), "--steps", "60", "--batch-size", "16"]
    job = panel.Job(run, given)
    # before the run has written a thing
    made_anew = panel.training_panel([mel_store.path], run.parent)
    wait(lambda: not named(made_anew, w.Button, "Stop").disabled, 10)
    wait(lambda: len(panel.metrics(run)) > 2)
    assert 0 < panel.progress(run)[0] < 1
    assert panel.Job(run).found(), "a later kernel finds it"
    assert list(panel.table(run.parent, "pretrain")["state"]) == ["training"]
    job.stop()
    wait(lambda: not job.found())
    assert job.error() == "" and not (run / "encoder.safetensors").exists()
    assert panel.metrics(run)["step"].max() - read_checkpoint(run / "last.ckpt")["global_step"] < 5, (
        "nothing is lost"
    )
    assert list(panel.table(run.parent, "pretrain")["state"]) == ["stopped"]
    again = panel.Job(run, ["pretrain", str(mel_store.path), "--resume"])
    wait(lambda: not again.found())
    row = panel.table(run.parent, "pretrain").iloc[0]
    assert (row["state"], row["steps"]) == ("finished", "60") and "batch size 16" in row["settings"]
    clips = pretraining_clips([mel_store])
    similarity, step = panel.similarities(run, clips, 8)
    assert similarity.shape == (8, 8) and step == 60
    refused = panel.Job(run, given)
    wait(lambda: not refused.found())
    assert "holds a run already" in refused.error()
    assert panel.table(run.parent, "pretrain").iloc[0]["state"] == "finished"


def test_a_classifier_from_scratch_stops_and_resumes_by_the_buttons(mel_store, tmp_path):
    shown = panel.training_panel(
        [mel_store.path], tmp_path / "panel", FinetuneConfig, starts={"scratch": None}
    )
    named(shown, w.FloatSlider, "minutes").value = 0.25
    named(shown, w.BoundedIntText, "seed").value = 3
    train, stop, resume = (named(shown, w.Button, name) for name in ("Train", "Stop", "Resume"))
    train.click(), train.click()  # the second press does nothing
    run = tmp_path / "panel" / "run-1"
    wait(lambda: len(panel.metrics(run)) > 2)
    stop.click()
    wait(lambda: not train.disabled)
    assert not resume.disabled and not (run / "encoder.safetensors").exists()
    resume.click()
    wait(lambda: not train.disabled)
    assert (run / "encoder.safetensors").exists() and len(list(run.parent.glob("*/config.json"))) == 1
    named(shown, w.Button, "defaults").click()
    assert named(shown, w.BoundedIntText, "seed").value == 0


def test_a_training_that_fails_says_why(tmp_path):
    job = panel.Job(tmp_path / "run-1", ["pretrain", str(tmp_path / "nowhere")])
    wait(lambda: not job.found())
    assert "nowhere" in job.error() and "Traceback" not in job.error()


def test_the_picked_encoder_is_the_course_s(mel_store, tmp_path, capsys):
    run = training.pretrain([mel_store], tmp_path / "runs" / "mine", PretrainConfig(steps=2), progress=False)
    course.choices_file().write_text(json.dumps({"encoder": str(run)}))
    assert course.encoder() == run and "picked" in capsys.readouterr().out
    assert course.supervised_folder(run).name == "supervised-mine"


# ------------------------------------------------------------------------------------- results, map


@pytest.fixture
def predictions(mel_store):
    clips = mel_store.clips
    made = clips[["clip_id", "group", "label"]].assign(task="tones/label", fold="")
    rng = np.random.default_rng(0)
    wrong = [made["label"].where(rng.random(len(made)) < share, "low") for share in (0.5, 0.8)]
    return pd.concat(
        [
            made.assign(model=m, seed=s, predicted=w)
            for m, w in zip(("random", "probe"), wrong)
            for s in (0, 1)
        ]
    )


def test_confusions_and_the_clips_behind_them(predictions):
    counts = explorer.confusion(predictions, "probe")
    assert counts.values.sum() == 96 and counts.loc["low", "low"] == 32
    found = explorer.misclassified(predictions, "probe", "high", "low")
    assert len(found) == counts.loc["high", "low"] > 0


def test_pressing_a_cell_brings_its_clips(corpus, predictions):
    shown = widgets.results_explorer(corpus, predictions)
    heard = shown.children[2].children[1].children[0]
    assert "<audio" not in heard.value
    cell = next(c for c in shown.children[2].children[0].children[1].children if getattr(c, "tooltip", None))
    cell.click()
    assert heard.value.count("<audio") == 6
    first, more = heard.value, shown.children[2].children[1].children[1]
    more.click()
    assert heard.value != first and heard.value.count("<audio") == 6


def test_the_explorer_leaves_no_widgets_behind(corpus, predictions):
    shown = widgets.results_explorer(corpus, predictions)
    model, before = shown.children[0].children[1], len(widget._instances)
    for name in ("random", "probe", "random"):
        model.value = name
    assert len(widget._instances) == before


def test_a_large_file_comes_in_slices():
    came = []
    drop = parts.FileDrop(lambda name, content: came.append((name, content)))
    content = bytes(range(256)) * 40_000  # 10 MB
    for start in range(0, len(content), 4_000_000):
        message = {"name": "a/b.wav", "start": start, "size": len(content)}
        drop._handle_custom_msg(message, [content[start : start + 4_000_000]])
    drop._handle_custom_msg({"name": "empty.wav", "start": 0, "size": 0}, [b""])
    assert came == [("b.wav", content), ("empty.wav", b"")]


@pytest.fixture
def space(mel_store):
    encoder = evaluation.calibrate_batchnorm(Encoder(), pretraining_clips([mel_store]))
    x = evaluation.embed(encoder, Clips([mel_store], [np.arange(len(mel_store))]), progress=False)

    class Plane(PCA):  # stands for UMAP, which takes long
        def fit(self, x):
            super().fit(x)
            self.embedding_ = self.transform(x)
            return self

    return widgets.Space(x, Plane(2).fit(StandardScaler().fit_transform(x)), encoder)


def test_a_recording_lands_where_it_belongs(corpus, mel_store, space):
    paths = dict(zip(corpus.clips["clip_id"], corpus.clips["path"]))
    i = 17
    wave = audio.load_audio(corpus.root / paths[mel_store.clips["clip_id"][i]])
    xy, near = maps.place(space, wave, mel_store)
    assert near[0] == i and np.allclose(
        xy, space.reducer.embedding_[i], atol=0.05 * np.ptp(space.reducer.embedding_)
    )


def test_the_page_has_all_that_a_press_needs(corpus, mel_store, space, tmp_path):
    shown = widgets.embedding_map(corpus, mel_store, {"a": space, "b": space}, ["label", "parity"])
    page, n = shown.children[0], len(mel_store)
    assert len(page.offsets) == n + 1 and page.offsets[-1] == len(page.previews) and page.links == []
    assert len(page.previews) / n < 20_000  # 10 MB for 500 clips
    assert len(page.points) == 2 * n * 2 * 4 and len(page.near[0]) == 5 * n
    groups = mel_store.clips["group"].values
    assert all(groups[j] != groups[0] for j in page.near[0][:5])
    path, said = shown.children[1].children[1:]
    path.value = str(tmp_path / "nowhere.wav")
    assert said.value == "nowhere.wav: file not found" and page.added == []
    path.value = str(corpus.root / corpus.clips["path"][0])
    assert page.added[0]["sound"].startswith("data:audio/mpeg") and len(page.added[0]["points"]) == 2


def test_files_that_a_server_gives_out_are_linked(folder, tmp_path, monkeypatch):
    flac = next(folder.rglob("*.flac"))
    started = {
        "JUPYTER_RUNTIME_DIR": str(tmp_path),
        "JPY_PARENT_PID": "7",
        "COLA_RUNS": str(tmp_path / "runs"),
    }
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    server = tmp_path / "jpserver-7.json"
    server.write_text(json.dumps({"root_dir": str(folder)}))
    assert maps.links([flac]) == [f"files/{flac.relative_to(folder).as_posix()}"]
    unplayable = tmp_path / "sound.aiff"
    unplayable.write_bytes(flac.read_bytes())
    for root in (tmp_path / "runs", tmp_path / "notebooks"):  # nothing above it is given out
        root.mkdir(exist_ok=True)
        monkeypatch.chdir(root)
        server.write_text(json.dumps({"root_dir": str(root)}))
        for address in maps.links([flac, unplayable]):
            assert len(audio.load_audio(root / address.removeprefix("files/"))) > 16_000


def test_where_widgets_cannot_run_a_picture_stands(corpus, mel_store, predictions, space, folder, tmp_path):
    plt.close("all")
    every = [
        widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))}),
        widgets.pair_player(corpus, mel_store),
        widgets.training_panel([mel_store.path], tmp_path),
        widgets.results_explorer(corpus, predictions),
        widgets.embedding_map(corpus, mel_store, {"a": space}),
    ]
    for shown in every:
        bundle = shown._repr_mimebundle_()
        assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"
        assert "application/vnd.jupyter.widget-view+json" in bundle
    assert not plt.get_fignums(), "a figure that stays open would be shown a second time"
