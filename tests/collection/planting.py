"""Melodies, and what may happen to a copy of a recording.

`PYTHONPATH=tests python tests/collection/planting.py FOLDER` plants copies and wrong labels in a copy of a
folder whose index.csv has labels, groups and folds, and prints how many of them an audit finds.
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from helpers import RATE

from colalib.collection import audit
from colalib.data import corpora
from colalib.data.audio import load_audio

LABELS = ['low, "deep"', "middle 🎵", "=high"]


def melody(seed: int, label: int, seconds: float = 2.5) -> np.ndarray:
    """Return notes at random times in the register of a label, with a little noise, float32 [samples]."""
    rng = np.random.default_rng(seed)
    wave = 0.003 * rng.standard_normal(int(seconds * RATE))
    for start in rng.uniform(0, seconds - 0.2, 8):
        pitch = 150 * 3**label * 2 ** rng.uniform(0, 1)
        t = np.arange(len(wave) - int(start * RATE)) / RATE
        decay = np.exp(-t * rng.uniform(4, 15))
        note = sum(np.sin(2 * np.pi * pitch * k * t) * rng.uniform(0.2, 1) / k for k in range(1, 4))
        wave[-len(t) :] += 0.12 * note * decay
    return wave.astype(np.float32)


def as_mp3(wave: np.ndarray) -> np.ndarray:
    """Return what MP3 makes of samples."""
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="MP3", subtype="MPEG_LAYER_III")
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


COPIES = {
    "equal": lambda wave: wave,
    "mp3": as_mp3,
    "louder": lambda wave: 2 * wave,
    "quieter": lambda wave: wave / 2,
    "later": lambda wave: np.concatenate([np.zeros(RATE // 2, np.float32), wave]),
    "cut": lambda wave: wave[len(wave) // 10 :][: len(wave) // 2],
}


def plant(clips: pd.DataFrame, root: Path, copied: list[int], swapped: list[int]) -> pd.DataFrame:
    """Copy some clips of `root` and swap some labels; write index.csv; return it with the truth.

    `clips` has the columns path, label, group and split, `copied` and `swapped` number its rows. A copy
    has a group of its own, and another split than its original if there are several. New columns: true
    (label), and of (the path of which a clip is a copy, or nothing).
    """
    labels, splits = sorted(set(clips["label"])), sorted(set(clips["split"]))
    rows = (clips.assign(true=clips["label"], of="")).to_dict("records")
    for number, i in enumerate(copied):
        kind, original = [*COPIES][number % len(COPIES)], rows[i]
        path = f"copy-{kind}-{number}.wav"
        copy = COPIES[kind](load_audio(root / original["path"]))
        soundfile.write(root / path, copy, RATE, subtype="FLOAT")
        split = splits[(splits.index(original["split"]) + 1) % len(splits)]
        made = {"path": path, "of": original["path"], "group": f"copies{number}", "split": split}
        rows.append(original | made)
    for i in swapped:
        rows[i]["label"] = labels[(labels.index(rows[i]["true"]) + 1) % len(labels)]
    truth = pd.DataFrame(rows)
    truth.drop(columns=["true", "of"]).to_csv(root / "index.csv", index=False)
    return truth


def recall(findings: pd.DataFrame, truth: pd.DataFrame) -> dict[str, int]:
    """Return how many copies and wrong labels were planted and found, and what else is a pair."""
    copies = truth[truth["of"] != ""]
    planted = {frozenset(pair) for pair in copies[["path", "of"]].values}
    found = findings[findings["kind"].isin(["leakage", "duplicate"])]
    pairs = {frozenset(pair) for pair in found[["path", "other_path"]].values}
    swapped = set(truth["path"][truth["label"] != truth["true"]])
    first = findings[findings["kind"] == "label"].head(len(truth) // 10)
    return {
        "copies": len(planted),
        "copies found": len(pairs & planted),
        "other pairs": len(pairs - planted),
        "labels": len(swapped),
        "labels in the first 10%": len(swapped & set(first["path"])),
    }


if __name__ == "__main__":
    source = corpora.load(sys.argv[1])
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path in source.clips["path"]:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to((source.root / path).resolve())
        n = len(source.clips)
        copied, swapped = rng.choice(n, n // 5, replace=False), rng.choice(n, n // 20, replace=False)
        truth = plant(source.clips[["path", "label", "group", "split"]], root, copied, swapped)
        print(recall(audit(root, jobs=1).findings, truth))
