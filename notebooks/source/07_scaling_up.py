# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,source//py:percent
#     notebook_metadata_filter: kernelspec,jupytext
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7 Scaling up: from 1,600 clips to FMA-large
#
# You weigh and time what the course did, calculate what a hundred thousand clips would cost, see why a large
# contrastive batch is not many small ones, and leave with the commands for one GPU and for eight.
#
# **Run time** about 2 minutes on 2 cores.
#
# You will be able to
# - say which stage limits a project, and what it will cost, before it is begun;
# - tell gradient accumulation from a larger contrastive batch, and get the latter on small memory or several machines;
# - say what may change with the size of a project and what must not;
# - plan a comparison on FMA that could show a difference.

# %%
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cosine_similarity

from colalib import cola, course, widgets
from colalib.course import bench, scaling
from colalib.data import segments
from colalib.data.clips import pretraining_clips
from colalib.evaluation import plots
from colalib.training.cost import CORPORA, Constants, cost
from colalib.training.runs import open_run

plots.style()
store = course.store()

# %% [markdown]
# ## 1 What things cost here
# Two figures matter: how long one core takes to turn a second of audio into frames, and how many pairs per second the
# encoder learns from. Both are measured now, on this machine.

# %% tags=["needed"]
measured = [scaling.measure(arch, rounds=2) for arch in ("b0-small", "b0")]
print(f"preparing a second of audio takes one core {1000 * measured[0].prepare_s:.1f} ms")
pd.DataFrame(map(asdict, measured)).drop(columns="prepare_s").round(2)

# %% [markdown]
# `pairs_per_s` is of one *device*: here probably the CPU. On a machine with a GPU the same cell measures that.
# `weights_mb` counts every weight four times: itself, its gradient, and the two averages that AdamW keeps.
# `segment_mb` is what the forward pass of one segment must keep for the backward pass: most of a training's memory.
#
# And preparing: where does the time go for an MP3 of 30 seconds in stereo at 44.1 kHz, as FMA has? (This one holds noise;
# decoding does not care.) Beside it the two calls that one would write without this package, `librosa.load` and
# `librosa.feature.melspectrogram`.

# %%
parts = bench.preparing_parts()
fig, ax = plt.subplots(figsize=(8, 2.2))
left = 0.0
for stage in ("decoding", "mixing", "resampling", "transform"):
    ax.barh(["stage by stage"], [1000 * parts[stage]], left=left, label=stage)
    left += 1000 * parts[stage]
for name, key, colour in (("prepare", "prepare", "probe"), ("librosa, two calls", "librosa", "chance")):
    ax.barh([name], [1000 * parts[key]], color=plots.MODELS[colour])
ax.set(xlabel="ms per clip of 30 s, one core; the best of five", title="from MP3 to log-mel frames")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
ratio = parts["librosa"] / parts["prepare"]
print(f"{30 / parts['prepare']:.0f} times real time; {ratio:.2f} times as fast as librosa's two calls")

# %% [markdown]
# Clips do not depend on each other, so this work is shared by as many cores as there are, and by as many machines:
# `prepare --jobs 16`, or `prepare --backend dask --scheduler tcp://HOST:8786` on a cluster whose machines see the same
# folders. A call that is cut off goes on where it stopped, and a damaged file costs one line in `quarantine.csv`.
#
# ## 2 A store that is larger than memory
# FMA-large gives 106,574 clips of 3,000 frames: 41 GB as float16. It is never loaded. The store's files are *mapped*: a
# crop of 98 frames is read when it is cut, the rest stays on disk. To try that without 41 GB we make a store whose
# files are holes: they claim their size, and take no room. So what follows is the time of everything but the disk.

# %%
found = bench.large_store()
print(f"{found['clips']:,} clips, {found['size']:.0f} GB", end=": ")
print(f"opened in {found['open']:.2f} s, {found['memory']:.0f} MB of memory")
print(f"1,024 pairs drawn in {1000 * found['draw plain']:.0f} ms; augmented in {1000 * found['draw']:.0f} ms")

# %% [markdown]
# Drawing a batch must take less time than learning from it. Where it does not, as with a fast GPU or a slow disk,
# other processes draw ahead: batch number *n* is a function of *n* and the seed alone, so any process can make it,
# and a run that is resumed sees the same batches.
#
# ## 3 More distractors: why accumulation does not help
# When a batch does not fit into memory, the usual answer is to **accumulate gradients**: two batches of 16, one step.
# For a classifier that is the same as one batch of 32, since the loss is a mean over clips. A contrastive loss is not:
# each pair is compared with the *other pairs of its batch*. Two batches of 16 have 15 distractors per pair. One batch
# of 32 has 31. Two small batches ask an easier question twice.
#
# What does give the batch of 32? Look at the chain rule. The loss depends on the weights only through the embeddings
# h. So embed in small chunks and *throw away* what the backward pass would need; compute the loss of all h together and
# its gradient in h, which costs little memory; then embed each chunk once more and send its part of that gradient back
# (GradCache, [arXiv 2101.06983](https://arxiv.org/abs/2101.06983)). Here are all three on one batch. The statistics of
# BatchNorm are frozen for this comparison, as they too would depend on the chunk. Compared is the gradient of the encoder's
# weights; the encoder is `default`, the objective fresh.

# %%
encoder = open_run("default").load_encoder()
torch.manual_seed(0)
objective = cola.Bilinear(encoder.dim, dropout=0.0)
pair = segments.pair_batch(pretraining_clips([store]), 0, 32, seed=0)  # two tensors [32, 98, 64]


def gradient(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The mean gradient of the loss over several batches, all weights in one long vector."""
    encoder.zero_grad()
    for anchors, positives in parts:
        loss, _ = objective(encoder(anchors), encoder(positives))
        (loss / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in encoder.parameters()])


def cached(anchors: torch.Tensor, positives: torch.Tensor, chunk: int) -> torch.Tensor:
    """The gradient of one batch, a chunk at a time."""
    encoder.zero_grad()
    both = torch.cat([anchors, positives])
    with torch.no_grad():  # once without keeping anything
        h = torch.cat([encoder(x) for x in both.split(chunk)])
    h.requires_grad_()
    loss, _ = objective(*h.chunk(2))
    (wanted,) = torch.autograd.grad(loss, h)  # [64, dim]
    for x, g in zip(both.split(chunk), wanted.split(chunk)):
        encoder(x).backward(g)  # once more, with the gradient that belongs to it
    return torch.cat([p.grad.flatten() for p in encoder.parameters()])


whole = gradient([pair])
halves = gradient(list(zip(*(x.chunk(2) for x in pair))))
chunks = cached(*pair, chunk=8)
for name, g in (("two batches of 16, accumulated", halves), ("one batch of 32 in chunks of 8", chunks)):
    error = ((g - whole).norm() / whole.norm()).item()
    angle = torch.rad2deg(torch.acos(cosine_similarity(g, whole, dim=0).clamp(-1, 1))).item()
    print(f"{name}: off by {100 * error:.3g}% of the gradient of the whole, turned by {angle:.2g}°")
assert torch.allclose(chunks, whole, rtol=1e-2, atol=1e-4 * whole.abs().max())

# %% [markdown]
# The accumulated gradient is another one: it points elsewhere, and is off by a large part of its length. What the chunks
# give differs from the whole by rounding.
#
# `pretrain --chunk 32` does this by `torch.utils.checkpoint`, which forgets what lies inside a chunk and computes it
# again on the way back: the same arithmetic as `cached` without a second loop of our own. It costs one more forward
# pass, about a third more time, and BatchNorm normalises by a chunk's statistics instead of the batch's. How much
# memory does it save? Two processes measure it, each with a batch of 128 pairs.

# %%
memory = bench.peak_memory(batch=128, chunk=16)
fig, ax = plt.subplots(figsize=(8, 1.6))
colours = [plots.MODELS["scratch"], plots.MODELS["fine-tuned"]]
bars = ax.barh(["whole batch", "chunks of 16"], list(memory.values()), color=colours)
ax.bar_label(bars, fmt="%.0f MB", padding=3)
ax.margins(x=0.15)
ax.invert_yaxis()
ax.set(xlabel="memory that forward and backward add (MB)", title="128 pairs, b0-small")
plt.show()

# %% [markdown]
# ## 4 Several processes
# With two GPUs each process embeds half the batch. If each then computed its own loss, we would be back at two batches
# of 16. So the embeddings are **gathered** from all processes *with their gradients*: every process computes the loss of
# the whole batch, and the average over processes that DistributedDataParallel takes is the gradient of the whole. One
# function does it, `cola.gather_embeddings`; a test compares the gradients of two processes with those of one.
#
# What stays per process is BatchNorm: it sees the process' own part of the batch, as it sees a chunk. Keep the parts large:
# with few examples per part its statistics are noise, and accuracy falls (Wu and He 2018,
# [arXiv 1803.08494](https://arxiv.org/abs/1803.08494), figure 1: with fewer than 16).
#
# Does it run? Here are two processes on this CPU for a few steps, and one process with the same batch, and with half of
# it. (The two share the cores, so nothing gets faster.)


# %%
def first_loss(batch: int, processes: int) -> float:
    """The loss of a pre-training after five steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "colalib", "pretrain", str(store.path), "--out", f"{folder}/run"]
        command += f"--steps 5 --accelerator cpu --batch-size {batch} --devices {processes}".split()
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=one_thread)
        assert done.returncode == 0, done.stderr[-2000:]
        return pd.read_csv(Path(folder) / "run" / "metrics.csv")["train/loss"].dropna().iloc[-1]


for batch, processes in ((32, 2), (32, 1), (16, 1)):
    loss = first_loss(batch, processes)
    print(f"{batch} pairs, {processes} process(es): loss {loss:.2f}, guessing {np.log(batch):.2f}")

# %% [markdown]
# The steps are few and the clips differ, so the losses are near to each other, not equal. But two processes pay like one
# with the 32 pairs of both, and not like one with 16: each compares its pairs with those of the other, too.
#
# ## 5 The calculator
# From the constants above to any project: the function `cost` multiplies them, and the calculator below lets you set
# its arguments. Both assume that devices share the work without loss. Memory is what has to be kept, weights and
# activations; passing results come on top, as section 3 measured. A device that you do not have yet is given by its
# `speed` relative to this one. Suppose that `b0` learns from 5,000 pairs per second on a GPU, and from 50 pairs per
# second on your CPU. Then the GPU's speed is 100.

# %%
fma = cost(measured[1], *CORPORA["fma_large"], cores=16, devices=8, speed=50)
pd.Series(fma, name="FMA-large, b0, 16 cores, 8 devices").round(2).to_frame()

# %% tags=["widget"]
widgets.calculator(measured)

# %% [markdown]
# ## 6 The commands
# On **one GPU**. FMA comes in archives with checksums; `fetch` goes on where a broken connection left it.
#
# ```sh
# python -m colalib fetch fma_large --licence "by track" --data DATA
# python -m colalib fetch fma_small --licence "by track" --data DATA
# python -m colalib prepare fma_large --data DATA --out stores/fma_large
# python -m colalib prepare fma_small --data DATA --out stores/fma_small
# python -m colalib pretrain stores/fma_large --out runs/fma --arch b0 --batch-size 1024 --lr 1e-3 --epochs 100
# ```
#
# While FMA-large is unpacked it lies on the disk twice: 210 GB must be free, and then 41 for the store. `make
# fma-large DATA=...` does all of that and the comparison below. On **eight GPUs** of one machine, and on two such
# machines under Slurm:
#
# ```sh
# python -m colalib pretrain stores/fma_large --out runs/fma --arch b0 --batch-size 4096 --lr 4e-3 --epochs 100 --devices 8
# ```
#
# ```sh
# #!/bin/bash
# #SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8
# #SBATCH --signal=TERM@120 --requeue
# srun --kill-on-bad-exit=1 python -m colalib pretrain stores/fma_large --out runs/fma --arch b0 --batch-size 4096 \
#     --lr 4e-3 --epochs 100 --devices 8 --nodes 2 --resume || { [ $? -eq 130 ] && scontrol requeue "$SLURM_JOB_ID"; }
# ```
#
# Two minutes before the job's time is up Slurm sends SIGTERM: a checkpoint is written, the command ends with 130, and the
# job goes back into the queue, where `--resume` goes on, by steps or passes to the same weights. Otherwise one is
# written every 50 steps or 10 seconds. (We have had no Slurm to try the script on; the signal and two processes, we have.)
#
# | may change with size | must not change |
# |---|---|
# | batch size: more distractors, and better use of a GPU | the split: no artist on both sides, test clips in no pre-training |
# | learning rate: with the batch, tried first on short runs | the mel settings, and what the encoder divides by |
# | warm-up, passes, architecture | how the test side is used: once |
# | where distractors come from: gathered from all | the seeds and their number, named beforehand |
#
# ## 7 The comparison, done properly
# The result that this course starts from is 54.3% against 51.1%: one run each, 1,600 clips split at random, and notebook 5
# found that it cannot be told from none. What would it take? The official split of FMA-small (its 800 test clips are by
# other artists than the rest), several seeds, and predictions that are kept, so that differences can be taken in pairs:
#
# ```sh
# python -m colalib compare stores/fma_small --encoder runs/fma --seeds 5 --out runs/fma-small.json
# ```
#
# That repeats the fine-tuning five times, on one pre-training. To speak about pre-training itself, do that several
# times, too: several run folders after `--encoder` count as seeds.
#
# Would 800 clips and five seeds do? Suppose the truth is 3.2 points, the clips on which exactly one of the two is
# right are a share *d* of the *n* tested, and training runs scatter by *s* points. With *r* runs of each the half
# width of the interval is about $1.96 \sqrt{100^2 d / n + 2 s^2 / r}$. In notebook 5, *d* was 0.4 for two classifiers
# far apart; two that are close agree more often, so let us say 0.25:

# %%
clips_tested, truth = 800, 3.2
d = 0.25
fig, ax = plt.subplots(figsize=(8, 3.2))
for scatter in (0.5, 1.0, 2.0):
    trained = np.arange(1, 21)
    # clips are the same in every run, so more runs do not make their part smaller
    half = 1.96 * np.sqrt(100**2 * d / clips_tested + 2 * scatter**2 / trained)
    ax.plot(trained, half, marker="o", ms=3, label=f"runs scatter by {scatter} points")
ax.axhline(truth, color="black", ls="--", lw=1)
ax.annotate("the difference, 3.2", (14, truth - 0.45))
ax.set_xticks([1, 5, 10, 15, 20])
ax.set(xlabel="runs of each", ylabel="half width (points)", ylim=(0, None))
ax.set_title(f"{clips_tested} test clips, d = {d}")
ax.legend()
plt.show()

# %% [markdown]
# More runs help only against the scatter of runs. What remains is owed to the number of test clips: on 800 no number
# of runs would do, and an honest experiment would most likely end with "no difference shown". To know more, test on
# more clips: FMA-medium has 2,573 in its official test side, with which the curves come down by almost a half.
#
# ## Recap
# You can now
# - say which stage limits a project, and what it will cost, before it is begun: by constants measured on the machine;
# - tell gradient accumulation from a larger contrastive batch, and get the latter on small memory or several machines: by
#   chunks, or gathered from several processes;
# - say what may change with the size of a project and what must not;
# - plan a comparison on FMA that could show a difference.
#
# This is the end of the course. What it was all for is a folder of sounds of your own.
#
# ## Exercises
# ### 7.1 Which stage is the limit? · easy · 5 minutes
# With `cost`: on how many cores must FMA-large be prepared, so that it takes no longer than pre-training `b0`
# for 100 passes on eight devices, each 50 times as fast as this machine?


# %%
def cores_needed(constants: Constants, devices: int = 8, speed: float = 50) -> int:
    """The smallest number of cores with which preparing FMA-large takes no longer than pre-training."""
    raise NotImplementedError


# %%
def check_cores(answer):
    constants = Constants("b0", "cpu", pairs_per_s=40.0, weights_mb=80.0, segment_mb=10.0, prepare_s=0.002)
    for devices, speed in ((8, 50), (1, 1), (16, 400)):
        cores = answer(constants, devices, speed)
        project = {"devices": devices, "speed": speed}
        found = cost(constants, *CORPORA["fma_large"], cores=cores, **project)
        too_few = f"{cores} cores are too few for {devices} devices"
        assert found["preparing (h)"] <= found["pre-training (h)"], too_few
        if cores > 1:
            fewer = cost(constants, *CORPORA["fma_large"], cores=cores - 1, **project)
            assert fewer["preparing (h)"] > fewer["pre-training (h)"], f"fewer than {cores} cores would do"


course.check_exercise(check_cores, cores_needed)

# %% [markdown]
# <details><summary>Hint</summary>Preparing takes hours in proportion to 1 / cores: compute it for one core, divide by the hours
# of pre-training, and round up.</details>
# <details><summary>Solution</summary>
#
# ```python
# def cores_needed(constants, devices=8, speed=50):
#     one = cost(constants, *CORPORA["fma_large"], devices=devices, speed=speed, cores=1)
#     return max(1, int(np.ceil(one["preparing (h)"] / one["pre-training (h)"])))
# ```
# </details>
#
# ### 7.2 Half a loss · medium · 15 minutes
# Two processes have a half of the batch each. Suppose the embeddings are gathered *without* gradients: every process
# compares its own anchors with all positives, but only its own embeddings get a gradient. What is the average of the two
# processes' gradients in h, compared with that of the whole batch (one direction only, anchor → positive)?


# %%
def without_gradients(
    similarity_loss, anchors: torch.Tensor, positives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients in anchors [B, d] and positives [B, d]: the average over two processes.

    Each process computes the loss of its half of the anchors against all positives:
    `similarity_loss(anchors [B/2, d], positives [B, d], first)`, where `first` is the number of its first
    positive. It lets gradients into its own halves only.
    """
    raise NotImplementedError


# %%
def check_without(answer):
    def loss(a, p, first):
        return torch.nn.functional.cross_entropy(a @ p.T, torch.arange(first, first + len(a)))

    a, p = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)).unbind()
    got_a, got_p = answer(loss, a, p)
    a.requires_grad_(), p.requires_grad_()
    want_a, want_p = torch.autograd.grad(loss(a, p, 0), (a, p))
    alone = "an anchor's gradient needs nobody else's: it is as in the whole batch"
    assert torch.allclose(got_a, want_a, atol=1e-5), alone
    assert not torch.allclose(got_p, want_p, atol=1e-3), (
        "a positive is a distractor in the other process: that part is lost"
    )
    missing = (got_p - want_p).norm() / want_p.norm()
    assert 0.01 < missing < 2, "the positives' gradients should be wrong, but not wildly"
    own = torch.autograd.grad(loss(a[:4], torch.cat([p[:4], p[4:].detach()]), 0), p)[0]
    halved = "positives get what their own process says, halved"
    assert torch.allclose(got_p[:4], own[:4] / 2, atol=1e-5), halved


course.check_exercise(check_without, without_gradients)

# %% [markdown]
# <details><summary>Hint 1</summary>For each process: a copy of all positives in which only its own rows require a gradient
# (<code>torch.cat</code> of a detached and a live part).</details>
# <details><summary>Hint 2</summary>Half of each process' gradient is its share of the average; rows of the other process get
# none from it.</details>
# <details><summary>Solution</summary>
#
# ```python
# def without_gradients(similarity_loss, anchors, positives):
#     n = len(anchors) // 2
#     found_a, found_p = torch.zeros_like(anchors), torch.zeros_like(positives)
#     for k in range(2):
#         own = slice(k * n, (k + 1) * n)
#         a = anchors[own].detach().requires_grad_()
#         mine = positives[own].detach().requires_grad_()
#         every = [positives[:n].detach(), positives[n:].detach()]
#         every[k] = mine
#         ga, gp = torch.autograd.grad(similarity_loss(a, torch.cat(every), k * n), (a, mine))
#         found_a[own], found_p[own] = ga / 2, gp / 2
#     return found_a, found_p
# ```
# </details>
#
# ### 7.3 Chunks for any objective · hard · 20 minutes
# `cached` above keeps the objective's own weights out of it. Write it for *any* objective with a projection of its own: the
# gradients of the encoder *and* of the objective, a chunk at a time.


# %%
def cached_for(encoder, objective, anchors, positives, chunk: int) -> list[torch.Tensor]:
    """Gradients of all weights of the encoder, then of the objective, as `backward` on the whole batch gives them.

    No forward pass that keeps anything for the backward pass sees more than `chunk` segments.
    """
    raise NotImplementedError


# %%
class Largest(torch.nn.Module):
    """Notes the largest batch that passes while gradients are wanted."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(98 * 64, 12), 0

    def forward(self, x):
        self.seen = max(self.seen, len(x) if torch.is_grad_enabled() else 0)
        return torch.tanh(self.layer(x.flatten(1)))


def check_cached(answer):
    x = torch.randn(2, 10, 98, 64, generator=torch.Generator().manual_seed(0))
    for kind in (cola.Bilinear, cola.Cosine, cola.Triplet):
        torch.manual_seed(1)
        model, loss = Largest(), kind(12, size=6, dropout=0.0)
        weights = [*model.parameters(), *loss.parameters()]
        wanted = torch.autograd.grad(loss(model(x[0]), model(x[1]))[0], weights)
        model.seen = 0
        got = answer(model, loss, *x, 3)
        assert model.seen <= 3, f"{model.seen} segments at once kept their graph"
        assert len(got) == len(wanted), "a gradient for each weight of the encoder and of the objective"
        for a, b in zip(got, wanted):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-5), (
                f"{kind.__name__}: the gradients differ from those of the whole batch"
            )


course.check_exercise(check_cached, cached_for)

# %% [markdown]
# <details><summary>Hint 1</summary>The objective's own gradients come with the gradient in h: one
# <code>loss.backward()</code> fills both.</details>
# <details><summary>Hint 2</summary>Clear all gradients first: <code>zero_grad()</code> of both modules.</details>
# <details><summary>Solution</summary>
#
# ```python
# def cached_for(encoder, objective, anchors, positives, chunk):
#     encoder.zero_grad(), objective.zero_grad()
#     both = torch.cat([anchors, positives])
#     with torch.no_grad():
#         h = torch.cat([encoder(x) for x in both.split(chunk)])
#     h.requires_grad_()
#     objective(*h.chunk(2))[0].backward()
#     for x, g in zip(both.split(chunk), h.grad.split(chunk)):
#         encoder(x).backward(g)
#     return [p.grad for p in [*encoder.parameters(), *objective.parameters()]]
# ```
# </details>
