"""The command line from end to end, and how it answers mistakes."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from helpers import call, command, messages, run_command, send_when

from colalib import evaluation, training
from colalib.cli import COMMANDS, build_parser, main
from colalib.cola import Cola
from colalib.data import audio, corpora, store
from colalib.evaluation import comparison
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training.runs import open_run


def test_from_folder_to_results(folder, tmp_path, capsys):
    store, run, tuned, out = (tmp_path / name for name in ("store", "run", "tuned", "results.json"))

    def succeed(*words) -> str:
        code, text, error = call(capsys, *words)
        assert code == 0, error
        return text

    assert "96 clips" in succeed("prepare", folder, "--out", store, "--jobs", 1)
    text = succeed("pretrain", store, "--out", run, "--steps", 2, "--batch-size", 8)
    assert re.search(r"\d\d of 96 clips are heard: test clips are left out", text)
    assert str(run) in text
    small = ["--steps", 2, "--batch-size", 8]
    assert "chance" in succeed("finetune", store, "--encoder", run, "--out", tuned, *small)
    assert (tuned / "results.json").exists()
    succeed("evaluate", store, tuned, "--out", out)
    assert json.loads(out.read_text())["model_name"] == ["tuned"]
    succeed("probe", store, "--encoder", "mel-stats", "--label", "parity", "--folds", 3, "--out", out)
    assert json.loads(out.read_text())["task"].endswith("/parity")
    text = succeed("compare", store, "--encoder", run, "--frozen", "--seeds", 1, "--out", out)
    assert json.loads(out.read_text())["model_name"] == ["mel-stats", "random", "probe", "kNN"]
    assert "reading" in text
    assert out.with_suffix(".png").stat().st_size > 5000
    assert "96 embeddings of 4032" in succeed("embed", store, "--encoder", run, "--out", tmp_path / "e.npz")
    succeed("pretrain", store, "--out", run, "--resume")
    code, _, error = call(capsys, "pretrain", store, "--out", run, "--resume", "--lr", "0.3")
    assert code == 2
    assert "was made with lr 0.002, not 0.3" in error


@pytest.mark.slow
def test_the_ablation_from_the_shell(mel_store, tmp_path, capsys):
    out = tmp_path / "ablation.json"
    code, text, error = call(
        capsys,
        "ablate",
        mel_store.path,
        "--epochs",
        "0.2",
        "--seeds",
        1,
        "--out",
        out,
        "--accelerator",
        "cpu",
    )
    assert code == 0, error
    names = ["mel-stats", "random", *comparison.ABLATION, "scratch", "fine-tuned"]
    assert json.loads(out.read_text())["model_name"] == names
    assert "reading" in text
    assert out.with_suffix(".png").exists()
    run = open_run(tmp_path / "ablation" / "bilinear-16-pairs-0")
    assert run.config.batch_size == 16
    assert run.config.epochs == 0.2


def test_some_bad_clips_are_counted(tmp_path, capsys, folder):
    (tmp_path / "c").mkdir()
    shutil.copy(folder / "low" / "0-0.flac", tmp_path / "c" / "good.flac")
    (tmp_path / "c" / "bad.mp3").write_text("no music")
    (tmp_path / "c" / "notes.txt").write_text("no audio")
    code, text, _ = call(capsys, "prepare", tmp_path / "c", "--out", tmp_path / "s", "--jobs", 1)
    assert code == 0
    assert "1 clips left out" in text
    assert "groups: 1, every clip its own" in text
    assert "bad.mp3: unreadable" in text
    assert "note: 1 other files were not looked at: .txt 1" in text


@pytest.mark.parametrize(
    "words,message",
    [
        (["prepare", "nowhere", "--out", "s"], "no corpus and no folder named nowhere"),
        (
            ["prepare", ".", "--out", "s", "--clips-per-class", "5"],
            "--clips-per-class is the size of `scores`",
        ),
        (["prepare", "fma_small", "--out", "s", "--labels", "none"], "--labels is for a folder of your own"),
        (["prepare", "fma_small", "--out", "s", "--data", "."], "fma_small not found"),
        (["prepare", "scores", "--out", "s", "--data", "d", "--jobs", "0"], "0 processes cannot do anything"),
        (["pretrain", "nowhere", "--out", "r"], "is not a store"),
        (["probe", "nowhere", "--encoder", "mel-stats"], "is not a store"),
        (["finetune", "nowhere", "--out", "r"], "give --encoder ENC or --scratch"),
        (["evaluate", "nowhere", "r"], "is not a store"),
        (["embed", "nowhere", "--encoder", "random", "--out", "e.npz"], "no corpus and no folder"),
        (["embed", "nowhere.wav", "--encoder", "default", "--out", "e.npz"], "nowhere.wav: file not found"),
        (["embed", ".", "--encoder", "nowhere", "--out", "e.npz"], "nowhere is not a run"),
        (["export", "--encoder", "random", "--out", "e.onnx"], "random is not a run"),
        (["course", "--only", "99"], "no notebook begins with 99: there are 01_sound_to_mel, 02"),
    ],
)
def test_mistakes_get_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = call(capsys, *words)
    assert code == 2
    assert message in error
    assert messages(error) == error.strip().splitlines()
    assert len(messages(error)) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "s", "--out", "r", "--minutes", "-1"],
        ["pretrain", "s", "--out", "r", "--epochs", "inf"],
        ["pretrain", "s", "--out", "r", "--precision", "nonsense"],
        ["probe", "s", "--encoder", "random", "--seed", "-1"],
        ["compare", "s", "--encoder", "r", "--out", "results.png"],
        ["embed", "s", "--encoder", "r", "--out", "."],
        ["embed", "s", "--encoder", "r", "--out", "e.csv"],
        ["embed", "s", "--encoder", "r", "--out", "e.npz", "--every", "0"],
        ["search", "s", "c.wav", "-k", "0"],
        ["prepare"],
        ["sing"],
        [],
    ],
)
def test_wrong_words_get_a_usage(words, capsys):
    code, _, error = call(capsys, *words)
    assert code == 2
    assert "usage:" in error
    assert "Traceback" not in error


def test_help_names_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in COMMANDS:
        assert f"    {name} " in out


def test_corpora_lists_what_is_on_disk(tmp_path, capsys):
    (tmp_path / "fma_small").mkdir()
    _, out, _ = call(capsys, "corpora", "--data", tmp_path)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["fma_small"].endswith("[on disk]")
    assert lines["fma_large"].endswith("[to be fetched]")


@pytest.mark.parametrize("command, kind", [("pretrain", PretrainConfig), ("finetune", FinetuneConfig)])
def test_every_setting_is_an_option(command, kind):
    (commands,) = [a for a in build_parser()._actions if isinstance(a.choices, dict)]
    options = {a.dest: a for a in commands.choices[command]._actions}
    for field in dataclasses.fields(kind):
        assert options[field.name].default is None  # so that a resumed run keeps its own
        assert options[field.name].help


@pytest.mark.parametrize(
    "options, text",
    [
        (["--mask-bands", "-3"], "mask bands must be from 0 to 64, not -3"),
        (["--lr", "nan"], "lr must be a number, not nan"),
    ],
)
def test_a_setting_out_of_its_limits_is_refused(mel_store, tmp_path, capsys, options, text):
    code, _, error = call(capsys, "pretrain", mel_store.path, "--out", tmp_path / "run", *options)
    assert code == 2
    assert error.strip() == f"colalib: {text}"
    assert not (tmp_path / "run").exists()


class Called(Exception):
    """Holds what a function was called with."""


@pytest.mark.parametrize(
    ("module", "name", "words", "wanted"),
    [
        (training, "pretrain", "s --out r --leave-out f1 --devices 2 --nodes 3 --precision 16-mixed --seed 4",
         {"leave_out": "f1", "seed": 4, "minutes": 10.0, "resume": False,
          "trainer_kwargs": {"devices": 2, "num_nodes": 3, "strategy": "auto", "precision": "16-mixed"}}),
        (evaluation, "compare", "s --encoder a b --out o/r.json --steps 7 --labels-per-class 5 all --seeds 2",
         {"encoder": ["a", "b"], "out": Path("o/r"), "steps": 7, "epochs": None, "seeds": 2,
          "labels_per_class": (5, None), "label": "label", "fold": None, "folds": None}),
        (evaluation, "compare", "s --encoder a --frozen --fold f --folds 4 --label parity --accelerator cpu",
         {"finetune": None, "fold": "f", "folds": 4, "label": "parity", "accelerator": "cpu"}),
        (evaluation, "probe", "s --encoder random --arch b0 --seed 3 --fold f --folds 4 --label parity",
         {"encoder": "random", "arch": "b0", "seed": 3, "fold": "f", "folds": 4, "label": "parity"}),
        (evaluation, "embed_to_file", "x --encoder random --arch b0 --seed 3 --every 0.5 --out e.npz",
         {"encoder": "random", "arch": "b0", "seed": 3, "every": 0.5, "out": "e.npz"}),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_passed_on(tmp_path, monkeypatch, module, name, words, wanted):
    monkeypatch.chdir(tmp_path)
    function = getattr(module, name)

    def called(*args, **kwargs):
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        config = given.get("config") or given.get("finetune")
        settings = dataclasses.asdict(config) if config else {}
        raise Called(settings | given | given.get("options", {}))

    monkeypatch.setattr(module, name, called)
    command = {"embed_to_file": "embed"}.get(name, name)
    with pytest.raises(Called) as caught:
        main([command, *words.split()])
    (given,) = caught.value.args
    assert {key: given[key] for key in wanted} == wanted


def test_leaks_and_overlaps_are_told(folder, pretrained, tmp_path, capsys):
    corpus = shutil.copytree(folder, tmp_path / folder.name)  # the name is a part of a clip's
    table = pd.read_csv(folder / "index.csv")
    table["split"] = table["group"].str[-1].map(lambda n: {"0": "test", "1": "valid"}.get(n, "train"))
    table.to_csv(corpus / "index.csv", index=False)
    twice, of = (table["path"][table["split"] == side].iloc[0] for side in ("train", "test"))
    shutil.copy(folder / of, corpus / twice)
    code, out, error = call(capsys, "prepare", corpus, "--out", tmp_path / "s", "--jobs", 1)
    assert code == 0, error
    assert "note: 2 clips sound exactly like clips of another split" in out
    _, out, _ = call(capsys, "probe", tmp_path / "s", "--encoder", pretrained, "--folds", 3)
    assert re.search(r"note: \S+: \d+ of its test clips were in the encoder's training", out)


def test_fetching_without_a_licence_says_which_it_is_and_fetches_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(corpora, "fetch", None)
    code, out, error = call(capsys, "fetch", "esc10", "--data", tmp_path)
    assert code == 2
    assert "GB, unpacked up to" in out
    assert "nothing fetched yet: if you accept the licence, add --licence 'CC BY" in error
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(corpora, "fetch", lambda name, licence, data: [Path(data) / name])
    code, out, _ = call(capsys, "fetch", "esc10", "--data", tmp_path, "--licence", "any")
    assert code == 0
    assert f"next: python -m colalib prepare esc10 --out stores/esc10 --data {tmp_path}" in out


def test_a_closed_standard_output_and_letters_that_it_cannot_show(folder, tmp_path):
    shell = " ".join(command("corpora", "--data", tmp_path)) + " >&-"
    done = subprocess.run(shell, shell=True, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    shutil.copytree(folder / "low", tmp_path / "c")
    (tmp_path / "c" / "Fuß.wav").write_bytes(b"")
    done = run_command("prepare", tmp_path / "c", "--out", tmp_path / "s", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "the first: Fu?.wav: empty file" in done.stdout


def test_label_budgets_are_numbers_or_all(capsys):
    command = ["compare", "s.store", "--encoder", "default", "--labels-per-class"]
    assert build_parser().parse_args([*command, "5", "all"]).labels_per_class == [5, None]
    with pytest.raises(SystemExit):
        build_parser().parse_args([*command, "0"])
    assert "must be a whole number above 0" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_error():
    """As in `… | head -1`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command("corpora"), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""


def test_a_store_is_not_taken_for_a_run(capsys, mel_store):
    code, _, error = call(capsys, "pretrain", mel_store.path, "--out", mel_store.path, "--steps", 2)
    assert code == 2
    assert "is not a run" in error
    assert "delete" not in error


@pytest.mark.parametrize(("command", "name"), [("embed", "mine.npz"), ("search", "index.csv")])
def test_a_file_of_another_program_stays(capsys, mel_store, tmp_path, command, name):
    (tmp_path / name).write_text("path,label\na.wav,b\n")
    words = [mel_store.path] if command == "embed" else [mel_store.path, mel_store.clips["clip_id"][0]]
    code, _, error = call(capsys, command, *words, "--encoder", "mel-stats", "--out", tmp_path / name)
    assert code == 2
    assert "not written by colalib" in error
    assert (tmp_path / name).read_text() == "path,label\na.wav,b\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "", "--out", "s"], "corpus is empty"),
        (["prepare", "x", "--out", ""], "out is empty"),
        (["embed", "x", "--out", f"{'x' * 250}.npz"], "at most 200 bytes"),
        (["embed", "{folder}", "--out", "{file}/x.npz"], "fix this and run"),
        (["search", "{folder}", "a", "--out", "{file}/x.csv"], "fix this and run"),
        (["audit", "{folder}", "--out", "{file}/x"], "cannot be written"),
        (["map", "{folder}", "--out", "{file}/x.html"], "cannot be written"),
        (["probe", "{folder}", "--encoder", "default", "--out", "{file}/x.json"], "fix this and run"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_read(folder, capsys, monkeypatch, words, message):
    monkeypatch.setattr(corpora, "load", None)
    file = folder / "low" / "0-0.flac"
    code, _, error = call(capsys, *(word.format(folder=folder, file=file) for word in words))
    assert code == (1 if message == "fix this and run" else 2)  # the machine's fault, or the user's
    assert message in error


def test_a_machine_without_memory_is_told(folder, tmp_path, capsys, monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(audio, "decode", exhausted)
    code, _, error = call(capsys, "prepare", folder, "--out", tmp_path / "s", "--jobs", 1)
    assert code == 1
    assert "out of memory" in error


def test_torch_without_memory_is_told(mel_store, tmp_path, capsys, monkeypatch):
    def exhausted(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore")

    monkeypatch.setattr(Cola, "training_step", exhausted)
    words = ["pretrain", mel_store.path, "--out", tmp_path / "run", "--steps", 5]
    code, _, error = call(capsys, *words)
    assert code == 1
    (line,) = messages(error)
    assert "out of memory" in line and "a smaller --batch-size" in line


def test_classes_that_a_classifier_does_not_know_are_told(mel_store, finetuned, folder, tmp_path, capsys):
    table = mel_store.clips[["path", "group", "split"]].assign(label="kazoo")
    table.loc[::2, "label"] = "oboe"
    root = tmp_path / "other"
    shutil.copytree(folder, root)
    table.to_csv(root / "index.csv", index=False)
    built = store.build(corpora.load(root), tmp_path / "s", jobs=1, progress=False)
    code, _, error = call(capsys, "evaluate", built.path, finetuned)
    assert code == 2
    assert "was not trained on class 'kazoo'" in error


def test_an_end_from_outside_leaves_no_temporary_store(folder, tmp_path):
    words = command("search", folder, "low/0-0.flac", "--encoder", "default")
    process = subprocess.Popen(words, env=os.environ | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE)
    send_when(process, lambda: list(tmp_path.glob("*/store")), signal.SIGTERM)
    error = process.communicate(timeout=240)[1].decode()
    assert process.returncode == 130
    assert "interrupted" in error
    assert list(tmp_path.iterdir()) == []
