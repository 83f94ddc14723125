"""Public corpora other than FMA as tables of clips, by their own lists of labels and splits.

Each function raises `UserError` if a part of its corpus is missing.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from colalib.data.corpora.folder import audio_files
from colalib.data.corpus import Corpus
from colalib.errors import UserError


def esc50(root: Path, only_ten: bool = False) -> Corpus:
    """Return ESC-50 (Piczak 2015): 2,000 clips of 5 s, 50 environmental sounds.

    The five official folds. Groups are the Freesound recordings that clips were cut from.
    `only_ten`: the subset ESC-10.
    """
    table = pd.read_csv(_existing(root / "meta" / "esc50.csv"), dtype=str, keep_default_na=False)
    if only_ten:
        table = table[table["esc10"] == "True"]
    clips = pd.DataFrame(
        {
            "path": "audio/" + table["filename"],
            "clip_id": table["filename"].str.removesuffix(".wav"),
            "label": table["category"],
            "group": table["src_file"],
            "split": table["fold"],
        }
    )
    return Corpus("esc10" if only_ten else "esc50", root, clips)


def fsdd(root: Path) -> Corpus:
    """Return the Free Spoken Digit Dataset (Jackson et al. 2018): ten spoken digits.

    Groups and folds are the speakers, so every test voice is new.
    """
    paths = audio_files(_existing(root / "recordings"))
    # DIGIT_SPEAKER_NUMBER.wav
    parts = pd.Series(paths, dtype=str).str.extract(r"^(?P<label>\d)_(?P<group>[^_]+)_\d+\.wav$")
    clips = parts.assign(path=[f"recordings/{p}" for p in paths], split=parts["group"])
    odd = clips["label"].isna()
    excluded = clips.loc[odd, ["path"]].assign(reason="its name is not DIGIT_SPEAKER_NUMBER.wav")
    return Corpus("fsdd", root, clips[~odd], excluded.reset_index(drop=True))


def speech_commands(root: Path) -> Corpus:
    """Return Speech Commands v0.02 (Warden 2018, arXiv 1804.03209): 105,829 clips of up to 1 s, 35
    words.

    The split follows the official lists. Groups are the speakers. The recordings of background
    noise are left out.
    """
    paths = audio_files(root)
    noise = [p for p in paths if p.startswith("_background_noise_/")]
    words = [p for p in paths if p.count("/") == 1 and p not in noise]
    lists = {}
    for split, name in (("valid", "validation_list.txt"), ("test", "testing_list.txt")):
        listed = _existing(root / name).read_text(encoding="utf-8").split()
        if set(listed).isdisjoint(words):
            raise ValueError(f"{name} names none of the clips")
        lists |= dict.fromkeys(listed, split)
    clips = pd.DataFrame(
        {
            "path": words,
            "label": [p.split("/")[0] for p in words],
            "group": [p.rsplit("/", 1)[1].split("_nohash_")[0] for p in words],
            "split": [lists.get(p, "train") for p in words],
        }
    )
    excluded = pd.DataFrame({"path": noise, "reason": "background noise, no word"}, dtype=str)
    return Corpus("speech_commands", root, clips, excluded)


def nsynth(root: Path) -> Corpus:
    """Return the valid and test parts of NSynth (Engel et al. 2017, arXiv 1704.01279): 16,774 notes
    of 4 s.

    `label` is the instrument family. Further columns: `source` (acoustic, electronic, synthetic),
    `pitch` (MIDI number), `velocity`, `part`. The 289,205 notes for training are not fetched. The
    two parts share instruments, so groups are the instruments and a new split is made by them.
    """
    tables = []
    for part in ("valid", "test"):
        examples = json.loads(_existing(root / part / "examples.json").read_text(encoding="utf-8"))
        table = pd.DataFrame.from_dict(examples, orient="index")
        tables.append(
            pd.DataFrame(
                {
                    "path": [f"{part}/audio/{name}.wav" for name in table.index],
                    "clip_id": table.index,
                    "label": table["instrument_family_str"].values,
                    "group": table["instrument_str"].values,
                    "source": table["instrument_source_str"].values,
                    "pitch": table["pitch"].values,
                    "velocity": table["velocity"].values,
                    "part": part,
                }
            )
        )
    return Corpus("nsynth", root, pd.concat(tables, ignore_index=True))


def _existing(path: Path) -> Path:
    """Return `path` if it exists. Raises `UserError`."""
    if not path.exists():
        raise UserError(
            f"{path} not found: the corpus is not complete: fetch it again (if that does not help, "
            "remove its folder first)"
        )
    return path
