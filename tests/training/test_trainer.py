"""The training loop: how it ends, how it is interrupted, and how it goes on."""

import math
import os
import signal
import subprocess
import time
from types import SimpleNamespace

import lightning
import pytest
import torch
from helpers import ONE_THREAD, column, command, messages, metrics, run_command, send_when
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file

from colalib import training
from colalib.cola import Cola
from colalib.errors import UserError
from colalib.settings import PretrainConfig
from colalib.training.callbacks import MetricsCsv, Schedule
from colalib.training.finetuning import AudioClassifier
from colalib.training.trainer import BestCheckpoint, interruptible, keep_if_best, total_steps, training_alone


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    schedule = Schedule(PretrainConfig(steps=100, warmup=0.1), steps=100)
    factors = []
    for step in range(100):
        schedule.done = schedule.share(step)
        factors.append(schedule.factor(step))
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == pytest.approx(1)
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx((1 + math.cos(math.pi * 0.89 / 0.9)) / 2)
    assert sorted(factors[10:], reverse=True) == factors[10:]


@pytest.mark.parametrize(
    ("length", "steps"),
    [({"steps": 7}, 7), ({"epochs": 2.5}, 25), ({"epochs": 0.01}, 1), ({"minutes": 3}, None)],
)
def test_lengths_in_steps(length, steps):
    assert (
        total_steps(SimpleNamespace(**{"steps": None, "epochs": None, "minutes": None} | length), 10) == steps
    )


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({}, "not none"),
        ({"steps": 1, "epochs": 2}, "not steps and epochs"),
        ({"minutes": 0}, "minutes must be above 0"),
    ],
)
def test_a_length_is_given_once(length, message):
    with pytest.raises(UserError, match=message):
        total_steps(PretrainConfig(**length), 10)


def test_a_resumed_log_drops_the_steps_that_come_again(tmp_path):
    first = MetricsCsv(tmp_path / "metrics.csv", steps_per_epoch=10)
    for step in (4, 9, 14):
        first.log_metrics({"train/loss": 1.0, "unknown": 2.0}, step)
    second = MetricsCsv(tmp_path / "metrics.csv", steps_per_epoch=10, start_step=9, spent=60.0)
    second.log_metrics({"train/loss": 0.5}, 9)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == ["4", "9"]
    assert [row["epoch"] for row in rows] == ["0.400", "0.900"]
    assert [row["train/loss"] for row in rows] == ["1", "0.5"]
    assert float(rows[1]["seconds"]) >= 60


def test_minutes_are_minutes(monkeypatch):
    schedule = Schedule(PretrainConfig(minutes=3), None)
    schedule.begun = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + 90)
    assert schedule.share(0) == pytest.approx(0.5)


@pytest.mark.slow
def test_minutes_end_the_training(mel_store, tmp_path):
    begun = time.monotonic()
    config = PretrainConfig(minutes=0.05, batch_size=8)
    run = training.pretrain([mel_store], tmp_path / "run", config, progress=False)
    assert 3 <= time.monotonic() - begun
    assert 3 <= column(run, "seconds")[-1]
    assert column(run, "lr")[-1] < 1e-3


def test_a_training_that_diverges_is_no_success(mel_store, tmp_path):
    config = PretrainConfig(steps=8, lr=1e9, batch_size=8)
    with pytest.raises(UserError, match="became NaN or infinite by step"):
        training.pretrain([mel_store], tmp_path / "run", config, progress=False)
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


# ----------------------------------------------------------------------------- interrupted, resumed


def test_ctrl_c_is_as_before_after_lightning_has_ended_the_program():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_interrupting_training_gives_one_line(mel_store, tmp_path):
    out = tmp_path / "run"
    words = command("pretrain", mel_store.path, "--out", out, "--steps", 5000, "--batch-size", 8)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    send_when(process, (out / "last.ckpt").exists, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "--resume" in error.splitlines()[-1]


@pytest.mark.slow
def test_an_end_that_was_announced_loses_nothing(mel_store, tmp_path):
    """SIGTERM, as before a machine is taken away: a checkpoint, one line, and after --resume the
    weights of a run in one go.
    """
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    length = ["--steps", 40, "--batch-size", 8, "--accelerator", "cpu"]
    words = command("pretrain", mel_store.path, "--out", ended, *length)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD)

    def has_logged_a_step() -> bool:
        return (ended / "metrics.csv").exists() and bool(column(ended, "train/loss"))

    send_when(process, has_logged_a_step, signal.SIGTERM)
    error = process.communicate()[1]
    assert process.returncode == 130
    assert len(messages(error)) == 1
    assert "interrupted" in messages(error)[0]
    assert "Traceback" not in error
    step = torch.load(ended / "last.ckpt", weights_only=True)["global_step"]
    assert 2 < step < 40
    assert step % 5 != 0, "not at a step that is logged"
    for out, more in ((ended, ["--resume"]), (whole, [])):
        done = run_command("pretrain", mel_store.path, "--out", out, *length, *more, **ONE_THREAD)
        assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(run / "encoder.safetensors") for run in (ended, whole))
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert column(whole, "train/loss") == column(ended, "train/loss")


@pytest.mark.parametrize(
    ("module", "before", "end", "kept"),
    [
        (AudioClassifier, 0.5, 0.6, True),  # accuracy: the higher, the better
        (AudioClassifier, 0.6, 0.5, False),
        (AudioClassifier, None, 0.1, True),  # the first validation of all
        (Cola, 2.5, 2.4, True),  # loss: the lower, the better
        (Cola, 2.4, 2.5, False),
    ],
)
def test_the_last_weights_are_kept_where_they_are_the_best(tmp_path, module, before, end, kept):
    values, saved = {"valid/loss": 1.0} | {module.monitor[0]: end}, []
    trainer = SimpleNamespace(
        validate=lambda *args, **kwargs: [values],
        strategy=SimpleNamespace(broadcast=lambda value: value),
        save_checkpoint=lambda path, weights_only: saved.append(path),
    )
    best = SimpleNamespace(best_model_score=before, dirpath=tmp_path)
    keep_if_best(trainer, module, None, best)
    assert saved == ([tmp_path / "best.ckpt"] if kept else [])


def test_a_training_alone_does_not_see_the_job_that_it_runs_in(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr(rank_zero_only, "rank", 7)
    before = dict(os.environ)
    with training_alone():
        assert before.items() - os.environ.items() == {
            (name, "7") for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS", "MASTER_ADDR")
        }
        assert rank_zero_only.rank == 0
    assert os.environ == before
    assert rank_zero_only.rank == 7


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_a_run_that_was_moved_knows_its_best_score(tmp_path):
    former = BestCheckpoint(dirpath=tmp_path / "a", monitor="valid/loss")
    former.best_model_score = torch.tensor(0.9)
    moved = BestCheckpoint(dirpath=tmp_path / "b", monitor="valid/loss")
    moved.load_state_dict(former.state_dict())
    assert moved.best_model_score == former.best_model_score


def test_fewer_processes_than_asked_for_are_told(mel_store, tmp_path, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "world_size", 1)
    two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    with pytest.raises(UserError, match="1 of 2 processes would train"):
        training.pretrain(
            [mel_store], tmp_path / "run", PretrainConfig(steps=5, batch_size=8), trainer_kwargs=two
        )


def test_checkpoints_from_others_are_never_unpickled(mel_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, config = tmp_path / "run", PretrainConfig(steps=1, batch_size=4)
    training.pretrain([mel_store], out, config, progress=False)
    (out / "encoder.safetensors").unlink()
    torch.save({"state_dict": {}, "evil": Evil()}, out / "last.ckpt")
    with pytest.raises(UserError, match="not a plain checkpoint"):
        training.pretrain([mel_store], out, config, resume=True, progress=False)
    assert not (tmp_path / "evil-was-here").exists()
    torch.save({"state_dict": {}}, out / "last.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this run"):
        training.pretrain([mel_store], out, config, resume=True, progress=False)
