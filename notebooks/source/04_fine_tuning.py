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
# # 4 Fine-tuning: the same classifier, two beginnings
#
# You train one classifier twice, from random weights and from the encoder of notebook 3, watch both learn, and hear
# the clips on which they disagree.
#
# **Run time** about 3.5 minutes on 2 cores in the quick profile, the first time; later runs load what is there.
#
# You will be able to
# - say what a fine-tuned classifier is made of, and compute its answer for a clip by hand;
# - tell which clips lend their labels to a training, and which clips no training may touch;
# - read the learning curves of two trainings that differ in nothing but where they begin;
# - draw a label-efficiency curve, and say in honest words what one seed of it shows;
# - explain why the test split is looked at once.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from torch import Tensor, nn
from torch.nn import functional as F

from colalib import course, evaluation, training, widgets
from colalib.data import audio, segments
from colalib.data.clips import Clips
from colalib.data.segments import SEGMENT_FRAMES
from colalib.data.splits import evaluation_splits, subsample_labels
from colalib.evaluation import intervals, plots
from colalib.settings import FinetuneConfig
from colalib.training.runs import Run, open_run

plots.style()
profile = course.profile()
corpus, store, encoder = course.corpus(), course.store(), course.encoder()

# %% [markdown]
# ## 1 The task, and who may see what
# The corpus asks one question of a clip: which of eight kinds of music is it? Its *groups* are tunes. A tune was
# played several times, by other instruments in another key, and all its takes lie on one side of the split: a
# classifier that merely remembers melodies gains nothing on the test side.

# %%
division = evaluation_splits(store.clips)[0]
sides = {"train": division.train, "valid": division.valid, "test": division.test}
tunes = {name: set(store.clips["group"].values[rows]) for name, rows in sides.items()}
assert not tunes["train"] & tunes["test"] and not tunes["valid"] & tunes["test"]

counts = {name: store.clips["label"].iloc[rows].value_counts() for name, rows in sides.items()}
display(pd.DataFrame(counts).rename_axis("label").sort_index().T)
print({name: f"{len(rows)} clips of {len(tunes[name])} tunes" for name, rows in sides.items()})


# %% [markdown]
# Three training clips, five seconds each. Before you read their labels: could *you* do this task?


# %%
def listen(row: int, seconds: float = 5):
    """The first seconds of clip number `row` of the store."""
    wave = audio.load_audio(corpus.root / store.clips["path"][row])
    return plots.player(wave[: int(seconds * store.mel.sample_rate)])


for row in np.random.default_rng(1).choice(division.train, 3, replace=False):
    print(f"{store.clips['label'][row]} (leading instrument: {store.clips['family'][row]})")
    display(listen(row))

# %% [markdown]
# Pre-training has seen the clips of `train` and `valid`, always without labels, and never a test clip. Each run
# records what it saw, so this can be checked rather than believed.

# %%
pretrained = open_run(encoder)
for name, rows in sides.items():
    seen = sum(clip in pretrained.seen_clip_ids for clip in store.ids[rows])
    print(f"{name}: {seen} of {len(rows)} clips in pre-training")

# %% [markdown]
# **Labels are what is scarce.** To ask what a label is worth, we let only a few training clips per class keep their
# labels. Supervised training then does not use the other training clips at all. The choice is drawn from the seed.
# It is *nested*: the clips of a small budget are part of every larger one, so a larger budget only adds clips.

# %%
labels = store.clips["label"].values
few = subsample_labels(labels, division.train, per_class=2, seed=0)
more = subsample_labels(labels, division.train, per_class=5, seed=0)
other = subsample_labels(labels, division.train, per_class=2, seed=1)

assert set(few) <= set(more) and set(more) <= set(division.train)
print(f"2 per class: {len(few)} labelled clips; another seed shares {len(set(few) & set(other))} of them")

# %% [markdown]
# ## 2 The classifier, by hand
# Downstream, COLA ([arXiv 2010.10915](https://arxiv.org/abs/2010.10915)) drops the projection head that the
# contrastive loss was computed on, and puts one linear layer on the encoder's output *h*. During fine-tuning every
# weight moves, the encoder's too. We add dropout between the two.


# %%
class Classifier(nn.Module):
    """Log-mel segments [B, 98, 64] → logits [B, classes]."""

    def __init__(self, encoder: nn.Module, classes: int, dropout: float = 0.1):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)  # [B, dim]
        return self.head(self.dropout(h))  # [B, classes]


classes = sorted(set(labels))
pretrained_encoder = pretrained.load_encoder()
torch.manual_seed(0)
ours = Classifier(pretrained_encoder, len(classes)).eval()
print({name: sum(p.numel() for p in part.parameters()) for name, part in ours.named_children()}, "weights")

# %% [markdown]
# An encoder hears 0.98 s; a clip lasts 8 to 10 s. So the clip is cut into segments that do not overlap, each segment
# gets its logits, and the clip's logits are their **mean**.

# %%
frames = store.frames(division.valid[0])  # [T, 64]
n = len(frames) // SEGMENT_FRAMES
cut = frames[: n * SEGMENT_FRAMES].reshape(n, SEGMENT_FRAMES, -1)  # what is left over at the end is not used
x = torch.from_numpy(cut.astype(np.float32))  # [n, 98, 64]
with torch.no_grad():
    by_segment = ours(x)  # [n, classes]
by_hand = by_segment.mean(dim=0)  # [classes]
print(f"clip {tuple(frames.shape)} → segments {tuple(x.shape)}", end=" → ")
print(f"logits {tuple(by_segment.shape)} → {tuple(by_hand.shape)}")

# %% [markdown]
# `colalib` does the same for many clips of different lengths at once. `clip_index` says which clip each segment
# belongs to. With the same weights the two must agree.

# %%
theirs = training.AudioClassifier(course.supervised(), pretrained_encoder, classes).eval()
theirs.head.load_state_dict(ours.head.state_dict())

batch, clip_index = next(segments.clip_batches(Clips([store], [division.valid[:4]])))
with torch.no_grad():
    logits = theirs.clip_logits(batch, clip_index)  # [4, classes]
assert torch.allclose(logits[0], by_hand, atol=1e-4)
print(f"{len(batch)} segments, clip index {clip_index.tolist()[:12]}…", end=" → ")
print(f"clip logits {tuple(logits.shape)}: agrees with ours")

# %% [markdown]
# And this is one step of its training: a random crop of each of 64 labelled clips, cross-entropy, gradients, one move
# of every weight. A head that knows nothing yet should begin near ln 8, the loss of guessing among eight.

# %%
train, target = Clips([store], [division.train]), np.array([classes.index(c) for c in labels[division.train]])
x, y = segments.labelled_batch(train, target, step=0, batch_size=64, seed=0)  # [64, 98, 64], [64]
optimiser = torch.optim.AdamW(ours.train().parameters(), lr=1e-3)
loss = F.cross_entropy(ours(x), y)
loss.backward()
optimiser.step()
print(f"loss {loss.item():.2f} (guessing: {np.log(len(classes)):.2f}); norm of the gradient:", end=" ")
for name, part in (("encoder", ours.encoder), ("head", ours.head)):
    norm = sum(p.grad.norm() ** 2 for p in part.parameters()) ** 0.5
    print(f"{name} {norm:.2g}", end=" ")

# %% [markdown]
# ## 3 Train it twice
# *Scratch* begins with random weights, *fine-tuned* with the pre-trained ones. All else is the same: the labelled
# clips and their order, the random crops, the optimiser (AdamW, warm-up, then a cosine to zero), the minutes, and the
# rule for which weights to keep: those with the best accuracy on `valid`. Note what is *not* counted: the minutes of
# pre-training.
#
# `training.finetune` does one such run; `evaluation.supervised` calls it for every start and seed, keeps the runs in
# `runs/supervised`, and finds them there again, in notebook 5 too. In a shell: `python -m colalib finetune`.

# %%
folder, config = course.supervised_folder(encoder), course.supervised()
runs = {m: Run(folder / f"{m}-label-all-split-0") for m in ("scratch", "fine-tuned")}
if all(run.finished for run in runs.values()):
    print("both runs are there: loading")
else:
    print(f"training two classifiers, {60 * config.minutes:.0f} seconds each")
predictions = evaluation.supervised(store, encoder, folder, config, seeds=1)

# %%
metrics = {m: run.metrics() for m, run in runs.items()}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4))
plots.curves(metrics, "train/loss", axes[0], title="training: random crops")
axes[0].set_ylabel("cross-entropy (nats)")
plots.curves(metrics, "valid/accuracy", axes[1], title="validation: whole clips", clips=len(division.valid))
axes[0].axhline(np.log(len(classes)), color=plots.MODELS["chance"], ls="--", lw=1)
axes[1].axhline(1 / len(classes), color=plots.MODELS["chance"], ls="--", lw=1)
axes[1].set_ylabel("accuracy, 95% band")
for m, frame in metrics.items():
    best = frame.loc[frame["valid/accuracy"].idxmax()]
    axes[1].plot(best["step"], best["valid/accuracy"], "o", color=plots.MODELS[m])
    print(f"{m}: {frame['step'].max():.0f} steps, kept the weights of step {best['step']:.0f} (dot)")

# %% [markdown]
# How to read it. The dashed lines are what guessing gives: a loss of ln 8 and an accuracy of one in eight. On the
# left, the distance between the curves in the first steps is what pre-training brought along. On the right, the band
# is what the few validation clips alone leave open: where the bands overlap widely, do not read an order into the
# lines. And where the training loss goes on falling while validation stands still, the classifier has begun to learn
# its training clips by heart; half a minute is hardly long enough to see that, but the panel below is.
#
# ### Were equal minutes a fair chance?
# Not by themselves. A network from scratch has further to go, and where it has hardly begun to learn, its score is a
# straw man: the gap then says how fast each *starts*, not how far each *gets*.

# %%
guess = np.log(len(classes))
for m, frame in metrics.items():
    end = frame["train/loss"].dropna().tail(3).mean()
    verdict = "has hardly begun to learn: too few minutes" if end > 0.9 * guess else "has learned something"
    print(f"{m}: training loss at the end {end:.2f}, guessing {guess:.2f}: {verdict}")
full = course.PROFILES["full"].finetune_minutes
print(f"each had {60 * config.minutes:.0f} s; the profile full gives each {60 * full:.0f} s")

# %% [markdown]
# Keep that line in mind for every number below. Before anyone may say that pre-training *reaches* more, scratch has
# to be trained until it gains no more. At a fixed budget the claim is smaller, and still useful: *with this many
# minutes*.
#
# ### Look inside one prediction
# Both classifiers on a validation clip on which they disagree (we leave the test clips alone). Each row is a class,
# each column a segment; the right column is the mean that decides.

# %%
models = {m: training.load_classifier(run.path)[0] for m, run in runs.items()}
on_valid = replace(division, test=division.valid)  # predict() answers for the side called test
answers = {m: training.predict(model, store, on_valid, m) for m, model in models.items()}
differ = np.flatnonzero(answers["scratch"]["predicted"] != answers["fine-tuned"]["predicted"])
differ = np.random.default_rng(0).permutation(differ)
print(f"they disagree on {len(differ)} of {len(division.valid)} validation clips")

row = division.valid[differ[0] if len(differ) else 0]
x = torch.from_numpy(segments.split_segments(store.frames(row), SEGMENT_FRAMES))  # [n, 98, 64]
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
for ax, (m, model) in zip(axes, models.items()):
    with torch.no_grad():
        logits = model(x)  # [n, classes]
    table = torch.cat([logits, logits.mean(dim=0, keepdim=True)]).T
    image = ax.imshow(table, aspect="auto", cmap="viridis")
    ax.axvline(len(x) - 0.5, color="white", lw=4)
    ax.set_xticks([*range(len(x)), len(x)], [*range(1, len(x) + 1), "mean"])
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="segment (0.98 s each)", title=f"{m} says: {classes[int(logits.mean(dim=0).argmax())]}")
    fig.colorbar(image, ax=ax, label="logit")
print("the clip's label is", store.clips["label"][row])
display(listen(row))

# %% [markdown]
# Two more of these, by ear. Does the one that errs err like a person would?

# %%
for i in differ[1:3]:
    said = {m: answers[m]["predicted"].iloc[i] for m in answers}
    print("label:", answers["scratch"]["label"].iloc[i], "|", " | ".join(f"{m}: {said[m]}" for m in said))
    display(listen(division.valid[i]))

# %% [markdown]
# ## 4 Why the test split is looked at once
# Whatever is chosen by a score makes that score too good: the best of many is the best partly by luck. Here are
# classifiers that are **all equally good**, right on half of all clips. Somebody tries several, each on the same
# number of clips as our test split has, and reports the best.

# %%
rng = np.random.default_rng(0)
looks = np.array([1, 2, 5, 10, 20, 50, 100])
n_test = len(division.test)
best = [rng.binomial(n_test, 0.5, size=(2000, k)).max(axis=1) / n_test for k in looks]
low, middle, high = np.array([np.quantile(b, [0.025, 0.5, 0.975]) for b in best]).T

fig, ax = plt.subplots(figsize=(7, 3.2))
ax.fill_between(looks, 100 * low, 100 * high, alpha=0.2, lw=0, label="95% of tries")
ax.plot(looks, 100 * middle, "o-", label="median")
ax.axhline(50, color="black", lw=1, ls="--", label="the truth")
ax.set(xscale="log", xlabel="variants judged on the same test clips", ylabel="best accuracy (%)")
ax.set_xticks(looks, looks)
ax.set_xticks([], minor=True)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
print(
    f"{n_test} test clips: the best of 20 equals shows {100 * middle[4] - 50:+.1f} points that are not there"
)

# %% [markdown]
# So everything that is chosen (which weights to keep, later your learning rates and augmentations) is chosen on
# `valid`. The test clips are used at the end, once, for what had been settled before. This is that moment for our
# first pair.

# %%
results = intervals.summary(predictions)
fig, ax = plt.subplots(figsize=(7, 2))
plots.results(results, ax, title=f"{results['n_clips']} test clips, all labels, one seed")
display(plots.table(intervals.differences(results)))

# %% [markdown]
# The interval says what other test *tunes* might have given (notebook 5 builds it by hand). It does not say what
# another *training* might have given: there was one seed of each. That is all the last column can vouch for.
#
# ## 5 Label efficiency
# Pre-training promises most where labels are few. So the pair is trained again at every label budget of this profile.
# The trained minutes stay the same: with few labels the classifier simply meets the same clips more often. A third way
# is to leave the encoder as it is and fit one linear layer on its embeddings: the *linear probe* of notebook 5, which
# takes seconds. Mean and deviation of the mel bands under the same linear layer show what no encoder at all is worth.

# %%
statistics = evaluation.feature_source("mel-stats").of_store(store)  # [n, 128]
features = evaluation.feature_source(encoder).of_store(store, folder / "features")  # [n, d]
per_class = int(pd.Series(labels[division.train]).value_counts().median())  # what "all" means here
budgets = {}
for k in profile.labels_per_class:
    ready = Run(folder / f"fine-tuned-label-{k or 'all'}-split-0").finished
    print(f"{k or per_class} labelled clips per class: {'loading' if ready else 'training'}")
    trained = evaluation.supervised(store, encoder, folder, config, 1, labels_per_class=k)
    frozen = [
        evaluation.evaluate_features(store, x, name, "label", [division], labels_per_class=k)
        for name, x in (("mel-stats", statistics), ("probe", features))
    ]
    budgets[k or per_class] = pd.concat([*frozen, trained])

# %%
curve = intervals.label_efficiency(budgets)
fig, ax = plt.subplots(figsize=(7, 3.6))
plots.label_efficiency(curve, ax, title="one seed; bars: other test tunes, not other trainings")
ax.axhline(100 * results["chance"], color=plots.MODELS["chance"], ls="--", lw=1)
ax.annotate(
    "chance", (per_class, 100 * results["chance"]), xytext=(0, 4), textcoords="offset points", ha="right"
)
pairs = pd.concat([intervals.differences(intervals.summary(p)).assign(labels=k) for k, p in budgets.items()])
pairs = pairs[pairs["a"].str.startswith("fine-tuned")]
display(plots.table(pairs[["labels", "a", "b", "a - b (points)", "95% interval", "reading"]]))

# %% [markdown]
# Read the table's last column before the curve. "Fine-tuned is better" there means: *these two networks*, trained for
# so many minutes, on other tunes of this kind, would very likely keep their order. "No difference shown" is not "no
# difference": the test may be too small to show one. And a second seed draws other labelled clips, other random
# weights and another order; with few labels this alone can move a point by as much as the gap between the curves.
# Notebook 5 repeats the training over seeds and asks again. Where the frozen probe beats the fine-tuned network, minutes
# were short or labels few: every weight moved is one more to get right.
#
# One more habit: a budget of *labels* says nothing of a budget of *clips*. The pre-trained encoder has heard all
# training clips, the scratch one only the labelled ones. That is no trick, it is the point of the method: unlabelled
# sound is cheap. But say so.
#
# ## 6 Your own comparison
# The panel of notebook 3, for supervised training. Watch validation, not test: what you try here is chosen, and
# whatever chooses on the test split inflates it. Try ten times the learning rate, or two labels per class, from each
# of the three beginnings.

# %% tags=["widget"]
starts = {"pre-trained": encoder, "default": "default", "scratch": None}
widgets.training_panel([store.path], folder, FinetuneConfig, starts=starts)

# %% [markdown]
# ## Recap
# You can now
# - say what a fine-tuned classifier is made of, and compute its answer for a clip by hand: encoder → dropout →
#   linear, the mean of the logits of non-overlapping segments;
# - tell which clips lend their labels to a training, and which clips no training may touch: whole tunes on one side;
# - read the learning curves of two trainings that differ in nothing but where they begin;
# - draw a label-efficiency curve, and say in honest words what one seed of it shows;
# - explain why the test split is looked at once: whatever chooses on it, inflates it.
#
# **Next**, notebook 5: is the difference real?

# %% [markdown]
# ## Exercises
# ### 4.1 Votes instead of means · easy · 5 minutes
# Let every segment vote for one class, instead of averaging logits. On a tie, the mean logit decides among the tied
# classes.


# %%
def majority_vote(logits: Tensor) -> int:
    """Segment logits [n, classes] → the class that most segments vote for."""
    raise NotImplementedError


# %%
def check_votes(answer):
    clear = torch.tensor([[2.0, 1, 0], [2, 1, 0], [0, 50, 0]])
    assert answer(clear) == 0, "two of three segments vote for class 0, however loudly the third one shouts"
    tied = torch.tensor([[2.0, 1, 0], [0, 3, 0]])
    assert answer(tied) == 1, (
        "one vote each for classes 0 and 1: the higher mean logit decides, which is class 1's"
    )
    assert isinstance(answer(clear), int), "it should return a plain int"


course.check_exercise(check_votes, majority_vote)

# %% [markdown]
# <details><summary>Hint 1</summary><code>logits.argmax(dim=1)</code> gives the votes, <code>torch.bincount</code> counts
# them.</details>
# <details><summary>Hint 2</summary>Add to the counts something that is always smaller than one vote, and larger for a
# larger mean logit: a softmax of the mean logits.</details>
# <details><summary>Solution</summary>
#
# ```python
# def majority_vote(logits):
#     votes = torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
#     return int((votes + 0.5 * logits.mean(dim=0).softmax(dim=0)).argmax())
# ```
# </details>
#
# ### 4.2 A learning rate of its own for each part · medium · 10 minutes
# The head is new, the encoder is not. A usual recipe lets the encoder learn more slowly. Return the two parameter
# groups that an optimiser of torch takes.


# %%
def parameter_groups(module: nn.Module, lr: float, slower: float) -> list[dict]:
    """[{"params": …, "lr": …}, …]: `module.encoder` at lr * slower, all other parameters at lr."""
    raise NotImplementedError


# %%
def check_groups(answer):
    groups = answer(ours, 1e-3, 0.1)
    assert len(groups) == 2, "there should be two groups"
    found = [id(p) for g in groups for p in g["params"]]
    assert len(found) == len(set(found)), "a parameter stands in both groups: it would be updated twice"
    known = {id(p) for p in ours.parameters()}
    assert set(found) == known, "some parameter stands in no group: it would never learn"
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert np.isclose(rate[id(ours.head.weight)], 1e-3), "the head should learn at lr"
    assert all(np.isclose(rate[id(p)], 1e-4) for p in ours.encoder.parameters()), (
        "the encoder should learn at lr * slower"
    )
    torch.optim.AdamW([dict(g) for g in answer(ours, 1e-3, 0.1)])


course.check_exercise(check_groups, parameter_groups)

# %% [markdown]
# <details><summary>Hint 1</summary><code>module.named_parameters()</code> gives names such as
# <code>encoder.net._conv_stem.weight</code> and <code>head.bias</code>.</details>
# <details><summary>Hint 2</summary>Part them by <code>name.startswith("encoder.")</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def parameter_groups(module, lr, slower):
#     named = list(module.named_parameters())
#     old = [p for name, p in named if name.startswith("encoder.")]
#     new = [p for name, p in named if not name.startswith("encoder.")]
#     return [{"params": old, "lr": lr * slower}, {"params": new, "lr": lr}]
# ```
# </details>
#
# ### 4.3 Labels from many tunes · medium · 15 minutes
# Five labels of one tune teach less than five of five tunes. Draw a budget in which no two clips share a tune.


# %%
def few_tunes(
    labels: np.ndarray, groups: np.ndarray, train: np.ndarray, per_class: int, seed: int
) -> np.ndarray:
    """Numbers of `per_class` clips per class out of `train`, each from another group; all drawn from `seed`."""
    raise NotImplementedError


# %%
def check_tunes(answer):
    groups = store.clips["group"].values
    chosen = np.asarray(answer(labels, groups, division.train, 3, 0))
    assert set(chosen) <= set(division.train), "it chose clips that are not on the training side"
    assert (pd.Series(labels[chosen]).value_counts() == 3).all(), "some class does not have 3 clips"
    assert len(set(groups[chosen])) == len(chosen), "two of the clips are takes of one tune"
    again, other = (set(answer(labels, groups, division.train, 3, seed)) for seed in (0, 1))
    assert set(chosen) == again, "the same seed should give the same clips"
    assert set(chosen) != other, "another seed should give other clips"


course.check_exercise(check_tunes, few_tunes)

# %% [markdown]
# <details><summary>Hint 1</summary>Shuffle <code>train</code> by <code>np.random.default_rng(seed).permutation</code>; then
# keep the first clip of each tune.</details>
# <details><summary>Hint 2</summary><code>pd.DataFrame(…).drop_duplicates("group").groupby("label").head(per_class)</code>
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def few_tunes(labels, groups, train, per_class, seed):
#     mixed = np.random.default_rng(seed).permutation(train)
#     table = pd.DataFrame({"row": mixed, "label": labels[mixed], "group": groups[mixed]})
#     return table.drop_duplicates("group").groupby("label").head(per_class)["row"].values
# ```
# </details>
