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
# # 4 Fine-tuning: the same classifier, two beginnings
#
# You train one classifier twice, from random weights and from the encoder of notebook 3. You watch both learn, and
# hear the clips on which they disagree.
#
# **Run time** about 4 minutes on 2 cores in the quick profile, the first time; later runs load what is there.
# **Your time** about ¾ hour, or 1½ with all exercises.
#
# You will be able to
# - say what a fine-tuned classifier is made of, and compute its answer for a clip;
# - tell which clips lend their labels to a training, and which clips no training may touch;
# - read the learning curves of two trainings that differ in nothing but where they begin;
# - draw a label-efficiency curve, and say in honest words what one seed of it shows;
# - say what equal minutes do and do not prove;
# - explain why the test split is looked at once.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from torch import Tensor, nn

from colalib import course, evaluation, training, widgets
from colalib.data import audio, segments
from colalib.data.clips import Clips
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
# classifier that merely remembers melodies gains nothing on the other sides.
#
# There are three sides. `train` lends its labels. `valid` is for looking and choosing, and this notebook judges on it.
# `test` stays closed until notebook 5. Section 4 shows why.

# %%
division = evaluation_splits(store.clips)[0]
sides = {"train": division.train, "valid": division.valid, "test": division.test}
tunes = {name: set(store.clips["group"].values[rows]) for name, rows in sides.items()}
assert not tunes["train"] & tunes["test"] and not (tunes["train"] | tunes["test"]) & tunes["valid"]
on_valid = replace(division, test=division.valid)  # colalib judges on the side called test

counts = {name: store.clips["label"].iloc[rows].value_counts() for name, rows in sides.items()}
display(pd.DataFrame(counts).rename_axis("label").sort_index().T)
print({name: f"{len(rows)} clips of {len(tunes[name])} tunes" for name, rows in sides.items()})


# %% [markdown]
# Three training clips, five seconds each. Which kind of music is each? Could *you* do this task? The answers are below.


# %%
def listen(row: int, seconds: float = 5):
    """The first seconds of clip number `row` of the store."""
    wave = audio.load_audio(corpus.root / store.clips["path"][row])
    return plots.player(wave[: int(seconds * store.mel.sample_rate)])


heard = np.random.default_rng(1).choice(division.train, 3, replace=False)
for row in heard:
    display(listen(row))

# %%
for row in heard:
    print(f"{store.clips['label'][row]} (leading instrument: {store.clips['family'][row]})")

# %% [markdown]
# Pre-training has seen the clips of `train` and `valid`, always without labels, and never a test clip. Each run
# records what it saw, so this can be checked rather than believed. (A twentieth of these clips served only to choose its
# weights, see notebook 3. It saw them, and took no step on them.)

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
# ## 2 The classifier
# After pre-training, COLA ([arXiv 2010.10915](https://arxiv.org/abs/2010.10915)) drops the projection g that the
# contrastive loss was computed on, and puts one linear layer, the **head**, on the embedding *h*. It gives one number per
# class, the **logits**; a softmax turns them into probabilities. During fine-tuning every weight moves, the encoder's
# too. We add dropout between encoder and head.


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
# gets its logits, and the clip's logits are their **mean**. Many clips are cut at once. They differ in length, so the
# segments lie in one long row, and `owner` says which clip each belongs to.

# %%
batch, owner = next(segments.clip_batches(Clips([store], [division.valid[:4]])))
with torch.no_grad():
    by_segment = ours(batch)  # [S, classes]
print(f"4 clips → segments {tuple(batch.shape)} → logits {tuple(by_segment.shape)}")
print("owners:", owner.tolist())

# %% [markdown]
# ### Your turn: clip_means · easy · 10 minutes · core
# Turn the logits of segments into the logits of clips: for each clip, the mean over its own segments. Clips have
# different numbers of segments, and these need not stand side by side.


# %%
def clip_means(logits: Tensor, owner: Tensor) -> Tensor:
    """Logits of segments [S, classes] and the clip of each, owner [S] in 0 … n - 1 → logits of clips [n, classes]."""
    raise NotImplementedError


# %%
def in_a_loop(logits: Tensor, owner: Tensor) -> Tensor:
    """What is used until yours passes."""
    return torch.stack([logits[owner == i].mean(dim=0) for i in range(int(owner.max()) + 1)])


# %%
def check_clip_means(answer):
    logits = torch.tensor([[4.0, 0.0], [0.0, 2.0], [6.0, 0.0], [2.0, 0.0]])
    means = answer(logits, torch.tensor([0, 1, 0, 0]))
    assert means.shape == (2, 2), f"one row per clip: [2, 2], not {[*means.shape]}"
    assert not torch.allclose(means[0], torch.tensor([12.0, 0.0])), (
        "that is the sum: a long clip would count more"
    )
    assert not torch.allclose(means[0], torch.tensor([3.0, 0.0])), (
        "divide by the clip's own number of segments"
    )
    assert torch.allclose(means[0], torch.tensor([4.0, 0.0])), "segments 0, 2 and 3 belong to clip 0: mean 4"
    assert torch.allclose(means[1], torch.tensor([0.0, 2.0])), (
        "clip 1 has one segment: its mean is that segment"
    )
    x = logits.clone().requires_grad_()
    assert answer(x, torch.tensor([0, 1, 0, 0])).requires_grad, (
        "gradients must pass through: stay with tensors"
    )


# %%
clip_means = course.exercise(clip_means, check_clip_means, instead=in_a_loop)

# %% [markdown]
# <details><summary>Hint 1</summary><code>torch.zeros(n, classes).index_add(0, owner, logits)</code> adds each row of
# logits to the row of its clip.</details>
# <details><summary>Hint 2</summary><code>torch.bincount(owner)</code> counts the segments of each clip.</details>
# <details><summary>Solution</summary>
#
# ```python
# def clip_means(logits, owner):
#     counts = torch.bincount(owner)  # [n]
#     total = logits.new_zeros(len(counts), logits.shape[1]).index_add(0, owner, logits)
#     return total / counts[:, None]
# ```
# </details>
#
# With the same weights, colalib's classifier must give the same logits.

# %%
theirs = training.AudioClassifier(course.supervised(), pretrained_encoder, classes).eval()
theirs.head.load_state_dict(ours.head.state_dict())
with torch.no_grad():
    assert torch.allclose(clip_means(by_segment, owner), theirs.clip_logits(batch, owner), atol=1e-4)
print(f"clip logits {tuple(clip_means(by_segment, owner).shape)}: as colalib's classifier")

# %% [markdown]
# And this is one step of its training: a random crop of each of 64 labelled clips, cross-entropy, gradients, one move
# of every weight.

# %%
widgets.guess(
    "4-first",
    "The encoder is pre-trained, the linear layer on top is new. What is the first loss, before any step?",
    {
        "near 0": "The encoder has never met a label, and the layer's weights are random.",
        "about ln 8 = 2.1": "The new layer's answers are small and random: close to guessing among eight classes.",
        "about half of ln 8": "A good h is not enough: the layer that turns it into classes has learned nothing yet.",
    },
    "about ln 8 = 2.1",
)

# %%
train, target = Clips([store], [division.train]), np.array([classes.index(c) for c in labels[division.train]])
x, y = segments.labelled_batch(train, target, step=0, batch_size=64, seed=0)  # [64, 98, 64], [64]
optimiser = torch.optim.AdamW(ours.train().parameters(), lr=1e-3)
loss = nn.functional.cross_entropy(ours(x), y)
loss.backward()
optimiser.step()
print(f"loss {loss.item():.2f} (guessing: {np.log(len(classes)):.2f})")

# %% [markdown]
# ## 3 Train it twice
# *Scratch* begins with random weights, *fine-tuned* with the pre-trained ones. All else is the same:
# - the labelled clips, their order, and the random crops;
# - the optimiser: AdamW, whose learning rate rises for the first steps, then falls along a cosine to zero;
# - the minutes of this training. Those of pre-training are *not* counted;
# - which weights are kept: those with the best accuracy on `valid`.
#
# Each run also writes down its answers for the test clips. We leave them closed here.
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
_ = evaluation.supervised(store, encoder, folder, config, seeds=1)

# %%
metrics = {m: run.metrics() for m, run in runs.items()}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharex=True)
plots.curves(metrics, "train/loss", axes[0], title="training: random crops")
axes[0].set_ylabel("cross-entropy (nats)")
plots.curves(metrics, "valid/accuracy", axes[1], title="validation: whole clips", clips=len(division.valid))
for ax, chance in zip(axes, (np.log(len(classes)), 1 / len(classes))):
    ax.axhline(chance, color=plots.MODELS["chance"], ls="--", lw=1, label="guessing")
    ax.get_legend().remove()  # one for both, below
axes[1].set(ylabel="accuracy, 95% band", ylim=(0, 1))
for m, frame in metrics.items():
    best = frame.loc[frame["valid/accuracy"].idxmax()]
    axes[1].plot(best["step"], best["valid/accuracy"], "o", color=plots.MODELS[m])
    print(f"{m}: {frame['step'].max():.0f} steps, kept the weights of step {best['step']:.0f} (dot)")
_ = fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %% [markdown]
# How to read it. The dashed lines are what guessing gives: a loss of ln 8 and an accuracy of one in eight. On the left, both
# begin at guessing; how much faster the fine-tuned curve falls is what pre-training brought along. On the right, the
# band shows how
# uncertain the accuracy is with so few validation clips. It treats clips as independent. Takes of one tune are not, so the
# true band is wider. Where the bands overlap widely, do not read an order into the lines. If the training loss goes on
# falling while validation stands still, the classifier has begun to learn its training clips by heart. Half a minute is
# hardly long enough to see that; the panel below gives it more.
#
# ### Were equal minutes a fair chance?
# Not by themselves. A network from scratch has further to go. Where it has hardly begun to learn, it is no fair opponent:
# the gap then says how fast each *starts*, not how far each *gets*.

# %%
guess = np.log(len(classes))
for m, frame in metrics.items():
    end = frame["train/loss"].dropna().tail(3).mean()
    verdict = "has hardly begun to learn: too few minutes" if end > 0.9 * guess else "has learned something"
    print(f"{m}: training loss at the end {end:.2f}, guessing {guess:.2f}: {verdict}")
before = pretrained.metrics()["seconds"].max() / 60
print(
    f"each had {config.minutes:g} minutes; the pre-trained encoder had {before:.1f} minutes before, without labels"
)

# %% [markdown]
# Keep these lines in mind for every number below. Before anyone may say that pre-training *reaches* more, scratch has
# to be trained until it gains no more, and for the minutes of pre-training too. This notebook does neither. At a fixed
# budget the claim is smaller, and still useful: *with this many minutes of training on labels*.
#
# How large is the gain when both are trained for long? In the COLA paper, with all labels, networks from scratch reach
# 83.9% on average over nine tasks, and networks fine-tuned from COLA 85.1%: about **one point**. The paper's tasks and
# numbers of labels are not ours. Still, where the gap below is many points, suspect first that scratch had too little
# time. Section 6 lets you check.
#
# ### Look inside one prediction
# Both classifiers on a validation clip on which they disagree. Each row is a class, each column a segment; the right
# column is the mean that decides. Both share one colour scale: the paler a picture, the less sure its classifier.

# %%
models = {m: training.load_classifier(run.path)[0] for m, run in runs.items()}
answers = {m: training.predict(model, store, on_valid, m) for m, model in models.items()}
right = {m: (a["predicted"] == a["label"]).to_numpy() for m, a in answers.items()}
differ = (answers["scratch"]["predicted"] != answers["fine-tuned"]["predicted"]).to_numpy()
cases = {
    "only fine-tuned is right": right["fine-tuned"] & ~right["scratch"],
    "only scratch is right": right["scratch"] & ~right["fine-tuned"],
    "both are wrong, each in its way": differ & ~right["scratch"] & ~right["fine-tuned"],
}
print(f"they disagree on {differ.sum()} of {len(differ)} validation clips:", end=" ")
print(", ".join(f"{case}: {mask.sum()}" for case, mask in cases.items()))

# %%
# one clip of each case, the first of them looked at
picked = {case: np.random.default_rng(0).choice(np.flatnonzero(m)) for case, m in cases.items() if m.any()}
case, first = next(iter(picked.items()), ("they agree", 0))
row = division.valid[first]
x = torch.from_numpy(segments.split_segments(store.frames(row), segments.SEGMENT_FRAMES))  # [n, 98, 64]
tables = {}
for m, model in models.items():
    with torch.no_grad():
        logits = model(x)  # [n, classes]
    tables[m] = torch.cat([logits, clip_means(logits, torch.zeros(len(x), dtype=torch.long))]).T

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
largest = max(table.abs().max() for table in tables.values())
for ax, (m, table) in zip(axes, tables.items()):
    image = ax.imshow(table, aspect="auto", cmap="RdBu_r", vmin=-largest, vmax=largest)
    ax.axvline(len(x) - 0.5, color="black", lw=2)
    ax.set_xticks([*range(len(x)), len(x)], [*range(1, len(x) + 1), "mean"])
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="segment (0.98 s each)", title=f"{m} says: {classes[int(table[:, -1].argmax())]}")
fig.colorbar(image, ax=axes, label="logit")
print(f"{case}: the clip's label is {store.clips['label'][row]}")
display(listen(row))

# %% [markdown]
# The other cases, by ear. Where a classifier is wrong: would you have made the same mistake?

# %%
for case, i in [*picked.items()][1:]:
    said = " | ".join(f"{m}: {answer['predicted'].iloc[i]}" for m, answer in answers.items())
    print(f"{case}: label: {answers['scratch']['label'].iloc[i]} | {said}")
    display(listen(division.valid[i]))

# %% [markdown]
# ## 4 Why the test split is looked at once
# If you choose by a score, the chosen score is too good: the best of many is the best partly by luck. Here are
# classifiers that are **all equally good**, right on half of all clips. Somebody tries several, each on the same
# number of clips as our test split has, and reports the best.

# %%
widgets.guess(
    "4-best",
    "Twenty classifiers are right on half of all clips. Each is judged on 312 clips. What does the best one show?",
    {
        "50%": "That is the average of the twenty. The best of them has been lucky.",
        "about 52%": "One classifier alone already scatters by 2.8 points. The best of twenty has far more luck than that.",
        "about 55%": "Luck scatters by 2.8 points, and the best of twenty is nearly two of these above the middle.",
        "about 70%": "That would be seven times the scatter: no luck reaches so far.",
    },
    "about 55%",
)

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
ax.yaxis.set_major_locator(plt.MultipleLocator(5))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
print(
    f"{n_test} test clips: the best of 20 equals shows {100 * middle[4] - 50:+.1f} points that are not there"
)

# %% [markdown]
# The simulation lets all variants err on different clips. Variants of one method often err on the same clips. Then
# their luck is shared, and the best of them gains less than this. It still gains.
#
# So everything that is chosen (which weights to keep, later your learning rates and augmentations) is chosen on
# `valid`. The test clips are used at the end, once, for what had been settled before. That is notebook 5. Here we look
# at the validation tunes, and know what that costs. Both runs kept the weights that were best on these very clips, so
# both numbers are a little too good. And pre-training has heard these clips, though without labels. It has not heard
# the test clips.

# %%
results = intervals.summary(pd.concat(answers.values()))
fig, ax = plt.subplots(figsize=(7, 2))
plots.results(results, ax, title=f"{results['n_clips']} validation clips, all labels, one seed")
ax.set(xlabel="accuracy on validation clips (%)", xlim=(0, 100))
display(plots.table(intervals.differences(results)))
gap = intervals.differences(results)["a - b (points)"].iloc[0]  # fine-tuned - scratch
print(f"ours, {config.minutes:g} minutes each: {gap:+.1f} points; the paper, on its own tasks: +1.2 points")

# %% [markdown]
# The interval says what other *tunes* might have given (notebook 6 builds it by hand). It does not say what another
# *training* might have given: there was one seed of each. The last column of the table speaks of
# other tunes alone.
#
# ## 5 Label efficiency
# Pre-training promises most where labels are few. So the pair is trained again at every label budget of this profile.
# The minutes of training stay the same: with few labels the classifier simply meets the same clips more often.
#
# A third way is to leave the encoder as it is and fit one linear layer on its **read-out**: numbers from every block
# and from the mel bands, not h. This is the *linear probe* of notebook 5. It takes seconds, so we can afford more
# budgets. The same linear layer on mean and deviation of the mel bands shows how far one gets without an encoder.
# Validation labels choose one number only: how small the probe's weights are kept, or the step that fine-tuning keeps.

# %%
widgets.guess(
    "4-few",
    "Both are trained for the same short time. In our run, where was fine-tuned further ahead of scratch?",
    {
        "with few labels": "The usual promise. It supposes that scratch catches up when it has many labels, given time to learn.",
        "the same": "In our run the lead was two to three times as large at one end. (One seed: that it differs is not shown.)",
        "with many labels": "So it was in our run, of one seed. Perhaps scratch had too little time to use many labels.",
    },
    "with many labels",
)

# %%
statistics = evaluation.feature_source("mel-stats").of_store(store)  # [n, 128]
features = evaluation.feature_source(encoder).of_store(store, folder / "features")  # [n, d]


def frozen(k: int) -> pd.DataFrame:
    """Fit the linear layers with k labels per class; return their answers for the validation clips."""
    tables = []
    for name, x in (("mel-stats", statistics), ("probe", features)):
        tables.append(evaluation.evaluate_features(store, x, name, "label", [on_valid], labels_per_class=k))
    return pd.concat(tables)


# %%
per_class = int(pd.Series(labels[division.train]).value_counts().median())  # what "all" means here


def trained(k: int | None) -> pd.DataFrame:
    """Train the pair with k labels per class, or load it; return its answers for the validation clips."""
    ready = Run(folder / f"fine-tuned-label-{k or 'all'}-split-0").finished
    print(f"{k or per_class} labelled clips per class: {'loading' if ready else 'training'}")
    evaluation.supervised(store, encoder, folder, config, 1, labels_per_class=k)
    found = {m: training.load_classifier(folder / f"{m}-label-{k or 'all'}-split-0")[0] for m in runs}
    return pd.concat([training.predict(model, store, on_valid, m) for m, model in found.items()])


# %%
more = [k for k in (2, 5, 10, 20, 50) if k < per_class and k not in profile.labels_per_class]
budgets = {k: frozen(k) for k in more}
for k in profile.labels_per_class:
    # "all" is given as the number of training clips: with None the probe would be fitted on validation clips too
    budgets[k or per_class] = pd.concat([frozen(k or len(division.train)), trained(k)])
budgets = dict(sorted(budgets.items()))

# %%
curve = intervals.label_efficiency(budgets)
fig, ax = plt.subplots(figsize=(7, 3.6))
plots.label_efficiency(curve, ax, title="one seed; bars: other tunes, not other trainings")
ax.axhline(100 * results["chance"], color=plots.MODELS["chance"], ls="--", lw=1, label="chance")
ax.set(ylabel="accuracy on validation clips (%)", ylim=(0, None))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
pairs = pd.concat([intervals.differences(intervals.summary(p)).assign(labels=k) for k, p in budgets.items()])
pairs = pairs[pairs["a"].str.startswith("fine-tuned")]
display(plots.table(pairs[["labels", "a", "b", "a - b (points)", "95% interval", "reading"]]))

# %% [markdown]
# In our run the lead is larger with many labels, against the usual promise: in half a minute scratch gains little from
# them. It is one seed. Trained for longer, scratch comes nearer (notebook 6, section 5).
#
# Read the table's last column before the curve. "Fine-tuned is better" there means: *these two networks*, trained for
# so many minutes, on other tunes of this kind, would very likely keep their order. "No difference shown" is not "no
# difference": the validation side may be too small to show one. And a second seed draws other labelled clips, other random
# weights and another order; with few labels this alone can move a point by as much as the gap between the curves.
# Notebook 5 repeats the training over seeds, and asks the test clips. Where the frozen probe beats the fine-tuned
# network with all labels, the training was probably too short: fine-tuning moves all weights, and needs more time than one
# linear layer. The probe also reads more than h, so it is no pure comparison of frozen with fine-tuned.
#
# One more habit: a budget of *labels* says nothing of a budget of *clips* or of *minutes*. The pre-trained encoder has
# heard all training clips, the one from scratch only the labelled ones. That is the point of the method, because
# unlabelled sound is cheap. But say so.
#
# ## 6 Your own comparison
# The panel of notebook 3, for supervised training. Watch validation, not test: a choice that is made on the test split
# inflates its score. Try ten times the learning rate, or two labels per class, from each
# of the three beginnings. Let a pre-trained encoder learn more slowly than the new layer, or not at all: *its factor for
# the encoder*, where 0 is frozen. And give scratch a fair chance: all labels, and the minutes of pre-training and fine-tuning
# together. How much of the gap is left? Then more minutes, until validation gains no more.

# %% tags=["widget"]
starts = {"pre-trained": encoder, "default": "default", "scratch": None}
widgets.training_panel([store.path], folder, FinetuneConfig, starts=starts)

# %% [markdown]
# ## Recap
# You can now
# - say what a fine-tuned classifier is made of, and compute its answer for a clip: encoder → dropout → linear, the mean
#   of the logits of non-overlapping segments;
# - tell which clips lend their labels to a training, and which clips no training may touch: whole tunes on one side;
# - read the learning curves of two trainings that differ in nothing but where they begin;
# - draw a label-efficiency curve, and say in honest words what one seed of it shows;
# - say what equal minutes do and do not prove: trained for long, the paper's gain is about one point;
# - explain why the test split is looked at once: each choice that is made on it inflates it.
#
# **Next**, [notebook 5](05_evaluation.ipynb): what is the encoder worth? There the test clips are opened.

# %% [markdown]
# ## Exercises
# ### 4.1 Votes instead of means · easy · 5 minutes
# Let every segment vote for one class, instead of averaging logits. On a tie, the mean logit decides among the tied
# classes. Return a plain `int`.


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
    third = torch.tensor([[2.0, 0, 1.9], [0, 2.1, 1.9]])
    assert answer(third) == 1, "only the tied classes take part in the tie: class 2 has no vote"
    loud = torch.tensor([[2.0, 0, 0], [2, 0, 0], [0, 2.1, 0], [0, 2.1, 0], [0, 0, 50]])
    assert answer(loud) == 1, (
        "only the tied classes take part in the tie: class 2 has one vote, they have two"
    )
    assert isinstance(answer(clear), int), "it should return a plain int"


_ = course.exercise(majority_vote, check_votes)

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
# The head is new, the encoder is not. A usual recipe lets the encoder learn more slowly, as *its factor for the
# encoder* does in the panel. Return the two parameter groups that an optimiser of torch takes.


# %%
def parameter_groups(module: nn.Module, lr: float, slower: float) -> list[dict]:
    """[{"params": …, "lr": …}, …]: `module.encoder` at lr * slower, all other parameters at lr."""
    raise NotImplementedError


# %%
def check_groups(answer):
    groups = [{**g, "params": list(g["params"])} for g in answer(ours, 1e-3, 0.1)]
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


_ = course.exercise(parameter_groups, check_groups)

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
# Five labels of one tune should teach less than five of five tunes. Draw a budget in which no two clips share a tune.


# %%
def few_tunes(
    labels: np.ndarray, groups: np.ndarray, train: np.ndarray, per_class: int, seed: int
) -> np.ndarray:
    """Row numbers of `per_class` clips per class out of `train`, each from another group; all drawn from `seed`."""
    raise NotImplementedError


# %%
def check_tunes(answer):
    groups = store.clips["group"].values
    chosen = np.asarray(answer(labels, groups, division.train, 3, 0))
    assert set(chosen) <= set(division.train), "it chose clips that are not on the training side"
    counts = pd.Series(labels[chosen]).value_counts().reindex(classes, fill_value=0)
    assert (counts == 3).all(), "some class does not have 3 clips"
    assert len(set(groups[chosen])) == len(chosen), "two of the clips are takes of one tune"
    again, other = (set(answer(labels, groups, division.train, 3, seed)) for seed in (0, 1))
    assert set(chosen) == again, "the same seed should give the same clips"
    assert set(chosen) != other, "another seed should give other clips"


_ = course.exercise(few_tunes, check_tunes)

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
