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
# **Contrastive** learning compares: it learns to tell what belongs together from what does not. **Pre-training** is
# the training before the real task, without labels. Its **objective** has a projection, a similarity and a loss; all
# three are explained here. What the encoder makes of a segment is called its **embedding**, h.
#
# You write three objectives and the training step. They reproduce colalib's first losses. Then you train an encoder,
# and hear which wrong second it takes for the right one.
#
# **Run time** about a minute on 2 cores in the quick profile, and once the training itself, 4 minutes; later runs
# load it. **Your time** about two hours with the four tasks in the text.
#
# You will be able to
# - draw the parts of COLA, say where each idea came from, and where this course departs from the paper;
# - write the triplet loss, the contrastive loss and the bilinear similarity, so that training can use them;
# - write the training step, and check it against colalib's;
# - say what a loss means: what guessing costs, ln B, and what accuracy and rank tell beside it;
# - read the curves of a pre-training, and compare the encoder before and after on tunes it has never trained on;
# - explain what more candidates change about the question, and what that does not say about training.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from torch import Tensor, nn
from torch.nn import functional as F

from colalib import cola, course, evaluation, widgets
from colalib.data import audio, segments
from colalib.data.clips import pretraining_clips, split_validation
from colalib.encoder import Encoder
from colalib.evaluation import intervals, plots
from colalib.training.runs import open_run

plots.style()
profile = course.profile()
corpus, store = course.corpus(), course.store()

# %% [markdown]
# ## 1 Where this comes from
# - **Triplets** (FaceNet, [1503.03832](https://arxiv.org/abs/1503.03832), 2015): an anchor must be nearer to its
#   positive than to a distractor, by a margin. Made for faces, with labels: whose face it is.
# - **AudioSet** (Gemmeke et al., ICASSP 2017): two million labelled ten-second sounds, the common ground on which
#   audio encoders are trained and judged.
# - **Triplets without labels, for sound** (Jansen et al., [1711.02209](https://arxiv.org/abs/1711.02209), 2017): the
#   positive is the anchor with noise, shifted, mixed with another sound, or a sound from nearby in time.
# - **Cross-entropy over candidates**, InfoNCE (CPC, [1807.03748](https://arxiv.org/abs/1807.03748), 2018): pick the
#   positive among many, instead of comparing one with one.
# - **The batch supplies the distractors** (SimCLR, [2002.05709](https://arxiv.org/abs/2002.05709), 2020): with a
#   temperature, and a projection that is dropped afterwards.
# - **No distractors at all** (BYOL, [2006.07733](https://arxiv.org/abs/2006.07733), 2020): the network predicts
#   what a slowly changing copy of itself makes of the other crop.
# - **All of it for sound, simply** (COLA, [2010.10915](https://arxiv.org/abs/2010.10915), 2020): two crops of a
#   clip, an EfficientNet, a bilinear similarity.
#
# Why distractors? A network could give every sound the same embedding. Then every positive would be near its anchor,
# and nothing would be learned. This is called **collapse**. Distractors forbid it. BYOL, and SimSiam after it
# ([2011.10566](https://arxiv.org/abs/2011.10566), 2020), do without them by other means. COLA keeps the distractors, and
# with them one network and one loss. This is what we build:

# %%
from IPython.display import SVG

SVG(filename=course.home() / "notebooks" / "pictures" / "cola.svg")

# %% [markdown]
# ### Where this course departs from the paper
# The idea is the paper's. These details are not. You will meet h in section 2, the projection g in section 4 and W in
# section 5: pass over the table now, and come back to it before section 8.
#
# | | paper | here | why |
# |---|---|---|---|
# | similarity | g(x)ᵀ W g(x′) | the same, divided by √512 | Adam changes each of the 512² entries of W by about the same small step, and these add up (not tried alone) |
# | W at the start | random, normal | identity | a short training cannot wait until W has learned that similar projections should count as similar |
# | loss | anchor → positive | both directions, the mean | each batch asks twice as many questions |
# | optimiser | Adam at 1e-4 | AdamW at 2e-3; the rate rises for a few steps, then falls along a cosine to 0 | minutes instead of days |
# | pairs per batch | 1,024 | 64 | two cores |
# | batch norm | statistics over both sides together (in its published code) | each side by itself | both sides are batches of the same kind |
# | augmentation | none of this kind | random filter, masked bands (notebook 2) | the two crops must not be matched by their spectrum alone |
# | encoder | EfficientNet-B0 | half as wide, half as deep | two cores |
# | input | log-mel | minus each segment's own mean, divided by one number | loudness is a shortcut |
# | what is used afterwards | h | h for fine-tuning; elsewhere also a **read-out** of all blocks and the mel bands (notebook 5) | earlier layers keep what the pair task drops |

# %% [markdown]
# ## 2 The encoder
# An EfficientNet ([1905.11946](https://arxiv.org/abs/1905.11946)) reads the log-mel segment like a picture. It is a
# chain of convolution blocks. From block to block, time and frequency get coarser and features richer. The maximum
# over what is left of time and frequency is the embedding **h**. On a laptop we take `b0-small`, half as wide and half
# as deep as the paper's B0.
#
# One thing to know about random weights: a batch norm divides by statistics that training would have collected. We
# compute them from some clips first (`calibrate_batchnorm`). Otherwise an untrained encoder looks worse than it is.

# %%
clips = pretraining_clips([store])  # every clip but those of the test split
torch.manual_seed(0)
encoder = evaluation.calibrate_batchnorm(Encoder("b0-small"), clips)  # random weights
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
# **DPT** stands for *discriminative pre-training*: a network learns by telling pairs from non-pairs, without labels.
# COLA belongs to this family too. In this course DPT is the name of its oldest and simplest form, the triplet loss on
# cosine similarity.
#
# It needs three embeddings. With s the cosine similarity, the anchor a should be more similar to its positive p than
# to the distractor d, by a margin m. If it is, there is nothing left to learn:
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
# wastes the batch, though. The other clips' positives are there already: B pairs make B(B − 1) triplets. One matrix
# product gives all cosines at once: `similarity[i, j]` is s(anchor i, positive j), so the pairs are on the diagonal.
#
# ### Your turn: triplet · easy · 10 minutes · core
# Write the mean triplet loss over all triplets of a batch. You get the similarities [B, B]. In row i the entry on the
# diagonal is the positive of anchor i, and the B − 1 others are its distractors. No loop is needed.


# %%
def triplet(similarity: Tensor, margin: float = 0.5) -> Tensor:
    """Mean triplet loss over the B(B - 1) triplets of a batch: [B, B] → scalar."""
    raise NotImplementedError


# %%
def check_triplet(answer):
    kept = answer(torch.tensor([[0.9, -0.9], [-0.9, 0.9]]))
    assert kept.ndim == 0, "return a scalar: the mean over all triplets"
    assert kept >= 0, "a triplet that keeps its margin costs 0, not less: use relu"
    assert kept == 0, "0 where all margins are kept: the diagonal is the positive itself, leave it out"
    flat = float(answer(torch.zeros(3, 3)))
    assert np.isclose(flat, 0.5, atol=1e-5), f"equal similarities cost the margin, not {flat:.3f}: B(B - 1)"
    assert np.isclose(answer(torch.zeros(3, 3), 0.2), 0.2, atol=1e-5), "the margin is an argument"
    rows = float(answer(torch.tensor([[0.9, 0.5], [0.2, 0.1]])))
    assert not np.isclose(rows, 0.45), "compare along a row: an anchor's positive is in its own row"
    assert np.isclose(rows, 0.35, atol=1e-5), f"[[0.9, 0.5], [0.2, 0.1]] should give 0.35, not {rows:.3f}"
    three = float(answer(torch.eye(3) + torch.tensor([0.0, 0.0, 0.9])))  # costs 0, 0.4; 0, 0.4; 0, 0
    assert np.isclose(three, 0.8 / 6, atol=1e-5), (
        "divide by all B(B - 1) triplets, also those that cost 0, and take all distractors of a row"
    )


# %%
triplet = course.exercise(triplet, check_triplet, instead=cola.triplet_loss)
size = len(h)
slow = [one_triplet(h[i], h_positive[i], h_positive[j]) for i in range(size) for j in range(size) if i != j]
similarity = cola.cosine_similarity(h, h_positive)  # [B, B]
assert torch.isclose(torch.stack(slow).mean(), triplet(similarity), atol=1e-5)
print(f"{len(slow)} triplets of {size} pairs: mean loss {triplet(similarity):.4f}, as in a loop over them")

# %% [markdown]
# <details><summary>Hint 1</summary><code>similarity.diagonal()[:, None]</code> is a column [B, 1]: subtracted from a
# matrix, it is subtracted from every entry of its row.</details>
# <details><summary>Hint 2</summary>Compute the hinge for all B² entries. On the diagonal it is the margin: take these B
# out of the sum.</details>
# <details><summary>Solution</summary>
#
# ```python
# def triplet(similarity, margin=0.5):
#     size = len(similarity)
#     violation = F.relu(margin - similarity.diagonal()[:, None] + similarity)  # [B, B]
#     return (violation.sum() - violation.diagonal().sum()) / (size * (size - 1))
# ```
# </details>

# %% [markdown]
# ## 4 Cross-entropy with a temperature
# A triplet compares with one distractor at a time, and forgets about it once the margin is kept. Cross-entropy asks
# one question about all of them: *which of these B is the positive?* A **softmax** turns the row of similarities into
# a probability for each answer. The loss is −ln of the right answer's probability.
#
# Cosines live between −1 and 1. Even a perfect row, 1 for the positive and −1 for 63 others, would give the
# positive only 10%. So they are divided by a **temperature** τ before the softmax: the smaller it is, the more the nearest
# distractors count. The paper's cosine variant has τ = 0.2.

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
# Move the sliders. Which candidates get a gradient when τ is small? Which get one from the triplet loss? The setting
# before the last change stays in grey.

# %%
widgets.temperature_lab(row.numpy())

# %% [markdown]
# ### Your turn: contrastive · medium · 15 minutes · core
# Write the contrastive loss. Each row of `similarity` is a question with B answers, and the right one is on the
# diagonal. With `symmetric`, also ask the other way round (which anchor belongs to positive j?) and return the mean of
# both. It must stay finite for similarities of ±10,000, where `exp` gives infinity or 0: `torch.logsumexp` helps.


# %%
def contrastive(similarity: Tensor, symmetric: bool = True) -> Tensor:
    """Mean of -ln p(right answer) over the rows of [B, B], or over rows and columns → scalar."""
    raise NotImplementedError


# %%
def check_contrastive(answer):
    flat = answer(torch.zeros(8, 8))
    assert flat.ndim == 0, "return a scalar: the mean over all questions"
    assert np.isclose(flat, np.log(8), atol=1e-5), "equal similarities should cost ln B"
    s = torch.tensor([[2.0, 1.0, 0.0], [3.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    rows, columns = (-x.softmax(dim=1).diagonal().log().mean() for x in (s, s.T))
    assert not np.isclose(answer(s, False), columns), "one direction asks along the rows, not the columns"
    assert np.isclose(answer(s, False), rows, atol=1e-5), "one direction: the mean of -ln p over the rows"
    assert np.isclose(answer(s), (rows + columns) / 2, atol=1e-5), "symmetric: the mean of both directions"
    right = 2e4 * torch.eye(4) - 1e4  # 10,000 for the pairs, -10,000 for the rest
    assert np.isclose(answer(right), 0, atol=1e-4), "not 0 at ±10,000, though all is right: use logsumexp"
    message = "at ±10,000, all wrong, it should be 20,000 + ln 3 and not infinite: use logsumexp"
    assert np.isclose(answer(-right), 2e4 + np.log(3), rtol=1e-6), message
    x = s.clone().requires_grad_()
    loss = answer(x, False)
    assert loss.requires_grad, "gradients must pass through: stay with tensors"
    (gradient,) = torch.autograd.grad(loss, x)
    expected = (s.softmax(dim=1) - torch.eye(3)) / 3
    assert torch.allclose(gradient, expected, atol=1e-5), "the gradient should be (softmax - I) / B"


# %%
contrastive = course.exercise(contrastive, check_contrastive, instead=cola.contrastive_loss)

# %% [markdown]
# <details><summary>Hint 1</summary>−ln of a softmax is <code>logsumexp</code> of the row minus the right entry: no
# probability is ever computed.</details>
# <details><summary>Hint 2</summary>The other direction is the same function on <code>similarity.T</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def contrastive(similarity, symmetric=True):
#     loss = (similarity.logsumexp(dim=1) - similarity.diagonal()).mean()
#     return (loss + contrastive(similarity.T, symmetric=False)) / 2 if symmetric else loss
# ```
# </details>
#
# The gradient that the check asks for says what one step does. On the diagonal it is (p − 1)/B: the positive is pulled
# nearer, most strongly if its probability was low. Elsewhere it is p/B: a distractor is pushed away in proportion to its
# probability. So pairs come together and everything else spreads out (**alignment and uniformity**, Wang & Isola,
# [2005.10242](https://arxiv.org/abs/2005.10242)). With a small τ only the nearest distractors are pushed. The triplet
# loss is different: it pushes all distractors that break the margin, equally hard.
#
# Now the objective with its projection **g**. The loss isn't computed on h itself but on g(h), 512 numbers as in the
# paper. The thought: what the pair task doesn't need may be thrown away in g, and h still has it. SimCLR found h
# clearly better than g(h) for other tasks. After pre-training g is dropped.

# %%
torch.manual_seed(0)
objective = cola.Cosine(encoder.dim, temperature=0.2).eval()  # eval: no dropout
linear = objective.project[1]
with torch.no_grad():
    g, g_positive = (x @ linear.weight.T + linear.bias for x in (h, h_positive))  # [B, 512]
    g, g_positive = (x / x.norm(dim=1, keepdim=True) for x in (g, g_positive))
    ours = contrastive(g @ g_positive.T / 0.2)
    assert torch.isclose(ours, objective(h, h_positive)[0], atol=1e-5)
print(f"cosine with temperature: {ours:.4f}, as colalib's objective; ln B = {np.log(size):.4f}")

# %% [markdown]
# ## 5 COLA: a similarity that learns
# The cosine weighs all 512 directions alike. COLA learns the similarity along with everything else, as a matrix W:
#
# $$s(x, x') = g(x)^\top W\, g(x') / \sqrt{512}, \qquad g(x) = \tanh(\mathrm{LayerNorm}(A\,h(x) + b))$$
#
# (g(x) is short for g(h(x)).) W can turn directions up that identify a recording and turn others down. W has no
# bound, so it also sets the temperature. With W the identity, where ours starts, this is a plain dot product. In the
# paper it beats
# the cosine clearly: a linear probe reaches 74.3% on average over nine tasks, against 67.2%. (A **linear probe**: no weight
# of the encoder moves, it is *frozen*, and one linear layer learns the classes from h. Its accuracy tells what h holds.)
# How much of this is due to W? These numbers do not say. In the paper's published code, as here, the LayerNorm and the tanh
# of g belong to the bilinear variant alone, and the cosine's g is linear. So three things change at once: W, the shape of
# g, and a scale that is learned instead of fixed by τ. Section 8 tries W and τ alone; the shape of g stays bound to the
# kind of scale.
#
# Any W is the sum of a symmetric part, (W + Wᵀ)/2, and a **skew** part, (W − Wᵀ)/2. A W that is all skew gives
# s(x, x′) = −s(x′, x): it tells the anchor from the positive.
#
# ### Your turn: bilinear · easy · 10 minutes · core
# Write the similarity of every anchor with every positive. Mind the order: W stands between the anchor on its left and
# the positive on its right.


# %%
def bilinear(g: Tensor, g_positive: Tensor, weight: Tensor) -> Tensor:
    """g(x)ᵀ W g(x') / √d of all pairs: projections g, g_positive [B, d] and W [d, d] → [B, B]."""
    raise NotImplementedError


# %%
def by_einsum(g, g_positive, weight):
    return torch.einsum("ik,kl,jl->ij", g, weight, g_positive) / g.shape[1] ** 0.5


# %%
def check_bilinear(answer):
    torch.manual_seed(0)
    a, b, x = torch.randn(5, 4), torch.randn(5, 4), torch.randn(4, 4)
    dot = answer(a, b, torch.eye(4))
    assert dot.shape == (5, 5), f"every anchor with every positive: [5, 5], not {[*dot.shape]}"
    assert not torch.allclose(dot, a @ b.T, atol=1e-4), "divide by √d: the sum of d products grows with it"
    assert not torch.allclose(dot, b @ a.T / 2, atol=1e-4), "rows are anchors, columns are positives"
    assert torch.allclose(dot, a @ b.T / 2, atol=1e-5), "W = I should give the dot product, divided by √d"
    factored = answer(a, b, x @ x.T)
    projected = (a @ x) @ (b @ x).T / 2
    assert torch.allclose(factored, projected, atol=1e-4), "W = L Lᵀ is the dot product of projections by Lᵀ"
    skew = answer(a, a, x - x.T)
    assert torch.allclose(skew, -skew.T, atol=1e-4), "a skew W should give s(x, x') = -s(x', x)"
    assert skew.abs().sum() > 0, "a skew W should not vanish: use W as it is"
    message = "W stands the wrong way round: the anchor comes from the left"
    assert torch.allclose(answer(a, b, x), by_einsum(a, b, x), atol=1e-4), message


bilinear = course.exercise(bilinear, check_bilinear, instead=by_einsum)

# %% [markdown]
# <details><summary>Hint 1</summary>For one pair it is <code>g[i] @ weight @ g_positive[j]</code>.</details>
# <details><summary>Hint 2</summary>For all pairs, the positives become columns:
# <code>g_positive.T</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def bilinear(g, g_positive, weight):
#     return g @ weight @ g_positive.T / g.shape[1] ** 0.5
# ```
# </details>
#
# What the check says about W: the identity is the dot product. A symmetric W stretches along some directions; an
# **eigenvalue** says by how much along one of them. If none is negative, W is LLᵀ: a dot product again, after one more
# linear layer Lᵀ. Only the skew part makes the similarity depend on which crop is the anchor. Section 8 looks at what a
# trained W has become. Now the whole objective:

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
    similarity = bilinear(project_by_hand(h), project_by_hand(h_positive), weight)  # [B, B]
    loss, theirs = objective(h, h_positive)
    assert torch.allclose(similarity, theirs, atol=1e-4)
    assert torch.isclose(contrastive(similarity), loss, atol=1e-5)
print(f"bilinear: {loss:.4f}, as colalib's objective")
print(f"similarities from {similarity.min():.2f} to {similarity.max():.2f}")

# %% [markdown]
# ## 6 What guessing costs
# Before you look at any curve, know where it starts. If you cannot tell the B candidates apart, you give each a
# probability of 1/B. Your loss is then ln B. (ln is the natural logarithm. A loss that is measured with it is in
# **nats**.) And if your similarities are not equal, but random? We simulate both: random similarity matrices with a
# growing spread, many of them.

# %%
widgets.guess(
    "3-chance",
    "Similarities drawn at random with a standard deviation of 2, in batches of 64: what is the mean loss?",
    {
        "less than ln 64 = 4.2": "Similarities that know nothing of the pairs cannot do better than equal ones on average.",
        "about ln 64 = 4.2": "That is the loss of equal similarities. Random ones are often confident in a wrong answer.",
        "clearly more than ln 64": "A guesser who is confident is often confidently wrong, and −ln of a small p is large.",
    },
    "clearly more than ln 64",
)

# %%
sizes = np.array([2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
torch.manual_seed(0)
fig, ax = plt.subplots(figsize=(8, 3.2))
for spread, colour in ((0.0, 0), (1.0, 1), (2.0, 3)):
    losses = []
    for b in sizes:
        many = [contrastive(spread * torch.randn(b, b)).item() for _ in range(max(2000 // b, 1))]
        losses.append(np.mean(many))
    name = f"random similarities, standard deviation {spread:g}"
    ax.plot(sizes, losses, "o-", color=plots.PALETTE[colour], label=name)
ax.plot(sizes, np.log(sizes), "--", color=plots.MODELS["chance"], label="ln B")
ax.set(xscale="log", xlabel="batch size B", ylabel="loss (nats)")
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
_ = ax.legend()

# %% [markdown]
# If you guess with confidence, you are often confidently wrong, and pay more than ln B. So a loss means nothing without
# its B, and losses of different batch sizes or objectives can't be compared. Two numbers go beside it: the **in-batch
# accuracy**, the share of positives with rank 1 (chance 1/B), and the mean rank (chance (B + 1)/2).
#
# ## 7 The training step
# Draw pairs, embed both sides, ask the objective, move every weight: that is all of pre-training. colalib leaves the
# loop over the steps to Lightning, a library for training; what it adds is bookkeeping.
#
# ### Your turn: training_step · medium · 15 minutes · core
# Write one step. Embed each side by itself, because a batch norm takes its statistics from what it sees at once. Ask
# the objective for loss and similarities, compute the gradients, and let the optimiser move the weights. Gradients add
# up unless you clear them. Return the loss as a plain number.


# %%
def training_step(
    encoder: nn.Module, objective: nn.Module, optimiser, anchors: Tensor, positives: Tensor
) -> tuple[float, Tensor]:
    """One step on segments [B, T, M]: `objective(h, h_positive)` gives loss and similarities [B, B].

    Returns the loss as a float, and the similarities without gradients.
    """
    raise NotImplementedError


# %%
def by_autograd(encoder, objective, optimiser, anchors, positives):
    weights = [p for group in optimiser.param_groups for p in group["params"]]
    loss, similarity = objective(encoder(anchors), encoder(positives))
    for p, gradient in zip(weights, torch.autograd.grad(loss, weights)):
        p.grad = gradient
    optimiser.step()
    return loss.item(), similarity.detach()


# %%
def small_training(step):
    """Two steps of a small network: its weights before and after each [3, n], and what each step returned."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4))
    objective = cola.Bilinear(4, size=4, dropout=0.0)
    parameters = [*encoder.parameters(), *objective.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=0.5)
    weights = [nn.utils.parameters_to_vector(parameters).detach()]
    returned = []
    for _ in range(2):
        returned.append(step(encoder, objective, optimiser, torch.randn(5, 2, 3), torch.randn(5, 2, 3)))
        weights.append(nn.utils.parameters_to_vector(parameters).detach())
    return weights, returned


# %%
def check_training_step(answer):
    weights, returned = small_training(answer)
    right, expected = small_training(by_autograd)
    loss, similarity = returned[0]
    assert isinstance(loss, float), "return loss.item(): a tensor would keep all maps of the step in memory"
    assert not similarity.requires_grad, "return the similarities detached: they keep the maps in memory"
    message = "similarities: row i is anchor i, and each side is embedded by itself"
    assert torch.allclose(similarity, expected[0][1], atol=1e-5), message
    assert np.isclose(loss, expected[0][0], atol=1e-5), "the loss is the objective's, before the step"
    moved = weights[1] - weights[0]
    assert (moved != 0).any(), "no weight has moved after one step: backward(), then optimiser.step()"
    assert torch.allclose(weights[1], right[1], atol=1e-5), "one step, and only one, along the gradient"
    message = "the second step still holds the first one's gradient: zero_grad()"
    assert torch.allclose(weights[2], right[2], atol=1e-5), message


training_step = course.exercise(training_step, check_training_step, instead=by_autograd)

# %% [markdown]
# <details><summary>Hint 1</summary><code>encoder(anchors)</code> and <code>encoder(positives)</code> are two
# calls.</details>
# <details><summary>Hint 2</summary>The order is <code>optimiser.zero_grad()</code>, <code>loss.backward()</code>,
# <code>optimiser.step()</code>.</details>
# <details><summary>Hint 3</summary><code>loss.item()</code> is a plain number, <code>similarity.detach()</code> a tensor
# without history.</details>
# <details><summary>Solution</summary>
#
# ```python
# def training_step(encoder, objective, optimiser, anchors, positives):
#     loss, similarity = objective(encoder(anchors), encoder(positives))
#     optimiser.zero_grad()
#     loss.backward()
#     optimiser.step()
#     return loss.item(), similarity.detach()
# ```
# </details>
#
# ### All parts together
# An objective is the projection and your functions: one module for all three.


# %%
class Objective(nn.Module):
    """h, h_positive [B, dim] → loss (scalar), similarity [B, B]: a projection, and the functions above."""

    kinds = {"bilinear": cola.Bilinear, "cosine": cola.Cosine, "triplet": cola.Triplet}

    def __init__(self, name: str, dim: int):
        super().__init__()
        self.name = name
        self.parts = self.kinds[name](dim, dropout=0.0)  # the weights of g and W, drawn as colalib draws them

    def forward(self, h: Tensor, h_positive: Tensor) -> tuple[Tensor, Tensor]:
        g, g_positive = self.parts.project(h), self.parts.project(h_positive)  # [B, 512]
        if self.name == "bilinear":
            similarity = bilinear(g, g_positive, self.parts.weight)
            return contrastive(similarity), similarity
        similarity = cola.cosine_similarity(g, g_positive)
        return (contrastive(similarity / 0.2) if self.name == "cosine" else triplet(similarity)), similarity


# %% [markdown]
# Now the proof. `Cola` is the module that Lightning trains in the next section. We build it and our own from the same
# seed, give both the same pairs, and compare the first losses. The learning rate is held constant here; the long
# training warms up first.

# %%
from colalib.settings import PretrainConfig

config = PretrainConfig()  # what colalib trains with, unless told otherwise
train_clips, valid_clips = split_validation(clips)  # whole tunes are held out
std = segments.segment_std(train_clips, config.seed)
augmentations = config.filter_db, config.mask_bands
batches = [segments.pair_batch(train_clips, step, 32, config.seed, *augmentations) for step in range(4)]

torch.manual_seed(config.seed)
module = cola.Cola(config, std)
module.log_dict = lambda *args, **kwargs: None  # without a trainer there is nowhere to log to
torch.manual_seed(config.seed)
encoder = Encoder(config.arch, std)
objective = Objective(config.objective, encoder.dim)
for one in (module.encoder, encoder):
    one.cpu_precision = "float32"  # bfloat16 rounds so coarsely that two orders of summing differ visibly
optimiser = torch.optim.AdamW(
    [*encoder.parameters(), *objective.parameters()], lr=config.lr, weight_decay=config.weight_decay
)

# %%
ours = [training_step(encoder, objective, optimiser, *pairs)[0] for pairs in batches]
theirs, optimiser = [], module.configure_optimizers()
for index, pairs in enumerate(batches):
    loss = module.training_step(pairs, index)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    theirs.append(loss.item())
print("our losses     ", " ".join(f"{loss:.4f}" for loss in ours))
print("colalib's      ", " ".join(f"{loss:.4f}" for loss in theirs))
assert np.allclose(ours, theirs, rtol=2e-3), "the hand-written training does not follow colalib's"

# %% [markdown]
# The first losses agree, so this loop does what colalib's does. (They do not fall yet: four steps at the full learning rate
# are too few. Only the agreement counts here.) We run it for a few steps with each objective. This is a
# *taste*: the steps are few, there is one seed, and neither learning rate nor margin nor temperature has been tuned.
# It shows how learning begins, and doesn't say which objective is best in the end.

# %%
steps, batch = 25, 32


def taste_of(make_objective) -> tuple[Encoder, nn.Module, list[float]]:
    """A few steps from the same random weights: encoder, objective, and each step's mean rank of the positive."""
    torch.manual_seed(0)
    encoder = Encoder("b0-small", std=std)
    objective = make_objective(encoder.dim)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=1e-3)
    ranks = []
    for step in range(steps):
        pairs = segments.pair_batch(train_clips, step, batch, seed=0)
        _, similarity = training_step(encoder, objective, optimiser, *pairs)
        ranks.append(cola.ranks(similarity).float().mean().item())
    return encoder, objective, ranks


# %%
from functools import partial

begun = time.perf_counter()
taste = {name: taste_of(partial(Objective, name)) for name in Objective.kinds}
seconds = time.perf_counter() - begun
print(f"{steps} steps of {batch} pairs with each of {len(taste)} objectives: {seconds:.0f} s")

# %%
fig, ax = plt.subplots(figsize=(8, 3.2))
for name, colour in plots.colours(taste).items():
    ranks = pd.Series(taste[name][2])
    ax.plot(ranks, ".", color=colour, alpha=0.4)
    ax.plot(ranks.rolling(5, min_periods=1).mean(), color=colour, label=f"{name}, mean of 5")
ax.axhline((batch + 1) / 2, ls="--", color=plots.MODELS["chance"], label="guessing")
ax.set(xlabel="step", ylabel="mean rank of the positive", ylim=(0, None), title=f"training, B = {batch}")
_ = ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# If one of them begins more slowly, that need not last: after fifteen passes over the clips the three can't be told
# apart (notebook 6).
#
# ### What the distractors prevent
# Now leave them out. The loss is minus the cosine of each pair, and nothing else.

# %%
widgets.guess(
    "3-collapse",
    "Only pairs are pulled together, for 25 steps. What are the cosines of clips that do not belong together?",
    {
        "near 1": "Nothing keeps other clips away. The easiest way to please every pair is one place for all.",
        "near 0": "So it would be if something spread the clips out. Only distractors would do that here.",
        "near -1": "At most two groups could be opposite to each other, and nobody pushes them apart.",
    },
    "near 1",
)


# %%
class PullOnly(nn.Module):
    """No distractors: the loss is minus the mean cosine of the pairs."""

    def __init__(self, dim: int):
        super().__init__()
        self.parts = cola.Cosine(dim, dropout=0.0)

    def forward(self, h: Tensor, h_positive: Tensor) -> tuple[Tensor, Tensor]:
        similarity = cola.cosine_similarity(self.parts.project(h), self.parts.project(h_positive))
        return -similarity.diagonal().mean(), similarity


# %%
taste["no distractors"] = taste_of(PullOnly)
valid_pairs = segments.pair_batch(valid_clips, 0, len(valid_clips), seed=0)
similarity, spread, directions = {}, {}, {}
for name in ("cosine", "no distractors"):
    encoder, objective, _ = taste[name]
    with torch.no_grad():
        g, g_positive = (objective.parts.project(encoder(side)) for side in valid_pairs)
    similarity[name] = cola.cosine_similarity(g, g_positive)
    unit = F.normalize(g, dim=1)
    spread[name] = torch.linalg.svdvals(unit - unit.mean(dim=0))[:-1]  # singular values, but for the last, 0
    directions[name] = evaluation.effective_rank(unit.numpy())
assert (spread["no distractors"] < 0.5 * spread["cosine"]).all()

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 2.6))
is_pair = torch.eye(len(valid_clips), dtype=bool)
line = {"bins": np.linspace(-1, 1, 41), "density": True, "histtype": "step", "lw": 2}
for ax, name, colour in zip(axes, similarity, (plots.MODELS["cosine"], "#555555")):
    for kind, part, style in (("distractor", ~is_pair, "-"), ("positive", is_pair, "--")):
        ax.hist(similarity[name][part], **line, color=plots.ROLES[kind], ls=style, label=kind)
    ax.set(
        xlabel="cosine of g", yticks=[], title=f"{name}; last mean rank {taste[name][2][-1]:.1f} of {batch}"
    )
    axes[2].semilogy(spread[name], color=colour, label=f"{name}: rank {directions[name]:.1f}")
axes[0].legend(loc="upper left")
axes[2].set(xlabel="direction of g", ylabel="spread", title="singular values, effective rank")
_ = axes[2].legend()

# %% [markdown]
# Without distractors the loss is nearly perfect, −1, and the encoder has learned nothing: the mean rank
# of the positive is about what random weights give. (Guessing gives 16.5.) This is collapse. The loss alone does not show
# it. On the right, the singular values of g (at length 1, less its mean): how far the clips lie apart in each of its directions.
# Without distractors that is little in all of them. The **effective rank** counts the directions in which they differ about
# equally. It looks at the shape, not the size, and so gives no warning here: what is left is noise, which has no direction.
# It falls where *some* directions are lost.
#
# ## 8 Train
# `course.encoder()` loads the finished run if it is there, and trains it otherwise; it says which of the two.
# Stopping the kernel loses at most fifty steps: it resumes.

# %%
begun = time.perf_counter()
run = open_run(course.encoder())
config, metrics = run.config, run.metrics()
print(f"ready after {(time.perf_counter() - begun) / 60:.1f} minutes", end="; ")
print(f"the training took {metrics['seconds'].max() / 60:.1f} minutes")
print(
    f"{metrics['step'].max():.0f} steps, {metrics['epoch'].max():.1f} passes over the clips, {config.objective}, {config.arch}"
)

# %% [markdown]
# The loss may start above its dashed line: that is the confident guesser of section 6. A twentieth of the clips,
# whole tunes, was held out for validation pairs. Careful: this is not the `valid` split of notebook 1. Pre-training needs
# no labels, so it hears `train` and `valid` together, and holds out a few of their tunes to judge itself.
#
# The validation pairs are neither filtered nor masked and so easier to find: their
# curves may well look better than those of training. The dashed lines are what guessing gives.

# %%
train_clips, valid_clips = split_validation(clips)
sides, chance = {"train": train_clips, "valid": valid_clips}, {}
for side, side_clips in sides.items():
    b = min(config.batch_size, len(train_clips), len(side_clips))
    chance[side] = {"loss": np.log(b), "accuracy": 1 / b, "rank": (b + 1) / 2}
    print(f"{side}: {len(side_clips)} clips of {len(set(side_clips.groups))} tunes, B = {b}")
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2))
for ax, name in zip(axes, ("loss", "accuracy", "rank")):
    frames = {side: metrics.rename(columns={f"{side}/{name}": name}) for side in sides}
    plots.curves(frames, name, ax=ax)
    for side, colour in plots.colours(sides).items():
        ax.axhline(chance[side][name], ls="--", lw=1, color=colour)
    unit = {"loss": "loss (nats)", "accuracy": "in-batch accuracy", "rank": "mean rank of the positive"}[name]
    ax.set(ylabel=unit, ylim=(0, None))

# %% [markdown]
# ### What has become of W
# W began as the identity, which has 512 eigenvalues of 1. We split the trained W into its symmetric part, whose
# eigenvalues say how much each direction counts, and its skew part, which tells anchor from positive.

# %%
widgets.guess(
    "3-w",
    "W starts as the identity. What are its eigenvalues after four minutes of training?",
    {
        "all still near 1": "That would be a dot product to the end. W has its own gradient and does move.",
        "most near 1, a few far above": "A few directions count several times as much as the others; the rest has hardly moved.",
        "spread evenly between -1 and 1": "Half of all directions would then count against likeness. Nothing asks for that.",
    },
    "most near 1, a few far above",
)

# %%
from colalib.training.runs import read_checkpoint

after = cola.Cola(config, std=1.0)  # the checkpoint brings its own std
after.load_state_dict(read_checkpoint(run.path / "last.ckpt")["state_dict"])
_ = after.eval()

# %%
if config.objective == "bilinear":
    w = after.objective.weight.detach().double()
    symmetric, skew = (w + w.T) / 2, (w - w.T) / 2
    eigenvalues = torch.linalg.eigvalsh(symmetric).flip(0)
    print(f"diagonal of W: mean {w.diagonal().mean():.2f}, standard deviation {w.diagonal().std():.2f}")
    print(f"skew part: {100 * (skew.norm() / w.norm()) ** 2:.1f}% of the sum of squares")
    print(f"eigenvalues below 0: {(eigenvalues < 0).sum()} of {len(w)}")
    fig, ax = plt.subplots(figsize=(8, 2.6))
    ax.plot(range(1, len(w) + 1), eigenvalues, ".", color=plots.MODELS["bilinear"], label="trained W")
    ax.axhline(1, color=plots.MODELS["chance"], ls="--", label="identity")
    ax.set(xscale="log", xlabel="direction, largest first", ylabel="eigenvalue")
    ax.set_xticks([1, 10, 100, len(w)], [1, 10, 100, len(w)])
    ax.minorticks_off()
    ax.set_title("eigenvalues of the symmetric part of W")
    ax.legend()
else:
    print(f"the objective of this run is {config.objective}: it has no W")

# %% [markdown]
# If the skew part is a few per cent at most and hardly an eigenvalue lies below 0, W is nearly LLᵀ. The similarity is
# then a dot product after one more linear layer, with its scale learned. So what W adds here is to weigh directions, and
# not to tell anchor from positive. Both crops are drawn alike, so nothing distinguishes the two. That is what W *does*.
# Whether it *helps* is another question: it takes trainings with W and without.
#
# ### Does W help?
# So here are eight objectives: the cosine at four temperatures, and g with LayerNorm and tanh under four kinds of W. A
# *dot product* leaves W at the identity, *diagonal W* learns one weight per direction, *full W* is ours. *The paper's W*
# begins as random numbers, without the divisor √512. Each was trained for 300 steps of 64 pairs, with learning rates
# tried until the best one was no longer at an edge, and then from three seeds. What judges is a linear probe on h, over
# all clips that are not test: each fifth of the tunes is predicted by a fit on the others. (The rate was chosen by the same
# number of the first seed, so all settings look a little too good.) Two rows need no training:
# mean and deviation of the mel bands (`mel-stats`), and an untrained encoder (`random`).
#
# This takes an hour, so the course brings the result of
# `python -m colalib.course.experiments similarity data/scores.store --out data/similarity.json`.

# %%
widgets.guess(
    "3-similarity",
    "Which change is shown to make a difference, each objective with its own best learning rate?",
    {
        "a full W, against the dot product": "No gain is shown. The encoder below W may learn to weigh directions as well.",
        "the temperature of the cosine": "It decides how much the nearest distractors count, and with 64 pairs that matters.",
        "none: 300 steps are too few": "Two changes are shown: the temperature, and the paper's W (random at first, no divisor).",
    },
    "the temperature of the cosine",
)

# %%
import json

trained = json.loads((course.home() / "data" / "similarity.json").read_text(encoding="utf-8"))
fig, axes = plt.subplots(1, 2, figsize=(12, 3.8))
plots.results(trained, axes[0], title=f"linear probe on h, {trained['n_clips']:,} clips")
axes[0].set_xlabel("accuracy, five folds of tunes (%)")
others = [name for name in trained["model_name"][2:] if name != "bilinear, full W"]
_ = plots.differences(trained, [(m, "bilinear, full W") for m in others], axes[1], title="paired differences")

# %%
trainings = [r for r in trained["results"] if "lr" in r]
pairs_found = [f"{100 * np.mean(r['pairs_found']):.0f}%" for r in trainings]
about = {"learning rate": [r["lr"] for r in trainings], "validation pairs found": pairs_found}
display(pd.DataFrame(about, index=[r["model"] for r in trainings]))
is_shown = intervals.differences(trained).set_index(["a", "b"])["reading"] != "no difference shown"
for other in ("bilinear, diagonal W", "bilinear, full W"):  # what the text below says
    assert not is_shown[other, "bilinear, dot product"]
assert is_shown["bilinear, full W", "cosine, τ = 0.5"] and is_shown["bilinear, full W", "cosine, τ = 0.05"]
assert is_shown["bilinear, the paper's W", "bilinear, full W"]
reading = intervals.differences(trained).set_index("a").query("b == 'mel-stats'")["reading"]
assert {a for a, text in reading.items() if text == f"{a} is better"} == {
    "cosine, τ = 0.05",
    "cosine, τ = 0.1",
}

# %% [markdown]
# White ticks are single seeds. On the right, a dot is hollow if its interval holds zero. Two things are shown, and one is
# not.
# - **No gain from W.** Dot product, diagonal and full W can't be told apart. Perhaps the encoder and g learn what W could.
# - **Temperature matters.** The cosine is behind the full W at τ = 0.5 and ahead of it at 0.05, the smallest one tried.
#   The three smaller ones can't be told apart. Perhaps a large τ makes even a right answer timid, and the loss goes on
#   pulling at pairs that are found already.
# - **The paper's W is worse in a short training.** It differs from ours twice: it begins as random numbers, and there is
#   no divisor √512. This comparison can't say which of the two matters. The paper trains for 500 epochs on AudioSet.
#
# 300 steps are few: only the cosines at 0.05 and 0.1 are shown to be ahead of the mel statistics. Note that a dot
# product has a scale that is learned, too: LayerNorm in g has
# weights. Whether W brings more in a long training, as the paper found, we can't say.
#
# ### Together, and spread out
# What does the training do to h? Two numbers say it ([2005.10242](https://arxiv.org/abs/2005.10242)), computed on h minus
# its mean, scaled to length 1. **Alignment**: the mean squared distance of the two crops of a pair. **Uniformity**: the
# logarithm of the mean of exp(−2 · squared distance) of different clips. Both are better when they are lower. The run has
# kept its encoder at some steps on the way.


# %%
@torch.no_grad()
def spread(encoder: Encoder) -> tuple[float, float]:
    """Alignment and uniformity of h on the validation pairs."""
    sides = torch.stack([encoder(side) for side in valid_pairs])  # [2, B, 640]
    anchors, positives = F.normalize(sides - sides.mean(dim=(0, 1)), dim=2)
    alignment = (anchors - positives).square().sum(dim=1).mean()
    return alignment.item(), torch.pdist(anchors).square().mul(-2).exp().mean().log().item()


# %%
valid_pairs = segments.pair_batch(valid_clips, 0, len(valid_clips), seed=0)
steps = {step: run.load_encoder(file) for step, file in run.snapshots().items()}
for step, early in steps.items():
    if step < 200:  # batch norm has not followed the weights yet
        evaluation.calibrate_batchnorm(early, clips)
track = pd.DataFrame([spread(early) for early in steps.values()], steps, ["alignment", "uniformity"])
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for ax, name in zip(axes, track):
    ax.plot(track.index, track[name], "o-", color=plots.MODELS["bilinear"])
    ax.set(xscale="symlog", xlabel="step", ylabel=name)
    ax.set_xticks([0, 10, 100, 1000], [0, 10, 100, "1,000"])
    ax.minorticks_off()

# %% [markdown]
# In the first steps pairs come together, and other clips come a little nearer too. Then different clips spread out.
# Neither alone would do: collapse has a perfect alignment, and
# random directions a perfect uniformity.

# %% [markdown]
# ## 9 Before and after, on tunes that it has never trained on
# We use the held-out validation tunes, not the test clips: these stay closed until notebook 5. The
# weights are those of the last step: nothing was chosen on these tunes.
#
# From each held-out clip we cut a pair, several times over. The same architecture answers with random weights and with
# the trained ones, each with its own projection and W (the identity, before training). To be fair to random weights,
# we also compare their h by plain cosine, and ask the mean spectrum of notebook 2. Pre-training filtered and masked
# its segments. So we ask twice: crops as they are, and crops changed as in training.

# %%
widgets.guess(
    "3-filter",
    "Both crops are filtered at random and lose some bands. Who loses most of the pairs that it found before?",
    {
        "the trained encoder": "It has met such filters at every step of its training, and learned to look past them.",
        "the mean spectrum": "The filter changes exactly what it compares: the strength of each band.",
        "both lose about as many": "Some information is gone for both. But one of them loses far more.",
    },
    "the mean spectrum",
)

# %%
torch.manual_seed(config.seed)
before = cola.Cola(config, std=1.0)
evaluation.calibrate_batchnorm(before.encoder, clips)
models, n_valid = {"random": before.eval(), "trained": after}, len(valid_clips)
kinds = {"as it is": (), "filtered, masked": (config.filter_db, config.mask_bands)}


def held_out_pairs(number: int, kind: str) -> tuple[list[Tensor], np.ndarray]:
    """One pair per held-out clip, in the order of the clips: two of [N, T, M], and where the crops begin [2, N]."""
    chosen, starts = segments.pair_starts(valid_clips, number, n_valid, seed=1)
    pairs = segments.pair_batch(valid_clips, number, n_valid, 1, *kinds[kind])
    order = np.argsort(chosen)
    return [side[order] for side in pairs], starts[:, order]


# %%
@torch.no_grad()
def similarities(pairs: list[Tensor]) -> dict[str, Tensor]:
    """Similarity [N, N] by every model, for N pairs."""
    spectra = [(x - x.mean((1, 2), keepdim=True)).mean(dim=1) for x in pairs]  # [N, 64] each
    by_model = {"mean spectrum": -torch.cdist(*spectra)}
    for name, module in models.items():
        h, h_positive = (module.encoder(x) for x in pairs)  # [N, dim] each
        by_model[name] = module.objective(h, h_positive)[1]
        if name == "random":
            by_model["random, cosine of h"] = cola.cosine_similarity(h, h_positive)
    return by_model


found = {kind: [similarities(held_out_pairs(r, kind)[0]) for r in range(6)] for kind in kinds}
shape = tuple(found["filtered, masked"][0]["trained"].shape)
print(f"{n_valid} held-out clips, 6 pairs of each, as they are and changed; similarity {shape}")

# %%
row_of = {clip_id: row for row, clip_id in enumerate(store.ids)}
rows = np.array([row_of[clip_id] for clip_id in valid_clips.ids])  # of the held-out clips in the store
labels = store.clips["label"].values[rows]
order = np.argsort(labels, kind="stable")
spaced = np.linspace(0, len(order) - 1, min(32, len(order))).astype(int)
shown = order[spaced]  # up to 32 clips of all classes, sorted by class
fig, axes = plt.subplots(1, 2, figsize=(10, 4.2))
for ax, name in zip(axes, models):
    part = found["as it is"][0][name][shown][:, shown]
    place = part.argsort(dim=1, descending=True).argsort(dim=1) + 1  # 1: what anchor i answers first
    image = ax.imshow(place, cmap="magma_r", vmin=1, vmax=len(shown))
    ax.plot(part.argmax(dim=1), range(len(shown)), ".", color=plots.ROLES["anchor"], ms=5)
    first_of_class = np.flatnonzero(np.r_[True, labels[shown][1:] != labels[shown][:-1]])
    ax.set_yticks(first_of_class, labels[shown][first_of_class], fontsize=8)
    ax.set_xticks(first_of_class, labels[shown][first_of_class], fontsize=8, rotation=90)
    ax.set(xlabel="positive j, by class", ylabel="anchor i, by class", title=f"{name} weights")
_ = fig.colorbar(image, ax=axes, label="place of j among the answers of anchor i\n(1: most similar)")

# %% [markdown]
# Each row is a question; the blue dot is its first answer. Look for three things. A bright diagonal: pairs are
# found. Bright columns: some segments are similar to everything; dark ones: to nothing. Bright squares along the diagonal:
# clips of one class resemble each other, which nobody has asked for.
#
# Now in numbers, for batches of any size: a smaller batch is a part of the big matrix. The clips of one tune are not
# independent, so the 95% bands treat each tune as one observation. The loss of the mean spectrum and of the cosine of h is
# left out: these similarities were not made for a softmax.


# %%
def pair_scores(kind: str, name: str, batch: int) -> dict[str, float]:
    """Loss, accuracy with the half-width of its 95% band, and mean rank, over random batches of `batch` pairs."""
    rng, losses, ranks, drawn = np.random.default_rng(batch), [], [], []
    for by_model in found[kind]:
        for _ in range(-(-2 * n_valid // batch)):  # so many that a clip is drawn about twice
            chosen = rng.permutation(n_valid)[:batch]
            part = by_model[name][chosen][:, chosen]
            losses.append(contrastive(part).item())
            ranks.append(cola.ranks(part).float())
            drawn.append(chosen)
    rank = torch.cat(ranks).numpy()
    by_tune = pd.Series(rank == 1).groupby(valid_clips.groups[np.concatenate(drawn)]).mean()
    band = 1.96 * by_tune.std() / len(by_tune) ** 0.5
    return {"loss": np.mean(losses), "accuracy": (rank == 1).mean(), "band": band, "rank": rank.mean()}


# %%
b = min(32, n_valid)
guessing_scores = {"loss": np.log(b), "accuracy": 1 / b, "rank": (b + 1) / 2}
table = {}
for kind in kinds:
    scores = {name: pair_scores(kind, name, b) for name in found[kind][0]} | {"guessing": guessing_scores}
    table[kind] = pd.DataFrame(scores).T
table = pd.concat(table, axis=1).rename(columns={"band": "±"})
table.loc[["mean spectrum", "random, cosine of h"], (slice(None), "loss")] = np.nan
table.rename_axis(f"B = {b}, held-out clips").style.format("{:.3f}", na_rep="–").set_uuid("pairs")

# %% [markdown]
# Don't skip the baseline. On crops as they are, the mean spectrum may find nearly as many positives as the encoder, or
# more after a short training: where crops overlap it matches what is identical, and where they don't it matches
# instruments. Filter and mask take that away, and show what the encoder has learned beyond the spectrum. Look at the mean
# rank too: it tells who is far off when wrong. And finding pairs is only the means; what h is worth for another
# question is for notebooks 4 and 5 to say.
#
# ### How many candidates
# The same finished encoder, asked among 2 candidates, among 4, and so on.

# %%
widgets.guess(
    "3-candidates",
    "The trained encoder chooses among 8 candidates, then among 32. What happens to the share of positives found?",
    {
        "it rises": "More candidates tell the finished encoder nothing about the positive. It can only be misled.",
        "it stays": "Only if no added candidate were ever more similar than the positive.",
        "it falls": "Each further candidate can only take a place from the positive, never give it one.",
    },
    "it falls",
)

# %%
sizes = [b for b in (2, 4, 8, 16, 32, 64, 128, 256) if b <= n_valid]
colours = {"mean spectrum": plots.MODELS["mel-stats"]} | {name: plots.MODELS[name] for name in models}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
for name, colour in colours.items():
    for kind, style in (("as it is", "o-"), ("filtered, masked", "s:")):
        scores = pd.DataFrame([pair_scores(kind, name, b) for b in sizes])
        share, half = 100 * scores["accuracy"], 100 * scores["band"]
        axes[0].plot(sizes, share, style, color=colour, label=f"{name}, {kind}")
        axes[0].fill_between(sizes, share - half, share + half, color=colour, alpha=0.15, lw=0)
        if name in models and kind == "as it is":
            axes[1].plot(sizes, np.log(sizes) - scores["loss"], style, color=colour)
axes[0].plot(sizes, 100 / np.array(sizes), "--", color=plots.MODELS["chance"], label="guessing")
axes[1].plot(sizes, np.log(sizes), ":", color="black", label="ln B, the most that B can show")
axes[1].axhline(0, ls="--", color=plots.MODELS["chance"])
for ax, name in zip(axes, ("positive found (%)", "ln B − loss (nats)")):
    ax.set(xscale="log", xlabel="candidates B", ylabel=name)
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
axes[0].set_ylim(0, 102)
_ = fig.legend(loc="outside lower center", ncols=4, fontsize=8)

# %% [markdown]
# The encoder looks worse the more candidates there are, but only the question got harder: it is one encoder all along.
# For training, harder questions may help, because a task that is solved has nothing left to teach. **This figure does
# not show that.** It would take trainings with several batch sizes, each with a learning rate that suits it. In the
# paper, batches of 256, 512, 1024 and 2048 give 68.6, 70.3, 74.3 and 72.2% on the nine tasks.
#
# On the right is what the loss is worth. For clips drawn independently, ln B minus the loss is on average a lower bound
# of the information that two crops of a recording share: how much one crop tells about which recording the other is
# from (CPC, 1807.03748). It can never exceed ln B, however good the
# encoder is. That is a ceiling of the *measurement*. A tighter bound need not mean a better encoder (Tschannen et al.,
# [1907.13625](https://arxiv.org/abs/1907.13625)).
#
# ### Does a larger batch help?
# Here are such trainings, made and judged like those of section 8: COLA's objective with 16, 64 or 256 pairs per step,
# a learning rate tuned for each, three seeds. First with equal *steps*, 300. Then with equal *pairs*: 16 pairs for 1,200
# steps and 256 pairs for 75 hear as many as 64 pairs for 300.
# (`python -m colalib.course.experiments batch-size data/scores.store --out data/batch_size.json`)

# %%
widgets.guess(
    "3-batch",
    "All have heard equally many pairs. Which batch size gives the better probe?",
    {
        "16: the most steps": "Four times as many steps as 64, each with a quarter of the pairs. No gain is shown.",
        "256: the most distractors": "Its questions are harder, but 75 steps are few. It comes out a little behind 64.",
        "neither is ahead of 64": "At this size the probe follows the number of pairs heard more than how they are grouped.",
    },
    "neither is ahead of 64",
)

# %%
batches = json.loads((course.home() / "data" / "batch_size.json").read_text(encoding="utf-8"))
middle = "64 pairs, 300 steps"
fig, axes = plt.subplots(1, 2, figsize=(12, 3))
plots.results(batches, axes[0], title=f"linear probe on h, {batches['n_clips']:,} clips")
axes[0].set_xlabel("accuracy, five folds of tunes (%)")
others = [name for name in batches["model_name"][2:] if name != middle]
_ = plots.differences(batches, [(m, middle) for m in others], axes[1], title="paired differences")

# %%
trainings = [r for r in batches["results"] if "lr" in r]
about = {
    "learning rate": [r["lr"] for r in trainings],
    "validation pairs found": [f"{100 * np.mean(r['pairs_found']):.0f}%" for r in trainings],
}
display(pd.DataFrame(about, index=[r["model"] for r in trainings]))
reading = intervals.differences(batches).set_index(["a", "b"])["reading"]
assert reading["256 pairs, 300 steps", middle] == "256 pairs, 300 steps is better"  # what the text below says
assert reading[middle, "16 pairs, 300 steps"] == f"{middle} is better"
assert reading["16 pairs, 1,200 steps", middle] == "no difference shown"
assert reading["256 pairs, 75 steps", middle] == f"{middle} is better"

# %% [markdown]
# With equal steps, a larger batch is clearly better: 12 points from 64 to 256 pairs. But it has heard four times as many
# pairs, and takes about four times as long here. With equal pairs, 16 and 64 can't be told apart, and 256 is a little behind
# 64, just shown. So on two cores a larger batch gains nothing as such: train longer. A GPU computes many pairs at once. If a
# larger batch takes it hardly more time, then it pays there.
#
# A larger batch changes four things at once: the question is harder, the ceiling ln B is higher, the same pairs make fewer
# steps, and more of the distractors share the anchor's class (notebook 2). Our two comparisons separate steps from pairs
# and no more. And they end at 256: whether 1,024 pairs are better than 256, as in the paper, is not shown here.
#
# ### Hear a mistake
# The anchor whose answer is most wrong, its positive, and the second that the encoder took instead.

# %%
answered = found["as it is"][0]["trained"]
others = answered.clone().fill_diagonal_(-torch.inf)
_, worst = (answered.diagonal() - others.max(dim=1).values).min(dim=0)
wrong = int(others[worst].argmax())
_, crop_starts = held_out_pairs(0, "as it is")
for role, side, i in (
    ("anchor", 0, int(worst)),
    ("its positive", 1, int(worst)),
    ("taken instead", 1, wrong),
):
    clip, start = store.clips.iloc[rows[i]], crop_starts[side, i]
    samples = slice(start * store.mel.hop, (start + segments.SEGMENT_FRAMES) * store.mel.hop)
    print(f"{role}: {clip['label']}, {clip['family']}, {clip['title']}")
    display(plots.player(audio.load_audio(corpus.root / clip["path"])[samples]))

# %% [markdown]
# If the wrong one sounds more like the anchor than the right one does, don't blame the encoder. A piece may change
# from one second to the next, and then the task asks for something that isn't there. And if both bear the same title,
# look back at the false negatives of notebook 2.
#
# ## 10 Your own training
# Every setting of `PretrainConfig` is an option of `python -m colalib pretrain`; the panel shows some of them, with the
# paper's value where it has one. A training is a process of its own: it goes on while you read, and Stop loses nothing that
# Resume can't pick up. Does the triplet loss learn something in a minute? What do 16 pairs per batch cost, and what do 256?
# Careful with that last question: in the curves a run is validated among as many candidates as its batch has, so the curves
# of runs with different batch sizes can't be compared. The table can: it judges the last weights of every run on the same
# held-out pairs. It also says how often the nearest held-out clip has the same label, and in how many directions $h$
# spreads (its effective rank; 1 is a collapse). All three come from few clips: a hint, and not a result. An encoder that
# you pick here is the one that notebooks 4 to 7 use.

# %% tags=["widget"]
widgets.training_panel([store.path], course.runs())

# %% [markdown]
# ## Recap
# You can now
# - draw the parts of COLA, say where each idea came from, and where this course departs from the paper: triplets are
#   FaceNet's, cross-entropy over candidates is CPC's, the batch of distractors is SimCLR's, the bilinear similarity on
#   sound is COLA's; √512, both directions, W = I and the rest of the table are ours;
# - write the triplet loss, the contrastive loss and the bilinear similarity, so that training can use them;
# - write the training step, and check it against colalib's: same seed, same pairs, same losses;
# - say what a loss means: guessing costs ln B, finds 1/B, and ranks the positive (B + 1)/2 on average;
# - read the curves of a pre-training, and compare the encoder before and after on tunes it has never trained on, at the
#   same B, beside a simple baseline, with filters and without;
# - explain what more candidates change about the question, and what that does not say about training.
#
# **Next**, [notebook 4](04_fine_tuning.ipynb): the encoder meets labels.

# %% [markdown]
# ## Exercises
# Replace `raise NotImplementedError` and run the cell below it. The lesson doesn't depend on it.
#
# ### 3.1 What guessing gives · easy · 5 minutes
# Someone has not listened. Give the loss if all B answers of a row get equal probabilities, and the accuracy and the mean
# rank if the order of the answers is drawn at random.


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


_ = course.exercise(guessing, check_guessing)

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
    length = "the length of an embedding should not matter: cosine"
    assert torch.isclose(loss, answer(3 * a, b), atol=1e-5), length
    assert torch.isclose(loss, answer(b, a), atol=1e-5), "the two sides should be interchangeable"
    alike = answer(torch.ones(6, 5), torch.ones(6, 5)).item()
    assert not np.isclose(alike, np.log(12)), "ln 2B for equal embeddings: a segment competes with itself"
    assert np.isclose(alike, np.log(11), atol=1e-4), "equal embeddings should cost ln(2B - 1)"
    everyone, losses = F.normalize(torch.cat([a, b]), dim=1), []
    for i in range(12):
        logits = [everyone[i] @ everyone[j] / 0.2 for j in range(12) if j != i]
        losses.append(torch.stack(logits).logsumexp(0) - everyone[i] @ everyone[(i + 6) % 12] / 0.2)
    assert torch.isclose(loss, torch.stack(losses).mean(), atol=1e-4), "the value differs from a slow loop's"


_ = course.exercise(nt_xent, check_nt_xent)

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
    assert answer(hard, 0.5) == 0, "distractors nearer than the positive are not semi-hard: leave them out"
    mixed = torch.tensor([[0.6, 0.5, -0.9], [0.9, 0.6, 0.3], [0.0, 0.0, 0.6]])
    value = float(answer(mixed, 0.5))
    known = f"semi-hard are s(0, 1) = 0.5 and s(1, 2) = 0.3: mean 0.3, not {value:.3f}"
    assert np.isclose(value, 0.3, atol=1e-5), known
    same = torch.full((3, 3), 0.5)
    assert answer(same, 0.5) == 0, "a positive is not its own distractor; equal is not lower"
    rows = mixed.clone().requires_grad_()
    answer(rows, 0.5).backward()
    pull = "the gradient should pull the positive up and push the distractor down"
    assert rows.grad[0, 0] < 0 < rows.grad[0, 1], pull


_ = course.exercise(semi_hard_loss, check_semi_hard)

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
