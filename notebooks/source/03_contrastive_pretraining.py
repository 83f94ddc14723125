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
# # 3 Contrastive pre-training: from triplets to COLA
#
# You write three objectives by hand, from one triplet to a whole batch, train an encoder with the last of them, and
# hear which wrong second it takes for the right one.
#
# **Run time** about a minute on 2 cores in the quick profile, and once the training itself, 4 minutes; later runs
# load it.
#
# You will be able to
# - draw the parts of COLA, and say where each idea came from;
# - write the triplet loss, the cosine loss with temperature and the bilinear loss, and check them against colalib's;
# - say what a loss means: what guessing costs, ln B, and what accuracy and rank tell beside it;
# - read the curves of a pre-training, and compare the encoder before and after on clips it has never heard;
# - explain what the batch size changes.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import SVG, display
from torch import Tensor, nn
from torch.nn import functional as F

from colalib import cola, course, evaluation, widgets
from colalib.data import audio, segments
from colalib.data.clips import Clips, pretraining_clips, split_validation
from colalib.data.segments import SEGMENT_FRAMES
from colalib.encoder import Encoder
from colalib.evaluation import plots
from colalib.training.runs import open_run, read_checkpoint

plots.style()
profile = course.profile()
corpus, store = course.corpus(), course.store()

# %% [markdown]
# ## 1 Where this comes from
# - **Triplets** (FaceNet, [1503.03832](https://arxiv.org/abs/1503.03832), 2015): an anchor must be nearer to its
#   positive than to a distractor, by a margin. There for faces, with labels.
# - **AudioSet** (Gemmeke et al., ICASSP 2017): two million labelled ten-second sounds, the common ground on which
#   audio encoders are trained and judged.
# - **Triplets without labels, for sound** (Jansen et al., [1711.02209](https://arxiv.org/abs/1711.02209), 2017): the
#   positive is the anchor with noise, shifted, mixed with another sound, or a sound from nearby in time.
# - **Cross-entropy over candidates**, InfoNCE (CPC, [1807.03748](https://arxiv.org/abs/1807.03748), 2018): pick the
#   positive among many, instead of comparing one with one.
# - **The batch supplies the distractors** (SimCLR, [2002.05709](https://arxiv.org/abs/2002.05709), 2020): with a
#   temperature, and a projection that is dropped afterwards.
# - **No distractors at all** (BYOL, [2006.07733](https://arxiv.org/abs/2006.07733), 2020): predict what a slowly
#   moving copy of yourself says of the other view.
# - **All of it for sound, simply** (COLA, [2010.10915](https://arxiv.org/abs/2010.10915), 2020): two crops of a
#   clip, an EfficientNet, a bilinear similarity.
#
# BYOL needs no distractors; what keeps it from calling everything the same is that second, slower network and a
# small predictor. COLA keeps the distractors, and with them one network and one loss. This is what we build:

# %%
SVG(filename=course.home() / "notebooks" / "pictures" / "cola.svg")

# %% [markdown]
# ## 2 The encoder
# An EfficientNet ([1905.11946](https://arxiv.org/abs/1905.11946)) reads the log-mel segment like a picture. Block by
# block, time and frequency get coarser and features richer; the maximum over what is left of time and frequency is
# the embedding **h**. On a laptop we take `b0-small`, half as wide and half as deep as the paper's B0.

# %%
clips = pretraining_clips([store])  # every clip but those of the test split
torch.manual_seed(0)
# random weights, BatchNorm fitted to the data
encoder = evaluation.calibrate_batchnorm(Encoder("b0-small"), clips)
anchors, positives = segments.pair_batch(clips, step=0, batch_size=16, seed=0)
with torch.no_grad():
    maps = list(encoder.feature_maps(anchors))  # after every block [B, time, bands, channels]
    h, h_positive = encoder(anchors), encoder(positives)
parameters = {arch: sum(p.numel() for p in Encoder(arch).parameters()) / 1e6 for arch in ("b0-small", "b0")}
print(f"segments {tuple(anchors.shape)} → first map {tuple(maps[0].shape)}", end=" → ")
print(f"last map {tuple(maps[-1].shape)} → h {tuple(h.shape)}")
print("million parameters:", ", ".join(f"{arch} {n:.1f}" for arch, n in parameters.items()))

# %% [markdown]
# ## 3 DPT: one triplet at a time
# The oldest objective, the course's DPT, needs three embeddings. With s the cosine similarity, the anchor a should
# be more similar to its positive p than to the distractor d, by a margin m; if it is, there is nothing left to
# learn:
#
# $$\ell = \max(0,\; m - s(a, p) + s(a, d))$$


# %%
def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two vectors [d] → scalar in -1 … 1."""
    return (a @ b) / (a.norm() * b.norm())


def one_triplet(anchor: Tensor, positive: Tensor, distractor: Tensor, margin: float = 0.5) -> Tensor:
    """Triplet loss of three embeddings [d] → scalar."""
    return F.relu(margin - cosine(anchor, positive) + cosine(anchor, distractor))


a, p, d = h[0], h_positive[0], h_positive[1]
print(f"untrained encoder: s(a, p) = {cosine(a, p):.3f}, s(a, d) = {cosine(a, d):.3f}")
print(f"loss {one_triplet(a, p, d):.3f}")

# %% [markdown]
# Untrained, the two similarities are much the same, and the loss is near its margin. One distractor for each anchor
# wastes the batch, though. All other positives are there already: B pairs make B(B − 1) triplets.

# %%
size = len(h)
by_hand = torch.stack(
    [one_triplet(h[i], h_positive[i], h_positive[j]) for i in range(size) for j in range(size) if i != j]
)
similarity = cola.cosine_similarity(h, h_positive)  # [B, B]: all cosines in one matrix product
assert torch.isclose(by_hand.mean(), cola.triplet_loss(similarity), atol=1e-5)
print(f"{len(by_hand)} triplets of {size} pairs: mean loss {by_hand.mean():.4f}, as colalib's")

# %% [markdown]
# ## 4 Cross-entropy with a temperature
# A triplet compares with one distractor at a time, and forgets about it once the margin is kept. Cross-entropy puts
# one question about all of them: *which of these B is the positive?* The row of similarities becomes a probability
# for each answer, and the loss is −ln of the right one's.
#
# Cosines live between −1 and 1. Even a perfect row, 1 for the positive and −1 for the rest, would give a timid
# answer. So they are divided by a **temperature** τ before the softmax: the smaller it is, the more the nearest
# distractors count.

# %%
row = similarity[0]
fig, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True)
for ax, temperature in zip(axes, (1.0, 0.2, 0.02)):
    probability = (row / temperature).softmax(dim=0)
    colours = [plots.ROLES["positive"]] + [plots.ROLES["distractor"]] * (size - 1)
    ax.bar(range(size), 100 * probability, color=colours)
    ax.axhline(100 / size, color=plots.MODELS["chance"], ls="--", lw=1)
    ax.set(
        xlabel="candidate (0 is the positive)", title=f"τ = {temperature:g}: loss {-probability[0].log():.2f}"
    )
_ = axes[0].set_ylabel("probability (%)")

# %% [markdown]
# Now the objective with its projection **g**. The loss isn't computed on h itself but on g(h): what the pair task
# doesn't need may be thrown away in g, and h still has it. After pre-training g is dropped.


# %%
def contrastive_by_hand(similarity: Tensor) -> Tensor:
    """Mean of -ln p(positive | anchor) over the rows of [B, B] → scalar."""
    probability = similarity.exp() / similarity.exp().sum(dim=1, keepdim=True)
    return -probability.diagonal().log().mean()


def both_ways(similarity: Tensor) -> Tensor:
    """Anchor → positive and positive → anchor: rows and columns are asked the same question."""
    return (contrastive_by_hand(similarity) + contrastive_by_hand(similarity.T)) / 2


torch.manual_seed(0)
objective = cola.Cosine(encoder.dim, temperature=0.2).eval()  # eval: no dropout
linear = objective.project[1]
with torch.no_grad():
    g, g_positive = (x @ linear.weight.T + linear.bias for x in (h, h_positive))  # [B, 512]
    g, g_positive = (x / x.norm(dim=1, keepdim=True) for x in (g, g_positive))
    by_hand = both_ways(g @ g_positive.T / 0.2)
    assert torch.isclose(by_hand, objective(h, h_positive)[0], atol=1e-5)
print(f"cosine with temperature: {by_hand:.4f} by hand, as colalib's; ln B = {np.log(size):.4f}")

# %% [markdown]
# ## 5 COLA: a similarity that learns
# The cosine weighs all 512 directions alike. COLA learns the similarity along with everything else, as a matrix W:
#
# $$s(x, x') = g(x)^\top W\, g(x') / \sqrt{512}, \qquad g(x) = \tanh(\mathrm{LayerNorm}(A\,h(x) + b))$$
#
# W can turn up what identifies a recording and turn down what doesn't. It is not bounded, so it sets its own
# temperature. It starts as the identity: at first the similarity is a plain dot product (the paper draws W at random;
# a short training can't wait until it has learned that likeness counts). In the paper it beats the cosine clearly: a
# linear probe on the frozen encoder reaches 74.3% on average over nine tasks against 67.2%.

# %%
torch.manual_seed(0)
objective = cola.Bilinear(encoder.dim).eval()
linear, norm, weight = objective.project[1], objective.project[3], objective.weight


def project_by_hand(h: Tensor) -> Tensor:
    """tanh(LayerNorm(Linear(h))), [B, dim] → [B, 512]."""
    y = h @ linear.weight.T + linear.bias
    y = (y - y.mean(dim=1, keepdim=True)) / (y.var(dim=1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    return torch.tanh(y * norm.weight + norm.bias)


with torch.no_grad():
    similarity = project_by_hand(h) @ weight @ project_by_hand(h_positive).T / 512**0.5  # [B, B]
    loss, theirs = objective(h, h_positive)
    assert torch.allclose(similarity, theirs, atol=1e-4)
    assert torch.isclose(both_ways(similarity), loss, atol=1e-5)
print(f"bilinear: {loss:.4f} by hand, as colalib's")
print(f"similarities from {similarity.min():.2f} to {similarity.max():.2f}")

# %% [markdown]
# ## 6 What guessing costs
# Before you look at any curve, know where it starts. Who finds all B answers equally likely gives each the
# probability 1/B, and pays ln B. A *confident* guesser pays more. We simulate both: random similarity matrices with
# a growing spread, many of them.

# %%
sizes = np.array([2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
torch.manual_seed(0)
fig, ax = plt.subplots(figsize=(8, 3.2))
for spread, colour in ((0.0, 0), (1.0, 1), (2.0, 3)):
    losses = []
    for b in sizes:
        many = [cola.contrastive_loss(spread * torch.randn(b, b)).item() for _ in range(max(2000 // b, 1))]
        losses.append(np.mean(many))
    name = f"random similarities, standard deviation {spread:g}"
    ax.plot(sizes, losses, "o-", color=plots.PALETTE[colour], label=name)
ax.plot(sizes, np.log(sizes), "--", color=plots.MODELS["chance"], label="ln B")
ax.set(xscale="log", xlabel="batch size B", ylabel="loss (nats)")
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
_ = ax.legend()

# %% [markdown]
# So a loss means nothing without its B, and losses of different batch sizes or objectives can't be compared.
# Accuracy (chance 1/B) and mean rank (chance (B + 1)/2) go beside it.
#
# ## 7 Train
# `course.encoder()` loads the finished run if it is there, and trains it otherwise; it says which of the two.
# Stopping the kernel loses at most fifty steps: it resumes.

# %%
begun = time.perf_counter()
run = open_run(course.encoder())
config, metrics = run.config, run.metrics()
print(f"ready after {(time.perf_counter() - begun) / 60:.1f} minutes", end="; ")
print(f"the training took {metrics['seconds'].max() / 60:.1f} minutes")
print(
    f"{metrics['step'].max():.0f} steps, {metrics['epoch'].max():.1f} epochs, {config.objective}, {config.arch}"
)

# %% [markdown]
# The loss may start above its dashed line: that is the confident guesser of section 6. A twentieth of the clips,
# whole tunes, was held out for validation pairs. These are neither filtered nor masked and so easier to find: their
# curve may well lie above the one of training. Compare each with its own dashed line, which is what guessing gives.

# %%
sides = dict(zip(("train", "valid"), split_validation(clips, config.seed)))
chance = {}
for side, side_clips in sides.items():
    b = min(config.batch_size, len(sides["train"]), len(side_clips))
    chance[side] = {"loss": np.log(b), "accuracy": 1 / b, "rank": (b + 1) / 2}
    print(f"{side}: {len(side_clips)} clips, B = {b}")
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2))
for ax, name in zip(axes, ("loss", "accuracy", "rank")):
    frames = {side: metrics.rename(columns={f"{side}/{name}": name}) for side in sides}
    plots.curves(frames, name, ax=ax)
    for side, colour in plots.colours(sides).items():
        ax.axhline(chance[side][name], ls="--", lw=1, color=colour)
    unit = {"loss": "loss (nats)", "accuracy": "in-batch accuracy", "rank": "mean rank of the positive"}[name]
    ax.set(ylabel=unit, ylim=(0, None))

# %% [markdown]
# ## 8 Before and after, on clips that it has never heard
# Pre-training has left out the clips of the test split. We cut one pair from each, and let the same architecture
# answer with random weights and with the trained ones, each with its own projection and W (the identity, before
# training). To be fair to random weights, we also compare their h by plain cosine, without a random projection, and
# ask the mean spectrum of notebook 2.

# %%
after = cola.Cola(config, std=1.0)  # the checkpoint brings its own std
after.load_state_dict(read_checkpoint(run.path / "best.ckpt")["state_dict"])
torch.manual_seed(config.seed)
before = cola.Cola(config, std=1.0)
evaluation.calibrate_batchnorm(before.encoder, clips)

test_rows = np.flatnonzero(store.clips["split"] == "test")
test_clips = Clips([store], [test_rows])
n_test = len(test_clips)  # one batch of all of them
test_pairs = segments.pair_batch(test_clips, step=0, batch_size=n_test, seed=0)
chosen, crop_starts = segments.pair_starts(test_clips, step=0, batch_size=n_test, seed=0)
batch_rows = test_rows[chosen]  # pair i comes from row batch_rows[i] of the store

mean_spectra = [(x - x.mean((1, 2), keepdim=True)).mean(dim=1) for x in test_pairs]  # [N, 64] each
found = {"mel-stats": -torch.cdist(*mean_spectra)}
with torch.no_grad():
    for name, module in (("random", before.eval()), ("trained", after.eval())):
        h, h_positive = (module.encoder(x) for x in test_pairs)  # [N, dim] each
        found[name] = module.objective(h, h_positive)[1]  # [N, N]
        if name == "random":
            found["random, cosine of h"] = cola.cosine_similarity(h, h_positive)
print(f"{n_test} test clips, one pair each; similarity {tuple(found['trained'].shape)}")

# %%
labels = store.clips["label"].values[batch_rows]
order = np.argsort(labels, kind="stable")
shown = order[:: max(len(order) // 32, 1)][:32]  # 32 pairs, sorted by class
fig, axes = plt.subplots(1, 2, figsize=(10, 4.2))
for ax, name in zip(axes, ("random", "trained")):
    plots.similarity_matrix(found[name][shown][:, shown], ax=ax, title=f"{name} weights")
    first_of_class = np.flatnonzero(np.r_[True, labels[shown][1:] != labels[shown][:-1]])
    ax.set_yticks(first_of_class, labels[shown][first_of_class], fontsize=8)
    ax.set_ylabel("anchor i, by class")

# %% [markdown]
# Look for three things. A bright diagonal: pairs are found. Bright stripes: some segments are similar to everything.
# Bright squares along the diagonal: clips of one class resemble each other, which nobody has asked for. Now in
# numbers, for batches of any size: a smaller batch is a part of the big matrix.


# %%
def pair_scores(similarity: Tensor, batch: int) -> dict[str, float]:
    """Loss, accuracy and mean rank over random batches of `batch` pairs, parts of a matrix [N, N].

    40 batches, or more if it takes more for each pair to be drawn four times.
    """
    rng = np.random.default_rng(batch)
    rounds = max(40, 4 * len(similarity) // batch)
    parts = [similarity[d][:, d] for d in (rng.permutation(len(similarity))[:batch] for _ in range(rounds))]
    rank = torch.cat([cola.ranks(part) for part in parts]).float()
    loss = torch.stack([cola.contrastive_loss(part) for part in parts]).mean()
    return {"loss": loss.item(), "accuracy": (rank == 1).float().mean().item(), "rank": rank.mean().item()}


b = min(32, n_test)
rows = {name: pair_scores(similarity, b) for name, similarity in found.items()}
rows["guessing"] = {"loss": np.log(b), "accuracy": 1 / b, "rank": (b + 1) / 2}
for name in ("mel-stats", "random, cosine of h"):
    rows[name]["loss"] = np.nan  # these similarities were never meant to be logits
pd.DataFrame(rows).T.rename_axis(f"B = {b}, test clips").round(3)

# %% [markdown]
# Don't skip the baseline. In a short training the mean spectrum may well find more positives than the encoder: where
# crops overlap it matches what is identical, and where they don't it matches instruments. Look at the mean rank too:
# it tells who is far off when wrong. And finding pairs is only the means; what h is worth for another question is
# for notebooks 4 and 5 to say.
#
# ### What the batch size changes
# The same encoder looks worse the more candidates there are. That isn't a weakness of large batches, it's their use:
# a task that is solved has nothing left to teach, and a large batch stays hard for longer. It also brings rare
# lookalikes, from which one learns most. In the paper, batches of 256, 512, 1024 and 2048 give 68.6, 70.3, 74.3 and
# 72.2% on the nine tasks.

# %%
sizes = [b for b in (2, 4, 8, 16, 32, 64, 128, 256) if b <= n_test]
colours = {name: plots.MODELS[name] for name in ("mel-stats", "random", "trained")}
colours["random, cosine of h"] = plots.PALETTE[4]
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
for name, similarity in found.items():
    scores = pd.DataFrame([pair_scores(similarity, b) for b in sizes])
    share = 100 * scores["accuracy"]
    half = 1.96 * np.sqrt(share * (100 - share) / n_test)  # 95%, normal approximation, over the clips
    low, high = np.maximum(share - half, 0), np.minimum(share + half, 100)
    axes[0].plot(sizes, share, "o-", color=colours[name], label=name)
    axes[0].fill_between(sizes, low, high, color=colours[name], alpha=0.2, lw=0)
    if name in ("random", "trained"):
        axes[1].plot(sizes, np.log(sizes) - scores["loss"], "o-", color=colours[name])
axes[0].plot(sizes, 100 / np.array(sizes), "--", color=plots.MODELS["chance"], label="guessing")
axes[1].plot(sizes, np.log(sizes), ":", color="black", label="ln B, the most that B can show")
axes[1].axhline(0, ls="--", color=plots.MODELS["chance"])
for ax, name in zip(axes, ("positive found (%)", "ln B − loss (nats)")):
    ax.set(xscale="log", xlabel="batch size B", ylabel=name)
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.legend(fontsize=8, loc="upper right" if ax is axes[0] else "upper left")

# %% [markdown]
# On the right is what the loss is worth: ln B minus the loss is, in expectation, a lower bound of the information
# that two crops of a recording have in common (CPC, 1807.03748). It can never exceed ln B, however good the encoder
# is: a second reason for large batches.
#
# ### Hear a mistake
# The anchor that is most wrongly answered, its positive, and the second that the encoder took instead.

# %%
similarity = found["trained"].clone()
similarity.fill_diagonal_(-torch.inf)
margin, worst = (found["trained"].diagonal() - similarity.max(dim=1).values).min(dim=0)
wrong = int(similarity[worst].argmax())
for role, side, i in (
    ("anchor", 0, int(worst)),
    ("its positive", 1, int(worst)),
    ("taken instead", 1, wrong),
):
    clip = store.clips.iloc[batch_rows[i]]
    start = crop_starts[side, i]
    samples = slice(start * store.mel.hop, (start + SEGMENT_FRAMES) * store.mel.hop)
    print(f"{role}: {clip['label']}, {clip['family']}, {clip['title']}")
    display(plots.player(audio.load_audio(corpus.root / clip["path"])[samples]))

# %% [markdown]
# If the wrong one sounds more like the anchor than the right one does, don't blame the encoder. A piece may change
# from one second to the next, and then the task asks for something that isn't there. And if both bear the same title,
# look back at the false negatives of notebook 2.
#
# ## 9 The loop, and a taste of three objectives
# What Lightning does for colalib fits in a dozen lines: draw pairs, embed both sides, ask the objective, step. We
# run it for a few steps with each objective. This is a *taste*: the steps are few, there is one seed, and neither
# learning rate nor margin nor temperature has been tuned. It shows how learning begins, and doesn't say which
# objective is best in the end.

# %%
steps, batch = 25, 32
std = segments.segment_std(clips)
objectives = {"bilinear": cola.Bilinear, "cosine": cola.Cosine, "triplet": cola.Triplet}


def train_by_hand(name: str) -> tuple[Encoder, nn.Module, list[float]]:
    """A few steps from the same random weights: encoder, objective, and each step's mean rank of the positive."""
    torch.manual_seed(0)
    encoder = Encoder("b0-small", std=std)
    objective = objectives[name](encoder.dim)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=1e-3)
    ranks = []
    for step in range(steps):
        anchors, positives = segments.pair_batch(clips, step, batch, seed=0)
        loss, similarity = objective(encoder(anchors), encoder(positives))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        ranks.append(cola.ranks(similarity.detach()).float().mean().item())
    return encoder.eval(), objective.eval(), ranks


begun = time.perf_counter()
taste = {name: train_by_hand(name) for name in objectives}
seconds = time.perf_counter() - begun
print(f"{steps} steps of {batch} pairs with each of {len(taste)} objectives: {seconds:.0f} s")

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=[1.5, 1])
b = min(32, n_test)
for x, (name, colour) in enumerate(plots.colours(taste).items()):
    encoder, objective, ranks = taste[name]
    axes[0].plot(pd.Series(ranks).rolling(5, min_periods=1).mean(), color=colour, label=name)
    with torch.no_grad():
        similarity = objective(*(encoder(x) for x in test_pairs))[1]
    share = 100 * pair_scores(similarity, b)["accuracy"]
    half = 1.96 * np.sqrt(share * (100 - share) / n_test)
    axes[1].errorbar(x, share, half, fmt="o", color=colour, capsize=4)
axes[0].axhline((batch + 1) / 2, ls="--", color=plots.MODELS["chance"], label="guessing")
axes[0].set(xlabel="step", ylabel="mean rank of the positive", ylim=(0, None))
axes[0].set_title(f"training, B = {batch}, mean of 5 steps")
axes[0].legend()
axes[1].axhline(100 / b, ls="--", color=plots.MODELS["chance"])
axes[1].set(ylabel="positive found (%)", title=f"test clips, B = {b}", ylim=(0, None), xlim=(-0.5, 2.5))
_ = axes[1].set_xticks(range(3), plots.colours(taste))

# %% [markdown]
# If bilinear begins slowest, that passes: after fifteen passes over the clips the three can't be told apart (notebook 5,
# section 9).
#
# ## 10 Your own training
# Every setting of `PretrainConfig` is an option of `python -m colalib pretrain`; the panel shows some of them, with
# the paper's value where it has one. A training is a process of its own: it goes on while you read, and Stop loses
# nothing that Resume can't pick up. Does a triplet learn in a minute? What do 16 pairs per batch cost, and what do 256?
# An encoder that you pick here is the one that notebooks 4 to 6 use.

# %% tags=["widget"]
widgets.training_panel([store.path], course.runs())

# %% [markdown]
# ## Recap
# You can now
# - draw the parts of COLA, and say where each idea came from: triplets are FaceNet's, cross-entropy over candidates is CPC's,
#   the batch of distractors is SimCLR's, the bilinear similarity on sound is COLA's;
# - write the triplet loss, the cosine loss with temperature and the bilinear loss, and check them against colalib's;
# - say what a loss means: guessing costs ln B, finds 1/B, and ranks the positive (B + 1)/2 on average;
# - read the curves of a pre-training, and compare the encoder before and after on clips it has never heard, at the same B,
#   beside a simple baseline;
# - explain what the batch size changes: harder questions, and a loss that can say more, up to ln B.
#
# **Next**, [notebook 4](04_fine_tuning.ipynb): the encoder meets labels.

# %% [markdown]
# ## Exercises
# Replace `raise NotImplementedError` and run the cell below it. The lesson doesn't depend on it.
#
# ### 3.1 What guessing gives · easy · 5 minutes
# Someone answers every row of a batch without listening. What are loss, accuracy and mean rank?


# %%
def guessing(batch: int) -> tuple[float, float, float]:
    """Expected loss (nats) of equal probabilities, accuracy (0 … 1), mean rank of the positive among `batch`."""
    raise NotImplementedError


# %%
def check_guessing(answer):
    for b in (2, 32, 1000):
        loss, accuracy, rank = answer(b)
        assert np.isclose(loss, cola.contrastive_loss(torch.zeros(b, b)).item(), rtol=1e-4), (
            f"the loss at B = {b}"
        )
        assert np.isclose(accuracy, 1 / b), f"the accuracy at B = {b}: one answer of B is right"
        assert np.isclose(rank, np.arange(1, b + 1).mean()), (
            f"the rank at B = {b}: all places from 1 to B are equally likely"
        )


course.check_exercise(check_guessing, guessing)

# %% [markdown]
# <details><summary>Hint</summary>Equal probabilities are 1/B each, and the loss is −ln of the right one's.</details>
# <details><summary>Solution</summary>
#
# ```python
# def guessing(batch):
#     return np.log(batch), 1 / batch, (batch + 1) / 2
# ```
# </details>
#
# ### 3.2 SimCLR's loss · medium · 15 minutes
# COLA's anchors compete with the other clips' positives. In SimCLR's NT-Xent each of the 2B segments is an anchor
# once, and **all other 2B − 1** are its candidates, those of its own side too. Write it for embeddings that are not
# normalised yet.


# %%
def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent of B pairs of embeddings (a[i], b[i]), both [B, d] → scalar."""
    raise NotImplementedError


# %%
def check_nt_xent(answer):
    torch.manual_seed(0)
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    loss = answer(a, b)
    assert loss.ndim == 0, "return a scalar: the mean over all 2B anchors"
    assert torch.isclose(loss, answer(3 * a, b), atol=1e-5), (
        "the length of an embedding should not matter: cosine"
    )
    assert torch.isclose(loss, answer(b, a), atol=1e-5), "the two sides should be interchangeable"
    alike = answer(torch.ones(6, 5), torch.ones(6, 5))
    assert not torch.isclose(alike, torch.tensor(12.0).log()), (
        "ln 2B for equal embeddings: a segment competes with itself"
    )
    assert torch.isclose(alike, torch.tensor(11.0).log(), atol=1e-4), (
        "equal embeddings should cost ln(2B - 1)"
    )
    everyone, losses = F.normalize(torch.cat([a, b]), dim=1), []
    for i in range(12):
        logits = [everyone[i] @ everyone[j] / 0.2 for j in range(12) if j != i]
        losses.append(torch.stack(logits).logsumexp(0) - everyone[i] @ everyone[(i + 6) % 12] / 0.2)
    assert torch.isclose(loss, torch.stack(losses).mean(), atol=1e-4), "the value differs from a slow loop's"


course.check_exercise(check_nt_xent, nt_xent)

# %% [markdown]
# <details><summary>Hint 1</summary>Put both sides into one matrix [2B, d]; its cosines with itself are [2B,
# 2B].</details>
# <details><summary>Hint 2</summary>A segment must not choose itself: fill the diagonal with −∞.</details>
# <details><summary>Hint 3</summary>The partner of row i is row i + B, and the other way round: that is the target of
# <code>F.cross_entropy</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def nt_xent(a, b, temperature=0.2):
#     both = torch.cat([a, b])
#     logits = cola.cosine_similarity(both, both) / temperature
#     logits = logits.masked_fill(torch.eye(len(both), dtype=torch.bool), -torch.inf)
#     return F.cross_entropy(logits, torch.arange(len(both)).roll(len(a)))
# ```
# </details>
#
# ### 3.3 Semi-hard triplets · hard · 20 minutes
# Most triplets are easy and teach nothing; the very hardest are often mistakes in the data. FaceNet therefore picks
# **semi-hard** distractors: less similar than the positive, but within the margin. Average the triplet loss over
# these alone.


# %%
def semi_hard_loss(similarity: Tensor, margin: float = 0.5) -> Tensor:
    """Mean triplet loss over the semi-hard (anchor, distractor) pairs of [B, B] → scalar; 0 if there is none."""
    raise NotImplementedError


# %%
def check_semi_hard(answer):
    easy = torch.tensor([[0.9, -0.9], [-0.9, 0.9]])
    assert answer(easy, 0.5) == 0, "both distractors keep the margin: nothing to learn, and no division by 0"
    hard = torch.tensor([[0.1, 0.8], [0.8, 0.1]])
    assert answer(hard, 0.5) == 0, (
        "distractors nearer than the positive are hard, not semi-hard: leave them out"
    )
    mixed = torch.tensor([[0.6, 0.5, -0.9], [0.9, 0.6, 0.3], [0.0, 0.0, 0.6]])
    value = float(answer(mixed, 0.5))
    assert np.isclose(value, (0.4 + 0.2) / 2, atol=1e-5), (
        f"semi-hard are s(0, 1) = 0.5 and s(1, 2) = 0.3: mean 0.3, not {value:.3f}"
    )
    same = torch.full((3, 3), 0.5)
    assert answer(same, 0.5) == 0, (
        "a positive is not its own distractor; an equal similarity is not a lower one"
    )
    rows = mixed.clone().requires_grad_()
    answer(rows, 0.5).backward()
    assert rows.grad[0, 0] < 0 < rows.grad[0, 1], (
        "the gradient should pull the positive up and push the distractor down"
    )


course.check_exercise(check_semi_hard, semi_hard_loss)

# %% [markdown]
# <details><summary>Hint 1</summary>Compute the gap s(a, p) − s(a, d) for all entries at once:
# <code>similarity.diagonal()[:, None] - similarity</code>.</details>
# <details><summary>Hint 2</summary>Semi-hard is 0 &lt; gap &lt; margin; the diagonal's own gap is 0, so it drops
# out.</details>
# <details><summary>Hint 3</summary>Divide by <code>chosen.sum().clamp(min=1)</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def semi_hard_loss(similarity, margin=0.5):
#     gap = similarity.diagonal()[:, None] - similarity  # [B, B]
#     chosen = (gap > 0) & (gap < margin)
#     return ((margin - gap) * chosen).sum() / chosen.sum().clamp(min=1)
# ```
# </details>
