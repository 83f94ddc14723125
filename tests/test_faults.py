"""Fault trials: whatever happens, nothing is lost, nothing is half-written, every drop is listed,
the next call completes.

A few of each kind here; `make faults` (COLA_FAULTS=all) makes as many as the README says, and
counts them.
"""

import functools
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
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import tone
from safetensors.torch import load_file

from colalib import training
from colalib.cli import main
from colalib.data import audio, corpora, store
from colalib.data.corpora import download
from colalib.settings import PretrainConfig

ALL = os.environ.get("COLA_FAULTS") == "all"
FORMATS = ("wav", "flac", "ogg", "mp3")
# of each format; in all; of each command
FILES, INDEXES, KILLS = (200, 50, 10) if ALL else (12, 15, 1)


def command(*words):
    return [sys.executable, "-m", "colalib", *map(str, words)]


def clean(folder):
    """No file lies there that was not finished."""
    return not [p for p in folder.rglob("*") if p.name.endswith((".part", ".fetching"))]


def one_line(text):
    """What a user is told is one line of ours."""
    told = [line for line in text.replace("\r", "\n").splitlines() if line.startswith("colalib: ")]
    return len(told) == 1 and "Traceback" not in text


# ---------------------------------------------------------------------------------- malformed files


def malformed(good: bytes, rng: random.Random) -> bytes:
    """`good` with one kind of damage."""
    n = len(good)
    at, size = rng.randrange(n), rng.randrange(1, max(2, n // 4))
    kinds = {
        "cut": lambda: good[:at],
        "bytes changed": lambda: bytes(rng.randrange(256) if rng.random() < 0.01 else b for b in good),
        "zeros": lambda: good[:at] + bytes(len(good[at : at + size])) + good[at + size :],
        "a part missing": lambda: good[:at] + good[at + size :],
        "a part twice": lambda: good[: at + size] + good[at:],
        "garbage inserted": lambda: good[:at] + rng.randbytes(size) + good[at:],
        "head changed": lambda: (
            bytes(rng.randrange(256) if rng.random() < 0.3 else b for b in good[:64]) + good[64:]
        ),
        "head only": lambda: good[: rng.randrange(1, 64)],
        "no head": lambda: good[rng.randrange(1, 64) :],
        "noise": lambda: rng.randbytes(n),
        "text": lambda: b"<html>404 not found</html>\n" * rng.randrange(1, 50),
        "nothing": lambda: b"",
    }
    return kinds[rng.choice(sorted(kinds))]()


@pytest.mark.parametrize("form", FORMATS)
def test_malformed_audio(tmp_path, form):
    """One call over many damaged files and a few good ones: each is in the store with finite frames
    or listed with its reason, the good ones as if they were alone."""
    rng, root = random.Random(form), tmp_path / "corpus"
    root.mkdir()
    wave = tone(330, 2.0, 1)
    other = {f: io.BytesIO() for f in FORMATS}
    for f, file in other.items():
        soundfile.write(file, wave, 16_000, format=f.upper())
    good = other[form].getvalue()
    for i in range(FILES):
        # another format
        content = malformed(good, rng) if i else other[FORMATS[FORMATS.index(form) - 1]].getvalue()
        (root / f"bad-{i:03d}.{form}").write_bytes(content)
    for i in range(3):
        (root / f"good-{i}.{form}").write_bytes(good)
    done = subprocess.run(command("prepare", root, "--out", tmp_path / "s"), capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    made = store.MelStore(tmp_path / "s")
    listed = [*made.clips["path"], *made.quarantine["path"]]
    assert sorted(listed) == sorted(p.name for p in root.iterdir()), "every file is in one of the two lists"
    assert all(reason and "\n" not in reason for reason in made.quarantine["reason"])
    alone = audio.log_mel(audio.load_audio(root / f"good-0.{form}")).astype(np.float16)
    for i, path in enumerate(made.clips["path"]):
        frames = made.frames(i)
        assert np.isfinite(frames).all()
        assert not path.startswith("good") or np.array_equal(frames, alone)
    assert {"good-0", "good-1", "good-2"} <= {p.split(".")[0] for p in made.clips["path"]}
    assert clean(tmp_path)
    print(
        f"{form}: {FILES} malformed files, {len(made.quarantine)} listed, {len(made) - 3} still could be decoded"
    )


def broken_table(good: bytes, rng: random.Random) -> bytes:
    """index.csv with one kind of damage."""
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
    root = tmp_path / "corpus"
    root.mkdir()
    for part in ("low", "middle", "high"):
        (root / part).symlink_to(folder / part)
    (root / "index.csv").write_bytes(broken_table((folder / "index.csv").read_bytes(), random.Random(trial)))
    out = tmp_path / "s"
    try:
        main(["prepare", str(root), "--out", str(out), "--jobs", "1"])
    except SystemExit as ended:
        assert ended.code == 2 and one_line(capsys.readouterr().err)
        # refused before, or none of its clips was usable: then all are listed
        assert not out.exists() or (out / "quarantine.csv").exists()
    else:
        made = store.MelStore(out)
        assert len(made) + len(made.quarantine) == len(corpora.load(root).clips)
    assert clean(tmp_path)


# -------------------------------------------------------------------------------------------- kills


def one_thread():
    """Variables for a run that can be compared bit for bit. Temporary files lie on another disk,
    where there is one.
    """
    return {**os.environ, "OMP_NUM_THREADS": "1"} | (
        {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}
    )


def in_peace(words):
    """Run a command to its end; the seconds it took."""
    begun = time.monotonic()
    subprocess.run(words, check=True, capture_output=True, env=one_thread())
    return time.monotonic() - begun


def kills(words, seconds, rng, out):
    """Kill a command that takes so many seconds, at a random moment, once at least and then while
    chance will have it.
    """
    count = 0
    while True:
        hit = killed(words, rng.uniform(0.1, 0.9) * seconds)
        count += hit
        if count and (not hit or rng.random() < 0.5):
            print(f"killed {count} times at work")
            return
        if not hit:  # it was faster this time: from the beginning
            shutil.rmtree(out)


def killed(words, after):
    """Run a command in a session of its own, and kill all of that after so many seconds; whether it
    was still at work.
    """
    process = subprocess.Popen(
        words, env=one_thread(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


@pytest.fixture(scope="module")
def seconds_to_prepare(folder, tmp_path_factory):
    return in_peace(
        command("prepare", folder, "--out", tmp_path_factory.mktemp("peace") / "s", "--jobs", "2")
    )


@pytest.mark.parametrize("trial", range(KILLS))
def test_kills_while_preparing(folder, mel_store, seconds_to_prepare, tmp_path, trial):
    words = command("prepare", folder, "--out", tmp_path / "s", "--jobs", "2")
    kills(words, seconds_to_prepare, random.Random(trial), tmp_path / "s")
    in_peace(words)
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == {
        p.name: p.read_bytes() for p in mel_store.path.iterdir()
    }


@pytest.fixture(scope="module")
def in_one_go(mel_store, tmp_path_factory):
    """A run that nobody disturbed, and the seconds it took."""
    out = tmp_path_factory.mktemp("go") / "run"
    return out, in_peace(training_words(mel_store, out))


def training_words(mel_store, out):
    return command("pretrain", mel_store.path, "--out", out, "--steps", 70, "--batch-size", 8, "--resume")


@pytest.mark.parametrize("trial", range(KILLS))
def test_kills_while_training(mel_store, in_one_go, tmp_path, trial):
    words, (undisturbed, seconds) = training_words(mel_store, tmp_path / "run"), in_one_go
    kills(words, seconds, random.Random(trial), tmp_path / "run")
    in_peace(words)
    ours, theirs = (load_file(run / "encoder.safetensors") for run in (tmp_path / "run", undisturbed))
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in undisturbed.iterdir()}


class Slow(http.server.BaseHTTPRequestHandler):
    """Gives its content in a second or two, from wherever it is asked to begin."""

    def __init__(self, content, *args):
        self.content = content
        super().__init__(*args)

    def do_GET(self):
        begin = int(self.headers["Range"][6:-1]) if self.headers.get("Range") else 0
        self.send_response(206 if begin else 200)
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


@pytest.mark.parametrize("trial", range(KILLS))
def test_kills_while_fetching(tmp_path, trial):
    import hashlib
    import zipfile

    packed, rng = io.BytesIO(), random.Random(trial)
    with zipfile.ZipFile(packed, "w") as archive:
        for i in range(400):
            archive.writestr(f"{i}.bin", rng.randbytes(20_000))
    content = packed.getvalue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, content))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    data = tmp_path / "data"
    data.mkdir()
    url = f"http://127.0.0.1:{server.server_port}/made.zip"
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    words = [sys.executable, "-c", FETCH, url, checksum, str(len(content)), str(data)]
    try:
        kills(words, 4, rng, data / "made")
        assert not (data / "made").exists() or len(list((data / "made").iterdir())) == 400, (
            "whole or not there"
        )
        in_peace(words)
    finally:
        server.shutdown()
        server.server_close()
    assert len(list((data / "made").iterdir())) == 400
    assert {p.name for p in data.iterdir()} <= {"made", ".made.lock"}


# --------------------------------------------------------------------------------- disks and clocks


NOBODY = """
import contextlib, io, json, os, sys
from colalib.cli import main
for words in json.loads(sys.argv[1]):
    main([w.format(place=sys.argv[2]) for w in words])  # loads all that it needs
if os.geteuid() == 0:
    os.setegid(65534), os.seteuid(65534)
ended = []
for words in json.loads(sys.argv[1]):
    told, code = io.StringIO(), 0
    with contextlib.redirect_stderr(told):
        try:
            main([w.format(place=sys.argv[3]) for w in words])
        except SystemExit as left:
            code = left.code
    ended.append([words[0], code, told.getvalue()])
print(json.dumps(ended))
"""


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs another user")
def test_folders_that_are_read_only(folder, mel_store, tmp_path):
    free, place = tmp_path / "free", tmp_path / "locked"
    free.mkdir(), place.mkdir()
    for parent in (
        tmp_path,
        *tmp_path.parents[:2],
        folder,
        folder.parent,
        mel_store.path,
        mel_store.path.parent,
    ):
        parent.chmod(0o755)
    place.chmod(0o555)
    words = [
        ["prepare", str(folder), "--out", "{place}/s", "--jobs", "1"],
        ["pretrain", str(mel_store.path), "--out", "{place}/run", "--steps", "2", "--batch-size", "8"],
        ["probe", str(mel_store.path), "--encoder", "mel-stats", "--out", "{place}/probe.json"],
        ["embed", str(mel_store.path), "--encoder", "default", "--out", "{place}/e.npz"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, json.dumps(words), str(free), str(place)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, code, told in json.loads(done.stdout.splitlines()[-1]):
        assert code == 1 and one_line(told) and "ermission denied" in told, (name, code, told)
    assert not list(place.iterdir())


def test_a_file_vanishes(folder, tmp_path):
    """Between the table and the reading of it."""
    corpus = corpora.load(folder)
    corpus.clips.loc[3, "path"] = "low/gone.flac"
    made = store.build(corpus, tmp_path / "s", progress=False)
    assert made.quarantine.values.tolist() == [["low/gone.flac", "file not found"]] and len(made) == 95


def test_a_full_disk_while_fetching(tmp_path, monkeypatch):
    """The disk says that it has room, and then has not: one line, and what came is kept."""
    (tmp_path / "data").mkdir()

    def no_room(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "data"))

    monkeypatch.setattr(download.ResumingDownloader, "receive", no_room)
    archive = download.Archive("http://127.0.0.1:9/made.zip", "sha256:" + "0" * 64, "made", 10, 10)
    monkeypatch.setitem(download.ARCHIVES, "fsdd", archive)
    with pytest.raises(SystemExit) as ended:
        main(["fetch", "fsdd", "--licence", "", "--data", str(tmp_path / "data")])
    assert ended.value.code == 1 and not (tmp_path / "data" / "made").exists()


def test_the_clock_goes_back(folder, mel_store, tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda ticks=iter(range(10**9)): now - 3600 * next(ticks))
    made = store.build(corpora.load(folder), tmp_path / "s", jobs=1, progress=False)
    assert len(made) == 96
    config = PretrainConfig(minutes=0.05, batch_size=8)
    run = training.pretrain([made], tmp_path / "run", config, progress=False)
    seconds = pd.read_csv(run / "metrics.csv")["seconds"]
    assert (seconds.diff().dropna() >= 0).all() and (run / "encoder.safetensors").exists()
