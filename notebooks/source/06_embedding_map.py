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
# # 6 A map of sound: look at embeddings, and listen to them
#
# You draw the whole corpus as a map in which similar clips lie together, learn what such a map keeps and what it
# makes up, listen to clips and their nearest neighbours, and put recordings of your own on it.
#
# **Run time** about 1 minute on 2 cores in the quick profile, after notebook 5; without it, 2.
#
# You will be able to
# - embed a corpus, and draw it in two dimensions with UMAP, coloured by any label;
# - say what UMAP keeps of a space of many dimensions, measure it, and not over-read a picture;
# - find a clip's nearest neighbours, and say why its own group is left out;
# - compare two embedding spaces by a number with an interval instead of by two pictures;
# - embed a folder of your own, and place it on an existing map.

# %%
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import umap
from IPython.display import display
from scipy.stats import spearmanr
from sklearn.manifold import trustworthiness
from sklearn.preprocessing import StandardScaler

import colalib
from colalib import course, evaluation, widgets
from colalib.data import audio
from colalib.evaluation import intervals, plots
from colalib.training.runs import open_run

plots.style()
profile = course.profile()
corpus, store, encoder = course.corpus(), course.store(), course.encoder()
keep = course.runs() / "supervised" / "features"  # embeddings that notebook 5 computed are loaded from here

# %% [markdown]
# ## 1 Embed, standardise, flatten
# One vector per clip, as in notebook 5. Its columns have different spreads, so each is standardised first: otherwise a
# few loud ones would decide what is near. Then **UMAP** ([arXiv 1802.03426](https://arxiv.org/abs/1802.03426)) looks
# for points in the plane whose neighbourhoods resemble those of the vectors. It sees no labels; only the colours do.

# %% tags=["needed"]
pretrained = open_run(encoder).load_encoder()
features = evaluation.feature_source(encoder).of_store(store, keep)  # [n, d]
random = evaluation.feature_source("random", pretrained.arch).of_store(store, keep)
scaler = StandardScaler().fit(features)
x, x_random = scaler.transform(features), StandardScaler().fit_transform(random)


def flatten(x: np.ndarray, n_neighbors: int = 15, seed: int = 0) -> umap.UMAP:
    """UMAP to two dimensions; one thread, so that the seed decides everything."""
    return umap.UMAP(n_neighbors=min(n_neighbors, len(x) - 1), random_state=seed, n_jobs=1).fit(x)


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
# colour means that the encoder holds these clips for alike; colours that mix mean that it cannot tell them apart,
# *or* that it sorts by something else first, and there was no room left in two dimensions.
#
# The axes have no unit and no direction: only who is beside whom has a meaning.
#
# ## 2 Is that learned?
# A calibrated random encoder (notebook 5) has a map as well. And so has the encoder that comes with the course,
# `default`: the same architecture and settings, trained longer, on more of the same kind of music.

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
# ## 3 What a map keeps
# Here is the same space four times: another seed, fewer neighbours, more neighbours. Two numbers go with each:
# - **neighbours kept**: of a clip's ten nearest in the space, how many are among its ten nearest on the map;
# - **order of distances**: rank correlation of distances in the space and on the map, over random pairs of clips.


# %%
def nearest(x: np.ndarray, k: int = 10) -> np.ndarray:
    """Numbers of the k nearest rows of every row of x [n, d], without itself: [n, k]."""
    squares = (x**2).sum(axis=1)
    distance = squares[:, None] + squares - 2 * x @ x.T  # squared; the order is the same
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :k]


def kept_neighbours(x: np.ndarray, flat: np.ndarray, k: int = 10) -> float:
    """Share of the k nearest neighbours in x that are among the k nearest in `flat`."""
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(nearest(x, k), nearest(flat, k))]))


def distance_order(x: np.ndarray, flat: np.ndarray, pairs: int = 5000) -> float:
    """Spearman's rank correlation of distances in x and in `flat`, over random pairs of rows."""
    a, b = np.random.default_rng(0).integers(len(x), size=(2, pairs))
    return spearmanr(np.linalg.norm(x[a] - x[b], axis=1), np.linalg.norm(flat[a] - flat[b], axis=1)).statistic


settings = {
    "15 neighbours, seed 1": (15, 1),
    "5 neighbours": (5, 0),
    "50 neighbours": (50, 0),
}
maps = {"15 neighbours, seed 0": points}
maps |= {name: flatten(x, k, seed).embedding_ for name, (k, seed) in settings.items()}

# %%
fig, axes = plt.subplots(1, 4, figsize=(12, 3.4))
for ax, (name, flat) in zip(axes, maps.items()):
    plots.embedding_map(flat, store.clips["label"], ax, name, legend=None)
    share, order = kept_neighbours(x, flat), distance_order(x, flat)
    ax.set_xlabel(f"neighbours kept {100 * share:.0f}%\norder of distances {order:.2f}")
share = kept_neighbours(x, np.random.default_rng(0).permutation(points))
print(f"the same points dealt out at random would keep {100 * share:.1f}% of the neighbours")

# %% [markdown]
# So a map keeps part of the neighbourhoods, far more than chance and far less than all, and of large distances only a
# rough order. What changes from panel to panel is owed to the method, not to the sounds: islands, gaps, how dense a
# region is, which end is up. What stays is worth a second look, *in the space itself*. Never compute a result from
# map coordinates.
#
# ## 4 Neighbours, by ear
# In the space itself: a clip's nearest neighbours by cosine similarity, as is usual for retrieval (UMAP, and the numbers
# above, went by plain distance). A clip's **own group is left out**. Another
# take of the same tune is near for a reason that is no news, and counting it would reward the encoder for recognising
# a melody it was given twice.


# %%
def neighbours_of(i: int, k: int = 3) -> np.ndarray:
    """The k nearest clips of clip i, other takes of its tune left out."""
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = u @ u[i]  # [n]
    similarity[groups == groups[i]] = -np.inf
    return np.argsort(-similarity)[:k]


groups = store.clips["group"].values
near, near_random = evaluation.neighbours(features, groups), evaluation.neighbours(random, groups)
assert (near[0, :3] == neighbours_of(0)).all()


def listen(i: int, seconds: float = 5):
    wave = audio.load_audio(corpus.root / store.clips["path"][i])
    print("   ", ", ".join(v for v in store.clips.loc[i, [*columns]] if v), f"({store.clips['title'][i]})")
    display(plots.player(wave[: int(seconds * store.mel.sample_rate)]))


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
# And now all of them. Hover to read, press a point to hear it, drag around an island to hear it in turn; with the
# keyboard, arrows and Enter. Lines lead to the nearest clips *in the space*: see how often the map has put them
# elsewhere. Then give it a recording of your own.

# %% tags=["widget"]
spaces = {
    "pre-trained": widgets.Space(features, reducer, pretrained),
    "default": widgets.Space(default, reducer_default, open_run("default").load_encoder()),
}
widgets.embedding_map(corpus, store, spaces, ["label", "family", "metre"])

# %% [markdown]
# ## 5 The map as a number
# How often does a test clip's nearest neighbour share its class? Treat the neighbour's label as a prediction, and
# everything of notebook 5 applies: the same clips for every space, intervals over tunes, paired differences.


# %%
def neighbours_as_predictions(space: np.ndarray, model: str, column: str, groups: np.ndarray) -> pd.DataFrame:
    """A table of predictions: for every test clip, its nearest neighbour's value of `column`."""
    has = np.flatnonzero(store.clips[column] != "")
    clips = store.clips.iloc[has].reset_index(drop=True)
    guess = clips[column].values[evaluation.neighbours(space[has], groups[has], k=1)[:, 0]]
    table = clips[["clip_id", "group"]].assign(model=model, task=column, seed=0)
    table = table.assign(label=clips[column], predicted=guess)
    return table[clips["split"] == "test"]


mel = evaluation.feature_source("mel-stats").of_store(store)
spaces = {"mel-stats": mel, "random": random, "pre-trained": features, "default": default}
found = {
    c: intervals.summary(pd.concat([neighbours_as_predictions(s, m, c, groups) for m, s in spaces.items()]))
    for c in columns
}
fig, axes = plt.subplots(1, 3, figsize=(11, 2.4), sharey=True)
for ax, (column, r) in zip(axes, found.items()):
    plots.results(r, ax, title=columns[column])
    ax.set_xlabel("nearest neighbour shares the class (%)")
rows = pd.concat([intervals.differences(r).assign(task=columns[c]) for c, r in found.items()])
plots.table(rows[["task", "a", "b", "a - b (points)", "95% interval", "reading"]])

# %% [markdown]
# The dashed line is what naming the largest class would give. For metre that is more than half of the clips, and a nearest
# neighbour, which knows nothing of how common a class is, may well fall below it.
#
# And if the own tune had been allowed? Then this would have been the picture for the kind of music:

# %%
alone = store.clips["clip_id"].values  # every clip a group of its own
careless = [neighbours_as_predictions(s, f"{m}, own tune allowed", "label", alone) for m, s in spaces.items()]
careful = [neighbours_as_predictions(s, m, "label", groups) for m, s in spaces.items()]
both = intervals.summary(pd.concat([t for pair in zip(careful, careless) for t in pair]))
same = {m: np.mean(groups[evaluation.neighbours(s, alone, 1)[:, 0]] == groups) for m, s in spaces.items()}
fig, ax = plt.subplots(figsize=(8, 3))
plots.results(both, ax, title="the nearest neighbour shares the kind of music")
print("the nearest of all clips is another take of the same tune:", end=" ")
print({m: f"{100 * v:.0f}%" for m, v in same.items()})

# %% [markdown]
# Whatever is gained there is gained by takes of one tune finding each other, however much or little it is. With
# recordings cut into pieces, or several sentences of one speaker, it would be much, and say as little about the
# class.
#
# ## 6 Your own folder on this map
# A folder of any audio, or a list of files, becomes an array in one line: `colalib.embed("recordings", encoder)`. Here with
# copies of a few clips, as if they were yours. In a shell: `python -m colalib embed FOLDER --encoder RUN --out FILE.npz`

# %%
with tempfile.TemporaryDirectory() as yours:
    for i in np.random.default_rng(5).choice(len(store), 8, replace=False):
        source = corpus.root / store.clips["path"][i]
        shutil.copy(source, Path(yours) / f"{i:05d}{source.suffix}")
    embedded = colalib.embed(yours, encoder)
vectors, paths = embedded.vectors, embedded.clips["path"]
print(f"{vectors.shape[0]} clips, {vectors.shape[1]} numbers each: {paths[0]}, …")
print(f"{len(embedded.left_out)} clips left out")

# %% [markdown]
# `transform` places new vectors on a finished map: the scaler and the map are those of the corpus, or the places
# would mean nothing. These clips are in the corpus already, and the map was fitted on them. So we know where they belong,
# and can check the way there; how far off a clip lands that the map has never seen, this does not tell.

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
# UMAP places a new point among its neighbours; it has no way to say *this is like nothing here*. A door slam lands
# somewhere on the map of music, too. So with sound of another kind look at distances in the space, or draw a new map
# of both.

# %% [markdown]
# ## Recap
# You can now
# - embed a corpus, and draw it in two dimensions with UMAP, coloured by any label;
# - say what UMAP keeps of a space of many dimensions, measure it, and not over-read a picture: part of the
#   neighbourhoods, a rough order of large distances, nothing of islands and gaps;
# - find a clip's nearest neighbours, and say why its own group is left out;
# - compare two embedding spaces by a number with an interval instead of by two pictures;
# - embed a folder of your own, and place it on an existing map.
#
# **Next**, [notebook 7](07_scaling_up.ipynb): from 1,600 clips to a hundred thousand.

# %% [markdown]
# ## Exercises
# ### 6.1 Which class lies together? · easy · 10 minutes
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


course.check_exercise(check_purity, purity)

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
# ### 6.2 The loneliest clips · medium · 15 minutes
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
    order = np.asarray(answer(cloud, own, 3))
    assert sorted(order) == list(range(43)), "every clip should stand in the ranking once"
    assert order[0] == 42, "the clip that is farthest from all others should come first"
    company = "two takes of one tune have only each other: own groups do not count as company"
    assert set(order[1:3]) == {40, 41}, company


course.check_exercise(check_loneliest, loneliest)

# %% [markdown]
# <details><summary>Hint 1</summary><code>scipy.spatial.distance.cdist(x, x)</code> gives all distances; set those within a
# group to infinity.</details>
# <details><summary>Hint 2</summary>The k-th smallest of each row: <code>np.sort(distance, axis=1)[:, k - 1]</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def loneliest(x, groups, k=5):
#     from scipy.spatial.distance import cdist
#
#     distance = np.where(groups[:, None] == groups, np.inf, cdist(x, x))
#     return np.argsort(-np.sort(distance, axis=1)[:, k - 1])
# ```
# </details>
#
# Then hear them: `for i in loneliest(x, groups)[:3]: listen(i)`
#
# ### 6.3 Trustworthiness · hard · 20 minutes
# *Neighbours kept* asks what the map lost. **Trustworthiness** asks what it made up: points that are near on the map
# but far in the space. Let r(i, j) be the rank of j among i's neighbours in the space (1: the nearest), and U(i)
# those of the k nearest on the map that are not among the k nearest in the space. Then
#
# $$T = 1 - \frac{2}{n k (2n - 3k - 1)} \sum_i \sum_{j \in U(i)} (r(i, j) - k)$$


# %%
def trust(x: np.ndarray, flat: np.ndarray, k: int = 10) -> float:
    """Trustworthiness of the map `flat` [n, 2] of the vectors x [n, d]: 1 if it makes up no neighbour."""
    raise NotImplementedError


# %%
def check_trust(answer):
    rng = np.random.default_rng(0)
    some = x[rng.choice(len(x), min(150, len(x)), replace=False)]
    assert np.isclose(answer(some, some, 5), 1), "a map that is the space itself makes up nothing"
    for flat in (some[:, :2], rng.normal(size=(len(some), 2))):
        for k in (5, 10):
            known, got = trustworthiness(some, flat, n_neighbors=k), answer(some, flat, k)
            assert np.isclose(got, known, atol=1e-3), f"scikit-learn finds {known:.3f} for k = {k}"


course.check_exercise(check_trust, trust)

# %% [markdown]
# <details><summary>Hint 1</summary><code>nearest(x, len(x) - 1)</code> lists all others in order; its inverse is the rank.
# </details>
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
