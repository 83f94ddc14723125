"""What there is to hear: each corpus is a table of clips with labels, groups and splits.

`load` is the way in; `prepare` (module `store`) turns what it returns into log-mel frames.
"""

from __future__ import annotations

import os
from pathlib import Path

from colalib.corpora import fma, folder, scores
from colalib.corpora.table import AUDIO, NAMED, Corpus, split_form
from colalib.errors import UserError
from colalib.files import locked

__all__ = ["AUDIO", "KNOWN", "NAMED", "Corpus", "data_folder", "load", "split_form"]

KNOWN = {
    "scores": "1,600 clips, 4 h; 8 kinds of music, instrument family, metre; rendered here; licences: data/README.md",
    "fma_small": "8,000 clips, 67 h, 7.2 GiB; 8 balanced genres; each track under its artist's licence",
    "fma_medium": "25,000 clips, 208 h, 22 GiB; 16 genres; each track under its artist's licence",
    "fma_large": "106,574 clips, 888 h, 93 GiB; top genre of some; each track under its artist's licence",
}


def data_folder(data: str | Path | None = None) -> Path:
    """Where corpora lie: `data`, else the variable COLA_DATA, else `data/` of the checkout, else `./data`."""
    if data or os.environ.get("COLA_DATA"):
        return Path(data or os.environ["COLA_DATA"])
    checkout = Path(__file__).parents[2]
    return checkout / "data" if (checkout / "notebooks").is_dir() else Path("data")


def load(
    name: str | Path,
    labels: str | None = None,
    data: str | Path | None = None,
    clips_per_class: int = scores.CLIPS_PER_CLASS,
    jobs: int = 2,
) -> Corpus:
    """A known corpus by name, or any folder of audio.

    A folder is read by its `index.csv` (column `path`; `label`, `group`, `split`, `clip_id` and further label columns
    as it has them), or as one sub-folder a class, or as unlabelled audio. `labels` ("folder" or "none") settles which
    of the last two; by default sub-folders are classes where every file lies exactly one level down.
    `scores` is rendered at the first call (`clips_per_class` sets its size); FMA is looked for in `data`.

    Raises `UserError` when there is no such corpus or its table breaks a rule.
    """
    if name == "scores":
        root = data_folder(data) / (
            "scores" if clips_per_class == scores.CLIPS_PER_CLASS else f"scores-{clips_per_class}"
        )
        with locked(root):
            scores.build(root, clips_per_class=clips_per_class, jobs=jobs)
        return folder.load(root, name="scores")
    if name in KNOWN:
        return fma.load(str(name), data_folder(data))
    if not Path(name).is_dir():
        raise UserError(f"no corpus and no folder named {name}: known corpora are {', '.join(KNOWN)}")
    return folder.load(Path(name), labels=labels)
