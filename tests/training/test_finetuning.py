"""Fine-tuning: what a classifier learns, on which clips it is judged, and what is refused."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import column, metrics

from colalib import training
from colalib.data import corpora, store
from colalib.data.audio import MelConfig
from colalib.data.splits import evaluation_splits
from colalib.errors import UserError
from colalib.settings import FinetuneConfig
from colalib.training.runs import open_run


def test_a_classifier_learns_and_is_judged_on_test_clips(finetuned, mel_store):
    predictions = pd.read_csv(finetuned / "predictions.csv", dtype=str)
    test_clips = mel_store.clips[mel_store.clips["split"] == "test"]
    assert sorted(predictions["clip_id"]) == sorted(test_clips["clip_id"])
    assert (
        predictions["label"] == predictions["predicted"]
    ).mean() > 0.6  # three octaves apart; chance is 0.33
    for name in ("train/accuracy", "valid/loss", "valid/accuracy"):
        assert column(finetuned, name), name


def test_clip_logits_average_the_segments(finetuned):
    module, _ = training.load_classifier(finetuned)
    x, clip_index = torch.randn(5, 98, 64), torch.tensor([0, 0, 1, 1, 1])
    with torch.no_grad():
        logits, of_clips = module(x), module.clip_logits(x, clip_index)
    expected = torch.stack([logits[:2].mean(0), logits[2:].mean(0)])
    assert torch.allclose(of_clips, expected, atol=1e-4)


def test_predictions_do_not_depend_on_how_clips_are_batched(finetuned, mel_store):
    """Saved predictions are those of the clips one by one."""
    module, run = training.load_classifier(finetuned)
    rows = np.flatnonzero(mel_store.clips["split"] == "test")
    for row, predicted in zip(rows, run.predictions()["predicted"]):
        frames = torch.from_numpy(mel_store.frames(row).astype(np.float32))
        with torch.no_grad():
            logits = module(torch.stack([frames[:98], frames[98:196]])).mean(dim=0)
        assert module.classes[int(logits.argmax())] == predicted


def test_a_classifier_says_which_labelled_clips_it_heard(finetuned, mel_store):
    run = open_run(finetuned)
    split = evaluation_splits(mel_store.clips)[0]
    assert run.seen_clip_ids >= {*mel_store.ids[split.train], *mel_store.ids[split.valid]}
    assert run.overlap(mel_store, [split]) == 0
    assert run.overlap(mel_store, [dataclasses.replace(split, test=split.train)]) == len(split.train)


def test_the_encoder_may_learn_more_slowly_or_stay_frozen(mel_store, pretrained, tmp_path):
    before = open_run(pretrained).load_encoder().state_dict()
    moved = {}
    for share in (1.0, 0.25, 0.0):
        config = FinetuneConfig(
            steps=1, batch_size=8, optimiser="sgd", lr=0.1, weight_decay=0, warmup=0, encoder_lr_factor=share
        )
        run = training.finetune(mel_store, tmp_path / str(share), config, pretrained, progress=False)
        module, _ = training.load_classifier(run)
        after = open_run(run).load_encoder().state_dict()
        moved[share] = {name: (after[name] - before[name]).float() for name in before}
        moved[share]["head"] = module.head.weight.detach()
    weight = next(name for name in before if name.endswith("weight"))
    assert moved[1.0][weight].abs().max() > 0
    assert torch.allclose(moved[0.25][weight], 0.25 * moved[1.0][weight], rtol=1e-3, atol=1e-6)
    assert torch.equal(moved[0.25]["head"], moved[1.0]["head"])
    assert all(not moved[0.0][name].any() for name in before)  # BatchNorm's statistics too
    with pytest.raises(UserError, match="an untrained encoder cannot stay frozen"):
        training.finetune(mel_store, tmp_path / "scratch", config)


@pytest.mark.slow
def test_early_stopping(mel_store, tmp_path):
    config = FinetuneConfig(steps=2000, batch_size=8, patience=1, lr=1e-9)  # nothing gets better
    run = training.finetune(mel_store, tmp_path / "run", config, progress=False)
    log = metrics(run)
    assert int(log[-1]["step"]) < 2000
    (run / "encoder.safetensors").unlink()  # as if it was killed while it predicted
    training.finetune(mel_store, run, config, resume=True, progress=False)
    again = metrics(run)  # the end is validated anew
    assert again[:-1] == log[:-1]
    assert again[-1] | {"seconds": ""} == log[-1] | {"seconds": ""}


def test_epochs_are_the_same_steps_whatever_the_number_of_labels(mel_store, tmp_path):
    ends = {}
    for k in (2, None):
        config = FinetuneConfig(labels_per_class=k, batch_size=16, epochs=1)  # more than 3 × 2 labelled clips
        run = training.finetune(mel_store, tmp_path / str(k), config, progress=False)
        ends[k] = max(column(run, "step"))
        split = evaluation_splits(mel_store.clips)[0]
        heard = len(split.train) if k is None else 3 * k
        assert len(open_run(run).seen_clip_ids) == heard + len(split.valid)
    assert ends[2] > 0
    assert ends[2] == ends[None]


@pytest.mark.parametrize("column", ["label", "group"])
def test_a_run_of_other_labels_is_not_taken_for_this_one(mel_store, finetuned, pretrained, tmp_path, column):
    shutil.copytree(mel_store.path, tmp_path / "tones")
    table = pd.read_csv(tmp_path / "tones" / "clips.csv", dtype=str)
    table.loc[[0, 40], column] = table.loc[[40, 0], column].values  # corrected since
    table.to_csv(tmp_path / "tones" / "clips.csv", index=False)
    config, corrected = open_run(finetuned).config, store.MelStore(tmp_path / "tones")
    with pytest.raises(UserError, match="was made with other labels"):
        training.finetune(corrected, finetuned, config, pretrained, resume=True, progress=False)


def test_an_encoder_needs_its_own_mel_settings(pretrained, folder, tmp_path):
    other = store.build(corpora.load(folder), tmp_path / "s", MelConfig(floor=1e-4), jobs=1, progress=False)
    with pytest.raises(UserError, match="other mel settings"):
        training.finetune(other, tmp_path / "run", FinetuneConfig(steps=2), pretrained, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_pretrained_run_is_no_classifier(pretrained):
    with pytest.raises(UserError, match="is no classifier but a pretrain run"):
        training.load_classifier(pretrained)
