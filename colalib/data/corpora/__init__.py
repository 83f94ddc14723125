"""What there is to hear: each corpus is a table of clips with labels, groups and splits.

`load` is the way in; `prepare` (module `store`) turns what it returns into log-mel frames.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from colalib.data import scores
from colalib.data.corpora import download, fma, folder, public
from colalib.data.corpus import Corpus
from colalib.errors import UserError
from colalib.files import data_folder, locked

__all__ = ["ARCHIVES_OF", "DESCRIPTIONS", "Corpus", "corpus_folder", "fetch", "load"]

DESCRIPTIONS = {
    "scores": "1,600 clips, 4 h; 8 kinds of music, instrument family, metre; rendered here; licences: data/README.md",
    "fma_small": "8,000 clips, 67 h, 7.2 GiB; 8 balanced genres; each track under its artist's licence",
    "fma_medium": "25,000 clips, 208 h, 22 GiB; 16 genres; each track under its artist's licence",
    "fma_large": "106,574 clips, 888 h, 93 GiB; top genre of some; each track under its artist's licence",
    "esc50": "2,000 clips, 2.8 h, 0.6 GB; 50 environmental sounds, five folds; CC BY-NC 3.0",
    "esc10": "400 clips of esc50; 10 environmental sounds, five folds",
    "fsdd": "2,500 clips, 0.3 h, 12 MB; ten spoken digits, folds by speaker; CC BY-SA 4.0",
    "speech_commands": "105,829 clips, 29 h, 2.4 GB; 35 spoken words, official split; CC BY 4.0",
    "nsynth": "16,774 notes, 19 h, 1.4 GB (its valid and test parts); instrument family, source, pitch; CC BY 4.0",
}
ARCHIVES_OF = {  # archives (download.ARCHIVES) that a corpus is made of
    "fma_small": ("fma_metadata", "fma_small"),
    "fma_medium": ("fma_metadata", "fma_medium"),
    "fma_large": ("fma_metadata", "fma_large"),
    "esc50": ("esc50",),
    "esc10": ("esc50",),
    "fsdd": ("fsdd",),
    "speech_commands": ("speech_commands",),
    "nsynth": ("nsynth_valid", "nsynth_test"),
}
READERS = {
    "esc50": public.esc50,
    "esc10": partial(public.esc50, only_ten=True),
    "fsdd": public.fsdd,
    "speech_commands": public.speech_commands,
    "nsynth": public.nsynth,
}


def corpus_folder(name: str, data: str | Path | None = None) -> Path:
    """The folder where a known corpus lies, or would lie."""
    inside = download.ARCHIVES[ARCHIVES_OF[name][-1]].folder.split("/")[0] if name in ARCHIVES_OF else name
    return data_folder(data) / inside


def fetch(name: str, licence: str, data: str | Path | None = None, progress: bool = True) -> list[Path]:
    """Fetch a public corpus into the data folder: the folders that it lies in. What is there is
    left as it is.

    `licence` is the name of the licence that you accept ("by track" for FMA, whose artists chose
    theirs one by one). Raises `UserError` where the name or the licence is another, and as
    `download.fetch` does.
    """
    if name not in ARCHIVES_OF:
        raise UserError(f"{name} cannot be fetched: those that can are {', '.join(ARCHIVES_OF)}")
    archives = [download.ARCHIVES[part] for part in ARCHIVES_OF[name]]
    if licence != archives[0].licence:
        raise UserError(
            f"{name} comes under another licence: {archives[0].licence}: name that one if you accept it"
        )
    data_folder(data).mkdir(parents=True, exist_ok=True)
    download.check_room(data_folder(data), archives)
    return [download.fetch(archive, data_folder(data), progress) for archive in archives]


def load(
    name: str | Path,
    labels: str | None = None,
    data: str | Path | None = None,
    clips_per_class: int = scores.CLIPS_PER_CLASS,
    jobs: int = 2,
) -> Corpus:
    """A known corpus by name, or any folder of audio.

    A folder is read by its `index.csv` (column `path`; `label`, `group`, `split`, `clip_id` and
    further label columns as it has them), or as one sub-folder a class, or as unlabelled audio.
    `labels` ("folder" or "none") settles which of the last two; by default sub-folders are classes
    where every file lies exactly one level down. `scores` is rendered at the first call
    (`clips_per_class` sets its size); others are looked for in `data` (`fetch`).

    Raises `UserError` when there is no such corpus or its table breaks a rule.
    """
    if name == "scores":
        root = data_folder(data) / (
            "scores" if clips_per_class == scores.CLIPS_PER_CLASS else f"scores-{clips_per_class}"
        )
        with locked(root):
            scores.build(root, clips_per_class=clips_per_class, jobs=jobs)
        return folder.load(root, name="scores")
    if name in READERS:
        root = corpus_folder(name, data)
        if not root.is_dir():
            raise UserError(
                f"{root} not found: fetch it with `python -m colalib fetch {name}`, or name its folder with --data"
            )
        try:
            return READERS[name](root)
        except UserError:
            raise
        except (KeyError, ValueError) as error:
            what = f"{type(error).__name__} {error}"
            raise UserError(
                f"{root}: its lists are damaged ({what}): remove the folder and fetch it again"
            ) from None
    if name in DESCRIPTIONS:
        return fma.load(str(name), data_folder(data))
    if not Path(name).is_dir():
        raise UserError(f"no corpus and no folder named {name}: known corpora are {', '.join(DESCRIPTIONS)}")
    return folder.load(Path(name), labels=labels)
