"""`finetune`: a classifier on an encoder, trained from scratch or from a pre-trained one.

Segments come from `data.segments`; `trainer` runs the training and `runs` keeps the result.
Predictions on the test clips go to `evaluation`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from colalib.data.clips import Clips
from colalib.data.segments import ReiterableBatches, clip_batches, labelled_batch, segment_std
from colalib.data.splits import Split, evaluation_splits, subsample_labels
from colalib.data.store import MelStore, open_store
from colalib.encoder import Encoder, choose_device
from colalib.errors import UserError
from colalib.fast_cpu import encode_batches, in_batches, parallel_map
from colalib.files import atomic, fingerprint, locked
from colalib.settings import FinetuneConfig
from colalib.training.runs import (
    Run,
    enter_run,
    open_run,
    prediction_table,
    read_checkpoint,
    save_encoder,
    write_run_config,
)
from colalib.training.trainer import check_settings, fit, training_alone

OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class AudioClassifier(lightning.LightningModule):
    """Encoder → dropout → linear layer.

    Trains on segments [B, T, M] and classes [B]. Validates on whole clips: the logits of a clip are
    the mean over its non-overlapping segments (COLA, section 3.2).
    """

    monitor = ("valid/accuracy", "max")  # decides which weights are kept

    def __init__(self, config: FinetuneConfig, encoder: Encoder, classes: list[str]):
        super().__init__()
        self.config = config
        self.encoder = encoder.requires_grad_(config.encoder_lr_factor > 0)
        self.classes = classes
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(encoder.dim, len(classes))

    def forward(self, segments: Tensor) -> Tensor:
        return self.head(self.dropout(self.encoder(segments)))  # [B, classes]

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.encoder_lr_factor == 0:  # then BatchNorm keeps its statistics too
            self.encoder.eval()
        return self

    def training_step(self, batch, index):
        x, y = batch  # [B, T, M], [B]
        h = torch.cat(encode_batches(self.encoder, x.chunk(2)))  # [B, dim]
        logits = self.head(self.dropout(h))
        loss = F.cross_entropy(logits, y)
        accuracy = (logits.argmax(dim=1) == y).float().mean()
        self.log_dict({"train/loss": loss, "train/accuracy": accuracy}, batch_size=len(y))
        return loss

    def clip_logits(self, x: Tensor, clip_index: Tensor) -> Tensor:
        """Return the mean logits per clip [n, classes], of segments [S, T, M] and their clips [S]."""
        logits = in_batches(self, x).float()  # [S, classes]; in bfloat16 on a GPU
        n = int(clip_index.max()) + 1
        total = logits.new_zeros(n, logits.shape[1]).index_add_(0, clip_index, logits)
        return total / torch.bincount(clip_index, minlength=n)[:, None]

    def validation_step(self, batch, index):
        x, clip_index, y = batch
        logits = self.clip_logits(x, clip_index)
        accuracy = (logits.argmax(dim=1) == y).float().mean()
        self.log_dict(
            {"valid/loss": F.cross_entropy(logits, y), "valid/accuracy": accuracy}, batch_size=len(y)
        )

    def configure_optimizers(self):
        fused = self.device.type in ("cpu", "cuda")
        factor, parameters = self.config.encoder_lr_factor, self.parameters()
        if factor < 1:  # `Schedule` multiplies by it
            head, encoder = self.head.parameters(), self.encoder.parameters()
            parameters = [{"params": head}, {"params": encoder, "factor": factor}]
        return OPTIMISERS[self.config.optimiser](
            parameters, lr=self.config.lr, weight_decay=self.config.weight_decay, fused=fused
        )


def finetune(
    store,
    out: Path | str,
    config: FinetuneConfig,
    encoder: str | Path | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
) -> Path:
    """Train a classifier on a store's labels, from scratch or from run `encoder`; return the run folder.

    Keeps the weights that are best on the validation side. Looks at the test side once, and writes
    predictions.csv. With `resume` an interrupted run goes on, and a finished one is returned as it
    is. Raises `UserError` for settings that cannot be used.
    """
    out, store = Path(out), open_store(store)
    check_settings(config, accelerator)
    if encoder is None and config.encoder_lr_factor == 0:
        raise UserError("an untrained encoder cannot stay frozen: start from a pre-trained one")
    split = evaluation_splits(store.clips, config.label, config.fold)[0]
    labels = store.clips[config.label].to_numpy(dtype=object)
    classes = sorted(set(labels[labels != ""]))
    # [n], -1: no label
    targets = np.array([classes.index(value) if value else -1 for value in labels])
    clips = Clips.of_store(store)
    chosen = subsample_labels(labels, split.train, config.labels_per_class, config.seed)
    train = clips.take(chosen)
    pretrained = None
    if encoder is None:
        torch.manual_seed(config.seed)
        network = Encoder(config.arch, segment_std(train, config.seed))
    else:
        pretrained = open_run(encoder)
        pretrained.check_mel(store)
        network = pretrained.load_encoder()
        config = dataclasses.replace(config, arch=network.arch)
    data = {
        "corpora": [store.name],
        "clips": fingerprint(clips.ids),
        "classes": classes,
        "labels": fingerprint([*labels, *store.clips["group"], *store.clips["split"]]),
        "encoder": pretrained.name if pretrained else "scratch",
        "weights": pretrained.weights_hash if pretrained else "",
    }
    with training_alone(), locked(out):
        if enter_run(out, "finetune", config, data, resume):
            return out
        torch.manual_seed(config.seed)
        module = AudioClassifier(config, network, classes).train()
        heard = pretrained.seen_clip_ids if pretrained else []
        seen = sorted({*heard, *clips.ids[chosen], *clips.ids[split.valid]})
        write_run_config(out, "finetune", config, data, network, store.mel, seen)
        batch_size = min(config.batch_size, len(train))

        def make_batch(step: int):
            return labelled_batch(train, targets[chosen], step, batch_size, config.seed)

        valid = eval_loader(clips.take(split.valid), targets[split.valid])
        # of all labels, whatever the label budget: the same number of steps for each budget
        steps_per_epoch = len(split.train) // min(config.batch_size, len(split.train))
        fit(module, config, out, make_batch, valid, steps_per_epoch, {"accelerator": accelerator}, progress)
        module.load_state_dict(read_checkpoint(out / "best.ckpt")["state_dict"])
        module.to(choose_device(accelerator))  # from which Lightning takes it
        with atomic(out / "predictions.csv", "w") as file:
            predict(module, store, split, out.name).to_csv(file, index=False)
        save_encoder(module.encoder, out)
    return out


def eval_loader(clips: Clips, targets: np.ndarray) -> DataLoader:
    """Return whole clips in batches: (segments [S, T, M], the clip of each [S], classes [n])."""

    def batches():
        first = 0  # number of a batch' first clip
        for x, clip_index in clip_batches(clips, silence=clips.mel.silence):
            n = int(clip_index[-1]) + 1
            yield x, clip_index, torch.from_numpy(targets[first : first + n])
            first += n

    return DataLoader(ReiterableBatches(batches), batch_size=None)


def predict(module: AudioClassifier, store: MelStore, split: Split, name: str) -> pd.DataFrame:
    """Return a classifier's predictions on the test side, under the model's `name`."""
    module.eval()
    clips = Clips([store], [split.test])

    @torch.no_grad()
    def choose(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, clip_index = (part.to(module.device) for part in batch)
        return module.clip_logits(x, clip_index).argmax(dim=1).cpu()

    best = torch.cat([*parallel_map(choose, clip_batches(clips, silence=clips.mel.silence))]).numpy()  # [n]
    config = module.config
    predicted = np.array(module.classes)[best]
    return prediction_table(store, split, config.label, predicted, name, config.seed, config.labels_per_class)


def load_classifier(run: Path | str) -> tuple[AudioClassifier, Run]:
    """Return the fine-tuned classifier of a finished run folder, and the run. Raises `UserError`."""
    run = open_run(run)
    encoder = run.load_encoder()
    if run.kind != "finetune":
        raise UserError(f"{run.path} is no classifier but a {run.kind} run: fine-tune it first")
    module = AudioClassifier(run.config, encoder, run.description["data"]["classes"])
    try:
        module.load_state_dict(read_checkpoint(run.path / "best.ckpt")["state_dict"])
    except (KeyError, RuntimeError):
        raise UserError(
            f"{run.path / 'best.ckpt'}: damaged, or of another architecture: train it again"
        ) from None
    return module.eval(), run
