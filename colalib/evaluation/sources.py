"""What features come from: mel statistics, an encoder of ours, or any module with the HEAR interface.

`feature_source` finds it by its name. Each source makes features [n, d] of the clips of a store, and
says how many test clips it has heard in training. Features go to `probes`, maps and `comparison`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from colalib.data import audio
from colalib.data.audio import MelConfig
from colalib.data.clips import Clips, pretraining_clips
from colalib.data.splits import Split
from colalib.data.store import MelStore
from colalib.encoder import Encoder, choose_device
from colalib.errors import UserError, first_line
from colalib.evaluation.features import READOUT, calibrate_batchnorm, embed_frames, mel_stats
from colalib.files import atomic, fingerprint
from colalib.training.runs import Run, open_run

# training steps; BatchNorm's momentum is 0.1, and 0.9^64 of what its statistics began with is 0.1%
CALIBRATED_UNTIL = 64
CALLS = ("load_model", "get_scene_embeddings")  # of the interface, as far as clips need it


def is_module(encoder: str) -> bool:
    """Return whether a name, without what follows a colon, is that of a module that can be imported."""
    name = encoder.partition(":")[0]
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) or Path(encoder).exists():
        return False
    try:
        return find_spec(name) is not None
    except Exception:  # a package above it is missing, or cannot be imported
        return False


class MelStatsSource:
    """Mel statistics as a source of features."""

    name = "mel-stats"
    mel = None  # any mel settings will do

    def of_clips(self, clips: Iterable[np.ndarray], total: int | None = None) -> np.ndarray:
        """Return features [n, 2 M] of clips given as log-mel frames [T, M]."""
        return mel_stats(clips)

    def of_store(self, store: MelStore, keep: Path | None = None) -> np.ndarray:
        """Return features [n, 2 M] of all clips of a store."""
        return mel_stats(Clips.of_store(store))

    def overlap(self, store: MelStore, splits: list[Split]) -> int:
        """Return 0: nothing was trained."""
        return 0


class EncoderSource:
    """A frozen encoder as a source of features: that of a finished `run`, or random weights.

    A random encoder (`run` is None) has seeded weights of `arch`, calibrated on clips that pre-training could
    have seen. The encoder is loaded when it is first needed.
    """

    def __init__(
        self,
        run: Run | None,
        arch: str = "b0-small",
        seed: int = 0,
        accelerator: str = "auto",
        progress: bool = False,
    ):
        self.run = run
        self.name = run.name if run else "random"
        self.mel = run.mel if run else None
        self.arch = run.description["arch"] if run else arch
        self.seed = seed
        self.device = choose_device(accelerator)
        self.progress = progress

    def encoder(self, calibration: Clips | None = None) -> Encoder:
        """Return the encoder; a random one is calibrated on the clips `calibration`."""
        if self.run:
            return self.run.load_encoder().to(self.device)
        torch.manual_seed(self.seed)
        return calibrate_batchnorm(Encoder(self.arch), calibration, self.seed).to(self.device)

    def of_clips(
        self,
        clips: Iterable[np.ndarray],
        mel: MelConfig,
        total: int | None = None,
        calibration: Clips | None = None,
    ) -> np.ndarray:
        """Return embeddings [n, d] of clips given as log-mel frames [T, M]."""
        return embed_frames(self.encoder(calibration), clips, mel, total, self.progress)

    def of_store(self, store: MelStore, keep: Path | None = None) -> np.ndarray:
        """Return embeddings [n, d] of all clips of a store.

        `keep`: a folder where they are kept and found again, by clips, weights and read-out.
        """
        self.check_mel(store)
        weights = self.run.weights_hash if self.run else f"{self.arch} {self.seed}"
        key = [repr(store.mel), weights, READOUT]

        def compute() -> np.ndarray:
            clips = Clips.of_store(store)
            return self.of_clips(clips, store.mel, len(clips), self.calibration(store))

        return kept(keep, self.name, store, key, compute)

    def check_mel(self, store: MelStore) -> None:
        """Raise `UserError` if a store has other mel settings than the encoder was trained on."""
        if self.run:
            self.run.check_mel(store)

    def calibration(self, store: MelStore) -> Clips | None:
        """Return the clips of a store that a random encoder is calibrated on; None for a trained one."""
        return None if self.run else pretraining_clips([store]) or Clips.of_store(store)

    def overlap(self, store: MelStore, splits: list[Split]) -> int:
        """Return how many test clips of `splits` the encoder has heard in training."""
        return self.run.overlap(store, splits) if self.run else 0


class ModuleSource:
    """A module with the HEAR interface as a source of features; `MODULE:PATH` names its weights.

    The module says the sample rate. Raises `UserError` if it lacks the interface or cannot load
    its model.
    """

    mel = None  # any mel settings will do: the audio itself is read

    def __init__(self, encoder: str, progress: bool = False):
        name, _, self.path = encoder.partition(":")
        self.name = encoder
        self.progress = progress
        with self.errors("cannot be loaded"):
            self.module = importlib.import_module(name)
            if missing := [call for call in CALLS if not hasattr(self.module, call)]:
                raise UserError(f"{name} does not have the HEAR interface: it lacks {' and '.join(missing)}")
            self.model = self.module.load_model(self.path)
            self.sample_rate = int(self.model.sample_rate)  # Hz

    @contextmanager
    def errors(self, what: str):
        """Turn errors of the module, which are of any kind, into a `UserError`."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.name}: {what}: {first_line(error)}") from None

    def version(self) -> list[str]:
        """Return what tells this module and these weights from others under the same name."""
        package = self.module.__name__.partition(".")[0]
        with suppress(importlib.metadata.PackageNotFoundError):
            package = importlib.metadata.version(package)
        files = [Path(self.module.__file__), Path(self.path)] if self.path else [Path(self.module.__file__)]
        return [package, *(version_of(file) for file in files if file.exists())]

    @torch.no_grad()
    def of_clips(self, clips: Iterable[np.ndarray], total: int | None = None) -> np.ndarray:
        """Return features [n, d] of clips given as samples [n], at `sample_rate`."""
        scenes = []
        for wave in tqdm(clips, total=total, desc="embed", unit="clip", disable=not self.progress, delay=1):
            with self.errors("cannot embed a clip"):
                scene = self.module.get_scene_embeddings(torch.from_numpy(wave)[None], self.model)  # [1, d]
                scenes.append(torch.as_tensor(scene).float().cpu().numpy().reshape(-1))
            if not np.isfinite(scenes[-1]).all():
                raise UserError(f"{self.name}: its embedding of clip {len(scenes)} is NaN or infinite")
        return np.stack(scenes)

    def of_store(self, store: MelStore, keep: Path | None = None) -> np.ndarray:
        """Return features [n, d] of all clips of a store, from their audio; kept by module and version.

        Raises `UserError` if the audio is not where it was when the store was made.
        """
        store.audio_root()
        rows = np.arange(len(store))
        compute = partial(self.of_clips, self.waves(store, rows), len(store))
        return kept(keep, self.name, store, self.version(), compute)

    def waves(self, store: MelStore, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the samples [n] of clips of a store, from its audio. Raises `UserError` as `of_store`."""
        root = store.audio_root()
        for path in store.clips["path"].iloc[rows]:
            try:
                yield audio.load_audio(root / path, self.sample_rate)
            except audio.Unusable as error:
                raise UserError(
                    f"{root / path}: {error}: {self.name} needs the audio of this store"
                ) from None

    def overlap(self, store: MelStore, splits: list[Split]) -> None:
        """Return None: what the module's encoder has heard is not known here."""


Source = MelStatsSource | EncoderSource | ModuleSource


def snapshot_features(
    run: Run, store: MelStore, rows: np.ndarray, progress: bool = False
) -> dict[int, np.ndarray]:
    """Return embeddings [n, d] of the clips in `rows` of a store by the encoder at each snapshot of a run.

    They are kept beside the snapshots. Raises `UserError` if the run has no snapshots. An encoder of the
    first steps is calibrated like a random one: BatchNorm's statistics have not yet followed its weights.
    """
    run.check_mel(store)
    snapshots = run.snapshots()
    if not snapshots:
        raise UserError(f"{run.path} has no snapshots: pre-train with pretrain(..., snapshots=True)")
    clips, device = Clips([store], [rows]), choose_device()
    calibration = pretraining_clips([store]) or clips
    features = {}
    for step, file in tqdm(snapshots.items(), desc="snapshots", disable=not progress, delay=1):

        def compute(step: int = step, file: Path = file) -> np.ndarray:
            encoder = run.load_encoder(file)
            encoder = calibrate_batchnorm(encoder, calibration) if step < CALIBRATED_UNTIL else encoder
            return embed_frames(encoder.to(device), clips, store.mel)

        key = [repr(store.mel), version_of(file), READOUT, f"calibrated until {CALIBRATED_UNTIL}"]
        features[step] = kept(file.parent, file.stem, store, key, compute, clips.ids)
    return features


def kept(
    keep: Path | None,
    name: str,
    store: MelStore,
    key: list[str],
    compute: Callable[[], np.ndarray],
    ids: np.ndarray | None = None,
) -> np.ndarray:
    """Return features [n, d] of a store's clips: those kept in the folder `keep`, else computed and kept.

    Kept ones are memory-mapped: those of a large store need not fit into memory. `key` holds what they
    depend on beside the clips and their frames. `ids`: which clips; all by default.
    """
    ids = store.ids if ids is None else ids
    states = [version_of(file) for file in sorted(store.path.glob("frames-*.npy"))]
    digest = fingerprint([*ids, *states, name, *key])
    file_name = re.sub(r"[^\w.-]", "-", name)[:100]  # MODULE:PATH is none
    file = keep and Path(keep) / f"{file_name}-{digest}.npy"
    if file and file.exists():
        with suppress(ValueError, EOFError):  # damaged: computed again
            features = np.load(file, mmap_mode="r")
            if features.ndim == 2 and len(features) == len(ids):
                return features
    features = compute()
    if file:
        with atomic(file) as target:
            np.save(target, features)
        features = np.load(file, mmap_mode="r")
    return features


def version_of(file: Path) -> str:
    """Return name, size and time of a file or folder: they change when it is written anew."""
    return f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}"


def feature_source(
    encoder: str | Path,
    arch: str = "b0-small",
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = False,
) -> Source:
    """Return what features come from.

    This is "mel-stats", "random" (of `arch`, `seed`), "default", a run folder, or "MODULE[:PATH]", a
    Python module with the HEAR interface, which computes where it likes, whatever `accelerator` says.
    Raises `UserError` if there is no such run, module or device.
    """
    if str(encoder) == "mel-stats":
        return MelStatsSource()
    if str(encoder) not in ("random", "default") and is_module(str(encoder)):
        return ModuleSource(str(encoder), progress)
    run = None if str(encoder) == "random" else open_run(encoder)
    return EncoderSource(run, arch, seed, accelerator, progress)
