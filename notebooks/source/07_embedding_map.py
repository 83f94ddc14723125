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
# # 7 A map of sound: look at it, and listen to it
#
# You draw the whole corpus as a map in which similar clips lie together. You measure what such a map keeps and what it
# makes up, listen to clips and their nearest neighbours, and put recordings of your own on it.
#
# **Run time** about 1 minute on 2 cores in the quick profile, after notebook 5; without it, 2.
#
# You will be able to
# - draw a corpus in two dimensions with UMAP, coloured by any label, and read the map island by island;
# - say what UMAP keeps of a space of many dimensions, measure it, and not over-read a picture;
# - find a clip's nearest neighbours, and say why its own group is left out;
# - compare two spaces by a number with an interval instead of by two pictures;
# - place sounds of your own on an existing map, and tell those that do not belong there;
# - label a folder by ear, and let a probe of your labels propose which clips to label next.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import umap
from IPython.display import display
from sklearn.metrics import euclidean_distances
from sklearn.preprocessing import StandardScaler

import colalib
from colalib import course, evaluation, widgets
from colalib.course.experiments import embed
from colalib.data import audio
from colalib.data.clips import Clips
from colalib.evaluation import intervals, plots
from colalib.training.runs import Run

plots.style()
profile = course.profile()
corpus, store, encoder = course.corpus(), course.store(), course.encoder()
keep = course.supervised_folder(encoder) / "features"  # read-outs of notebook 5 are loaded from here

# %% [markdown]
# ## 1 Read out, standardise, flatten
# One vector per clip: its read-out, as in notebook 5. (It is not the embedding h of pre-training.) The columns have
# different spreads, so each is standardised first. Otherwise a few wide ones would decide what is near. All clips
# together are then points in a **space** of some thousand dimensions.
#
# **UMAP** ([arXiv 1802.03426](https://arxiv.org/abs/1802.03426)) looks for points in the plane whose neighbourhoods
# resemble those in the space. It sees no labels; only the colours do. Its main settings:
# - `n_neighbors`: how many neighbours of each clip count, here 15;
# - `min_dist`: how close points may lie on the map, here 0.1; it decides how dense islands look;
# - `metric`: what is near in the space, here plain (Euclidean) distance;
# - `init`: where the points start.

# %% tags=["needed"]
source = evaluation.feature_source(encoder)
features = source.of_store(store, keep)  # [n, d]
random = evaluation.feature_source("random", source.arch).of_store(store, keep)
scaler = StandardScaler().fit(features)
x, x_random = scaler.transform(features), StandardScaler().fit_transform(random)


def flatten(x: np.ndarray, n_neighbors: int = 15, seed: int = 0, init: str = "spectral") -> umap.UMAP:
    """UMAP to two dimensions; one thread, so that the seed decides everything."""
    if len(x) < 4:
        raise ValueError(f"{len(x)} clips are too few for UMAP: take at least 4")
    k = min(n_neighbors, len(x) - 1)
    return umap.UMAP(
        n_neighbors=k, min_dist=0.1, metric="euclidean", init=init, random_state=seed, n_jobs=1
    ).fit(x)


reducer = flatten(x)
points = reducer.embedding_  # [n, 2]
print(f"{features.shape} → {points.shape}")

# %%
columns = {"label": "kind of music", "family": "family of the leading instrument", "metre": "metre"}
fig, axes = plt.subplots(1, 3, figsize=(11, 4.4))
for ax, (column, title) in zip(axes, columns.items()):
    plots.embedding_map(points, store.clips[column], ax, title, legend="below")

# %% [markdown]
# The same points three times, in three sets of colours. Which question does the space answer best? A region of one
# colour means that clips of this class are alike for the encoder. Mixed colours have two possible reasons. Either the encoder
# cannot tell the classes apart, *or* it sorts by something else first, and there was no room left in two dimensions.
#
# The axes have no unit and no direction. Only which points lie side by side has a meaning.
#
# Now read the map: which island is what? A clustering (HDBSCAN) cuts the map into small dense groups. Points between
# them belong to none. For each of the seven largest, look at its commonest kind, instrument family and metre.

# %%
from sklearn.cluster import HDBSCAN

# "leaf": the smallest groups; otherwise nearly all clips may count as one island
clustering = HDBSCAN(min_cluster_size=max(5, len(points) // 60), cluster_selection_method="leaf", copy=True)
island = clustering.fit_predict(points)  # [n], −1: none
largest = pd.Series(island[island >= 0]).value_counts().index[:7]
number_of = {i: str(number) for number, i in enumerate(largest, start=1)}
numbers = np.array([number_of.get(i, "") for i in island], dtype=object)
fig, ax = plt.subplots(figsize=(8, 4.4))
plots.embedding_map(points, numbers, ax, "the largest islands; grey: in none of them")
for i, number in number_of.items():
    box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "alpha": 0.8, "lw": 0}
    ax.annotate(number, np.median(points[island == i], axis=0), ha="center", va="center", bbox=box)
plt.show()
print(f"{np.sum(numbers != '')} of {len(points)} clips lie in these {len(largest)} islands")


# %%
def shares(values: pd.Series) -> pd.Series:
    """Share of each value, the commonest first; clips without a value do not count."""
    return values[values != ""].value_counts(normalize=True)


rows = []
for number in number_of.values():
    here = store.clips[numbers == number]
    row = {"island": number, "clips": len(here)}
    for column, title in columns.items():
        for value, share in shares(here[column]).head(1).items():
            row[title] = f"{value} {share:.0%} (corpus: {shares(store.clips[column])[value]:.0%})"
    rows.append(row)
plots.table(pd.DataFrame(rows).fillna(""))

# %% [markdown]
# What holds an island together: the kind of music, or the instruments? Compare each share with that of the whole corpus.
# A share far above it holds the island together. Shares near it say that the island is made of something else. (The
# clustering describes the *picture*. Section 3 shows why this is no result yet.)
#
# ## 2 Is that learned?
# A calibrated random encoder (notebook 5) has a map as well. And so has the encoder that comes with the course,
# `default`: the same architecture, trained longer, on more music and on other recordings.

# %% tags=["needed"]
default = evaluation.feature_source("default").of_store(store, keep)
reducer_default = flatten(StandardScaler().fit_transform(default))
points_random = flatten(x_random).embedding_
kinds = store.clips["label"]
fig, axes = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=[1, 1, 1.35])
plots.embedding_map(points_random, kinds, axes[0], "random, calibrated", legend=None)
plots.embedding_map(points, kinds, axes[1], "pre-trained, minutes", legend=None)
plots.embedding_map(reducer_default.embedding_, kinds, axes[2], "default")
plt.show()

# %% [markdown]
# Look for a difference, and then distrust your eye: it finds clusters in anything, and the figure has no error bars.
# In section 5 the same question gets a number and an interval.
#
# ### Watch it learn
# Here is the training itself. Each step is a snapshot of the encoder, and the points are test clips, which it never
# hears. Press play: do clips of one colour come together, and when? Trust the percentage more than the islands. It says how
# often a clip's nearest neighbour in the space is of its class, among these clips alone: they are few, so it is uncertain by
# several points, and lower than in section 5. (The maps are computed from the last snapshot back to the first. Each
# starts from the one computed before it, so that points move little.)

# %%
tested = np.flatnonzero(store.clips["split"] == "test")[::2]
if Run(encoder).snapshots():
    display(widgets.watch_it_learn(corpus, store, encoder, tested))
else:
    print(f"{encoder.name} has no snapshots: course.encoder() keeps them when it trains a new encoder")

# %% [markdown]
# ## 3 What a map keeps
# Two numbers say how well a map fits the space:
# - **neighbours kept**: of a clip's ten nearest in the space, how many are among its ten nearest on the map;
# - **order of distances**: rank correlation of distances in the space and on the map, over random pairs of clips: 1 if both
#   put all pairs in the same order, 0 if the one order says nothing about the other.


# %%
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors


def nearest(x: np.ndarray, k: int = 10) -> np.ndarray:
    """Numbers of the k nearest rows of every row of x [n, d], without itself: [n, k]."""
    return NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)


def distance_order(x: np.ndarray, flat: np.ndarray, pairs: int = 5000) -> float:
    """Spearman's rank correlation of distances in x and in `flat`, over random pairs of rows."""
    a, b = np.random.default_rng(0).integers(len(x), size=(2, pairs))
    return spearmanr(np.linalg.norm(x[a] - x[b], axis=1), np.linalg.norm(flat[a] - flat[b], axis=1)).statistic


# %% [markdown]
# ### Your turn: kept_neighbours · easy · 10 minutes · core
# Write the first number. `nearest` gives the numbers of the k nearest rows, in the space and on the map. Their order
# within the k does not matter.


# %%
def kept_neighbours(x: np.ndarray, flat: np.ndarray, k: int = 10) -> float:
    """Return the share of the k nearest in x [n, d] that are among the k nearest in `flat` [n, 2]: 0 … 1."""
    raise NotImplementedError


# %%
def overlap(x, flat, k=10):
    """What is used until yours passes."""
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(nearest(x, k), nearest(flat, k))]))


# %%
def check_kept_neighbours(answer):
    line = np.arange(12.0)[:, None] ** 1.1
    assert np.isclose(answer(line, 3 * line + 1, 4), 1), (
        "a map that only shifts and scales keeps all neighbours"
    )
    assert np.isclose(answer(line, -line, 4), 1), (
        "a mirrored map keeps all neighbours: their order does not matter"
    )
    two = np.array([0.0, 1, 10, 11])[:, None]  # the nearest are 1, 0, 3, 2
    swapped = np.array([0.0, 10, 1, 11])[:, None]  # the nearest are 2, 3, 0, 1
    assert np.isclose(answer(two, swapped, 1), 0), (
        "where all pairs are torn apart, no nearest neighbour is kept"
    )
    every = "with k = n − 1 all are neighbours on any map: their order does not matter"
    assert np.isclose(answer(two, swapped, 3), 1), every
    assert np.isclose(answer(two, swapped, 2), 0.75), "each of the k counts, not only whether one is kept"
    half = np.array([0.0, 1, 10, 3])[:, None]  # clips 0 and 1 keep their nearest; 2 does; 3 does not
    assert np.isclose(answer(two, half, 1), 0.75), "it should be a share of all neighbours of all clips"


# %%
kept_neighbours = course.exercise(kept_neighbours, check_kept_neighbours, instead=overlap)

# %% [markdown]
# <details><summary>Hint 1</summary>For one clip: <code>set(a) & set(b)</code>, where a and b are its rows of
# <code>nearest(x, k)</code> and <code>nearest(flat, k)</code>.</details>
# <details><summary>Hint 2</summary>Divide its length by k, and take the mean over clips.</details>
# <details><summary>Solution</summary>
#
# ```python
# def kept_neighbours(x, flat, k=10):
#     return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(nearest(x, k), nearest(flat, k))]))
# ```
# </details>
#
# Now the same space four times: the map from above, one that starts from random places, one with fewer neighbours, and
# one with more.

# %%
widgets.guess(
    "7-kept",
    "Of a clip's ten nearest in the space, how many are among its ten nearest on the map, on average?",
    {
        "nearly all": "Two dimensions have no room for that: in a space of many, a clip can have many neighbours that are "
        "not each other's.",
        "about half": "UMAP is made to keep neighbours, and keeps far more than chance, but far less than all.",
        "hardly any": "So it is when the points are dealt out at random. UMAP is made to keep neighbours.",
    },
    "about half",
)

# %%
settings = {
    "15, random start": {"init": "random", "seed": 1},
    "5 neighbours": {"n_neighbors": 5},
    "50 neighbours": {"n_neighbors": 50},
}
maps = {"15 neighbours": points}
maps |= {name: flatten(x, **setting).embedding_ for name, setting in settings.items()}

# %%
fig, axes = plt.subplots(1, 4, figsize=(12, 3.4))
for ax, (name, flat) in zip(axes, maps.items()):
    plots.embedding_map(flat, store.clips["label"], ax, name, legend=None)
    share, order = kept_neighbours(x, flat), distance_order(x, flat)
    ax.set_xlabel(f"neighbours kept {100 * share:.0f}%\norder of distances {order:.2f}")
share = kept_neighbours(x, np.random.default_rng(0).permutation(points))
print(f"the same points dealt out at random would keep {100 * share:.1f}% of the neighbours")

# %% [markdown]
# So a map keeps part of the neighbourhoods, far more than chance and far less than all. Of large distances it keeps only
# a rough order. What changes from panel to panel comes from the method, not from the sounds: where islands lie, the gaps,
# how dense a region is, which end is up. What stays is worth a second look, *in the space itself*. Never compute a result
# from map coordinates: distances there depend on the settings. (Section 1 used them only to describe the picture. The
# colours are the kinds of music, as above.)
#
# Try it. The laboratory draws 400 clips, so its percentages are higher than those above: compare within it. Change one
# setting, guess whether the map will keep more neighbours, then draw. Islands that come and go with the seed come from the
# method. The second bar, **trustworthiness**, asks the opposite question: how little the map makes up. It is 100% if no
# points are near on the map that are far apart in the space (exercise 7.3). Beside three read-outs the list has h, the output of
# the network alone.

# %%
drawn = np.sort(np.random.default_rng(0).permutation(len(store))[:400])
layers = {"pre-trained": x, "random": x_random, "default": StandardScaler().fit_transform(default)}
layers = {name: space[drawn] for name, space in layers.items()}
h = embed(Run(encoder).load_encoder(), Clips([store], [drawn]))  # [400, 640]
layers["pre-trained, h"] = StandardScaler().fit_transform(h)
widgets.umap_lab(layers, store.clips["label"].values[drawn])

# %% [markdown]
# ## 4 Neighbours, by ear
# In the space itself: a clip's nearest neighbours by cosine similarity, as is usual for retrieval. (UMAP, and the numbers
# above, used plain distance.) A clip's **own group is left out**. That another take of the same tune is near is no news.
# Counting it would reward the encoder for recognising a melody that it was given twice.
#
# ### Your turn: nearest_others · medium · 10 minutes · core
# For every clip, find the k nearest clips of *other* groups, by cosine similarity, the nearest first.


# %%
def nearest_others(x: np.ndarray, groups: np.ndarray, k: int = 5) -> np.ndarray:
    """Vectors x [n, d], groups [n] → numbers of the k nearest clips of other groups, [n, k]."""
    raise NotImplementedError


# %%
def check_nearest_others(answer):
    facing, two = np.array([[1, 0], [0.9, 0.1], [-1, 0.2], [-1, -0.3]]), np.array([0, 0, 1, 1])
    message = "the largest similarity comes first, and the own group is out even if all others are below 0"
    assert np.array_equal(answer(facing, two, 2), [[3, 2], [2, 3], [1, 0], [0, 1]]), message
    rng = np.random.default_rng(0)
    x, own = rng.normal(size=(60, 5)), np.repeat(np.arange(20), 3)
    got = np.asarray(answer(x, own, 4))
    assert got.shape == (60, 4), f"60 clips and k = 4 should give [60, 4], not {got.shape}"
    assert not (got == np.arange(60)[:, None]).any(), "no clip should be its own neighbour"
    assert not (own[got] == own[:, None]).any(), "no neighbour should belong to the clip's own group"
    longer = answer(x * rng.uniform(1, 9, size=(60, 1)), own, 4)
    assert (got == longer).all(), "the length of a vector should not matter: cosine, not dot product"
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = np.take_along_axis(u @ u.T, got, axis=1)
    assert (np.diff(similarity, axis=1) <= 1e-9).all(), "the nearest should come first"
    nearest_four = -np.sort(-np.where(own[:, None] == own, -1.0, u @ u.T), axis=1)[:, :4]
    assert np.allclose(similarity, nearest_four), "there are clips of other groups that are nearer"


nearest_others = course.exercise(nearest_others, check_nearest_others, instead=evaluation.neighbours)

# %% [markdown]
# <details><summary>Hint 1</summary>Divide each row by its length; then <code>u @ u.T</code> holds all cosines.</details>
# <details><summary>Hint 2</summary><code>groups[:, None] == groups</code> is true within a group: put −∞ there. That leaves out
# the clip itself, too.</details>
# <details><summary>Hint 3</summary><code>np.argsort(-similarity, axis=1)</code> sorts each row, the largest first.</details>
# <details><summary>Solution</summary>
#
# ```python
# def nearest_others(x, groups, k=5):
#     u = x / np.linalg.norm(x, axis=1, keepdims=True)
#     similarity = np.where(groups[:, None] == groups, -np.inf, u @ u.T)
#     return np.argsort(-similarity, axis=1)[:, :k]
# ```
# </details>

# %%
groups = store.clips["group"].to_numpy(object)
near, near_random = nearest_others(x, groups), nearest_others(x_random, groups)


def listen(i: int, seconds: float = 5):
    wave = audio.load_audio(corpus.root / store.clips["path"][i])
    display(plots.player(wave[: int(seconds * store.mel.sample_rate)]))
    print("   ", ", ".join(v for v in store.clips.loc[i, [*columns]] if v), f"({store.clips['title'][i]})")


# %% [markdown]
# Three test clips, each with its nearest neighbour by the pre-trained and by the random encoder. Listen before you
# read: what do the two have in common?

# %%
test_clips = np.flatnonzero(store.clips["split"] == "test")
for i in np.random.default_rng(3).choice(test_clips, 3, replace=False):
    print("clip")
    listen(i)
    print("  nearest, pre-trained")
    listen(near[i, 0])
    print("  nearest, random")
    listen(near_random[i, 0])

# %% [markdown]
# And now all of them. Hover over a point to read what it is, and press it to hear it. Drag around an island to hear its
# clips in turn. With the keyboard, use arrows and Enter. Lines lead to the nearest clips *in the space*: see how often
# the map has put them elsewhere. Then give it a recording of your own.

# %% tags=["widget"]
spaces = {
    "pre-trained": widgets.Space(features, reducer, encoder),
    "default": widgets.Space(default, reducer_default, "default"),
}
widgets.embedding_map(corpus, store, spaces, ["label", "family", "metre", "split"])

# %% [markdown]
# ## 5 The map as a number
# How often does a test clip's nearest neighbour share its class? Treat the neighbour's label as a prediction, and
# everything of notebook 6 applies: the same clips for every space, intervals over tunes, paired differences.


# %%
def neighbours_as_predictions(space: np.ndarray, model: str, column: str, groups: np.ndarray) -> pd.DataFrame:
    """A table of predictions: for every test clip, its nearest neighbour's value of `column`."""
    has = np.flatnonzero(store.clips[column] != "")
    clips = store.clips.iloc[has].reset_index(drop=True)
    guess = clips[column].values[evaluation.neighbours(space[has], groups[has], k=1)[:, 0]]
    table = clips[["clip_id", "group"]].assign(model=model, task=column, seed=0)
    table = table.assign(label=clips[column], predicted=guess)
    return table[clips["split"] == "test"]


# %%
mel = evaluation.feature_source("mel-stats").of_store(store)
spaces = {"mel-stats": mel, "random": random, "pre-trained": features, "default": default}
found = {
    c: intervals.summary(pd.concat([neighbours_as_predictions(s, m, c, groups) for m, s in spaces.items()]))
    for c in columns
}
fig, axes = plt.subplots(1, 3, figsize=(11, 2.4), sharey=True)
for ax, (column, r) in zip(axes, found.items()):
    plots.results(r, ax, title=columns[column])
    ax.texts[-1].set_text(" largest class")
    ax.set(xlabel="nearest neighbour shares the class (%)", xlim=(0, 100))

# %%
asked = [{"pre-trained", "random"}, {"pre-trained", "mel-stats"}, {"pre-trained", "default"}]
rows = pd.concat([intervals.differences(r).assign(task=columns[c]) for c, r in found.items()])
rows = rows[[{*pair} in asked for pair in zip(rows["a"], rows["b"])]]
plots.table(rows[["task", "a", "b", "a - b (points)", "95% interval", "reading"]])

# %% [markdown]
# This is the answer to section 2. Look at the row *pre-trained* against *random*, once for each task: where a difference
# is shown, pre-training has brought clips of a class closer together. Is it shown for all three?
#
# The dashed line is what naming the largest class would give. For metre that is more than half of the clips. A nearest
# neighbour, which knows nothing of how common a class is, may well fall below it.
#
# ### More than one neighbour
# A search shows more than one result. **Recall at k** asks: is *at least one* of the k nearest of the same class?
#
# ### Your turn: recall_at_k · easy · 10 minutes · core
# Write it, with a clip's own group left out. `nearest_others` is there to be used.


# %%
def recall_at_k(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, k: int) -> float:
    """Return the share of clips that have their own class among the k nearest clips of other groups.

    Vectors x [n, d], labels [n], groups [n]. All n clips count.
    """
    raise NotImplementedError


# %%
def check_recall_at_k(answer):
    angle = np.deg2rad([0, 1, 10, 20, 90, 94, 100])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels, groups = np.array([*"aabaccd"], dtype=object), np.array([0, 0, 1, 2, 3, 3, 4])
    one, two, four = (answer(x, labels, groups, k) for k in (1, 2, 4))
    assert one != 4 / 7, "clips of one group found each other: leave a clip's own group out"
    assert np.isclose(one, 0), "in the example no clip has its class as the nearest of another group"
    enough = "three of the seven clips have their class among the two nearest: one of the k is enough"
    assert np.isclose(two, 3 / 7), enough
    same = "one of the four is enough, and a class that lies in one group only counts as not found"
    assert np.isclose(four, 3 / 7), f"with k = 4 they are the same three: {same}"


# %%
def found_within(x, labels, groups, k):
    """What is used until yours passes."""
    return float(np.mean((labels[evaluation.neighbours(x, groups, k)] == labels[:, None]).any(axis=1)))


recall_at_k = course.exercise(recall_at_k, check_recall_at_k, instead=found_within)

# %% [markdown]
# <details><summary>Hint 1</summary><code>labels[nearest_others(x, groups, k)]</code> is [n, k]: the neighbours' classes.</details>
# <details><summary>Hint 2</summary>Compare it with <code>labels[:, None]</code>, and take <code>any</code> along axis 1.</details>
# <details><summary>Solution</summary>
#
# ```python
# def recall_at_k(x, labels, groups, k):
#     return float(np.mean((labels[nearest_others(x, groups, k)] == labels[:, None]).any(axis=1)))
# ```
# </details>

# %%
widgets.guess(
    "7-recall",
    "Eight classes of equal size, and neighbours that are drawn at random: what is recall at 5?",
    {
        "1 / 8": "That is recall at 1. With five neighbours there are five chances.",
        "about 1 / 2": "All five miss with probability (7/8)⁵, about 0.51. So one of them hits in about half of the cases.",
        "5 / 8": "Chances do not simply add: often two of the five are of the class.",
    },
    "about 1 / 2",
)

# %%
ks, kinds = (1, 2, 5, 10), store.clips["label"].to_numpy(object)
fig, ax = plt.subplots(figsize=(8, 3.2))
for name, space in spaces.items():
    scaled = StandardScaler().fit_transform(space)
    recall = [100 * recall_at_k(scaled, kinds, groups, k) for k in ks]
    ax.plot(ks, recall, marker="o", color=plots.MODELS[name], label=name)
share = pd.Series(kinds).value_counts(normalize=True)
chance = [100 * float((share * (1 - (1 - share) ** k)).sum()) for k in ks]
ax.plot(ks, chance, color=plots.MODELS["chance"], ls="--", label="neighbours at random")
ax.set_xticks(ks)
ax.set(xlabel="k nearest clips", ylabel="recall at k (%)", ylim=(0, 103), title="kind of music, all clips")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Recall rises with k by itself: if all clips count as neighbours, it is 100%. So never read it without the dashed line,
# and choose k so small that there is room between the two.
#
# ### What if the own tune were allowed?
# Only a corpus with several clips per group can answer that. Ours has three takes of most tunes, in other keys and on
# other instruments.

# %%
widgets.guess(
    "7-own",
    "For how many clips is the nearest of all clips another take of the same tune?",
    {
        "a few in a hundred": "Another instrument or key changes these vectors more than the same melody keeps them alike.",
        "about 30%": "So it might be if the takes were on the same instrument.",
        "nearly all": "So it would be with pieces that were cut from one recording.",
    },
    "a few in a hundred",
)

# %%
alone = store.clips["clip_id"].to_numpy(object)  # every clip a group of its own
careless = [neighbours_as_predictions(s, f"{m}, own tune allowed", "label", alone) for m, s in spaces.items()]
careful = [neighbours_as_predictions(s, m, "label", groups) for m, s in spaces.items()]
both = intervals.summary(pd.concat(careful + careless))
rows = intervals.differences(both)
same = {m: np.mean(groups[evaluation.neighbours(s, alone, 1)[:, 0]] == groups) for m, s in spaces.items()}
print("the nearest of all clips is another take of the same tune:", end=" ")
print({m: f"{100 * v:.1f}%" for m, v in same.items()})
plots.table(rows[rows["a"] == rows["b"] + ", own tune allowed"])

# %% [markdown]
# Allowing a clip's own tune can raise the score only where two takes of a tune are nearest neighbours. In this corpus that is rare, so the gain is small or none is
# shown. With recordings cut into pieces it would be large (notebook 6, section 4), and it would say nothing about the
# class.
#
# ## 6 Your own folder on this map
# A folder of any audio, or a list of files, becomes an array of read-outs in one line:
# `colalib.embed("recordings", encoder)`. Here with copies of a few clips, as if they were yours. In a shell:
# `python -m colalib embed FOLDER --encoder RUN --out FILE.npz`

# %%
import shutil
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as yours:
    for i in np.random.default_rng(5).choice(len(store), 8, replace=False):
        source = corpus.root / store.clips["path"][i]
        shutil.copy(source, Path(yours) / f"{i:05d}{source.suffix}")
    embedded = colalib.embed(yours, encoder)
vectors, paths = embedded.vectors, embedded.clips["path"]
print(f"{vectors.shape[0]} clips, {vectors.shape[1]} numbers each: {paths[0]}, …")
print(f"{len(embedded.left_out)} clips left out")

# %% [markdown]
# `transform` places new vectors on a finished map. The scaler and the map must be those of the corpus, or the places
# would mean nothing. These clips are in the corpus already, and the map was fitted on them. So we know where they belong,
# and can check the way there. This does not tell how well a clip is placed that the map has never seen.

# %%
back = [int(Path(path).stem) for path in paths]
# the way through files and folders changes nothing
assert np.allclose(vectors, features[back], rtol=1e-2, atol=1e-2)
placed = reducer.transform(scaler.transform(vectors))  # [8, 2]

fig, ax = plt.subplots(figsize=(8, 4.4))
plots.embedding_map(points, store.clips["label"], ax, "your clips (stars), and where they belong (rings)")
ax.scatter(*points[back].T, s=130, facecolors="none", edgecolors="black", lw=1)
ax.scatter(*placed.T, s=110, marker="*", color="black")
width = np.linalg.norm(np.ptp(points, axis=0))
off = np.linalg.norm(placed - points[back], axis=1) / width
print(f"transform misses by {100 * np.median(off):.1f}% of the map's diagonal (median)", end=", ")
print(f"at most by {100 * off.max():.1f}%")

# %% [markdown]
# ### A door slam on the map of music
# UMAP places a new point among its neighbours. It has no way to say *this is like nothing here*. So what happens to
# sounds that are no music? Here are two: a door slam (a burst of noise that fades quickly), and a siren.

# %%
rate = store.mel.sample_rate
t = np.arange(2 * rate) / rate  # 2 s
noise = np.random.default_rng(0).normal(size=len(t))
odd = {
    "door slam": 0.3 * noise * np.exp(-12 * t),
    "siren": 0.3 * np.sin(2 * np.pi * 700 * t - 150 * np.cos(2 * np.pi * t)),  # 550 … 850 Hz
}
for name, wave in odd.items():
    print(name)
    display(plots.player(wave))
strange = scaler.transform(np.concatenate([colalib.embed((w, rate), encoder).vectors for w in odd.values()]))

# %%
widgets.guess(
    "7-slam",
    "Where on the finished map of music does a door slam land?",
    {
        "far outside of all clips": "UMAP starts a new point at a mean of its neighbours' places, however far away "
        "these are in the space.",
        "beside some clips, as any other sound": "A new point is placed by its neighbours, and everything has neighbours.",
        "nowhere: the map refuses it": "It has no test for that. You write one below.",
    },
    "beside some clips, as any other sound",
)

# %%
landed = reducer.transform(strange)  # [2, 2]
fig, ax = plt.subplots(figsize=(8, 4.4))
plots.embedding_map(points, store.clips["label"], ax, "sounds that are no music, on the map of music")
for name, place in zip(odd, landed):
    ax.scatter(*place, s=130, marker="*", color="black")
    box = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1}
    ax.annotate(name, place, (10, 0), textcoords="offset points", va="center", weight="bold", bbox=box)
plt.show()

# %% [markdown]
# The map gives each sound a place among the clips, whatever it is. So the map cannot say whether it belongs there. The space can: how far is a
# sound from its nearest clip?
#
# ### Your turn: out_of_map · medium · 15 minutes · worth it
# For every clip of the corpus, measure the plain distance to the nearest clip of another group. Find the limit that only
# a share `alpha` of these distances exceeds. A new sound is out if its nearest clip is farther away than this limit.


# %%
def out_of_map(x: np.ndarray, groups: np.ndarray, new: np.ndarray, alpha: float = 0.01) -> np.ndarray:
    """Vectors x [n, d] with groups [n], new vectors [m, d] → for each new one whether it is out: bool [m].

    The limit is the quantile 1 − alpha of the corpus' distances to the nearest clip of another group.
    """
    raise NotImplementedError


# %%
def beyond(x, groups, new, alpha=0.01):
    """What is used until yours passes."""
    inside = np.where(groups[:, None] == groups, np.inf, euclidean_distances(x, x)).min(axis=1)
    return euclidean_distances(new, x).min(axis=1) > np.quantile(inside, 1 - alpha)


# %%
def check_out_of_map(answer):
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(300, 4))
    twins = np.concatenate([cloud, cloud + 1e-3])  # two takes of each
    own = np.tile(np.arange(300), 2)
    got = np.asarray(answer(twins, own, np.array([[0.0] * 4, [9.0] * 4])))
    assert got.shape == (2,) and got.dtype == bool, "there should be one True or False per new vector"
    assert got[1], "a vector far from all others is out"
    assert not got[0], "a vector in the middle is not: the quantile 1 − alpha of distances to other groups"
    apart = np.concatenate([cloud - 20, cloud + 20])
    between = "a vector between two far clusters is out: measure to the nearest clip, not to the mean"
    assert np.all(answer(apart, np.arange(600), np.zeros((1, 4)))), between
    fresh = np.asarray(answer(twins, own, rng.normal(size=(2000, 4)), 0.2)).mean()
    assert 0.12 < fresh < 0.3, (
        f"of new vectors of the same kind about alpha = 20% should be out, not {fresh:.0%}"
    )


out_of_map = course.exercise(out_of_map, check_out_of_map, instead=beyond)

# %% [markdown]
# <details><summary>Hint 1</summary><code>euclidean_distances(x, x)</code> gives all distances [n, n]; put infinity within
# a group, and take the minimum of each row.</details>
# <details><summary>Hint 2</summary>The limit is <code>np.quantile(…, 1 - alpha)</code> of these; compare it with the row minima
# of <code>euclidean_distances(new, x)</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def out_of_map(x, groups, new, alpha=0.01):
#     inside = np.where(groups[:, None] == groups, np.inf, euclidean_distances(x, x)).min(axis=1)
#     return euclidean_distances(new, x).min(axis=1) > np.quantile(inside, 1 - alpha)
# ```
# </details>

# %%
out = out_of_map(x, groups, strange)
for name, vector, is_out in zip(odd, strange, out):
    d = np.linalg.norm(x - vector, axis=1).min()
    print(
        f"{name}: {d:.0f} from the nearest clip",
        "→ out of the map" if is_out else "→ not told apart from music",
    )
inside = np.where(groups[:, None] == groups, np.inf, euclidean_distances(x, x)).min(axis=1)
print(
    f"clips of the corpus: {np.median(inside):.0f} in the median, {np.quantile(inside, 0.99):.0f} for one in a hundred"
)

# %% [markdown]
# With sound of another kind, look at distances in the space, or draw a new map of both.

# %% [markdown]
# ## 7 Labels by ear
# You come home with a folder of recordings, and none has a label. Each label costs you a few seconds of listening. So which
# clips do you label first? If you take them at random, you hear the common sounds again and again. **Active learning**
# chooses the next clips by what is known so far:
# - **spread**: clips in regions of the space where no label is yet;
# - **margin**: clips for which a linear probe of your labels gives its two best classes nearly the same probability.
#
# Here are 60 clips of the corpus in a folder of their own, without their labels. To label a folder of your own, write its
# path into the first line; nothing is copied into it.

# %%
MY_SOUNDS = None  # e.g. "recordings": the path of a folder

by_ear = Path(MY_SOUNDS) if MY_SOUNDS else course.runs() / "own" / "by-ear"
if MY_SOUNDS is None:
    by_ear.mkdir(parents=True, exist_ok=True)
    for i in np.random.default_rng(7).choice(len(store), min(60, len(store)), replace=False):
        source = corpus.root / store.clips["path"][i]
        shutil.copy(source, by_ear / f"{i:05d}{source.suffix}")

# %%
from colalib.data import corpora
from colalib.data.store import build

field = corpora.load(by_ear, labels="none")  # the same table of clips, whatever you have labelled by now
field_store = build(field, course.runs() / "own" / f"{by_ear.name}.store")
field_features = evaluation.feature_source("default").of_store(field_store)
print(f"{len(field_store)} clips; labels go to {by_ear.name}/index.csv")

# %% [markdown]
# Press *What to label next*: ten clips are listed. Press each of them, type what you hear (a piano? a dance? strings?) and
# press *Label this clip*. The labels are written to `index.csv` in the folder, and its former versions stay beside it. After
# ten or twenty labels of two kinds a curve begins: how often a probe is right about labels that it was not fitted on. It
# rises slowly, and for a reason: the proposed clips are the hard ones.

# %%
field_map = flatten(StandardScaler().fit_transform(field_features))
widgets.labeller(field, field_store, widgets.Space(field_features, field_map))

# %% [markdown]
# Does it pay? Nobody can label the same folder twice without remembering it. But labelling can be simulated on sets whose
# labels are known: a strategy proposes ten clips, they get their true labels, and a probe is judged on a fold that was not
# in the pool. The result is in `data/labelling.json`, with the command that made it. "Half and half" takes five clips by
# spread, and five that differ from each other among those of the smallest margin. It is what the widget does: spread finds
# the classes, margin the doubtful clips. It was chosen on `esc10`, so expect less on yours.

# %%
import json

simulated = json.loads((course.home() / "data" / "labelling.json").read_text(encoding="utf-8"))
sets = simulated["sets"]
fig, axes = plt.subplots(1, len(sets), figsize=(1 + 3.8 * len(sets), 3.4), squeeze=False, sharey=True)
shown = ("random", "spread", "margin", "half and half")
for ax, (name, of_set) in zip(axes[0], sets.items()):
    for strategy, colour in zip(shown, (plots.MODELS["chance"], *plots.PALETTE[:2], plots.PALETTE[3])):
        row = of_set["strategies"][strategy]
        low, high = 100 * np.transpose(row["ci95"])
        ax.plot(simulated["labels"], 100 * np.array(row["accuracy"]), color=colour, label=strategy)
        ax.fill_between(simulated["labels"], low, high, color=colour, alpha=0.2, lw=0)
    ax.set(xlabel="labels given", title=name)
axes[0][0].set_ylabel("accuracy (%)")
ax.legend()
plt.show()

# %%
for strategy in shown:
    row = sets["esc10"]["strategies"][strategy]["labels to the goal"]
    print(f"esc10, {strategy}: 80% after {row['mean']:.0f} labels (95% interval {row['ci95']})")
fewer = sets["esc10"]["strategies"]["half and half"]["fewer labels than random"]
print(f"esc10, half and half: {fewer['mean']:.0f} labels fewer than random {fewer['ci95']}")
for name, of_set in sets.items():
    gain = of_set["strategies"]["half and half"]
    ends = [f"{100 * v:+.1f}" for v in gain["more accurate than random, ci95"][-1]]
    last = 100 * gain["more accurate than random"][-1]
    print(
        f"{name}, {simulated['labels'][-1]} labels: half and half − random {last:+.1f} points [{', '.join(ends)}]"
    )

# %% [markdown]
# The bands are 95% intervals over folds and seeds. On environmental sounds (`esc10`) "half and half" reaches 80% with
# 27.6 labels fewer than *random* (95% interval 13 to 42). *Spread* alone needed 29, half and half 36; whether these
# two differ was not tested. On single notes (`philharmonia`) it
# gains five points at 100 labels (2 to 8). On digits of a new speaker (`fsdd`) no gain is shown.

# %% [markdown]
# ## Recap
# You can now
# - draw a corpus in two dimensions with UMAP, coloured by any label, and read the map island by island;
# - say what UMAP keeps of a space of many dimensions, measure it, and not over-read a picture: part of the
#   neighbourhoods, a rough order of large distances; islands and gaps may come from the method;
# - find a clip's nearest neighbours, and say why its own group is left out;
# - compare two spaces by a number with an interval instead of by two pictures;
# - place sounds of your own on an existing map, and tell those that do not belong there by their distance in the space;
# - label a folder by ear, and let a probe of your labels propose which clips to label next.
#
# **Next**, [notebook 8](08_scaling_up.ipynb): from 1,600 clips to a hundred thousand.

# %% [markdown]
# ## Exercises
# ### 7.1 Which class lies together? · easy · 10 minutes
# One number hides eight. For every class: the share of its clips' k nearest neighbours that belong to the same class.


# %%
def purity(labels: np.ndarray, near: np.ndarray) -> dict[str, float]:
    """labels [n], near [n, k] (numbers of neighbours) → class: share of its clips' neighbours with its label."""
    raise NotImplementedError


# %%
def check_purity(answer):
    labels = np.array(["a", "a", "b", "b"])
    got = answer(labels, np.array([[1], [0], [3], [0]]))
    assert set(got) == {"a", "b"}, "there should be one entry per class"
    assert np.isclose(got["a"], 1), "both neighbours of class a are a's"
    assert np.isclose(got["b"], 0.5), "one of the two neighbours of class b is a b"
    got = answer(labels, np.array([[1, 2], [0, 3], [3, 0], [2, 1]]))
    assert np.allclose([got["a"], got["b"]], 0.5), "all k neighbours count, not only the first"
    of_corpus = answer(store.clips["label"].to_numpy(object), near)
    print({c: round(float(share), 2) for c, share in of_corpus.items()})


_ = course.exercise(purity, check_purity)

# %% [markdown]
# <details><summary>Hint</summary><code>labels[near]</code> is [n, k]; compare it with <code>labels[:, None]</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def purity(labels, near):
#     same = (labels[near] == labels[:, None]).mean(axis=1)
#     return pd.Series(same).groupby(labels).mean().to_dict()
# ```
# </details>
#
# ### 7.2 The loneliest clips · medium · 15 minutes
# Clips far from everything are worth hearing: they are rare sounds, or errors in the data. Rank clips by their
# distance to the k-th nearest clip of *another* group, the loneliest first.


# %%
def loneliest(x: np.ndarray, groups: np.ndarray, k: int = 5) -> np.ndarray:
    """Clip numbers [n], ranked by Euclidean distance to the k-th nearest clip of another group.

    The farthest comes first. Vectors [n, d], groups [n].
    """
    raise NotImplementedError


# %%
def check_loneliest(answer):
    rng = np.random.default_rng(0)
    cloud = np.concatenate([rng.normal(size=(40, 8)), np.full((2, 8), 20.0), np.full((1, 8), 40.0)])
    own = np.array([*map(str, range(40)), "pair", "pair", "far"])
    company = "two takes of one tune have only each other: own groups do not count as company"
    for k in (3, 1):
        order = np.asarray(answer(cloud, own, k))
        assert sorted(order) == list(range(43)), "every clip should stand in the ranking once"
        assert order[0] == 42, "the clip that is farthest from all others should come first"
        assert set(order[1:3]) == {40, 41}, company
    trio = np.concatenate(
        [rng.normal(size=(40, 8)), 60 + 0.1 * rng.normal(size=(3, 8)), np.full((1, 8), 9.0)]
    )
    alone = np.arange(44)
    near = "three rare clips have two others near: with k = 2 they are not the loneliest, with k = 3 they are"
    assert answer(trio, alone, 2)[0] == 43 and {*answer(trio, alone, 3)[:3]} == {40, 41, 42}, near


_ = course.exercise(loneliest, check_loneliest)

# %% [markdown]
# <details><summary>Hint 1</summary><code>euclidean_distances(x, x)</code> gives all distances; set those within a
# group to infinity.</details>
# <details><summary>Hint 2</summary>The k-th smallest of each row: <code>np.sort(distance, axis=1)[:, k - 1]</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def loneliest(x, groups, k=5):
#     distance = np.where(groups[:, None] == groups, np.inf, euclidean_distances(x, x))
#     return np.argsort(-np.sort(distance, axis=1)[:, k - 1])
# ```
# </details>
#
# Then hear them: `for i in loneliest(x, groups)[:3]: listen(i)`
#
# ### 7.3 Trustworthiness · hard · 20 minutes
# *Neighbours kept* asks what the map lost. **Trustworthiness** asks what it made up: points that are near on the map,
# but far apart in the space. Let r(i, j) be the rank of j among i's neighbours in the space (1: the nearest), and U(i)
# those of the k nearest on the map that are not among the k nearest in the space. Then
#
# $$T = 1 - \frac{2}{n k (2n - 3k - 1)} \sum_i \sum_{j \in U(i)} (r(i, j) - k)$$


# %%
def trust(x: np.ndarray, flat: np.ndarray, k: int = 10) -> float:
    """Trustworthiness of the map `flat` [n, 2] of the vectors x [n, d]: 1 if it makes up no neighbour."""
    raise NotImplementedError


# %%
from sklearn.manifold import trustworthiness


def check_trust(answer):
    rng = np.random.default_rng(0)
    some = x[rng.choice(len(x), min(150, len(x)), replace=False)]
    assert np.isclose(answer(some, some, 5), 1), "a map that is the space itself makes up nothing"
    for flat in (some[:, :2], rng.normal(size=(len(some), 2))):
        for k in (5, 10):
            known, got = trustworthiness(some, flat, n_neighbors=k), answer(some, flat, k)
            assert np.isclose(got, known, atol=1e-3), f"scikit-learn finds {known:.3f} for k = {k}"


_ = course.exercise(trust, check_trust)

# %% [markdown]
# <details><summary>Hint 1</summary><code>order = nearest(x, len(x) - 1)</code> lists all others in order: rank[i, order[i]] is
# 1, 2, …, n − 1. <code>np.put_along_axis</code> writes it.</details>
# <details><summary>Hint 2</summary>Where the rank is at most k the term is no made-up neighbour: sum
# <code>np.maximum(rank - k, 0)</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def trust(x, flat, k=10):
#     n, rank = len(x), np.zeros((len(x), len(x)), int)
#     np.put_along_axis(rank, nearest(x, n - 1), np.arange(1, n)[None], axis=1)
#     made_up = np.maximum(np.take_along_axis(rank, nearest(flat, k), axis=1) - k, 0)
#     return float(1 - 2 / (n * k * (2 * n - 3 * k - 1)) * made_up.sum())
# ```
# </details>
