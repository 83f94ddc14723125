"""Fault trials: nothing is lost or half-written, every drop is listed, the next call completes.

A few of each kind run here. `make faults` (COLA_FAULTS=all) runs as many as RESULTS.md says, and
counts them.
"""

import functools
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers import (
    ALL,
    ONE_THREAD,
    call,
    column,
    command,
    malformed,
    messages,
    own_parents,
    run_command,
    send_when,
    tone,
)
from safetensors.torch import load_file

from colalib import training
from colalib.data import audio, corpora, store
from colalib.data.corpora import download
from colalib.settings import PretrainConfig

FORMATS = ("wav", "flac", "ogg", "mp3")
# damaged files of each format; damaged tables; kills of each command
FILES, INDEXES, KILLS = (200, 50, 10) if ALL else (12, 15, 1)


def no_leftovers(folder: Path) -> bool:
    """Return whether no file lies there that was not finished."""
    return not [p for p in folder.rglob("*") if p.name.endswith((".part", ".fetching"))]


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ---------------------------------------------------------------------------------- malformed files


@pytest.mark.parametrize("form", FORMATS)
def test_malformed_audio(tmp_path, form):
    """Prepare many damaged files and a few good ones: each is in the store with finite frames, or
    listed with its reason. The good ones are as if they were alone.
    """
    rng, root = random.Random(form), tmp_path / "corpus"
    root.mkdir()
    encoded = {f: io.BytesIO() for f in FORMATS}
    for f, file in encoded.items():
        soundfile.write(file, tone(330, 2.0, 1), 16_000, format=f.upper())
    good = encoded[form].getvalue()
    other_format = encoded[FORMATS[FORMATS.index(form) - 1]].getvalue()
    for i in range(FILES):
        (root / f"bad-{i:03d}.{form}").write_bytes(malformed(good, rng) if i else other_format)
    for i in range(3):
        (root / f"good-{i}.{form}").write_bytes(good)
    done = run_command("prepare", root, "--out", tmp_path / "s")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    built = store.MelStore(tmp_path / "s")
    listed = [*built.clips["path"], *built.quarantine["path"]]
    assert sorted(listed) == sorted(p.name for p in root.iterdir()), "every file is in one of the two lists"
    for reason in built.quarantine["reason"]:
        assert reason
        assert "\n" not in reason
    alone = audio.log_mel(audio.load_audio(root / f"good-0.{form}")).astype(np.float16)
    for i, path in enumerate(built.clips["path"]):
        frames = built.frames(i)
        assert np.isfinite(frames).all()
        if path.startswith("good"):
            assert np.array_equal(frames, alone)
    assert {"good-0", "good-1", "good-2"} <= {p.split(".")[0] for p in built.clips["path"]}
    assert no_leftovers(tmp_path)
    listed, decoded = len(built.quarantine), len(built) - 3
    print(f"{form}: {FILES} malformed files, {listed} listed, {decoded} still could be decoded")


def broken_table(good: bytes, rng: random.Random) -> bytes:
    """Return index.csv with one kind of damage."""
    lines = good.decode().splitlines()
    row = rng.randrange(1, len(lines))
    cells = lines[row].split(",")

    def with_row(*new):
        return "\n".join([*lines[:row], *new, *lines[row + 1 :]]).encode()

    kinds = [
        lambda: good[: rng.randrange(len(good))],
        lambda: b"",
        lambda: lines[0].encode(),
        lambda: rng.randbytes(len(good)),
        lambda: bytes(rng.randrange(256) if rng.random() < 0.02 else b for b in good),
        lambda: good.replace(b"path", b"file", 1),
        lambda: good.replace(b",", b";"),
        lambda: good.decode().encode("utf-16"),
        lambda: good.replace(b"label", b"path", 1),
        lambda: with_row(lines[row], lines[row]),
        lambda: with_row(",".join(["../outside.wav", *cells[1:]])),
        lambda: with_row(",".join(["/etc/passwd", *cells[1:]])),
        lambda: with_row(",".join(["", *cells[1:]])),
        lambda: with_row(",".join(cells[:1])),
        lambda: with_row(lines[row] + ",more,and,more"),
        lambda: with_row('"' + lines[row]),
        lambda: with_row(lines[row] + "\0"),
        lambda: with_row(",".join(["no/such/file.wav", *cells[1:]])),
        lambda: good.replace(b"low,low", b"low,everywhere"),
        lambda: good.replace(b"parity", b"split", 1),
        lambda: good.replace(b"even", b"train").replace(b"odd", b"0").replace(b"parity", b"split", 1),
        lambda: good.replace(b"\n", b"\r"),
        lambda: b"\xef\xbb\xbf" + good,
        lambda: with_row(cells[0] + "," + "x" * 300_000 + "," + ",".join(cells[2:])),
    ]
    return kinds[rng.randrange(len(kinds))]()


@pytest.mark.parametrize("trial", range(INDEXES))
def test_malformed_indexes(folder, tmp_path, trial, capsys):
    """A damaged index is refused in one line before anything is written, or is good enough for a
    store that lists all.
    """
    root, out = tmp_path / "corpus", tmp_path / "s"
    root.mkdir()
    for part in ("low", "middle", "high"):
        (root / part).symlink_to(folder / part)
    (root / "index.csv").write_bytes(broken_table((folder / "index.csv").read_bytes(), random.Random(trial)))
    code, _, error = call(capsys, "prepare", root, "--out", out, "--jobs", 1)
    if code:
        assert code == 2
        assert len(messages(error)) == 1
        assert "Traceback" not in error
        # refused before, or none of its clips was usable: then all are listed
        assert not out.exists() or (out / "quarantine.csv").exists()
    else:
        built = store.MelStore(out)
        assert len(built) + len(built.quarantine) == len(corpora.load(root).clips)
    assert no_leftovers(tmp_path)


# -------------------------------------------------------------------------------------------- kills


def undisturbed(words: list[str]) -> float:
    """Run a command to its end on one thread; return the seconds that it took.

    Temporary files lie on another disk, if there is one.
    """
    begun = time.monotonic()
    subprocess.run(words, check=True, capture_output=True, env=killable_environment())
    return time.monotonic() - begun


def killable_environment() -> dict[str, str]:
    """Return variables for a run that can be compared bit for bit."""
    other_disk = {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}
    return {**os.environ, **ONE_THREAD, **other_disk}


def start(words: list[str]) -> subprocess.Popen:
    """Start a command in a session of its own, so that all its processes can be killed."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(words, env=killable_environment(), start_new_session=True, **quiet)


def kill_at_random(words: list[str], seconds: float, rng: random.Random, out: Path) -> None:
    """Kill a command that takes so many seconds at random moments: at least once, and then while
    chance will have it.
    """
    count = 0
    while True:
        process, finished = start(words), True
        try:
            process.wait(rng.uniform(0.1, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            count, finished = count + 1, False
        if count and (finished or rng.random() < 0.5):
            print(f"killed {count} times at work")
            return
        if finished:  # it was faster this time: from the beginning
            shutil.rmtree(out)


@pytest.fixture(scope="module")
def seconds_to_prepare(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "s"
    return undisturbed(command("prepare", folder, "--out", out, "--jobs", 2))


@pytest.mark.slow
@pytest.mark.skipif(not ALL, reason="one interrupted build is in tests/data/test_store.py")
@pytest.mark.parametrize("trial", range(KILLS))
def test_kills_while_preparing(folder, mel_store, seconds_to_prepare, tmp_path, trial):
    words = command("prepare", folder, "--out", tmp_path / "s", "--jobs", 2)
    kill_at_random(words, seconds_to_prepare, random.Random(trial), tmp_path / "s")
    undisturbed(words)
    assert content(tmp_path / "s") == content(mel_store.path)


def training_words(mel_store, out: Path) -> list[str]:
    return command("pretrain", mel_store.path, "--out", out, "--steps", 70, "--batch-size", 8, "--resume")


@pytest.fixture(scope="module")
def in_one_go(mel_store, tmp_path_factory):
    """A run that nobody disturbed, and the seconds it took."""
    out = tmp_path_factory.mktemp("go") / "run"
    return out, undisturbed(training_words(mel_store, out))


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(KILLS))
def test_kills_while_training(mel_store, in_one_go, tmp_path, trial):
    """Killed after the first checkpoint (first trial) or at random, and resumed: the same weights
    bit for bit, and the same log.
    """
    (whole, seconds), out = in_one_go, tmp_path / "run"
    words = training_words(mel_store, out)
    if trial == 0:
        process = start(words)
        send_when(process, (out / "last.ckpt").exists, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "encoder.safetensors").exists()
    else:
        kill_at_random(words, seconds, random.Random(trial), out)
    undisturbed(words)
    ours, theirs = (load_file(run / "encoder.safetensors") for run in (out, whole))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    for name in ("step", "train/loss", "valid/loss"):
        assert column(out, name) == column(whole, name)
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


class Slow(http.server.BaseHTTPRequestHandler):
    """Gives its content in a second or two, from where it is asked to begin; notes where that was."""

    begun: ClassVar[list[int]] = []

    def __init__(self, content, *args):
        self.content = content
        super().__init__(*args)

    def do_GET(self):
        begin = int(self.headers["Range"][6:-1]) if self.headers.get("Range") else 0
        self.begun.append(begin)
        self.send_response(206 if begin else 200)
        if begin:
            size = len(self.content)
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(self.content) - begin))
        self.end_headers()
        try:
            for at in range(begin, len(self.content), 1 << 17):
                self.wfile.write(self.content[at : at + (1 << 17)])
                time.sleep(0.03)
        except OSError:  # the other side was killed
            pass

    def log_message(self, *args):
        pass


FETCH = """
import sys
from pathlib import Path
from colalib.data.corpora.download import Archive, fetch
url, checksum, size, data = sys.argv[1:]
fetch(Archive(url, checksum, "made", int(size), 20_000_000), Path(data), progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(KILLS))
def test_kills_while_fetching(tmp_path, trial):
    packed, rng = io.BytesIO(), random.Random(trial)
    with zipfile.ZipFile(packed, "w") as archive:
        for i in range(400):
            archive.writestr(f"{i}.bin", rng.randbytes(20_000))
    packed = packed.getvalue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, packed))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    data = tmp_path / "data"
    data.mkdir()
    url = f"http://127.0.0.1:{server.server_port}/made.zip"
    checksum = "sha256:" + hashlib.sha256(packed).hexdigest()
    words = [sys.executable, "-c", FETCH, url, checksum, str(len(packed)), str(data)]
    part = data / ".made.fetching" / "part"
    try:
        if trial == 0:
            process = start(words)
            send_when(process, lambda: part.exists() and part.stat().st_size, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        else:
            kill_at_random(words, 4, rng, data / "made")
        if (data / "made").exists():
            assert len(list((data / "made").iterdir())) == 400, "whole or not there"
        undisturbed(words)
        assert trial or Slow.begun[-1] > 0, "it goes on where it was killed"
    finally:
        server.shutdown()
        server.server_close()
    assert len(list((data / "made").iterdir())) == 400
    assert {p.name for p in data.iterdir()} <= {"made", ".made.lock"}


# --------------------------------------------------------------------------------- disks and clocks


AS_NOBODY = """
import contextlib, io, json, os, sys
from colalib.cli import main
commands, writable, locked = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
for words in commands:
    main([word.format(place=writable) for word in words])  # loads all that it needs
if os.geteuid() == 0:
    os.setegid(65534), os.seteuid(65534)
results = []
for words in commands:
    error, code = io.StringIO(), 0
    with contextlib.redirect_stderr(error):
        try:
            main([word.format(place=locked) for word in words])
        except SystemExit as end:
            code = end.code
    results.append([words[0], code, error.getvalue()])
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs another user")
def test_folders_that_are_read_only(folder, mel_store, tmp_path):
    writable, locked = tmp_path / "writable", tmp_path / "locked"
    writable.mkdir()
    locked.mkdir()
    to_read = [tmp_path, *own_parents(tmp_path), folder, folder.parent, mel_store.path, mel_store.path.parent]
    for parent in to_read:
        parent.chmod(0o755)
    locked.chmod(0o555)
    commands = [
        ["prepare", str(folder), "--out", "{place}/s", "--jobs", "1"],
        ["pretrain", str(mel_store.path), "--out", "{place}/run", "--steps", "2", "--batch-size", "8"],
        ["probe", str(mel_store.path), "--encoder", "mel-stats", "--out", "{place}/probe.json"],
        ["embed", str(mel_store.path), "--encoder", "default", "--out", "{place}/e.npz"],
    ]
    words = [sys.executable, "-c", AS_NOBODY, json.dumps(commands), str(writable), str(locked)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, code, error in json.loads(done.stdout.splitlines()[-1]):
        assert code == 1, name
        assert len(messages(error)) == 1, error
        assert "ermission denied" in messages(error)[0], name
        assert "Traceback" not in error, name
    assert not list(locked.iterdir())


def test_a_file_vanishes(folder, tmp_path):
    """Between the table and the reading of it."""
    corpus = corpora.load(folder)
    corpus.clips.loc[3, "path"] = "low/gone.flac"
    built = store.build(corpus, tmp_path / "s", progress=False)
    assert built.quarantine.values.tolist() == [["low/gone.flac", "file not found"]]
    assert len(built) == 95


SMALL_DISK = """
import resource, signal, sys
from colalib.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # bytes; a checkpoint has more
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_full_disk_during_training(mel_store, tmp_path):
    """Training says so in one line; with room again the same call with --resume completes."""
    out = tmp_path / "run"
    words = ["pretrain", str(mel_store.path), "--out", str(out), "--steps", "52", "--batch-size", "4"]
    full = subprocess.run([sys.executable, "-c", SMALL_DISK, *words], capture_output=True, text=True)
    assert full.returncode == 1
    assert messages(full.stderr)[-1].startswith("colalib: File too large")
    assert "Traceback" not in full.stderr
    again = run_command(*words, "--resume")
    assert again.returncode == 0, again.stderr
    assert (out / "encoder.safetensors").exists()


def test_a_full_disk_while_fetching(tmp_path, monkeypatch, capsys):
    """The disk says that it has room, and then has not: what has come is kept."""
    part = tmp_path / "data" / ".made.fetching" / "part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"12345")

    def no_room(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "data"))

    monkeypatch.setattr(download.Download, "connect", no_room)
    archive = download.Archive("http://127.0.0.1:9/made.zip", "sha256:" + "0" * 64, "made", 10, 10)
    monkeypatch.setitem(download.ARCHIVES, "fsdd", archive)
    code, _, error = call(capsys, "fetch", "fsdd", "--licence", "", "--data", tmp_path / "data")
    assert code == 1
    assert len(messages(error)) == 1
    assert "No space left on device" in error
    assert not (tmp_path / "data" / "made").exists()
    assert part.read_bytes() == b"12345"


@pytest.mark.slow
def test_the_clock_goes_back(folder, tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda ticks=iter(range(10**9)): now - 3600 * next(ticks))
    built = store.build(corpora.load(folder), tmp_path / "s", jobs=1, progress=False)
    assert len(built) == 96
    config = PretrainConfig(minutes=0.05, batch_size=8)
    run = training.pretrain([built], tmp_path / "run", config, progress=False)
    seconds = pd.read_csv(run / "metrics.csv")["seconds"]
    assert (seconds.diff().dropna() >= 0).all()
    assert (run / "encoder.safetensors").exists()
