"""The store: what it holds, what it refuses, and how a build is continued."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from helpers import RATE, ROOT, command, run_command, send_when, tone

from colalib.data import corpora, processes, store
from colalib.data.audio import MelConfig
from colalib.errors import UserError


def content(path):
    """Return the bytes of every file of a store."""
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_store_holds_every_clip(mel_store, folder):
    assert len(mel_store) == 96
    assert len(mel_store.quarantine) == 0
    assert mel_store.name == folder.name
    assert mel_store.mel == MelConfig()
    assert (mel_store.clips["frames"] == 201).all()
    for i in (0, 50, 95):
        assert mel_store.frames(i).shape == (201, 64)
        assert mel_store.frames(i).dtype == np.float16


def test_result_does_not_depend_on_jobs(mel_store, folder, tmp_path):
    other = store.build(corpora.load(folder), tmp_path / "s", jobs=2, progress=False)
    assert content(other.path) == content(mel_store.path)


@pytest.mark.parametrize("name", ["multiprocessing", "threading"])
def test_result_does_not_depend_on_the_backend(folder, mel_store, tmp_path, name):
    with processes.backend(name):
        other = store.build(corpora.load(folder), tmp_path / "s", jobs=2, progress=False)
    assert content(other.path) == content(mel_store.path)


def test_a_shard_is_what_numpy_would_save(mel_store, tmp_path):
    shard = store.shard_path(mel_store.path, 0)
    np.save(tmp_path / "a.npy", np.load(shard))
    assert (tmp_path / "a.npy").read_bytes() == shard.read_bytes()


def test_bad_clips_are_listed_with_their_reason(broken_files, tmp_path):
    root, reasons = broken_files
    stereo = np.stack([tone(300, 2, 1, 44_100), tone(400, 2, 2, 44_100)], axis=1)
    soundfile.write(root / "stereo.wav", stereo, 44_100)
    soundfile.write(root / "low.wav", tone(300, 2, 1, 8000), 8000)
    soundfile.write(root / "high.flac", tone(300, 2, 1, 96_000), 96_000)
    soundfile.write(root / "long.flac", np.tile(tone(300, 20, 1), 180), 16_000)  # an hour
    good = ["high.flac", "long.flac", "low.wav", "stereo.wav"]
    (root / "index.csv").write_text("\n".join(["path", *reasons, *good]))
    built = store.build(corpora.load(root), tmp_path / "s", jobs=2, progress=False)
    assert sorted(built.clips["path"]) == good
    listed = dict(zip(built.quarantine["path"], built.quarantine["reason"]))
    assert listed.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in listed[name]


CRASHING = """
import os
from pathlib import Path
from colalib.data import audio
stream = audio.stream

def crash(path, rate):
    if Path(path).stem == "crash":
        os.abort()
    if Path(path).stem == "exit":
        os._exit(7)
    return stream(path, rate)

audio.stream = crash
"""


@pytest.mark.slow
def test_files_that_crash_the_decoder_are_listed(folder, mel_store, tmp_path):
    root, out = tmp_path / "corpus", tmp_path / "s"
    shutil.copytree(folder, root)
    index = (root / "index.csv").read_text()
    for old, new in {"low/0-1": "low/crash", "low/1-0": "low/exit", "high/7-3": "high/crash"}.items():
        (root / f"{old}.flac").rename(root / f"{new}.flac")
        index = index.replace(f"{old}.flac", f"{new}.flac")
    (root / "index.csv").write_text(index)
    # read at the start of every process
    (tmp_path / "sitecustomize.py").write_text(CRASHING)
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = run_command("prepare", root, "--out", out, "--jobs", 2, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    listed = store.MelStore(out).quarantine
    assert sorted(listed["path"]) == ["high/crash.flac", "low/crash.flac", "low/exit.flac"]
    assert set(listed["reason"]) == {"unreadable: the decoder crashed"}
    assert len(store.MelStore(out)) == 93
    assert {p.name for p in out.iterdir()} == {p.name for p in mel_store.path.iterdir()}
    done = run_command("embed", root, "--encoder", "mel-stats", "--out", tmp_path / "e.npz", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "e.npz")["embedding"].shape == (93, 128)
    assert all(name in done.stdout + done.stderr for name in ("high/crash", "low/crash", "low/exit"))


def test_a_clip_with_a_fault_at_its_end_leaves_no_frames(tmp_path):
    good, late = tone(300, 2, 1), np.tile(tone(300, 20, 1), 2)
    late[-1] = np.nan  # found in the second block, when the first has been written
    for name, wave in (("a.wav", good), ("b.wav", late), ("c.wav", good)):
        soundfile.write(tmp_path / name, wave, 16_000, subtype="FLOAT")
    built = store.build(corpora.load(tmp_path), tmp_path / "s", jobs=1, progress=False)
    assert built.clips["start"].tolist() == [0, 201]
    assert np.array_equal(built.frames(0), built.frames(1))
    assert len(np.load(store.shard_path(built.path, 0))) == 402


def test_a_corpus_without_a_usable_clip_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text.mp3").write_text("no music")
    with pytest.raises(UserError, match=r"none of 1 clips is usable .*text\.mp3: unreadable"):
        store.build(corpora.load(tmp_path / "a"), tmp_path / "s", jobs=1, progress=False)
    assert "text.mp3" in (tmp_path / "s" / "quarantine.csv").read_text()
    with pytest.raises(UserError, match="not finished"):
        store.MelStore(tmp_path / "s")


def test_settings_that_no_store_can_have_are_refused_before_the_work(folder, tmp_path):
    with pytest.raises(UserError, match="contradict each other"):
        store.build(corpora.load(folder), tmp_path / "s", MelConfig(fmax=8500))
    assert not (tmp_path / "s").exists()


def test_a_store_of_other_clips_or_settings_is_refused(mel_store, folder, tmp_path):
    corpus = corpora.load(folder)
    shutil.copytree(mel_store.path, tmp_path / "s")
    with pytest.raises(UserError, match="was made with other mel settings: choose another --out"):
        store.build(corpus, tmp_path / "s", MelConfig(n_mels=32))
    corpus.clips = corpus.clips.iloc[:50]
    with pytest.raises(UserError, match="removed or relabelled since: choose another --out"):
        store.build(corpus, tmp_path / "s")


def test_a_folder_that_is_no_store_is_refused(folder):
    with pytest.raises(UserError, match="is not a store"):
        store.MelStore(folder)
    with pytest.raises(UserError, match="not a store and not empty"):
        store.build(corpora.load(folder), folder)


@pytest.mark.parametrize("name", ["frames-00000.npy", "config.json", "clips.csv"])
def test_damaged_files_are_refused(mel_store, tmp_path, name):
    shutil.copytree(mel_store.path, tmp_path / "s")
    (tmp_path / "s" / name).write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(UserError, match="damaged"):
        store.MelStore(tmp_path / "s").frames(0)


def test_a_shard_that_is_too_short_is_refused(mel_store, tmp_path):
    shutil.copytree(mel_store.path, tmp_path / "s")
    shard = store.shard_path(tmp_path / "s", 0)
    np.save(shard, np.load(shard)[:300])
    damaged = store.MelStore(tmp_path / "s")
    assert len(damaged.frames(0)) == 201
    with pytest.raises(UserError, match=r"frames-00000\.npy: too short"):
        damaged.frames(1)


# sitecustomize.py of a process whose decoder hangs at the 41st clip, in the third shard of 16 clips
HANGING = """
import time, soundfile
class Hanging(soundfile.SoundFile):
    reads = 0
    def read(self, *args, **kwargs):
        Hanging.reads += 1
        if Hanging.reads > 40:
            time.sleep(3600)
        return super().read(*args, **kwargs)
soundfile.SoundFile = Hanging
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_goes_on_to_the_same_bytes(mel_store, folder, tmp_path, sign):
    out = tmp_path / "s"
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    search = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command("prepare", folder, "--out", out, "--jobs", 1),
        env=os.environ | {"PYTHONPATH": search},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        send_when(process, lambda: len(list(out.glob("rows-*.csv"))) == 2, sign)
        _, error = process.communicate(timeout=240)
    finally:
        process.kill()  # else it sleeps on
    assert process.returncode != 0
    assert b"Traceback" not in error
    assert len(list(out.glob("rows-*.csv"))) == 2
    assert not (out / "clips.csv").exists()
    with pytest.raises(UserError, match="not finished"):
        store.MelStore(out)
    built = store.build(corpora.load(folder), out, jobs=1, progress=False)
    assert content(out) == content(mel_store.path)
    assert len(built) == 96


def test_the_death_of_a_worker_process_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_write_shard", lambda *args: os._exit(9))
    with pytest.raises(UserError, match="a worker process died"):
        store.build(corpora.load(folder), tmp_path / "s", jobs=2, progress=False)


@pytest.mark.parametrize("lost", ["frames-00000.npy", "quarantine.csv"])
def test_what_a_full_disk_lost_is_told(mel_store, tmp_path, lost):
    shutil.copytree(mel_store.path, tmp_path / "s")
    (tmp_path / "s" / lost).unlink()
    if lost.endswith(".npy"):
        (tmp_path / "s" / lost).touch()
    with pytest.raises(UserError, match=r"damaged.*prepare it again, to another folder"):
        store.MelStore(tmp_path / "s").frames(0)


def test_leftovers_of_a_killed_process_are_removed(mel_store, folder, tmp_path):
    shutil.copytree(mel_store.path, tmp_path / "s")
    (tmp_path / "s" / "clips.csv").unlink()
    (tmp_path / "s" / ".clips.csv.7.part").write_text("")
    (tmp_path / "s" / ".download.part").write_text("not ours")
    store.build(corpora.load(folder), tmp_path / "s", jobs=1, progress=False)
    assert (tmp_path / "s" / ".download.part").read_text() == "not ours"
    (tmp_path / "s" / ".download.part").unlink()
    assert content(tmp_path / "s") == content(mel_store.path)


def test_a_complete_store_is_opened_without_a_lock(mel_store, folder, monkeypatch):
    monkeypatch.setattr(store, "locked", None)  # may not be called
    monkeypatch.setattr(store, "atomic", None)
    assert len(store.build(corpora.load(folder), mel_store.path, progress=False)) == 96


def test_two_corpora_are_not_mixed_in_one_store(mel_store, folder, tmp_path):
    """The second of two calls on one folder looks at what the first has written, behind the lock."""
    entered = []
    usual = store._enter

    def enter(corpus, out, content):
        # another process writes its config.json while this one waits for the lock
        if not entered:
            entered.append(True)
            store.write_json(out / "config.json", content | {"corpus": "another"})
        return usual(corpus, out, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_enter", enter)
        with pytest.raises(UserError, match="made with another corpus"):
            store.build(corpora.load(folder), tmp_path / "s", jobs=1, progress=False)


def test_what_was_not_found_is_tried_again(folder, tmp_path):
    corpus = corpora.load(folder)
    moved = corpus.clips["path"].iloc[3]
    root = tmp_path / "corpus"
    shutil.copytree(folder, root)
    (root / moved).rename(tmp_path / "away.flac")
    corpus = corpora.load(root)
    first = store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    assert list(first.quarantine["path"]) == [moved]
    (tmp_path / "away.flac").rename(root / moved)
    again = store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    assert len(again) == len(first) + 1
    assert again.quarantine.empty


def test_a_drive_that_is_not_there_leaves_nothing_behind(folder, tmp_path):
    root = tmp_path / "corpus"
    shutil.copytree(folder, root)
    corpus = corpora.load(root)
    root.rename(tmp_path / "away")
    with pytest.raises(UserError, match="96 of 96 files were not found"):
        store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    (tmp_path / "away").rename(root)
    assert len(store.build(corpus, tmp_path / "s", jobs=1, progress=False)) == 96


def test_equal_clips_are_listed(folder, tmp_path):
    root = tmp_path / "corpus"
    (root / "a").mkdir(parents=True)
    for name in ("a/1.flac", "a/2.flac"):
        shutil.copy(folder / "low" / "0-0.flac", root / name)
    shutil.copy(folder / "low" / "0-1.flac", root / "a" / "3.flac")
    built = store.build(corpora.load(root), tmp_path / "s", jobs=1, progress=False)
    assert list(built.duplicates["clip_id"]) == ["a/1.flac", "a/2.flac"]
    assert set(built.duplicates["same_as"]) == {"a/1.flac"}


def test_a_text_that_a_spreadsheet_would_run_is_kept_from_it(tmp_path):
    (tmp_path / "=HYPERLINK(1).wav").write_bytes(b"no sound")
    shutil_wav = tmp_path / "good.wav"
    soundfile.write(shutil_wav, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    built = store.build(corpora.load(tmp_path), tmp_path.with_name("s-formula"), jobs=1, progress=False)
    assert list(built.quarantine["path"]) == ["=HYPERLINK(1).wav"]
    assert "\n'=HYPERLINK" in (built.path / "quarantine.csv").read_text()


def test_few_files_are_open_at_a_time(folder, tmp_path):
    """A store with more shards than a process may have open files."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
        "import sys; from pathlib import Path; import numpy as np;"
        "from colalib.course.bench import sparse_store; from colalib.data.store import MelStore;"
        "s = MelStore(sparse_store(Path(sys.argv[1]), clips=20_000, frames=10));"
        "print(sum(len(s.frames(i)) for i in np.random.default_rng(0).permutation(len(s))[:3000]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "30000", done.stderr[-500:]


def test_a_full_disk_is_told_in_one_line(folder, tmp_path):
    """With room again the same call completes the store."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
    words = ["prepare", str(folder), "--out", str(tmp_path / "s"), "--jobs", "1"]
    call = f"from colalib.cli import main; main({words!r})"
    ended = subprocess.run([sys.executable, "-c", limit + call], capture_output=True, text=True)
    message = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1
    assert message.startswith("colalib: ")
    assert "Traceback" not in ended.stderr
    assert "File too large" in message
    assert len(store.build(corpora.load(folder), tmp_path / "s", jobs=1, progress=False)) == 96


def recordings(folder, pitch, sounds=3):
    folder.mkdir(parents=True)
    for i in range(sounds):
        soundfile.write(folder / f"{i:02}.wav", tone(pitch, 1.0, i), RATE)
    return corpora.load(folder)


def test_a_folder_with_the_same_names_is_another_one(tmp_path):
    monday = recordings(tmp_path / "monday" / "rec", 200)
    tuesday = recordings(tmp_path / "tuesday" / "rec", 900)
    built = store.build(monday, tmp_path / "s", jobs=1, progress=False)
    before = {path: path.read_bytes() for path in built.path.iterdir()}
    with pytest.raises(UserError, match=r"was made from .*monday.*00.wav differs from the file there"):
        store.build(tuesday, tmp_path / "s", jobs=1, progress=False)
    shutil.copytree(monday.root, tmp_path / "copy" / "rec", copy_function=shutil.copyfile)  # of another time
    copy = corpora.load(tmp_path / "copy" / "rec")
    store.build(copy, tmp_path / "s", jobs=1, progress=False)
    assert {path: path.read_bytes() for path in built.path.iterdir()} == before


def test_what_was_read_of_another_folder_is_not_gone_on_with(tmp_path, monkeypatch):
    monday = recordings(tmp_path / "monday" / "rec", 200, 40)
    tuesday = recordings(tmp_path / "tuesday" / "rec", 900, 40)
    write = store._write_shard

    def interrupted(paths, out, shard, *more):
        if shard == 2:
            raise KeyboardInterrupt
        return write(paths, out, shard, *more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "_write_shard", interrupted)
        store.build(monday, tmp_path / "s", jobs=1, progress=False)
    with pytest.raises(UserError, match=r"was made from .*monday"):
        store.build(tuesday, tmp_path / "s", jobs=1, progress=False)
    assert len(store.build(monday, tmp_path / "s", jobs=1, progress=False)) == 40


def test_a_changed_file_is_read_again(tmp_path, capsys):
    corpus = recordings(tmp_path / "rec", 200, 20)  # two shards
    whole = (corpus.root / "18.wav").read_bytes()
    (corpus.root / "18.wav").write_bytes(b"RIFF" + whole[40:])
    first = store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    assert list(first.quarantine["path"]) == ["18.wav"]
    kept = [(first.path / f"frames-{i:05}.npy").stat().st_mtime_ns for i in range(2)]
    before = first.frames(18).copy()

    (corpus.root / "18.wav").write_bytes(whole)  # repaired
    soundfile.write(corpus.root / "19.wav", tone(900, 1.0, 1), RATE)  # of the same size
    (corpus.root / "00.wav").unlink()  # deleted to save space: its frames stay
    again = store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    assert "2 files are new or have changed (the first: 18.wav)" in capsys.readouterr().err
    assert len(again) == 20
    assert again.quarantine.empty
    assert not np.array_equal(again.frames(19), before)
    new = [(first.path / f"frames-{i:05}.npy").stat().st_mtime_ns for i in range(2)]
    assert new[0] == kept[0] and new[1] > kept[1]

    store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    assert capsys.readouterr().err == ""


def test_a_store_that_was_prepared_again_while_it_was_open(tmp_path):
    corpus = recordings(tmp_path / "rec", 200, 20)  # two shards
    first = store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    before = first.frames(0).copy()  # opens the first shard
    for name in ("00.wav", "18.wav"):
        soundfile.write(corpus.root / name, tone(900, 2.0, 1), RATE)
    store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    assert np.array_equal(first.frames(0), before), "what is open stays as it was"
    with pytest.raises(UserError, match="was prepared again while it was open"):
        first.frames(18)
    assert len(store.MelStore(tmp_path / "s").frames(18)) > len(before)
    os.utime(tmp_path / "s" / "clips.csv", (0, 0))  # as some archives give all files
    assert len(store.MelStore(tmp_path / "s").frames(18)) > len(before)


def test_what_a_store_holds_is_not_lost_with_a_change(tmp_path):
    corpus = recordings(tmp_path / "rec", 200, 3)
    before = store.build(corpus, tmp_path / "s", jobs=1, progress=False).frames(0).copy()
    (corpus.root / "00.wav").unlink()
    soundfile.write(corpus.root / "02.wav", tone(900, 1.0, 1), RATE)
    with pytest.raises(UserError, match=r"02.wav is another file than .* 00.wav, which .* is gone"):
        store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    assert np.array_equal(store.MelStore(tmp_path / "s").frames(0), before)


def test_a_store_whose_files_became_unusable_is_read_anew(tmp_path):
    corpus = recordings(tmp_path / "rec", 200, 1)
    before = store.build(corpus, tmp_path / "s", jobs=1, progress=False).frames(0).copy()
    whole = (corpus.root / "00.wav").read_bytes()
    (corpus.root / "00.wav").write_bytes(b"broken")
    with pytest.raises(UserError, match="none of 1 clips is usable"):
        store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    (corpus.root / "00.wav").write_bytes(whole)
    again = store.build(corpus, tmp_path / "s", jobs=1, progress=False)
    assert np.array_equal(again.frames(0), before)


def test_what_is_no_file_stays_so(tmp_path, capsys):
    corpus = recordings(tmp_path / "rec", 200, 2)
    os.mkfifo(corpus.root / "pipe.wav")
    (corpus.root / "folder.wav").mkdir()
    (corpus.root / "index.csv").write_text("path\n00.wav\npipe.wav\nfolder.wav\n")
    corpus = corpora.load(corpus.root)
    for _ in range(2):
        assert len(store.build(corpus, tmp_path / "s", jobs=1, progress=False)) == 1
    assert capsys.readouterr().err == ""
