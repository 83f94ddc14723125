"""A small collection with planted faults."""

from pathlib import Path

import pandas as pd
import pytest
import soundfile
from helpers import RATE
from planting import LABELS, melody, plant

from colalib.data import corpora, store


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """A folder of 72 melodies in two groups per label and fold, 12 copies, 6 wrong labels; and the truth."""
    root = tmp_path_factory.mktemp("planted")
    rows = []
    for i in range(72):
        soundfile.write(root / f"m{i}.wav", melody(i, i % 3), RATE, subtype="FLOAT")
        rows.append((f"m{i}.wav", LABELS[i % 3], f"g{i // 6}", f"fold{i // 6 % 4}"))
    clips = pd.DataFrame(rows, columns=["path", "label", "group", "split"])
    truth = plant(clips, root, copied=[*range(0, 72, 6)], swapped=[*range(7, 72, 11)])
    return root, truth


@pytest.fixture(scope="session")
def planted_store(planted, tmp_path_factory) -> store.MelStore:
    """The same as a store."""
    out = tmp_path_factory.mktemp("stores") / "planted"
    return store.build(corpora.load(planted[0]), out, jobs=1, progress=False)
