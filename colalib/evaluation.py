"""What an encoder is worth: clip features, linear probe, kNN, scratch against fine-tuned.

Takes stores and runs; every judgement is a table of predictions on test clips (`predictions.csv`), and `intervals` turns
such a table into `results.json`. Figures are drawn elsewhere, from these.
"""

from __future__ import annotations

import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from colalib import corpora, training
from colalib.corpora.table import AUDIO, Corpus, Split, splits
from colalib.errors import UserError
from colalib.files import atomic, fingerprint
from colalib.intervals import summary
from colalib.models import Encoder, choose_device, in_parts, in_threads, whole_clip
from colalib.runs import Pretrained, load_encoder, load_trained
from colalib.segments import FRAMES, Clips, clip_batches
from colalib.store import MelStore, build
from colalib.training import FinetuneConfig, open_store, prediction_table

HOP = FRAMES // 2  # overlapping segments for embeddings
# what `embed` computes: part of the key of kept features, so that these go when it changes
READOUT = "mean and standard deviation of every block in four ranges of bands, over the whole clip"
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression, chosen on the validation side
TEMPERATURES = np.geomspace(
    0.05, 20, 41
)  # that a logistic regression's outputs are divided by before they are compared
ABLATION = {  # what differs from the defaults of PretrainConfig
    "bilinear": {},
    "cosine": {"objective": "cosine"},
    "triplet": {"objective": "triplet"},
    "bilinear, 16 pairs": {"batch_size": 16},
    "bilinear, 256 pairs": {"batch_size": 256},
    "bilinear, no augmentation": {"filter_db": 0.0, "mask_bands": 0},
}

# ------------------------------------------------------------------------------------------------ features


def embed(encoder: Encoder, clips: Clips, progress: bool = True, accelerator: str = "auto") -> np.ndarray:
    """Clip embeddings, float32 [n, d]: `Encoder.readout` of a clip's segments (98 frames every 49), joined by `whole_clip`."""
    device, home = choose_device(accelerator), next(encoder.parameters()).device
    encoder = encoder.eval().to(device)

    @torch.no_grad()
    def read(batch) -> np.ndarray:
        x, owner, numbers = batch
        segments = in_parts(encoder.readout, x.to(device)).cpu()  # [S, d]
        return np.stack([whole_clip(segments[owner == i]).numpy() for i in range(len(numbers))])

    parts = []
    with tqdm(total=len(clips), desc="embed", unit="clip", disable=not progress) as bar:
        for part in in_threads(read, clip_batches(clips, HOP)):
            parts.append(part)
            bar.update(len(part))
    encoder.to(home)
    return np.concatenate(parts)


def mel_stats(clips: Clips) -> np.ndarray:
    """The simplest features, float32 [n, 2 · n_mels]: mean and standard deviation over time of each log-mel band."""
    frames = (clips.frames(i).astype(np.float32) for i in range(len(clips)))
    return np.stack([np.concatenate([x.mean(axis=0), x.std(axis=0)]) for x in frames])


def calibrate(encoder: Encoder, clips: Clips, seed: int = 0, batches: int = 20) -> Encoder:
    """Give an untrained encoder the normalisation that training would have given it: `std` and BatchNorm statistics, averaged
    over `batches` batches of 64 random segments. Without it a random encoder is a straw man."""
    rng = np.random.default_rng((seed, 8))
    encoder.std.fill_(clips.std(seed))
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = norms[0].momentum
    encoder.train()
    with torch.no_grad():
        for done in range(batches):
            for norm in norms:
                norm.momentum = 1 / (done + 1)  # a plain average over the batches
            encoder(torch.from_numpy(np.stack([clips.crop(i, rng) for i in rng.integers(len(clips), size=64)])))
    for norm in norms:
        norm.momentum = usual
    return encoder.eval()


# ------------------------------------------------------------------------------------------------ frozen features


def tempered_loss(model: Pipeline, x: np.ndarray, y: np.ndarray) -> float:
    """Cross-entropy of a fitted classifier on features [n, d] at the temperature that suits it best, in nats (Guo et al. 2017,
    arXiv 1706.04599): finer than accuracy, and, unlike plain cross-entropy, the same for a model that is right but too sure."""
    z = torch.from_numpy(model.decision_function(x))
    z = z if z.ndim == 2 else torch.stack([-z / 2, z / 2], dim=1)  # two classes: one column
    true = torch.from_numpy(np.searchsorted(model.classes_, y))
    return min(cross_entropy(z / t, true).item() for t in TEMPERATURES)


def linear_probe(x: np.ndarray, y: np.ndarray, split: Split, refit: bool = True) -> np.ndarray:
    """Standardised features [n, d] → multinomial logistic regression; its strength is the one with the least `tempered_loss`
    on the validation side, then with `refit` it is fitted on train + valid, else on train alone. Returns predictions for the
    test side. (Validation accuracy would choose almost at random: a clip or two decide.) Without a validation clip of a class
    that is trained on, the middle strength is taken. Raises `UserError` if only one class is there to learn."""
    if len(set(y[split.train])) < 2:
        raise UserError("the training side has only one class, from which nothing can be learned: label more clips")

    def fit(rows: np.ndarray, strength: float) -> Pipeline:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300)).fit(x[rows], y[rows])

    valid = split.valid[np.isin(y[split.valid], y[split.train])]
    # in small matrices threads only wait for each other: rather a thread for each strength
    with warnings.catch_warnings(), threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = pool.map(lambda c: fit(split.train, c), STRENGTHS)
        best = STRENGTHS[len(STRENGTHS) // 2]
        if len(valid):
            losses = {c: tempered_loss(model, x[valid], y[valid]) for c, model in zip(STRENGTHS, models)}
            best = min(losses, key=losses.get)
        return fit(np.concatenate([split.train, split.valid]) if refit else split.train, best).predict(x[split.test])


def knn(x: np.ndarray, y: np.ndarray, split: Split, k: int = 5) -> np.ndarray:
    """The k nearest clips of train + valid by cosine distance of standardised features vote. Returns test predictions."""
    rows = np.concatenate([split.train, split.valid])
    model = make_pipeline(
        StandardScaler(), KNeighborsClassifier(min(k, len(rows)), metric="cosine", weights="distance")
    )
    return model.fit(x[rows], y[rows]).predict(x[split.test])


def neighbours(x: np.ndarray, groups: np.ndarray, k: int = 5) -> np.ndarray:
    """The k nearest clips of every clip by cosine similarity of standardised features [n, d], nearest first: numbers [n, k],
    fewer columns if a group leaves fewer others. A clip's own group is left out: another take of the same tune, or sentence of
    the same speaker, is near for reasons that have nothing to do with what is asked."""
    x = StandardScaler().fit_transform(x)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-9
    groups, found = pd.factorize(np.asarray(groups))[0], []
    k = min(k, len(x) - np.bincount(groups).max())
    for start in range(0, len(x), 1000):
        block = slice(start, start + 1000)
        distance = np.where(groups[block, None] == groups, np.inf, -x[block] @ x.T)
        nearest = np.argpartition(distance, k, axis=1)[:, :k]  # in no order yet
        order = np.argsort(np.take_along_axis(distance, nearest, axis=1), axis=1)
        found.append(np.take_along_axis(nearest, order, axis=1))
    return np.concatenate(found)


def judge(
    store: MelStore,
    features: np.ndarray,
    model: str,
    label: str,
    divisions: list[Split],
    seed: int = 0,
    method: Callable[[np.ndarray, np.ndarray, Split], np.ndarray] = linear_probe,
    labels_per_class: int | None = None,
) -> pd.DataFrame:
    """Predictions of `method` on frozen features for every division, as one table; of a linear probe that learns from
    `labels_per_class` training clips a class, drawn by `seed`, if that is given."""
    y = store.clips[label].to_numpy(dtype=object)
    if labels_per_class is not None:  # validation labels choose the strength, as they choose the epoch in fine-tuning
        model, method = f"{model} ({labels_per_class} a class)", partial(linear_probe, refit=False)
        divisions = [replace(d, train=training.few_labels(y, d.train, labels_per_class, seed)) for d in divisions]
    return pd.concat([prediction_table(store, s, label, method(features, y, s), model, seed) for s in divisions])


# ------------------------------------------------------------------------------------------------ whole comparisons


def overlap(store: MelStore, divisions: list[Split], loaded: Pretrained) -> int:
    """How many test clips the encoder saw in pre-training."""
    tested = np.concatenate([s.test for s in divisions])
    return sum(clip in loaded.seen for clip in store.ids[tested])


def probe(
    store: MelStore | Path | str,
    encoder: str | Path,
    label: str = "label",
    fold: str | None = None,
    folds: int | None = None,
    arch: str = "b0-small",
    seed: int = 0,
    progress: bool = True,
    accelerator: str = "auto",
) -> tuple[dict, pd.DataFrame]:
    """Linear probe of one encoder (a run folder, `random` or `mel-stats`) on one task: (results, predictions)."""
    store = open_store(store)
    divisions = splits(store.clips, label, fold, folds)
    features, loaded = frozen_features(store, encoder, arch, seed, progress, accelerator=accelerator)
    name = loaded.name if loaded else "mel-stats"
    predictions = judge(store, features, name, label, divisions, seed)
    return summary(predictions, {name: overlap(store, divisions, loaded) if loaded else 0}), predictions


def frozen_features(
    store: MelStore,
    encoder: str | Path,
    arch: str = "b0-small",
    seed: int = 0,
    progress: bool = True,
    keep: Path | None = None,
    accelerator: str = "auto",
) -> tuple[np.ndarray, Pretrained | None]:
    """Features of all clips of a store, [n, d], and the encoder they come from (None for `mel-stats`). A random encoder is
    calibrated on the clips that pre-training could have seen. `keep`: a folder where features are written and found again,
    by clips and weights."""
    clips = Clips([store], [np.arange(len(store))])
    if encoder == "mel-stats":
        return mel_stats(clips), None
    loaded = load_encoder(encoder, arch, seed)
    loaded.check(store)
    made_of = [*store.ids, *store.clips["frames"].astype(str), repr(store.mel)]
    made_of += [loaded.weights or f"{arch} {seed}", READOUT]
    kept = keep and Path(keep) / f"{loaded.name}-{fingerprint(made_of)}.npy"
    if kept and kept.exists():
        with suppress(ValueError, EOFError):  # damaged: made again
            return np.load(kept), loaded
    if encoder == "random":
        calibrate(loaded.encoder, training.pretraining_clips([store]) or clips, seed)
    features = embed(loaded.encoder, clips, progress, accelerator)
    if kept:
        with atomic(kept) as file:
            np.save(file, features)
    return features, loaded


def compare(
    store: MelStore | Path | str,
    encoder: str | Path | list[str | Path],
    out: Path | str,
    label: str = "label",
    seeds: int = 3,
    labels_per_class: tuple[int | None, ...] = (None,),
    fold: str | None = None,
    folds: int | None = None,
    finetune: FinetuneConfig | None = None,
    accelerator: str = "auto",
    progress: bool = True,
) -> tuple[dict, pd.DataFrame]:
    """Everything side by side on one task: mel-stats, random, probe and kNN of `encoder`, scratch and fine-tuned.

    `encoder` is one run, or a list of runs that differ in their seed: number s is then the encoder of seed s.
    `finetune` sets the supervised runs (None: frozen features only; see `supervised`). Each number of `labels_per_class`
    (None: all) adds its own rows of mel-stats, probe, scratch and fine-tuned. Features and runs are kept under `out` and
    reused. Returns (results, predictions).
    """
    store, out, keep = open_store(store), Path(out), Path(out) / "features"
    divisions = splits(store.clips, label, fold, folds)
    encoders = [Path(e) for e in (encoder if isinstance(encoder, list) else [encoder])]
    loaded = load_trained(encoders[0])
    if finetune is not None and folds:
        raise UserError("supervised runs follow the corpus' own split: leave out --folds, or add --frozen")
    statistics, _ = frozen_features(store, "mel-stats")
    parts = [judge(store, statistics, "mel-stats", label, divisions)]
    for seed in range(seeds):
        random, _ = frozen_features(store, "random", loaded.encoder.arch, seed, progress, keep, accelerator)
        parts.append(judge(store, random, "random", label, divisions, seed))
    for name, method in (("probe", linear_probe), ("kNN", knn)):
        for seed, run in enumerate(encoders):
            features, _ = frozen_features(store, run, progress=progress, keep=keep, accelerator=accelerator)
            parts.append(judge(store, features, name, label, divisions, seed, method))
    seen = max(overlap(store, divisions, load_trained(e)) for e in encoders)
    seen_by = {"probe": seen, "kNN": seen}
    for k in filter(None, labels_per_class):
        for seed in range(seeds):
            run = encoders[seed % len(encoders)]
            features, _ = frozen_features(store, run, progress=progress, keep=keep, accelerator=accelerator)
            parts.append(judge(store, statistics, "mel-stats", label, divisions, seed, labels_per_class=k))
            parts.append(judge(store, features, "probe", label, divisions, seed, labels_per_class=k))
        seen_by[f"probe ({k} a class)"] = seen
    if finetune is not None:
        config = replace(finetune, label=label, arch=loaded.encoder.arch)
        for k in labels_per_class:
            parts.append(supervised(store, encoders, out, config, seeds, k, fold, accelerator, progress))
            seen_by |= {m: seen for m in parts[-1]["model"].unique() if m.startswith("fine-tuned")}
    predictions = pd.concat(parts, ignore_index=True)
    return summary(predictions, seen_by), predictions


def supervised(
    store: MelStore | Path | str,
    encoder: str | Path | list[str | Path],
    out: Path | str,
    config: FinetuneConfig,
    seeds: int = 3,
    labels_per_class: int | None = None,
    fold: str | None = None,
    accelerator: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Predictions of the same classifier trained from scratch and from `encoder`, for every seed and fold, with
    `labels_per_class` labelled clips a class (None: all). Of several encoders seed s starts from number s, and again from
    the first when they are used up. The runs are kept under `out` and reused."""
    store, parts = open_store(store), []
    encoders = encoder if isinstance(encoder, list) else [encoder]
    for division in splits(store.clips, config.label, fold):
        for seed in range(seeds):
            for name, start in (("scratch", None), ("fine-tuned", encoders[seed % len(encoders)])):
                k = labels_per_class
                run = Path(out) / f"{name}-{config.label}-{k or 'all'}-{division.fold or 'split'}-{seed}"
                made = replace(config, fold=division.fold or None, labels_per_class=k, seed=seed)
                training.finetune(store, run, made, start, resume=True, accelerator=accelerator, progress=progress)
                parts.append(read_predictions(run).assign(model=name if k is None else f"{name} ({k} a class)"))
    return pd.concat(parts, ignore_index=True)


def ablation(
    store: MelStore | Path | str,
    out: Path | str,
    epochs: float,
    finetune: FinetuneConfig,
    label: str = "label",
    seeds: int = 3,
    accelerator: str = "auto",
    progress: bool = True,
) -> tuple[dict, pd.DataFrame]:
    """The paper's comparisons in miniature (COLA, section 4.2): similarity, batch size, frozen against fine-tuned, and our
    augmentations. Every setting of `ABLATION` is pre-trained on `store` for the same number of `epochs`, so that all have
    heard the same clips equally often, and judged by its linear probe; scratch and fine-tuned beside the defaults.

    Runs and features are kept under `out` and reused. Returns (results, predictions).
    """
    store, out = open_store(store), Path(out)
    divisions, keep = splits(store.clips, label), out / "features"
    parts = [judge(store, frozen_features(store, "mel-stats")[0], "mel-stats", label, divisions)]
    random = [frozen_features(store, "random", finetune.arch, s, progress, keep, accelerator)[0] for s in range(seeds)]
    parts += [judge(store, x, "random", label, divisions, s) for s, x in enumerate(random)]
    seen_by = {}
    for name, changes in ABLATION.items():
        for seed in range(seeds):
            config = replace(training.PretrainConfig(arch=finetune.arch, epochs=epochs, seed=seed), **changes)
            run = out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            training.pretrain([store], run, config, resume=True, accelerator=accelerator, progress=progress)
            features, loaded = frozen_features(store, run, progress=progress, keep=keep, accelerator=accelerator)
            parts.append(judge(store, features, name, label, divisions, seed))
            seen_by[name] = seen_by["fine-tuned"] = overlap(store, divisions, loaded)
    defaults = [out / f"{next(iter(ABLATION))}-{seed}" for seed in range(seeds)]
    parts.append(supervised(store, defaults, out, finetune, seeds, accelerator=accelerator, progress=progress))
    predictions = pd.concat(parts, ignore_index=True)
    return summary(predictions, seen_by), predictions


def read_predictions(run: Path | str) -> pd.DataFrame:
    """predictions.csv of a finished run."""
    return pd.read_csv(Path(run) / "predictions.csv", dtype=str, keep_default_na=False).astype({"seed": int})


def evaluate(
    store: MelStore | Path | str, runs: list[Path | str], accelerator: str = "auto"
) -> tuple[dict, pd.DataFrame]:
    """Saved classifiers on the test clips of their task, side by side, each under the name of its folder: (results,
    predictions). Raises `UserError` if one is named twice or they have another task."""
    store = open_store(store)
    parts, seen_by = [], {}
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice: name each once")
    alone = len({Path(run).name for run in runs}) == len(runs)
    for run in runs:
        name = Path(run).name if alone else str(run)
        module, loaded = training.load_classifier(run)
        loaded.check(store)
        module.to(choose_device(accelerator))
        config = module.config
        division = splits(store.clips, config.label, config.fold)[0]
        parts.append(training.predict(module, store, division, name))
        seen_by[name] = overlap(store, [division], loaded)
    predictions = pd.concat(parts, ignore_index=True)
    return summary(predictions, seen_by), predictions


@dataclass
class Embedded:
    """`vectors` float32 [n, d], a row for each row of `clips` (clip_id, path, and what else the table has); `left_out`: path
    and reason of each clip that could not be used."""

    vectors: np.ndarray
    clips: pd.DataFrame
    left_out: pd.DataFrame


def embed_audio(
    source: str | Path | list[str | Path],
    encoder: str | Path = "default",
    accelerator: str = "auto",
    jobs: int = -1,
    arch: str = "b0-small",
    seed: int = 0,
) -> Embedded:
    """Embeddings of audio: of a file, a list of files, a folder (as `corpora.load` reads it), or a store, by the encoder of a
    run folder or the one that comes with the package (`arch` and `seed` are those of `random`). Also known as `colalib.embed`.

    >>> found = colalib.embed("recordings")
    >>> found.vectors.shape, found.clips["path"], found.left_out

    Raises `UserError` if there is no such folder, encoder, or usable clip.
    """
    if encoder != "mel-stats":
        load_encoder(encoder, arch, seed)  # before the long part
    one = isinstance(source, str | Path)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        if one and (Path(source) / "clips.csv").exists():
            store = MelStore(source)
        else:
            if one and not (Path(source).is_file() or Path(source).suffix.lower() in AUDIO):
                corpus = corpora.load(source)
            else:
                files = [Path(os.path.abspath(f)) for f in ([source] if one else source)]
                if not files:
                    raise UserError("no files to embed")
                root = Path(os.path.commonpath([file.parent for file in files]))
                corpus = Corpus("files", root, pd.DataFrame({"path": [f.relative_to(root).as_posix() for f in files]}))
            try:
                store = build(corpus, Path(place) / "store", jobs=jobs, progress=False)
            except UserError as error:
                raise UserError(str(error).split("; all reasons are in")[0]) from None
        vectors, _ = frozen_features(store, encoder, arch, seed, progress=False, accelerator=accelerator)
        return Embedded(vectors, store.clips.drop(columns=["shard", "start", "frames"]), store.quarantine)


def embed_to_file(
    source: str | Path, encoder: str | Path, out: Path | str, accelerator: str = "auto", **random
) -> Embedded:
    """`embed_audio` into an .npz: clip_id, embedding float32 [n, d], the table's columns as fixed-width text (no pickle)."""
    found = embed_audio(source, encoder, accelerator, **random)
    columns = {c: np.array(found.clips[c].tolist(), dtype=str) for c in found.clips}
    with atomic(Path(out)) as file, zipfile.ZipFile(file, "w") as archive:
        for name, values in {"embedding": found.vectors, **columns}.items():  # np.savez takes `file` for itself
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
    return found
