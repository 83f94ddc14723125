"""FMA (Defferrard et al. 2017, arXiv 1612.01840) from a local folder: official split, groups =
artists.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from colalib.data.corpus import Corpus
from colalib.errors import UserError

SUBSETS = {
    "fma_small": ["small"],
    "fma_medium": ["small", "medium"],
    "fma_large": ["small", "medium", "large"],
}
SPLITS = {"training": "train", "validation": "valid", "test": "test"}
# track ids listed by the data set's authors (repository mdeff/fma, "known issues")
UNUSABLE = {99134: "silent", 108925: "silent", 133297: "silent"} | {
    track: "short: about 1-2 s of audio" for track in (98565, 98567, 98569)
}


def load(name: str, data: Path) -> Corpus:
    """One of fma_small, fma_medium, fma_large, unpacked at `data/<name>` with
    `data/fma_metadata/tracks.csv` beside it.

    Columns: label (top genre, "" where a track has none), group (artist id), split (official;
    pre-training leaves out every `test` clip, so those of fma_small too when it uses fma_large),
    subset. An artist who stands on two sides of the official split keeps the clips of the stricter
    side (test, then valid); the others are excluded with the reason.
    """
    root, tracks = data / name, data / "fma_metadata" / "tracks.csv"
    for needed in (root, tracks):
        if not needed.exists():
            raise UserError(
                f"{needed} not found: fetch it with `python -m colalib fetch {name}`, or unpack {name}.zip and "
                f"fma_metadata.zip in {data}, or name their folder with --data"
            )
    try:
        table = pd.read_csv(tracks, index_col=0, header=[0, 1], low_memory=False)
        table = table[table["set", "subset"].isin(SUBSETS[name])]
        clips = pd.DataFrame(
            {
                "path": [f"{i:06d}"[:3] + f"/{i:06d}.mp3" for i in table.index],
                "clip_id": [f"{i:06d}" for i in table.index],
                "label": table["track", "genre_top"].fillna("").values,
                "group": table["artist", "id"].astype(str).values,
                "split": table["set", "split"].map(SPLITS).values,
                "subset": table["set", "subset"].values,
            },
            index=table.index,
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{tracks}: not FMA's table of tracks ({error}): unpack fma_metadata.zip again"
        ) from None
    reason = pd.Series(UNUSABLE).reindex(clips.index)
    rank = clips["split"].map({"train": 0, "valid": 1, "test": 2})
    strictest = rank.groupby(clips["group"]).transform("max")
    reason = reason.where(
        reason.notna() | (rank == strictest), "its artist is also on a stricter side of the split"
    )
    excluded = pd.DataFrame({"path": clips["path"], "reason": reason})[reason.notna()]
    return Corpus(name, root, clips[reason.isna()], excluded.reset_index(drop=True))
