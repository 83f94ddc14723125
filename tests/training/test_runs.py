"""Run folders: what opens, also from former versions, and what is refused."""

import dataclasses
import json
import math
import shutil

import pandas as pd
import pytest
from helpers import call

from colalib import training
from colalib.data import audio
from colalib.errors import UserError
from colalib.settings import PretrainConfig
from colalib.training import runs
from colalib.training.runs import Run, open_run, read_predictions

PRETRAIN = PretrainConfig(steps=60, batch_size=24)  # of the run `pretrained`


def test_a_finished_run_is_returned_as_it_is(pretrained, mel_store):
    before = (pretrained / "encoder.safetensors").stat().st_mtime_ns
    training.pretrain([mel_store], pretrained, PRETRAIN, resume=True, progress=False)
    assert (pretrained / "encoder.safetensors").stat().st_mtime_ns == before


def test_a_run_is_not_overwritten(pretrained, mel_store, tmp_path):
    with pytest.raises(UserError, match="holds a run already"):
        training.pretrain([mel_store], pretrained, PRETRAIN, progress=False)
    (tmp_path / "thesis.txt").write_text("not a run")
    with pytest.raises(UserError, match="is not a run and not empty"):
        training.pretrain([mel_store], tmp_path, PRETRAIN, progress=False)


@pytest.mark.parametrize("change", [{"lr": 0.1}, {"arch": "b0"}, {"objective": "cosine"}])
def test_resuming_with_other_settings_is_refused(pretrained, mel_store, change):
    config = dataclasses.replace(PRETRAIN, **change)
    with pytest.raises(UserError, match=f"was made with {next(iter(change))}"):
        training.pretrain([mel_store], pretrained, config, resume=True)


@pytest.mark.parametrize("name", ["encoder.safetensors", "best.ckpt"])
def test_damaged_files_are_refused(finetuned, tmp_path, name):
    shutil.copytree(finetuned, tmp_path / "run")
    whole = (tmp_path / "run" / name).read_bytes()
    (tmp_path / "run" / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        training.load_classifier(tmp_path / "run")  # reads both


def test_a_run_has_a_name_from_within(pretrained, monkeypatch):
    monkeypatch.chdir(pretrained)
    assert open_run(".").name == pretrained.name


def test_unfinished_runs_and_other_folders_are_refused(finetuned, tmp_path):
    shutil.copytree(finetuned, tmp_path / "run")
    (tmp_path / "run" / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match="not finished"):
        open_run(tmp_path / "run")
    with pytest.raises(UserError, match="not finished"):
        Run(tmp_path / "run").load_encoder()
    with pytest.raises(UserError, match="is not a run"):
        open_run(tmp_path)


def test_progress_is_the_share_that_is_done(pretrained, tmp_path):
    share, seconds = Run(pretrained).progress()
    assert share == 1
    assert seconds == pytest.approx(0, abs=0.1)
    shutil.copytree(pretrained, tmp_path / "run")
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    rows[rows["step"] <= 15].to_csv(tmp_path / "run" / "metrics.csv", index=False)
    share, seconds = Run(tmp_path / "run").progress()
    assert 0 < share <= 15 / 60
    assert seconds > 0
    (tmp_path / "run" / "metrics.csv").unlink()
    share, seconds = Run(tmp_path / "run").progress()
    assert share == 0
    assert math.isnan(seconds)


# ----------------------------------------------------------------------------------- former versions


def test_predictions_in_the_former_form_are_read(finetuned, tmp_path):
    """They had the label budget in the model's name, and no column for it."""
    table = pd.read_csv(finetuned / "predictions.csv", dtype=str, keep_default_na=False)
    former = table.drop(columns="labels_per_class")
    parts = [former.assign(model=model) for model in ("probe (10 a class)", "probe", "kNN (b)")]
    pd.concat(parts).to_csv(tmp_path / "predictions.csv", index=False)
    predictions = read_predictions(tmp_path / "predictions.csv")
    assert list(predictions.columns) == list(table.columns)
    assert predictions["seed"].dtype == int
    budgets = predictions[["model", "labels_per_class"]].drop_duplicates().values.tolist()
    assert budgets == [["probe", "10"], ["probe", ""], ["kNN (b)", ""]]


@pytest.mark.parametrize("config", [None, [1], {"lr": "x"}])
def test_a_damaged_run_is_not_resumed(pretrained, mel_store, tmp_path, capsys, config):
    out = shutil.copytree(pretrained, tmp_path / "run")
    description = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(description | {"config": config}))
    code, _, error = call(capsys, "pretrain", mel_store.path, "--out", out, "--resume")
    assert (code, error.count("\n")) == (2, 1), error
    assert "config.json" in error


def test_a_run_from_before_a_setting_resumes(pretrained, mel_store, tmp_path):
    """A setting that config.json does not name has its default."""
    out = tmp_path / "run"
    shutil.copytree(pretrained, out)
    description = json.loads((out / "config.json").read_text())
    assert "cpu_recipe" in description
    for newer in ("chunk", "mask_bands"):
        del description["config"][newer]
    (out / "config.json").write_text(json.dumps(description))
    (out / "encoder.safetensors").unlink()  # not finished: its last checkpoint is at the end
    training.pretrain([mel_store], out, PRETRAIN, resume=True, progress=False)
    assert open_run(out).weights_hash == open_run(pretrained).weights_hash
    with pytest.raises(UserError, match="was made with mask_bands 24, not 8"):
        changed = dataclasses.replace(PRETRAIN, mask_bands=8)
        training.pretrain([mel_store], out, changed, resume=True, progress=False)


def test_the_default_encoder_is_what_its_card_says():
    """Trained with the default settings on `scores` and recordings; small enough to ship."""
    run = open_run("default")
    assert run.kind == "pretrain"
    data, config = run.description["data"], run.description["config"]
    assert data["corpora"] == ["pool", "scores"]
    length = {"steps": config["steps"], "minutes": config["minutes"]}
    usual = dataclasses.asdict(PretrainConfig(**length))
    assert usual | config == usual  # (a setting may be newer)
    assert run.mel == audio.MelConfig()
    assert sum(file.stat().st_size for file in runs.DEFAULT.iterdir()) < 4e6
    assert run.name == "default"
    assert len(run.seen_clip_ids) == data["n_clips"]
    card = (runs.DEFAULT / "README.md").read_text()
    for fact in (f"--steps {length['steps']}", f"{data['n_clips']:,} clips", run.weights_hash):
        assert fact in card


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("mel", "hop", -1),
        ("mel", "hop", 0),
        ("mel", "n_mels", 10**9),
        ("mel", "n_mels", "64"),
        ("mel", "sample_rate", None),
        ("mel", "fmin", float("nan")),
        ("mel", "window", 2048),
        ("mel", "fmax", 9000.0),
        ("mel", "colour", 1),
        ("config", "lr", "high"),
        ("config", "seed", 0.5),
        ("config", "symmetric", 1),
        ("config", "invented", 1),
        (None, "arch", ["b0"]),
        (None, "arch", "b7"),
        (None, "kind", "dream"),
        (None, "mel", 5),
        (None, "config", None),
    ],
)
def test_a_damaged_config_is_refused_in_one_line(pretrained, tmp_path, part, name, value):
    description = json.loads((pretrained / "config.json").read_text())
    (description[part] if part else description)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(description))
    run = Run(tmp_path)
    with pytest.raises(UserError, match=r"config\.json: ") as error:
        _ = run.mel, run.config
    assert "\n" not in str(error.value)


def test_deep_nesting_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="damaged"):
        _ = Run(tmp_path).description
