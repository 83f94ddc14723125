"""Embeddings: from log-mel frames, stores, audio files or arrays to one vector per clip.

All ways lead through `embed_frames`. `feature_source` says what features come from: a trained
encoder, a random one, or mel statistics. The features go to `probes`, maps and `comparison`.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed, effective_n_jobs
from torch import Tensor
from tqdm.auto import tqdm

from colalib.data import audio, corpora
from colalib.data.audio import MelConfig
from colalib.data.clips import Clips, pretraining_clips
from colalib.data.corpus import AUDIO, Corpus
from colalib.data.segments import EVAL_HOP_FRAMES, clip_batches, random_crop, segment_std
from colalib.data.splits import Split
from colalib.data.store import MelStore, log_mel_of_file, to_stored, worker_errors
from colalib.data.streams import stream
from colalib.encoder import Encoder, batch_norms, choose_device, pool_segments
from colalib.errors import UserError
from colalib.fast_cpu import in_batches, parallel_map
from colalib.files import atomic, fingerprint
from colalib.training.runs import Run, open_run

# What `embed_frames` computes: part of the key of kept features, so that these are not used after a
# change.
READOUT = "mean and standard deviation of every block in four ranges of bands, over the whole clip"
FILES_PER_PROCESS = 4  # decoded before they are embedded: the frames of an hour take 46 MB

# ------------------------------------------------------------------------------- frames to features


def embed_frames(
    encoder: Encoder,
    clips: Iterable[np.ndarray],
    silence: float,
    total: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return clip embeddings, float32 [n, d], from the log-mel frames [T, M] of each clip.

    `Encoder.block_features` of segments of 98 frames every 49, joined per clip by `pool_segments`.
    `silence` pads clips shorter than a segment. Computes on the device where the encoder is.
    `total`: number of clips, for the progress bar.
    """
    encoder = encoder.eval()
    device = next(encoder.parameters()).device

    @torch.no_grad()
    def embed_batch(batch: tuple[Tensor, Tensor]) -> np.ndarray:
        x, clip_index = batch  # [S, T, M], [S]
        features = in_batches(encoder.block_features, x.to(device)).cpu()  # [S, d]
        n = int(clip_index[-1]) + 1
        # [n, d]
        return np.stack([pool_segments(features[clip_index == i]).numpy() for i in range(n)])

    vectors = []
    with tqdm(total=total, desc="embed", unit="clip", disable=not progress) as bar:
        for part in parallel_map(embed_batch, clip_batches(clips, EVAL_HOP_FRAMES, silence)):
            vectors.append(part)
            bar.update(len(part))
    return np.concatenate(vectors)


def mel_stats(clips: Iterable[np.ndarray]) -> np.ndarray:
    """Return the simplest features, float32 [n, 2 M]: mean and standard deviation over time of each
    log-mel band.
    """
    clips = (frames.astype(np.float32) for frames in clips)  # [T, M]
    return np.stack([np.concatenate([x.mean(axis=0), x.std(axis=0)]) for x in clips])


def calibrate_batchnorm(encoder: Encoder, clips: Clips, seed: int = 0, batches: int = 20) -> Encoder:
    """Give an untrained encoder the normalisation that training would have given it; return it in
    evaluation mode.

    Sets `std` and BatchNorm's running statistics, averaged over `batches` batches of 64 random
    segments. Without it a random encoder is a straw man: on ESC-10 a probe of it got 44% instead of
    64% of the clips right.
    """
    rng = stream("calibration", seed)
    encoder.std.fill_(segment_std(clips, seed))
    norms = batch_norms(encoder)
    usual = norms[0].momentum
    encoder.train()
    with torch.no_grad():
        for batch in range(batches):
            for norm in norms:
                norm.momentum = 1 / (batch + 1)  # a plain average over the batches
            chosen = rng.integers(len(clips), size=64)
            crops = [random_crop(clips.frames(i), rng, silence=clips.mel.silence) for i in chosen]
            encoder(torch.from_numpy(np.stack(crops)))
    for norm in norms:
        norm.momentum = usual
    return encoder.eval()


# ------------------------------------------------------------------------------ sources of features
# Each source has `name`, `mel` (None: any mel settings), `embed(clips, total)` for an iterable of
# frames,
# `of_store(store, keep)` and `overlap(store, splits)`: the number of test clips that it saw in
# pre-training.


class MelStatsSource:
    """Mel statistics as features."""

    name = "mel-stats"
    mel = None

    def embed(self, clips: Iterable[np.ndarray], total: int | None = None) -> np.ndarray:
        return mel_stats(clips)

    def of_store(self, store: MelStore, keep: Path | None = None) -> np.ndarray:
        return mel_stats(Clips.of_store(store))

    def overlap(self, store: MelStore, splits: list[Split]) -> int:
        return 0


class EncoderSource:
    """The encoder of a finished run, frozen. It is loaded when it is first needed."""

    def __init__(self, run: Run, accelerator: str = "auto", progress: bool = False):
        self.run = run
        self.name = run.name
        self.mel = run.mel
        self.key = run.weights_hash
        self.device = choose_device(accelerator)
        self.progress = progress

    @cached_property
    def encoder(self) -> Encoder:
        return self.run.load_encoder().to(self.device)

    def embed(self, clips: Iterable[np.ndarray], total: int | None = None) -> np.ndarray:
        """Return embeddings [n, d] of clips given as log-mel frames [T, M]."""
        return embed_frames(self.encoder, clips, self.mel.silence, total, self.progress)

    def of_store(self, store: MelStore, keep: Path | None = None) -> np.ndarray:
        """Return embeddings of all clips of a store, [n, d]; those kept in the folder `keep` are
        used if they fit.
        """
        self.run.check_mel(store)
        return kept_features(self, store, keep, lambda: self.embed(Clips.of_store(store), len(store)))

    def overlap(self, store: MelStore, splits: list[Split]) -> int:
        return self.run.overlap(store, splits)


class RandomSource:
    """An encoder with seeded random weights, calibrated on the clips of the store that pre-training
    could have seen.
    """

    name = "random"
    mel = None

    def __init__(self, arch: str, seed: int, accelerator: str = "auto", progress: bool = False):
        torch.manual_seed(seed)
        self.untrained = Encoder(arch)
        self.seed = seed
        self.key = f"{arch} {seed}"
        self.device = choose_device(accelerator)
        self.progress = progress

    def embed_calibrated(self, clips: Clips, calibration: Clips) -> np.ndarray:
        """Return embeddings [n, d] of `clips` by the encoder calibrated on other clips, or on the
        same.
        """
        encoder = calibrate_batchnorm(self.untrained.to("cpu"), calibration, self.seed).to(self.device)
        return embed_frames(encoder, clips, clips.mel.silence, len(clips), self.progress)

    def of_store(self, store: MelStore, keep: Path | None = None) -> np.ndarray:
        clips = Clips.of_store(store)
        calibration = pretraining_clips([store])
        return kept_features(
            self,
            store,
            keep,
            lambda: self.embed_calibrated(clips, calibration if len(calibration) else clips),
        )

    def overlap(self, store: MelStore, splits: list[Split]) -> int:
        return 0


def feature_source(
    encoder: str | Path,
    arch: str = "b0-small",
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = False,
) -> MelStatsSource | EncoderSource | RandomSource:
    """Return what features come from: "mel-stats", "random" (of `arch` and `seed`), "default", or a
    run folder.

    Raises `UserError` if there is no such run or device.
    """
    if str(encoder) == "mel-stats":
        return MelStatsSource()
    if str(encoder) == "random":
        return RandomSource(arch, seed, accelerator, progress)
    return EncoderSource(open_run(encoder), accelerator, progress)


def kept_features(source, store: MelStore, keep: Path | None, compute) -> np.ndarray:
    """Return the features of a store that are kept in the folder `keep`, or compute and keep them.

    They are found by the clips, the weights and the read-out.
    """
    if keep is None:
        return compute()
    key = [*store.ids, *store.clips["frames"].astype(str), repr(store.mel), source.key, READOUT]
    file = Path(keep) / f"{source.name}-{fingerprint(key)}.npy"
    if file.exists():
        with suppress(ValueError, EOFError):  # damaged: computed again
            return np.load(file)
    features = compute()
    with atomic(file) as target:
        np.save(target, features)
    return features


# ------------------------------------------------------------------------------ audio to embeddings


@dataclass
class Embedded:
    """Embeddings of audio: `vectors` float32 [n, d] and `clips`, their table with a row each
    (clip_id, path, and so on).

    `left_out` lists path and reason of each clip that could not be used.
    """

    vectors: np.ndarray
    clips: pd.DataFrame
    left_out: pd.DataFrame


def embed(
    source: str | Path | list[str | Path] | tuple[np.ndarray, int],
    encoder: str | Path = "default",
    accelerator: str = "auto",
    jobs: int = -1,
    arch: str = "b0-small",
    seed: int = 0,
    progress: bool = False,
) -> Embedded:
    """Return embeddings of audio by an encoder: "default", a run folder, "random" (of `arch`,
    `seed`) or "mel-stats".

    `source` is a file, a list of files, a folder (as `corpora.load` reads it), a store, or
    `(samples, sample_rate)` with samples [n] or [n, channels] in [-1, 1]. `jobs` processes decode
    files (-1: all cores). Also known as `colalib.embed`.

    >>> tone = np.sin(np.arange(32000) / 10).astype(np.float32)
    >>> embed((tone, 16_000)).vectors.shape
    (1, 3328)

    Raises `UserError` if there is no such folder or encoder, or no usable clip.
    """
    features = feature_source(encoder, arch, seed, accelerator, progress)
    if isinstance(source, str | Path) and (Path(source) / "clips.csv").exists():
        store = MelStore(source)
        table = store.clips.drop(columns=["shard", "start", "frames"])
        return Embedded(features.of_store(store), table, store.quarantine)
    mel = features.mel or MelConfig()
    if isinstance(source, tuple):
        return _embed_array(source, features, mel)
    corpus = _corpus_of(source)
    decoded = _DecodedFiles(corpus, mel, jobs)
    if isinstance(features, RandomSource):
        clips = FramesInMemory(list(decoded), mel)
        decoded.check()
        calibration = corpus.clips["split"][decoded.usable].values != "test"
        vectors = features.embed_calibrated(clips, clips.take(np.flatnonzero(calibration)) or clips)
    else:
        vectors = _embed_all(features, decoded, len(corpus.clips))
    return Embedded(vectors, corpus.clips[decoded.usable].reset_index(drop=True), decoded.left_out())


def _embed_all(features, decoded: _DecodedFiles, total: int) -> np.ndarray:
    """Return the embeddings of all files that can be used. Raises `UserError` if none can."""
    clips = iter(decoded)
    first = next(clips, None)
    if first is None:
        decoded.check()
    return features.embed((frames for part in ([first], clips) for frames in part), total)


def _embed_array(source: tuple[np.ndarray, int], features, mel: MelConfig) -> Embedded:
    """Return the embedding of one clip given as samples and their rate."""
    try:
        wave = audio.from_array(*source, mel.sample_rate)
    except audio.Unusable as error:
        raise UserError(f"the samples cannot be used: {error}") from None
    frames = [to_stored(audio.log_mel(wave, mel))]
    if isinstance(features, RandomSource):
        clips = FramesInMemory(frames, mel)
        vectors = features.embed_calibrated(clips, clips)
    else:
        vectors = features.embed(frames)
    return Embedded(vectors, pd.DataFrame({"clip_id": ["samples"]}), pd.DataFrame({"path": [], "reason": []}))


def _corpus_of(source: str | Path | list[str | Path]) -> Corpus:
    """Return the corpus of a folder, a file or a list of files."""
    one = isinstance(source, str | Path)
    if one and not (Path(source).is_file() or Path(source).suffix.lower() in AUDIO):
        return corpora.load(source)
    files = [Path(os.path.abspath(f)) for f in ([source] if one else source)]
    if not files:
        raise UserError("no files to embed")
    root = Path(os.path.commonpath([file.parent for file in files]))
    return Corpus("files", root, pd.DataFrame({"path": [f.relative_to(root).as_posix() for f in files]}))


@dataclass
class FramesInMemory:
    """Clips whose log-mel frames [T, M] are in memory; as far as `calibrate_batchnorm` needs it,
    like `Clips`.
    """

    all_frames: list[np.ndarray]
    mel: MelConfig

    def __len__(self) -> int:
        return len(self.all_frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.all_frames)

    def frames(self, i: int) -> np.ndarray:
        return self.all_frames[i]

    def take(self, chosen: np.ndarray) -> FramesInMemory:
        return FramesInMemory([self.all_frames[i] for i in chosen], self.mel)


class _DecodedFiles:
    """Iterable over the log-mel frames of a corpus' files, decoded by `jobs` processes, a few at a
    time.

    Files that cannot be used are passed over; afterwards `usable` [n] and `left_out()` tell which,
    and why.
    """

    def __init__(self, corpus: Corpus, mel: MelConfig, jobs: int):
        if jobs == 0:
            raise UserError("0 processes cannot do anything: name 1 or more, or -1 for all cores")
        self.corpus = corpus
        self.mel = mel
        self.jobs = jobs
        self.reasons: list[str] = []  # "" for a usable file

    def __iter__(self) -> Iterator[np.ndarray]:
        root = Path(os.path.abspath(self.corpus.root))
        paths = [root / path for path in self.corpus.clips["path"]]
        processes = min(effective_n_jobs(self.jobs), max(len(paths), 1))
        parallel = Parallel(n_jobs=processes)
        for start in range(0, len(paths), FILES_PER_PROCESS * processes):
            part = paths[start : start + FILES_PER_PROCESS * processes]
            with worker_errors():
                decoded = parallel(delayed(log_mel_of_file)(path, self.mel) for path in part)
            self.reasons += [reason for _, reason in decoded]
            yield from (frames for frames, _ in decoded if frames is not None)

    @property
    def usable(self) -> np.ndarray:
        return np.array([reason == "" for reason in self.reasons])

    def left_out(self) -> pd.DataFrame:
        """Return path and reason of each file that could not be used."""
        paths = self.corpus.clips["path"][~self.usable].values
        reasons = [reason for reason in self.reasons if reason]
        table = pd.DataFrame({"path": paths, "reason": reasons}, dtype=str)
        return pd.concat([table, self.corpus.excluded], ignore_index=True)

    def check(self) -> None:
        """Raise `UserError` if no file could be used."""
        if not self.usable.any():
            left_out = self.left_out()
            first = (
                f"{left_out['path'].iloc[0]}: {left_out['reason'].iloc[0]}"
                if len(left_out)
                else "it is empty"
            )
            raise UserError(
                f"{self.corpus.root}: none of {len(self.reasons)} clips is usable (first: {first})"
            )


def embed_to_file(
    source: str | Path, encoder: str | Path, out: Path | str, accelerator: str = "auto", **options
) -> Embedded:
    """Write `embed` to an .npz file and return it.

    The file holds clip_id, embedding float32 [n, d], and the table's other columns as fixed-width
    text (no pickle).
    """
    embedded = embed(source, encoder, accelerator, **options)
    columns = {c: np.array(embedded.clips[c].tolist(), dtype=str) for c in embedded.clips}
    with atomic(Path(out)) as file, zipfile.ZipFile(file, "w") as archive:
        for name, values in {
            "embedding": embedded.vectors,
            **columns,
        }.items():  # np.savez takes the name `file` for itself
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
    return embedded
