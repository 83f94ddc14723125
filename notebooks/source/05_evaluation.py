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
# # 5 Evaluation: what is the encoder worth?
#
# You put seven ways to classify a clip side by side, from chance to the fine-tuned encoder, and use the test clips for
# the first time to judge them. You look into the network: which layer knows what? And you ask the same encoder other
# questions.
#
# **Run time** about 6 minutes on 2 cores in the quick profile, the first time; later runs load what is there.
#
# You will be able to
# - judge an encoder frozen (linear probe, nearest neighbours) and fine-tuned, beside baselines that are no straw men;
# - say what a probe reads, and what is read from h, from the blocks and from g(h);
# - judge the same encoder on other tasks and on a folder of your own;
# - keep what a later question needs: the answer to every test clip.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from colalib import cola, course, evaluation, widgets
from colalib.data import segments
from colalib.data.clips import Clips
from colalib.data.splits import Split, evaluation_splits
from colalib.encoder import Encoder
from colalib.evaluation import intervals, plots
from colalib.training.runs import Run, open_run

plots.style()
profile = course.profile()
corpus, store, encoder = course.corpus(), course.store(), course.encoder()
folder = course.supervised_folder(encoder)
keep = folder / "features"  # read-outs are computed once; later runs load them from this folder

# %% [markdown]
# ## 1 Frozen: what does the encoder know already?
# A **linear probe** leaves the encoder as it is. It fits one linear classifier on numbers that are read from the frozen
# encoder. What the classifier finds must have been in these numbers.
#
# Which numbers? Pre-training uses the embedding h: the largest value of each channel of the last layer. That layer is
# made for the task of pre-training. So the probe here reads something else, the **read-out** of a clip:
# - **block features**: for every block before the last layer, the mean and standard deviation of each channel over the
#   time of the whole clip, in up to four ranges of bands from low to high;
# - 11 numbers for each mel band itself, such as its mean, its deviation and how fast it changes (`mel_profile`).
#
# The clip is cut into overlapping segments of the length that the encoder was trained on. The paper probes h instead;
# section 2 compares the two. Here is the read-out by hand.

# %%
from colalib.evaluation.features import mel_profile

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
profile_of_clip = mel_profile(store.frames(0), store.mel)  # [11 · bands]
by_hand = np.concatenate([torch.cat(means + spreads).numpy(), profile_of_clip])  # [d]
assert np.allclose(by_hand, features[0], rtol=1e-3, atol=1e-3)
print(f"{len(x)} segments, {len(blocks)} blocks → read-out {by_hand.shape}; all clips: {features.shape}")

# %% [markdown]
# The probe standardises every column (subtracts its mean, divides by its deviation) and fits a **logistic regression** on
# `train`: one linear layer and a softmax. **Regularisation** keeps its weights small, so that it does not learn single
# clips by heart; how strong it is, is chosen on `valid`. Then the probe is fitted again on both, and predicts `test`. The
# test side decides nothing.
#
# How is the strength chosen (scikit-learn's `C`: the smaller, the stronger)? Accuracy on `valid` would be too coarse: one
# or two clips would decide. Cross-entropy is finer, because it
# counts how sure each answer was. But it punishes a weakly regularised model for being too sure, even where its answers
# are right. So each model's outputs are first divided by the temperature that suits them best
# ([Guo et al. 2017](https://arxiv.org/abs/1706.04599)).

# %%
import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations bring it close enough
labels = store.clips["label"].values
division = evaluation_splits(store.clips)[0]


def fit(rows, strength):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    with threadpool_limits(1):  # the solver's last digits depend on the number of threads
        return model.fit(features[rows], labels[rows])


# %%
from torch.nn.functional import cross_entropy

from colalib.evaluation.probes import C_GRID, TEMPERATURES

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
# A **straw man** is an opponent that was made weak on purpose. "Better than random weights" is only worth saying if the
# random weights got a fair chance. An EfficientNet ([arXiv 1905.11946](https://arxiv.org/abs/1905.11946)) normalises
# every layer by running statistics (BatchNorm, [arXiv 1502.03167](https://arxiv.org/abs/1502.03167)). In a new network
# these say *mean 0, variance 1*. That is wrong for every layer: from block to block the signal shrinks.
# `calibrate_batchnorm` passes some training clips through the network, so that the statistics fit. No weight changes.
# Watch how far the block features scatter over clips.

# %%
per_class = max(20, profile.clips_per_class * 3 // 10)
part = np.flatnonzero(store.clips.groupby("label").cumcount().values < per_class)
random = evaluation.feature_source("random", pretrained.arch, seed=0).of_store(store, keep)  # calibrated

torch.manual_seed(0)  # the same weights, not calibrated
fresh = Encoder(pretrained.arch)
raw = np.zeros_like(random)
raw[part] = evaluation.embed_frames(fresh, Clips([store], [part]), store.mel)
block_features = slice(len(features[0]) - len(profile_of_clip))  # what the network itself makes
for name, f in {"not calibrated": raw, "calibrated": random, "pre-trained": features}.items():
    f = f[:, block_features]
    low, middle = np.quantile(f[part].std(axis=0), [0.05, 0.5])
    print(
        f"{name}: a typical component scatters over clips by {middle:.2g}, one in twenty by less than {low:.2g}"
    )

# %% [markdown]
# Now judge the block features on a part of the clips, to save time (fewer clips to learn from also mean lower accuracies
# than in section 3): with a logistic regression on them as they are, and with the linear probe, which standardises them
# first.

# %%
widgets.guess(
    "5-straw",
    "Random weights, not calibrated, and a logistic regression on the block features as they are. "
    "Eight classes: what accuracy?",
    {
        "about 12%, as by guessing": "Near it: the numbers are so small that the classifier hardly sees them.",
        "about 50%": "That is about what the same weights reach once the columns are standardised.",
        "about 70%": "That is about what the pre-trained encoder reaches, with its whole read-out and all clips.",
    },
    "about 12%, as by guessing",
)


# %%
def plain(x, y, split):
    """Logistic regression on features as they are: predictions for the test side."""
    return LogisticRegression(max_iter=300).fit(x[split.train], y[split.train]).predict(x[split.test])


inner = Split("", *(np.intersect1d(side, part) for side in (division.train, division.valid, division.test)))
tables = [
    evaluation.evaluate_features(
        store, x[:, block_features], f"random, {name}, {how}", "label", [inner], method=method
    )
    for name, x in (("not calibrated", raw), ("calibrated", random))
    for how, method in (("as it is", plain), ("standardised", evaluation.linear_probe))
]
straw = intervals.summary(pd.concat(tables))
fig, ax = plt.subplots(figsize=(8, 2.4))
_ = plots.results(straw, ax, title=f"the same random weights, {straw['n_clips']} test clips")

# %% [markdown]
# The same weights, four readings. Without calibration many components are numbers too small for a classifier that
# takes them as they are. A comparison with *that* reading is a comparison with a straw man. Standardised columns bring
# them back. Is calibration itself worth anything after that? The interval says whether these few clips can show it.

# %%
rows = intervals.differences(straw)
plots.table(rows[rows["a"].str.endswith("standardised") & rows["b"].str.endswith("standardised")])

# %% [markdown]
# The table of section 3 takes the calibrated weights with standardised columns, and plain mel statistics beside them.
#
# ### The embedding h, or the read-out?
# Three choices of what to read from the pre-trained encoder, on the same part of the clips: h (averaged over a clip's
# segments), the block features, and the whole read-out. A warning: this notebook looks at the same test clips many
# times. And the read-out was settled before, by colalib's makers, who looked at test clips of this corpus too: these are
# development results. The best of many rows is partly lucky, as notebook 4 has shown.


# %%
from colalib.training.runs import read_checkpoint

module = cola.Cola(open_run(encoder).config, std=1.0)  # the checkpoint brings its own std
module.load_state_dict(read_checkpoint(encoder / "last.ckpt")["state_dict"])
module.eval()


@torch.no_grad()
def embeddings_of(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel frames [T, M] of a clip → h [640] and g(h) [512], the means over its segments."""
    x = segments.split_segments(frames, hop=segments.EVAL_HOP_FRAMES)
    h = module.encoder(torch.from_numpy(x))  # [segments, 640]
    return h.mean(dim=0).numpy(), module.objective.project(h).mean(dim=0).numpy()


h, g = np.zeros((len(store), pretrained.dim), np.float32), np.zeros((len(store), 512), np.float32)
for i in part:
    h[i], g[i] = embeddings_of(store.frames(i))

# %%
choices = {"probe, h": h, "probe, block features": features[:, block_features], "probe, read-out": features}
tables = [evaluation.evaluate_features(store, f, name, "label", [inner]) for name, f in choices.items()]
reading = intervals.summary(pd.concat(tables))
fig, ax = plt.subplots(figsize=(8, 1.9))
plots.results(reading, ax, title=f"linear probe, pre-trained encoder, {reading['n_clips']} test clips")
plt.show()
plots.table(intervals.differences(reading))

# %% [markdown]
# The table says which of these differences are shown. Where h is behind, two reasons are possible: the last
# layer has dropped something, for it was made to tell recordings apart; or h is just fewer numbers.
#
# ### Where in the network?
# Each block by itself: from which one can a probe read the kind of music best? And what about g(h), the projection whose
# similarities pre-training compared? After pre-training it is dropped.
#
# ### Your turn: columns_of_block · easy · 5 minutes · worth it
# The first columns of a read-out are the means of all blocks, one block after the other. Then come the deviations of all
# blocks in the same order. Find the columns that belong to one block.


# %%
def columns_of_block(block: int, sizes: list[int]) -> np.ndarray:
    """Numbers of the columns of `block` (counted from 0), means first; block b has sizes[b] means."""
    raise NotImplementedError


# %%
def check_columns_of_block(answer):
    first, last = np.asarray(answer(0, [2, 3, 4])), np.asarray(answer(2, [2, 3, 4]))
    assert len(first) == 4, "a block of two means has two deviations as well: four columns"
    assert np.array_equal(first[:2], [0, 1]), "the first block's means are the first columns"
    assert np.array_equal(first[2:], [9, 10]), "deviations begin where the means of all blocks end"
    assert np.array_equal(last, [5, 6, 7, 8, 14, 15, 16, 17]), f"block 2 of sizes 2, 3, 4: not {last}"


def by_position(block, sizes):
    """What is used until yours passes."""
    owner = np.tile(np.repeat(np.arange(len(sizes)), sizes), 2)
    return np.flatnonzero(owner == block)


columns_of_block = course.exercise(columns_of_block, check_columns_of_block, instead=by_position)

# %% [markdown]
# <details><summary>Hint 1</summary>The means of a block begin after those of the blocks before it:
# <code>sum(sizes[:block])</code>.</details>
# <details><summary>Hint 2</summary>Its deviations lie <code>sum(sizes)</code> columns further.</details>
# <details><summary>Solution</summary>
#
# ```python
# def columns_of_block(block, sizes):
#     of_means = sum(sizes[:block]) + np.arange(sizes[block])
#     return np.concatenate([of_means, of_means + sum(sizes)])
# ```
# </details>

# %%
widgets.guess(
    "5-layer",
    "From which part of the pre-trained encoder does a linear probe read the kind of music best?",
    {
        "the first block": "It sees little more than the spectrum: enough for instruments, too little for more.",
        "a block after the first few": "It has heard longer stretches than the first, and is not yet made for the pairs alone. But our test clips are too few to show it.",
        "h, the last layer": "The end of the encoder is made for finding pairs, and may have dropped something for it.",
        "g(h), the projection": "g may drop even more of what does not help to find pairs. So it is dropped itself.",
    },
    "a block after the first few",
)

# %%
sizes = [len(m) for m in means]
layers = {f"probe, block {b + 1}": features[:, columns_of_block(b, sizes)] for b in range(len(sizes))}
layers |= {"probe, h": h, "probe, g(h)": g}
tables = [evaluation.evaluate_features(store, f, name, "label", [inner]) for name, f in layers.items()]
by_layer = intervals.summary(pd.concat(tables))
fig, ax = plt.subplots(figsize=(8, 4))
plots.results(by_layer, ax, title=f"linear probe, part by part, {by_layer['n_clips']} test clips")
plt.show()
rows = intervals.differences(by_layer).set_index(["a", "b"])
middle = f"probe, block {(len(sizes) + 1) // 2}"
ends = [("probe, block 1", middle), (middle, "probe, h"), ("probe, h", "probe, g(h)")]
plots.table(rows.loc[[p if p in rows.index else p[::-1] for p in ends]].reset_index())

# %% [markdown]
# Read the figure from top to bottom. In our run the accuracy goes up, unevenly, and is lower again at the end of
# the network; g(h) comes after h. The table says which of these steps so few clips can show; in our run it was none. So
# this is a guess: the end of the network is made for the pair task, and g more than h. It would explain why COLA drops g.
# Elsewhere in the course a probe reads all blocks together. The table above *Where in the network?* compares them with h.
#
# The score of a read-out does not come from pre-training alone. The score of *random* weights comes from the architecture and from
# the mel columns, which every read-out has. Only what pre-training adds *to that* was learned.
#
# ## 3 Everything side by side
# One call, all on the same test clips:
# - `mel-stats`, no network: mean and standard deviation of each log-mel band, then the linear probe;
# - `random`, the read-out of the calibrated encoder with random weights, then the linear probe;
# - `probe` and `kNN` on the read-out of the frozen pre-trained encoder. kNN fits nothing: the five nearest clips with a
#   label vote, and a nearer clip has more weight;
# - `scratch` and `fine-tuned`, the classifiers of notebook 4.
#
# Each model that depends on chance is repeated over seeds. Runs that are in `runs/supervised` already are loaded.

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
# Look at the order. The frozen probe is ahead of fine-tuning in our runs: it reads all blocks, and half a minute is short
# for moving all weights. Without **bf16** (arithmetic with 16 bits, which newer CPUs have) `scratch` hardly reaches the
# mel statistics, which need no network. With bf16 it made about twice as many steps in that time, and had 48.6%. So
# fine-tuned − scratch is a lead at the start,
# and says little about the end: notebook 6 trains both for longer.
#
# And a caveat. The pre-training was not repeated. `probe` and `kNN` are one seed, and the seeds of `fine-tuned` repeat the
# classifier on one and the same encoder. What another pre-training would have given is in no interval here.
#
# ## 4 One encoder, several tasks
# *General-purpose* means: one encoder, many questions. The same read-outs answer three: the kind of music, the family of
# the leading instrument, and the **metre**: how the beats of the music are grouped, in twos (duple), in threes (triple), or
# with three quick notes in each beat (compound). A clip without a value in a column takes no part in that task.
#
# `default` is the encoder of notebook 1, which promised to ask it about tunes that it has never heard. Here it is asked.

# %%
widgets.guess(
    "5-task",
    "Our pre-trained encoder against the same network with random weights: on which question does pre-training gain least?",
    {
        "the kind of music": "There it gained most in our runs: random weights hear little of what makes a kind.",
        "the instrument family": "Random weights and the mel columns already tell most of the timbre, and pre-training adds "
        "hardly anything that a probe of it can use.",
        "the metre": "It gains less than the kind of music, of which metre is partly a copy, but more than the instruments.",
    },
    "the instrument family",
)

# %%
tasks = {"label": "kind of music", "family": "instrument family", "metre": "metre"}
mel = evaluation.feature_source("mel-stats").of_store(store)  # [n, 2 · 64]
default = evaluation.feature_source("default").of_store(store, keep)
tunes = {clip.removeprefix("scores/audio/").rsplit("-", 1)[0] for clip in open_run("default").seen_clip_ids}
heard = tunes & {*store.clips["group"].iloc[division.test]}
print(f"{len(heard)} of the tunes of the test split were among what `default` listened to")
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
    ax.texts[-1].set_text(" largest class")
    ax.set_xlim(0, 100)
has_metre = store.clips[store.clips["metre"] != ""]
commonest = has_metre.groupby("label")["metre"].agg(lambda m: m.value_counts().max()).sum()
print(f"metre, if you know the kind of music and name its commonest: {100 * commonest / len(has_metre):.0f}%")
rows = pd.concat([intervals.differences(r).assign(task=tasks[t]) for t, r in by_task.items()])
rows = rows[rows["a"].isin(["probe", "default"])]
plots.table(rows[["task", "a", "b", "a - b (points)", "95% interval", "reading"]])

# %% [markdown]
# Pre-training teaches what the two crops of a pair have in common, and other clips have not. Two crops of one clip share
# their instruments and their room, and, less surely, their metre. (They share their level as well, but the encoder never
# sees it: each segment loses its own mean.) Does the table fit that thought? Compare *probe*
# with *random*, one row per task. In our runs it does not fit well: the gain is large for the kind of music, small or not
# shown for metre, and not shown for instruments. (`default`, which was trained for longer, gains in all three.) Random weights already tell most
# of the instruments. And metre partly follows from the kind of music: the printed line says how far that alone would lead.
#
# The dashed line is what one answer for all clips would score. *random* is one seed here, where section 3 has several.
#
# ## 5 The same on your own sound
# No function above knows about music. Name a folder: one sub-folder per class, or an `index.csv` (columns `path`, `label`
# and, if recordings belong together, `group`). Speech, birds, engines: the frozen encoder is probed in three lines.

# %%
MY_FOLDER = None  # e.g. "recordings": the path of a folder

# %%
from colalib.data import corpora
from colalib.data import store as stores
from colalib.data.splits import split_form

if MY_FOLDER is None:
    print('set MY_FOLDER = "…" above, or in a shell:')
    print("  python -m colalib prepare FOLDER --out my.store")
    print(f"  python -m colalib probe my.store --encoder {encoder.parent.name}/{encoder.name}")
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
# If all test clips are one group (one speaker, say), the intervals hold for that one only: other speakers were not
# drawn.
#
# If the pre-trained encoder is not ahead there, that is a finding, not a fault: it was trained for minutes, on
# rendered music. Pre-train on your own unlabelled recordings (`python -m colalib pretrain`), and ask again.
#
# ## 6 Keep the predictions
# A table of accuracies cannot be paired afterwards. So keep every model's answer to every test clip: `predictions.csv`,
# beside `results.json`.

# %%
intervals.save(results, course.runs() / "results.json", predictions)
for task in ("family", "metre"):
    intervals.save(by_task[task], course.runs() / f"{task}.json", answers[task])
n_models = predictions["model"].nunique()
print(f"results.json and predictions.csv: {len(predictions)} answers of {n_models} models")
plots.table(predictions.groupby("model").head(1))

# %% [markdown]
# From that table everything above can be drawn again, and more can be learned. Which clips does a model get wrong,
# and what do they sound like? Press a cell of the matrix. Would you have known? Does the next model make the same
# mistakes? The tasks of section 4 are there too.

# %% tags=["widget"]
files = [course.runs() / f"{name}predictions.csv" for name in ("", "family-", "metre-")]
widgets.results_explorer(corpus, files)

# %% [markdown]
# ## Recap
# You can now
# - judge an encoder frozen (linear probe, nearest neighbours) and fine-tuned, beside baselines that are no straw men:
#   mel statistics, and random weights that are calibrated and standardised;
# - say what a probe reads, and what is read from h, from the blocks and from g(h);
# - judge the same encoder on other tasks and on a folder of your own;
# - keep what a later question needs: the answer to every test clip.
#
# **Next**, [notebook 6](06_what_a_result_shows.ipynb): which of these differences are real?

# %% [markdown]
# ## Exercises
# ### 5.1 A fair number for unequal classes · easy · 5 minutes
# If classes differ in size, a model that always says the largest looks good. Balanced accuracy is the mean over
# classes of the share that is right in each.


# %%
def balanced_accuracy(label: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean over the classes in `label` of the share of their clips that is predicted correctly."""
    raise NotImplementedError


# %%
def check_accuracy(answer):
    label, lazy = np.array(["a"] * 9 + ["b"]), np.array(["a"] * 10)
    assert np.isclose(answer(label, lazy), 0.5), "always saying the larger of two classes is worth one half"
    assert np.isclose(answer(label, label), 1), "all right is worth 1"
    three, most = np.array([*"aaaabbc"]), np.array([*"aaaaaac"])
    assert np.isclose(answer(three, most), 2 / 3), (
        "three classes, of which one is never found, are worth 2 / 3"
    )
    never = np.array(["c"] * 9 + ["b"])
    assert np.isclose(answer(label, never), 0.5), "only classes that occur in `label` count"


_ = course.exercise(balanced_accuracy, check_accuracy)

# %% [markdown]
# <details><summary>Hint</summary><code>(label == predicted)</code> grouped by <code>label</code>: a mean of means.</details>
# <details><summary>Solution</summary>
#
# ```python
# def balanced_accuracy(label, predicted):
#     return float(pd.Series(label == predicted).groupby(np.asarray(label)).mean().mean())
# ```
# </details>
