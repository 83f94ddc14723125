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
# You cut pairs out of recordings, see and hear what belongs together and what doesn't, and measure how often the
# partner can be found without any learning.
#
# **Run time** under a minute on 2 cores.
#
# You will be able to
# - say what anchor, positive and distractor are, and why no label is needed to make them;
# - cut random segments reproducibly, also from a clip that is too short, and write the batch of pairs yourself;
# - hear and see what filtering, masking and multiplying do to a segment, and build a feature that no filter changes;
# - tell what makes a pair easy or hard: its distance in time, its level, its distractors, their number;
# - read a batch as a matrix, B anchors by B positives, and compute the rank of each positive.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from colalib import cola, course, evaluation, widgets
from colalib.data import audio, segments
from colalib.data.clips import Clips, pretraining_clips
from colalib.data.segments import SEGMENT_FRAMES
from colalib.data.streams import stream
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
# Why should this teach anything? Two seconds of one piece share what stays the same for a while: instruments, key,
# tempo, texture, room. If you find the positive, you have noticed some of that. (Or you have used a shortcut. This
# notebook looks for shortcuts, too.)
#
# A **segment** is a crop of 98 frames, 0.98 s. That is what one second gives if no window may stick out of it:
# 1 + (16,000 − 400) // 160. COLA's published code cuts it like that; its paper speaks of 960 ms. `segments.random_crop`
# cuts a segment. Written out it is two lines:


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
# The random generator is passed in. The same generator gives the same crop, so that a training can be repeated and
# an interrupted one continued.
#
# Now a pair, and a distractor from a clip of another **class** (the usual word for what notebook 1 called a kind). All
# clips of this notebook are training or validation clips.


# %%
def crop_sound(row: int, start: int) -> np.ndarray:
    """The samples under frames start … start + 98 of clip number `row`, [15,680]."""
    wave = audio.load_audio(corpus.root / store.clips["path"][row])
    return wave[start * store.mel.hop : (start + SEGMENT_FRAMES) * store.mel.hop]


rng = np.random.default_rng(5)
training = store.clips.query("split == 'train'")
row = training.query("label == 'hornpipe'").index[0]
other = training.query("label == 'quartet'").index[0]
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
# whatever works, and not only what we would like it to use.
#
# One such thing is plain: two crops of a clip are drawn independently, as in COLA. So they may overlap, and then they
# share actual sound.

# %%
widgets.guess(
    "2-overlap",
    "A clip lasts 8 to 10 seconds, a crop about one second. In how many of the pairs do the two crops overlap?",
    {
        "about 1%": "A crop that starts less than a second before or after the other one overlaps with it. "
        "That is a good part of 9 seconds.",
        "about a tenth": "One second in nine is a tenth, but the other crop may come before or after: it counts twice.",
        "about a quarter": "The other crop may start up to a second before or after: two of about eight "
        "seconds in which it can start. At the ends of a clip it is a little less.",
        "about half": "That would be so in clips of about four seconds.",
    },
    "about a quarter",
)

# %% [markdown]
# ### Your turn: overlap_probability · medium · 10 minutes · worth it
# Two crops of `length` frames are drawn from a clip of `frames` frames. Each start is equally likely, and the two are
# independent. How likely is it that the crops have at least one frame in common?


# %%
def overlap_probability(frames: int, length: int) -> float:
    """Probability that two random crops of `length` frames overlap, in a clip of `frames` ≥ `length` frames."""
    raise NotImplementedError


# %%
def overlap_by_counting(frames: int, length: int) -> float:
    starts = np.arange(frames - length + 1)
    return float((np.abs(starts[:, None] - starts) < length).mean())


# %%
def check_overlap(answer):
    assert answer(98, 98) == 1, "in a clip of 98 frames both crops are the whole clip: 1"
    one = answer(2, 1)
    assert one == 0.5, f"crops of 1 frame in 2 frames fall on the same one half of the time, not {one}"
    short = "crops of 98 frames in a clip of 150 always overlap: 1"
    assert np.isclose(answer(150, 98), 1), short
    for frames, length in ((300, 98), (900, 98), (500, 20)):
        told, counted = answer(frames, length), overlap_by_counting(frames, length)
        assert 0 <= told <= 1, f"{told} is not a probability"
        wrong = f"{frames} frames, crops of {length}: {told:.4f}; all pairs of starts, counted: {counted:.4f}"
        assert abs(told - counted) < 1e-4, wrong


overlap_probability = course.exercise(overlap_probability, check_overlap, instead=overlap_by_counting)
chances = [overlap_probability(frames, SEGMENT_FRAMES) for frames in training["frames"].unique()]
print(
    f"probability of an overlap: {min(chances):.0%} in the longest clip, {max(chances):.0%} in the shortest"
)

# %% [markdown]
# <details><summary>Hint 1</summary>There are n = frames − length + 1 starts, so n² equally likely pairs of starts. Two
# crops overlap if their starts differ by less than <code>length</code>.</details>
# <details><summary>Hint 2</summary>Counting is allowed: compare all starts with all starts, and take the
# mean.</details>
# <details><summary>Hint 3</summary>For a formula, count the pairs that do not overlap: the differences length, length +
# 1, …, n − 1 occur n − length, …, 1 times, in either order.</details>
# <details><summary>Solution</summary>
#
# ```python
# def overlap_probability(frames: int, length: int) -> float:
#     n = frames - length + 1
#     apart = max(n - length, 0)
#     return 1 - apart * (apart + 1) / n**2
# ```
# </details>
#
# So a fair share of the pairs can be recognised by sound that is in both crops. Section 4 measures what this shortcut
# is worth.
#
# **Clips shorter than a segment** are laid at a random place among frames of silence, ln(floor). A spoken digit is
# such a clip. The demo corpus has none, so we take 40 frames of one and treat them as a clip.

# %%
short = store.frames(row)[anchor : anchor + 40]
seeds = (14, 6, 4, 15)
placed = [(f"seed {seed}", segments.random_crop(short, np.random.default_rng(seed))) for seed in seeds]
_ = plots.panels(placed, height=2.4)

# %% [markdown]
# ## 2 Many pairs at once: a batch
# A batch is B different clips and two crops of each: anchors `[B, 98, 64]` and positives `[B, 98, 64]`. Row i of both
# is a pair; every other row is a distractor, for free. With B = 64 each anchor has 63 of them.
#
# `clips` numbers the clips that pre-training may see. What is random in batch number `step` depends on seed and step
# alone: `segments.shuffled` says which clips come, and `stream` gives the random generator. So batch 5,000 is the same in
# every run with this seed, and also in a run that was interrupted before it.

# %%
clips = pretraining_clips([store])  # every clip but those of the test split


def chosen_clips(
    clips: Clips, step: int, batch_size: int, seed: int
) -> tuple[np.ndarray, np.random.Generator]:
    """The numbers of the B different clips of batch `step`, and the generator that draws the starts in it."""
    return segments.shuffled(len(clips), batch_size, step, seed), stream("pairs", seed, step)


print(f"{len(clips)} clips; clip 0 has frames {clips.frames(0).shape}")
print(f"clips of batch 0, if B = 8: {chosen_clips(clips, step=0, batch_size=8, seed=0)[0]}")

# %% [markdown]
# ### Your turn: pair_batch_by_hand · medium · 15 minutes · core
# Make the batch, equal to colalib's to the last bit. `chosen_clips` gives you the clips and the generator, and
# `crop_by_hand` does the cutting. Draw the starts in this order: first those of all anchors, clip by clip, then those
# of all positives. (All clips of the demo corpus are long enough for `crop_by_hand`.)


# %%
def pair_batch_by_hand(
    clips: Clips, step: int, batch_size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch number `step`: (anchors, positives), float32 [B, 98, 64] each; row i of both is from one clip."""
    raise NotImplementedError


# %%
def check_pairs(answer):
    for step, size, seed in ((0, 8, 0), (3, 5, 7)):
        mine, right = answer(clips, step, size, seed), segments.pair_batch(clips, step, size, seed)
        assert isinstance(mine, tuple) and len(mine) == 2, "return two things: anchors and positives"
        for name, side in zip(("anchors", "positives"), mine):
            kind = f"{name}: {getattr(side, 'dtype', type(side).__name__)}, not a torch tensor of float32"
            assert isinstance(side, torch.Tensor) and side.dtype == torch.float32, kind
            assert side.shape == (size, 98, 64), f"{name}: shape {tuple(side.shape)}, not ({size}, 98, 64)"
        first = "the first anchor is another crop: is it cut from the first chosen clip, with its generator?"
        assert not torch.equal(*mine), "anchors and positives are the same crops: draw a start for each"
        assert torch.equal(mine[0][0], right[0][0]), first
        order = "the first anchor is right, another is not: draw the starts of all anchors first"
        assert torch.equal(mine[0], right[0]), order
        positives = "the anchors are right, the positives are not: the same clips, the same generator"
        assert torch.equal(mine[1], right[1]), positives


pair_batch_by_hand = course.exercise(pair_batch_by_hand, check_pairs, instead=segments.pair_batch)

# %% [markdown]
# <details><summary>Hint 1</summary><code>crop_by_hand(clips.frames(i), rng)</code> returns a segment and its start.
# Call it for each i of the chosen clips.</details>
# <details><summary>Hint 2</summary>Do the whole row of anchors first, then the same again for the positives. With the
# two crops of a clip drawn one after the other, the random numbers go to other crops.</details>
# <details><summary>Hint 3</summary><code>torch.from_numpy(np.stack(list_of_segments))</code> makes the
# tensor.</details>
# <details><summary>Solution</summary>
#
# ```python
# def pair_batch_by_hand(clips, step, batch_size, seed):
#     chosen, rng = chosen_clips(clips, step, batch_size, seed)
#     sides = [np.stack([crop_by_hand(clips.frames(i), rng)[0] for i in chosen]) for _ in range(2)]
#     return torch.from_numpy(sides[0]), torch.from_numpy(sides[1])
# ```
# </details>
#
# Look at a batch. `segments.pair_starts` tells which clips these are, and where their crops begin.

# %%
anchors, positives = pair_batch_by_hand(clips, step=0, batch_size=8, seed=0)
chosen, starts = segments.pair_starts(clips, step=0, batch_size=8, seed=0)  # clips [8], first frames [2, 8]
row_of = {clip_id: number for number, clip_id in enumerate(store.ids)}
rows = [row_of[clips.ids[i]] for i in chosen]  # of these clips in the store
_ = plots.pairs(anchors, positives, list(store.clips["label"][rows]))

# %% [markdown]
# Each column is a pair. Some you could match by brightness alone; for others you have to look at the texture. Listen
# to eight anchors in a row, then to their positives in another order.

# %%
order = np.random.default_rng(3).permutation(8)
gap = np.zeros(5_000, np.float32)
sounds = [[crop_sound(row, at) for row, at in zip(rows, side)] for side in starts]
for name, side, places in (("anchors 0 … 7", sounds[0], range(8)), ("positives, shuffled", sounds[1], order)):
    print(f"{name}:")
    display(plots.player(np.concatenate([part for i in places for part in (side[i], gap)])))
print("The order is in `order`: print it when you have guessed.")

# %% [markdown]
# ## 3 Making pairs harder: augmentation
# A cheap trick spoils the task if it works on every pair: for example, that both crops are equally loud. **Augmentation**
# changes a segment in ways that shouldn't matter, so that what matters has to be used.
#
# COLA itself does without: its pairs are two plain crops. (Its published code can add a little noise to one of them.)
# The four augmentations of this section are an addition of this course. Its own training uses two: the filter, with
# 3.5 dB, and the band mask, with up to 24 bands. Both strengths are the course's choice. Here we show what they do to
# a pair. Whether an encoder gains by them is for a training and a test to say.
#
# `random_filter` colours a segment as another room, microphone or loudspeaker would: each band gets a gain, and the
# gains form a smooth random curve (FilterAugment, [arXiv 2110.03282](https://arxiv.org/abs/2110.03282)). On a
# logarithm a gain is a number added. By hand: a sum of four cosines over the bands.


# %%
def filter_by_hand(segment: np.ndarray, rng: np.random.Generator, spread: float = 3.5) -> np.ndarray:
    """Colour a segment [T, M] by a random smooth curve of gains, of `spread` dB root mean square → [T, M]."""
    strengths = rng.normal(scale=spread / np.sqrt(2), size=4)  # four cosines together have an rms of √2
    place = (np.arange(64) + 0.5) / 64  # of a band, from 0 to 1
    response = sum(s * np.cos(np.pi * k * place) for k, s in enumerate(strengths, start=1))  # [M] dB
    return segment + np.log(10) / 20 * response  # dB → natural logarithm


segment = store.frames(row)[anchor : anchor + SEGMENT_FRAMES].astype(np.float32)
filtered = segments.random_filter(segment, np.random.default_rng(1))
assert np.allclose(filtered, filter_by_hand(segment, np.random.default_rng(1)), atol=1e-4)

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 2.8), width_ratios=[1.5, 1])
for seed in range(8):
    response = (segments.random_filter(segment, np.random.default_rng(seed)) - segment)[0] * 20 / np.log(10)
    axes[0].plot(response, color=plots.PALETTE[0] if seed == 1 else "#BBBBBB", lw=2 if seed == 1 else 1)
axes[0].axhline(0, color="black", lw=0.6)
axes[0].set(xlabel="mel band", ylabel="gain (dB)", title="eight random filters; the blue one is used below")
change = (filtered - segment) * 20 / np.log(10)  # [98, 64] dB
plots.spectrogram(change, ax=axes[1], title="filtered − as it is", cmap="RdBu_r", vmin=-8, vmax=8)
_ = fig.colorbar(axes[1].images[0], ax=axes[1], label="dB")

# %% [markdown]
# The filter moves whole rows up or down, and leaves what happens along a row as it is.
#
# `random_mask` blanks runs of frames to the segment's mean, in the manner of SpecAugment ([arXiv
# 1904.08779](https://arxiv.org/abs/1904.08779)): what belongs together must show although parts are missing. By hand
# it is a chain: a frame is blanked by itself now and then, and after a blanked one the next is blanked more often.


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
expected = 0.1 / (1 - 0.9 * 0.2)  # the share p for which p = 0.1 + 0.9 · 0.2 · p
print(f"blanked on average: {share:.1%} of the frames; with 0.1 and 0.2 one expects {expected:.1%}")

# %% [markdown]
# `random_band_mask` does the same across: it blanks one run of up to 24 neighbouring bands, so that no single
# range of pitch can carry the answer alone.
#
# `random_multiply` multiplies all log-mel values by one factor between 0.9 and 1.1. Since a · ln m = ln mᵃ, each
# magnitude is raised to that power: a factor above 1 makes quiet and loud differ more, below 1 less. The level changes
# too, but our encoder first subtracts each segment's mean, so it does not see loudness (section 4 says why). Here the
# factor is 1.3, so that you notice it.
#
# In `PretrainConfig`, which holds all settings of a pre-training, these are `filter_db`, `mask_bands`, `mask` and
# `multiply`. The course's training has the first two on and the other two off. Section 4 shows what the filter spoils.

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
# all timing gone. Then pick, for each anchor, the positive whose spectrum is nearest.

# %%
widgets.guess(
    "2-mean",
    "32 anchors, 32 positives, no learning: each anchor takes the positive with the nearest mean spectrum, "
    "loudness taken away. How many take the right one?",
    {
        "about 1, as by chance": "Two seconds of one recording have the same instruments in the same room. Their mean "
        "spectra are much alike.",
        "about 6": "It is better than that: the mean spectrum knows a recording quite well.",
        "half of them or more": "The colour of instruments and room stays the same all through a clip. And in "
        "nearly a quarter of the pairs the crops overlap.",
        "all": "A melody moves, and with it the mean spectrum of a second. Some distractor is nearer then.",
    },
    "half of them or more",
)


# %%
def mean_mel(segment: torch.Tensor, level: bool = True) -> torch.Tensor:
    """Segments [B, T, M] → mean over time [B, M]; without `level` each loses its own mean, so loudness doesn't show."""
    feature = segment.mean(dim=1)
    return feature if level else feature - feature.mean(dim=1, keepdim=True)


def nearness(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Minus the Euclidean distance of every row of a [A, d] to every row of b [B, d] → [A, B]."""
    return -torch.cdist(a, b)


size = min(32, len(clips))
anchors, positives = pair_batch_by_hand(clips, step=0, batch_size=size, seed=0)
similarity = nearness(mean_mel(anchors, level=False), mean_mel(positives, level=False))  # [B, B]
found = similarity.argmax(dim=1) == torch.arange(size)
print(f"similarity {tuple(similarity.shape)}")
print(f"the positive is nearest for {found.sum()} of {size} anchors (chance: 1)")

# %% [markdown]
# This matrix is the batch as a task. Entry (i, j) says how near anchor i is to positive j. On the diagonal are the
# pairs. A row is one question with B possible answers; it is answered well if its largest entry is on the diagonal.
# The **rank** of the positive says more than right or wrong: 1 is best, B is worst, (B + 1)/2 is what guessing
# gives.
#
# ### Your turn: rank_of_positive · easy · 5 minutes · core
# Write the rank of each anchor's positive: one plus the number of distractors in its row that are more similar.
# A distractor that is exactly as similar counts too. Computed similarities are hardly ever equal, but of silent crops
# they are, and who hears no difference has found nothing.


# %%
def rank_of_positive(similarity: torch.Tensor) -> torch.Tensor:
    """Similarity [B, B] of anchor i and positive j, pairs on the diagonal → rank of each positive, [B] integers."""
    raise NotImplementedError


# %%
def check_rank(answer):
    one = torch.tensor([[0.5, 0.9, 0.1], [0.2, 0.8, 0.3], [0.7, 0.6, 0.1]])
    ranks = answer(one)
    assert ranks.shape == (3,), f"shape {tuple(ranks.shape)}: one rank for each of the 3 anchors"
    assert not torch.is_floating_point(ranks), "a rank is a whole number"
    assert ranks.min() > 0, "the best rank is 1, not 0"
    columns = "[2, 2, 2] are the ranks within the columns: an anchor is a row"
    assert ranks.tolist() != cola.ranks(one.T).tolist(), columns
    assert ranks[1] == 1, "in row 1 no distractor is more similar than the positive: rank 1"
    assert ranks.tolist() == [2, 1, 3], f"{ranks.tolist()}, but the ranks in the rows are [2, 1, 3]"
    ties = answer(torch.ones(4, 4))
    assert (ties == 4).all(), "if all four are equally similar, the three distractors count: rank 4"
    random = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(answer(random), cola.ranks(random)), (
        "another rank than colalib's for random similarities"
    )


rank_of_positive = course.exercise(rank_of_positive, check_rank, instead=cola.ranks)

# %% [markdown]
# <details><summary>Hint 1</summary>The similarity of the pairs is <code>similarity.diagonal()</code>, [B]. Compare each
# row with its own entry of it.</details>
# <details><summary>Hint 2</summary><code>similarity.diagonal()[:, None]</code> is [B, 1]: the comparison <code>similarity
# > …</code> then goes along the rows.</details>
# <details><summary>Solution</summary>
#
# ```python
# def rank_of_positive(similarity):
#     return (similarity >= similarity.diagonal()[:, None]).sum(dim=1)  # the positive itself is the one
# ```
# </details>

# %%
rank = rank_of_positive(similarity)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
plots.similarity_matrix(similarity, ax=axes[0], title="nearness of mean spectra (the lowest 30%: one colour)")
axes[0].images[0].set_clim(similarity.quantile(0.3).item(), similarity.max().item())  # some lie far below
axes[1].hist(rank, bins=np.arange(0.5, size + 1.5), color=plots.PALETTE[0], lw=0)
axes[1].axvline((size + 1) / 2, color=plots.MODELS["chance"], ls="--", label="mean rank of a guess")
axes[1].axvline(rank.float().mean(), color=plots.PALETTE[3], label="mean rank here")
axes[1].yaxis.get_major_locator().set_params(integer=True)
axes[1].set(xlabel="rank of the positive (1 is best)", ylabel="anchors", title=f"ranks of {size} positives")
_ = axes[1].legend()

# %% [markdown]
# ### The number of distractors
# Finding one among two is easy, one among a hundred is not. We ask the same question for growing B: with the level,
# without it, and without it after both sides have been filtered, each by a filter of its own.
#
# The shaded areas are 95% intervals of a **bootstrap** over tunes: tunes are drawn anew, again and again, each with all its
# clips. Clips of one tune are not independent of each other, so drawing single clips would make the areas too narrow.
# Notebook 6 explains this.


# %%
def hits(a: torch.Tensor, b: torch.Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each anchor's positive was nearest [n], and how often it was asked [n], in batches of `size`.

    At least 60 batches of pairs (a[i], b[i]), and so many that each pair is drawn about four times.
    """
    rng = np.random.default_rng(size)
    found, asked = np.zeros((2, len(a)))
    for _ in range(max(60, 4 * len(a) // size)):
        drawn = rng.permutation(len(a))[:size]
        found[drawn] += (rank_of_positive(nearness(a[drawn], b[drawn])) == 1).numpy()
        asked[drawn] += 1
    return found, asked


# %%
def draw(ax: plt.Axes, x: list, counts: list, tunes: np.ndarray, name: str, line: str) -> np.ndarray:
    """Draw the share found with its 95% interval over tunes; `counts` from `hits`; return the share in %."""
    rng = np.random.default_rng(0)
    names, number = np.unique(tunes, return_inverse=True)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=500)  # each tune is drawn
    weights = times[:, number]  # of each pair, [500, n]
    share = np.array([100 * found.sum() / asked.sum() for found, asked in counts])
    drawn = np.array([100 * (weights @ found) / (weights @ asked) for found, asked in counts])  # [x, 500]
    colour = plots.MODELS["mel-stats"]
    ax.plot(x, share, line, color=colour, label=name)
    ax.fill_between(x, *np.quantile(drawn, [0.025, 0.975], axis=1), color=colour, alpha=0.2, lw=0)
    return share


# %%
many = min(len(clips), 512)
sizes = [b for b in (2, 4, 8, 16, 32, 64, 128, 256, 512) if b <= many]
tunes = clips.groups[segments.pair_starts(clips, step=0, batch_size=many, seed=1)[0]]
counts = {}
for level, filter_db, name in (
    (True, 0, "mean spectrum"),
    (False, 0, "mean spectrum without level"),
    (False, 3.5, "without level, filtered"),
):
    a, p = segments.pair_batch(clips, step=0, batch_size=many, seed=1, filter_db=filter_db)
    counts[name] = [hits(mean_mel(a, level), mean_mel(p, level), b) for b in sizes]

# %%
fig, ax = plt.subplots(figsize=(8, 3.4))
for (name, found_and_asked), line in zip(counts.items(), ("o-", "s--", "^:")):
    share = draw(ax, sizes, found_and_asked, tunes, name, line)
    print(f"{name}: " + ", ".join(f"B = {b}: {score:.0f}%" for b, score in zip(sizes, share)))
ax.plot(sizes, 100 / np.array(sizes), "--", color=plots.MODELS["chance"], label="chance, 1/B")
ax.set(xscale="log", xlabel="batch size B", ylabel="positive found (%)", ylim=(0, 102))
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
_ = ax.legend(ncol=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))

# %% [markdown]
# What this shows:
# - With few distractors the task is easy even without learning. More of them make it harder. Whether a harder task
#   also teaches more, notebook 3 asks.
# - Loudness is a **shortcut**. The gap between the two upper curves is what it contributes. How loud a clip is tells
#   something about the recording, and little about the music. This is why colalib's encoder never sees a segment's mean.
# - The mean spectrum is the next shortcut, and a far better one: the colour of instrument and room. A filter for each
#   side spoils it without touching a single note. It has a price: the encoder may forget
#   what it does not need for finding the pair. That is bad if a later question is about colour. Notebook 5 asks for the
#   instruments.
#
# The dotted curve is still far above chance: the mean spectrum survives the filters in part. And a filter does not touch
# everything.
#
# ### Your turn: filter_proof · medium · 15 minutes · worth it
# Build a feature of a segment that `random_filter` cannot change at all, and that finds filtered pairs more often
# than the mean spectrum does. Remember what a filter is on log-mel frames: one number per band, added to every frame.


# %%
def filter_proof(segment: torch.Tensor) -> torch.Tensor:
    """Segments [B, T, M] → features [B, d] that stay the same if each band of a segment gets a gain of its own."""
    raise NotImplementedError


# %%
def found_filtered(feature) -> float:
    """Per cent of filtered pairs found in four batches of 64, by nearness of a feature; a tie is not found."""
    found = []
    for step in range(4):
        a, p = segments.pair_batch(clips, step, min(64, len(clips)), seed=2, filter_db=3.5)
        near = nearness(feature(a), feature(p))  # [B, B]
        found.append((near >= near.diagonal()[:, None]).sum(dim=1) == 1)
    return 100 * torch.cat(found).float().mean().item()


# %%
def change_along_time(segment: torch.Tensor) -> torch.Tensor:
    return segment.diff(dim=1).abs().mean(dim=1)  # [B, M]


# %%
def check_proof(answer):
    x = segments.pair_batch(clips, 0, 8, seed=2)[0]
    gains = torch.linspace(-1, 1, 64) * torch.arange(8)[:, None]  # [B, M], each segment its own
    before, after = answer(x), answer(x + gains[:, None])
    assert before.ndim == 2 and len(before) == 8, f"the shape is {tuple(before.shape)}, not [B, d]"
    assert not torch.equal(before, before[:1].expand_as(before)), "it is the same for all segments"
    moved = (before - after).abs().max().item()
    assert moved < 1e-3 * before.abs().max().item() + 1e-9, (
        f"a filter changes the feature, by up to {moved:.2g}"
    )
    theirs, mine = found_filtered(lambda s: mean_mel(s, level=False)), found_filtered(answer)
    print(f"filtered pairs found: mean spectrum {theirs:.0f}%, your feature {mine:.0f}%")
    assert mine > theirs + 4, (
        "that is hardly more, or less, than the mean spectrum: how fast does a band change?"
    )


filter_proof = course.exercise(filter_proof, check_proof, instead=change_along_time)
print(f"{found_filtered(filter_proof):.0f}% of the filtered pairs are found by `filter_proof`, as it is now")

# %% [markdown]
# <details><summary>Hint 1</summary>What is added to every frame of a band disappears in differences: from a frame to the
# next, or from the band's own mean over time.</details>
# <details><summary>Hint 2</summary>Differences depend on the moment; a feature should not. How *large* are they on
# average, in each band?</details>
# <details><summary>Hint 3</summary>Two candidates: the standard deviation over time, and the mean absolute difference of
# neighbouring frames. Only one is clearly ahead of the mean spectrum: the one that knows how fast things change.</details>
# <details><summary>Solution</summary>
#
# ```python
# def filter_proof(segment):
#     return segment.diff(dim=1).abs().mean(dim=1)
# ```
# </details>
#
# How much each band moves is again no melody and no rhythm. It is the next shortcut: tremolo, bowing, the density of
# notes. An augmentation closes one door, not all of them.
#
# ### The distance in time
# Crops that overlap share actual sound. And if they lie farther and farther apart?

# %%
widgets.guess(
    "2-far",
    "Now the positive begins 5 seconds after the anchor, and there are 64 candidates. How often is the positive's mean "
    "spectrum (without level) still the nearest?",
    {
        "hardly ever, as by chance": "Five seconds later it is still the same instruments, room and key.",
        "in a third of the cases or more": "What the mean spectrum recognises is mostly the recording, and that stays.",
        "nearly always": "That is so only while the crops share much of their sound.",
    },
    "in a third of the cases or more",
)


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
counts = []
for distance in distances:
    a, b = pairs_at(distance, chosen)
    counts.append(hits(mean_mel(a, False), mean_mel(b, False), min(64, many)))

# %%
seconds = [store.mel.seconds(d) for d in distances]
fig, ax = plt.subplots(figsize=(8, 3.2))
ax.axvspan(0, store.mel.seconds(SEGMENT_FRAMES), color="#DDDDDD", lw=0, label="crops overlap")
share = draw(ax, seconds, counts, clips.groups[chosen], "mean spectrum without level", "s--")
ax.axhline(100 / min(64, many), ls="--", color=plots.MODELS["chance"], label="chance")
ax.set(xlabel="distance between the crops' starts (s)", ylim=(0, 102))
ax.set_ylabel(f"found among {min(64, many)} (%)")
_ = ax.legend()

# %% [markdown]
# While the crops share half of their sound or more, that nearly solves the task. From one second on only likeness can
# help. What does this mean for the pairs of a batch, whose crops lie anywhere?

# %%
a, p = segments.pair_batch(clips, step=0, batch_size=many, seed=1)
starts = segments.pair_starts(clips, step=0, batch_size=many, seed=1)[1]  # [2, many]
overlap = np.abs(starts[0] - starts[1]) < SEGMENT_FRAMES
found, asked = hits(mean_mel(a, False), mean_mel(p, False), min(64, many))
print(f"{overlap.mean():.0%} of {many} pairs overlap; found by mean spectrum among {min(64, many)}:")
for name, which in (("overlapping pairs", overlap), ("the others", ~overlap)):
    print(f"  {name}: {found[which].sum() / asked[which].sum():.0%}")

# %% [markdown]
# So overlap is a shortcut, too, and a large one. COLA leaves it in, and so do we: our pairs are independent crops. You
# can take it out; exercise 2.1 is about that.
#
# Listen to the two ends of the curve: a pair half a second apart, and one five seconds apart, of the same clip.

# %%
for distance in (50, 500):
    print(f"{store.mel.seconds(distance):.1f} s apart:")
    display(plots.player(np.concatenate([crop_sound(row, 100), gap, crop_sound(row, 100 + distance)])))

# %% [markdown]
# ### Who the distractors are
# Another take of the *same tune* is a distractor only by name. It is a **false negative**: the task punishes the encoder
# for finding alike what is alike. The same can be said of another tune of the same class. Here are the distances between
# mean spectra, by what two segments have in common.

# %%
widgets.guess(
    "2-tune",
    "Besides the positive itself, which segments have a mean spectrum near to that of the anchor?",
    {
        "other takes of the same tune": "A take has instruments and a key of its own. The tune is in the notes, and the "
        "mean over time forgets their order.",
        "tunes of the same class": "A class is in rhythm and harmony. The mean over time keeps little of either.",
        "the same family of instruments": "A little, perhaps. But a family has many instruments, in many rooms.",
        "none of these by much": "The four kinds of distractor lie at nearly the same distance. The mean spectrum "
        "recognises the recording, and hardly anything else.",
    },
    "none of these by much",
)

# %%
anchors, positives = pair_batch_by_hand(clips, step=0, batch_size=many, seed=2)
chosen, _ = segments.pair_starts(clips, step=0, batch_size=many, seed=2)
table = store.clips.iloc[[row_of[clips.ids[i]] for i in chosen]]
distance = -nearness(mean_mel(anchors, False), mean_mel(positives, False)).numpy() / np.sqrt(64)  # per band
pair = np.eye(many, dtype=bool)
values = {column: table[column].to_numpy(object) for column in ("group", "label", "family")}
same_tune, same_class, same_family = (v[:, None] == v[None] for v in values.values())  # each [many, many]
relations = {
    "same clip: the positive": distance[pair],
    "same tune, another take": distance[same_tune & ~pair],
    "same class, another tune": distance[same_class & ~same_tune],
    "same instrument family, another class": distance[same_family & ~same_class],
    "another class and family": distance[~same_class & ~same_family],
}

# %%
fig, ax = plt.subplots(figsize=(9, 3))
colours = [plots.ROLES["positive"], *(plots.PALETTE[i] for i in (1, 4, 5)), plots.ROLES["distractor"]]
for y, (values, colour) in enumerate(zip(relations.values(), colours)):
    low, first, median, third, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    ax.plot([low, high], [-y, -y], color=colour, lw=2)
    ax.plot([first, third], [-y, -y], color=colour, lw=12, solid_capstyle="butt")
    ax.plot(median, -y, "o", color="white", mec=colour, ms=9)
ax.set_yticks(-np.arange(5), [f"{name} ({len(v):,})" for name, v in relations.items()])
ax.set_ylim(-4.6, 0.6)
_ = ax.set(xlabel="distance of mean spectra per band (ln units): median, quartiles, 5 to 95%")

# %% [markdown]
# The positives lie to the left. Now compare the four kinds of distractor with each other. Where their boxes lie on top of
# each other, the mean spectrum tells next to nothing about tune, class or instrument family. What it recognises is *this
# one recording*: these voices, this key and this room in just this mixture. That is the trap in the task: a recording can
# be recognised without a note being understood. A good encoder must do better than the mean over time.
#
# Is the positive nearer than a single distractor? And than all of them?

# %%
single = (distance.diagonal()[:, None] < distance)[~pair].mean()
nearest = (rank_of_positive(torch.from_numpy(-distance)) == 1).float().mean().item()
print(f"the positive is nearer than one random distractor in {single:.0%} of the cases")
print(f"it is nearer than all {many - 1} distractors in {nearest:.0%}: among many, one is near by accident")

# %% [markdown]
# How common are false negatives?

# %%
for b in sorted({32, 64, many}):
    own_tune, own_class = (
        (b - 1) * (same & ~pair).sum() / (many * (many - 1)) for same in (same_tune, same_class)
    )
    print(
        f"B = {b}: an anchor's distractors are {own_tune:.2f} of its own tune, {own_class:.1f} of its own class"
    )

# %% [markdown]
# Distractors of the same tune are rare. But one in eight is of the same class, as there are eight classes. In a larger
# batch there are more of them, but their share stays the same. Without
# labels we don't know which these are, so we leave them in, and do not measure here what they cost. It is known that they
# can cost something: *debiased* contrastive learning (Chuang et al. 2020,
# [arXiv 2007.00224](https://arxiv.org/abs/2007.00224)) corrects the loss for the false negatives that one must expect,
# also without labels, and reports better representations.
#
# ### What makes the task hard
# Turn the four settings: the distance of the crops, the filter, the mask and the number of candidates. Guess before each
# turn: which one hurts the mean spectrum much more than the encoder? The grey curves are the setting before. The encoder is
# the one that comes with the course; it has heard these clips in its training. The areas treat clips as independent, so
# they are somewhat too narrow.

# %%
widgets.difficulty_lab(clips)

# %% [markdown]
# <details><summary>Which one? After you have looked.</summary>
# The filter most of all: with 6 dB the mean spectrum loses more than half of the pairs that it found, and the encoder hardly
# any. A mask of up to 24 bands does it too, though less. The encoder was trained with both. A mask of 48 bands hurts both. A
# distance of some seconds costs the spectrum a little, and the encoder hardly anything.
# </details>
#
# ## 5 The task, for your ears
# Listen to the anchor and to four candidates, or ask for the quiz. In the quiz two encoders answer the same questions:
# one has random weights, the other comes with the course. They compare h, the numbers that an encoder makes of a segment.
# Switch augmentations on, and the players sound like what a network hears: a re-synthesis
# from the altered frames.
#
# The questions come from validation clips.

# %% tags=["widget"]
torch.manual_seed(0)
# a small network with random weights, made ready for use: notebook 3 explains
random = evaluation.calibrate_batchnorm(Encoder("b0-small"), pretraining_clips([store]))
pretrained = open_run("default")
player = widgets.pair_player(corpus, store, {"random": random, "pre-trained": pretrained.load_encoder()})
heard = np.mean([clip_id in pretrained.seen_clip_ids for clip_id in store.ids[player.rows]])
print(f"{heard:.0%} of these clips were among what the pre-trained encoder listened to in its training")
player

# %% [markdown]
# If that share is not 0, the pre-trained encoder has an advantage over you: it may know the recordings. Notebook 5 judges
# it on clips that it has never heard.
#
# ## Recap
# You can now
# - say what anchor, positive and distractor are, and why no label is needed to make them: the recording is the label;
# - cut random segments reproducibly, also from a clip that is too short, and write the batch of pairs yourself: by
#   a generator that depends on seed and step, equal to colalib's to the last bit;
# - hear and see what filtering, masking and multiplying do to a segment, and build a feature that no filter changes: what
#   survives is what the pair is recognised by;
# - tell what makes a pair easy or hard: its distance in time, its level, its distractors, their number; false negatives make
#   it unfair;
# - read a batch as a matrix, B anchors by B positives, pairs on the diagonal, and compute the rank of each positive.
#
# **Next**, [notebook 3](03_contrastive_pretraining.ipynb): a network learns to answer these rows.

# %% [markdown]
# ## Exercises
# Three more. The lesson doesn't depend on them.
#
# ### 2.1 Pairs that never overlap · easy · 10 minutes
# Take the shortcut of overlapping crops out. Draw the starts of two crops of a clip with `frames` frames, at least
# `apart` frames from start to start. All pairs of starts that fit must be equally likely, so anchor and positive come
# first equally often.


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
    distance = np.abs(drawn[:, 0] - drawn[:, 1])
    assert len(np.unique(distance)) > 40, "the distance should vary, not only the place"
    a, b = np.divmod(np.arange(203**2), 203)  # all pairs of starts
    mean = np.abs(a - b)[np.abs(a - b) >= 120].mean()
    uneven = f"the starts are {distance.mean():.0f} frames apart on average; {mean:.0f} if all pairs were equally likely"
    assert abs(distance.mean() - mean) < 2, uneven


_ = course.exercise(distant_starts, check_distant)

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
# segment. Sounds add up as magnitudes, roughly, but our segments are logarithms. Mix the magnitudes.


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


_ = course.exercise(log_mix, check_mix)

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
# A corpus has groups of clips that are alike: the takes of a tune, or all clips of a class. For a batch of B different
# clips, how many distractors of its own group does an anchor have on average? A formula, no simulation.


# %%
def false_negatives(sizes: list[int], batch: int) -> float:
    """Expected number of an anchor's distractors of its own group; sizes[k] is the number of clips of group k."""
    raise NotImplementedError


# %%
def check_false_negatives(answer):
    assert answer([1] * 100, 32) == 0, "if every group has one clip, there are none"
    assert np.isclose(answer([5], 5), 4), "a batch of all five clips of one group: four for each"
    rng = np.random.default_rng(0)
    for sizes, batch in (([3] * 20, 16), ([1, 2, 3, 10, 4], 8)):
        groups = np.repeat(np.arange(len(sizes)), sizes)
        drawn = [groups[rng.permutation(len(groups))[:batch]] for _ in range(3000)]
        counted = np.mean([(d == d[0]).sum() - 1 for d in drawn])
        told = answer(sizes, batch)
        wrong = f"groups of {sizes} clips, B = {batch}: {told:.2f}, but counted {counted:.2f}"
        assert abs(told - counted) < 0.1 * counted + 0.02, wrong


_ = course.exercise(false_negatives, check_false_negatives)

# %% [markdown]
# <details><summary>Hint 1</summary>Each of the B − 1 distractors is, by itself, a clip drawn at random from all but
# the anchor.</details>
# <details><summary>Hint 2</summary>The anchor is more likely to be of a large group: with probability n / N
# of one with n clips. Then n − 1 of the N − 1 other clips are of its group.</details>
# <details><summary>Solution</summary>
#
# ```python
# def false_negatives(sizes, batch):
#     n = np.array(sizes)
#     return (batch - 1) * (n * (n - 1)).sum() / (n.sum() * (n.sum() - 1))
# ```
# </details>
