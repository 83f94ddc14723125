"""The widgets without a browser: what they compute, what they remember, what they show where they
cannot run.
"""

import base64
import json
import time

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
from colalib.evaluation import intervals
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training.cost import CORPORA, Constants
from colalib.training.runs import Run, read_checkpoint
from colalib.widgets import controls, explorer, laboratory, maps, pairs, panel, parts
from colalib.widgets.choices import choices_file, keep_choice, read_choices
from colalib.widgets.job import Job


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLA_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLA_PROFILE", raising=False)


@pytest.fixture
def corpus(folder):
    return corpora.load(folder)


def send(drop, name, content, start=0, size=None):
    """Send a slice of a file to a drop button, as the page does."""
    message = {"name": name, "start": start, "size": len(content) if size is None else size}
    drop._handle_custom_msg(message, [memoryview(content)])


# -------------------------------------------------------------------------------------------- parts


def test_sound_keeps_its_loudness_and_plays_nothing_by_itself():
    wave = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    shown = parts.sound(wave, "a <b>")
    assert "autoplay" not in shown
    assert "a &lt;b&gt;" in shown
    assert "1.0 s, peak -12, rms -15 dBFS" in shown
    data = base64.b64decode(shown.split("base64,")[1].split('"')[0])
    assert np.abs(np.frombuffer(data[44:], np.int16)).max() == pytest.approx(0.25 * 32768, rel=1e-3)


def test_choices_survive(corpus, mel_store):
    widgets.pair_player(corpus, mel_store).mode.value = "quiz"
    assert read_choices()["pair_player"]["mode"] == "quiz"
    assert widgets.pair_player(corpus, mel_store).mode.value == "quiz"


@pytest.mark.parametrize("damage", ["", "[]", '{"pair_player": {"mode": "dance"}}'])
def test_damaged_choices_are_passed_over(corpus, mel_store, damage):
    choices_file().parent.mkdir(parents=True)
    choices_file().write_text(damage)
    assert widgets.pair_player(corpus, mel_store).mode.value == "listen"


def test_a_large_file_comes_in_slices():
    came = []
    drop = parts.FileDrop(lambda name, content: came.append((name, content)))
    content = bytes(range(256)) * 40_000  # 10 MB
    for start in range(0, len(content), 4_000_000):
        send(drop, "a/b.wav", content[start : start + 4_000_000], start, len(content))
    send(drop, "empty.wav", b"")
    assert came == [("b.wav", content), ("empty.wav", b"")]


# ----------------------------------------------------------------------------------- mel laboratory


def test_analysis_counts_and_warns():
    wave = np.random.default_rng(0).normal(scale=0.1, size=16_000).astype(np.float32)
    view = laboratory.analyse(wave, MelConfig())
    assert view.frames.shape == (101, 64)
    assert view.filters.shape == (64, 513)
    assert "empty bands" not in view.numbers
    assert view.numbers["frames"] == "101, one every 10.0 ms"
    assert "6,464" in view.numbers["values"]
    many = laboratory.analyse(wave, MelConfig(n_mels=256, n_fft=512))
    assert int(many.numbers["empty bands"].split(":")[0]) > 0


def test_laboratory_follows_its_sliders_and_goes_back(folder):
    lab = widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))})
    assert lab.config() == MelConfig()
    before = lab.numbers.value
    lab.sliders["n_mels"].value = 16
    assert lab.numbers.value != before
    lab.reset.click()
    assert lab.numbers.value == before


def test_a_file_that_is_no_sound_is_refused_in_a_line(folder):
    lab = widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))})
    send(lab.drop, "a.wav", b"no sound")
    assert lab.message.value.startswith("a.wav: unreadable")
    send(lab.drop, "b.flac", next(folder.rglob("*.flac")).read_bytes())
    assert lab.clip.value == "b.flac (yours)"


# -------------------------------------------------------------------------------------- pair player


def test_a_question_has_one_answer(mel_store):
    rng, answers = np.random.default_rng(0), []
    groups = mel_store.clips["group"].values
    for _ in range(60):
        q = pairs.draw(mel_store, rng)
        same = [clip == q.anchor[0] for clip, _ in q.candidates]
        assert same.index(True) == q.answer
        assert sum(same) == 1
        assert all(groups[clip] != groups[q.anchor[0]] for clip, _ in q.candidates if clip != q.anchor[0])
        answers.append(q.answer)
    assert set(answers) == {0, 1, 2, 3}


def test_an_encoder_finds_the_anchor_itself(mel_store):
    q = pairs.draw(mel_store, np.random.default_rng(1))
    anchor = pairs.segment(mel_store, q.anchor)
    others = [pairs.segment(mel_store, c) for c in q.candidates]
    encoder = evaluation.calibrate_batchnorm(Encoder(), pretraining_clips([mel_store]))
    assert anchor.shape == (98, 64)
    assert pairs.choice(encoder, anchor, [*others, anchor]) == 4


def test_the_quiz_keeps_score(corpus, mel_store):
    player = widgets.pair_player(corpus, mel_store, {"random": Encoder()})
    player.mode.value = "quiz"
    assert "positive" not in "".join(card.value for card in player.cards)
    button = player.choose[0]
    button.click()
    button.click()  # once more: it counts once
    assert {name: asked for name, (_, asked) in read_choices()["quiz"].items()} == {"you": 1, "random": 1}
    assert "right so far: you" in player.verdict.value
    assert button.disabled
    seen = [card.value for card in player.cards]
    again = widgets.pair_player(corpus, mel_store, {"random": Encoder()})  # as after a restart
    assert [card.value for card in again.cards] != seen, "another question"
    player.forget.click()
    assert read_choices()["quiz"] == {}


def test_augmentations_are_seen_heard_and_kept(corpus, mel_store):
    player = widgets.pair_player(corpus, mel_store)
    before = [card.value for card in player.cards]
    player.switches["random_band_mask"].value = True
    altered = [card.value for card in player.cards]
    assert all(a != b for a, b in zip(before, altered))
    assert widgets.pair_player(corpus, mel_store).switches["random_band_mask"].value
    player.switches["random_band_mask"].value = False
    assert [card.value for card in player.cards] == before, "the same question"
    player.another.click()
    assert [card.value for card in player.cards] != before


# ----------------------------------------------------------------------------------- training panel


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_untouched_controls_say_the_defaults(kind):
    shown = controls.controls(kind, panel.SHOWN[kind])
    assert set(shown) == set(panel.SHOWN[kind])
    command = "pretrain" if kind is PretrainConfig else "finetune"
    given = [command, "store", *controls.arguments(shown), "--out", "run", "--minutes", "1"]
    args = cli.build_parser().parse_args(given)
    assert cli.configure(kind, args, {}) == kind(minutes=1)


def wait(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)


def test_training_stops_resumes_and_finishes(mel_store, tmp_path):
    out = tmp_path / "panel" / "run-1"
    run = Run(out)
    given = ["pretrain", str(mel_store.path), "--steps", "60", "--batch-size", "16"]
    job = Job.start(out, given)
    # before the run has written a thing
    shown = panel.training_panel([mel_store.path], out.parent)
    wait(lambda: not shown.stop.disabled, 10)
    wait(lambda: len(run.metrics()) > 2)
    assert 0 < run.progress()[0] < 1
    assert Job(out).process(), "a later kernel finds it"
    assert list(panel.run_table(out.parent, "pretrain")["state"]) == ["training"]
    job.stop()
    wait(lambda: not job.process())
    assert job.error() == ""
    assert not run.finished
    lost = run.metrics()["step"].max() - read_checkpoint(out / "last.ckpt")["global_step"]
    assert lost < 5, "nothing is lost"
    assert list(panel.run_table(out.parent, "pretrain")["state"]) == ["stopped"]
    again = Job.start(out, ["pretrain", str(mel_store.path), "--resume"])
    wait(lambda: not again.process())
    row = panel.run_table(out.parent, "pretrain").iloc[0]
    assert (row["state"], row["steps"]) == ("finished", "60")
    assert "batch size 16" in row["settings"]
    similarity, step = panel.similarities(run, pretraining_clips([mel_store]), 8)
    assert similarity.shape == (8, 8)
    assert step == 60
    refused = Job.start(out, given)
    wait(lambda: not refused.process())
    assert refused.error().startswith("colalib: ")
    assert "holds a run already" in refused.error()
    assert panel.run_table(out.parent, "pretrain").iloc[0]["state"] == "finished"


def test_a_classifier_from_scratch_stops_and_resumes_by_the_buttons(mel_store, tmp_path):
    folder = tmp_path / "panel"
    shown = panel.training_panel([mel_store.path], folder, FinetuneConfig, starts={"scratch": None})
    shown.minutes.value = 0.25
    shown.settings["seed"].value = 3
    shown.train.click()
    shown.train.click()  # the second press does nothing
    run = Run(folder / "run-1")
    wait(lambda: len(run.metrics()) > 2)
    shown.stop.click()
    wait(lambda: not shown.train.disabled)
    assert not shown.resume.disabled
    assert not run.finished
    shown.resume.click()
    wait(lambda: not shown.train.disabled)
    assert run.finished
    assert len(list(folder.glob("*/config.json"))) == 1
    shown.usual.click()
    assert shown.settings["seed"].value == 0


def test_a_training_that_fails_says_why(tmp_path):
    job = Job.start(tmp_path / "run-1", ["pretrain", str(tmp_path / "nowhere")])
    wait(lambda: not job.process())
    assert "nowhere" in job.error()
    assert "Traceback" not in job.error()


def test_a_training_that_is_killed_says_so(mel_store, tmp_path):
    job = Job.start(tmp_path / "run-1", ["pretrain", str(mel_store.path), "--minutes", "5"])
    wait(lambda: len(job.run.metrics()) > 2)
    job.process().kill()
    wait(lambda: not job.process())
    assert job.error() == "It ended without a message: killed, or out of memory."


def test_a_folder_that_is_no_run_is_passed_over(mel_store, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "config.json").write_text((mel_store.path / "config.json").read_text())
    assert panel.run_table(tmp_path, "pretrain").empty


def test_the_picked_encoder_is_the_course_s(mel_store, tmp_path, capsys):
    folder = tmp_path / "runs"
    run = training.pretrain([mel_store], folder / "mine", PretrainConfig(steps=2), progress=False)
    shown = panel.training_panel([mel_store.path], folder)
    shown.encoder.value = str(run)
    assert course.encoder() == run
    assert "picked" in capsys.readouterr().out
    assert course.supervised_folder(run).name == "supervised-mine"
    assert panel.training_panel([mel_store.path], folder).encoder.value == str(run)


# ------------------------------------------------------------------------------------- results, map


@pytest.fixture
def predictions(mel_store):
    clips = mel_store.clips
    clips = clips[["clip_id", "group", "label"]].assign(task="tones/label", fold="")
    rng = np.random.default_rng(0)
    wrong = [clips["label"].where(rng.random(len(clips)) < share, "low") for share in (0.5, 0.8)]
    return pd.concat(
        [
            clips.assign(model=model, seed=seed, predicted=predicted)
            for model, predicted in zip(("random", "probe"), wrong)
            for seed in (0, 1)
        ]
    )


def test_confusions_and_the_clips_behind_them(predictions):
    probe = predictions[predictions["model"] == "probe"]
    counts = intervals.confusion(probe)
    assert counts.values.sum() == 2 * 96
    assert counts.loc["low", "low"] == 2 * 32
    clips = explorer.misclassified(probe, "high", "low")
    assert 2 * len(clips) == counts.loc["high", "low"] > 0


def test_pressing_a_cell_brings_its_clips(corpus, predictions):
    shown = widgets.results_explorer(corpus, predictions)
    assert "<audio" not in shown.heard.value
    assert shown.cells["low", "low"].description == "32"
    assert shown.cells["low", "high"].disabled
    shown.cells["low", "low"].click()
    first = shown.heard.value
    assert first.count("<audio") == 6
    shown.more.click()
    assert shown.heard.value != first
    assert shown.heard.value.count("<audio") == 6


def test_models_with_several_label_budgets_are_told_apart(corpus, predictions):
    budgets = [predictions.assign(labels_per_class=budget) for budget in ("10", "")]
    shown = widgets.results_explorer(corpus, pd.concat(budgets))
    shown.model.value = "probe (10 per class)"
    assert shown.cells["low", "low"].description == "32"


def test_the_explorer_leaves_no_widgets_behind(corpus, predictions):
    shown = widgets.results_explorer(corpus, predictions)
    before = len(widget._instances)
    for name in ("random", "probe", "random"):
        shown.model.value = name
    assert len(widget._instances) == before


@pytest.fixture
def space(mel_store):
    encoder = evaluation.calibrate_batchnorm(Encoder(), pretraining_clips([mel_store]))
    x = evaluation.embed_frames(encoder, Clips.of_store(mel_store), mel_store.mel.silence)

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
    assert near[0] == i
    assert np.allclose(xy, space.reducer.embedding_[i], atol=0.05 * np.ptp(space.reducer.embedding_))


def test_the_page_has_all_that_a_press_needs(corpus, mel_store, space, tmp_path):
    shown = widgets.embedding_map(corpus, mel_store, {"a": space, "b": space}, ["label", "parity"])
    page, n = shown.page, len(mel_store)
    assert len(page.offsets) == n + 1
    assert page.offsets[-1] == len(page.previews)
    assert page.links == []
    assert len(page.previews) / n < 20_000  # 10 MB for 500 clips
    assert len(page.points) == 2 * n * 2 * 4
    assert len(page.near[0]) == 5 * n
    groups = mel_store.clips["group"].values
    assert all(groups[j] != groups[0] for j in page.near[0][:5])
    shown.path.value = str(tmp_path / "nowhere.wav")
    assert shown.message.value == "nowhere.wav: file not found"
    assert page.added == []
    shown.path.value = str(corpus.root / corpus.clips["path"][0])
    assert page.added[0]["sound"].startswith("data:audio/mpeg")
    assert len(page.added[0]["points"]) == 2


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


# -------------------------------------------------------------------------------------- calculator

MEASURED = [
    Constants("b0-small", "cpu", pairs_per_s=100, weights_mb=10, segment_mb=5, prepare_s=0.01),
    Constants("b0", "cpu", pairs_per_s=20, weights_mb=60, segment_mb=20, prepare_s=0.01),
]


def test_the_calculator_follows_what_is_chosen():
    shown = widgets.calculator(MEASURED)
    assert "8,000" in shown.costs.value
    assert shown.sliders["clips"].layout.display == "none"
    before = shown.costs.value
    shown.sliders["devices"].value = 8
    assert shown.costs.value != before
    shown.corpus.value = "other"
    assert shown.sliders["clips"].layout.display == ""
    assert shown.project() == {
        "clips": 10_000,
        "seconds": 30,
        "epochs": 100,
        "batch": 1024,
        "cores": 2,
        "devices": 8,
        "speed": 1,
        "chunk": 0,
    }
    keep_choice("calculator", read_choices()["calculator"] | {"arch": "b0"})
    again = widgets.calculator(MEASURED)
    assert again.corpus.value == "other"
    assert again.arch.value == "b0"
    assert again.corpus.options == (*CORPORA, "other")


# ---------------------------------------------------------------------------------------- pictures


def test_where_widgets_cannot_run_a_picture_stands(corpus, mel_store, predictions, space, folder, tmp_path):
    plt.close("all")
    every = [
        widgets.mel_laboratory({"a tone": next(folder.rglob("*.flac"))}),
        widgets.pair_player(corpus, mel_store),
        widgets.training_panel([mel_store.path], tmp_path),
        widgets.results_explorer(corpus, predictions),
        widgets.embedding_map(corpus, mel_store, {"a": space}),
        widgets.calculator(MEASURED),
    ]
    for shown in every:
        bundle = shown._repr_mimebundle_()
        assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"
        assert "application/vnd.jupyter.widget-view+json" in bundle
    assert not plt.get_fignums(), "a figure that stays open would be shown a second time"
