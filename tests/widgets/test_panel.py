"""The training panel: trainings in processes of their own, the runs that are there, and damaged ones."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from widget_helpers import MANY_STEPS, Tags, shorten, wait

from colalib import cli, course, widgets
from colalib.data.clips import pretraining_clips
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training.runs import Run, read_checkpoint
from colalib.widgets import controls, overview, panel
from colalib.widgets.job import Job


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_untouched_controls_say_the_defaults(kind):
    shown = controls.controls(kind, panel.SHOWN[kind])
    assert set(shown) == set(panel.SHOWN[kind])
    command = "pretrain" if kind is PretrainConfig else "finetune"
    given = [command, "store", *controls.arguments(shown), "--out", "run", "--minutes", "1"]
    args = cli.build_parser().parse_args(given)
    assert cli.configure(kind, args, {}) == kind(minutes=1)


# ---------------------------------------------------------------------------------------- trainings


@pytest.mark.slow
def test_training_stops_resumes_and_finishes(mel_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = "panel/run-1"  # one with the absolute folder
    out = tmp_path / relative
    run = Run(out)
    given = ["pretrain", str(mel_store.path), "--steps", str(MANY_STEPS), "--batch-size", "16"]
    job = Job.start(panel.Path(relative), given)
    # before the run has written a thing
    shown = panel.TrainingPanel([mel_store.path], out.parent)
    assert shown.train.disabled
    assert not shown.stop.disabled
    wait(lambda: len(run.metrics()) > 2)
    assert 0 < run.progress()[0] < 1
    assert Job(out).process(), "a later kernel finds it"
    assert panel.TrainingPanel([mel_store.path], "panel").train.disabled, "by any path"
    finetuning = panel.TrainingPanel([mel_store.path], "panel", FinetuneConfig, starts={"scratch": None})
    assert not finetuning.train.disabled, "it is a training of another kind"
    assert list(overview.run_table(out.parent, "pretrain")["state"]) == ["training"]
    shown.run_name.value = "run-1"
    shown.train.disabled = False  # as in another kernel
    shown.train.click()
    assert "run-1 cannot be started: it is being trained already" in shown.status.value
    job.stop()
    wait(lambda: not job.process())
    assert job.error() == ""
    assert not run.finished
    lost = run.metrics()["step"].max() - read_checkpoint(out / "last.ckpt")["global_step"]
    assert lost < 5, "nothing is lost"
    assert list(overview.run_table(out.parent, "pretrain")["state"]) == ["stopped"]
    refused = Job.start(out, ["pretrain", str(mel_store.path), "--steps", "7"])
    wait(lambda: not refused.process())
    assert refused.error().startswith("colalib: ")
    assert "holds a run already" in refused.error()
    assert refused.given() == given, "it can still be resumed"
    steps = read_checkpoint(out / "last.ckpt")["global_step"] + 10
    shorten(out, steps)
    again = Job.start(out, [*refused.given(), "--resume"])
    wait(lambda: not again.process())
    row = overview.run_table(out.parent, "pretrain").iloc[0]
    assert (row["state"], row["steps"]) == ("finished", str(steps))
    assert "batch size 16" in row["settings"]
    assert "validation accuracy (%)" in row, "by default"
    similarity, step = overview.similarities(run, pretraining_clips([mel_store]), 8)
    assert similarity.shape == (8, 8)
    assert step == steps


@pytest.mark.slow
def test_a_classifier_from_scratch_stops_and_resumes_by_the_buttons(mel_store, tmp_path):
    folder = tmp_path / "panel"
    shown = panel.TrainingPanel([mel_store.path], folder, FinetuneConfig, starts={"scratch": None})
    shown._steps = MANY_STEPS
    shown.settings["seed"].value = 3
    shown.train.click()
    shown.train.click()  # the second press does nothing
    run = Run(folder / "run-1")
    wait(lambda: len(run.metrics()) > 2)
    assert shown.resume.disabled
    shown.stop.click()
    wait(lambda: not shown.train.disabled)
    assert not shown.resume.disabled, "when Train can be pressed, all is decided"
    assert "stopped" in shown.status.value
    assert not run.finished
    steps = read_checkpoint(run.path / "last.ckpt")["global_step"]
    shown.run_name.value = "run-1"
    shown.settings["seed"].value = 4
    shown.train.click()  # with another seed: it would not be that run
    assert "holds a run already" in shown.status.value
    assert not shown.resume.disabled
    shorten(run.path, steps + 10)
    shown.resume.click()
    assert shown.train.disabled
    assert shown.resume.disabled
    wait(lambda: not shown.train.disabled)
    assert run.finished, shown.failure.value
    assert shown.resume.disabled
    assert len(list(folder.glob("*/config.json"))) == 1
    shown.usual.click()
    assert shown.settings["seed"].value == 0


@pytest.mark.slow
def test_a_training_that_fails_says_why(tmp_path):
    job = Job.start(tmp_path / "run-1", ["pretrain", str(tmp_path / "nowhere")])
    wait(lambda: not job.process())
    assert "nowhere" in job.error()
    assert "Traceback" not in job.error()


@pytest.mark.slow
def test_a_training_that_is_killed_says_so(mel_store, tmp_path):
    job = Job.start(tmp_path / "run-1", ["pretrain", str(mel_store.path), "--steps", str(MANY_STEPS)])
    wait(lambda: len(job.run.metrics()) > 2)
    job.process().kill()
    wait(lambda: not job.process())
    assert job.error().splitlines() == [
        "72 of 96 clips are heard: test clips are left out",
        "It ended without an error message: killed, or out of memory.",
    ]


NO_NAMES = dict.fromkeys(["", "a/b", "..", ".", ".hidden", "a\0b", "\ud800", "a\nb"], "Give the run a name")
NO_NAMES["x" * 300] = "cannot be started: File name too long"
NO_NAMES["y" * 230] = "cannot be started: File name too long"  # only its record has too long a name


@pytest.mark.parametrize("name", NO_NAMES, ids=range(len(NO_NAMES)))
def test_a_name_that_no_run_can_have_is_told_in_a_line(mel_store, tmp_path, name):
    shown = panel.TrainingPanel([mel_store.path], tmp_path / "panel")
    shown._steps = MANY_STEPS
    shown.run_name.value = name
    shown.train.click()
    assert NO_NAMES[name] in shown.status.value
    assert len(shown.status.value.splitlines()) == 1
    assert_usable(shown)


def assert_usable(shown):
    """Assert that a training can be started, and none runs."""
    assert shown.job is None
    assert not shown.train.disabled
    assert shown.stop.disabled
    assert list(shown.folder.glob("*.job.json")) == []


def test_a_record_that_cannot_be_written_leaves_no_process(mel_store, tmp_path, monkeypatch):
    class Process(subprocess.Popen):
        all = []

        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.all.append(self)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("colalib.widgets.job.subprocess.Popen", Process)
    monkeypatch.setattr("colalib.widgets.job.write_json", full)
    shown = panel.TrainingPanel([mel_store.path], tmp_path / "panel")
    shown.train.click()
    assert shown.status.value == "run-1 cannot be started: No space left on device"
    assert len(Process.all) == 1
    assert Process.all[0].poll() is not None, "it was ended"
    assert_usable(shown)


def test_a_setting_that_no_command_can_take_is_told_in_a_line(mel_store, tmp_path):
    shown = panel.TrainingPanel(
        [mel_store.path], tmp_path / "panel", FinetuneConfig, starts={"scratch": None}
    )
    shown.settings["labels_per_class"].value = "5\0"
    shown.train.click()
    assert shown.status.value == "run-1 cannot be started: embedded null byte"
    assert_usable(shown)


# --------------------------------------------------------------------------------------------- runs


@pytest.fixture
def stopped(short_run, tmp_path, mel_store):
    """A folder with one run that a panel began, and that was stopped."""
    run = tmp_path / "panel" / "run-1"
    shutil.copytree(short_run, run)
    (run / "encoder.safetensors").unlink()
    given = ["pretrain", str(mel_store.path), "--steps", "2", "--batch-size", "8"]
    run.with_name("run-1.job.json").write_text(json.dumps({"process": 1, "given": given}))
    return run


def test_runs_of_any_batch_size_are_judged_on_the_same_pairs(stopped, pretrained, mel_store):
    shutil.copytree(pretrained, stopped.parent / "run-2")
    shown = panel.TrainingPanel([mel_store.path], stopped.parent)
    sizes = [run.config.batch_size for run in overview.runs_of(stopped.parent, "pretrain")]
    assert len(set(sizes)) == 2
    shown.validation = pretraining_clips([mel_store])  # more groups than one
    shown.judgements.clear()
    shown.refresh()
    n = len(shown.validation)
    table = overview.run_table(stopped.parent, "pretrain", shown.judged).set_index("run")
    assert list(table)[2:] == [
        f"pairs found among {n} (%)",
        "nearest clip has the same label (%)",
        "effective rank of h",
        "settings",
    ]
    found, same, rank = table.loc["run-2"].iloc[2:5].astype(float)
    assert 100 / n < found <= 100
    assert 0 <= same <= 100
    assert 1 < rank < n
    assert f"{rank:.1f}" in shown.runs.value
    (stopped.parent / "run-2" / "last.ckpt").unlink()
    table = overview.run_table(stopped.parent, "pretrain", shown.judged).set_index("run")
    assert table.iloc[:, 2:5].loc["run-2"].tolist() == ["", "", ""]


def test_a_wrong_press_after_a_stop_leaves_the_run_to_be_resumed(stopped, mel_store):
    record = stopped.with_name("run-1.job.json")
    before = record.read_text()
    shown = panel.TrainingPanel([mel_store.path], stopped.parent)
    assert not shown.resume.disabled
    shown.run_name.value = "run-1"
    shown.settings["seed"].value = 5
    shown.train.click()
    assert "holds a run already" in shown.status.value
    assert record.read_text() == before
    assert not shown.resume.disabled
    shown.resume.click()
    wait(lambda: not shown.train.disabled)
    assert Run(stopped).finished, shown.failure.value


def test_a_run_that_no_panel_began_cannot_be_resumed(stopped, mel_store):
    record = stopped.with_name("run-1.job.json")
    for damage in (
        "",
        "[]",
        "7",
        "{",
        "[" * 100_000,
        '{"process": 1}',
        '{"given": 5}',
        '{"given": [1]}',
        '{"given": ["fetch"]}',
    ):
        record.write_text(damage)
        assert panel.TrainingPanel([mel_store.path], stopped.parent).resume.disabled, damage
        assert Job(stopped).process() is None
    record.unlink()
    Job.start(stopped, ["finetune"]).started.wait()
    assert Job(stopped).given() == [], "what is refused now did not begin it"
    assert panel.TrainingPanel([mel_store.path], stopped.parent).resume.disabled


OWN = pytest.param(os.getpid(), id="own")


@pytest.mark.parametrize("process", ["text", None, True, -1, 0, 1.5, 10**30, [1], {}, OWN])
def test_a_process_number_that_is_none_of_ours_is_no_training(tmp_path, process):
    (tmp_path / "run-1.job.json").write_text(json.dumps({"process": process, "given": ["pretrain"]}))
    assert Job(tmp_path / "run-1").process() is None
    Job(tmp_path / "run-1").stop()


CONFIGS = {
    "empty": "",
    "half": '{"kind": "pretrain", "conf',
    "not text": b"\xff\xfe",
    "a list": "[1]",
    "deep": "[" * 200_000,
    "a store": '{"mel": {}, "name": "tones"}',
    "no kind": '{"mel": {}, "arch": "b0"}',
    "unknown kind": '{"mel": {}, "arch": "b0", "kind": "dance"}',
    "list kind": '{"mel": {}, "arch": "b0", "kind": ["pretrain"]}',
    "no config": '{"mel": {}, "arch": "b0", "kind": "pretrain"}',
    "text config": '{"mel": {}, "arch": "b0", "kind": "pretrain", "config": "text"}',
    "list config": '{"mel": {}, "arch": "b0", "kind": "pretrain", "config": [1, 2]}',
}


def write(file, content: str | bytes) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_damaged_and_foreign_folders_are_named_and_the_rest_is_shown(stopped, short_run, mel_store):
    folder = stopped.parent
    for name, content in CONFIGS.items():
        (folder / name).mkdir()
        write(folder / name / "config.json", content)
    (folder / "a folder" / "config.json").mkdir(parents=True)
    (folder / "a broken link").mkdir()
    (folder / "a broken link" / "config.json").symlink_to(folder / "nowhere")
    (folder / "no config.json").mkdir()
    (folder / "x.job.json").write_text("[]")
    os.mkdir(os.fsencode(folder) + b"/\xff\xfe")
    shutil.copy(short_run / "config.json", os.fsencode(folder) + b"/\xff\xfe/config.json")
    shutil.copytree(short_run, folder / "good")
    shown = panel.TrainingPanel([mel_store.path], folder)
    assert set(overview.run_table(folder, "pretrain")["run"]) == {"run-1", "good"}
    assert [run.name for run in overview.runs_of(folder, "finetune")] == []
    said = Tags(shown.runs.value).text
    assert len(said[said.index("Cannot be read: ") :].splitlines()) == 1
    for name in [*CONFIGS, "a folder"]:
        told = (f"{name} is not a run", f"{name}/config.json", f"{name}: config.json")
        assert any(words in said for words in told), name
    assert "no config.json" not in said
    assert "is not text" not in said
    shown.overlay.value = ("good", "run-1")
    assert shown._repr_mimebundle_()["image/png"]


METRICS = {
    "empty": "",
    "not text": b"\xff\xfe\xfd\n\x80,1",
    "NUL": b"\0" * 100,
    "no step": "a,b\n1,2\n",
    "no loss": "step,seconds\n1,2\n",
    "text": "step,epoch,seconds,train/loss\nx,y,z,<img src=x>\n5,1,2,many\n",
    "longer rows": "step,train/loss\n1,2,3\n",
    "ragged": "step,train/loss\n1,2\n1,2,3,4\n",
}
ODD_METRICS = {  # but numbers
    "endless": "step,epoch,seconds,train/loss\n5,1,2,inf\n9,1,3,-inf\n15,1,4,nan\n20,1,4,1e308\n25,1,5,1.0\n",
    "half a row": "step,epoch,seconds,lr,train/loss\n5,1,2,0.1,3\n10,1",
    "only a head": "step,epoch,seconds,lr,train/loss\n",
}


@pytest.mark.parametrize("content", METRICS.values(), ids=METRICS)
def test_damaged_metrics_are_named_and_the_rest_is_shown(stopped, short_run, mel_store, content):
    shutil.copytree(short_run, stopped.with_name("good"))
    write(stopped / "metrics.csv", content)
    shown = panel.TrainingPanel([mel_store.path], stopped.parent)
    assert set(overview.run_table(stopped.parent, "pretrain")["run"]) == {"run-1", "good"}
    assert "run-1: metrics.csv is damaged" in shown.runs.value
    assert "good: " not in shown.runs.value
    shown.overlay.value = ("run-1", "good")
    assert shown._repr_mimebundle_()["image/png"]


@pytest.mark.parametrize("content", ODD_METRICS.values(), ids=ODD_METRICS)
def test_metrics_of_a_training_that_went_wrong_are_no_damage(stopped, mel_store, content):
    (stopped / "metrics.csv").write_text(content)
    shown = panel.TrainingPanel([mel_store.path], stopped.parent)
    assert "Cannot be read" not in shown.runs.value
    shown.overlay.value = ("run-1",)
    assert np.isfinite(overview.metrics_of(Run(stopped))["step"]).all()


class Training:
    """Stands for a job whose process runs for two looks."""

    def __init__(self, path):
        self.run = Run(path)
        self.looks = 0

    def process(self):
        self.looks += 1
        return self.looks < 3

    def error(self):
        return ""


@pytest.mark.parametrize("content", [*METRICS.values(), *ODD_METRICS.values()], ids=[*METRICS, *ODD_METRICS])
def test_a_training_whose_files_are_damaged_is_watched_to_its_end(stopped, mel_store, content):
    shown = panel.TrainingPanel([mel_store.path], stopped.parent)
    write(stopped / "metrics.csv", content)
    (stopped / "last.ckpt").write_bytes(b"no checkpoint")
    shown.watch(Training(stopped))
    wait(lambda: not shown.train.disabled)
    assert shown.job.looks == 3
    assert "stopped" in shown.status.value
    assert 0 <= shown.bar.value <= 1


def test_a_panel_whose_end_fails_can_be_used_again(stopped, mel_store):
    shown = panel.TrainingPanel([mel_store.path], stopped.parent)
    training = Training(stopped)
    training.error = lambda: 1 / 0
    shown.watch(training)
    wait(lambda: not shown.train.disabled)
    assert "ZeroDivisionError" in shown.failure.value
    assert not shown.resume.disabled


@pytest.mark.slow
def test_the_picked_encoder_is_the_course_s(mel_store, short_run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs"
    run = folder / "mine"
    shutil.copytree(short_run, run)
    shown = panel.TrainingPanel([mel_store.path], folder)
    shown.encoder.value = str(run)
    assert course.encoder() == run
    assert "picked" in capsys.readouterr().out
    assert course.supervised_folder(run).name == "supervised-mine"
    monkeypatch.chdir(tmp_path)
    assert widgets.training_panel([mel_store.path], "runs").encoder.value == str(run), "by any path"
