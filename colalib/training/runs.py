"""Run folders: what a training leaves on disk, and how an encoder is loaded again.

`pretraining` and `finetuning` write them, `evaluation` reads them.

    config.json          settings, data (hash of the clip ids), mel, arch, versions, CPU precision
    metrics.csv          one row per logged step
    clips.txt            ids of the clips that the encoder has heard in training, with or without labels
    last.ckpt            to resume from; best.ckpt: best on validation (never unpickled)
    predictions.csv      of a fine-tuning: one row per test clip
    snapshots/           the encoder at some steps, if they were asked for: 00000.safetensors, …
    encoder.safetensors  the result; written last, it marks a finished run
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch

from colalib.data.audio import MelConfig
from colalib.data.splits import Split
from colalib.data.store import MelStore
from colalib.encoder import Encoder
from colalib.errors import UserError, first_line
from colalib.files import atomic, is_main_process, read_json, remove_leftovers, write_json
from colalib.settings import ARCHITECTURES, FinetuneConfig, PretrainConfig, read_config

# the run folder that comes with the package, with its model card
DEFAULT = Path(__file__).parents[1] / "default"
CONFIGS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}  # by the kind of a run
RUN_FILES = (
    *("config.json", "metrics.csv", "clips.txt", "last.ckpt", "best.ckpt", "predictions.csv"),
    "encoder.safetensors",
)
SNAPSHOTS = "snapshots"  # folder in a run
HASHED = ("clips", "labels", "weights")  # parts of a run's data that config.json has as a hash
# whose versions a run notes
PACKAGES = ("torch", "lightning", "librosa", "efficientnet_pytorch", "numpy")


class Run:
    """A run folder, finished or not. Nothing is read before it is asked for."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.name = Path(os.path.abspath(path)).name

    @property
    def exists(self) -> bool:
        """Whether a training has begun here."""
        return (self.path / "config.json").exists()

    @property
    def finished(self) -> bool:
        """Whether the encoder is there."""
        return (self.path / "encoder.safetensors").exists()

    @cached_property
    def description(self) -> dict:
        """The content of config.json. Raises `UserError` if this is not a run folder."""
        description = read_json(self.path / "config.json", "a run (made by pretrain or finetune)")
        if not {"arch", "mel"} <= description.keys():
            raise UserError(f"{self.path} is not a run (made by pretrain or finetune)")
        if not isinstance(description["arch"], str) or description["arch"] not in ARCHITECTURES:
            raise UserError(f"{self.path / 'config.json'}: unknown architecture {description['arch']!r}")
        MelConfig.read(description["mel"], self.path / "config.json")
        return description

    @property
    def kind(self) -> str:
        """ "pretrain" or "finetune"."""
        return str(self.description.get("kind", ""))

    @property
    def config(self) -> PretrainConfig | FinetuneConfig:
        """The settings. A setting that is newer than the run has its default."""
        file = self.path / "config.json"
        if self.kind not in CONFIGS:
            raise UserError(f"{file}: damaged: a run of kind {self.kind!r}")
        return read_config(CONFIGS[self.kind], self.description.get("config"), file)

    @property
    def mel(self) -> MelConfig:
        """The mel settings that the encoder needs."""
        return MelConfig(**self.description["mel"])

    @cached_property
    def seen_clip_ids(self) -> frozenset[str]:
        """Ids of the clips that the encoder has heard in training, with or without labels."""
        return frozenset((self.path / "clips.txt").read_text(encoding="utf-8").splitlines())

    @cached_property
    def weights_hash(self) -> str:
        """Short SHA-256 of encoder.safetensors."""
        return hashlib.sha256((self.path / "encoder.safetensors").read_bytes()).hexdigest()[:16]

    def metrics(self) -> pd.DataFrame:
        """Return metrics.csv as far as it is written; one row per logged step."""
        try:
            return pd.read_csv(self.path / "metrics.csv")
        except (OSError, ValueError):  # pandas' errors, and bytes that are not text, are ValueErrors
            return pd.DataFrame({"step": []})

    def progress(self) -> tuple[float, float]:
        """Return the share that is done, 0 to 1, and the seconds left (NaN before the first step)."""
        metrics = self.metrics()
        if metrics.empty:
            return 0.0, math.nan
        last, config = metrics.iloc[-1], self.config
        done = {"minutes": last["seconds"] / 60, "steps": last["step"], "epochs": last["epoch"]}
        share = next(min(done[unit] / wanted, 1.0) for unit in done if (wanted := getattr(config, unit)))
        return share, last["seconds"] * (1 / max(share, 1e-6) - 1)

    def predictions(self) -> pd.DataFrame:
        """Return predictions.csv of a finished fine-tuning."""
        return read_predictions(self.path / "predictions.csv")

    def snapshots(self) -> dict[int, Path]:
        """Return the files of the encoder on its way, by training steps, from the first to the last."""
        files = (self.path / SNAPSHOTS).glob("*.safetensors")
        return dict(sorted((int(file.stem), file) for file in files if re.fullmatch(r"\d{5,}", file.stem)))

    def load_encoder(self, snapshot: Path | None = None) -> Encoder:
        """Return the encoder in evaluation mode, or the one of a `snapshot`.

        Raises `UserError` if it is damaged or not finished.
        """
        encoder, where = Encoder(self.description["arch"]), snapshot or self.path
        if snapshot is None and not self.finished:
            raise UserError(f"{self.path} is not finished: go on with --resume")
        try:
            weights = safetensors.torch.load_file(snapshot or self.path / "encoder.safetensors")
            encoder.load_state_dict(weights)
            self.seen_clip_ids  # noqa: B018  (a damaged list shows here, not after the long part)
        except Exception as error:  # safetensors and torch raise kinds of their own
            raise UserError(f"{where}: damaged encoder ({first_line(error)}): train it again") from None
        if not is_finite(encoder):
            raise UserError(f"{where}: damaged encoder (weights that are NaN or infinite): train it again")
        return encoder.eval()

    def check_mel(self, store: MelStore) -> None:
        """Raise `UserError` if `store` was made with other mel settings than the encoder was trained on."""
        if self.mel != store.mel:
            raise UserError(
                f"{store.path} has other mel settings than encoder {self.name}: prepare it with the encoder's"
            )

    def overlap(self, store: MelStore, splits: list[Split]) -> int:
        """Return how many test clips of `splits` the encoder has heard in training."""
        tested = np.concatenate([split.test for split in splits])
        return sum(clip in self.seen_clip_ids for clip in store.ids[tested])


def open_run(name: str | Path) -> Run:
    """Return the finished run at a path, or for "default" the one that comes with the package.

    Raises `UserError` if there is none.
    """
    run = Run(DEFAULT if str(name) == "default" else name)
    run.description  # noqa: B018  (raises if it is no run)
    if not run.finished:
        raise UserError(f"{run.path} is not finished: go on with --resume")
    return run


# ------------------------------------------------------------------------------------------ writing


def enter_run(out: Path, kind: str, config, data: dict, resume: bool) -> bool:
    """Enter the run folder `out`; return True if the run in it is finished already.

    Raises `UserError` if a run is there and `resume` is not set, or if it was made with other
    settings or data. Only the main process checks and raises.
    """
    run = Run(out)
    if not is_main_process():
        return run.finished
    if not run.exists:
        # what a kill may leave before config.json
        begun = [out / "clips.txt", *out.glob(".clips.txt.*.part"), *out.glob(".config.json.*.part")]
        if out.exists() and not set(out.iterdir()) <= set(begun):
            raise UserError(f"{out} is not a run and not empty: choose another --out")
        return False
    if run.kind not in CONFIGS:
        raise UserError(
            f"{out} is not a run, but its config.json is that of something else: choose another --out"
        )
    if not resume:
        raise UserError(f"{out} holds a run already: go on with --resume, choose another --out, or delete it")
    if run.kind != kind:
        raise UserError(f"{out} holds a run of {run.kind}, not of {kind}: choose another --out")
    before = {"config": dataclasses.asdict(run.config), "data": run.description.get("data", {})}
    for part, wanted in (("config", dataclasses.asdict(config)), ("data", data)):
        for key, value in wanted.items():
            if (was := before[part].get(key, value)) != value:  # older runs do not tell all of their data
                differs = f"other {key}" if key in HASHED else f"{key} {was!r}, not {value!r}"
                raise UserError(
                    f"{out} was made with {differs}: "
                    "keep its settings to resume, choose another --out, or delete that folder"
                )
    remove_leftovers(out, *RUN_FILES)
    remove_leftovers(out / SNAPSHOTS, "*.safetensors")
    return run.finished


def write_run_config(
    out: Path, kind: str, config, data: dict, encoder: Encoder, mel: MelConfig, seen
) -> None:
    """Write clips.txt (the ids `seen` in training) and config.json: from here on `out` is a run."""
    if not is_main_process():
        return
    clips, content = out / "clips.txt", "".join(f"{clip}\n" for clip in seen).encode()
    # a run that was begun may have told fewer of them
    if clips.exists() and not set(clips.read_bytes().splitlines()) <= set(content.splitlines()):
        raise UserError(f"{clips} is not the list of this run's clips: choose another --out")
    with atomic(clips) as file:
        file.write(content)
    description = {
        "kind": kind,
        "config": dataclasses.asdict(config),
        "data": data,
        "arch": encoder.arch,
        "cpu_recipe": encoder.cpu_precision,
        "mel": dataclasses.asdict(mel),
        "threads": torch.get_num_threads(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    write_json(out / "config.json", description)


def save_encoder(encoder: Encoder, out: Path, name: str = "encoder.safetensors") -> None:
    """Write encoder.safetensors: from here on the run is finished. Or write a snapshot by its `name`."""
    if not is_main_process():
        return
    if not is_finite(encoder):
        raise UserError(f"{out}: the weights became NaN or infinite: start again with a lower --lr")
    with atomic(out / name) as file:
        file.write(safetensors.torch.save({k: v.contiguous().cpu() for k, v in encoder.state_dict().items()}))


def snapshot_name(step: int) -> str:
    """Return where in a run folder the snapshot of a training step lies."""
    return f"{SNAPSHOTS}/{step:05d}.safetensors"


def is_finite(encoder: Encoder) -> bool:
    """Return whether all weights and running statistics are finite numbers."""
    return all(torch.isfinite(weight).all() for weight in encoder.state_dict().values())


def read_checkpoint(path: Path) -> dict:
    """Return a checkpoint's tensors and plain values.

    Raises `UserError` for anything that would have to be unpickled.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged archives
        raise UserError(
            f"{path}: damaged, or not a plain checkpoint ({first_line(error)}): delete it, or start a new run"
        ) from None


# -------------------------------------------------------------------------------------- predictions


def prediction_table(
    store: MelStore,
    split: Split,
    label: str,
    predicted: np.ndarray,
    model: str,
    seed: int,
    labels_per_class: int | None = None,
) -> pd.DataFrame:
    """Return one row per test clip: model, task, seed, fold, clip_id, group, label, predicted, and budget.

    The last column is the label budget as text, "" for all labels.
    """
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
            "labels_per_class": "" if labels_per_class is None else str(labels_per_class),
        }
    )


def read_predictions(file: Path | str) -> pd.DataFrame:
    """Return a table of predictions from a CSV file; all columns but `seed` are text.

    Older files hold the label budget in the model's name, "probe (10 a class)", and come out in
    today's form. Raises `UserError` if it is damaged.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False).astype({"seed": int})
        if missing := {"model", "task", "fold", "clip_id", "group", "label", "predicted"} - set(table):
            raise KeyError(min(missing))
    except (KeyError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(
            f"{file}: damaged, or not a table of predictions ({first_line(error)}): "
            "judge the runs again with evaluate"
        ) from None
    if "labels_per_class" not in table:
        parts = table["model"].str.extract(r"^(.*?)(?: \((\d+) a class\))?$")
        table["model"], table["labels_per_class"] = parts[0], parts[1].fillna("")
    return table
