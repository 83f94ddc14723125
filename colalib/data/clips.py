"""Clips of one or several stores under one numbering, and how they are divided for pre-training.

Frames come from `store`. Crops and batches are made in `segments`, embeddings in `evaluation`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pandas as pd

from colalib.data.store import MelStore
from colalib.data.streams import stream
from colalib.errors import UserError

VALIDATION_SHARE = 1 / 20  # of the pre-training clips; more would be lost for training,
VALIDATION_CLIPS = 256  # and more than this would only take time


class Clips:
    """Chosen clips of one or more stores, numbered from 0.

    `rows` holds for each store the row numbers of its chosen clips. `ids` [n] are unique across
    stores; `groups` [n] are what must not be on both sides of a split. Raises `UserError` if the
    stores differ in their mel settings.
    """

    def __init__(self, stores: list[MelStore], rows: list[np.ndarray]):
        if any(store.mel != stores[0].mel for store in stores):
            raise UserError(
                f"{stores[0].path} and another store were made with other mel settings: prepare them alike"
            )
        self.stores = stores
        self.mel = stores[0].mel
        self._where = [(store, int(row)) for store, chosen in zip(stores, rows) for row in chosen]
        self.ids = np.array([store.ids[row] for store, row in self._where])
        self.groups = np.array(
            [
                f"{store.id_prefix}/{group}"
                for store, chosen in zip(stores, rows)
                for group in store.clips["group"].values[chosen]
            ]
        )

    @classmethod
    def of_store(cls, store: MelStore) -> Clips:
        """All clips of a store, numbered by their rows."""
        return cls([store], [np.arange(len(store))])

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames of each clip, [T, M]."""
        return map(self.frames, range(len(self)))

    def frames(self, i: int) -> np.ndarray:
        """Return the log-mel frames of clip i, float16 [T, M]."""
        store, row = self._where[i]
        return store.frames(row)

    def column(self, name: str) -> np.ndarray:
        """Return what clips.csv says of each clip in a column, [n]; "" where a store has no such column."""
        return np.array([store.clips.get(name, {}).get(row, "") for store, row in self._where], dtype=object)

    def take(self, chosen: np.ndarray) -> Clips:
        """Return the clips numbered `chosen`, numbered anew from 0."""
        taken = copy.copy(self)
        taken._where = [self._where[i] for i in chosen]
        taken.ids = self.ids[chosen]
        taken.groups = self.groups[chosen]
        return taken


def pretraining_clips(stores: list[MelStore], leave_out: str | None = None) -> Clips:
    """Return the clips that pre-training may see: all but `split == test` and the fold `leave_out`.

    Without `leave_out` these are all clips of stores with folds, because labels are never used.
    Raises `UserError` if no store has that fold.
    """
    if leave_out is not None and not any((store.clips["split"] == leave_out).any() for store in stores):
        raise UserError(f"no fold {leave_out!r} in these stores: nothing to leave out")
    hidden = ["test", leave_out]
    return Clips(stores, [np.flatnonzero(~store.clips["split"].isin(hidden)) for store in stores])


def split_validation(clips: Clips) -> tuple[Clips, Clips]:
    """Return clips to train on and clips for validation pairs, the same for trainings of any seed.

    Validation gets whole groups, drawn at random, up to 5% of the clips or 256. Where hardly any group
    is as small as that, it gets the smallest groups that together have two clips: with a few large
    groups that may be a large part. If all clips are one group, both are all clips.
    """
    if len(clips) < 2:
        return clips, clips
    groups = stream("validation", 0).permutation(np.unique(clips.groups))
    sizes = pd.Series(clips.groups).value_counts()[groups]
    room = min(VALIDATION_CLIPS, len(clips) * VALIDATION_SHARE)
    chosen = []
    for group, size in sizes.items():
        if size <= room:
            chosen.append(group)
            room -= size
    if sizes[chosen].sum() < 2:
        total = sizes.sort_values(kind="stable").cumsum()
        chosen = total.index[total <= total[total >= 2].iloc[0]]
    held_out = np.isin(clips.groups, chosen)
    if held_out.all():
        return clips, clips
    return clips.take(np.flatnonzero(~held_out)), clips.take(np.flatnonzero(held_out))
