# ---
# jupyter:
#   jupytext:
#     formats: ipynb,source//py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8 Scaling up: from 1,600 clips to FMA-large
#
# You measure what the course did, and calculate what a hundred thousand clips would cost. You see why a large contrastive
# batch is not many small ones, and write the method that computes its gradient with little memory. You leave with the commands for one
# GPU and for eight, and with a glossary of the course.
#
# **Run time** about 2 minutes on 2 cores.
#
# You will be able to
# - say which stage limits a project, and what it will cost, before it is begun;
# - tell gradient accumulation from a larger contrastive batch, and write a gradient cache, which gives the gradient of the larger batch;
# - say what may change with the size of a project and what must not;
# - plan a comparison on FMA that could show a difference.

# %%
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

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
# Two numbers matter: how long one core takes to turn a second of audio into frames, and how many pairs per second the
# encoder learns from. Both are measured now, on this machine.

# %% tags=["needed"]
measured = [scaling.measure(arch, rounds=2) for arch in ("b0-small", "b0")]
print(f"preparing a second of audio takes one core {1000 * measured[0].prepare_s:.1f} ms")
pd.DataFrame(map(asdict, measured)).drop(columns="prepare_s").round(2)

# %% [markdown]
# `pairs_per_s` is the speed of one *device*, here probably the CPU. On a machine with a GPU this cell measures the GPU.
# `weights_mb` counts every weight four times: itself, its gradient, and the two averages that AdamW keeps.
# `segment_mb` is what the forward pass of one segment must keep for the backward pass: most of a training's memory.
#
# And preparing: where does the time go for an MP3 of 30 seconds in stereo at 44.1 kHz, as FMA has? (This one holds noise.)
# Beside it stand the two calls that you would write without this package, `librosa.load` and
# `librosa.feature.melspectrogram`.

# %%
widgets.guess(
    "8-mp3",
    "From an MP3 to log-mel frames: which stage takes longest?",
    {
        "decoding the MP3": "The decoder rebuilds 1.3 million samples in each of two channels. It takes about half of the time, or more.",
        "resampling to 16 kHz": "It takes about a tenth of the time: the signal is mixed to one channel first.",
        "the transform to mel bands": "It comes second. 3,000 short Fourier transforms are cheap.",
    },
    "decoding the MP3",
)

# %%
parts = bench.preparing_parts()
fig, ax = plt.subplots(figsize=(8, 2.2))
left = 0.0
for stage in ("decoding", "mixing", "resampling", "transform"):
    ax.barh(["stage by stage"], [1000 * parts[stage]], left=left, label=stage)
    left += 1000 * parts[stage]
for name, key, grey in (("prepare", "prepare", "0.35"), ("librosa, two calls", "librosa", "0.65")):
    ax.barh([name], [1000 * parts[key]], color=grey)
ax.set(xlabel="ms per clip of 30 s, one core; the best of five", title="from MP3 to log-mel frames")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
ratio = parts["librosa"] / parts["prepare"]
print(f"{30 / parts['prepare']:.0f} times real time; {ratio:.2f} times as fast as librosa's two calls")

# %% [markdown]
# Clips do not depend on each other. So any number of cores can share this work, and any number of machines:
# `prepare --jobs 16`, or `prepare --backend dask --scheduler tcp://HOST:8786` on a cluster whose machines see the same
# folders. A call that is cut off goes on where it stopped. A damaged file costs one line in `quarantine.csv`.
#
# ## 2 A store that is larger than memory
# FMA-large gives 106,574 clips of 3,000 frames: 41 GB as float16. It is never loaded as a whole. The store's files are
# *mapped*: a crop of 98 frames is read when it is cut, and the rest stays on disk. To try that without 41 GB, we make a
# store of sparse files: they claim their size, but take no room. So what follows is the time of everything but the disk.

# %%
found = bench.large_store()
print(f"{found['clips']:,} clips, {found['size']:.0f} GB", end=": ")
print(f"opened in {found['open']:.2f} s, {found['memory']:.0f} MB of memory")
print(f"1,024 pairs drawn in {1000 * found['draw plain']:.0f} ms; augmented in {1000 * found['draw']:.0f} ms")

# %% [markdown]
# Drawing a batch must take less time than learning from it. If it takes more, as with a fast GPU or a slow disk, other
# processes draw the next batches in advance. Batch number *n* depends only on *n*, the seed and how many devices share it. So any process can
# make it, and a run that is resumed sees the same batches.
#
# ## 3 More distractors: why accumulation does not help
# When a batch does not fit into memory, the usual answer is to **accumulate gradients**: two batches of 16, one step.
# For a classifier that is the same as one batch of 32, since the loss is a mean over clips. A contrastive loss is not:
# each pair is compared with the *other pairs of its batch*. In two batches of 16, a pair has 15 distractors. In one batch
# of 32 it has 31. Two small batches ask an easier question twice.

# %%
widgets.guess(
    "8-accumulate",
    "The gradient of two batches of 16, accumulated, and that of one batch of 32 with the same pairs: "
    "what is the angle between them?",
    {
        "0°, they are the same": "So it would be for a classifier, whose loss is a mean over clips.",
        "5 to 20°": "Most of the question is the same, but half of the distractors are missing.",
        "90°, they have nothing in common": "Both ask for the same pairs, so they agree in much.",
    },
    "5 to 20°",
)

# %% [markdown]
# What does give the gradient of the batch of 32? Look at the chain rule. The loss depends on the encoder's weights only
# through the embeddings h. So there is a way in three steps, the **gradient cache** (GradCache,
# [arXiv 2101.06983](https://arxiv.org/abs/2101.06983)):
# 1. Embed in small chunks, and keep nothing for the backward pass.
# 2. Compute the loss of all h together, and its gradient in h. This costs little memory.
# 3. Embed each chunk once more, now with a graph, and send its part of the gradient in h back into the weights.
#
# ### Your turn: cached_gradients · hard · 20 minutes · core
# Write the three steps, for any encoder and any objective of notebook 3. Return the gradients of all weights of the
# encoder, then of the objective. They must equal those of one `backward` on the whole batch.


# %%
def cached_gradients(
    encoder: torch.nn.Module,
    objective: torch.nn.Module,
    anchors: torch.Tensor,
    positives: torch.Tensor,
    chunk: int,
) -> list[torch.Tensor]:
    """Return the gradient of each weight: of `encoder.parameters()`, then of `objective.parameters()`.

    anchors and positives [B, 98, 64]; `encoder(x)` gives h [b, dim] for b segments, and
    `objective(h_anchors, h_positives)` gives (loss, similarity [B, B]). No forward pass that keeps a graph
    sees more than `chunk` segments. Gradients that are there already are cleared first.
    """
    raise NotImplementedError


# %%
class Largest(torch.nn.Module):
    """A small encoder that notes the largest batch that passes while gradients are wanted."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(98 * 64, 12), 0

    def forward(self, x):
        self.seen = max(self.seen, len(x) if torch.is_grad_enabled() else 0)
        return torch.tanh(self.layer(x.flatten(1)))


# %%
def check_cached_gradients(answer):
    x = torch.randn(2, 10, 98, 64, generator=torch.Generator().manual_seed(0))
    for kind in (cola.Bilinear, cola.Cosine, cola.Triplet):
        torch.manual_seed(1)
        model, loss = Largest(), kind(12, size=6, dropout=0.0)
        weights = [*model.parameters(), *loss.parameters()]
        wanted = torch.autograd.grad(loss(model(x[0]), model(x[1]))[0], weights)
        model.seen = 0
        for call in ("first", "second"):
            got = answer(model, loss, *x, 3)
            again = "each chunk has to pass once more with its graph, or the encoder gets no gradient"
            assert model.seen > 0, again
            assert model.seen <= 3, f"{model.seen} segments at once kept their graph: at most `chunk` may"
            assert len(got) == len(wanted), "return a gradient for each weight of encoder and objective"
            problem = "they are not the whole batch's" if call == "first" else "clear old gradients first"
            for i, (a, b) in enumerate(zip(got, wanted)):
                part = "encoder" if i < len(list(model.parameters())) else "objective"
                same = a is not None and a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5)
                assert same, f"{kind.__name__}, {call} call, gradients of the {part}: {problem}"


# %%
from torch.utils.checkpoint import checkpoint


def recomputed(encoder, objective, anchors, positives, chunk):
    """The same by torch's checkpoints, as `pretrain --chunk` does it: what is used until yours passes."""
    h = [
        torch.cat([checkpoint(encoder, c, use_reentrant=False) for c in x.split(chunk)])
        for x in (anchors, positives)
    ]
    return list(torch.autograd.grad(objective(*h)[0], [*encoder.parameters(), *objective.parameters()]))


cached_gradients = course.exercise(cached_gradients, check_cached_gradients, instead=recomputed)

# %% [markdown]
# <details><summary>Hint 1</summary>Step 1: <code>with torch.no_grad()</code>, over the chunks of
# <code>torch.cat([anchors, positives])</code>. Then <code>h.requires_grad_()</code> makes h a new beginning.</details>
# <details><summary>Hint 2</summary>Step 2: <code>loss.backward()</code> fills <code>h.grad</code> and the objective's own
# gradients. Call <code>zero_grad()</code> of both modules before it.</details>
# <details><summary>Hint 3</summary>Step 3: <code>encoder(x).backward(g)</code> with a chunk <code>x</code> and its rows
# <code>g</code> of <code>h.grad</code>. Gradients of all chunks add up in the weights.</details>
# <details><summary>Solution</summary>
#
# ```python
# def cached_gradients(encoder, objective, anchors, positives, chunk):
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
#
# Here are all three on one batch of music: the whole, two halves accumulated, and the cache. The statistics of BatchNorm
# are frozen for this comparison, because they too would depend on the chunk. The encoder is `default`, and the objective
# is fresh. We compare the gradients of the encoder's weights.

# %%
encoder = open_run("default").load_encoder()
torch.manual_seed(0)
objective = cola.Bilinear(encoder.dim, dropout=0.0)
pair = segments.pair_batch(pretraining_clips([store]), 0, 32, seed=0)  # two tensors [32, 98, 64]
weights = list(encoder.parameters())


def gradient(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The mean gradient of the loss over several batches, all weights in one long vector."""
    losses = [objective(encoder(anchors), encoder(positives))[0] for anchors, positives in parts]
    return torch.cat([g.flatten() for g in torch.autograd.grad(sum(losses) / len(parts), weights)])


# %%
whole = gradient([pair])
halves = gradient(list(zip(*(x.chunk(2) for x in pair))))
chunks = cached_gradients(encoder, objective, *pair, chunk=8)[: len(weights)]
chunks = torch.cat([g.flatten() for g in chunks])
for name, g in (("two batches of 16, accumulated", halves), ("one batch of 32 in chunks of 8", chunks)):
    error = ((g - whole).norm() / whole.norm()).item()
    angle = torch.rad2deg(torch.acos(torch.cosine_similarity(g, whole, dim=0).clamp(-1, 1))).item()
    print(f"{name}: off by {100 * error:.3g}% of the gradient of the whole, turned by {angle:.2g}°")
assert torch.allclose(chunks, whole, rtol=1e-2, atol=1e-4 * whole.abs().max())

# %% [markdown]
# The accumulated gradient is another one: it points elsewhere, and is off by a large part of its length. The gradient of
# the chunks differs from the whole only by rounding.
#
# `pretrain --chunk 32` does this by `torch.utils.checkpoint`. It forgets what lies inside a chunk and computes it again
# on the way back: the same arithmetic as your gradient cache, without a second loop. It costs one more forward pass,
# about a third more time. And in training BatchNorm normalises by a chunk's statistics instead of the batch's. How much
# memory does it save? Two processes measure it, each with a batch of 128 pairs. (A chunk
# is counted in segments.)

# %%
memory = bench.peak_memory(batch=128, chunk=16)
fig, ax = plt.subplots(figsize=(8, 1.6))
bars = ax.barh(["whole batch", "chunks of 16"], list(memory.values()), color=["0.65", "0.35"])
ax.bar_label(bars, fmt="%.0f MB", padding=3)
ax.margins(x=0.15)
ax.invert_yaxis()
ax.set(xlabel="memory that forward and backward add (MB)", title="128 pairs, b0-small")
plt.show()

# %% [markdown]
# ## 4 Several processes
# With two GPUs each process embeds half the batch. If each then computed its own loss, we would be back at two batches
# of 16. So the embeddings h are **gathered** from all processes *with their gradients*. Every process computes the loss
# of the whole batch. DistributedDataParallel averages the gradients over the processes, and that average is the gradient
# of the whole. One function does it, `cola.gather_embeddings`. A test compares the gradients of two processes with those
# of one.
#
# BatchNorm stays per process: it sees the process' own part of the batch, as it sees a chunk. Keep the parts large. With
# few examples per part its statistics are noisy, and accuracy falls (Wu and He 2018,
# [arXiv 1803.08494](https://arxiv.org/abs/1803.08494), figure 1: with fewer than 16).
#
# Does it run? Here are two processes on this CPU for a few steps, then one process with the same batch, and with half of
# it. (The two share the cores, so nothing gets faster.)

# %%
widgets.guess(
    "8-gather",
    "Two processes with 16 pairs each, h gathered. The encoder has hardly learned. Which loss do they report?",
    {
        "a little below ln 16 ≈ 2.8": "It would be so if each process compared only its own 16 pairs.",
        "between ln 16 ≈ 2.8 and ln 32 ≈ 3.5": "Each anchor is compared with the positives of both processes: 32 candidates.",
        "a little below 2 · ln 16 ≈ 5.5": "Losses of processes are averaged, not added.",
    },
    "between ln 16 ≈ 2.8 and ln 32 ≈ 3.5",
)


# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def first_loss(batch: int, processes: int) -> float:
    """The loss of a pre-training after five steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "colalib", "pretrain", str(store.path), "--out", f"{folder}/run"]
        command += f"--steps 5 --accelerator cpu --batch-size {batch} --devices {processes}".split()
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=one_thread)
        assert done.returncode == 0, done.stderr[-2000:]
        return pd.read_csv(Path(folder) / "run" / "metrics.csv")["train/loss"].dropna().iloc[-1]


# %%
for batch, processes in ((32, 2), (32, 1), (16, 1)):
    loss = first_loss(batch, processes)
    print(f"{batch} pairs, {processes} process(es): loss {loss:.2f}, guessing {np.log(batch):.2f}")

# %% [markdown]
# Each process draws crops of its own, and its batch norm sees half of the batch, so the first two losses are not equal. But
# both lie above ln 16 ≈ 2.77, where guessing among 16 would be, and the third lies below it. So each process compares its
# pairs with those of the other one, too.
#
# ## 5 The calculator
# From the constants above to any project: the function `cost` multiplies them, and the calculator below lets you set
# its arguments. Both assume that devices share the work without loss. Memory counts what has to be kept, weights and
# activations, in float32. It is a rough figure: intermediate results come on top, and with bfloat16 the activations are
# half as large. A device that you do not have yet is given by its `speed` relative to this one. If `b0` learns from 50 pairs
# per second on your CPU, and from 2,500 on a GPU, the GPU's speed is 50. We suppose this here; we have not measured it.

# %%
fma = cost(measured[1], *CORPORA["fma_large"], cores=16, devices=8, speed=50)
pd.Series(fma, name="FMA-large, b0, 16 cores, 8 devices").round(2).to_frame()

# %% tags=["widget"]
widgets.calculator(measured)

# %% [markdown]
# ## 6 What may change with size
# The commands for FMA on one GPU, on eight, and under Slurm stand on [a page of their own](at_scale.md). They are the
# commands of this course with other numbers. Which numbers?
#
# | may change with size | must not change |
# |---|---|
# | batch size: more distractors, and better use of a GPU | the split: no artist on both sides, test clips in no pre-training |
# | learning rate: with the batch, tried first on short runs | the mel settings |
# | warm-up, passes, architecture | how the test side is used: once |
# | where distractors come from: gathered from all | the seeds and their number, chosen before the first run |
#
# ## 7 The comparison, done properly
# The result that this course starts from is 54.3% against 51.1% (notebook 6, section 3): one run each, and 1,600 clips
# split at random. The interval of the difference holds zero, so no difference is shown. What would it take? The official
# split of FMA-small (its 800 test clips are by other artists than the rest), several seeds, and predictions that are
# kept, so that differences can be taken in pairs:
#
# ```sh
# python -m colalib compare stores/fma_small --encoder runs/fma --seeds 5 --out runs/fma/official.json
# ```
#
# That repeats the fine-tuning five times, on one pre-training. To speak about pre-training itself, repeat that as well:
# several run folders after `--encoder` count as seeds.
#
# Would 800 clips and five seeds do? Suppose that the true difference is 3.2 points. On a share *d* of the clips exactly
# one of two single runs is right. But a part of *d* is churn: two runs of the *same* recipe also disagree, on a share *c*
# of the clips (the mean of the two recipes). Churn averages out over several runs, and the rest, *d* − *c*, does not.
#
# ### Your turn: half_width · medium · 10 minutes · worth it
# There are *r* runs of each model on the same *n* clips. The variance of the difference has two parts. The choice of
# test clips gives (*d* − *c*) / *n*, however many runs there are. The runs give twice the variance of one run's accuracy,
# divided by *r*. (We leave out δ² of exercise 6.2: it is small.)
#
# Return the half width of the 95% interval, 1.96 times the root of the sum, in points.


# %%
def half_width(clips: int, d: float, churn: float, scatter: float, runs: float) -> float:
    """Return the half width of the 95% interval of a difference in accuracy, in points.

    d and churn: shares of the clips. scatter: standard deviation of the test accuracy over runs, in points.
    """
    raise NotImplementedError


# %%
def check_half_width(answer):
    assert np.isclose(answer(800, 0.25, 0.0, 0.0, 1), 3.465, atol=0.01), (
        "no churn, no scatter: 1.96 · 100 · √(d / n)"
    )
    assert np.isclose(answer(800, 0.2, 0.2, 1.0, 2), 1.96), (
        "if all of d is churn, only the runs are left: 1.96 √(2 s² / r)"
    )
    assert np.isclose(answer(800, 0.25, 0.15, 0.0, 1), answer(800, 0.1, 0.0, 0.0, 1)), "churn comes off d"
    one, four = answer(800, 0.3, 0.1, 2.0, 1), answer(800, 0.3, 0.1, 2.0, 4)
    assert np.isclose(one**2 - four**2, 1.96**2 * 6), (
        "only the part of the runs should get smaller with more runs"
    )
    quarter = answer(3200, 0.3, 0.1, 0.0, 1) / answer(800, 0.3, 0.1, 0.0, 1)
    assert np.isclose(quarter, 0.5), "four times as many clips should halve the part of the clips"


# %%
def width_of(clips, d, churn, scatter, runs):
    """What is used until yours passes."""
    return 1.96 * np.sqrt(100**2 * (d - churn) / clips + 2 * scatter**2 / runs)


half_width = course.exercise(half_width, check_half_width, instead=width_of)

# %% [markdown]
# <details><summary>Hint 1</summary>Shares become points: a variance in shares times 100².</details>
# <details><summary>Hint 2</summary>Both parts are variances: add them, then take the root.</details>
# <details><summary>Solution</summary>
#
# ```python
# def half_width(clips, d, churn, scatter, runs):
#     return 1.96 * np.sqrt(100**2 * (d - churn) / clips + 2 * scatter**2 / runs)
# ```
# </details>
#
# Notebook 6 printed *d* and the churn of two models that are far apart. Two that are close agree more often. So let us
# say *d* = 0.25, runs that scatter by 1.5 points, and three amounts of churn.

# %%
truth, trained = 3.2, np.arange(1, 21)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
for ax, clips in zip(axes, (800, 2573)):
    for churn in (0.05, 0.1, 0.15):
        half = [half_width(clips, 0.25, churn, 1.5, r) for r in trained]
        ax.plot(trained, half, marker="o", ms=3, label=f"churn {100 * churn:.0f}% of the clips")
    ax.axhline(truth, color="black", ls="--", lw=1)
    ax.set_xticks([1, 5, 10, 15, 20])
    ax.set(xlabel="runs of each", ylim=(0, None), title=f"{clips:,} test clips, d = 25%")
axes[1].annotate("the difference, 3.2", (6, truth + 0.1))
axes[0].set_ylabel("half width (points)")
axes[1].legend()
plt.show()
for clips in (800, 2573):
    widths = [f"{half_width(clips, 0.25, churn, 1.5, 5):.1f}" for churn in (0.05, 0.1, 0.15)]
    print(f"{clips:,} clips, five runs of each: ± {', '.join(widths)} points, by churn of 5, 10 and 15%")

# %% [markdown]
# More runs help at first: they average out churn and scatter. What remains comes from the test clips that were drawn. We
# hold *d* fixed here, so the more of it is churn, the less is left after many runs.
#
# On the dashed line a difference of 3.2 points would be shown in half of all such experiments: a coin toss. For 80% the
# half width must be below 0.7 · 3.2 = 2.24 points: 0.7 is 1.96 / (1.96 + 0.84), 1.96 for the 95% of the interval and 0.84
# for the 80%. On 800 clips not even twenty runs of each reach that. FMA-medium has 2,573 clips in its official test side.
# There five runs of each are enough if the churn is 15%, and nine if it is 5%. The numbers *d*, *c* and the scatter are
# guesses here. A small trial run would tell. Plan your own: begin with 800 clips, and find the fewest runs that show 3 points.

# %%
widgets.power_lab(800)

# %% [markdown]
# ## Recap
# You can now
# - say which stage limits a project, and what it will cost, before it is begun: by constants measured on the machine;
# - tell gradient accumulation from a larger contrastive batch, and write a gradient cache that gives the latter: a chunk
#   at a time; or gather h from several processes;
# - say what may change with the size of a project and what must not;
# - plan a comparison on FMA that could show a difference: by test clips, runs and churn.
#
# This is the end of the course. The next step is a folder of your own sounds.
#
# ## Exercises
# ### 8.1 Which stage is the limit? · easy · 5 minutes
# With `cost`: on how many cores must FMA-large be prepared, so that it takes no longer than pre-training `b0`
# for 100 passes on eight devices, each 50 times as fast as this machine?


# %%
def cores_needed(constants: Constants, devices: int = 8, speed: float = 50) -> int:
    """The smallest number of cores with which preparing FMA-large takes no longer than pre-training."""
    raise NotImplementedError


# %%
def check_cores(answer):
    constants = Constants("b0", "cpu", pairs_per_s=40.0, weights_mb=80.0, segment_mb=10.0, prepare_s=0.002)
    for devices, speed in ((8, 50), (1, 1), (16, 400), (2, 70)):
        cores = answer(constants, devices, speed)
        project = {"devices": devices, "speed": speed}
        found = cost(constants, *CORPORA["fma_large"], cores=cores, **project)
        too_few = f"{cores} cores are too few for {devices} devices"
        assert found["preparing (h)"] <= found["pre-training (h)"], too_few
        if cores > 1:
            fewer = cost(constants, *CORPORA["fma_large"], cores=cores - 1, **project)
            assert fewer["preparing (h)"] > fewer["pre-training (h)"], f"fewer than {cores} cores would do"


_ = course.exercise(cores_needed, check_cores)

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
# ### 8.2 Half a loss · medium · 15 minutes
# Two processes have a half of the batch each. Suppose the embeddings are gathered *without* gradients: every process
# compares its own anchors with all positives, but only its own embeddings get a gradient. Return the average of the two
# processes' gradients in h (one direction only, anchor → positive). The check compares it with that of the whole batch.


# %%
def without_gradients(
    similarity_loss, anchors: torch.Tensor, positives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients in anchors [B, d] and positives [B, d]: the average over two processes.

    Each process computes the loss of its half of the anchors against all positives:
    `similarity_loss(anchors [B/2, d], positives [B, d], first)`, where `first` is the number of its first
    positive. Each process lets gradients into its own halves only.
    """
    raise NotImplementedError


# %%
def loss_of_anchors(a, p, first):
    return torch.nn.functional.cross_entropy(a @ p.T, torch.arange(first, first + len(a)))


# %%
def check_without(answer):
    loss = loss_of_anchors
    a, p = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)).unbind()
    got_a, got_p = answer(loss, a, p)
    a.requires_grad_(), p.requires_grad_()
    want_a, want_p = torch.autograd.grad(loss(a, p, 0), (a, p))
    alone = "averaged over both processes, an anchor's gradient is as in the whole batch"
    assert torch.allclose(got_a, want_a, atol=1e-5), alone
    assert not torch.allclose(got_p, want_p, atol=1e-3), (
        "a positive is a distractor in the other process: that part is lost"
    )
    missing = (got_p - want_p).norm() / want_p.norm()
    assert 0.01 < missing < 2, "the positives' gradients should be wrong, but not wildly"
    halved = "positives get what their own process says, halved"
    for own, first in ((slice(4), 0), (slice(4, 8), 4)):
        of_process = torch.autograd.grad(loss(a[own], p, first), p)[0][own]
        assert torch.allclose(got_p[own], of_process / 2, atol=1e-5), halved


# %%
_ = course.exercise(without_gradients, check_without)

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

# %% [markdown]
# ## Your progress
# The exercises of all notebooks, and those of yours that passed.

# %%
plots.table(course.progress())

# %% [markdown]
# ## Glossary
# | term | meaning in this course |
# |---|---|
# | ablation | a comparison in which one setting at a time is changed or left out |
# | anchor, positive | the two segments of a pair, both cut from one clip |
# | augmentation | a random change of a segment that keeps what it means, such as a filter |
# | BatchNorm | a layer that gives each channel mean 0 and variance 1: in training by the batch, afterwards by running statistics |
# | bilinear similarity | g(x)ᵀ W g(x′), a dot product with a matrix W in between that is learned |
# | bootstrap | drawing from the sample again and again, with replacement, to see how far a result scatters |
# | calibrated | of a random encoder: BatchNorm has statistics that fit the data, and no weight was trained |
# | churn | answers that change from run to run of one recipe |
# | class | one of the answers that a task allows, here a kind of music |
# | collapse | all sounds get the same embedding, and nothing is learned |
# | contrastive loss | the cross-entropy of finding each anchor's positive among all positives of the batch |
# | cosine similarity | the cosine of the angle between two vectors, from −1 to 1; their lengths do not matter |
# | cross-entropy | −ln of the probability that was given to the right answer |
# | decibel (dB) | a ratio: 20 dB more is ten times the amplitude |
# | `default` | the encoder that comes with the course |
# | distractor | a segment of another clip of the batch, which the anchor must not be matched with |
# | embedding h | the encoder's output for one segment: the largest value of each channel of its last layer. What the command `embed` calls a clip's embedding is the read-out |
# | encoder | the network that turns a segment into h; here an EfficientNet |
# | false negative | a distractor that is in truth like the anchor, such as another take of its tune |
# | fine-tuning | training a pre-trained encoder further, with labels, together with a classifier |
# | fold | one of several parts of a corpus, each of which is the test side once |
# | frame | one column of a spectrogram: 25 ms of sound, one every 10 ms |
# | frozen | of an encoder: its weights stay as they are |
# | gradient cache | a way to get the gradient of a large batch a chunk at a time |
# | group | clips that belong together, such as takes of one tune, and stay on one side of a split |
# | head | the linear layer on h that a classifier ends with |
# | interval (95%) | a range made in such a way that in 95% of repetitions of the whole experiment it holds the true number |
# | kNN | a classifier that fits nothing: the k nearest clips with a label vote |
# | leakage | information about the test side that reaches training |
# | linear probe | a linear classifier on the read-out of a frozen encoder |
# | log-mel spectrogram | the logarithm of the magnitude per mel band and frame; what the encoder gets |
# | logits | one number per class; a softmax turns them into probabilities |
# | margin | in the triplet loss: how much more similar than a distractor a positive must be; in notebook 7: how far apart a probe's two best classes are |
# | mel band | a range of frequencies, wider the higher it is, roughly as the ear divides them |
# | metre | how the beats of music are grouped: in twos, in threes, or with three quick notes in each beat (compound) |
# | paired difference | the difference of two models on the same clips, with the same groups drawn for both |
# | power | the share of repetitions of an experiment that would show a true difference of a given size |
# | pre-training | training without labels, here by a contrastive loss |
# | profile | how much the course computes: `test`, `quick` or `full` |
# | projection g | a small network between h and the similarity, which is dropped after pre-training |
# | rank | the place of the positive when all candidates are sorted by similarity; 1 is best |
# | read-out | what probes and maps read of a clip: block features and numbers per mel band |
# | recall at k | the share of questions whose answer is among the k nearest |
# | run, seed | one training; the number from which all that is random in it is drawn |
# | scratch | of a classifier: trained from random weights |
# | segment | the 98 frames, about one second, that the encoder gets at once |
# | shortcut | a feature that solves the training task but not the task that you care about |
# | softmax | turns a row of numbers into probabilities: exp of each, divided by their sum |
# | split | the division of the clips into train, valid and test |
# | store | the folder that holds the log-mel frames of a corpus |
# | straw man | a baseline that was made weak, so that it is easy to beat |
# | temperature | the number by which similarities or outputs are divided before the softmax |
