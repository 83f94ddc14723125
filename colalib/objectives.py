"""Contrastive objectives: what turns two batches of embeddings into a loss.

Each is a module with its own projection g, called as `loss, similarity = objective(h_anchor, h_positive)`: `similarity`
[B, B] holds s(anchor i, positive j), so its diagonal is the pairs and every other entry a distractor. Takes h from
`models.Encoder`, serves `training.Cola`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F


def gathered(h: Tensor) -> Tensor:
    """Embeddings [B/n, d] of this process → [B, d] of all n processes of a training, in the order of their ranks, so that every
    clip of the whole batch is a distractor of every other. Gradients flow back into each process: the loss of the whole,
    computed in every process and averaged as DDP does, moves the weights as one process with the whole batch would."""
    return torch.cat(all_gather(h)) if is_initialized() else h


def contrastive_loss(similarity: Tensor, symmetric: bool = True) -> Tensor:
    """Cross-entropy of finding each anchor's positive among the batch [B, B] → scalar (COLA, equation 2).

    The paper goes one way, anchor → positive; `symmetric` averages it with positive → anchor.
    """
    target = torch.arange(len(similarity), device=similarity.device)
    loss = F.cross_entropy(similarity, target)
    return (loss + F.cross_entropy(similarity.T, target)) / 2 if symmetric else loss


def triplet_loss(similarity: Tensor, margin: float = 0.5) -> Tensor:
    """Hinge over every (anchor, positive, distractor) of the batch [B, B] → scalar: max(0, margin - s(a, p) + s(a, d)),
    averaged over the B(B - 1) triplets (Schroff et al. 2015, arXiv 1503.03832, equation 3, with similarities)."""
    size = len(similarity)
    violation = F.relu(margin - similarity.diagonal()[:, None] + similarity)  # [B, B]
    return (violation.sum() - violation.diagonal().sum()) / (size * (size - 1))


def ranks(similarity: Tensor) -> Tensor:
    """Place of each anchor's positive among the batch [B, B] → [B]: 1 is best, B the worst, (B + 1)/2 chance. What is no number
    comes last."""
    better = ~(similarity <= similarity.diagonal()[:, None])
    return (1 + better.sum(dim=1)).clamp(max=len(similarity))


class Bilinear(nn.Module):
    """COLA (arXiv 2010.10915, section 2): g = tanh(LayerNorm(Linear(h))), s(x, x') = g(x)ᵀ W g(x') / √size, cross-entropy
    over the batch, no temperature.

    The paper draws W from a normal distribution and has no √size. Here W starts as the identity, so that likeness counts
    from the first step; and as Adam moves each of the size² entries by the same amount, without the divisor their sum
    overshoots.

    >>> loss, similarity = Bilinear(dim=640)(torch.randn(8, 640), torch.randn(8, 640))
    >>> similarity.shape
    torch.Size([8, 8])
    """

    def __init__(self, dim: int, size: int = 512, dropout: float = 0.1, symmetric: bool = True):
        super().__init__()
        drop = nn.Dropout(dropout)
        self.project = nn.Sequential(drop, nn.Linear(dim, size), drop, nn.LayerNorm(size), nn.Tanh(), drop)
        self.weight = nn.Parameter(torch.eye(size))  # W
        self.symmetric = symmetric

    def forward(self, anchor: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        similarity = self.project(anchor) @ self.weight @ self.project(positive).T * len(self.weight) ** -0.5  # [B, B]
        return contrastive_loss(similarity, self.symmetric), similarity


class Cosine(nn.Module):
    """Cosine similarity divided by a temperature, cross-entropy over the batch: the paper's variant with τ = 0.2 and neither
    LayerNorm nor tanh (COLA, section 4.2; NT-Xent of SimCLR, arXiv 2002.05709, without same-side distractors)."""

    def __init__(
        self, dim: int, size: int = 512, dropout: float = 0.1, symmetric: bool = True, temperature: float = 0.2
    ):
        super().__init__()
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, size), nn.Dropout(dropout))
        self.symmetric, self.temperature = symmetric, temperature

    def forward(self, anchor: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        similarity = cosine_similarity(self.project(anchor), self.project(positive))  # [B, B]
        return contrastive_loss(similarity / self.temperature, self.symmetric), similarity


class Triplet(nn.Module):
    """DPT, the simpler ancestor: triplet loss on the cosine similarity, with every other clip of the batch as distractor."""

    def __init__(self, dim: int, size: int = 512, dropout: float = 0.1, margin: float = 0.5):
        super().__init__()
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, size), nn.Dropout(dropout))
        self.margin = margin

    def forward(self, anchor: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        similarity = cosine_similarity(self.project(anchor), self.project(positive))  # [B, B]
        return triplet_loss(similarity, self.margin), similarity


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of `a` [A, d] with every row of `b` [B, d] → [A, B]."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


OBJECTIVES = {"bilinear": Bilinear, "cosine": Cosine, "triplet": Triplet}
