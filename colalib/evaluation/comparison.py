"""Whole comparisons: features and trained classifiers on one task, side by side.

Each comparison collects predictions on test clips in one table; `intervals` turns the table into
accuracies and intervals.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from colalib import training
from colalib.data.splits import Split, evaluation_splits
from colalib.data.store import MelStore, open_store
from colalib.encoder import choose_device
from colalib.errors import UserError
from colalib.evaluation.intervals import summary
from colalib.evaluation.probes import evaluate_features, knn, linear_probe
from colalib.evaluation.sources import EncoderSource, MelStatsSource, feature_source
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training.runs import Run, open_run

ABLATION = {  # what differs from the defaults of PretrainConfig
    "bilinear": {},
    "cosine": {"objective": "cosine"},
    "triplet": {"objective": "triplet"},
    "bilinear, 16 pairs": {"batch_size": 16},
    "bilinear, 256 pairs": {"batch_size": 256},
    "bilinear, no augmentation": {"filter_db": 0.0, "mask_bands": 0},
}
# the content of results.json, and the predictions that it was made from
Results = tuple[dict, pd.DataFrame]


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
) -> Results:
    """Judge one source of features (see `feature_source`) by a linear probe on one task."""
    store = open_store(store)
    splits = evaluation_splits(store.clips, label, fold, folds)
    source = feature_source(encoder, arch, seed, accelerator, progress)
    predictions = evaluate_features(store, source.of_store(store), source.name, label, splits, seed)
    return summary(predictions, {source.name: source.overlap(store, splits)}), predictions


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
) -> Results:
    """Compare on one task: mel-stats, random, probe and kNN of `encoder`, scratch and fine-tuned.

    `encoder` is one run, or a list of runs that differ in their seed: number s is then the encoder
    of seed s. `{fold}` in a name stands for the test fold: each fold then has an encoder of its own,
    which has not heard it (`pretrain` with `leave_out`). `finetune` sets the supervised runs (None:
    frozen features only; see `supervised`). Each number of `labels_per_class` (None: all) adds its
    own rows of mel-stats, probe, scratch and fine-tuned. Features and runs are kept under `out` and
    used again.
    """
    store, out = open_store(store), Path(out)
    keep = out / "features"
    splits = evaluation_splits(store.clips, label, fold, folds)
    encoders = encoder if isinstance(encoder, list) else [encoder]
    names = dict.fromkeys(in_fold(encoder, split) for encoder in encoders for split in splits)
    sources = {name: feature_source(name, accelerator=accelerator, progress=progress) for name in names}
    arch = getattr(next(iter(sources.values())), "arch", FinetuneConfig.arch)
    if finetune is not None and not all(getattr(source, "run", None) for source in sources.values()):
        raise UserError("only an encoder of a run folder can be fine-tuned: add --frozen")
    if finetune is not None and folds:
        raise UserError("supervised runs follow the corpus' own split: leave out --folds, or add --frozen")
    mel_stats = MelStatsSource().of_store(store)
    parts = [evaluate_features(store, mel_stats, "mel-stats", label, splits)]
    for seed in range(seeds):
        random = EncoderSource(None, arch, seed, accelerator, progress).of_store(store, keep)
        parts.append(evaluate_features(store, random, "random", label, splits, seed))
    features = {name: source.of_store(store, keep) for name, source in sources.items()}
    for seed, encoder in enumerate(encoders):
        for split in splits:
            x = features[in_fold(encoder, split)]
            for model, method in (("probe", linear_probe), ("kNN", knn)):
                parts.append(evaluate_features(store, x, model, label, [split], seed, method))
    for k in filter(None, labels_per_class):
        for seed in range(seeds):
            for split in splits:
                of_encoder = features[in_fold(encoders[seed % len(encoders)], split)]
                for model, x in (("mel-stats", mel_stats), ("probe", of_encoder)):
                    parts.append(evaluate_features(store, x, model, label, [split], seed, labels_per_class=k))
    if finetune is not None:
        config = replace(finetune, label=label, arch=arch)
        for k in labels_per_class:
            parts.append(supervised(store, encoders, out, config, seeds, k, fold, accelerator, progress))
    predictions = pd.concat(parts, ignore_index=True)
    heard = [
        [sources[in_fold(encoder, split)].overlap(store, [split]) for split in splits] for encoder in encoders
    ]
    seen = None if any(None in of for of in heard) else max(map(sum, heard))
    return summary(predictions, dict.fromkeys(("probe", "kNN", "fine-tuned"), seen)), predictions


def in_fold(encoder: str | Path, split: Split) -> str:
    """Return the name of the encoder that is judged on a fold: `{fold}` stands for the test fold."""
    if "{fold}" in str(encoder) and not split.fold:
        raise UserError("{fold} in the name of an encoder needs a corpus with folds, or --folds")
    return str(encoder).replace("{fold}", split.fold)


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
    """Train one classifier from scratch and from `encoder`, per seed and fold; return the predictions.

    `labels_per_class` labelled clips per class are used (None: all). Of several encoders, seed s
    starts from number s, and from the first again when they are used up (`{fold}` as in `compare`).
    The runs are kept under `out` and used again.
    """
    store, parts = open_store(store), []
    encoders = encoder if isinstance(encoder, list) else [encoder]
    for split in evaluation_splits(store.clips, config.label, fold):
        for seed in range(seeds):
            pretrained = in_fold(encoders[seed % len(encoders)], split)
            for model, start in (("scratch", None), ("fine-tuned", pretrained)):
                name = f"{model}-{config.label}-{labels_per_class or 'all'}-{split.fold or 'split'}-{seed}"
                run_config = replace(
                    config, fold=split.fold or None, labels_per_class=labels_per_class, seed=seed
                )
                run = training.finetune(
                    store,
                    Path(out) / name,
                    run_config,
                    start,
                    resume=True,
                    accelerator=accelerator,
                    progress=progress,
                )
                budget = "" if labels_per_class is None else str(labels_per_class)
                parts.append(Run(run).predictions().assign(model=model, labels_per_class=budget))
    return pd.concat(parts, ignore_index=True)


def ablation(
    store: MelStore | Path | str,
    out: Path | str,
    finetune: FinetuneConfig,
    seeds: int = 3,
    accelerator: str = "auto",
) -> Results:
    """Repeat the paper's comparisons in miniature (COLA, section 4.2), and compare our augmentations.

    Similarity, batch size, frozen against fine-tuned: every setting of `ABLATION` is pre-trained on `store`
    for the epochs of `finetune`, so that all have heard the same clips equally often, and judged by its
    linear probe; scratch and fine-tuned stand beside the defaults. Runs and features are kept under `out`
    and used again.
    """
    store, out, label = open_store(store), Path(out), finetune.label
    keep = out / "features"
    splits = evaluation_splits(store.clips, label)
    parts = [evaluate_features(store, MelStatsSource().of_store(store), "mel-stats", label, splits)]
    for seed in range(seeds):
        random = EncoderSource(None, finetune.arch, seed, accelerator, True).of_store(store, keep)
        parts.append(evaluate_features(store, random, "random", label, splits, seed))
    overlap = {}
    for name, changes in ABLATION.items():
        for seed in range(seeds):
            config = replace(PretrainConfig(arch=finetune.arch, epochs=finetune.epochs, seed=seed), **changes)
            run = ablation_run(out, name, seed)
            training.pretrain([store], run, config, resume=True, accelerator=accelerator)
            source = EncoderSource(open_run(run), accelerator=accelerator, progress=True)
            parts.append(evaluate_features(store, source.of_store(store, keep), name, label, splits, seed))
            overlap[name] = overlap["fine-tuned"] = source.overlap(store, splits)
    defaults = [ablation_run(out, next(iter(ABLATION)), seed) for seed in range(seeds)]
    parts.append(supervised(store, defaults, out, finetune, seeds, accelerator=accelerator))
    predictions = pd.concat(parts, ignore_index=True)
    return summary(predictions, overlap), predictions


def ablation_run(out: Path, setting: str, seed: int) -> Path:
    """Return the run folder of a setting of `ABLATION`."""
    return out / f"{setting.replace(', ', '-').replace(' ', '-')}-{seed}"


def evaluate(store: MelStore | Path | str, runs: list[Path | str], accelerator: str = "auto") -> Results:
    """Judge saved classifiers on the test clips of their task, each under the name of its folder.

    Raises `UserError` if one is named twice, they have different tasks, or a clip has a class that one was
    not trained on.
    """
    store = open_store(store)
    parts, overlap = [], {}
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice: name each once")
    names_differ = len({Run(run).name for run in runs}) == len(runs)
    for run in runs:
        name = Run(run).name if names_differ else str(run)
        module, opened = training.load_classifier(run)
        opened.check_mel(store)
        module.to(choose_device(accelerator))
        if module.config.fold and module.config.fold not in set(store.clips["split"]):
            raise UserError(f"{run} is for fold {module.config.fold!r}, which {store.path} does not have")
        split = evaluation_splits(store.clips, module.config.label, module.config.fold)[0]
        if others := set(store.clips[module.config.label].iloc[split.test]) - set(module.classes):
            raise UserError(
                f"{run} was not trained on class {min(others)!r}, but on {', '.join(module.classes[:10])}: "
                "it can judge no store that has others"
            )
        parts.append(training.predict(module, store, split, name))
        overlap[name] = opened.overlap(store, [split])
    predictions = pd.concat(parts, ignore_index=True)
    return summary(predictions, overlap), predictions
