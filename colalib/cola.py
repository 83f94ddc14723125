"""COLA, the method: similarities, losses, ranks, and the LightningModule that trains an encoder with them.

COLA is contrastive learning of general-purpose audio representations (Saeed, Grangier & Zeghidour
2021, arXiv 2010.10915). Two crops of one clip are a pair: an anchor and its positive. All other
clips of the batch are distractors. The encoder (`encoder.py`) turns each crop into h. An objective
projects h by g, compares every anchor with every positive, and asks: which of the B positives
belongs to this anchor?

Batches come from `data.segments.pair_batch`. `training.pretraining` runs the training.
"""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from colalib.encoder import Encoder
from colalib.fast_cpu import encode_batches
from colalib.settings import PretrainConfig

# --------------------------------------------------------------------------------- losses and ranks


def contrastive_loss(similarity: Tensor, symmetric: bool = True) -> Tensor:
    """Return the cross-entropy of finding each anchor's positive in a batch (COLA, equation 2).

    `similarity` [B, B] holds s(anchor i, positive j), so its diagonal holds the pairs. Returns a
    scalar in nats. If all B candidates look alike, it is ln B. The paper asks in one direction,
    anchor → positive; `symmetric` also asks positive → anchor and returns the mean of both.
    """
    # anchor i belongs to positive i
    target = torch.arange(len(similarity), device=similarity.device)
    loss = F.cross_entropy(similarity, target)
    return (loss + F.cross_entropy(similarity.T, target)) / 2 if symmetric else loss


def triplet_loss(similarity: Tensor, margin: float = 0.5) -> Tensor:
    """Return the mean hinge max(0, margin - s(a, p) + s(a, d)) over all triplets of a batch.

    A triplet is an anchor a, its positive p and one distractor d: a batch `similarity` [B, B] has B
    (B - 1) of them. Returns a scalar (Schroff et al. 2015, arXiv 1503.03832, equation 3, with
    similarities instead of distances).
    """
    size = len(similarity)
    violation = F.relu(margin - similarity.diagonal()[:, None] + similarity)  # [B, B]
    # on the diagonal the "distractor" is the positive itself: leave these B out
    return (violation.sum() - violation.diagonal().sum()) / (size * (size - 1))


def ranks(similarity: Tensor) -> Tensor:
    """Return the rank of each anchor's positive among the batch: `similarity` [B, B] → [B] integers.

    1 is best, B is worst, and guessing gives (B + 1) / 2 on average. A distractor that is exactly as
    similar counts as better, and so does NaN: where all are alike, nothing was found.
    """
    return (~(similarity < similarity.diagonal()[:, None])).sum(dim=1)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of every row of `a` [A, d] with every row of `b` [B, d] → [A, B]."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def gather_embeddings(h: Tensor) -> Tensor:
    """Return the embeddings of all n processes, in the order of their ranks: [B/n, d] → [B, d].

    So every clip of the whole batch is a distractor for every other one. Gradients flow back into
    each process. Every process computes the loss of the whole batch, and DDP averages the
    gradients: the weights move as they would in one process with the whole batch.
    """
    return torch.cat(all_gather(h)) if is_initialized() else h


# --------------------------------------------------------------------------------------- objectives
# An objective is a module with its own projection g. It is called as
# `loss, similarity = objective(h_anchor, h_positive)` with h [B, dim]. After pre-training, g is dropped.


class Bilinear(nn.Module):
    """COLA's objective: g(h) = tanh(LayerNorm(Linear(h))), similarity g(x)ᵀ W g(x') / √size (section 2).

    The loss is the cross-entropy over the batch.

    There is no temperature. Two details differ from the paper, which draws W from a normal
    distribution and does not divide:
    - W starts as the identity, so that similar projections count as similar from the first step.
    - The sum is divided by √size: Adam moves each of the size² entries of W by the same amount, and
      without the divisor their sum overshoots.

    >>> loss, similarity = Bilinear(dim=640)(torch.randn(8, 640), torch.randn(8, 640))
    >>> similarity.shape
    torch.Size([8, 8])
    """

    def __init__(self, dim: int, size: int = 512, dropout: float = 0.1, symmetric: bool = True):
        super().__init__()
        drop = nn.Dropout(dropout)
        self.project = nn.Sequential(drop, nn.Linear(dim, size), drop, nn.LayerNorm(size), nn.Tanh(), drop)
        self.weight = nn.Parameter(torch.eye(size))  # W [size, size]
        self.symmetric = symmetric

    def forward(self, anchor: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        g_anchor, g_positive = self.project(anchor), self.project(positive)  # [B, size]
        similarity = g_anchor @ self.weight @ g_positive.T * len(self.weight) ** -0.5  # [B, B]
        return contrastive_loss(similarity, self.symmetric), similarity


class Cosine(nn.Module):
    """Cross-entropy on cosine similarity / temperature: the paper's variant (COLA, section 4.2).

    g is linear, without LayerNorm and tanh; the paper's temperature is 0.2. This is NT-Xent of
    SimCLR (arXiv 2002.05709) without distractors from the anchors' own side.
    """

    def __init__(
        self,
        dim: int,
        size: int = 512,
        dropout: float = 0.1,
        symmetric: bool = True,
        temperature: float = 0.2,
    ):
        super().__init__()
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, size), nn.Dropout(dropout))
        self.symmetric = symmetric
        self.temperature = temperature

    def forward(self, anchor: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        similarity = cosine_similarity(self.project(anchor), self.project(positive))  # [B, B]
        return contrastive_loss(similarity / self.temperature, self.symmetric), similarity


class Triplet(nn.Module):
    """Triplet loss on cosine similarity: discriminative pre-training (DPT), the simpler ancestor of COLA.

    Every other clip of the batch is a distractor.
    """

    def __init__(self, dim: int, size: int = 512, dropout: float = 0.1, margin: float = 0.5):
        super().__init__()
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, size), nn.Dropout(dropout))
        self.margin = margin

    def forward(self, anchor: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        similarity = cosine_similarity(self.project(anchor), self.project(positive))  # [B, B]
        return triplet_loss(similarity, self.margin), similarity


def build_objective(config: PretrainConfig, dim: int) -> nn.Module:
    """Return the objective that `config` names, for embeddings h [B, dim]."""
    if config.objective == "bilinear":
        return Bilinear(dim, dropout=config.dropout, symmetric=config.symmetric)
    if config.objective == "cosine":
        return Cosine(dim, dropout=config.dropout, symmetric=config.symmetric, temperature=config.temperature)
    return Triplet(dim, dropout=config.dropout, margin=config.margin)


# ----------------------------------------------------------------------------------------- training


class Cola(lightning.LightningModule):
    """Contrastive pre-training of an encoder. A batch is (anchors, positives), each [B, T, M].

    Logs the loss, the accuracy within the batch (share of positives with rank 1) and the mean rank
    of the positive, as `train/loss` and so on. `std` is the standard deviation of the pre-training
    segments (see `Encoder`).
    """

    # decides which weights best.ckpt holds; the encoder is that of the last step
    monitor = ("valid/loss", "min")

    def __init__(self, config: PretrainConfig, std: float):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.arch, std)
        self.objective = build_objective(config, self.encoder.dim)

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Return the loss of a batch, and log it with accuracy and rank under `stage`."""
        anchors, positives = batch  # [B, T, M] each
        h = encode_batches(self.encoder, [anchors, positives], self.config.chunk)  # two of [B, dim]
        if stage == "train":
            h = [gather_embeddings(x) for x in h]  # with several processes: B of all of them
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 would make ties of like similarities
            loss, similarity = self.objective(*h)  # scalar, [B, B]
        rank = ranks(similarity.detach()).float()  # [B]
        values = {"loss": loss, "accuracy": (rank == 1).float().mean(), "rank": rank.mean()}
        values = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict(values, batch_size=len(anchors), sync_dist=stage != "train")
        return loss

    def training_step(self, batch, index):
        return self.step(batch, "train")

    def validation_step(self, batch, index):
        return self.step(batch, "valid")

    def test_step(self, batch, index):
        return self.step(batch, "test")

    def configure_optimizers(self):
        # one kernel for all weights, where torch has it
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(
            self.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay, fused=fused
        )
