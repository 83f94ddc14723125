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
# # 2 Pairs: a task that needs no label
#
# You cut pairs out of recordings, see and hear what belongs together and what doesn't, and measure how far one gets
# at finding the partner without any learning at all.
#
# **Run time** about half a minute on 2 cores.
#
# You will be able to
# - say what anchor, positive and distractor are, and why no label is needed to make them;
# - cut random segments reproducibly, also from a clip that is too short;
# - hear and see what filtering, masking and multiplying do to a segment;
# - tell what makes a pair easy or hard: its distance in time, its level, its distractors, their number;
# - read a batch as a matrix, B anchors by B positives, and compute the rank of each positive.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from colalib import cola, course, evaluation, widgets
from colalib.data import audio, segments
from colalib.data.clips import pretraining_clips
from colalib.data.segments import SEGMENT_FRAMES
from colalib.encoder import Encoder
from colalib.evaluation import plots
from colalib.training.runs import open_run

plots.style()
profile = course.profile()
corpus, store = course.corpus(), course.store()

# %% [markdown]
# ## 1 Anchor, positive, distractor
# Cut a second out of a recording: the **anchor**. Cut another second out of the same recording: its **positive**. A
# second from any other recording is a **distractor**. The task is to say which of many seconds is the positive.
# Nobody has to label anything: the recording itself says what belongs together.
#
# Why should this teach anything? Two seconds of one piece rarely have a sample in common. What they do share is what
# stays the same for a while: instruments, key, tempo, texture, room. Whoever finds the positive has noticed some of
# that.
#
# `segments.random_crop` cuts a segment of 98 frames, 0.98 s. Written out it is two lines:


# %%
def crop_by_hand(clip: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A random segment of `clip` [T, M] → [98, M], and the frame at which it starts."""
    # every place is equally likely, the last one included
    start = int(rng.integers(len(clip) - SEGMENT_FRAMES + 1))
    return clip[start : start + SEGMENT_FRAMES].astype(np.float32), start


clip = store.frames(0)
by_hand, start = crop_by_hand(clip, np.random.default_rng(1))
assert np.array_equal(by_hand, segments.random_crop(clip, np.random.default_rng(1)))
print(f"clip {clip.shape} → segment {by_hand.shape} from {store.mel.seconds(start):.2f} s")
print("by hand equals colalib")

# %% [markdown]
# The generator is passed in. The same generator gives the same crop, so that a training can be repeated and an
# interrupted one continued. In colalib its key is (seed, step).
#
# Now a pair, and a distractor from a clip of another class. Both crops of the pair are drawn independently, so they
# may also overlap.


# %%
def crop_sound(row: int, start: int) -> np.ndarray:
    """The samples under frames start … start + 98 of clip number `row`, [15,680]."""
    wave = audio.load_audio(corpus.root / store.clips["path"][row])
    return wave[start * store.mel.hop : (start + SEGMENT_FRAMES) * store.mel.hop]


rng = np.random.default_rng(5)
row = store.clips.query("label == 'hornpipe'").index[0]
other = store.clips.query("label == 'quartet'").index[0]
anchor, positive = (crop_by_hand(store.frames(row), rng)[1] for _ in range(2))
distractor = crop_by_hand(store.frames(other), rng)[1]
starts = {"anchor": anchor, "positive": positive}
_ = plots.crops(store.frames(row), starts, SEGMENT_FRAMES, title="one clip, two crops")

# %%
for role, i, at in (("anchor", row, anchor), ("positive", row, positive), ("distractor", other, distractor)):
    label, family = store.clips["label"][i], store.clips["family"][i]
    print(f"{role}: {label}, {family}, from {store.mel.seconds(at):.2f} s")
    display(plots.player(crop_sound(i, at)))

# %% [markdown]
# Would you have known? What told you: the instrument, the room, the harmony, the rhythm? The encoder will use
# whatever works, and not only what we would like it to use. Keep that in mind; it comes back below.
#
# **Clips shorter than a segment** are laid at a random place among frames of silence, ln(floor). A spoken digit is
# such a clip. The demo corpus has none, so we take 40 frames of one and treat them as a clip.

# %%
short = store.frames(row)[anchor : anchor + 40]
seeds = (14, 6, 1, 15)
placed = [(f"seed {seed}", segments.random_crop(short, np.random.default_rng(seed))) for seed in seeds]
_ = plots.panels(placed, height=2.4)

# %% [markdown]
# ## 2 Many pairs at once: a batch
# `segments.pair_batch` draws B different clips and two crops of each: anchors `[B, 98, 64]` and positives `[B, 98,
# 64]`. Row i of both is a pair; every other row is a distractor, for free. With B = 64 each anchor has 63 of them.
# `segments.pair_starts` says which clips these are, and where their crops begin.

# %%
clips = pretraining_clips([store])  # every clip but those of the test split
anchors, positives = segments.pair_batch(clips, step=0, batch_size=8, seed=0)
print(
    f"{len(clips)} clips; anchors {tuple(anchors.shape)}, positives {tuple(positives.shape)}, {anchors.dtype}"
)
chosen, starts = segments.pair_starts(clips, step=0, batch_size=8, seed=0)  # clips [8], first frames [2, 8]
row_of = {clip_id: number for number, clip_id in enumerate(store.ids)}
rows = [row_of[clips.ids[i]] for i in chosen]  # of these clips in the store
_ = plots.pairs(anchors, positives, list(store.clips["label"][rows]))

# %% [markdown]
# Cover the lower row and try to assign it. Some pairs a child could match by brightness alone. With some you'd have
# to look for the texture. Listen to eight anchors in a row, then to their positives in another order.

# %%
# these starts belong to the crops above
assert np.array_equal(anchors[0], clips.frames(chosen[0])[starts[0, 0] :][:SEGMENT_FRAMES])
order = np.random.default_rng(3).permutation(8)
gap = np.zeros(5_000, np.float32)
sounds = [[crop_sound(row, at) for row, at in zip(rows, side)] for side in starts]
for name, side, places in (("anchors 0 … 7", sounds[0], range(8)), ("positives, shuffled", sounds[1], order)):
    print(f"{name}:")
    display(plots.player(np.concatenate([part for i in places for part in (side[i], gap)])))
print("The order was kept as `order`: print it when you have guessed.")

# %% [markdown]
# ## 3 Making pairs harder: augmentation
# A cheap trick spoils the task if it works on every pair: say, that both crops are equally loud. **Augmentation**
# changes a segment in ways that shouldn't matter, so that what matters has to be used. colalib has four that work on
# log-mel segments.
#
# `random_filter` colours a segment as another room, microphone or loudspeaker would: each band gets a gain, and the
# gains form a smooth random curve (FilterAugment, [arXiv 2110.03282](https://arxiv.org/abs/2110.03282)). On a
# logarithm a gain is a number added. By hand: a sum of four cosines over the bands.


# %%
def filter_by_hand(segment: np.ndarray, rng: np.random.Generator, spread: float = 3.5) -> np.ndarray:
    """Colour a segment [T, M] by a random smooth frequency response with gains of `spread` dB rms → [T, M]."""
    strengths = rng.normal(scale=spread / np.sqrt(2), size=4)  # a cosine has rms 1/√2, four of them √2
    place = (np.arange(64) + 0.5) / 64  # of a band, from 0 to 1
    response = sum(s * np.cos(np.pi * k * place) for k, s in enumerate(strengths, start=1))  # [M] dB
    return segment + np.log(10) / 20 * response  # dB → natural logarithm


segment = store.frames(row)[anchor : anchor + SEGMENT_FRAMES].astype(np.float32)
filtered = segments.random_filter(segment, np.random.default_rng(1))
assert np.allclose(filtered, filter_by_hand(segment, np.random.default_rng(1)), atol=1e-4)

fig, ax = plt.subplots(figsize=(8, 2.6))
for seed in range(8):
    response = (segments.random_filter(segment, np.random.default_rng(seed)) - segment)[0] * 20 / np.log(10)
    ax.plot(response, color=plots.PALETTE[0] if seed == 1 else "#BBBBBB", lw=2 if seed == 1 else 1)
ax.axhline(0, color="black", lw=0.6)
ax.set(xlabel="mel band", ylabel="gain (dB)")
_ = ax.set_title("eight random filters; the blue one colours the segment below")

# %% [markdown]
# `random_mask` blanks runs of frames to the segment's mean, in the manner of SpecAugment ([arXiv
# 1904.08779](https://arxiv.org/abs/1904.08779)): what belongs together must show although parts are missing. By hand
# it is a chain: a frame is blanked by itself now and then, and a blanked one likes to draw the next one with it.


# %%
def mask_by_hand(
    segment: np.ndarray, rng: np.random.Generator, start: float = 0.1, stay: float = 0.2
) -> np.ndarray:
    """Blank random runs of frames [T, M] → [T, M]."""
    chance, masked, blank = rng.random((2, len(segment))), segment.copy(), False
    for t in range(len(segment)):
        blank = chance[0, t] < start or (blank and chance[1, t] < stay)
        if blank:
            masked[t] = segment.mean()
    return masked


masked = segments.random_mask(segment, np.random.default_rng(0))
assert np.allclose(masked, mask_by_hand(segment, np.random.default_rng(0)), atol=1e-4)
draws = [segments.random_mask(segment, np.random.default_rng(seed)) for seed in range(300)]
share = np.mean([draw[:, 0] == segment.mean() for draw in draws])
print(
    f"blanked on average: {share:.1%} of the frames; with 0.1 and 0.2 one expects {0.1 / (1 - 0.9 * 0.2):.1%}"
)

# %% [markdown]
# `random_band_mask` does the same across: it blanks one run of up to 24 neighbouring bands, so that no single register
# can carry the answer alone.
#
# `random_multiply` multiplies all log-mel values by one factor between 0.9 and 1.1. A factor on a logarithm is a
# power of the magnitude: quiet and loud move apart, or together. The level moves too, but the encoder takes away
# each segment's mean, so what it notices is contrast. To make it plain, here with 1.3. The course's own training
# filters and blanks bands, and leaves the other two off (`filter_db`, `mask_bands`, `mask` and `multiply` of
# `PretrainConfig`); section 4 shows what the filter is for.

# %%
strong = segment * np.float32(1.3)
banded = segments.random_band_mask(segment, np.random.default_rng(2))
factor = segments.random_multiply(segment, np.random.default_rng(0))[0, 0] / segment[0, 0]
print(f"one draw of random_multiply: a factor of {factor:.3f}")
changed = {"as it is": segment, "filtered": filtered, "bands masked": banded}
changed |= {"frames masked": masked, "× 1.3": strong}
centred = [(name, s - s.mean()) for name, s in changed.items()]
_ = plots.panels(centred, title="each without its own mean, as the encoder gets it")

# %%
for name, s in changed.items():
    print(f"{name} (from its log-mel, at the old level):")
    display(plots.player(audio.resynthesise(s - s.mean() + segment.mean())))

# %% [markdown]
# ## 4 How hard is the task? Try it without learning
# Before training anything, see how far the simplest idea gets. Describe a segment by its mean spectrum: 64 numbers,
# all timing gone. Then pick, for each anchor, the positive whose spectrum is nearest. It is right how often?


# %%
def mean_mel(segment: torch.Tensor, level: bool = True) -> torch.Tensor:
    """Segments [B, T, M] → mean over time [B, M]; without `level` each loses its own mean, so loudness doesn't show."""
    feature = segment.mean(dim=1)
    return feature if level else feature - feature.mean(dim=1, keepdim=True)


def nearness(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Minus the Euclidean distance of every row of a [A, d] to every row of b [B, d] → [A, B]."""
    return -torch.cdist(a, b)


size = min(32, len(clips))
anchors, positives = segments.pair_batch(clips, step=0, batch_size=size, seed=0)
similarity = nearness(mean_mel(anchors, level=False), mean_mel(positives, level=False))  # [B, B]
found = similarity.argmax(dim=1) == torch.arange(size)
print(f"similarity {tuple(similarity.shape)}")
print(f"the positive is nearest for {found.sum()} of {size} anchors (chance: 1)")

# %% [markdown]
# This matrix is the batch as a task. Entry (i, j) says how near anchor i is to positive j. On the diagonal are the
# pairs. A row is one question with B possible answers; it is answered well if its largest entry is on the diagonal.
# The **rank** of the positive says more than right or wrong: 1 is best, B is worst, (B + 1)/2 is what guessing
# gives.

# %%
# how many distractors are nearer, plus one
rank = 1 + (similarity > similarity.diagonal()[:, None]).sum(dim=1)
assert torch.equal(rank, cola.ranks(similarity))

fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
plots.similarity_matrix(similarity, ax=axes[0], title="nearness of mean spectra")
axes[1].hist(rank, bins=np.arange(0.5, size + 1.5), color=plots.PALETTE[0], lw=0)
axes[1].axvline((size + 1) / 2, color=plots.MODELS["chance"], ls="--", label="mean rank of a guess")
axes[1].axvline(rank.float().mean(), color=plots.PALETTE[3], label="mean rank here")
axes[1].set(
    xlabel="rank of the positive (1 is best)", ylabel="anchors", title="rank by hand equals colalib's"
)
_ = axes[1].legend()

# %% [markdown]
# ### The number of distractors
# Finding one among two is easy, one among a hundred is not. We ask the same question for growing B, with the level,
# without it, and without it after both sides have been filtered, each by a filter of its own. Bands are 95% intervals.


# %%
def hits(a: torch.Tensor, b: torch.Tensor, size: int) -> float:
    """Per cent of anchors whose positive is nearest, over batches of `size` drawn from the pairs (a[i], b[i]).

    60 batches, or more if it takes more for each pair to be drawn four times.
    """
    rng = np.random.default_rng(size)
    rounds = max(60, 4 * len(a) // size)
    drawn = [torch.from_numpy(rng.permutation(len(a))[:size]) for _ in range(rounds)]
    return 100 * torch.cat([cola.ranks(nearness(a[d], b[d])) == 1 for d in drawn]).float().mean().item()


def draw(ax: plt.Axes, x: list, per_cent: list, anchors: int, colour: str, name: str) -> None:
    """A line with its 95% interval for a share measured on so many different anchors (normal approximation)."""
    share = np.array(per_cent)
    half = 1.96 * np.sqrt(share * (100 - share) / anchors)
    ax.plot(x, share, "o-", color=colour, label=name)
    ax.fill_between(x, share - half, share + half, color=colour, alpha=0.2, lw=0)


many = min(len(clips), 512)
sizes = [b for b in (2, 4, 8, 16, 32, 64, 128, 256, 512) if b <= many]
fig, ax = plt.subplots(figsize=(8, 3.4))
for level, filter_db, name, colour in (
    (True, 0, "mean spectrum", 3),
    (False, 0, "mean spectrum without level", 0),
    (False, 3.5, "without level, filtered", 2),
):
    a, p = segments.pair_batch(clips, step=0, batch_size=many, seed=1, filter_db=filter_db)
    scores = [hits(mean_mel(a, level), mean_mel(p, level), b) for b in sizes]
    draw(ax, sizes, scores, many, plots.PALETTE[colour], name)
    print(f"{name}: " + ", ".join(f"B = {b}: {score:.0f}%" for b, score in zip(sizes, scores)))
ax.plot(sizes, 100 / np.array(sizes), "--", color=plots.MODELS["chance"], label="chance, 1/B")
ax.set(xscale="log", xlabel="batch size B", ylabel="positive found (%)", ylim=(0, 102))
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
_ = ax.legend(ncol=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))

# %% [markdown]
# Three lessons. With few distractors the task is too easy to teach much: this is why batch size matters in contrastive
# learning. And the level is a **shortcut**: where the curve with it lies above the other, that much was won by
# comparing loudness, a fact about the recording and not about the music. This is why colalib's encoder never sees a
# segment's mean. The mean spectrum, the colour of instrument and room, is the next shortcut, and a far better one. A
# filter for each side spoils it without touching a single note. It has a price: what the encoder needn't notice to
# find the pair, it may forget, and sometimes colour *is* the question. Notebook 5 asks for the instruments.
#
# ### The distance in time
# Crops that overlap share actual sound. How far apart must they be for the task to become one of likeness?


# %%
def pairs_at(distance: int, numbers: np.ndarray, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Anchors and positives [n, 98, 64] of clips `numbers`, the positive `distance` frames later."""
    rng = np.random.default_rng(seed)
    sides = ([], [])
    for i in numbers:
        frames = clips.frames(i)
        at = int(rng.integers(len(frames) - SEGMENT_FRAMES - distance + 1))
        for side, start in zip(sides, (at, at + distance)):
            side.append(torch.from_numpy(frames[start : start + SEGMENT_FRAMES].astype(np.float32)))
    return torch.stack(sides[0]), torch.stack(sides[1])


distances = (0, 10, 25, 49, 75, 98, 150, 200, 300, 400, 550)
chosen = np.random.default_rng(2).permutation(len(clips))[:many]
scores = []
for distance in distances:
    a, b = pairs_at(distance, chosen)
    scores.append(hits(mean_mel(a, False), mean_mel(b, False), min(64, many)))

# %%
seconds = [store.mel.seconds(d) for d in distances]
fig, ax = plt.subplots(figsize=(8, 3.2))
ax.axvspan(0, store.mel.seconds(SEGMENT_FRAMES), color="#DDDDDD", lw=0, label="crops overlap")
draw(ax, seconds, scores, many, plots.PALETTE[0], "mean spectrum without level")
ax.axhline(100 / min(64, many), ls="--", color=plots.MODELS["chance"], label="chance")
ax.set(xlabel="distance between the crops' starts (s)", ylim=(0, 102))
ax.set_ylabel(f"found among {min(64, many)} (%)")
_ = ax.legend()

# %% [markdown]
# Listen to the two ends of this curve: a pair half a second apart, and one five seconds apart, of the same clip.

# %%
for distance in (50, 500):
    print(f"{store.mel.seconds(distance):.1f} s apart:")
    display(plots.player(np.concatenate([crop_sound(row, 100), gap, crop_sound(row, 100 + distance)])))

# %% [markdown]
# ### Who the distractors are
# One would expect a distractor of another class to lie farther off than one of the same class, and another
# performance of the *same tune* to lie nearest. Such a one is a distractor only by name, a **false negative**: the
# task punishes the encoder for finding alike what is alike. Here are the distances between mean spectra, by what two
# segments have in common.

# %%
anchors, positives = segments.pair_batch(clips, step=0, batch_size=many, seed=2)
chosen, _ = segments.pair_starts(clips, step=0, batch_size=many, seed=2)
table = store.clips.iloc[[row_of[clips.ids[i]] for i in chosen]]
distance = -nearness(mean_mel(anchors, False), mean_mel(positives, False)).numpy() / np.sqrt(64)  # per band
pair = np.eye(many, dtype=bool)
values = {column: table[column].to_numpy(object) for column in ("group", "label", "family")}
tune, kind, family = (v[:, None] == v[None] for v in values.values())  # each [many, many]
kinds = {
    "same clip: the positive": distance[pair],
    "same tune, another take": distance[tune & ~pair],
    "same class, another tune": distance[kind & ~tune],
    "same instrument family, another class": distance[family & ~kind],
    "another class and family": distance[~kind & ~family],
}

# %%
fig, ax = plt.subplots(figsize=(9, 3))
colours = [plots.ROLES["positive"], *(plots.PALETTE[i] for i in (1, 4, 5)), plots.ROLES["distractor"]]
for y, (values, colour) in enumerate(zip(kinds.values(), colours)):
    low, first, median, third, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    ax.plot([low, high], [-y, -y], color=colour, lw=2)
    ax.plot([first, third], [-y, -y], color=colour, lw=12, solid_capstyle="butt")
    ax.plot(median, -y, "o", color="white", mec=colour, ms=9)
ax.set_yticks(-np.arange(5), [f"{name} ({len(v):,})" for name, v in kinds.items()])
ax.set_ylim(-4.6, 0.6)
_ = ax.set(xlabel="distance of mean spectra per band (ln units): median, quartiles, 5 to 95%")

# %% [markdown]
# The positives lie to the left, yet the boxes overlap: a spectrum alone can't settle the matter. Now compare the
# four kinds of distractor with each other. Where their boxes lie on top of each other, the mean spectrum knows
# nothing of tune, class or instrument family. What it recognises is *this one recording*: these voices, this key and
# this room in just this mixture. That is the trap in the task: a recording can be recognised without a note being
# understood. A good encoder must do better than the mean over time. How common are false negatives?

# %%
for b in sorted({32, 64, many}):
    per_anchor = (b - 1) * (tune & ~pair).sum() / (many * (many - 1))
    print(f"B = {b}: {per_anchor:.2f} distractors of an anchor's own tune, on average")

# %% [markdown]
# We leave them in. Whoever has no labels doesn't know which they are, and among many distractors a few wrong ones do
# little harm.
#
# ## 5 Your turn
# This is the task, for ears: listen to the anchor and to four candidates, or ask for the quiz. In the quiz two
# encoders answer the same questions, with the similarity of their h: one with random weights, and the one that comes
# with the course. It was trained for 75 minutes on other tunes than these. Switch augmentations on, and the players
# sound like what a network hears: a re-synthesis from the altered frames.

# %% tags=["widget"]
torch.manual_seed(0)
random = evaluation.calibrate_batchnorm(Encoder("b0-small"), pretraining_clips([store]))
pretrained = open_run("default").load_encoder()
widgets.pair_player(corpus, store, {"random": random, "pre-trained": pretrained})

# %% [markdown]
# ## Recap
# You can now
# - say what anchor, positive and distractor are, and why no label is needed to make them: the recording is the label;
# - cut random segments reproducibly, by a generator that is passed in, also from a clip that is too short;
# - hear and see what filtering, masking and multiplying do to a segment: what survives is what the pair is recognised by;
# - tell what makes a pair easy or hard: its distance in time, its level, its distractors, their number; false negatives make
#   it unfair;
# - read a batch as a matrix, B anchors by B positives, pairs on the diagonal, and compute the rank of each positive.
#
# **Next**, [notebook 3](03_contrastive_pretraining.ipynb): a network learns to answer these rows.

# %% [markdown]
# ## Exercises
# Replace `raise NotImplementedError` and run the cell below it. The lesson doesn't depend on it.
#
# ### 2.1 Pairs that never overlap · easy · 10 minutes
# Draw the starts of two crops of a clip with `frames` frames, at least `apart` frames from start to start. Anchor
# and positive must each be able to come first.


# %%
def distant_starts(frames: int, length: int, apart: int, rng: np.random.Generator) -> tuple[int, int]:
    """Starts of two crops of `length` frames, at least `apart` frames apart, both in a clip of `frames` frames."""
    raise NotImplementedError


# %%
def check_distant(answer):
    rng = np.random.default_rng(0)
    drawn = np.array([answer(300, 98, 120, rng) for _ in range(3000)])
    assert drawn.shape == (3000, 2), "return two starts"
    assert drawn.min() >= 0 and drawn.max() <= 300 - 98, (
        "a crop sticks out of the clip: the last start is frames - length"
    )
    assert np.abs(drawn[:, 0] - drawn[:, 1]).min() >= 120, "two starts are nearer than `apart`"
    first = (drawn[:, 0] < drawn[:, 1]).mean()
    assert 0.4 < first < 0.6, f"the anchor comes first in {first:.0%} of the draws; it should in half of them"
    assert drawn.min() == 0 and drawn.max() == 202, "some places are never drawn: the clip's very ends"
    assert len(np.unique(np.abs(drawn[:, 0] - drawn[:, 1]))) > 40, (
        "the distance should vary, not only the place"
    )


course.check_exercise(check_distant, distant_starts)

# %% [markdown]
# <details><summary>Hint 1</summary>Draw again until it fits: that is simple, right, and fast enough unless the clip
# is barely long enough.</details>
# <details><summary>Hint 2</summary><code>rng.integers(n)</code> gives 0 … n − 1, and the last valid start is
# <code>frames - length</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def distant_starts(frames, length, apart, rng):
#     while True:
#         a, b = rng.integers(frames - length + 1, size=2)
#         if abs(a - b) >= apart:
#             return int(a), int(b)
# ```
# </details>
#
# ### 2.2 Mixing sounds in log-mel · medium · 10 minutes
# BYOL-A ([arXiv 2103.06695](https://arxiv.org/abs/2103.06695)) puts a little of another recording under each
# segment. Sounds add up as magnitudes, roughly, but our segments are logarithms. Mix them in the right domain.


# %%
def log_mix(segment: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Log-mel of (1 - share) of `segment` plus `share` of `other`, mixed as magnitudes, all [T, M]."""
    raise NotImplementedError


# %%
def check_mix(answer):
    a, b = np.full((4, 3), -2.0), np.full((4, 3), 1.0)
    assert np.allclose(answer(a, b, 0.0), a), "with a share of 0 the segment should stay as it is"
    assert np.allclose(answer(a, b, 1.0), b), "with a share of 1 only the other one should be left"
    swapped = answer(b, a, 0.7)
    assert np.allclose(answer(a, b, 0.3), swapped), "mixing 0.3 of b into a should equal 0.7 of a into b"
    half = answer(a, b, 0.5)[0, 0]
    assert half > -0.5, f"half of each gives {half:.2f}: the mean of the logarithms, not of the magnitudes"
    expected = np.log((np.exp(-2) + np.exp(1)) / 2)
    assert np.allclose(half, expected), "half and half: the logarithm of the mean magnitude"


course.check_exercise(check_mix, log_mix)

# %% [markdown]
# <details><summary>Hint 1</summary>Out of the logarithm, mix, back into it.</details>
# <details><summary>Solution</summary>
#
# ```python
# def log_mix(segment, other, share):
#     return np.log((1 - share) * np.exp(segment) + share * np.exp(other))
# ```
# </details>
#
# ### 2.3 How many false negatives? · hard · 15 minutes
# A corpus has tunes with so many takes each. For a batch of B different clips, how many distractors of the anchor's
# own tune does an anchor have on average? A formula, no simulation.


# %%
def false_negatives(takes: list[int], batch: int) -> float:
    """Expected number of same-tune distractors of an anchor; takes[k] is the number of clips of tune k."""
    raise NotImplementedError


# %%
def check_false_negatives(answer):
    assert answer([1] * 100, 32) == 0, "if every tune has one take, there are none"
    assert np.isclose(answer([5], 5), 4), "a batch of all five takes of one tune: four for each"
    rng = np.random.default_rng(0)
    for takes, batch in (([3] * 20, 16), ([1, 2, 3, 10, 4], 8)):
        tunes = np.repeat(np.arange(len(takes)), takes)
        drawn = [tunes[rng.permutation(len(tunes))[:batch]] for _ in range(3000)]
        counted = np.mean([(d == d[0]).sum() - 1 for d in drawn])
        told = answer(takes, batch)
        assert abs(told - counted) < 0.1 * counted + 0.02, (
            f"takes {takes}, B = {batch}: {told:.2f}, but counted {counted:.2f}"
        )


course.check_exercise(check_false_negatives, false_negatives)

# %% [markdown]
# <details><summary>Hint 1</summary>Each of the B − 1 distractors is, by itself, a clip drawn at random from all but
# the anchor.</details>
# <details><summary>Hint 2</summary>The anchor is more likely to be of a tune with many takes: with probability n / N
# of one with n. Then n − 1 of the N − 1 other clips are of its tune.</details>
# <details><summary>Solution</summary>
#
# ```python
# def false_negatives(takes, batch):
#     n = np.array(takes)
#     return (batch - 1) * (n * (n - 1)).sum() / (n.sum() * (n.sum() - 1))
# ```
# </details>
