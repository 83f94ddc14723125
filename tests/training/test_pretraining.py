"""Pre-training: what it learns, keeps and refuses; alone and with several processes."""

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers import ONE_THREAD, column, metrics, run_command

from colalib import training
from colalib.data import corpora, store
from colalib.data.corpus import Corpus
from colalib.errors import UserError
from colalib.settings import PretrainConfig
from colalib.training import callbacks, pretraining
from colalib.training.callbacks import Snapshots
from colalib.training.runs import Run, open_run


def test_run_folder_of_pretraining(pretrained, mel_store):
    names = {"config.json", "metrics.csv", "clips.txt", "last.ckpt", "best.ckpt", "encoder.safetensors"}
    assert {p.name for p in pretrained.iterdir()} - {"tensorboard"} == names
    seen = (pretrained / "clips.txt").read_text().splitlines()
    assert sorted(seen) == sorted(mel_store.ids[mel_store.clips["split"] != "test"])
    description = json.loads((pretrained / "config.json").read_text())
    assert description["config"]["batch_size"] == 24
    assert description["mel"]["n_mels"] == 64
    assert description["cpu_recipe"] in ("float32", "bf16")
    assert torch.load(pretrained / "last.ckpt", weights_only=True)["global_step"] == 60


def test_pretraining_learns_to_find_the_positive(pretrained):
    loss, rank = column(pretrained, "train/loss"), column(pretrained, "train/rank")
    assert np.mean(loss[-3:]) < np.mean(loss[:3]) - 0.3
    assert np.mean(rank[-3:]) < 12.5 - 2  # 24 in a batch: chance is 12.5
    assert len(column(pretrained, "test/loss")) == 1
    assert len(column(pretrained, "test/accuracy")) == 1
    assert len(column(pretrained, "valid/loss")) >= 2
    assert len(column(pretrained, "lr")) > 5


@pytest.mark.parametrize("objective", ["cosine", "triplet"])
def test_other_objectives_run_on_pairs_that_are_augmented_as_set(mel_store, tmp_path, monkeypatch, objective):
    usual, drawn = pretraining.pair_batch, []

    def recorded(clips, step, batch_size, seed, *more):
        drawn.append(more)
        return usual(clips, step, batch_size, seed, *more)

    monkeypatch.setattr(pretraining, "pair_batch", recorded)
    config = PretrainConfig(objective=objective, steps=3, batch_size=8, mask=True, multiply=True)
    run = training.pretrain([mel_store], tmp_path / "run", config, progress=False)
    assert open_run(run).load_encoder().dim == 640
    assert set(drawn) == {(), (3.5, 24, True, True, (0, 1))}, "those of validation are as they are"


@pytest.mark.parametrize(
    "config", [PretrainConfig(), PretrainConfig(steps=3, minutes=1), PretrainConfig(steps=3, objective="x")]
)
def test_settings_that_cannot_be_used(mel_store, tmp_path, config):
    with pytest.raises(UserError):
        training.pretrain([mel_store], tmp_path / "run", config, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_a_device_that_is_not_there(mel_store, tmp_path):
    config = PretrainConfig(steps=2, batch_size=4)
    with pytest.raises(UserError, match="no mps device"):
        training.pretrain([mel_store], tmp_path / "run", config, accelerator="mps", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_same_clips_in_two_stores_are_refused(folder, tmp_path):
    """esc10 is a part of esc50: its clips have the ids of the whole."""
    corpus = corpora.load(folder)
    whole, part = (
        store.build(Corpus(name, folder, corpus.clips), tmp_path / name, jobs=1, progress=False)
        for name in ("esc50", "esc10")
    )
    assert list(whole.ids) == list(part.ids)
    with pytest.raises(UserError, match="comes twice"):
        training.pretrain([whole, part], tmp_path / "run", PretrainConfig(steps=2), progress=False)


# --------------------------------------------------------------------------------------- snapshots


def test_snapshots_show_the_encoder_on_its_way(mel_store, tmp_path):
    config = PretrainConfig(steps=20, batch_size=8)
    out = training.pretrain([mel_store], tmp_path / "run", config, progress=False, snapshots=True)
    run = open_run(out)
    assert list(run.snapshots()) == [0, 8, 16, 20]
    assert run.snapshots()[20].read_bytes() == (out / "encoder.safetensors").read_bytes()
    first, later = (run.load_encoder(run.snapshots()[step]).state_dict() for step in (0, 16))
    assert first["net._bn1.running_mean"].abs().max() == 0, "nothing was learned yet"
    assert any(not torch.equal(first[name], later[name]) for name in first)
    run.snapshots()[8].write_bytes(b"half")
    with pytest.raises(UserError, match=r"00008\.safetensors: damaged encoder"):
        run.load_encoder(run.snapshots()[8])


def test_a_resumed_run_writes_its_later_snapshots_anew(mel_store, tmp_path, monkeypatch):
    out, config = tmp_path / "run", PretrainConfig(steps=20, batch_size=8)
    usual = Snapshots.on_train_batch_end

    def stop_at_9(self, trainer, *args):
        usual(self, trainer, *args)
        if trainer.global_step == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(Snapshots, "on_train_batch_end", stop_at_9)
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", math.inf)
    with pytest.raises(KeyboardInterrupt):
        training.pretrain([mel_store], out, config, progress=False, snapshots=True)
    monkeypatch.undo()
    run = Run(out)
    assert list(run.snapshots()) == [0, 8]
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 2
    first = run.snapshots()[0].stat().st_mtime_ns
    # of a slower machine that got farther, of a killed writer, and of somebody else
    for name in ("00019.safetensors", ".00008.safetensors.1.part", "notes.txt", "best.safetensors"):
        (out / "snapshots" / name).write_text("mine")
    training.pretrain([mel_store], out, config, resume=True, progress=False, snapshots=True)
    assert list(run.snapshots()) == [0, 8, 16, 20]
    assert run.snapshots()[0].stat().st_mtime_ns == first
    assert run.load_encoder(run.snapshots()[8])
    others = {path.name for path in (out / "snapshots").iterdir()} - {
        p.name for p in run.snapshots().values()
    }
    assert others == {"notes.txt", "best.safetensors"}


# ------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_train_and_resume(mel_store, tmp_path):
    out = tmp_path / "run"
    words = ["pretrain", mel_store.path, "--out", out, "--accelerator", "cpu", "--devices", 2]
    words += ["--strategy", "ddp", "--batch-size", 16, "--chunk", 4, "--steps", 6]
    first = run_command(*words, **ONE_THREAD)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("encoder in") == 1, "only the main process prints"
    assert (out / "encoder.safetensors").exists()
    assert next(row["step"] for row in metrics(out) if row["train/loss"]) == "4"
    assert column(out, "valid/loss")
    whole = (out / "encoder.safetensors").read_bytes()
    (out / "encoder.safetensors").unlink()  # as if it was killed at its end
    again = run_command(*words, "--resume", **ONE_THREAD)
    assert again.returncode == 0, again.stderr
    assert (out / "encoder.safetensors").read_bytes() == whole
    if find_spec("tensorboard"):
        assert list((out / "tensorboard").glob("events.*"))


def test_a_batch_that_cannot_be_shared(mel_store, tmp_path):
    config = PretrainConfig(batch_size=15, steps=2)
    with pytest.raises(UserError, match="take a multiple"):
        training.pretrain([mel_store], tmp_path / "run", config, trainer_kwargs={"devices": 2})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("started", "wanted", "message"),
    [
        ("2", {"devices": 1}, "2 processes were started"),
        (None, {"devices": 1, "num_nodes": 2}, "torchrun or srun"),
    ],
)
def test_processes_that_do_not_agree(mel_store, tmp_path, monkeypatch, started, wanted, message):
    if started:
        monkeypatch.setenv("WORLD_SIZE", started)
        monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=message):
        training.pretrain([mel_store], tmp_path / "run", PretrainConfig(steps=2), trainer_kwargs=wanted)
    assert not (tmp_path / "run").exists()
