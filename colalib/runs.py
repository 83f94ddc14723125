"""Run folders: what a training leaves on disk, and how an encoder is loaded again.

`training` writes them, `evaluation` reads them.

    config.json          settings, data (clips' fingerprint), mel, arch, versions, CPU recipe
    metrics.csv          a row a logged step
    clips.txt            ids of the clips that the encoder has seen in pre-training
    last.ckpt            to resume from; best.ckpt: best on validation (plain tensors and values, never unpickled)
    encoder.safetensors  the result; written last, it marks a finished run
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from colalib.errors import UserError
from colalib.files import atomic, leads, read_json, write_json
from colalib.models import Encoder
from colalib.store import MelStore

DEFAULT = Path(__file__).with_name("default")  # the run folder that comes with the package


def open_run(out: Path, kind: str, config, data: dict, resume: bool) -> bool:
    """Enter the run folder `out`; True if the run in it is finished already.

    Raises `UserError` if a run is there and `resume` is not set, or if it was made with other settings or data. Of several
    processes the one that leads looks, writes and complains for all.
    """
    if not leads():
        return (out / "encoder.safetensors").exists()
    for left in out.glob(".*.part"):  # by a kill
        left.unlink(missing_ok=True)
    if not (out / "config.json").exists():
        if out.exists() and any(
            p.name != "clips.txt" for p in out.iterdir()
        ):  # all that a kill may leave before config.json
            raise UserError(f"{out} is not a run and not empty: choose another --out")
        return False
    if not resume:
        raise UserError(f"{out} holds a run already: go on with --resume, choose another --out, or delete it")
    made = read_json(out / "config.json", "a run")
    if made.get("kind") != kind:
        raise UserError(f"{out} holds a run of {made.get('kind')}, not of {kind}: choose another --out")
    made["config"] = dataclasses.asdict(type(config)()) | made.get("config", {})  # settings may be newer than the run
    for part, wanted in (("config", dataclasses.asdict(config)), ("data", data)):
        for key, value in wanted.items():
            had = made.get(part, {}).get(key)
            if had != value:
                raise UserError(
                    f"{out} was made with {key} {had!r}, not {value!r}: keep its settings to resume, or choose another --out"
                )
    return (out / "encoder.safetensors").exists()


def describe_run(out: Path, kind: str, config, data: dict, encoder: Encoder, mel, seen) -> None:
    """Write clips.txt (what the encoder sees in pre-training) and config.json: from here on `out` is a run."""
    if not leads():
        return
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
    if not leads():
        return
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


def load_encoder(name: str | Path, arch: str = "b0-small", seed: int = 0) -> Pretrained:
    """`load_trained`, or `random`: seeded weights of `arch` (calibrate its BatchNorm before use)."""
    if str(name) == "random":
        torch.manual_seed(seed)
        return Pretrained(Encoder(arch), "random")
    return load_trained(name)


def load_trained(name: str | Path) -> Pretrained:
    """The encoder of a finished run folder; or `default`, the one that comes with the package (`DEFAULT`, with its model
    card). Raises `UserError`."""
    run = DEFAULT if str(name) == "default" else Path(name)
    made = read_json(run / "config.json", "a run (made by pretrain or finetune)")
    if not {"arch", "mel"} <= made.keys():
        raise UserError(f"{run} is not a run (made by pretrain or finetune)")
    if not (run / "encoder.safetensors").exists():
        raise UserError(f"{run} is not finished: go on with --resume")
    encoder = Encoder(made["arch"])
    try:
        weights = (run / "encoder.safetensors").read_bytes()
        encoder.load_state_dict(safetensors.torch.load(weights))
        seen = frozenset((run / "clips.txt").read_text(encoding="utf-8").splitlines())
    except Exception as error:  # safetensors and torch raise kinds of their own
        raise UserError(f"{run}: damaged encoder ({str(error).splitlines()[0][:120]}): train it again") from None
    return Pretrained(encoder.eval(), run.name, made["mel"], seen, hashlib.sha256(weights).hexdigest()[:16])


def read_checkpoint(path: Path) -> dict:
    """A checkpoint's tensors and plain values; anything that would have to be unpickled is refused with `UserError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged archives
        why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or not a plain checkpoint ({why}): delete it, or start a new run") from None
