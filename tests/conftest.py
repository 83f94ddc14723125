"""Small corpora, stores and runs, made once and shared by all tests."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from filelock import FileLock
from helpers import PROFILE, RATE, course_places, tone

from colalib import training
from colalib.data import corpora, store
from colalib.data.clips import Clips
from colalib.settings import FinetuneConfig, PretrainConfig

TESTS = Path(__file__).parent
os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")  # where the servers of tests answer
# in `make test &` Ctrl-C is ignored, and the commands that tests start and interrupt would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests by their folder: those in a browser, and those that run notebooks as slow."""
    for item in items:
        if item.path.is_relative_to(TESTS / "browser"):
            item.add_marker(pytest.mark.browser)
        if item.path.is_relative_to(TESTS / "notebooks"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """96 clips of 2 s, classes low/middle/high, 4 clips per group, with an index.csv."""
    root = tmp_path_factory.mktemp("tones")
    rows = []
    for label, pitch in (("low", 110), ("middle", 330), ("high", 990)):
        for group in range(8):
            for k in range(4):
                seed = hash((pitch, group, k)) % 2**32
                path = f"{label}/{group}-{k}.flac"
                (root / label).mkdir(exist_ok=True)
                soundfile.write(root / path, tone(pitch * (1 + 0.03 * group), 2.0, seed), RATE)
                rows.append(
                    {
                        "path": path,
                        "label": label,
                        "group": f"{label}{group}",
                        "parity": "even" if group % 2 == 0 else "odd",
                    }
                )
    pd.DataFrame(rows).to_csv(root / "index.csv", index=False)
    return root


@pytest.fixture(scope="session")
def mel_store(folder, tmp_path_factory) -> store.MelStore:
    """The tones as a store."""
    return store.build(
        corpora.load(folder), tmp_path_factory.mktemp("stores") / "tones", jobs=1, progress=False
    )


@pytest.fixture
def clips(mel_store) -> Clips:
    """All clips of the store."""
    return Clips.of_store(mel_store)


@pytest.fixture(scope="session")
def pretrained(mel_store, tmp_path_factory) -> Path:
    """A finished pre-training on the tones. Copy it before you change it."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    return training.pretrain([mel_store], out, PretrainConfig(steps=60, batch_size=24), progress=False)


@pytest.fixture(scope="session")
def finetuned(mel_store, pretrained, tmp_path_factory) -> Path:
    """A classifier of the tones, fine-tuned from `pretrained`. Copy it before you change it."""
    out = tmp_path_factory.mktemp("runs") / "finetuned"
    return training.finetune(
        mel_store, out, FinetuneConfig(steps=40, batch_size=24), pretrained, progress=False
    )


@pytest.fixture(scope="session")
def executed(tmp_path_factory, worker_id):
    """The whole course at the size of `PROFILE`, in folders of its own, executed once for all processes."""
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "course"
    record = root / "ended.json"
    with FileLock(f"{root}.lock"):
        if not record.exists():
            root.mkdir()
            command, places = [sys.executable, "-m", "colalib", "course"], os.environ | course_places(root)
            ended = subprocess.run(command, env=places, capture_output=True, text=True, cwd=root)
            record.write_text(json.dumps(vars(ended)))
    return subprocess.CompletedProcess(**json.loads(record.read_text())), root / "runs" / PROFILE


@pytest.fixture
def broken_files(tmp_path) -> tuple[Path, dict[str, str]]:
    """A folder with a file of every kind that cannot be used, and what the reason of each says."""
    root = tmp_path / "broken"
    root.mkdir()
    good = tone(300, 2, 1)
    (root / "empty.wav").write_bytes(b"")
    (root / "text.mp3").write_text("this is not music")
    soundfile.write(root / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(root / "faint.wav", 5e-5 * good, RATE, subtype="FLOAT")
    soundfile.write(root / "short.wav", good[:160], RATE)
    with_nan = good.copy()
    with_nan[7000] = np.nan
    soundfile.write(root / "nan.wav", with_nan, RATE, subtype="FLOAT")
    soundfile.write(root / "cut.flac", np.tile(good, 20), RATE)
    whole = (root / "cut.flac").read_bytes()
    (root / "cut.flac").write_bytes(whole[: len(whole) // 4])
    (root / "directory.wav").mkdir()
    return root, {
        "empty.wav": "empty file",
        "text.mp3": "unreadable",
        "silent.wav": "silent: peak digital zero",
        "faint.wav": "silent: peak -9",
        "short.wav": "too short: 10 ms",
        "nan.wav": "not finite",
        "cut.flac": "unreadable",
        "gone.wav": "file not found",
        "directory.wav": "unreadable",
    }


FMA_TRACKS = [  # id, subset, split, artist, genre
    (2, "small", "training", 1, "Hip-Hop"),
    (5, "small", "validation", 2, "Rock"),
    (10, "small", "test", 3, "Hip-Hop"),
    (140, "medium", "training", 4, "Rock"),
    (1040, "large", "training", 5, None),
    (1041, "large", "training", 3, None),  # its artist is on the test side
    (99134, "large", "training", 6, "Rock"),  # known to be silent
    (98565, "medium", "training", 7, "Rock"),  # known to be short
]


@pytest.fixture
def fma(tmp_path):
    """A folder like FMA's: tracks.csv with two header rows and a row with the index' name, MP3s by
    id.
    """
    columns = pd.MultiIndex.from_tuples(
        [("artist", "id"), ("set", "split"), ("set", "subset"), ("track", "genre_top"), ("track", "title")]
    )
    rows = [
        (artist, split, subset, genre, 'a, "title"\nof two lines')
        for _, subset, split, artist, genre in FMA_TRACKS
    ]
    table = pd.DataFrame(rows, columns=columns, index=pd.Index([t[0] for t in FMA_TRACKS], name="track_id"))
    (tmp_path / "fma_metadata").mkdir()
    table.to_csv(tmp_path / "fma_metadata" / "tracks.csv")
    lines = (tmp_path / "fma_metadata" / "tracks.csv").read_text().splitlines()
    assert lines[2].startswith("track_id")
    for name, subsets in {"fma_small": ["small"], "fma_large": ["small", "medium", "large"]}.items():
        for track, subset, *_ in FMA_TRACKS:
            if subset in subsets:
                path = tmp_path / name / f"{track:06d}"[:3] / f"{track:06d}.mp3"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, np.tile(tone(300 + track % 7, 1, track, 44_100), 3), 44_100)
    return tmp_path
