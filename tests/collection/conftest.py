"""A small collection with planted faults."""

from pathlib import Path

import pandas as pd
import pytest
import soundfile
from helpers import RATE
from planting import COPIES, LABELS, melody

from colalib.data import corpora, store


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """A folder of 72 melodies in two groups per label and fold, 12 copies, 6 wrong labels; and the truth."""
    root = tmp_path_factory.mktemp("planted")
    rows = []
    for i in range(72):
        label = i % 3
        row = {"path": f"m{i}.wav", "true": LABELS[label], "label": LABELS[label], "of": ""}
        rows.append(row | {"group": f"g{i // 6}", "split": f"fold{i // 6 % 4}"})
        soundfile.write(root / row["path"], melody(i, label), RATE, subtype="FLOAT")
    for j in range(12):  # copies of every sixth melody, in a group and a fold of their own
        kind = [*COPIES][j % len(COPIES)]
        original = rows[6 * j]
        path = f"copy-{kind}-{j}.wav"
        soundfile.write(root / path, COPIES[kind](melody(6 * j, 0)), RATE, subtype="FLOAT")
        rows.append(
            original | {"path": path, "of": original["path"], "group": f"copies{j}", "split": f"fold{j % 4}"}
        )
    for i in range(7, 72, 11):
        rows[i]["label"] = LABELS[(i % 3 + 1) % 3]
    truth = pd.DataFrame(rows)
    truth.drop(columns=["true", "of"]).to_csv(root / "index.csv", index=False)
    return root, truth


@pytest.fixture(scope="session")
def planted_store(planted, tmp_path_factory) -> store.MelStore:
    """The same as a store."""
    out = tmp_path_factory.mktemp("stores") / "planted"
    return store.build(corpora.load(planted[0]), out, jobs=1, progress=False)
