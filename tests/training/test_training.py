"""Pre-training and fine-tuning: what they learn, log, keep, resume and refuse."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colalib import training
from colalib.data.splits import subsample_labels
from colalib.errors import UserError
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training import runs

PRETRAIN = PretrainConfig(steps=60, batch_size=24)
FINETUNE = FinetuneConfig(steps=40, batch_size=24)


def metrics(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(run, name):
    return [float(row[name]) for row in metrics(run) if row[name]]


@pytest.fixture(scope="session")
def pretrained(mel_store, tmp_path_factory):
    return training.pretrain(
        [mel_store], tmp_path_factory.mktemp("runs") / "pretrained", PRETRAIN, progress=False
    )


@pytest.fixture(scope="session")
def finetuned(mel_store, pretrained, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finetuned"
    return training.finetune(mel_store, out, FINETUNE, pretrained, progress=False)


def test_run_folder_of_pretraining(pretrained, mel_store):
    names = {"config.json", "metrics.csv", "clips.txt", "last.ckpt", "best.ckpt", "encoder.safetensors"}
    assert {p.name for p in pretrained.iterdir()} - {"tensorboard"} == names
    seen = (pretrained / "clips.txt").read_text().splitlines()
    assert sorted(seen) == sorted(mel_store.ids[mel_store.clips["split"] != "test"])
    config = json.loads((pretrained / "config.json").read_text())
    assert config["config"]["batch_size"] == 24 and config["mel"]["n_mels"] == 64 and config["cpu_recipe"]
    last = torch.load(pretrained / "last.ckpt", weights_only=True)
    assert last["global_step"] == 60


def test_pretraining_learns_to_find_the_positive(pretrained):
    loss, rank = column(pretrained, "train/loss"), column(pretrained, "train/rank")
    assert np.mean(loss[-3:]) < np.mean(loss[:3]) - 0.3
    assert np.mean(rank[-3:]) < 12.5 - 2  # 24 in a batch: chance is 12.5
    assert len(column(pretrained, "test/loss")) == len(column(pretrained, "test/accuracy")) == 1
    assert len(column(pretrained, "valid/loss")) >= 2 and len(column(pretrained, "lr")) > 5


@pytest.mark.parametrize("objective", ["cosine", "triplet"])
def test_other_objectives_run(mel_store, tmp_path, objective):
    config = PretrainConfig(objective=objective, steps=3, batch_size=8, mask=True, multiply=True)
    run = training.pretrain([mel_store], tmp_path / "run", config, progress=False)
    assert runs.load_encoder(run).encoder.dim == 640


def test_classifier_learns_and_is_judged_on_test_clips(finetuned, mel_store):
    table = np.genfromtxt(finetuned / "predictions.csv", delimiter=",", dtype=str, skip_header=1)
    tested = mel_store.clips[mel_store.clips["split"] == "test"]
    assert sorted(table[:, 4]) == sorted(tested["clip_id"])
    accuracy = (table[:, 6] == table[:, 7]).mean()
    assert accuracy > 0.6  # three octaves apart; chance is 0.33
    assert column(finetuned, "test/accuracy")[0] == pytest.approx(accuracy, abs=1e-4)
    assert (
        column(finetuned, "test/loss")
        and column(finetuned, "valid/loss")
        and column(finetuned, "train/accuracy")
    )


def test_clip_logits_average_the_segments(finetuned):
    module, _ = training.load_classifier(finetuned)
    x = torch.randn(5, 98, 64)
    with torch.no_grad():
        logits, owner = module(x), torch.tensor([0, 0, 1, 1, 1])
        clips = module.clip_logits(x, owner)
    assert torch.allclose(clips, torch.stack([logits[:2].mean(0), logits[2:].mean(0)]), atol=1e-4)


def test_resuming_by_steps_equals_one_go(pretrained, mel_store, tmp_path):
    """Killed after the first checkpoint and resumed: the same weights bit for bit, and the same
    log.
    """
    out = tmp_path / "run"
    code = (
        "import sys; from colalib import training;"
        f"training.pretrain([{str(mel_store.path)!r}], {str(out)!r}, PretrainConfig(steps=60, batch_size=24),"
        " progress=False)"
    )
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", code], env=threads)
    deadline = time.monotonic() + 240
    while not (out / "last.ckpt").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "encoder.safetensors").exists()
    with pytest.raises(UserError, match="holds a run already"):
        training.pretrain([mel_store], out, PRETRAIN, progress=False)
    training.pretrain([mel_store], out, PRETRAIN, resume=True, progress=False)
    one, two = (load_file(run / "encoder.safetensors") for run in (pretrained, out))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert [r["step"] for r in metrics(out)] == [r["step"] for r in metrics(pretrained)]
    assert column(out, "train/loss") == column(pretrained, "train/loss")


def test_interrupting_training_gives_one_line(mel_store, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "colalib",
        "pretrain",
        str(mel_store.path),
        "--out",
        str(out),
        "--steps",
        "5000",
        "--batch-size",
        "8",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / "last.ckpt").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error and "--resume" in error.splitlines()[-1]


def test_finished_run_is_returned_as_it_is(pretrained, mel_store):
    before = (pretrained / "encoder.safetensors").stat().st_mtime_ns
    training.pretrain([mel_store], pretrained, PRETRAIN, resume=True, progress=False)
    assert (pretrained / "encoder.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"lr": 0.1}, {"arch": "b0"}, {"objective": "cosine"}])
def test_resuming_with_other_settings_is_refused(pretrained, mel_store, change):
    with pytest.raises(UserError, match=f"was made with {next(iter(change))}"):
        training.pretrain(
            [mel_store], pretrained, PretrainConfig(**{"steps": 60, "batch_size": 24} | change), resume=True
        )


def test_minutes_end_the_training(mel_store, tmp_path):
    begun = time.monotonic()
    run = training.pretrain(
        [mel_store], tmp_path / "run", PretrainConfig(minutes=0.05, batch_size=8), progress=False
    )
    assert 3 <= time.monotonic() - begun < 60 and column(run, "lr")[-1] < 1e-3


def test_few_labels_are_balanced_and_seeded():
    labels = np.array(list("aabbbbcccccc") * 5)
    rows = np.arange(60)
    chosen = subsample_labels(labels, rows, 4, seed=1)
    assert [int((labels[chosen] == c).sum()) for c in "abc"] == [4, 4, 4] and len(set(chosen)) == 12
    assert (chosen == subsample_labels(labels, rows, 4, seed=1)).all()
    assert (chosen != subsample_labels(labels, rows, 4, seed=2)).any()


def test_early_stopping(mel_store, tmp_path):
    config = FinetuneConfig(steps=2000, batch_size=8, patience=1, lr=1e-5)
    run = training.finetune(mel_store, tmp_path / "run", config, progress=False)
    assert int(metrics(run)[-1]["step"]) < 2000


def test_damaged_files_are_refused(finetuned, mel_store, tmp_path):
    run = tmp_path / "run"
    for name, load in {
        "encoder.safetensors": runs.load_encoder,
        "best.ckpt": training.load_classifier,
    }.items():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finetuned, run)
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="damaged"):
            load(run)
    (run / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match="not finished"):
        runs.load_encoder(run)
    with pytest.raises(UserError, match="is not a run"):
        runs.load_encoder(tmp_path)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_a_device_that_is_not_there(mel_store, tmp_path):
    with pytest.raises(UserError, match="no mps device"):
        training.pretrain([mel_store], tmp_path / "run", PRETRAIN, accelerator="mps", progress=False)
    assert not (tmp_path / "run").exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_checkpoints_from_others_are_never_unpickled(mel_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    training.pretrain([mel_store], out, PretrainConfig(steps=1, batch_size=4), progress=False)
    (out / "encoder.safetensors").unlink()
    torch.save({"state_dict": {}, "evil": Evil()}, out / "last.ckpt")
    with pytest.raises(UserError, match="not a plain checkpoint"):
        training.pretrain(
            [mel_store], out, PretrainConfig(steps=1, batch_size=4), resume=True, progress=False
        )
    assert not (tmp_path / "evil-was-here").exists()
    torch.save({"state_dict": {}}, out / "last.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this run"):
        training.pretrain(
            [mel_store], out, PretrainConfig(steps=1, batch_size=4), resume=True, progress=False
        )


def test_encoder_needs_its_own_mel_settings(pretrained, folder, tmp_path):
    from colalib.data import corpora, store
    from colalib.data.audio import MelConfig

    other = store.build(corpora.load(folder), tmp_path / "s", MelConfig(floor=1e-4), jobs=1, progress=False)
    with pytest.raises(UserError, match="other mel settings"):
        training.finetune(other, tmp_path / "run", FINETUNE, pretrained, progress=False)


@pytest.mark.parametrize(
    "config", [PretrainConfig(), PretrainConfig(steps=3, minutes=1), PretrainConfig(steps=3, objective="x")]
)
def test_settings_that_cannot_be_used(mel_store, tmp_path, config):
    with pytest.raises(UserError):
        training.pretrain([mel_store], tmp_path / "run", config, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_is_no_success(mel_store, tmp_path):
    with pytest.raises(UserError, match="no number any more"):
        training.pretrain(
            [mel_store], tmp_path / "run", PretrainConfig(steps=8, lr=1e9, batch_size=8), progress=False
        )
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_full_disk_during_training(mel_store, tmp_path):
    """On a full disk training says so in one line; with room again the same call with --resume
    completes.
    """
    out = tmp_path / "run"
    words = ["pretrain", str(mel_store.path), "--out", str(out), "--steps", "52", "--batch-size", "4"]
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); from colalib.cli import main;"
    ended = subprocess.run([sys.executable, "-c", f"{limit} main({words!r})"], capture_output=True, text=True)
    message = ended.stderr.strip().splitlines()[-1]
    assert (
        ended.returncode == 1
        and message.startswith("colalib: File too large")
        and "Traceback" not in ended.stderr
    )
    again = subprocess.run(
        [sys.executable, "-m", "colalib", *words, "--resume"], capture_output=True, text=True
    )
    assert again.returncode == 0 and (out / "encoder.safetensors").exists()


def test_epochs_are_the_same_steps_whatever_the_number_of_labels(mel_store, tmp_path):
    ends = {}
    for k in (2, None):
        config = FinetuneConfig(labels_per_class=k, batch_size=4, epochs=0.5)
        run = training.finetune(mel_store, tmp_path / str(k), config, progress=False)
        ends[k] = max(column(run, "step"))
    assert ends[2] == ends[None] > 0
