"""Corpora: tables of clips with labels, groups and splits, known by name or read from any folder.

`load` returns one, `store.build` turns it into log-mel frames. `fetch` downloads a public one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from colalib.data import scores
from colalib.data.corpora import download, fma, folder, public
from colalib.data.corpus import Corpus
from colalib.errors import UserError, first_line
from colalib.files import data_folder

__all__ = ["ARCHIVES_OF", "DESCRIPTIONS", "Corpus", "corpus_folder", "fetch", "load"]

DESCRIPTIONS = {
    "scores": "1,600 clips, 4 h; 8 kinds of music, instrument family, metre; rendered here; "
    "licences: data/README.md",
    "fma_small": "8,000 clips, 67 h, 7.2 GiB; 8 balanced genres; each track under its artist's licence",
    "fma_medium": "25,000 clips, 208 h, 22 GiB; 16 genres; each track under its artist's licence",
    "fma_large": "106,574 clips, 888 h, 93 GiB; top genre of some; each track under its artist's licence",
    "esc50": "2,000 clips, 2.8 h, 0.6 GB; 50 environmental sounds, five folds; CC BY-NC 3.0",
    "esc10": "400 clips of esc50; 10 environmental sounds, five folds",
    "fsdd": "2,500 clips, 0.3 h, 12 MB; ten spoken digits, folds by speaker; CC BY-SA 4.0",
    "speech_commands": "105,829 clips, 29 h, 2.4 GB; 35 spoken words, official split; CC BY 4.0",
    "nsynth": "16,774 notes, 19 h, 1.4 GB (its valid and test parts); instrument family, source, pitch; "
    "CC BY 4.0",
}
ARCHIVES_OF = {  # names in download.ARCHIVES
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
    """Return the folder of a known corpus, whether it is there or not."""
    if name in ARCHIVES_OF:  # esc10 lies in the folder of esc50
        name = download.ARCHIVES[ARCHIVES_OF[name][-1]].folder.split("/")[0]
    return data_folder(data) / name


def fetch(name: str, licence: str, data: str | Path | None = None, progress: bool = True) -> list[Path]:
    """Download a public corpus into the data folder; return its folders.

    A folder that is there already is left as it is. `licence` is the name of the licence that you
    accept: "by track" for FMA, where each artist chose one. Raises `UserError` if the corpus cannot
    be fetched or has another licence, and as `download.fetch` does.
    """
    if name not in ARCHIVES_OF:
        raise UserError(f"{name} cannot be fetched: choose one of {', '.join(ARCHIVES_OF)}")
    archives = [download.ARCHIVES[archive] for archive in ARCHIVES_OF[name]]
    if licence != archives[0].licence:
        raise UserError(
            f"{name} comes under another licence: {archives[0].licence}: name that one if you accept it"
        )
    root = data_folder(data)
    root.mkdir(parents=True, exist_ok=True)
    download.check_disk_space(root, archives)  # for all of them, before the first
    return [download.fetch(archive, root, progress) for archive in archives]


def load(
    name: str | Path,
    labels: str | None = None,
    data: str | Path | None = None,
    clips_per_class: int = scores.CLIPS_PER_CLASS,
    jobs: int = 2,
) -> Corpus:
    """Return the table of clips of a known corpus, or of any folder of audio.

    A folder is read by its `index.csv` (column `path`, and if it has them `label`, `group`,
    `split`, `clip_id` and further label columns), else as one sub-folder per class, else as
    unlabelled audio. By default sub-folders are classes if every file lies exactly one level down.
    `labels` ("folder" or "none") decides this, and then `index.csv` is not read. `scores` is
    rendered at the first call, `clips_per_class` clips per class. The other known corpora must lie
    in the folder `data` (see `fetch`).

    Raises `UserError` if there is no such corpus or its table breaks a rule.
    """
    if name == "scores":
        size = "" if clips_per_class == scores.CLIPS_PER_CLASS else f"-{clips_per_class}"
        root = data_folder(data) / f"scores{size}"
        from colalib.data.scores.build import build  # takes half a second to import

        build(root, clips_per_class=clips_per_class, jobs=jobs)
        return folder.load(root, name="scores")
    if name in READERS:
        return _load_public(name, corpus_folder(name, data))
    if name in DESCRIPTIONS:
        return fma.load(str(name), data_folder(data))
    if not Path(name).is_dir():
        raise UserError(f"no corpus and no folder named {name}: known corpora are {', '.join(DESCRIPTIONS)}")
    return folder.load(Path(name), labels=labels)


def _load_public(name: str, root: Path) -> Corpus:
    """Return a corpus of `READERS` from its folder. Raises `UserError`."""
    if not root.is_dir():
        raise UserError(
            f"{root} not found: fetch it with `python -m colalib fetch {name}`, "
            "or name the folder around it with --data, or the variable COLA_DATA"
        )
    try:
        return READERS[name](root)
    except UserError:
        raise
    # tables without a column, JSON of another form or nested without end
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{root}: its lists are damaged ({first_line(error)}): remove the folder and fetch it again"
        ) from None
