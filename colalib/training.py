"""Training: the two LightningModules and their settings, `pretrain` and `finetune`.

Takes batches from `segments`, encoders from `models`, losses from `objectives`; `loop` trains them, and what is left on
disk is a run folder (`runs`), which `evaluation` reads.
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import nullcontext
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from colalib import segments
from colalib.corpora.table import Split, splits
from colalib.errors import UserError
from colalib.files import atomic, fingerprint, leads, locked, read_json
from colalib.loop import check_settings, fit
from colalib.models import Encoder, in_parts
from colalib.objectives import OBJECTIVES, gathered, ranks
from colalib.runs import Pretrained, describe_run, load_trained, open_run, read_checkpoint, save_encoder
from colalib.segments import Clips
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.store import MelStore

OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class Cola(lightning.LightningModule):
    """Contrastive pre-training. A batch is (anchors, positives), each [B, T, M]; logs loss, in-batch accuracy and mean
    rank of the positive."""

    def __init__(self, config: PretrainConfig, std: float):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.arch, std)
        extra = {"cosine": {"temperature": config.temperature}, "triplet": {"margin": config.margin}}.get(
            config.objective, {}
        )
        if config.objective != "triplet":
            extra["symmetric"] = config.symmetric
        self.objective = OBJECTIVES[config.objective](self.encoder.dim, dropout=config.dropout, **extra)

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        anchors, positives = batch
        h = self.encoder.branches(anchors, positives, chunk=self.config.chunk)
        if stage == "train":
            h = [gathered(x) for x in h]
        loss, similarity = self.objective(*h)
        rank = ranks(similarity.detach()).float()
        values = {"loss": loss, "accuracy": (rank == 1).float().mean(), "rank": rank.mean()}
        values = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict(values, batch_size=len(anchors), sync_dist=stage != "train")
        return loss

    def training_step(self, batch, index):
        return self.step(batch, "train")

    def validation_step(self, batch, index):
        return self.step(batch, "valid")

    def test_step(self, batch, index):
        return self.step(batch, "test")

    def configure_optimizers(self):
        return optimiser(self, "adamw")


class AudioClassifier(lightning.LightningModule):
    """Encoder → dropout → linear layer. Trains on segments ([B, T, M], classes [B]); validates and tests on whole clips: a
    clip's logits are the mean over its non-overlapping segments (COLA, section 3.2)."""

    def __init__(self, config: FinetuneConfig, encoder: Encoder, classes: list[str]):
        super().__init__()
        self.config, self.encoder, self.classes = config, encoder, classes
        self.dropout, self.head = nn.Dropout(config.dropout), nn.Linear(encoder.dim, len(classes))

    def forward(self, segments: Tensor) -> Tensor:
        return self.head(self.dropout(self.encoder(segments)))  # [B, classes]

    def training_step(self, batch, index):
        x, y = batch
        h = torch.cat(self.encoder.branches(*x.chunk(2)))
        logits = self.head(self.dropout(h))
        loss = F.cross_entropy(logits, y)
        accuracy = (logits.argmax(dim=1) == y).float().mean()
        self.log_dict({"train/loss": loss, "train/accuracy": accuracy}, batch_size=len(y))
        return loss

    def clip_logits(self, x: Tensor, owner: Tensor) -> Tensor:
        """Segments [S, T, M] and the clip of each [S] → mean logits of each clip [n, classes]."""
        logits = in_parts(self, x)
        n = int(owner.max()) + 1
        total = logits.new_zeros(n, logits.shape[1]).index_add_(0, owner, logits)
        return total / torch.bincount(owner, minlength=n)[:, None]

    def evaluate(self, batch, stage: str) -> None:
        x, owner, y = batch
        logits = self.clip_logits(x, owner)
        accuracy = (logits.argmax(dim=1) == y).float().mean()
        self.log_dict({f"{stage}/loss": F.cross_entropy(logits, y), f"{stage}/accuracy": accuracy}, batch_size=len(y))

    def validation_step(self, batch, index):
        self.evaluate(batch, "valid")

    def test_step(self, batch, index):
        self.evaluate(batch, "test")

    def configure_optimizers(self):
        return optimiser(self, self.config.optimiser)


def optimiser(module: Cola | AudioClassifier, name: str) -> torch.optim.Optimizer:
    """An optimiser of `OPTIMISERS` with the module's settings, in its fused form where there is one."""
    fused = module.device.type in ("cpu", "cuda")
    return OPTIMISERS[name](
        module.parameters(), lr=module.config.lr, weight_decay=module.config.weight_decay, fused=fused
    )


def pretraining_clips(stores: list[MelStore]) -> Clips:
    """The clips that pre-training may see: all but `split == test`; in stores with folds all of them, since labels are
    never used."""
    return Clips(stores, [np.flatnonzero(store.clips["split"].values != "test") for store in stores])


def pretrain(
    stores,
    out: Path | str,
    config: PretrainConfig,
    resume: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
    trainer: dict | None = None,
) -> Path:
    """Pre-train an encoder by contrast on one or more stores (COLA, arXiv 2010.10915); returns the run folder `out`.

    5% of the clips, by whole groups (at most 256), are held out for validation pairs. With `resume` an interrupted run goes
    on and a finished one is returned as it is. Raises `UserError` for settings that cannot be used.

    `trainer`: further arguments of `lightning.Trainer`, such as {"devices": 8, "num_nodes": 2, "strategy": "ddp"}. Each
    process then draws its part of the `batch_size` pairs and takes the distractors of all (`objectives.gathered`); BatchNorm
    takes the statistics of the part, and the running statistics that are kept are those of the leading process.
    """
    out, trainer = Path(out), trainer or {}
    processes, nodes = trainer.get("devices", 1) * trainer.get("num_nodes", 1), trainer.get("num_nodes", 1)
    # by torchrun or srun; Lightning's own launcher leaves WORLD_SIZE behind, but no RANK
    started = os.environ.get("WORLD_SIZE" if "RANK" in os.environ else "SLURM_STEP_NUM_TASKS")
    if started and int(started) != processes:
        raise UserError(
            f"{started} processes were started, but --devices times --nodes are {processes}: make them agree"
        )
    if nodes > 1 and not (started or "MASTER_ADDR" in os.environ):
        raise UserError(f"{nodes} machines need a launcher that starts a process for each device: torchrun or srun")
    clips = pretraining_clips([open_store(store) for store in stores])
    check_settings(config, accelerator)
    if processes > 1 and (config.batch_size % processes or config.batch_size < 2 * processes):
        raise UserError(
            f"a batch size of {config.batch_size} cannot be shared by {processes} processes: take a multiple"
        )
    if (twice := pd.Index(clips.ids).duplicated()).any():
        raise UserError(
            f"clip {clips.ids[twice][0]} comes twice: name each store once; folders of one name need different ones"
        )
    if len(clips) < 8:
        raise UserError(f"{len(clips)} clips are too few to pre-train on: at least 8")
    data = {"corpora": [store.name for store in clips.stores], "n_clips": len(clips), "clips": fingerprint(clips.ids)}
    with locked(out) if leads() else nullcontext():
        if open_run(out, "pretrain", config, data, resume):
            return out
        train, valid = hold_out(clips, config.seed)
        if len(train) < 2 * processes:
            raise UserError(f"{len(train)} clips are left to train on beside those of validation: too few")
        batch = min(config.batch_size, len(train) // processes * processes)
        torch.manual_seed(config.seed)
        module = Cola(config, train.std(config.seed))
        describe_run(out, "pretrain", config, data, module.encoder, clips.mel, clips.ids)

        def make(step: int):
            augment = config.filter_db, config.mask_bands, config.mask, config.multiply
            return segments.pair_batch(train, step, batch, config.seed, *augment, (module.global_rank, processes))

        def pairs(of: Clips) -> DataLoader:
            return DataLoader([segments.pair_batch(of, 0, min(batch, len(of)), config.seed)], batch_size=None)

        epoch = len(train) // batch
        done = fit(
            module, config, out, make, pairs(valid), epoch, ("valid/loss", "min"), accelerator, progress, trainer
        )
        tested = [np.flatnonzero(store.clips["split"].values == "test") for store in clips.stores]
        if sum(map(len, tested)) > 1:
            done.test(module, pairs(Clips(clips.stores, tested)), verbose=False)
        save_encoder(module.encoder, out)
    return out


def hold_out(clips: Clips, seed: int) -> tuple[Clips, Clips]:
    """Clips to train on and clips for validation pairs: whole groups, in random order, up to 5% of the clips or 256, but at
    least two clips."""
    groups = np.random.default_rng((seed, 6)).permutation(np.unique(clips.groups))
    sizes = pd.Series(clips.groups).value_counts()[groups]
    total = sizes.cumsum()
    total = total[total <= min(256, len(clips) / 20)]
    if total.empty or total.iloc[-1] < 2:  # the first groups are too large for that: the smallest
        total = sizes.sort_values(kind="stable").cumsum()
        total = total[total <= total[total >= 2].iloc[0]]
    held = np.isin(clips.groups, total.index)
    if held.all():  # one group only: validation pairs come from the training clips
        return clips, clips
    return clips.take(np.flatnonzero(~held)), clips.take(np.flatnonzero(held))


def finetune(
    store,
    out: Path | str,
    config: FinetuneConfig,
    encoder: str | Path | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
) -> Path:
    """Train a classifier on a store's labels, from scratch or from the encoder of run `encoder`; returns the run folder.

    Keeps the weights that are best on the validation side, judges them once on the test side, and writes predictions.csv.
    With `resume` an interrupted run goes on and a finished one is returned as it is. Raises `UserError` for settings that
    cannot be used.
    """
    out, store = Path(out), open_store(store)
    check_settings(config, accelerator)
    split = splits(store.clips, config.label, config.fold)[0]
    labels = store.clips[config.label].to_numpy(dtype=object)
    classes = sorted(set(labels[labels != ""]))
    target = np.array([classes.index(value) if value else -1 for value in labels])
    clips = Clips([store], [np.arange(len(store))])
    train = clips.take(chosen := few_labels(labels, split.train, config.labels_per_class, config.seed))
    if encoder is None:
        torch.manual_seed(config.seed)
        start = Pretrained(Encoder(config.arch, train.std(config.seed)), "scratch")
    else:
        start = load_trained(encoder)
        start.check(store)
        config = dataclasses.replace(config, arch=start.encoder.arch)
    data = {"corpora": [store.name], "clips": fingerprint(clips.ids), "classes": classes}
    data |= {"encoder": start.name, "weights": start.weights}
    with locked(out):
        if open_run(out, "finetune", config, data, resume):
            return out
        torch.manual_seed(config.seed)
        module = AudioClassifier(config, start.encoder, classes).train()
        describe_run(out, "finetune", config, data, start.encoder, store.mel, sorted(start.seen))
        batch = min(config.batch_size, len(train))

        def make(step: int):
            return segments.labelled_batch(train, target[chosen], step, batch, config.seed)

        valid = judged(clips, target, split.valid)
        epoch = max(1, len(split.train) // batch)  # the same number of steps whatever the number of labels
        trainer = fit(module, config, out, make, valid, epoch, ("valid/accuracy", "max"), accelerator, progress)
        module.load_state_dict(read_checkpoint(out / "best.ckpt")["state_dict"])
        trainer.test(module, judged(clips, target, split.test), verbose=False)
        with atomic(out / "predictions.csv", "w") as file:
            predict(module, store, split, out.name).to_csv(file, index=False)
        save_encoder(module.encoder, out)
    return out


def open_store(store: MelStore | Path | str) -> MelStore:
    """A store, or the store at a path."""
    return store if isinstance(store, MelStore) else MelStore(store)


def few_labels(labels: np.ndarray, train: np.ndarray, per_class: int | None, seed: int) -> np.ndarray:
    """`per_class` random clips of each class out of the clip numbers `train`; all of them if it is None."""
    if per_class is None:
        return train
    mixed = np.random.default_rng((seed, 7)).permutation(train)
    place = pd.Series(labels[mixed]).groupby(labels[mixed]).cumcount().values
    return np.sort(mixed[place < per_class])


def judged(clips: Clips, target: np.ndarray, rows: np.ndarray) -> DataLoader:
    """Whole clips in batches for validation and test: (segments [S, T, M], clip of each [S], classes [n])."""

    def batches():
        for x, owner, n in segments.clip_batches(clips.take(rows)):
            yield x, owner, torch.from_numpy(target[rows][n])

    return DataLoader(segments.Again(batches), batch_size=None)


@torch.no_grad()
def predict(module: AudioClassifier, store: MelStore, split: Split, name: str) -> pd.DataFrame:
    """A classifier's predictions on the test side: model, task, seed, fold, clip_id, group, label, predicted."""
    module.eval()
    chosen = Clips([store], [split.test])
    scores = [
        module.clip_logits(x.to(module.device), owner.to(module.device)).cpu()
        for x, owner, _ in segments.clip_batches(chosen)
    ]
    best = torch.cat(scores).argmax(dim=1).numpy()
    return prediction_table(store, split, module.config.label, np.array(module.classes)[best], name, module.config.seed)


def prediction_table(
    store: MelStore, split: Split, label: str, predicted: np.ndarray, model: str, seed: int
) -> pd.DataFrame:
    """One row a test clip: model, task, seed, fold, clip_id, group, label, predicted."""
    clips = store.clips.iloc[split.test]
    return pd.DataFrame(
        {
            "model": model,
            "task": f"{store.name}/{label}",
            "seed": seed,
            "fold": split.fold,
            "clip_id": clips["clip_id"].values,
            "group": clips["group"].values,
            "label": clips[label].values,
            "predicted": predicted,
        }
    )


def load_classifier(run: Path | str) -> tuple[AudioClassifier, Pretrained]:
    """The fine-tuned classifier of a finished run folder, and its encoder with what that has seen."""
    run = Path(run)
    loaded = load_trained(run)
    made = read_json(run / "config.json", "a run")
    if made["kind"] != "finetune":
        raise UserError(f"{run} is no classifier but a {made['kind']} run: fine-tune it first")
    module = AudioClassifier(FinetuneConfig(**made["config"]), loaded.encoder, made["data"]["classes"])
    try:
        module.load_state_dict(read_checkpoint(run / "best.ckpt")["state_dict"])
    except (KeyError, RuntimeError):
        raise UserError(f"{run / 'best.ckpt'}: damaged, or of another architecture: train it again") from None
    return module.eval(), loaded
