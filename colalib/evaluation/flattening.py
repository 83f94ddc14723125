"""Maps: places in two dimensions for embeddings, by UMAP (arXiv 1802.03426)."""

from __future__ import annotations

import numpy as np
from sklearn.preprocessing import StandardScaler

from colalib.errors import UserError


def flatten(
    x: np.ndarray,
    neighbours: int = 15,
    min_dist: float = 0.1,
    metric: str = "euclidean",
    seed: int = 0,
    **more,
) -> np.ndarray:
    """Return UMAP's places of vectors, [n, d] → [n, 2]. One thread, so that the seed decides everything.

    `more` goes to `umap.UMAP`. Raises `UserError` for fewer than 4 vectors.
    """
    import umap  # takes seconds

    if len(x) < 4:
        raise UserError(f"{len(x)} clips are too few for UMAP: take at least 4")
    settings = {"n_neighbors": min(neighbours, len(x) - 1), "min_dist": min_dist, "metric": metric, **more}
    return umap.UMAP(**settings, random_state=seed, n_jobs=1).fit_transform(x)


def layout(features: np.ndarray, **settings) -> np.ndarray:
    """Return places on a map of embeddings, [n, d] → [n, 2]: `flatten` of the standardised embeddings.

    Clips that are fewer than 4, or all equal, stand in a circle: UMAP has nothing to go by.
    """
    x = StandardScaler().fit_transform(features)
    if len(x) < 4 or np.ptp(features, axis=0).max() < 1e-6:
        angles = 2 * np.pi * np.arange(len(x)) / len(x)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return flatten(x, **settings)
