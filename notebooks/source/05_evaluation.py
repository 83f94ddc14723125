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
# # 5 Evaluation: is the difference real?
#
# You put seven ways to classify a clip side by side, from chance to the fine-tuned encoder, give every number and
# every difference an interval, and hear the clips that decide.
#
# **Run time** about 6 minutes on 2 cores in the quick profile, the first time; later runs load what is there.
#
# You will be able to
# - judge an encoder frozen (linear probe, nearest neighbours) and fine-tuned, beside baselines that are no straw men;
# - compute an interval by a bootstrap over groups and seeds, by hand;
# - compare two models in pairs: paired differences, McNemar's test;
# - say what a published pair of numbers can and cannot show;
# - find leakage, and judge the same encoder on other tasks and on a folder of your own.

# %%
import json
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from scipy.stats import binom, binomtest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy

from colalib import course, evaluation, widgets
from colalib.data import audio, corpora, segments
from colalib.data import store as stores
from colalib.data.clips import Clips
from colalib.data.splits import Split, evaluation_splits, split_form
from colalib.encoder import Encoder
from colalib.evaluation import intervals, plots
from colalib.evaluation.comparison import ABLATION
from colalib.evaluation.probes import C_GRID, TEMPERATURES
from colalib.training.runs import Run, open_run

plots.style()
profile = course.profile()
corpus, store, encoder = course.corpus(), course.store(), course.encoder()
folder = course.supervised_folder(encoder)
keep = folder / "features"  # embeddings are computed once; later runs load them from this folder

# %% [markdown]
# ## 1 Frozen: what does the encoder know already?
# A **linear probe** leaves the encoder as it is and fits one linear classifier on its clip embeddings: what it finds
# must have been there. What is read from a frozen encoder is not only its last layer, which is made for the task of
# pre-training, but every block: the mean and standard deviation of each channel over the time of the whole clip, in four
# ranges of bands from low to high. The clip is cut into overlapping segments, as the encoder knows them. Here it is by hand.

# %%
features = evaluation.feature_source(encoder).of_store(store, keep)  # [n, d]
pretrained = open_run(encoder).load_encoder()

x = segments.split_segments(store.frames(0), hop=segments.EVAL_HOP_FRAMES)  # [segments, 98, 64]
x = torch.from_numpy(x)
with torch.no_grad():
    *blocks, _ = pretrained.feature_maps(x)  # each [segments, time, bands, channels]
means, spreads = [], []
for block in blocks:
    parts = block.chunk(min(block.shape[2], 4), dim=2)  # the last blocks have two bands left
    ranges = torch.stack([part.mean(dim=2) for part in parts], dim=3)  # [segments, time, channels, ranges]
    means.append(ranges.mean(dim=(0, 1)).flatten())
    spreads.append(ranges.std(dim=(0, 1), correction=0).flatten())
by_hand = torch.cat(means + spreads).numpy()  # [d]
assert np.allclose(by_hand, features[0], rtol=1e-3, atol=1e-3)
print(f"{len(x)} segments, {len(blocks)} blocks → embedding {by_hand.shape}; all clips: {features.shape}")

# %% [markdown]
# The probe: standardise every column, fit a logistic regression on `train`, choose its strength of regularisation on
# `valid`, refit on both, predict `test`. No number of the test side takes part in any choice. Between accuracies on `valid`
# a clip or two would decide; cross-entropy counts how sure each answer was, but a weakly regularised model is punished for
# being too sure, which does not change one answer. So each model's outputs are first divided by the **temperature** that
# suits them best ([Guo et al. 2017](https://arxiv.org/abs/1706.04599)).

# %%
warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations bring it close enough
labels = store.clips["label"].values
division = evaluation_splits(store.clips)[0]


def fit(rows, strength):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    with threadpool_limits(1):  # the solver's last digits depend on the number of threads
        return model.fit(features[rows], labels[rows])


fitted = {c: fit(division.train, c) for c in C_GRID}
valid = features[division.valid], labels[division.valid]
losses = {}
for c, model in fitted.items():
    outputs = torch.from_numpy(model.decision_function(valid[0]))  # [clips of valid, classes]
    true = torch.from_numpy(np.searchsorted(model.classes_, valid[1]))
    losses[c] = min(cross_entropy(outputs / t, true).item() for t in TEMPERATURES)
best = min(losses, key=losses.get)
by_hand = fit(np.concatenate([division.train, division.valid]), best).predict(features[division.test])
theirs = evaluation.linear_probe(features, labels, division)
assert np.array_equal(by_hand, theirs)
print("on valid, cross-entropy by C:", {c: round(loss, 3) for c, loss in losses.items()})
print("on valid, accuracy by C:", {c: round(m.score(*valid), 3) for c, m in fitted.items()})
print(f"accuracy on test with C = {best}: {np.mean(by_hand == labels[division.test]):.3f}")

# %% [markdown]
# ## 2 A baseline that is no straw man
# "Better than random weights" is only worth saying if the random weights got a fair chance. An EfficientNet ([arXiv
# 1905.11946](https://arxiv.org/abs/1905.11946)) normalises every layer by running statistics (BatchNorm, [arXiv
# 1502.03167](https://arxiv.org/abs/1502.03167)). In a new network these say *mean 0, variance 1*, which is wrong for
# every layer: from block to block the signal shrinks. `calibrate_batchnorm` passes some training clips through the
# network, so that the statistics fit. No weight changes. Watch how far the components of the embedding scatter over
# clips.

# %%
per_class = max(20, profile.clips_per_class * 3 // 10)
part = np.flatnonzero(store.clips.groupby("label").cumcount().values < per_class)
random = evaluation.feature_source("random", pretrained.arch, seed=0).of_store(store, keep)  # calibrated

torch.manual_seed(0)  # the same weights, not calibrated
fresh = Encoder(pretrained.arch)
raw = np.zeros_like(random)
raw[part] = evaluation.embed_frames(fresh, Clips([store], [part]), store.mel.silence)
for name, f in {"not calibrated": raw, "calibrated": random, "pre-trained": features}.items():
    low, middle = np.quantile(f[part].std(axis=0), [0.05, 0.5])
    print(
        f"{name}: a typical component scatters over clips by {middle:.2g}, one in twenty by less than {low:.2g}"
    )

# %% [markdown]
# Now judge them on that part of the clips: with a logistic regression on the embeddings as they are, and with the
# linear probe, which standardises them first.


# %%
def plain(x, y, split):
    """Logistic regression on features as they are: predictions for the test side."""
    return LogisticRegression(max_iter=300).fit(x[split.train], y[split.train]).predict(x[split.test])


inner = Split("", *(np.intersect1d(side, part) for side in (division.train, division.valid, division.test)))
tables = [
    evaluation.evaluate_features(store, x, f"random, {name}, {how}", "label", [inner], method=method)
    for name, x in (("not calibrated", raw), ("calibrated", random))
    for how, method in (("as it is", plain), ("standardised", evaluation.linear_probe))
]
straw = intervals.summary(pd.concat(tables))
fig, ax = plt.subplots(figsize=(8, 2.4))
_ = plots.results(straw, ax, title=f"the same random weights, {straw['n_clips']} test clips")

# %% [markdown]
# The same weights, four readings. Without calibration many components are numbers too small for a classifier that
# takes them as they are: whoever compares with *that* compares with a straw man. Standardised columns bring them
# back, and the network may then even do better than the calibrated one: signals that small pass through it almost
# linearly, which keeps much of the spectrogram. So a baseline is to be taken at its best, and not only one of them:
# the table below adds plain mel statistics.
#
# Whatever random weights reach is owed to the architecture alone. Only what pre-training adds *to that* was learned.
#
# ## 3 Everything side by side
# One call, all on the same test clips:
# - `mel-stats`, no network: mean and standard deviation of each log-mel band, then the linear probe;
# - `random`, the calibrated encoder with random weights, then the linear probe;
# - `probe` and `kNN` on the frozen pre-trained encoder. kNN fits nothing: the five nearest clips with a label vote;
# - `scratch` and `fine-tuned`, the classifiers of notebook 4.
#
# Whatever depends on chance is repeated over seeds; what is in `runs/supervised` already is reused.

# %%
names = [f"{m}-label-all-split-{seed}" for m in ("scratch", "fine-tuned") for seed in range(profile.seeds)]
missing = sum(not Run(folder / name).finished for name in names)
print(f"training {missing} of {len(names)} classifiers, {profile.finetune_minutes:g} minutes each", end="; ")
print("the others are loaded")
supervised = course.supervised()
results, predictions = evaluation.compare(store, encoder, folder, seeds=profile.seeds, finetune=supervised)
display(plots.table(intervals.table(results)))

# %%
fig, ax = plt.subplots(figsize=(8, 3.4))
title = f"{results['n_clips']} test clips, {predictions['group'].nunique()} tunes"
plots.results(results, ax, title=f"{title}; ticks: seeds, bars: 95%")
plt.show()

# %% [markdown]
# One caveat goes with `scratch` in every table: it had the minutes printed above and no more. If notebook 4 said that
# it had hardly begun to learn, then it is a straw man as well, and the gap is one of speed.
#
# ## 4 Where an interval comes from
# The test clips are a sample: had other tunes been drawn, the accuracy would be another. A **bootstrap** imitates
# that by drawing from the sample itself, with replacement. Two things are to be drawn:
# - *groups*, not clips: takes of one tune are right or wrong together, so clips are not independent;
# - *seeds*, because another training would have given another network.

# %%
table = predictions[predictions["model"] == "fine-tuned"]
right = (table["label"] == table["predicted"]).groupby([table["seed"], table["group"]])
hits = right.sum().unstack(fill_value=0).values  # [seeds, groups]
clips = right.size().unstack(fill_value=0).values  # [seeds, groups]
n_seeds, n_groups = hits.shape


def bootstrap(draw_seeds: bool, draws: int = 2000) -> np.ndarray:
    """Accuracies in `draws` imagined repetitions of the experiment."""
    rng, found = np.random.default_rng(1), []
    for _ in range(draws):
        g = rng.integers(n_groups, size=n_groups)
        s = rng.integers(n_seeds, size=n_seeds) if draw_seeds else np.arange(n_seeds)
        found.append(hits[np.ix_(s, g)].sum() / clips[np.ix_(s, g)].sum())
    return np.array(found)


draws = bootstrap(draw_seeds=True)
ours = np.quantile(draws, [0.025, 0.975])
theirs = next(r for r in results["results"] if r["model"] == "fine-tuned")["ci95"]
# two bootstraps agree up to their own noise, about a tune
assert np.allclose(ours, theirs, atol=0.01 + 1 / n_groups)
print(f"by hand {ours.round(3)}, colalib {np.round(theirs, 3)}")

# %% [markdown]
# What if we had been careless? Clips counted as independent give the textbook binomial interval. Compare the widths.

# %%
p = hits.sum() / clips.sum()
half = 1.96 * np.sqrt(p * (1 - p) / results["n_clips"])
ways = {
    "clips, as if independent": (p - half, p + half),
    "tunes": np.quantile(bootstrap(draw_seeds=False), [0.025, 0.975]),
    "tunes and seeds": ours,
}
fig, ax = plt.subplots(figsize=(8, 2.6))
ax.hist(100 * draws, bins=40, color=plots.MODELS["fine-tuned"], alpha=0.25, density=True)
top = ax.get_ylim()[1]
for i, (name, (low, high)) in enumerate(ways.items()):
    label = f"{name}: ± {50 * (high - low):.1f} points"
    ax.plot([100 * low, 100 * high], [top * (0.75 - 0.2 * i)] * 2, lw=3, label=label)
ax.set(xlabel="accuracy of the fine-tuned encoder (%)", yticks=[])
ax.set_title("bootstrap draws and three 95% intervals")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## 5 Differences, in pairs
# Two intervals that overlap do *not* mean that there is no difference: both models met the same easy and the same
# hard tunes, and that common luck cancels in the difference. So draw the same groups and seeds for both, and look at
# the difference itself. Unpaired, here by hand, that gain is thrown away.


# %%
def resampled(model: str, seed: int, draws: int = 2000) -> np.ndarray:
    """Bootstrap accuracies over groups and seeds; the same `seed` draws the same groups and seeds for every model."""
    t = predictions[predictions["model"] == model]
    right = (t["label"] == t["predicted"]).groupby([t["seed"], t["group"]])
    hits = right.sum().unstack(fill_value=0).values  # [seeds, groups]
    clips = right.size().unstack(fill_value=0).values  # [seeds, groups]
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        chosen = np.ix_(*(rng.integers(n, size=n) for n in hits.shape))
        found.append(hits[chosen].sum() / clips[chosen].sum())
    return np.array(found)


paired = resampled("fine-tuned", 0) - resampled("scratch", 0)
unpaired = resampled("fine-tuned", 0) - resampled("scratch", 1)
for name, d in (("paired", paired), ("unpaired", unpaired)):
    low, high = 100 * np.quantile(d, [0.025, 0.975])
    print(
        f"fine-tuned − scratch, {name}: {100 * d.mean():+.1f} points, 95% interval {low:+.1f} … {high:+.1f}"
    )

# %%
asked = [
    ("fine-tuned", "scratch"),
    ("probe", "random"),
    ("probe", "mel-stats"),
    ("fine-tuned", "probe"),
    ("probe", "kNN"),
]
fig, ax = plt.subplots(figsize=(8, 2.8))
plots.differences(results, asked, ax, title="paired differences; an open circle: none shown")
answers = intervals.differences(results)
plots.table(answers[[{*pair} in [{*a} for a in asked] for pair in zip(answers["a"], answers["b"])]])

# %% [markdown]
# The rule for the whole course: **a difference whose interval holds zero is reported as none shown**, however good
# the mean looks. And an interval that just leaves out zero is one in many: six models make 15 pairs, and of those
# without a real difference one in twenty will do so by luck.
#
# ### Which clips decide?
# In a pair of classifiers only the clips that *one* of them gets right tell them apart. McNemar's test asks: could as
# lopsided a count come from tossing a coin for each of these clips? A clip counts as right if most seeds get it
# right.

# %%
right = predictions.assign(right=predictions["label"] == predictions["predicted"])
right = right.groupby(["clip_id", "model"])["right"].mean().unstack() > 0.5  # [clips, models]
only_fine = right["fine-tuned"] & ~right["scratch"]
only_scratch = right["scratch"] & ~right["fine-tuned"]
names = {"rownames": ["fine-tuned right"], "colnames": ["scratch right"]}
display(pd.crosstab(right["fine-tuned"], right["scratch"], **names))

few, n = min(only_fine.sum(), only_scratch.sum()), only_fine.sum() + only_scratch.sum()
p = min(1.0, 2 * binom.cdf(few, n, 0.5))  # two-sided: as lopsided as this, either way round
test = intervals.mcnemar(predictions, "fine-tuned", "scratch")
assert np.isclose(p, test["p"])
print(f"only fine-tuned right: {only_fine.sum()}, only scratch right: {only_scratch.sum()}, p = {p:.3g}")

# %% [markdown]
# McNemar takes clips for independent and knows nothing of seeds, so its p is too sure of itself where takes of a tune
# stick together. Use it to see which clips decide, and the interval above to judge. Listen to one clip of either
# kind:

# %%
for name, clips in (("fine-tuned", only_fine), ("scratch", only_scratch)):
    for clip in list(clips.index[clips])[:1]:
        row = store.clips.set_index("clip_id").loc[clip]
        print(f"only {name} gets this right: {row['label']} (leading instrument: {row['family']})")
        display(plots.player(audio.load_audio(corpus.root / row["path"])[: 5 * 16_000]))

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
for ax, name in zip(axes, ("scratch", "fine-tuned")):
    answers = predictions[predictions["model"] == name]
    plots.confusion(answers, ax, title=f"{name}, all seeds", bar=ax is axes[1])
axes[1].set_ylabel("")
plt.show()

# %% [markdown]
# Rows sum to 100%. Read the rows, not the single cells: a class has few test tunes, so a cell can move by many
# points. Do the confusions make musical sense, such as dances in the same metre?
#
# ## 6 What one published pair of numbers can show
# The result that this course starts from: pre-trained on FMA-large, fine-tuned on the eight genres of FMA-small (FMA:
# [arXiv 1612.01840](https://arxiv.org/abs/1612.01840)): **54.3%, against 51.1% from scratch**. One training of each;
# 1,600 test clips, drawn at random and not by artist; the predictions were not kept. All that can be computed from
# this is an unpaired interval:

# %%
a, b, n = 0.54375, 0.51125, 1600
half = 1.96 * np.sqrt(a * (1 - a) / n + b * (1 - b) / n)
print(f"difference {100 * (a - b):.2f} ± {100 * half:.2f} points", end=": ")
print(f"from {100 * (a - b - half):+.2f} to {100 * (a - b + half):+.2f}")

# %% [markdown]
# Zero is inside. What would the predictions have added? In pairs, only the clips count that one model alone gets
# right. Let their share be *d*: the net difference stays, and the smaller *d*, the surer it is. We do not know *d*,
# so we try all: draw many experiments at each *d*, and count those whose paired interval leaves out zero.

# %%
rng, shares = np.random.default_rng(0), np.linspace(0.05, 0.5, 19)
power, halves = [], []
for d in shares:
    only_a, only_b = (d + (a - b)) / 2, (d - (a - b)) / 2
    counts = rng.multinomial(n, [only_a, only_b, 1 - d], size=4000)  # [4000, 3]
    mean = (counts[:, 0] - counts[:, 1]) / n
    error = 1.96 * np.sqrt(((counts[:, 0] + counts[:, 1]) / n - mean**2) / n)
    power.append((np.abs(mean) > error).mean())
    halves.append(1.96 * np.sqrt((d - (a - b) ** 2) / n))
independent = a * (1 - b) + b * (1 - a)

fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
axes[0].plot(100 * shares, 100 * np.array(halves))
axes[0].axhline(100 * (a - b), color="black", ls="--", lw=1)
axes[0].annotate("the difference, 3.25", (6, 3.3))
axes[0].set(ylabel="half width of the interval (points)", title="paired interval")
axes[1].plot(100 * shares, 100 * np.array(power))
axes[1].set(ylabel="experiments that show it (%)", ylim=(0, 103), title="power, if 3.25 were the truth")
for ax in axes:
    ax.axvline(100 * independent, color=plots.MODELS["chance"], lw=1)
    ax.set(xlabel="clips that one model alone gets right (%)")
limit = (a - b) ** 2 * (n / 1.96**2 + 1)
print(f"two unrelated models of these accuracies: {100 * independent:.0f}% (grey line)")
print(f"zero is left out below {100 * limit:.0f}%")

# %% [markdown]
# So with the predictions kept, the same experiment might well have shown a difference *between these two networks*.
# Three doubts would stay, and no arithmetic removes them afterwards:
# - **seeds**: two other trainings might differ otherwise. How much do ours differ among themselves? (next cell)
# - **groups**: tracks of one artist on both sides of a random split reward recognising the artist;
# - **what was seen**: the test clips were in pre-training, without labels. Our table counts such clips:
#   `pretrain_overlap`.

# %%
spreads = {
    r["model"]: 100 * np.std(r["per_seed"], ddof=1)
    for r in results["results"]
    if r["model"] in ("scratch", "fine-tuned")
}
print(f"standard deviation over {profile.seeds} seeds (itself uncertain: few seeds):")
for name, s in spreads.items():
    print(f"  {name}: {s:.1f} points")
both = np.sqrt(sum(s**2 for s in spreads.values()))
print(f"the difference of one run of each then scatters by ± {1.96 * both:.1f} points (95%) from seeds alone")
print("test clips seen in pre-training:", {r["model"]: r["pretrain_overlap"] for r in results["results"]})

# %% [markdown]
# ## 7 Leakage, in one cell
# Cut every clip in two, as one does to get "more data", and split at random: the halves of one clip land on both
# sides. Same halves, same mel statistics, same nearest neighbours; only what the split keeps together differs.

# %%
halves = [h for i in range(len(store)) for h in np.array_split(store.frames(i).astype(np.float32), 2)]
x = np.stack([np.concatenate([h.mean(axis=0), h.std(axis=0)]) for h in halves])  # [2 n, 128]
clips = store.clips.iloc[np.repeat(np.arange(len(store)), 2)].reset_index(drop=True)
half = clips["clip_id"] + np.where(clips.index % 2, " b", " a")
parts = []
for together, group in (("tunes", clips["group"]), ("clips", clips["clip_id"]), ("nothing", half)):
    for s in evaluation_splits(clips.assign(group=group), folds=4):
        guess = evaluation.knn(x, clips["label"].values, s)
        part = clips.iloc[s.test].assign(clip_id=half[s.test], predicted=guess, seed=0, task="label")
        parts.append(part.assign(model=f"mel-stats, kept together: {together}"))
leak = intervals.summary(pd.concat(parts))
fig, ax = plt.subplots(figsize=(8, 2.2))
plots.results(leak, ax, title=f"nearest neighbours, 4 folds, {leak['n_clips']} halves of clips")
plots.table(intervals.differences(leak).drop(columns="reading"))

# %% [markdown]
# What a looser split adds is not skill: a nearest neighbour that finds the other half of its own clip has learned
# nothing of kinds of music. Whether takes of one *tune* leak as well depends on how alike they are; ours differ in
# instrument and key. You never know beforehand, so whatever could belong together stays together.
#
# ## 8 One encoder, several tasks
# *General-purpose* means: one encoder, many questions. The same frozen embeddings answer three: the kind of music,
# the family of the leading instrument, and the metre. A clip without a value in a column takes no part in that task.

# %%
tasks = {"label": "kind of music", "family": "instrument family", "metre": "metre"}
mel = evaluation.feature_source("mel-stats").of_store(store)  # [n, 2 · 64]
default = evaluation.feature_source("default").of_store(store, keep)
frozen = {"mel-stats": mel, "random": random, "probe": features, "default": default}
answers = {}
for task in tasks:
    folds = evaluation_splits(store.clips, task)
    tables = [evaluation.evaluate_features(store, x, m, task, folds) for m, x in frozen.items()]
    answers[task] = pd.concat(tables)
by_task = {task: intervals.summary(answer) for task, answer in answers.items()}

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 2.6), sharey=True)
for ax, (task, r) in zip(axes, by_task.items()):
    plots.results(r, ax, title=f"{tasks[task]} ({r['n_clips']} clips)")
rows = pd.concat([intervals.differences(r).assign(task=tasks[t]) for t, r in by_task.items()])
rows = rows[rows["a"].isin(["probe", "default"])]
plots.table(rows[["task", "a", "b", "a - b (points)", "95% interval", "reading"]])

# %% [markdown]
# A pair of crops of one clip shares its instruments, its room and its level, and, less surely, its metre. What
# pre-training teaches is what the two crops have in common and other clips have not. Does the table fit that thought?
# (The dashed line is what one answer for all clips would score: for metre, more than half. And *random* is one seed here,
# where section 5 has several.)
#
# ## 9 What matters in pre-training
# The paper compares similarities, batch sizes, and frozen with fine-tuned encoders, by the mean accuracy of nine tasks
# (COLA, section 4.2): cosine 67.2, bilinear 74.3; batches of 256, 512, 1024 and 2048: 68.6, 70.3, 74.3, 72.2;
# fine-tuned 85.1. Here it is in miniature: 18 pre-trainings on our clips, each setting for 15 passes over them and
# from three seeds, and one setting more, without the augmentations of notebook 2. That is an hour or two of work, so it
# was done beforehand: `data/ablation.json` is what
# `python -m colalib ablate data/scores.store --epochs 15 --out runs/ablation.json` wrote (from embeddings that average the
# segments' standard deviations, where section 1 takes one over the whole clip).

# %%
ablation = json.loads((course.home() / "data" / "ablation.json").read_text(encoding="utf-8"))
fig, axes = plt.subplots(1, 2, figsize=(12, 3.6))
plots.results(ablation, axes[0], title=f"frozen or trained, {ablation['n_clips']} test clips")
settings = [m for m in ABLATION if m != "bilinear"] + ["fine-tuned"]
_ = plots.differences(ablation, [(m, "bilinear") for m in settings], axes[1], title="paired differences")

# %% [markdown]
# How much of the paper's ablation comes out again? At this size the three objectives cannot be told apart; the paper's
# seven points between cosine and bilinear come from training far longer, on far more sound. Large batches, which the
# paper needs, cost accuracy here: in the same 15 passes a batch of 256 takes a quarter of the steps that one of 64
# takes. The augmentations pay, about as much as the batch does. Between frozen and fine-tuned (15 passes too) no difference
# is shown. And with six differences at 95%, one such figure in four has one that lies off 0 by chance alone: what is
# close to 0 wants more seeds.
#
# ## 10 The same on your own sound
# Nothing above knows about music. Name a folder: one sub-folder per class, or an `index.csv` (columns `path`, `label`
# and, if recordings belong together, `group`). Speech, birds, engines: the frozen encoder is probed in three lines.

# %%
MY_FOLDER = None  # e.g. "recordings": the path of a folder

if MY_FOLDER is None:
    print('set MY_FOLDER = "…" above, or in a shell:')
    print("  python -m colalib prepare FOLDER --out my.store")
    print(f"  python -m colalib probe my.store --encoder runs/{encoder.name}")
else:
    mine = corpora.load(MY_FOLDER)
    prepared = stores.build(mine, course.runs() / "own" / f"{mine.name}.store", progress=False)
    fold = min(prepared.clips["split"]) if split_form(prepared.clips["split"]) == "folds" else None
    sources = ("mel-stats", "random", encoder)
    tables = [evaluation.probe(prepared, source, fold=fold, progress=False)[1] for source in sources]
    own = intervals.summary(pd.concat(tables).replace({"model": {encoder.name: "probe"}}))
    fig, ax = plt.subplots(figsize=(7, 2.2))
    plots.results(own, ax, title=f"{mine.name}: linear probe, {own['n_clips']} test clips")
    display(plots.table(intervals.differences(own)))
    print("intervals:", own["results"][0]["ci_method"])

# %% [markdown]
# Where all test clips are one group (one speaker, say), the intervals hold for that one only: other speakers were not
# drawn.
#
# If the pre-trained encoder is not ahead there, that is a finding, not a fault: it was trained for minutes, on
# rendered music. Pre-train on your own unlabelled recordings (`python -m colalib pretrain`), and ask again.
#
# ## 11 Keep the predictions
# A table of accuracies cannot be paired afterwards. So what is kept is `results.json`, and beside it
# `predictions.csv`: every model's answer to every test clip.

# %%
intervals.save(results, course.runs() / "results.json", predictions)
for task in ("family", "metre"):
    intervals.save(by_task[task], course.runs() / f"{task}.json", answers[task])
n_models = predictions["model"].nunique()
print(f"results.json and predictions.csv: {len(predictions)} answers of {n_models} models")
plots.table(predictions.groupby("model").head(1))

# %% [markdown]
# From that table everything above can be drawn again, and more can be learned: which clips does a model get wrong,
# and what do they sound like? Press a cell of the matrix. Would you have known? Does the next model make the same
# mistakes? The tasks of section 8 are there too.

# %% tags=["widget"]
files = [course.runs() / f"{name}predictions.csv" for name in ("", "family-", "metre-")]
widgets.results_explorer(corpus, files)

# %% [markdown]
# ## Recap
# You can now
# - judge an encoder frozen (linear probe, nearest neighbours) and fine-tuned, beside baselines that are no straw men:
#   mel statistics, and random weights taken at their best;
# - compute an interval by a bootstrap over groups and seeds, by hand: what would be drawn anew is what is drawn;
# - compare two models in pairs: paired differences, McNemar's test;
# - say what a published pair of numbers can and cannot show: without the predictions, only the wider interval;
# - find leakage, and judge the same encoder on other tasks and on a folder of your own.
#
# **Next**, notebook 6: what the embeddings look like, and sound like.

# %% [markdown]
# ## Exercises
# ### 5.1 An interval without a bootstrap · easy · 10 minutes
# For independent clips, Wilson's interval is better than *p* ± 1.96 SE where *p* is near 0 or 1. With z = 1.96 it is
#
# $$\frac{k + z^2/2}{n + z^2} \pm \frac{z}{n + z^2} \sqrt{\frac{k (n - k)}{n} + \frac{z^2}{4}}$$


# %%
def wilson(k: int, n: int) -> tuple[float, float]:
    """k of n right → the ends of Wilson's 95% interval, as fractions."""
    raise NotImplementedError


# %%
def check_wilson(answer):
    low, high = answer(50, 100)
    assert low < 0.5 < high, "at 50 of 100 the interval should lie around 0.5"
    assert answer(0, 20)[0] >= 0, "it should never leave 0 … 1"
    assert answer(20, 20)[1] <= 1, "it should never leave 0 … 1"
    for k, n in ((7, 20), (0, 12), (160, 320)):
        known = binomtest(k, n).proportion_ci(method="wilson")
        expected = (known.low, known.high)
        assert np.allclose(answer(k, n), expected, atol=1e-3), f"for {k} of {n} scipy finds {known}"


course.check_exercise(check_wilson, wilson)

# %% [markdown]
# <details><summary>Hint</summary>At the ends of the range rounding may leave 0 … 1 by a hair: <code>max(0, …)</code>.
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def wilson(k, n, z=1.96):
#     centre = (k + z**2 / 2) / (n + z**2)
#     half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
#     return max(0.0, centre - half), min(1.0, centre + half)
# ```
# </details>
#
# ### 5.2 How many clips would it take? · medium · 15 minutes
# Two models differ by δ, and on a share *d* of the clips exactly one of them is right. The paired interval is δ ±
# 1.96 √((d − δ²) / n). From how many test clips on does it leave out zero?


# %%
def clips_needed(difference: float, share: float) -> int:
    """The smallest number of test clips at which the paired interval of `difference` leaves out zero."""
    raise NotImplementedError


# %%
def check_clips(answer):
    for difference, share in ((0.0325, 0.3), (-0.0325, 0.3), (0.01, 0.2), (0.1, 0.4)):
        n = answer(difference, share)
        leaves = [abs(difference) > 1.96 * np.sqrt((share - difference**2) / m) for m in (n, n - 1)]
        assert leaves[0], f"with {n} clips the interval of {difference} at share {share} still holds zero"
        assert not leaves[1], f"one clip fewer than {n} would do as well at {difference}, {share}"
    assert answer(0.0325, 0.1) < answer(0.0325, 0.4), "models that agree more need fewer clips"


course.check_exercise(check_clips, clips_needed)

# %% [markdown]
# <details><summary>Hint 1</summary>Solve |δ| = 1.96 √((d − δ²) / n) for n.</details>
# <details><summary>Hint 2</summary>n must be strictly above the solution: <code>int(np.floor(…)) + 1</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def clips_needed(difference, share):
#     return int(np.floor(1.96**2 * (share - difference**2) / difference**2)) + 1
# ```
# </details>
#
# ### 5.3 A fair number for unequal classes · medium · 15 minutes
# Where classes differ in size, a model that always says the largest looks good. Balanced accuracy is the mean over
# classes of the share that is right in each. Give it an interval by a bootstrap over groups.


# %%
def balanced_accuracy(label: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes in `label` of the share of their clips that is predicted rightly."""
    raise NotImplementedError


def balanced_interval(table: pd.DataFrame, draws: int = 500, seed: int = 0) -> tuple[float, float]:
    """Columns group, label, predicted → 95% interval of balanced accuracy, over groups drawn with replacement."""
    raise NotImplementedError


# %%
def check_balanced(answer):
    label, lazy = np.array(["a"] * 9 + ["b"]), np.array(["a"] * 10)
    half = balanced_accuracy(label, lazy)
    assert np.isclose(half, 0.5), "always saying the larger of two classes is worth one half"
    assert np.isclose(balanced_accuracy(label, label), 1), "all right is worth 1"
    table = by_seed[by_seed["seed"] == 0]
    low, high = answer(table)
    mean = balanced_accuracy(table["label"].values, table["predicted"].values)
    assert low <= mean <= high, f"the interval {low:.3f} … {high:.3f} should hold the accuracy {mean:.3f}"
    whole = answer(table.assign(group="one"))
    assert np.isclose(*whole), "with a single group every draw is the same, so the interval has no width"


by_seed = predictions[predictions["model"] == "scratch"]
course.check_exercise(check_balanced, balanced_interval)

# %% [markdown]
# <details><summary>Hint 1</summary><code>(label == predicted)</code> grouped by <code>label</code>: a mean of means.</details>
# <details><summary>Hint 2</summary>Collect the row numbers of each group once:
# <code>table.reset_index(drop=True).groupby("group").indices</code>; a draw concatenates those of the drawn groups.</details>
# <details><summary>Solution</summary>
#
# ```python
# def balanced_accuracy(label, predicted):
#     return float(pd.Series(label == predicted).groupby(np.asarray(label)).mean().mean())
#
#
# def balanced_interval(table, draws=500, seed=0):
#     rng, label, predicted = np.random.default_rng(seed), table["label"].values, table["predicted"].values
#     rows = list(table.reset_index(drop=True).groupby("group").indices.values())
#     found = []
#     for _ in range(draws):
#         drawn = np.concatenate([rows[g] for g in rng.integers(len(rows), size=len(rows))])
#         found.append(balanced_accuracy(label[drawn], predicted[drawn]))
#     return tuple(np.quantile(found, [0.025, 0.975]))
# ```
# </details>
