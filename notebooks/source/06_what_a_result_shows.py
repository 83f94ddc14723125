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
# # 6 What a result can show: is the difference real?
#
# Notebook 5 has given accuracies. How far can they be trusted? You write the two functions that give every number and
# every difference its interval, and hear the clips that decide. Then you ask what a published result shows, what leaks,
# and what holds on real music.
#
# **Run time** about 1 minute on 2 cores in the quick profile, after notebook 5.
#
# You will be able to
# - write a bootstrap over groups, and from it the interval of an accuracy;
# - write a paired interval for the difference of two models, and use McNemar's test beside it;
# - say what a published pair of numbers can and cannot show;
# - find leakage before it flatters you.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from scipy.stats import binom, binomtest
from sklearn.metrics import balanced_accuracy_score

from colalib import course, evaluation, widgets
from colalib.data import audio
from colalib.data.splits import evaluation_splits
from colalib.evaluation import intervals, plots
from colalib.evaluation.comparison import ABLATION
from colalib.training.runs import read_predictions

plots.style()
profile = course.profile()
corpus, store, encoder = course.corpus(), course.store(), course.encoder()

# %% [markdown]
# All answers to the test clips, as notebook 5 collected them. What it trained is loaded, not trained again.

# %%
folder, supervised = course.supervised_folder(encoder), course.supervised()
results, predictions = evaluation.compare(store, encoder, folder, seeds=profile.seeds, finetune=supervised)
plots.table(intervals.table(results))

# %% [markdown]
# ## 1 Where an interval comes from
# The test clips are a sample. With other tunes, the accuracy would be another. A **bootstrap** imitates that by drawing
# from the sample itself, with replacement. Two things are to be drawn:
# - *groups*, not clips: takes of one tune tend to be right or wrong together, so clips are not independent;
# - *seeds*, because another training would have given another network.
#
# ### Your turn: cluster_bootstrap · medium · 15 minutes · core
# Write the first of the two. Imagine the test repeated `draws` times. Each time, draw as many groups as there are, with
# replacement. A group that is drawn twice counts twice. The accuracy of a draw is the sum of `right` over all its clips,
# divided by their number. The same `seed` must draw the same groups for any `right`.


# %%
def cluster_bootstrap(right: np.ndarray, groups: np.ndarray, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Return the accuracy in each imagined repetition: [draws].

    right [clips]: 1 where a clip is right and 0 where it is wrong, or the share of seeds that are right.
    groups [clips]: the group that each clip belongs to.
    """
    raise NotImplementedError


# %%
def group_draws(right, groups, draws=2000, seed=0):
    """What is used until yours passes."""
    _, of_clip = np.unique(groups, return_inverse=True)
    hits, clips = np.bincount(of_clip, right), np.bincount(of_clip)  # per group
    drawn = np.random.default_rng(seed).integers(len(clips), size=(draws, len(clips)))
    return hits[drawn].sum(axis=1) / clips[drawn].sum(axis=1)


# %%
def check_cluster_bootstrap(answer):
    right, alone = np.repeat([1.0, 0.0], 50), np.array([f"tune {i}" for i in range(100)], dtype=object)
    accuracies = np.asarray(answer(right, alone, 500, 0))
    assert accuracies.shape == (500,), f"500 draws should give 500 accuracies, not {accuracies.shape}"
    known = "100 groups of one clip: draws should scatter by sqrt(p (1 - p) / 100) = 0.05"
    assert np.isclose(accuracies.std(), 0.05, atol=0.01), f"{known}, not {accuracies.std():.3f}"
    fours = np.asarray(answer(right, alone[np.arange(100) // 4], 500, 0)).std()
    assert np.isclose(fours, 0.1, atol=0.02), (
        f"25 groups of four like clips should scatter by 0.1, not {fours:.3f}"
    )
    uneven = np.asarray(answer(np.repeat([1.0, 0.0], [9, 1]), np.repeat([0, 1], [9, 1]), 200, 0))
    possible = "groups of 9 right clips and 1 wrong clip: a draw is worth 1, 9 / 10 or 0, for clips count, not groups"
    assert all(min(abs(a - v) for v in (1, 0.9, 0)) < 1e-6 for a in uneven), possible
    assert len({*uneven.round(6)}) == 3, "each of 1, 9 / 10 and 0 should occur in 200 draws of two groups"
    wrong = np.asarray(answer(1 - right, alone, 500, 0))
    assert np.allclose(accuracies + wrong, 1), "the same seed should draw the same groups for any `right`"
    assert not np.allclose(accuracies, answer(right, alone, 500, 1)), "another seed should draw other groups"


cluster_bootstrap = course.exercise(cluster_bootstrap, check_cluster_bootstrap, instead=group_draws)

# %% [markdown]
# <details><summary>Hint 1</summary>You do not need the clips of each draw, only two sums per group: how many of its clips are
# right, and how many there are.</details>
# <details><summary>Hint 2</summary><code>_, of_clip = np.unique(groups, return_inverse=True)</code> numbers the groups;
# <code>np.bincount(of_clip, right)</code> sums <code>right</code> within each.</details>
# <details><summary>Hint 3</summary><code>np.random.default_rng(seed).integers(g, size=(draws, g))</code> draws the numbers of
# <code>g</code> groups for all repetitions at once.</details>
# <details><summary>Solution</summary>
#
# ```python
# def cluster_bootstrap(right, groups, draws=2000, seed=0):
#     _, of_clip = np.unique(groups, return_inverse=True)
#     hits, clips = np.bincount(of_clip, right), np.bincount(of_clip)
#     drawn = np.random.default_rng(seed).integers(len(clips), size=(draws, len(clips)))
#     return hits[drawn].sum(axis=1) / clips[drawn].sum(axis=1)
# ```
# </details>
#
# Now the seeds. The same `seed` draws the same groups, so row i below holds draw i: the same groups for each training. In
# each draw, pick trainings with replacement, and average.


# %%
def right_clips(model: str) -> pd.DataFrame:
    """One row per test clip, one column per seed: 1 where the model is right."""
    rows = predictions[predictions["model"] == model]
    rows = rows.assign(right=(rows["label"] == rows["predicted"]).astype(float))
    return rows.pivot(index="clip_id", columns="seed", values="right")


right = right_clips("fine-tuned")  # [clips, seeds]
groups = store.clips.set_index("clip_id").loc[right.index, "group"].to_numpy(object)  # [clips]
per_seed = np.stack([cluster_bootstrap(right[s].values, groups) for s in right], axis=1)  # [draws, seeds]
picked = np.random.default_rng(1).integers(per_seed.shape[1], size=per_seed.shape)
draws = np.take_along_axis(per_seed, picked, axis=1).mean(axis=1)  # [draws]
ours = np.quantile(draws, [0.025, 0.975])
theirs = next(r for r in results["results"] if r["model"] == "fine-tuned")["ci95"]
# two bootstraps agree up to their own noise, about a tune
assert np.allclose(ours, theirs, atol=0.01 + 1 / len(set(groups)))
print(f"here {ours.round(3)}, colalib {np.round(theirs, 3)}")

# %% [markdown]
# With S seeds a bootstrap sees only (S − 1) / S of the variance between seeds: two thirds for three. So these intervals
# are a little too narrow.
#
# What if we had been careless? Clips counted as independent give the textbook interval, 1.96 σ / √n.

# %%
widgets.guess(
    "6-width",
    "About three test clips belong to one tune. How does the interval over tunes compare with "
    "the one that takes clips for independent?",
    {
        "narrower": "Clips that are right or wrong together carry less information, not more.",
        "a little wider": "Takes of a tune are right together more often than others. But ours differ "
        "in instrument and key, so it is far from 1.7 times.",
        "1.7 times as wide": "That is the most it could be: the square root of 3, if all takes of a tune were always "
        "right or wrong together.",
    },
    "a little wider",
)

# %%
each = right.mean(axis=1).values  # [clips], the share of seeds that are right
p, half = each.mean(), 1.96 * each.std() / np.sqrt(len(each))
ways = {
    "clips, as if independent": (p - half, p + half),
    "tunes": np.quantile(cluster_bootstrap(each, groups), [0.025, 0.975]),
    "tunes and seeds": ours,
}
fig, ax = plt.subplots(figsize=(8, 2.6))
ax.hist(100 * draws, bins=40, color=plots.MODELS["fine-tuned"], alpha=0.25, density=True)
top = ax.get_ylim()[1]
for i, ((name, (low, high)), grey) in enumerate(zip(ways.items(), ("0.65", "0.4", "0"))):
    label = f"{name}: ± {50 * (high - low):.1f} points"
    ax.plot([100 * low, 100 * high], [top * (0.75 - 0.2 * i)] * 2, color=grey, lw=3, label=label)
ax.set(xlabel="accuracy of the fine-tuned encoder (%)", yticks=[])
ax.xaxis.set_major_locator(plt.MultipleLocator(5))
ax.set_title("bootstrap draws and three 95% intervals")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## 2 Differences, in pairs
# Two intervals that overlap do *not* mean that there is no difference. Both models met the same easy and the same
# hard tunes. That common luck cancels in the difference, if the same groups are drawn for both.
#
# ### Your turn: paired_interval · medium · 10 minutes · core
# From two models' answers to the same clips, compute the 95% interval of the difference of their accuracies, a − b.
# Draw the same groups for both. `cluster_bootstrap` is there to be used.


# %%
def paired_interval(
    right_a: np.ndarray, right_b: np.ndarray, groups: np.ndarray, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the ends of the 95% interval of accuracy a − accuracy b, as fractions.

    right_a, right_b [clips]: as `cluster_bootstrap` takes them; groups [clips].
    """
    raise NotImplementedError


# %%
def check_paired_interval(answer):
    rng, groups = np.random.default_rng(0), np.arange(400)
    a = (rng.random(400) < 0.6).astype(float)
    b = np.where(np.arange(400) < 60, 0, a)  # wrong on 60 clips, else as a
    assert np.allclose(answer(a, a, groups), 0), "a model does not differ from itself: pair the draws"
    low, high = answer(a, b, groups)
    assert low < (a - b).mean() < high, "the interval should hold the difference a − b that was found"
    share = np.abs(a - b).mean()
    known = 2 * 1.96 * np.sqrt((share - (a - b).mean() ** 2) / 400)
    message = f"groups of one clip: the width should be about {known:.3f}, not {high - low:.3f}"
    assert np.isclose(high - low, known, rtol=0.1), f"{message} (95%, the same groups for both)"
    assert np.allclose(answer(b, a, groups), (-high, -low), atol=0.005), "b − a should mirror a − b"
    wide = answer(a, b, groups // 20)
    assert wide[1] - wide[0] > 1.5 * (high - low), "clips of one group should be drawn together"


# %%
def paired_draws(right_a, right_b, groups, draws=2000, seed=0):
    """What is used until yours passes."""
    a, b = (group_draws(right, groups, draws, seed) for right in (right_a, right_b))
    return tuple(np.quantile(a - b, [0.025, 0.975]))


paired_interval = course.exercise(paired_interval, check_paired_interval, instead=paired_draws)

# %% [markdown]
# <details><summary>Hint 1</summary>With the same <code>seed</code>, <code>cluster_bootstrap</code> draws the same groups for both
# models: subtract draw by draw.</details>
# <details><summary>Hint 2</summary>The middle 95% of the differences: <code>np.quantile(…, [0.025, 0.975])</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def paired_interval(right_a, right_b, groups, draws=2000, seed=0):
#     a = cluster_bootstrap(right_a, groups, draws, seed)
#     b = cluster_bootstrap(right_b, groups, draws, seed)
#     return tuple(np.quantile(a - b, [0.025, 0.975]))
# ```
# </details>
#
# What does pairing gain? Compare it with unpaired draws, where each model gets groups of its own (another `seed` of
# `cluster_bootstrap`).

# %%
fine, scratch = (right_clips(m).mean(axis=1).values for m in ("fine-tuned", "scratch"))  # [clips]
paired = paired_interval(fine, scratch, groups)
unpaired = cluster_bootstrap(fine, groups, seed=0) - cluster_bootstrap(scratch, groups, seed=1)
print(f"fine-tuned − scratch: {100 * (fine - scratch).mean():+.1f} points, 95% interval over tunes")
for name, (low, high) in {"paired": paired, "unpaired": np.quantile(unpaired, [0.025, 0.975])}.items():
    print(f"  {name}: {100 * low:+.1f} … {100 * high:+.1f}")

# %% [markdown]
# The intervals in the figure come from drawing tunes and seeds, with the same tunes for both models. Each line is one question. (The table may list a pair the other way round;
# then the sign is the opposite.)

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
# the mean looks. "None shown" does not mean "none". And be careful with an interval that just leaves out zero. Six models
# make 15 pairs. Of the pairs without a real difference, about one in twenty leaves out zero by luck.
#
# ### Which clips decide?
# In a pair of classifiers only the clips that *one* of them gets right tell them apart. McNemar's test asks: if a coin were
# tossed for each of these clips, how often would the two counts be at least as unequal as here? This share is called **p**.
# If it is small, luck alone hardly does this. A clip counts as right if most seeds get it right.

# %%
mostly = predictions.assign(right=predictions["label"] == predictions["predicted"])
mostly = mostly.groupby(["clip_id", "model"])["right"].mean().unstack() > 0.5  # [clips, models]
only_fine = mostly["fine-tuned"] & ~mostly["scratch"]
only_scratch = mostly["scratch"] & ~mostly["fine-tuned"]
names = {"rownames": ["fine-tuned right"], "colnames": ["scratch right"]}
display(pd.crosstab(mostly["fine-tuned"], mostly["scratch"], **names))

few, n = min(only_fine.sum(), only_scratch.sum()), only_fine.sum() + only_scratch.sum()
p = min(1.0, 2 * binom.cdf(few, n, 0.5))  # two-sided: as lopsided as this, either way round
test = intervals.mcnemar(predictions, "fine-tuned", "scratch")
assert np.isclose(p, test["p"])
print(f"only fine-tuned right: {only_fine.sum()}, only scratch right: {only_scratch.sum()}, p = {p:.3g}")

# %% [markdown]
# McNemar's test treats clips as independent and knows nothing of seeds. So its p is too small where takes of a tune are
# right or wrong together. Use it to see which clips decide, and the interval above to judge. Listen to one clip of
# each kind:

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
# Rows sum to 100%. Read whole rows, not single cells: a class has few test tunes, so a cell can move by many points.
# Do the confusions make musical sense? Jigs and slip-jigs both move in groups of three quick notes: two of them in a bar of a
# jig, three in a slip-jig. Hornpipes and reels are both in twos. Are these pairs confused more than others?
#
# ## 3 What one published pair of numbers can show
# The result that this course starts from is a COLA in PyTorch, [CVxTz/COLA_pytorch](https://github.com/CVxTz/COLA_pytorch).
# Its encoder was pre-trained on FMA-large and fine-tuned on the eight genres of FMA-small (FMA:
# [arXiv 1612.01840](https://arxiv.org/abs/1612.01840)). Its
# [test_accuracy.json](https://github.com/CVxTz/COLA_pytorch/blob/363e947b64c24f28cb711ad191cfa208f9b8315b/supervised_examples/test_accuracy.json)
# says 0.54375, and 0.51125 from scratch: **54.3% against 51.1%**, cut to one decimal. There is one training of each. The test
# side is a fifth of the 8,000 clips, drawn at random within each genre and not by artist. The predictions were not kept.

# %%
widgets.guess(
    "6-published",
    "54.3% against 51.1% on 1,600 test clips: can the two be told apart from these numbers alone?",
    {
        "yes, clearly": "Each accuracy is known to within about 2.4 points, so their difference is known to "
        "within about 3.5.",
        "no, zero lies just inside the interval": "Without the predictions only the unpaired interval can be "
        "computed. Half of it is a little more than the difference.",
        "no, nowhere near": "The difference of 3.25 points is nearly as large as half the width of its interval.",
    },
    "no, zero lies just inside the interval",
)

# %% [markdown]
# All that can be computed from this is an unpaired interval:

# %%
a, b, n = 0.54375, 0.51125, 1600  # 0.2 · 8,000
half = 1.96 * np.sqrt(a * (1 - a) / n + b * (1 - b) / n)
print(f"difference {100 * (a - b):.2f} ± {100 * half:.2f} points", end=": ")
print(f"from {100 * (a - b - half):+.2f} to {100 * (a - b + half):+.2f}")

# %% [markdown]
# Zero is inside. What would the predictions have added? In a paired comparison only those clips count that
# exactly one of the two models gets right. Let their share be *d*. The difference stays the same, and its interval is narrower for a smaller *d*. We do not
# know *d*, so we try all: draw many experiments at each *d*, and count those whose paired interval leaves out zero.
# The share of experiments that show a difference which is there is called their **power**.

# %%
rng, shares = np.random.default_rng(0), np.linspace(0.05, 0.5, 19)
power, halves = [], []
for d in shares:
    only_a, only_b = (d + (a - b)) / 2, (d - (a - b)) / 2
    counts = rng.multinomial(n, [only_a, only_b, 1 - d], size=20_000)  # [20000, 3]
    mean = (counts[:, 0] - counts[:, 1]) / n
    error = 1.96 * np.sqrt(((counts[:, 0] + counts[:, 1]) / n - mean**2) / n)
    power.append((np.abs(mean) > error).mean())
    halves.append(1.96 * np.sqrt((d - (a - b) ** 2) / n))
independent = a * (1 - b) + b * (1 - a)

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
axes[0].plot(100 * shares, 100 * np.array(halves))
axes[0].axhline(100 * (a - b), color="black", ls="--", lw=1)
axes[0].annotate("the difference, 3.25", (6, 3.3))
axes[0].set(ylabel="half width of the interval (points)", title="paired interval")
axes[1].plot(100 * shares, 100 * np.array(power))
axes[1].set(ylabel="experiments that show it (%)", ylim=(0, 103), title="power, if 3.25 were the truth")
axes[0].annotate("unrelated models ", (100 * independent, 1.1), rotation=90, ha="right", va="bottom")
for ax in axes:
    ax.axvline(100 * independent, color=plots.MODELS["chance"], lw=1)
    ax.set(xlabel="clips that one model alone gets right (%)")
limit = (a - b) ** 2 * (n / 1.96**2 + 1)
print(f"two unrelated models of these accuracies: {100 * independent:.0f}% (grey line)")
print(f"zero is left out below {100 * limit:.0f}%")

# %% [markdown]
# So with the predictions kept, this experiment would have shown a difference *between these two networks* if *d* was
# below that limit. Nobody can know it now. And a repetition, with other clips, would show a true difference of 3.25 as
# often as the right figure says: at the limit in about half of the cases.
#
# Three doubts would stay, and no arithmetic removes them afterwards:
# - **seeds**: two other trainings might differ otherwise. How much do ours differ among themselves? (next cell)
# - **groups**: tracks of one artist on both sides of a random split reward recognising the artist;
# - **what was seen**: FMA-small is a part of FMA-large, so the test clips were in pre-training, without labels. Our table
#   counts such clips: `pretrain_overlap`.

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
# And how many answers change from run to run?

# %%
fine, scratch = (right_clips(m).values for m in ("fine-tuned", "scratch"))  # [clips, seeds]
d = (fine[:, :, None] != scratch[:, None]).mean()  # over all pairs of one run of each
pairs = np.triu_indices(fine.shape[1], k=1)
churn = {
    m: (x[:, pairs[0]] != x[:, pairs[1]]).mean() for m, x in (("fine-tuned", fine), ("scratch", scratch))
}
print(f"clips that only one of the two gets right: {100 * d:.0f}%")
print(
    "clips that only one of two runs of the same model gets right:",
    {m: f"{100 * c:.0f}%" for m, c in churn.items()},
)

# %% [markdown]
# The last line is called **churn**: answers that change from run to run of one recipe. A part of *d* is churn. It is not
# a difference of the two models, and it averages out over several runs. What is left, *d* minus the mean churn of the two
# models, does not average out. Notebook 8 plans an experiment with it.
#
# How large must a difference be for *this* experiment to show it? Set the sliders to what was printed above (two models,
# two numbers: for churn take the mean, for scatter the root of the mean square), then change one at a time. What helps
# most: more clips, or more runs? The grey curve is the setting before.

# %%
widgets.power_lab(results["n_clips"])

# %% [markdown]
# ## 4 Leakage
# **Leakage** is information about the test side that reaches training. Cut every clip in two, as one does to get "more
# data", and split at random. Then the two halves of one clip land on different sides.
#
# ### Your turn: find_leaks · easy · 5 minutes · worth it
# A split should keep each group on one side. Find the groups for which it does not.


# %%
def find_leaks(groups: np.ndarray, sides: np.ndarray) -> set:
    """groups [clips], sides [clips] ("train", "test", …) → the groups that occur on more than one side."""
    raise NotImplementedError


# %%
def check_find_leaks(answer):
    groups = np.array(["a", "a", "b", "b", "c", "c", "d"], dtype=object)
    sides = np.array(["train", "test", "test", "test", "valid", "train", "train"])
    found = set(answer(groups, sides))
    assert "a" in found, "group a is on train and on test"
    assert "c" in found, "a group on train and valid is a leak too: valid chooses"
    assert not found & {"b", "d"}, "a group whose clips are all on one side is no leak"
    assert not set(answer(groups, np.repeat("test", 7))), "with a single side there is no leak"


def count_sides(groups, sides):
    """What is used until yours passes."""
    n = pd.Series(sides).groupby(np.asarray(groups)).nunique()
    return set(n.index[n > 1])


find_leaks = course.exercise(find_leaks, check_find_leaks, instead=count_sides)

# %% [markdown]
# <details><summary>Hint 1</summary>Count the different sides of each group.</details>
# <details><summary>Hint 2</summary><code>pd.Series(sides).groupby(groups).nunique()</code></details>
# <details><summary>Solution</summary>
#
# ```python
# def find_leaks(groups, sides):
#     n = pd.Series(sides).groupby(groups).nunique()
#     return set(n.index[n > 1])
# ```
# </details>
#
# Now the halves: the same mel statistics, the same nearest neighbours. Only what the split keeps together differs.

# %%
widgets.guess(
    "6-leak",
    "1,600 clips cut in halves and split at random. The five nearest neighbours, by mel statistics, scored 32% with "
    "whole tunes kept together. And now?",
    {
        "32% as well": "It would be so if the other half of a clip were no nearer than other clips.",
        "36%": "A weak leak would look like this. But the other half of a clip is much nearer than any other clip.",
        "58%": "Of the five neighbours that vote, the nearest counts most: often the other half of the clip, of the same label.",
    },
    "58%",
)

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
    sides = np.where(np.isin(np.arange(len(clips)), s.test), "test", "train")  # of the last fold
    leaking = {c: len(find_leaks(clips[c].to_numpy(object), sides)) for c in ("group", "clip_id")}
    print(
        f"kept together: {together}; {leaking['group']} tunes and {leaking['clip_id']} clips are on both sides"
    )
leak = intervals.summary(pd.concat(parts))
fig, ax = plt.subplots(figsize=(8, 2.2))
plots.results(leak, ax, title=f"nearest neighbours, 4 folds, {leak['n_clips']:,} halves of clips")
plots.table(intervals.differences(leak).drop(columns="reading"))

# %% [markdown]
# If the two halves of a clip are on different sides, the score rises, but the model is no better. To find the other half of
# a clip, it needs to know nothing about kinds of music. Do takes of one *tune* leak as well? The table says
# whether it is shown here. Ours differ in instrument and key. In other corpora takes are more alike, and you cannot know it
# before you split. So keep together all clips that could belong together.
#
# ## 5 What matters in pre-training
# The paper compares similarities, batch sizes, and frozen with fine-tuned encoders, by the mean accuracy of nine tasks
# (COLA, section 4.2): cosine 67.2, bilinear 74.3; batches of 256, 512, 1024 and 2048: 68.6, 70.3, 74.3, 72.2;
# fine-tuned 85.1. A comparison in which one setting at a time is changed is an **ablation**.
#
# Here it is in miniature: 18 pre-trainings on our clips, each setting for 15 passes over them and from three seeds. Two
# settings are added: the triplet loss, and training without the augmentations of notebook 2. This takes half an hour, so
# the course brings the result of `python -m colalib ablate data/scores.store --epochs 15 --out data/ablation.json`.

# %%
ablation = json.loads((course.home() / "data" / "ablation.json").read_text(encoding="utf-8"))
fig, axes = plt.subplots(1, 2, figsize=(12, 3.6))
plots.results(ablation, axes[0], title=f"frozen or trained, {ablation['n_clips']} test clips")
settings = [m for m in ABLATION if m != "bilinear"] + ["fine-tuned"]
_ = plots.differences(ablation, [(m, "bilinear") for m in settings], axes[1], title="paired differences")

shown = intervals.differences(ablation).set_index(["a", "b"])["reading"] != "no difference shown"
assert not any(shown.get((m, "bilinear"), shown.get(("bilinear", m))) for m in settings)
gains = ["bilinear", "cosine", "triplet", "bilinear, 16 pairs"]
assert [m for m in settings + gains[:1] if shown[m, "random"]] == [*gains[1:], gains[0]]
assert shown["fine-tuned", "scratch"] and shown["bilinear, 256 pairs", "bilinear, 16 pairs"]

# %% [markdown]
# How much of the paper's ablation comes out again? At this size neither the five changes nor fine-tuning can be told from the
# defaults, which are `bilinear` here (the cell asserts it). What is shown: bilinear, cosine, triplet and 16 pairs gain over
# random weights, fine-tuning gains over scratch, and 16 pairs over 256, by 6.9 points [1.3, 12.5].
#
# - **Cosine or bilinear**: the paper's seven points are not shown here. Its runs differ from ours in much: AudioSet, a
#   larger encoder, nine tasks, far more steps. We cannot say which of these the gain needs. The two
#   objectives differ in g as well, so a difference would not be W's alone. Notebook 3 tries W and τ alone.
# - **Batch size**: this is no test of it. At 15 passes, batches of 256 make 60 steps, of 64 make 285, and of 16 about
#   1,140, all at the same learning rate. With a learning rate for each, notebook 3 found no gain of 16 over 64 either,
#   and 256 a little behind, when all had heard equally many pairs.
# - **Augmentations**: without them the score is 4 points lower, but the interval just includes zero. More seeds and
#   more test clips might tell.
#
# ### Scratch, given more
# The networks from scratch have trained for as long as the fine-tuned ones, and hardly long enough. How far do they get?
# The same classifier was trained for 100, 300 and 900 steps of 64 segments, from scratch and from the encoder `default`,
# with three seeds each. This takes half an hour, so the course brings the results of these commands:
#
# ```sh
# for n in 100 300 900; do
#     python -m colalib compare data/scores.store --encoder default --seeds 3 --steps $n --out data/steps-$n.json
# done
# ```
#
# `default` had a training of its own before, without labels. The grey line shows how many segments it heard then.

# %%
lengths = {n: json.loads((course.home() / "data" / f"steps-{n}.json").read_text()) for n in (100, 300, 900)}
rows = {
    model: [row for one in lengths.values() for row in one["results"] if row["model"] == model]
    for model in ("scratch", "fine-tuned", "probe")
}
heard = 2 * 64 * 16_000  # segments that `default` has heard
fig, ax = plt.subplots(figsize=(8, 3.4))
for model in ("scratch", "fine-tuned"):
    segments, style = 64 * np.array([*lengths]), {"color": plots.MODELS[model]}
    ax.plot(segments, [100 * r["mean"] for r in rows[model]], "o-", label=model, **style)
    ax.fill_between(segments, *(100 * np.transpose([r["ci95"] for r in rows[model]])), alpha=0.12, **style)
ax.axhline(100 * rows["probe"][0]["mean"], color=plots.MODELS["probe"], ls="--", label="frozen probe")
ax.axvline(heard, color="0.6", lw=1)
ax.annotate("pre-training of default ", (heard, 3), rotation=90, ha="right", color="0.5", fontsize=8)
ax.set(xscale="log", xlabel="segments trained on", ylabel="accuracy (%)", ylim=(0, 100))
_ = ax.legend(fontsize=8, loc="lower center", ncols=2)

# %%
pairs = pd.concat([intervals.differences(one).assign(steps=n) for n, one in lengths.items()])
pairs = pairs.query("a == 'fine-tuned' and b == 'scratch' or a == 'scratch' and b == 'probe'")
display(plots.table(pairs[["steps", "a", "b", "a - b (points)", "95% interval", "reading"]]))
print("scratch after 900 steps, by seed:", [f"{100 * a:.1f}" for a in rows["scratch"][-1]["per_seed"]])
pairs = pairs[pairs["b"] == "scratch"].set_index("steps")
gain = pairs["a - b (points)"].astype(float)
assert gain[100] > gain[300] > gain[900]
assert pairs["reading"].tolist() == ["fine-tuned is better", "fine-tuned is better", "no difference shown"]

# %% [markdown]
# So a part of the gain is a head start: the longer both train, the smaller it becomes. After 900 steps no difference is
# shown any more. The seeds of scratch lie far apart there, so the interval is wide; and scratch may not be at its end. A
# sentence such as "pre-training gains 33 points" means nothing without the length of the training. And the time of the
# pre-training is far larger than that of the classifier. After 900 steps scratch is still behind the frozen probe of
# `default`, by 11 points [1, 22]. With one task only, and all these labels, a still longer training from scratch may catch
# up; we did not measure it.
#
# Pre-training pays where one encoder serves many tasks. That it gains most where labels are few is the usual promise. In our
# short trainings the lead was larger with all labels (notebook 4, and section 6 below): scratch had little time to use
# them. That the two leads differ is not shown.
#
# ## 6 The same on real music
# Everything above was judged on rendered music. Section 3 was about one pair of numbers: does pre-training help to tell the
# genre of real music? Here that comparison is done with folds of whole artists, several seeds, and intervals.
#
# **Emotify** (Aljanaki et al. 2015) has 400 songs of 30 s by 134 artists, 100 songs in each of four genres. For each of
# five folds an encoder was pre-trained for 2,000 steps without labels: on `scores`, on the recordings that `default` has
# heard, and on the songs of the other four folds. Then the same classifier was trained from scratch and from that
# encoder, for 150 steps, with three seeds. This takes an hour, so the course brings the result of these commands:
#
# ```sh
# for fold in fold0 fold1 fold2 fold3 fold4; do
#     python -m colalib pretrain pool.store scores.store emotify.store --leave-out $fold --steps 2000 --out without-$fold
# done
# python -m colalib compare emotify.store --encoder 'without-{fold}' --labels-per-class 10 all --steps 150 --out emotify.json
# ```
#
# `data/emotify.csv.gz` holds every answer. The songs themselves may not be passed on.

# %%
songs = read_predictions(course.home() / "data" / "emotify.csv.gz")
of_default = read_predictions(course.home() / "data" / "default" / "emotify.csv.gz").query("model == 'probe'")
songs = pd.concat([songs, of_default.assign(model="default")])
emotify = {
    name: intervals.summary(songs.query("labels_per_class == @k").assign(labels_per_class=""))
    for name, k in {"10 per class": "10", "all": ""}.items()
}
tuned = songs.query("model == 'fine-tuned' and labels_per_class == ''")
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", sharex=True)
for ax, (name, result) in zip(axes, emotify.items()):
    plots.results(result, ax, title=f"labels: {name}")
plt.show()
fig, ax = plt.subplots(figsize=(4.6, 3.8))
_ = plots.confusion(tuned, ax, "fine-tuned, all labels")

# %%
rows = pd.concat([intervals.differences(r).assign(labels=name) for name, r in emotify.items()])
pairs = [("fine-tuned", "scratch"), ("fine-tuned", "probe"), ("probe", "random"), ("probe", "mel-stats")]
rows = rows[[pair in pairs for pair in zip(rows["a"], rows["b"])]]
found = rows.set_index(["labels", "a", "b"])["reading"]
for name in emotify:  # what the text below says
    assert found[name, "fine-tuned", "scratch"] == "fine-tuned is better"
    assert found[name, "fine-tuned", "probe"] == "no difference shown"
plots.table(rows[["labels", "a", "b", "a - b (points)", "95% interval", "reading"]])

# %% [markdown]
# On real music too, the classifier that starts from the pre-trained encoder is ahead of the one from scratch, with ten
# labels per class and with all. Between fine-tuning and the frozen probe no difference is shown. And look at the
# confusions: which two genres are hard to tell apart?
#
# But both had 150 steps, which are a minute: enough for an encoder that has heard music before, and not for one that has
# not. So the two trainings again with all labels and 900 steps, one seed each. The fine-tuned one starts from `default`,
# which has heard none of these songs:
#
# ```sh
# python -m colalib compare emotify.store --encoder default --seeds 1 --steps 900 --out data/emotify-900.json
# ```

# %%
longer = json.loads((course.home() / "data" / "emotify-900.json").read_text(encoding="utf-8"))
fig, ax = plt.subplots(figsize=(8, 2.6))
plots.results(longer, ax, title="genre of real music, all labels, 900 steps")
plt.show()
rows = intervals.differences(longer)
rows = rows[[pair in pairs for pair in zip(rows["a"], rows["b"])]]
readings = rows.set_index(["a", "b"])["reading"]
assert readings["fine-tuned", "scratch"] == readings["fine-tuned", "probe"] == "no difference shown"
for steps, result in ((150, emotify["all"]), (900, longer)):
    (mean,) = (row["mean"] for row in result["results"] if row["model"] == "scratch")
    print(f"scratch after {steps} steps: {100 * mean:.1f}")
plots.table(rows)

# %% [markdown]
# With 900 steps scratch is far better than with 150, and no difference to fine-tuning is shown any more. So on these songs
# too, and with all labels, the gain of pre-training is a head start. Published pairs of numbers, such as 54.3 against 51.1, say little
# if they do not say how long scratch was trained. And the frozen probe trains no network on these songs at all, but between
# it and fine-tuning no difference is shown.

# %% [markdown]
# ## Recap
# You can now
# - write a bootstrap over groups, and from it the interval of an accuracy: draw what a repetition would draw anew;
# - write a paired interval for the difference of two models, and use McNemar's test beside it;
# - say what a published pair of numbers can and cannot show: without the predictions, only the wider interval; with one
#   training of each, nothing about seeds; with a split by clip, artists on both sides; with test clips in pre-training, an
#   encoder that has met them;
# - find leakage before it flatters you: keep together what could belong together.
#
# **Next**, [notebook 7](07_embedding_map.ipynb): what the read-outs look like on a map, and how neighbours sound.

# %% [markdown]
# ## Exercises
# ### 6.1 An interval without a bootstrap · easy · 10 minutes
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
    assert answer(0, 20)[0] >= -1e-9, "it should never leave 0 … 1"
    assert answer(20, 20)[1] <= 1 + 1e-9, "it should never leave 0 … 1"
    for k, n in ((7, 20), (0, 12), (160, 320)):
        known = binomtest(k, n).proportion_ci(method="wilson")
        expected = (known.low, known.high)
        assert np.allclose(answer(k, n), expected, atol=1e-3), f"for {k} of {n} scipy finds {known}"


_ = course.exercise(wilson, check_wilson)

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
# ### 6.2 How many clips would it take? · medium · 15 minutes
# Two models differ by δ, and on a share *d* of the clips exactly one of them is right. The paired interval is δ ±
# 1.96 √((d − δ²) / n). From how many test clips on does it leave out zero? (To plan an experiment, take twice as many: with
# just so many, half of all experiments would miss the difference.)


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


_ = course.exercise(clips_needed, check_clips)

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
# ### 6.3 An interval for balanced accuracy · medium · 10 minutes
# Balanced accuracy (exercise 5.1) counts all classes alike. Give it an interval by a bootstrap over groups. One sum per
# group is not enough: a draw needs the counts of each class. It is simplest to collect the clips of each draw.
# (`balanced_accuracy_score` is imported.)


# %%
def balanced_interval(table: pd.DataFrame, draws: int = 500, seed: int = 0) -> tuple[float, float]:
    """Columns group, label, predicted → 95% interval of balanced accuracy, over groups drawn with replacement."""
    raise NotImplementedError


# %%
def check_balanced(answer):
    table = by_seed[by_seed["seed"] == 0]
    low, high = answer(table)
    mean = balanced_accuracy_score(table["label"].values, table["predicted"].values)
    assert low <= mean <= high, f"the interval {low:.3f} … {high:.3f} should hold the accuracy {mean:.3f}"
    whole = answer(table.assign(group="one"))
    assert np.isclose(*whole), "with a single group every draw is the same, so the interval has no width"
    lazy = pd.DataFrame({"group": np.arange(200), "label": ["a"] * 180 + ["b"] * 20, "predicted": "a"})
    message = "always saying the larger class is worth one half in every draw: balance within each draw"
    assert np.allclose(answer(lazy, 100), 0.5), message
    even = pd.DataFrame(
        {"group": np.arange(200), "label": ["a", "b"] * 100, "predicted": ["a"] * 100 + ["b"] * 100}
    )
    low, high = answer(even)
    assert high - low > 0.12, f"{high - low:.2f} is too narrow: a group that is drawn twice counts twice"


by_seed = predictions[predictions["model"] == "scratch"]
_ = course.exercise(balanced_interval, check_balanced)

# %% [markdown]
# <details><summary>Hint</summary>Collect the row numbers of each group once:
# <code>table.reset_index(drop=True).groupby("group").indices</code>; a draw concatenates those of the drawn groups.</details>
# <details><summary>Solution</summary>
#
# ```python
# def balanced_interval(table, draws=500, seed=0):
#     rng, label, predicted = np.random.default_rng(seed), table["label"].values, table["predicted"].values
#     rows = list(table.reset_index(drop=True).groupby("group").indices.values())
#     found = []
#     for _ in range(draws):
#         drawn = np.concatenate([rows[g] for g in rng.integers(len(rows), size=len(rows))])
#         found.append(balanced_accuracy_score(label[drawn], predicted[drawn]))
#     return tuple(np.quantile(found, [0.025, 0.975]))
# ```
# </details>
