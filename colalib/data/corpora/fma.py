"""FMA (Defferrard et al. 2017, arXiv 1612.01840) as a table of clips: official split, grouped by
artist.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from colalib.data.corpus import Corpus
from colalib.errors import UserError, first_line

SUBSETS = {
    "fma_small": ["small"],
    "fma_medium": ["small", "medium"],
    "fma_large": ["small", "medium", "large"],
}
SPLITS = {"training": "train", "validation": "valid", "test": "test"}
# track ids that the authors of the data set list (repository mdeff/fma, "known issues")
UNUSABLE = dict.fromkeys((99134, 108925, 133297), "silent")
UNUSABLE |= dict.fromkeys((98565, 98567, 98569), "short: about 1-2 s of audio")


def load(name: str, data: Path) -> Corpus:
    """Return the table of fma_small, fma_medium or fma_large from `data/<name>` and
    `data/fma_metadata/tracks.csv`.

    Columns: label (top genre, "" where a track has none), group (artist id), split (the official
    one), subset. Pre-training leaves out every `test` clip, so with fma_large also those of
    fma_small. If the clips of an artist are in several official splits, those of the strictest one
    stay (test, then valid). The others are excluded with the reason. Raises `UserError`.
    """
    root = data / name
    tracks = data / "fma_metadata" / "tracks.csv"
    for path in (root, tracks):
        if not path.exists():
            raise UserError(
                f"{path} not found: fetch it with `python -m colalib fetch {name}`, "
                f"or unpack {name}.zip and fma_metadata.zip in {data}, or name their folder with --data or "
                "the variable COLA_DATA"
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
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{tracks}: not FMA's table of tracks ({first_line(error)}): unpack fma_metadata.zip again"
        ) from None
    # why a track is excluded; NaN for those that stay
    reason = pd.Series(UNUSABLE).reindex(clips.index)
    strictness = clips["split"].map({"train": 0, "valid": 1, "test": 2})
    strictest = strictness.groupby(clips["group"]).transform("max")  # of the track's artist
    shared = reason.isna() & (strictness != strictest)
    reason = reason.mask(shared, "its artist is also on a stricter side of the split")
    excluded = pd.DataFrame({"path": clips["path"], "reason": reason})[reason.notna()]
    return Corpus(name, root, clips[reason.isna()], excluded.reset_index(drop=True))
