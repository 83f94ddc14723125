"""Training: the two LightningModules, `pretrain` and `finetune`, and the run folders they leave.

Takes batches from `segments`, encoders from `models`, losses from `objectives`; `evaluation` reads what it saves.

    config.json          settings, data (clips' fingerprint), mel, arch, versions, CPU recipe
    metrics.csv          a row a logged step
    clips.txt            ids of the clips that the encoder has seen in pre-training
    last.ckpt            to resume from; best.ckpt: best on validation (plain tensors and values, never unpickled)
    encoder.safetensors  the result; written last, it marks a finished run
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.metadata
import logging
import math
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import safetensors.torch
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from colalib import segments
from colalib.corpora.table import Split, splits
from colalib.errors import UserError
from colalib.files import atomic, fingerprint, locked, read_json, write_json
from colalib.models import Encoder
from colalib.objectives import OBJECTIVES, ranks
from colalib.segments import Clips, Steps
from colalib.store import MelStore

CHECKPOINT_STEPS = 50  # last.ckpt is written every so many steps
OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass
class PretrainConfig:
    """Settings of contrastive pre-training. Of `steps`, `epochs` and `minutes` the one that is set ends it."""

    objective: str = "bilinear"  # bilinear (COLA), cosine (with temperature) or triplet (DPT)
    arch: str = "b0-small"  # encoder: b0 (the paper's EfficientNet-B0) or b0-small (half its width and depth)
    batch_size: int = 128  # pairs a step; the paper: 1024
    lr: float = 2e-3  # peak learning rate of AdamW; the paper: Adam, 1e-4
    weight_decay: float = 1e-4
    warmup: float = 0.05  # share of the training during which the learning rate rises; then it falls as a cosine to 0
    dropout: float = 0.1  # after h and in the projection; also the encoder's drop-connect rate
    symmetric: bool = True  # both directions of cross-entropy; the paper: anchor → positive only
    temperature: float = 0.2  # of the cosine objective
    margin: float = 0.5  # of the triplet objective
    mask: bool = False  # random_mask on both segments
    multiply: bool = False  # random_multiply on both segments
    seed: int = 0
    minutes: float | None = None  # of wall clock
    steps: int | None = None
    epochs: float | None = None  # passes over the clips


@dataclass
class FinetuneConfig:
    """Settings of supervised training, from scratch or from a pre-trained encoder."""

    label: str = "label"  # column of the store's table
    fold: str | None = None  # the test fold, for corpora with folds; the first one if not set
    labels_per_class: int | None = None  # how many training clips a class keep their label; all if not set
    arch: str = "b0-small"  # from scratch; a pre-trained encoder brings its own
    batch_size: int = 64  # segments a step (COLA, section 3.2)
    optimiser: str = "adamw"  # adamw, adam or sgd
    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 1e-2
    warmup: float = 0.05  # share of the training during which the learning rate rises; then it falls as a cosine to 0
    dropout: float = 0.1  # before the linear layer; also the encoder's drop-connect rate
    patience: int | None = None  # stop after so many validations without a better accuracy; never if not set
    seed: int = 0
    minutes: float | None = None  # of wall clock
    steps: int | None = None
    epochs: float | None = None  # passes over the labelled clips


# ------------------------------------------------------------------------------------------------ modules


class Cola(lightning.LightningModule):
    """Contrastive pre-training. A batch is (anchors, positives), each [B, T, M]; logs loss, in-batch accuracy and mean
    rank of the positive."""

    def __init__(self, config: PretrainConfig, std: float):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.arch, drop_connect=config.dropout, std=std)
        extra = {"cosine": {"temperature": config.temperature}, "triplet": {"margin": config.margin}}.get(
            config.objective, {}
        )
        if config.objective != "triplet":
            extra["symmetric"] = config.symmetric
        self.objective = OBJECTIVES[config.objective](self.encoder.dim, dropout=config.dropout, **extra)

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        anchors, positives = batch
        loss, similarity = self.objective(self.encoder(anchors), self.encoder(positives))
        rank = ranks(similarity.detach()).float()
        values = {"loss": loss, "accuracy": (rank == 1).float().mean(), "rank": rank.mean()}
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, batch_size=len(anchors))
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
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        accuracy = (logits.argmax(dim=1) == y).float().mean()
        self.log_dict({"train/loss": loss, "train/accuracy": accuracy}, batch_size=len(y))
        return loss

    def clip_logits(self, x: Tensor, owner: Tensor) -> Tensor:
        """Segments [S, T, M] and the clip of each [S] → mean logits of each clip [n, classes]."""
        logits = self(x)
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


# ------------------------------------------------------------------------------------------------ the loop's parts


class Schedule(Callback):
    """Learning rate, end, progress bar and last.ckpt of a training given in steps or minutes; keys torch's random numbers
    (dropout) by (seed, step). Keeps the time already spent in the checkpoint."""

    def __init__(self, config: PretrainConfig | FinetuneConfig, steps: int | None, progress: bool, out: Path):
        self.config, self.steps, self.out, self.spent = config, steps, out, 0.0
        self.bar = tqdm(
            total=100,
            desc=out.name,
            unit="%",
            disable=not progress,
            mininterval=1,
            bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
        )

    def state_dict(self):
        return {"spent": time.monotonic() - self.begun}

    def load_state_dict(self, state):
        self.spent = float(state["spent"])

    def on_train_start(self, trainer, module):
        self.begun = time.monotonic() - self.spent

    def done(self, step: int) -> float:
        """Share of the training that lies behind step number `step`."""
        return step / self.steps if self.steps else (time.monotonic() - self.begun) / (60 * self.config.minutes)

    def on_train_batch_start(self, trainer, module, batch, index):
        step, warmup = trainer.global_step, self.config.warmup
        done = min(self.done(step), 1.0)
        share = done / warmup if done < warmup else (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
        if self.steps and step < warmup * self.steps:
            share = (step + 1) / (warmup * self.steps + 1)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.config.lr * share
        module.log("lr", self.config.lr * share)
        torch.manual_seed(int(np.random.default_rng((self.config.seed, 5, step)).integers(2**62)))

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        step = trainer.global_step
        # beside the steps that are logged and validated (multiples of 5), so that a resumed run cuts none of these in two
        if step % CHECKPOINT_STEPS == 2:
            trainer.save_checkpoint(self.out / "last.ckpt")
        done = self.done(step)
        values = {
            k: f"{float(v):.3g}"
            for k, v in trainer.callback_metrics.items()
            if k in ("train/loss", "train/accuracy", "valid/accuracy")
        }
        self.bar.set_postfix(step=step, **values, refresh=False)
        self.bar.update(min(100 * done, 100) - self.bar.n)
        if done >= 1:
            trainer.should_stop = True

    def on_train_end(self, trainer, module):
        self.bar.close()


class MetricsCsv(Logger):
    """metrics.csv: a row a logged step, with seconds since the start; a resumed run goes on behind the step it resumes at."""

    FIELDS = ["step", "epoch", "seconds", "lr"] + [
        f"{s}/{m}" for s in ("train", "valid", "test") for m in ("loss", "accuracy", "rank")
    ]
    name, version, experiment = "csv", "", None

    def __init__(self, path: Path, epoch: int, first: int = 0, spent: float = 0.0):
        super().__init__()
        self.path, self.epoch, self.begun = path, epoch, time.monotonic() - spent
        rows = []
        if path.exists() and first:
            with open(path, newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["step"] and int(row["step"]) < first]
        with atomic(path, "w") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    def log_hyperparams(self, *args, **kwargs):
        """Settings are in config.json."""

    def log_metrics(self, metrics: dict, step: int | None = None):
        row = {k: f"{v:.6g}" for k, v in metrics.items() if k in self.FIELDS}
        row |= {"step": step, "epoch": f"{step / self.epoch:.3f}", "seconds": f"{time.monotonic() - self.begun:.2f}"}
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.FIELDS).writerow(row)


def total_steps(config, epoch: int) -> int | None:
    """Number of steps that `config` asks for, None where it goes by minutes. Raises `UserError` unless exactly one is set."""
    given = [name for name in ("steps", "epochs", "minutes") if getattr(config, name) is not None]
    if len(given) != 1:
        raise UserError(f"give one of steps, epochs and minutes, not {' and '.join(given) or 'none'}")
    if getattr(config, given[0]) <= 0:
        raise UserError(f"{given[0]} must be above 0")
    return config.steps or (config.epochs and math.ceil(config.epochs * epoch))


def check_settings(config, accelerator: str) -> None:
    """Raises `UserError` where the length of the training is not given once, or this machine has no such `accelerator`."""
    total_steps(config, epoch=1)
    if accelerator != "auto" and not AcceleratorRegistry.get(accelerator).is_available():
        raise UserError(f"this machine has no {accelerator} device that torch can use: leave --accelerator at auto")


def fit(
    module,
    config,
    out: Path,
    batch,
    valid: DataLoader,
    epoch: int,
    monitor: tuple[str, str],
    accelerator: str,
    progress: bool,
) -> lightning.Trainer:
    """Train `module` on `batch(step)` under Lightning; resumes from `out/last.ckpt` if it is there. Validates every epoch
    (of `epoch` steps), but not more often than every 50 steps nor less than every 200, and at the end; best.ckpt holds the
    weights with the best value of `monitor` (name, "min" or "max")."""
    quiet_lightning()
    last = out / "last.ckpt"
    first, spent = 0, 0.0
    if last.exists():
        checkpoint = read_checkpoint(last)
        try:
            first, spent = int(checkpoint["global_step"]), float(checkpoint["callbacks"]["Schedule"]["spent"])
        except (KeyError, TypeError):
            raise UserError(f"{last}: not a checkpoint of this run: delete it, or start a new run") from None
    steps = total_steps(config, epoch)
    schedule = Schedule(config, steps, progress, out)
    keep = {"dirpath": out, "enable_version_counter": False, "save_on_train_epoch_end": False}
    best = ModelCheckpoint(filename="best", monitor=monitor[0], mode=monitor[1], save_weights_only=True, **keep)
    callbacks = [schedule, best]
    if getattr(config, "patience", None):
        callbacks.append(EarlyStopping(monitor[0], mode=monitor[1], patience=config.patience))
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=1,
        precision="bf16-mixed" if accelerator in ("auto", "cuda") and torch.cuda.is_available() else "32-true",
        max_steps=steps or -1,
        max_epochs=-1,
        val_check_interval=max(50, min(5 * (epoch // 5), 200)),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=MetricsCsv(out / "metrics.csv", epoch, first, spent),
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )
    loader = DataLoader(Steps(batch, lambda: trainer.global_step), batch_size=None)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, loader, valid, ckpt_path=last if first else None, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C, after which it leaves Ctrl-C ignored
        signal.signal(signal.SIGINT, interrupt)
        raise KeyboardInterrupt from None
    finally:
        schedule.bar.close()
    score = trainer.validate(module, valid, verbose=False)[0][monitor[0]]
    sign = 1 if monitor[1] == "max" else -1
    if best.best_model_score is None or sign * score >= sign * float(best.best_model_score):
        trainer.save_checkpoint(out / "best.ckpt", weights_only=True)
    return trainer


def quiet_lightning() -> None:
    """Lightning's advice on worker processes and its banner do not apply: batches are crops of a memory map."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*IterableDataset.*",
        ".*ckpt_path.*",
        ".*treespec.*",
    ):
        warnings.filterwarnings("ignore", text)


def read_checkpoint(path: Path) -> dict:
    """A checkpoint's tensors and plain values; anything that would have to be unpickled is refused with `UserError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged archives
        why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or not a plain checkpoint ({why}): delete it, or start a new run") from None


# ------------------------------------------------------------------------------------------------ runs


def open_run(out: Path, kind: str, config, data: dict, resume: bool) -> bool:
    """Enter the run folder `out`; True if the run in it is finished already.

    Raises `UserError` if a run is there and `resume` is not set, or if it was made with other settings or data.
    """
    if not (out / "config.json").exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not a run and not empty: choose another --out")
        return False
    if not resume:
        raise UserError(f"{out} holds a run already: go on with --resume, choose another --out, or delete it")
    made = read_json(out / "config.json", "a run")
    for part, wanted in (("config", dataclasses.asdict(config)), ("data", data)):
        for key, value in wanted.items():
            if made.get("kind") != kind or made.get(part, {}).get(key) != value:
                had = made.get(part, {}).get(key)
                raise UserError(
                    f"{out} was made with {key} {had!r}, not {value!r}: keep its settings to resume, or choose another --out"
                )
    return (out / "encoder.safetensors").exists()


def describe_run(out: Path, kind: str, config, data: dict, encoder: Encoder, mel, seen) -> None:
    """Write clips.txt (what the encoder sees in pre-training) and config.json: from here on `out` is a run."""
    with atomic(out / "clips.txt", "w") as file:
        file.writelines(f"{clip}\n" for clip in seen)
    versions = {
        p: importlib.metadata.version(p) for p in ("torch", "lightning", "librosa", "efficientnet_pytorch", "numpy")
    }
    made = {
        "kind": kind,
        "config": dataclasses.asdict(config),
        "data": data,
        "arch": encoder.arch,
        "cpu_recipe": encoder.recipe,
    }
    made |= {"mel": dataclasses.asdict(mel), "threads": torch.get_num_threads(), "versions": versions}
    write_json(out / "config.json", made)


def save_encoder(encoder: Encoder, out: Path) -> None:
    """Write encoder.safetensors: from here on the run is finished."""
    with atomic(out / "encoder.safetensors") as file:
        file.write(safetensors.torch.save({k: v.contiguous().cpu() for k, v in encoder.state_dict().items()}))


@dataclass
class Pretrained:
    """A loaded encoder, the mel settings it needs, the ids of the clips it has seen, and the hash of its weights."""

    encoder: Encoder
    name: str
    mel: dict | None = None
    seen: frozenset[str] = frozenset()
    weights: str = ""

    def check(self, store: MelStore) -> None:
        """Raises `UserError` if `store` was made with other mel settings than the encoder was trained on."""
        if self.mel is not None and self.mel != dataclasses.asdict(store.mel):
            raise UserError(
                f"{store.path} has other mel settings than encoder {self.name}: prepare it with the encoder's"
            )


def load_encoder(name: str | Path, arch: str = "b0-small", seed: int = 0, drop_connect: float = 0.0) -> Pretrained:
    """The encoder of a finished run folder, or `random`: seeded weights of `arch` (calibrate its BatchNorm before use)."""
    if str(name) == "random":
        torch.manual_seed(seed)
        return Pretrained(Encoder(arch), "random")
    run = Path(name)
    made = read_json(run / "config.json", "a run (made by pretrain or finetune)")
    if "arch" not in made:
        raise UserError(f"{run} is not a run (made by pretrain or finetune)")
    if not (run / "encoder.safetensors").exists():
        raise UserError(f"{run} is not finished: go on with --resume")
    encoder = Encoder(made["arch"], drop_connect)
    try:
        weights = (run / "encoder.safetensors").read_bytes()
        encoder.load_state_dict(safetensors.torch.load(weights))
        seen = frozenset((run / "clips.txt").read_text(encoding="utf-8").splitlines())
    except Exception as error:  # safetensors and torch raise kinds of their own
        raise UserError(f"{run}: damaged encoder ({str(error).splitlines()[0][:120]}): train it again") from None
    return Pretrained(encoder.eval(), run.name, made["mel"], seen, hashlib.sha256(weights).hexdigest()[:16])


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
) -> Path:
    """Pre-train an encoder by contrast on one or more stores (COLA, arXiv 2010.10915); returns the run folder `out`.

    5% of the clips, by whole groups (at most 256), are held out for validation pairs. With `resume` an interrupted run goes
    on and a finished one is returned as it is. Raises `UserError` for settings that cannot be used.
    """
    out = Path(out)
    clips = pretraining_clips([open_store(store) for store in stores])
    if config.objective not in OBJECTIVES:
        raise UserError(f"no objective {config.objective!r}: there are {', '.join(OBJECTIVES)}")
    check_settings(config, accelerator)
    if len(clips) < 8:
        raise UserError(f"{len(clips)} clips are too few to pre-train on: at least 8")
    data = {"corpora": [store.name for store in clips.stores], "n_clips": len(clips), "clips": fingerprint(clips.ids)}
    with locked(out):
        if open_run(out, "pretrain", config, data, resume):
            return out
        train, valid = hold_out(clips, config.seed)
        batch = min(config.batch_size, len(train))
        torch.manual_seed(config.seed)
        module = Cola(config, train.std(config.seed))
        describe_run(out, "pretrain", config, data, module.encoder, clips.mel, clips.ids)

        def make(step: int):
            return segments.pair_batch(train, step, batch, config.seed, config.mask, config.multiply)

        def pairs(of: Clips) -> DataLoader:
            return DataLoader([segments.pair_batch(of, 0, min(batch, len(of)), config.seed)], batch_size=None)

        epoch = len(train) // batch
        trainer = fit(module, config, out, make, pairs(valid), epoch, ("valid/loss", "min"), accelerator, progress)
        tested = [np.flatnonzero(store.clips["split"].values == "test") for store in clips.stores]
        if sum(map(len, tested)) > 1:
            trainer.test(module, pairs(Clips(clips.stores, tested)), verbose=False)
        save_encoder(module.encoder, out)
    return out


def hold_out(clips: Clips, seed: int) -> tuple[Clips, Clips]:
    """Clips to train on and clips for validation pairs: whole groups, in random order, up to 5% of the clips or 256, but at
    least two clips."""
    groups = np.random.default_rng((seed, 6)).permutation(np.unique(clips.groups))
    total = pd.Series(clips.groups).value_counts()[groups].cumsum()
    room = max(min(256, len(clips) / 20), total[total >= 2].iloc[0])
    held = np.isin(clips.groups, total.index[total <= room])
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
    if config.optimiser not in OPTIMISERS:
        raise UserError(f"no optimiser {config.optimiser!r}: there are {', '.join(OPTIMISERS)}")
    check_settings(config, accelerator)
    split = splits(store.clips, config.label, config.fold)[0]
    labels = store.clips[config.label].to_numpy(dtype=object)
    classes = sorted(set(labels[labels != ""]))
    target = np.array([classes.index(value) if value else -1 for value in labels])
    clips = Clips([store], [np.arange(len(store))])
    train = clips.take(chosen := few_labels(labels, split.train, config.labels_per_class, config.seed))
    if encoder is None:
        torch.manual_seed(config.seed)
        start = Pretrained(Encoder(config.arch, config.dropout, train.std(config.seed)), "scratch")
    else:
        start = load_encoder(encoder, config.arch, config.seed, config.dropout)
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
        trainer = fit(
            module, config, out, make, valid, len(train) // batch, ("valid/accuracy", "max"), accelerator, progress
        )
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
    if per_class < 1:
        raise UserError("labels per class must be at least 1")
    mixed = np.random.default_rng((seed, 7)).permutation(train)
    place = pd.Series(labels[mixed]).groupby(labels[mixed]).cumcount().values
    return np.sort(mixed[place < per_class])


def judged(clips: Clips, target: np.ndarray, rows: np.ndarray) -> DataLoader:
    """Whole clips in batches for validation and test: (segments [S, T, M], clip of each [S], classes [n])."""
    batches = segments.clip_batches(clips.take(rows))
    return DataLoader([(x, owner, torch.from_numpy(target[rows][n])) for x, owner, n in batches], batch_size=None)


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
    loaded = load_encoder(run)
    made = read_json(run / "config.json", "a run")
    if made["kind"] != "finetune":
        raise UserError(f"{run} is no classifier but a {made['kind']} run: fine-tune it first")
    module = AudioClassifier(FinetuneConfig(**made["config"]), loaded.encoder, made["data"]["classes"])
    try:
        module.load_state_dict(read_checkpoint(run / "best.ckpt")["state_dict"])
    except (KeyError, RuntimeError):
        raise UserError(f"{run / 'best.ckpt'}: damaged, or of another architecture: train it again") from None
    return module.eval(), loaded
