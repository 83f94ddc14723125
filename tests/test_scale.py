"""What a larger machine needs: several processes, batches larger than memory, an end that comes
early.
"""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import column, metrics
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import colalib
from colalib import training
from colalib.cola import OBJECTIVES, gathered
from colalib.course import bench, scaling
from colalib.data import corpora, segments, store
from colalib.data.clips import Clips, pair_batch, pretraining_clips
from colalib.data.segments import StepDataset
from colalib.encoder import Encoder
from colalib.errors import UserError
from colalib.export import to_onnx
from colalib.files import is_main_process
from colalib.settings import PretrainConfig
from colalib.training.runs import load_encoder


class Toy(nn.Module):
    """An encoder without BatchNorm, and an objective."""

    def __init__(self, objective):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(98 * 64, 32), nn.Tanh())
        self.objective = OBJECTIVES[objective](32, size=16, dropout=0.0)

    def forward(self, anchors, positives):
        return self.objective(gathered(self.encoder(anchors)), gathered(self.encoder(positives)))[0]


def half(rank, folder, pair):
    """One of two processes, with its half of the batch."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for objective in OBJECTIVES:
        model = DistributedDataParallel(Toy(objective))
        loss = model(*(x.chunk(2)[rank] for x in pair))
        loss.backward()
        torch.save([loss.detach()] + [p.grad for p in model.parameters()], f"{folder}/{objective}-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_with_half_the_batch_are_one_with_the_whole(tmp_path):
    pair = torch.randn(2, 8, 98, 64, generator=torch.Generator().manual_seed(1))
    torch.multiprocessing.spawn(half, (tmp_path, pair), nprocs=2)
    for objective in OBJECTIVES:
        model = Toy(objective)
        loss = model(*pair)
        loss.backward()
        whole = [loss.detach()] + [p.grad for p in model.parameters()]
        for rank in range(2):
            parts = torch.load(tmp_path / f"{objective}-{rank}.pt")
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(parts, whole)), objective
        assert any(p.grad.abs().max() > 1e-3 for p in model.encoder.parameters())


def command(store, out, *more):
    base = [
        sys.executable,
        "-m",
        "colalib",
        "pretrain",
        str(store.path),
        "--out",
        str(out),
        "--accelerator",
        "cpu",
    ]
    return [*base, *map(str, more)]


def test_two_processes_train_and_resume(mel_store, tmp_path):
    out, threads = tmp_path / "run", {**os.environ, "OMP_NUM_THREADS": "1"}
    several = ["--devices", 2, "--strategy", "ddp", "--batch-size", 16, "--chunk", 4, "--steps", 6]
    done = subprocess.run(command(mel_store, out, *several), capture_output=True, text=True, env=threads)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("encoder in") == 1 and (out / "encoder.safetensors").exists()
    assert next(r["step"] for r in metrics(out) if r["train/loss"]) == "4" and column(out, "valid/loss")
    again = subprocess.run(
        command(mel_store, out, *several, "--resume"), capture_output=True, text=True, env=threads
    )
    assert again.returncode == 0, again.stderr
    if find_spec("tensorboard"):
        assert list((out / "tensorboard").glob("events.*"))


def test_a_batch_that_cannot_be_shared(mel_store, tmp_path):
    with pytest.raises(UserError, match="take a multiple"):
        training.pretrain(
            [mel_store], tmp_path / "run", PretrainConfig(batch_size=15, steps=2), trainer={"devices": 2}
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("started", "asked", "says"),
    [
        ("2", {"devices": 1}, "2 processes were started"),
        (None, {"devices": 1, "num_nodes": 2}, "torchrun or srun"),
    ],
)
def test_processes_that_do_not_agree(mel_store, tmp_path, monkeypatch, started, asked, says):
    if started:
        monkeypatch.setenv("WORLD_SIZE", started), monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=says):
        training.pretrain([mel_store], tmp_path / "run", PretrainConfig(steps=2), trainer=asked)
    assert not (tmp_path / "run").exists()


def test_processes_share_a_batch(mel_store):
    clips = Clips([mel_store], [np.arange(len(mel_store))])
    drawn = [segments.shuffled(len(clips), 12, 3, 0)[k::3] for k in range(3)]
    assert sorted(np.concatenate(drawn)) == sorted(segments.shuffled(len(clips), 12, 3, 0))
    parts = [pair_batch(clips, 3, 12, 0, part=(k, 3)) for k in range(3)]
    assert [len(p[0]) for p in parts] == [4, 4, 4]
    assert not torch.equal(parts[0][0], parts[1][0]) and torch.equal(
        parts[0][0], pair_batch(clips, 3, 12, 0, part=(0, 3))[0]
    )


def test_workers_draw_the_same_batches(mel_store):
    clips = Clips([mel_store], [np.arange(len(mel_store))])
    steps = StepDataset(lambda step: pair_batch(clips, step, 4, 0), lambda: 5)
    loaded = [iter(DataLoader(steps, batch_size=None, num_workers=n)) for n in (0, 2)]
    for step in range(5, 10):
        one, two = (next(batches) for batches in loaded)
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
        assert torch.equal(one[0], pair_batch(clips, step, 4, 0)[0])


@pytest.mark.parametrize("kind", ["float32", "bf16"])
def test_chunks_have_the_gradients_of_the_batch(kind):
    """BatchNorm's statistics are a chunk's: in the plain pass beside it they are, too."""
    torch.manual_seed(0)
    pair, found = torch.randn(2, 12, 98, 64), []
    for chunk in (0, 4):
        encoder = Encoder("b0-small", cpu_precision=kind).train()
        encoder.load_state_dict(found[0][2] if found else encoder.state_dict())
        state = {k: v.clone() for k, v in encoder.state_dict().items()}
        torch.manual_seed(1)
        objective = OBJECTIVES["bilinear"](encoder.dim, dropout=0.0)
        if chunk:
            h = encoder.branches(*pair, chunk=chunk)
        else:
            h = [torch.cat([encoder(part) for part in x.split(4)]) for x in pair]
        loss = objective(*h)[0]
        loss.backward()
        running = [m.running_mean for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        found.append((loss.detach(), [p.grad for p in encoder.parameters()], state, running))
    (loss, grads, _, running), (loss_chunked, grads_chunked, _, running_chunked) = found
    assert torch.allclose(loss, loss_chunked, rtol=1e-4)
    assert all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * a.abs().max()) for a, b in zip(grads, grads_chunked)
    )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(running, running_chunked))
    assert {m.momentum for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}, (
        "the next step moves them too"
    )


def test_an_end_that_was_announced_loses_nothing(mel_store, tmp_path):
    """SIGTERM, as before a machine is taken away: a checkpoint, one line, and the weights of a run
    in one go.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    length = ["--steps", 24, "--batch-size", 8]
    process = subprocess.Popen(
        command(mel_store, two, *length), stderr=subprocess.PIPE, text=True, env=threads
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (two / "metrics.csv").exists() and column(two, "train/loss"):
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.01)
    told = process.communicate()[1]
    assert process.returncode == 130 and "colalib: interrupted" in told and "Traceback" not in told
    step = torch.load(two / "last.ckpt", weights_only=True)["global_step"]
    assert 2 < step < 24 and step % 5 == 2
    for out, more in ((two, ["--resume"]), (one, [])):
        subprocess.run(command(mel_store, out, *length, *more), check=True, env=threads, capture_output=True)
    ours, theirs = (load_file(run / "encoder.safetensors") for run in (one, two))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert column(one, "train/loss") == column(two, "train/loss")


def test_embed_in_three_lines(folder, mel_store, tmp_path):
    found = colalib.embed(folder)
    assert found.vectors.shape == (len(found.clips), 3328) and list(found.clips["clip_id"]) == list(
        mel_store.clips["clip_id"]
    )
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    path = folder / found.clips["path"].iloc[3]
    few = colalib.embed([path, tmp_path / "broken.wav"])
    assert np.allclose(few.vectors[0], found.vectors[3], rtol=1e-4, atol=1e-4) and len(few.vectors) == 1
    assert few.left_out["path"].str.endswith("broken.wav").all() and len(few.left_out) == 1
    assert np.array_equal(colalib.embed(path, accelerator="cpu").vectors, few.vectors)
    with pytest.raises(UserError, match="no files"):
        colalib.embed([])
    with pytest.raises(UserError, match="no corpus and no folder"):
        colalib.embed(tmp_path / "nowhere")


def test_the_same_store_on_threads_and_on_a_cluster(folder, mel_store, tmp_path):
    distributed = pytest.importorskip("distributed")
    usual = {p.name: p.read_bytes() for p in mel_store.path.iterdir()}
    local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    # a LocalCluster leaves OMP_NUM_THREADS and its like behind, which later tests would inherit
    with mock.patch.dict(os.environ), distributed.LocalCluster(**local) as cluster:
        for name, scheduler in (("threading", None), ("dask", cluster.scheduler_address)):
            with store.backend(name, scheduler):
                made = store.build(corpora.load(folder), tmp_path / name, progress=False)
            assert {p.name: p.read_bytes() for p in made.path.iterdir()} == usual
        address = ["--backend", "dask", "--scheduler", cluster.scheduler_address]
        done = subprocess.run(
            [sys.executable, "-m", "colalib", "prepare", str(folder), "--out", str(tmp_path / "line"), *address],
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "line").iterdir()} == usual


@pytest.mark.parametrize("name, scheduler, says", [
    ("dask", None, "needs both"), (None, "tcp://127.0.0.1:9", "needs both"), ("dask", "nonsense", "no Dask scheduler"),
])  # fmt: skip
def test_a_cluster_that_is_not_there(name, scheduler, says):
    with pytest.raises(UserError, match=says), store.backend(name, scheduler):
        pass


def test_export_equals_torch(tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    assert to_onnx("default", tmp_path / "encoder.onnx") < 1e-4
    session = runtime.InferenceSession(tmp_path / "encoder.onnx")
    x = torch.randn(7, 98, 64) - 5
    readout, h = session.run(None, {"segments": x.numpy()})
    encoder = load_encoder("default").encoder
    with torch.no_grad():
        assert np.allclose(readout, encoder.block_features(x), atol=1e-3) and np.allclose(
            h, encoder(x), atol=1e-3
        )
    told = {p.key: p.value for p in onnx.load(tmp_path / "encoder.onnx").metadata_props}
    assert json.loads(told["mel"])["n_mels"] == 64 and told["encoder"] == "default"
    with pytest.raises(UserError, match="is not a run"):
        to_onnx(tmp_path, tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()


class Read:
    """Frames that note which rows are read of them."""

    def __init__(self, rows, read):
        self.rows, self.read, self.shape = rows, read, (len(rows), 64)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, part):
        return Read(self.rows[part], self.read)

    def astype(self, kind):
        self.read.append(len(self.rows))
        return np.zeros((len(self.rows), 64), kind)


def test_of_a_large_store_only_the_crops_are_read(tmp_path, monkeypatch):
    made = store.MelStore(bench.sparse_store(tmp_path))
    assert len(made) == 106_574 and made.frames(106_573).shape == (3000, 64)
    clips, read = pretraining_clips([made]), []
    usual = made._shard
    monkeypatch.setattr(made, "_shard", lambda shard: Read(range(len(usual(shard))), read))
    anchors, positives = pair_batch(clips, 0, 1024, 0)
    assert anchors.shape == positives.shape == (1024, 98, 64) and read == [98] * 2048


def test_a_cost_is_plain_arithmetic():
    one = scaling.Constants("b0", "cpu", pairs_per_s=50, weights_mb=80, segment_mb=10, prepare_s=0.002)
    found = scaling.cost(one, 10_000, 30, epochs=10, batch=1000, devices=2, cores=4, speed=5)
    assert found == pytest.approx({
        "audio as MP3 (GB)": 10_000 * 30 * scaling.MP3 / 1e9,
        "store (GB)": 10_000 * 3001 * 128 / 1e9, "preparing (h)": 10_000 * 30 * 0.002 / 4 / 3600, "steps": 100,
        "pre-training (h)": 10 * 10_000 / (50 * 5 * 2) / 3600, "memory of a device (GB)": (80 + 1000 * 10) / 1000,
    })  # fmt: skip
    chunked = scaling.cost(one, 10_000, 30, epochs=10, batch=1000, devices=2, cores=4, speed=5, chunk=100)
    assert chunked["memory of a device (GB)"] == pytest.approx((80 + 100 * 10) / 1000)
    assert chunked["pre-training (h)"] > found["pre-training (h)"]


@pytest.mark.parametrize("told, first", [
    ({}, True), ({"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "1"}, True), ({"RANK": "8", "LOCAL_RANK": "0"}, False),
    ({"SLURM_PROCID": "0"}, True), ({"SLURM_PROCID": "3"}, False), ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
    ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False), ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
])  # fmt: skip
def test_one_process_leads(monkeypatch, told, first):
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == first
