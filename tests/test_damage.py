"""Damage by the hundred: containers, run folders, choices and lists, each usable or refused in one line.

A few of each kind run here. `make faults` (COLA_FAULTS=all) runs more, and prints counts.
"""

import io
import json
import random
import shutil
import struct
from collections import Counter

import numpy as np
import pytest
import soundfile
from helpers import ALL, RATE, call, malformed, messages, run_command, tone

from colalib import widgets
from colalib.data import corpora, store
from colalib.errors import UserError
from colalib.training.cost import Constants
from colalib.widgets import choices

CONTAINERS, RUNS, CHOICES, LISTS = (40, 40, 200, 100) if ALL else (3, 2, 10, 5)

# --------------------------------------------------------------------------------------- containers

SECONDS = 2.0
# what a header's channels, rate or length may say
ABSURD = (0, 1, 2, 255, 1024, 65_535, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1)


def encoded(form: str, seconds: float = SECONDS, pitch: float = 330, scale: float = 1.0) -> bytes:
    """Return a tone as a file of one format."""
    file = io.BytesIO()
    soundfile.write(file, np.float32(scale) * tone(pitch, seconds, 1), RATE, format=form.upper())
    return file.getvalue()


def without_xing(rng: random.Random) -> tuple[bytes, float]:
    """Return an MP3 of several bitrates whose header frame is missing, as it comes out of a pipe."""
    parts = []
    for scale in rng.choices((1.0, 0.01, 0.001), k=3):
        content = encoded("mp3", scale=scale)
        parts.append(content[content.index(content[:2], 4) :])  # from the second frame on
    return b"".join(parts), 3 * SECONDS


def chained(rng: random.Random) -> tuple[bytes, float]:
    """Return several Ogg streams in one file."""
    seconds = rng.choices((0.5, 1.0, 3.0), k=rng.randrange(2, 5))
    return b"".join(encoded("ogg", length) for length in seconds), sum(seconds)


def of_unknown_length(rng: random.Random) -> tuple[bytes, float]:
    """Return a FLAC whose number of samples is not known."""
    seconds = rng.uniform(0.5, 4)
    content = bytearray(encoded("flac", seconds))
    content[21] &= 0xF0  # the low 36 bits of STREAMINFO's sample count
    content[22:26] = bytes(4)
    return bytes(content), seconds


def switched_off(rng: random.Random) -> tuple[bytes, float]:
    """Return a WAV whose recorder was switched off before it wrote the sizes."""
    seconds = rng.uniform(0.5, 4)
    content = bytearray(encoded("wav", seconds))
    for place in (4, content.index(b"data") + 4):
        struct.pack_into("<I", content, place, rng.choice((0, 2**32 - 1)))
    return bytes(content), seconds


def absurd(rng: random.Random) -> tuple[bytes, None]:
    """Return a file whose header claims absurd channels, rates or lengths."""
    content = bytearray(encoded(rng.choice(("wav", "aiff", "au", "caf", "w64", "flac", "voc"))))
    for _ in range(rng.randrange(1, 4)):
        form = rng.choice(("<H", ">H", "<I", ">I"))
        limit = 2 ** (8 * struct.calcsize(form))
        struct.pack_into(form, content, rng.randrange(4, 120, 2), rng.choice(ABSURD) % limit)
    return bytes(content), None


def cut(rng: random.Random) -> tuple[bytes, float]:
    """Return half a file; its length is below zero: it must be listed."""
    content = encoded(rng.choice(("wav", "aiff", "ogg", "flac")))
    return content[: int(len(content) * rng.uniform(0.2, 0.9))], -1.0


KINDS = {
    "MP3 without Xing header": (without_xing, "mp3"),
    "chained Ogg": (chained, "ogg"),
    "FLAC of unknown length": (of_unknown_length, "flac"),
    "WAV of size zero": (switched_off, "wav"),
    "absurd header": (absurd, "wav"),
    "cut file": (cut, "wav"),
}


def test_damaged_containers(tmp_path):
    """Each file is in the store with its true length, or listed with its reason."""
    root, seconds = tmp_path / "corpus", {}
    root.mkdir()
    for kind, (make, suffix) in KINDS.items():
        rng = random.Random(kind)
        for i in range(CONTAINERS):
            path = root / f"{kind} {i:02d}.{suffix}"
            content, seconds[path.name] = make(rng)
            path.write_bytes(content)
    done = run_command("prepare", root, "--out", tmp_path / "s", "--jobs", 2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    built = store.MelStore(tmp_path / "s")
    listed = dict(zip(built.quarantine["path"], built.quarantine["reason"]))
    lengths = {path: built.mel.seconds(len(built.frames(i))) for i, path in enumerate(built.clips["path"])}
    finite = {path for i, path in enumerate(lengths) if np.isfinite(built.frames(i)).all()}
    counts, faults = {kind: Counter() for kind in KINDS}, []
    for path, true in seconds.items():
        if path in listed:
            right = bool(listed[path]) and "\n" not in listed[path] and (true is None or true < 0)
        else:
            right = path in finite and (true is None or abs(lengths[path] - true) < 0.3)
        kind = path.rsplit(" ", 1)[0]
        if right:
            counts[kind]["listed" if path in listed else "in the store"] += 1
        else:
            faults.append(f"{path}: {true} s: {lengths.get(path, listed.get(path))}")
            counts[kind]["mishandled"] += 1
    report(counts, faults)


def report(counts: dict[str, Counter], faults: list[str]) -> None:
    """Print how each kind came out; none may be mishandled."""
    for kind, count in counts.items():
        count["mishandled"] += 0
        print(f"{kind}: {count.total()}: " + ", ".join(f"{n} {outcome}" for outcome, n in count.items()))
    assert faults == []


# -------------------------------------------------------------------------------------- run folders


def odd_value(content: bytes, rng: random.Random) -> bytes:
    """Return JSON with one value, at any depth, that is of another kind."""
    whole = json.loads(content)
    part = whole
    while True:
        name = rng.choice(sorted(part) if isinstance(part, dict) else range(len(part)))
        if not isinstance(part[name], dict | list) or not part[name] or rng.random() < 0.3:
            break
        part = part[name]
    values = (None, -1, 0, 1e999, 10**12, "text", [], {}, [[1]], True, "\0", 0.5)
    part[name] = rng.choice(values)
    if isinstance(part, dict) and rng.random() < 0.2:
        del part[name]
    return json.dumps(whole).encode()


def outcome(capsys, faults: list[str], *words) -> str:
    """Return how a command came out; add a line to `faults` if it is neither success nor one line."""
    try:
        code, _, error = call(capsys, *words)
    except Exception as error:
        faults.append(f"{words}: {type(error).__name__} {str(error)[:200]}")
        return "mishandled"
    if code == 0:
        return "still usable"
    if code == 2 and len(messages(error)) == 1 and "Traceback" not in error:
        return "refused"
    faults.append(f"{words}: {code} {error[-500:]}")
    return "mishandled"


FILES_OF_RUNS = {  # file → the runs that have it, and the commands that read it
    "config.json": ("pretrained", "embed"),
    "encoder.safetensors": ("pretrained", "embed"),
    "clips.txt": ("pretrained", "embed"),
    "last.ckpt": ("pretrained", "resume"),
    "metrics.csv": ("pretrained", "resume"),
    "best.ckpt": ("finetuned", "evaluate"),
    "predictions.csv": ("finetuned", "finetune"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES_OF_RUNS)
def test_damaged_run_folders(mel_store, folder, tmp_path, capsys, request, name):
    """A command on a run with a damaged file works, or ends in one line."""
    whole, command = FILES_OF_RUNS[name]
    whole, rng, count = request.getfixturevalue(whole), random.Random(name), Counter()
    faults: list[str] = []
    sound = folder / "low" / "0-0.flac"
    for i in range(RUNS):
        run = tmp_path / f"run{i}"
        shutil.copytree(whole, run)
        content = (run / name).read_bytes()
        json_values = name == "config.json" and rng.random() < 0.7
        (run / name).write_bytes(odd_value(content, rng) if json_values else malformed(content, rng))
        if command == "resume":  # as if it had not finished
            (run / "encoder.safetensors").unlink()
        words = {
            "embed": ["embed", sound, "--encoder", run, "--out", tmp_path / f"{i}.npz"],
            "resume": ["pretrain", mel_store.path, "--out", run, "--resume"],
            "evaluate": ["evaluate", mel_store.path, run],
            "finetune": ["finetune", mel_store.path, "--scratch", "--out", run, "--resume"],
        }
        if command == "finetune":
            words["finetune"][2:3] = ["--encoder", request.getfixturevalue("pretrained")]
        count[outcome(capsys, faults, *words[command])] += 1
        shutil.rmtree(run)
    report({f"damaged {name}": count}, faults)


# -------------------------------------------------------------------------------- choices and lists


def test_damaged_choices(tmp_path, monkeypatch):
    """Whatever choices.json holds, widgets open with it and can keep a choice."""
    monkeypatch.setenv("COLA_RUNS", str(tmp_path))
    monkeypatch.delenv("COLA_PROFILE", raising=False)
    rng, count, faults = random.Random(0), Counter(), []
    measured = [Constants("b0", "cpu", pairs_per_s=20, weights_mb=60, segment_mb=20, prepare_s=0.01)]
    good = {"calculator": {"devices": 8, "arch": "b0"}, "encoder": "runs/a", "quiz": {"you": [1, 2]}}
    good = json.dumps(good).encode()
    for _ in range(CHOICES):
        bad = odd_value(good, rng) if rng.random() < 0.5 else malformed(good, rng)
        choices.choices_file().write_bytes(bad)
        try:
            entries = len(choices.read_choices())
            choices.chosen_encoder()
            widgets.calculator(measured).sliders["devices"].value = 4
            kept = choices.read_settings("calculator").get("devices") == 4
            assert kept
            count["entries taken" if entries else "passed over"] += 1
        except Exception as error:
            faults.append(f"{bad[:200]}: {type(error).__name__} {error}")
            count["mishandled"] += 1
    report({"damaged choices.json": count}, faults)


def write_lists(root) -> dict[str, str]:
    """Write small lists of the public corpora; return corpus → the list to damage."""
    folds = [f"{fold}-{k}.wav,{fold},0,dog,True,{fold}{k},A" for fold in range(1, 6) for k in range(4)]
    files = {
        "esc50/meta/esc50.csv": "\n".join(["filename,fold,target,category,esc10,src_file,take", *folds]),
        "speech_commands/testing_list.txt": "yes/0_nohash_0.wav\n",
        "speech_commands/validation_list.txt": "yes/1_nohash_0.wav\n",
        **{f"speech_commands/yes/{i}_nohash_0.wav": "" for i in range(9)},
    }
    for part in ("valid", "test"):
        note = {
            "instrument_family_str": "bass",
            "instrument_source_str": "acoustic",
            "pitch": 30,
            "velocity": 1,
        }
        notes = {f"{part}{i}": note | {"instrument_str": f"bass_{part}{i}"} for i in range(9)}
        files[f"nsynth/{part}/examples.json"] = json.dumps(notes)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return {
        "esc50": "esc50/meta/esc50.csv",
        "speech_commands": "speech_commands/testing_list.txt",
        "nsynth": "nsynth/test/examples.json",
        "fma_small": "fma_metadata/tracks.csv",
    }


def test_damaged_lists_of_public_corpora(fma):
    counts, faults = {}, []
    for corpus, name in write_lists(fma).items():
        assert len(corpora.load(corpus, data=fma).clips) >= 3
        good, rng = (fma / name).read_bytes(), random.Random(corpus)
        counts[f"list of {corpus}"] = count = Counter()
        for _ in range(LISTS):
            odd = name.endswith(".json") and rng.random() < 0.5
            (fma / name).write_bytes(odd_value(good, rng) if odd else malformed(good, rng))
            try:
                corpora.load(corpus, data=fma)
                count["still usable"] += 1
            except UserError as error:
                count["refused"] += 1
                if "\n" in str(error):
                    faults.append(f"{corpus}: {error}")
            except Exception as error:
                faults.append(f"{corpus}: {type(error).__name__} {str(error)[:300]}")
                count["mishandled"] += 1
        (fma / name).write_bytes(good)
    report(counts, faults)
