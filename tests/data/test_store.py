"""The store: what it holds, faults, resuming."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from conftest import tone
from test_audio import broken_files

from colalib.data import corpora, store
from colalib.data.audio import MelConfig
from colalib.errors import UserError


def content(path):
    """Bytes of every file of a store."""
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_store_holds_every_clip(mel_store, folder):
    assert len(mel_store) == 96 and len(mel_store.quarantine) == 0
    assert mel_store.name == folder.name and mel_store.mel == MelConfig()
    assert (mel_store.clips["frames"] == 201).all()
    for i in (0, 50, 95):
        assert mel_store.frames(i).shape == (201, 64) and mel_store.frames(i).dtype == np.float16


def test_result_does_not_depend_on_jobs(mel_store, folder, tmp_path):
    other = store.build(corpora.load(folder), tmp_path / "s", jobs=2, progress=False)
    assert content(other.path) == content(mel_store.path)


def test_bad_clips_are_listed_with_their_reason(tmp_path):
    root = tmp_path / "mixed"
    root.mkdir()
    reasons = broken_files(root)
    stereo = np.stack([tone(300, 2, 1, 44_100), tone(400, 2, 2, 44_100)], axis=1)
    soundfile.write(root / "stereo.wav", stereo, 44_100)
    soundfile.write(root / "low.wav", tone(300, 2, 1, 8000), 8000)
    soundfile.write(root / "high.flac", tone(300, 2, 1, 96_000), 96_000)
    soundfile.write(root / "long.flac", np.tile(tone(300, 20, 1), 180), 16_000)  # an hour
    (root / "index.csv").write_text(
        "path\n" + "\n".join([*reasons, "stereo.wav", "low.wav", "high.flac", "long.flac"])
    )
    made = store.build(corpora.load(root), tmp_path / "s", jobs=2, progress=False)
    assert sorted(made.clips["path"]) == ["high.flac", "long.flac", "low.wav", "stereo.wav"]
    listed = dict(zip(made.quarantine["path"], made.quarantine["reason"]))
    assert listed.keys() == reasons.keys() and all(reason in listed[name] for name, reason in reasons.items())


def test_no_usable_clip(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text.mp3").write_text("no music")
    with pytest.raises(UserError, match=r"none of 1 clips is usable .*text\.mp3: unreadable"):
        store.build(corpora.load(tmp_path / "a"), tmp_path / "s", jobs=1, progress=False)
    assert "text.mp3" in (tmp_path / "s" / "quarantine.csv").read_text()
    with pytest.raises(UserError, match="not finished"):
        store.MelStore(tmp_path / "s")


def test_made_otherwise(mel_store, folder, tmp_path):
    corpus = corpora.load(folder)
    shutil.copytree(mel_store.path, tmp_path / "s")
    with pytest.raises(UserError, match="was made with another mel"):
        store.build(corpus, tmp_path / "s", MelConfig(n_mels=32))
    corpus.clips = corpus.clips.iloc[:50]
    with pytest.raises(UserError, match="was made with another table of clips"):
        store.build(corpus, tmp_path / "s")
    with pytest.raises(UserError, match="is not a store"):
        store.MelStore(folder)
    with pytest.raises(UserError, match="not a store and not empty"):
        store.build(corpus, folder)


def test_damage_is_told(mel_store, tmp_path):
    for name in ("frames-00000.npy", "config.json"):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        shutil.copytree(mel_store.path, tmp_path / "s")
        (tmp_path / "s" / name).write_bytes(b"\x93NUMPY nonsense")
        with pytest.raises(UserError, match=f"{name}: damaged"):
            store.MelStore(tmp_path / "s").frames(0)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_build_goes_on_to_the_same_bytes(mel_store, folder, tmp_path, sign):
    out = tmp_path / "s"
    command = [sys.executable, "-m", "colalib", "prepare", str(folder), "--out", str(out), "--jobs", "1"]
    slow = {**os.environ, "PYTHONPATH": str(slow_audio(tmp_path))}
    process = subprocess.Popen(command, env=slow, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(out.glob("rows-*.csv")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sign)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and b"Traceback" not in error
    rows = len(list(out.glob("rows-*.csv")))
    assert 1 <= rows < 6 and not (out / "clips.csv").exists()
    with pytest.raises(UserError, match="not finished"):
        store.MelStore(out)
    made = store.build(corpora.load(folder), out, jobs=1, progress=False)
    assert content(out) == content(mel_store.path)
    assert len(made) == 96


def slow_audio(tmp_path):
    """A folder whose sitecustomize makes every clip take 50 ms longer to decode."""
    (tmp_path / "slow").mkdir(exist_ok=True)
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import time, soundfile\n"
        "class Slow(soundfile.SoundFile):\n"
        "    def read(self, *a, **k):\n"
        "        time.sleep(0.05)\n"
        "        return super().read(*a, **k)\n"
        "soundfile.SoundFile = Slow\n"
    )
    return tmp_path / "slow"


@pytest.mark.parametrize("name", ["multiprocessing", "threading"])
def test_other_backends_of_joblib(folder, mel_store, tmp_path, name):
    with store.backend(name):
        made = store.build(corpora.load(folder), tmp_path / "s", jobs=2, progress=False)
    assert all(p.read_bytes() == (mel_store.path / p.name).read_bytes() for p in made.path.iterdir())


def test_a_process_that_is_ended_from_outside(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_write_shard", lambda *args: os._exit(9))
    with pytest.raises(UserError, match="ended from outside"):
        store.build(corpora.load(folder), tmp_path / "s", jobs=2, progress=False)


def test_what_a_kill_left_goes(folder, tmp_path):
    made = store.build(corpora.load(folder), tmp_path / "s", jobs=1, progress=False)
    before = {p.name for p in made.path.iterdir()}
    ((made.path / "rows-00000.csv").write_text("shard\n"), (made.path / ".clips.csv.7.part").write_text(""))
    store.build(corpora.load(folder), tmp_path / "s", jobs=1, progress=False)
    assert {p.name for p in made.path.iterdir()} == before


def test_full_disk(folder, tmp_path):
    """On a full disk prepare says so in one line; with room again the same call completes."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
    call = f"from colalib.cli import main; main(['prepare', {str(folder)!r}, '--out', {str(tmp_path / 's')!r}, '--jobs', '1'])"
    ended = subprocess.run([sys.executable, "-c", limit + call], capture_output=True, text=True)
    message = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1 and message.startswith("colalib: ") and "Traceback" not in ended.stderr
    assert "File too large" in message
    assert len(store.build(corpora.load(folder), tmp_path / "s", jobs=1, progress=False)) == 96
