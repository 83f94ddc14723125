"""Search: the clips of a collection that sound most like a given one.

Exact: every embedding is compared, in blocks of bounded memory. Then the segments of the few clips found tell
at which second they are alike.
"""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.preprocessing import StandardScaler, normalize

from colalib.collection.opening import Collection, open_collection, scale_of, similarities
from colalib.data.segments import EVAL_HOP_FRAMES
from colalib.errors import UserError
from colalib.evaluation.embedding import Windows, decoder, embed_clips

MOST_SEGMENTS = 600  # of a clip: of one longer than five minutes they lie further apart
PLACED = 100  # hits of which the seconds are told: each is embedded again


def search(
    source: str | Path,
    clip: str | Path,
    k: int = 10,
    encoder: str | Path = "default",
    other_groups: bool = False,
    **options,
) -> pd.DataFrame:
    """Return the `k` clips of `source` that are nearest to `clip`, nearest first.

    `source`: a folder, a store, or a known corpus. `clip`: a clip_id of it, or any audio file. `other_groups`
    leaves out the clips of its own group; the clip itself is always left out. `options`: see
    `open_collection`.

    Columns: rank; similarity, the cosine of standardised embeddings, as in `evaluation.neighbours`; clip_id,
    path, label, group; `second`, where the segment begins that is most like one of the query, and
    `query_second`, where that one begins (of the first 100). Raises `UserError` for a clip or a source that
    cannot be used.
    """
    with open_collection(source, encoder, **options) as collection:
        if options.get("progress"):
            for note in collection.notes:
                print(f"note: {note}", file=sys.stderr)
        row = row_of(collection, clip)
        frames = None if row is not None else read_query(collection, Path(clip))
        if row is None and other_groups:
            raise UserError(f"{clip} is no clip of {source}: other groups than its own are not known")
        table, groups = collection.table, collection.table["group"].values
        scale = scale_of(collection.vectors)
        if row is None:
            vector = embed_clips(collection.features, [frames], collection.store)[0]
        else:
            vector = collection.vectors[row]
        similarity = similarities(collection.vectors, scale, scale.transform(vector))
        hidden = np.zeros(len(table), bool) if row is None else np.arange(len(table)) == row
        if other_groups:
            hidden |= groups == groups[row]
        others = np.flatnonzero(~hidden)
        if not len(others):
            raise UserError(
                f"{source} has no other {'group' if other_groups else 'clip'} than that of {clip}"
            )
        nearest = others[np.argsort(-similarity[others], kind="stable")[:k]]
        found = table.iloc[nearest][["clip_id", "path", "label", "group"]].reset_index(drop=True)
        found.insert(0, "rank", np.arange(1, len(found) + 1))
        found.insert(1, "similarity", similarity[nearest])
        places = best_seconds(collection, nearest[:PLACED], row, frames)
        places = pd.DataFrame(places, columns=["second", "query_second"])
        return pd.concat([found, places], axis=1)


def row_of(collection: Collection, clip: str | Path) -> int | None:
    """Return the number of a clip, named by its id or its file; None for another file.

    Raises `UserError` with the nearest names if there is neither.
    """
    ids = collection.table["clip_id"]
    (rows,) = np.nonzero((ids == str(clip)).values)
    if len(rows):
        return int(rows[0])
    if not Path(clip).is_file():
        near = difflib.get_close_matches(str(clip), ids, n=3, cutoff=0.4)
        near = f"; the nearest names are {', '.join(map(repr, near))}" if near else ""
        raise UserError(f"{str(clip)!r} is neither a clip_id of {collection.store.name} nor a file{near}")
    if collection.audio:
        # as it is named, and where it leads: either may be a link
        for absolute in (os.path.abspath, os.path.realpath):
            root, path = Path(absolute(collection.audio)), Path(absolute(clip))
            if path.is_relative_to(root):
                (rows,) = np.nonzero((collection.table["path"] == path.relative_to(root).as_posix()).values)
                if len(rows):
                    return int(rows[0])
    return None


def read_query(collection: Collection, file: Path) -> np.ndarray:
    """Return a file as the encoder takes it: frames [T, M] or samples [n]. Raises `UserError`."""
    clip, reason = decoder(collection.features, collection.store.mel)(file)
    if clip is None:
        raise UserError(f"{file}: {reason}")
    return clip


def best_seconds(
    collection: Collection, found: np.ndarray, row: int | None, frames: np.ndarray | None
) -> list[tuple[float, float]]:
    """Return where each found clip is most like the query: seconds in the clip, and in the query."""
    mel = collection.store.mel
    windows = Windows(collection.features, mel, mel.seconds(EVAL_HOP_FRAMES), most=MOST_SEGMENTS)
    if row is not None:
        vectors = windows.of_store(collection.store, np.concatenate([[row], found]))
    else:
        query = embed_clips(collection.features, windows.cut([frames]), collection.store)
        vectors = np.concatenate([query, windows.of_store(collection.store, found)])
    unit = normalize(StandardScaler().fit_transform(vectors))
    query, *clips = np.split(unit, np.cumsum([len(starts) for starts in windows.starts])[:-1])
    places = []
    for starts, clip in zip(windows.starts[1:], clips):
        in_clip, in_query = np.unravel_index(np.argmax(clip @ query.T), (len(clip), len(query)))
        places.append((round(starts[in_clip], 2), round(windows.starts[0][in_query], 2)))
    return places
