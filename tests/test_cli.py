"""The command line from end to end, and how it answers mistakes."""

import dataclasses
import json

import pytest

from colalib.cli import build_parser, main
from colalib.settings import ARCHITECTURES, FinetuneConfig, PretrainConfig
from colalib.training.finetuning import OPTIMISERS


def call(capsys, *words) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_from_folder_to_results(folder, tmp_path, capsys):
    store, run, tuned, out = (tmp_path / name for name in ("store", "run", "tuned", "results.json"))
    code, text, _ = call(capsys, "prepare", folder, "--out", store, "--jobs", 1)
    assert code == 0 and "96 clips" in text
    code, text, _ = call(capsys, "pretrain", store, "--out", run, "--steps", 2, "--batch-size", 8)
    assert code == 0 and str(run) in text
    code, text, _ = call(
        capsys, "finetune", store, "--encoder", run, "--out", tuned, "--steps", 2, "--batch-size", 8
    )
    assert code == 0 and "chance" in text and (tuned / "results.json").exists()
    code, text, _ = call(capsys, "evaluate", store, tuned, "--out", out)
    assert code == 0 and json.loads(out.read_text())["model_name"] == ["tuned"]
    code, text, _ = call(
        capsys, "probe", store, "--encoder", "mel-stats", "--label", "parity", "--folds", 3, "--out", out
    )
    assert code == 0 and json.loads(out.read_text())["task"].endswith("/parity")
    code, text, _ = call(capsys, "compare", store, "--encoder", run, "--frozen", "--seeds", 1, "--out", out)
    assert code == 0 and json.loads(out.read_text())["model_name"] == ["mel-stats", "random", "probe", "kNN"]
    assert "reading" in text and out.with_suffix(".png").stat().st_size > 5000
    code, text, _ = call(capsys, "embed", store, "--encoder", run, "--out", tmp_path / "e.npz")
    assert code == 0 and "96 embeddings of 3328" in text
    code, text, _ = call(capsys, "pretrain", store, "--out", run, "--resume")
    assert code == 0
    code, _, text = call(capsys, "pretrain", store, "--out", run, "--resume", "--lr", "0.3")
    assert code == 2 and "was made with lr 0.002, not 0.3" in text


def test_some_bad_clips_are_counted(tmp_path, capsys, folder):
    import shutil

    (tmp_path / "c").mkdir()
    shutil.copy(folder / "low" / "0-0.flac", tmp_path / "c" / "good.flac")
    (tmp_path / "c" / "bad.mp3").write_text("no music")
    code, text, _ = call(capsys, "prepare", tmp_path / "c", "--out", tmp_path / "s", "--jobs", 1)
    assert code == 0 and "1 clips left out" in text and "bad.mp3: unreadable" in text


@pytest.mark.parametrize(
    "words,message",
    [
        (["prepare", "nowhere", "--out", "s"], "no corpus and no folder named nowhere"),
        (["prepare", "fma_small", "--out", "s", "--data", "."], "fma_small not found"),
        (["pretrain", "nowhere", "--out", "r"], "is not a store"),
        (["probe", "nowhere", "--encoder", "mel-stats"], "is not a store"),
        (["finetune", "nowhere", "--out", "r"], "give --encoder ENC or --scratch"),
        (["evaluate", "nowhere", "r"], "is not a store"),
        (["embed", "nowhere", "--encoder", "random", "--out", "e.npz"], "no corpus and no folder"),
        (["embed", "nowhere.wav", "--encoder", "default", "--out", "e.npz"], "nowhere.wav: file not found"),
        (["embed", ".", "--encoder", "nowhere", "--out", "e.npz"], "nowhere is not a run"),
        (["export", "--encoder", "random", "--out", "e.onnx"], "random is not a run"),
        (["course", "--only", "99"], "no such notebooks"),
    ],
)
def test_mistakes_get_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *words)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
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
        ["prepare"],
        ["sing"],
        [],
    ],
)
def test_wrong_words_get_a_usage(words, capsys):
    code, _, err = call(capsys, *words)
    assert code == 2 and "usage:" in err and "Traceback" not in err


def test_help_names_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    commands = "course corpora prepare pretrain finetune evaluate probe compare ablate embed bench".split()
    assert code == 0 and all(name in out for name in commands)


def test_corpora_lists_what_is_on_disk(tmp_path, capsys):
    (tmp_path / "fma_small").mkdir()
    _, out, _ = call(capsys, "corpora", "--data", tmp_path)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["fma_small"].endswith("[on disk]") and lines["fma_large"].endswith("[to be fetched]")


@pytest.mark.parametrize("command, kind", [("pretrain", PretrainConfig), ("finetune", FinetuneConfig)])
def test_every_setting_is_an_option(command, kind):
    (commands,) = [a for a in build_parser()._actions if isinstance(a.choices, dict)]
    options = {a.dest: a for a in commands.choices[command]._actions}
    for field in dataclasses.fields(kind):
        assert options[field.name].default is None  # so that a resumed run keeps its own
        assert options[field.name].help


def test_choices_are_what_there_is():
    fields = [f for kind in (PretrainConfig, FinetuneConfig) for f in dataclasses.fields(kind)]
    choices = {f.name: f.metadata.get("choices") for f in fields}
    assert set(choices["objective"]) == {"bilinear", "cosine", "triplet"}
    assert set(choices["optimiser"]) == set(OPTIMISERS)
    assert set(choices["arch"]) == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "options, text",
    [
        (["--dropout", "2"], "dropout must be from 0 to 0.9, not 2"),
        (["--batch-size", "1"], "batch size must be at least 2, not 1"),
        (["--mask-bands", "-3"], "mask bands must be from 0 to 64, not -3"),
        (["--lr", "nan"], "lr must be a number, not nan"),
        (["--warmup", "inf"], "warmup must be a number, not inf"),
    ],
)
def test_a_setting_out_of_its_limits_is_refused(mel_store, tmp_path, capsys, options, text):
    code, _, error = call(capsys, "pretrain", mel_store.path, "--out", tmp_path / "run", *options)
    assert code == 2 and error.strip() == f"colalib: {text}"
    assert not (tmp_path / "run").exists()
