"""The command line: `python -m colalib COMMAND …`.

Each command reads its options, calls one function of the package and prints what came of it. What a
command needs is imported inside it, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import os
import re
import signal
import sys
import threading
from argparse import ArgumentParser
from pathlib import Path

from colalib.errors import UserError
from colalib.settings import ARCHITECTURES, MAX_SEED, FinetuneConfig, PretrainConfig

TYPES = {"int": int, "float": float, "str": str}  # of a setting, by its annotation
LONGEST_NAME = 200  # bytes of a file to write: file systems take 255, and names made of it are longer
PLACES = {"corpus", "source", "clip", "store", "run", "data", "out", "runs"}  # where "" would be this folder
LENGTHS = ("minutes", "steps", "epochs")  # of which one says how long to train


def main(argv: list[str] | None = None) -> None:
    """Run one command.

    Exits 0 on success. For what a user got wrong it prints one line and exits 2, for an error of
    the machine (a full disk) 1, for Ctrl-C 130.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as in `>&-`
            setattr(sys, name, open(os.devnull, "w"))
    args = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a terminal that cannot show a character shows another
        sys.stdout.reconfigure(errors="replace")
    try:
        for option in PLACES & vars(args).keys():
            given = getattr(args, option)
            if given == "" or (isinstance(given, list) and "" in given):
                raise UserError(f"{option} is empty: name a file or a folder")
        answer_sigterm()
        args.call(args)
        sys.stdout.flush()
    except UserError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail(
            "interrupted: finished parts are kept. Run the command again to go on (training: with --resume)",
            130,
        )
    except BrokenPipeError:  # the reader of our output has gone, as `head` does: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (MemoryError, RuntimeError) as error:
        words = "out of memory|can't allocate memory"  # torch raises a RuntimeError, of a GPU and of the CPU
        if isinstance(error, RuntimeError) and not re.search(words, str(error)):
            raise
        advice = "run the command again when more is free; finished parts are kept"
        if "batch_size" in args:
            advice += ". Or take a smaller --batch-size, into another --out"
        fail(f"out of memory: {advice}", 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        fail(
            f"{error.strerror or error}{where}: fix this and run the command again; finished parts are kept",
            1,
        )


def answer_sigterm() -> None:
    """Let SIGTERM do as Ctrl-C: workers end, and temporary files go. A forked worker just ends."""
    from colalib.files import STOP

    main_process = os.getpid()

    def end(number, frame):
        if os.getpid() != main_process:
            os._exit(143)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # no other may
        signal.signal(STOP, end)


def fail(text: str, code: int) -> None:
    """Print one line to standard error, and exit."""
    print(f"colalib: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)


# --------------------------------------------------------------------------------------- the course


def course_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--runs", help="folder for runs, executed notebooks and results.json (default: runs/)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NOTEBOOK", help="only notebooks whose names start so, e.g. 01"
    )


def course(args) -> None:
    """Build the demo corpus, run all notebooks in order, print the results."""
    from colalib import course

    sys.exit(course.run(args.runs, args.only))


def lab(args) -> None:
    """Open your own copies of the notebooks in JupyterLab."""
    from colalib import course

    sys.exit(course.lab())


def site_options(parser: ArgumentParser) -> None:
    parser.add_argument("--runs", help="folder that course wrote (default: runs/)")
    parser.add_argument("--out", default="site", metavar="FOLDER", help="folder to write (default: site/)")


def site(args) -> None:
    """Write the executed course as a static site."""
    from colalib.course import site

    out = site.build(args.runs, args.out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out / 'index.html'}: open it in a browser, or put the folder ({size:.0f} MB) on any web server")


def bench_options(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="shorter, noisier")


def bench(args) -> None:
    """Measure the speed of training and preparing, as ratios within the same run."""
    from colalib.course import bench

    bench.run(quick=args.quick)


# --------------------------------------------------------------------------------------------- data


def list_corpora(args) -> None:
    """List known corpora, and say which are on disk."""
    from colalib.data import corpora

    for name, text in corpora.DESCRIPTIONS.items():
        state = "to be fetched" if name in corpora.ARCHIVES_OF else "rendered when asked for"
        if corpora.corpus_folder(name, args.data).is_dir():
            state = "on disk"
        print(f"{name:15} {text} [{state}]")
    print("FOLDER          any folder with an index.csv, one sub-folder per class, or unlabelled audio")


def fetch_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "name", help="fma_small, fma_medium, fma_large, esc50, esc10, fsdd, speech_commands or nsynth"
    )
    parser.add_argument(
        "--licence", help="name of the licence that you accept; without it the command says which it is"
    )
    add_data(parser)


def fetch(args) -> None:
    """Fetch a public corpus."""
    from colalib.data import corpora
    from colalib.data.corpora import download

    if args.name in corpora.ARCHIVES_OF and args.licence is None:
        archives = [download.ARCHIVES[part] for part in corpora.ARCHIVES_OF[args.name]]
        print(f"{args.name}: {corpora.DESCRIPTIONS[args.name]}")
        for archive in archives:
            packed, unpacked = archive.packed / 1e9, archive.unpacked / 1e9
            print(f"  {archive.url}: {packed:.2f} GB, unpacked up to {unpacked:.1f} GB")
        raise UserError(
            f"nothing fetched yet: if you accept the licence, add --licence {archives[-1].licence!r}"
        )
    for folder in corpora.fetch(args.name, args.licence, args.data):
        print(folder)
    where = f" --data {args.data}" if args.data else ""
    print(f"next: python -m colalib prepare {args.name} --out stores/{args.name}{where}")


def prepare_options(parser: ArgumentParser) -> None:
    parser.add_argument("corpus", help="scores, a corpus that was fetched, or a folder of audio")
    parser.add_argument(
        "--out",
        required=True,
        metavar="STORE",
        help="folder to write; an interrupted call goes on when repeated",
    )
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1: all cores, or all of a cluster")
    parser.add_argument(
        "--backend",
        choices=["loky", "multiprocessing", "threading", "dask"],
        help="of joblib: processes (default: loky), threads, a cluster",
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of the Dask cluster")
    parser.add_argument(
        "--labels",
        choices=["folder", "none"],
        help="sub-folders are classes, or no labels (default: by the layout)",
    )
    add_data(parser)
    parser.add_argument(
        "--clips-per-class", type=count, help="size of the rendered corpus `scores` (default 200)"
    )


def prepare(args) -> None:
    """Turn a corpus into a store of log-mel frames."""
    from colalib.data import corpora
    from colalib.data.processes import backend
    from colalib.data.splits import count_leaks, describe_groups, describe_split
    from colalib.data.store import build

    size = {"clips_per_class": args.clips_per_class} if args.clips_per_class else {}
    if size and args.corpus != "scores":
        raise UserError(f"--clips-per-class is the size of `scores`: {args.corpus} has the clips that it has")
    if args.labels and args.corpus in corpora.DESCRIPTIONS:
        raise UserError(f"--labels is for a folder of your own: {args.corpus} has its own labels")
    corpus = corpora.load(args.corpus, labels=args.labels, data=args.data, jobs=args.jobs, **size)
    with backend(args.backend, args.scheduler):
        store = build(corpus, args.out, jobs=args.jobs)
    hours = store.mel.seconds(store.clips["frames"].sum()) / 3600
    print(f"{store.path}: {len(store)} clips, {hours:.2f} h of log-mel frames")
    print(describe_split(store.clips["split"]))
    print(describe_groups(store.clips["group"]))
    if corpus.note:
        print(f"note: {corpus.note}")
    if leaks := count_leaks(store.duplicates):
        print(
            f"note: {leaks} clips sound exactly like clips of another split, listed in "
            f"{store.path / 'duplicates.csv'}: what a model gets right there is memory"
        )
    left_out = store.quarantine
    if len(left_out):
        path, reason = left_out.iloc[0][["path", "reason"]]
        print(f"{len(left_out)} clips left out, listed in {store.path / 'quarantine.csv'}")
        print(f"the first: {path}: {reason}")


# ----------------------------------------------------------------------------------------- training


def pretrain_options(parser: ArgumentParser) -> None:
    add_store(parser, nargs="+")
    add_training(parser, PretrainConfig)
    parser.add_argument("--leave-out", metavar="FOLD", help="fold not to hear, so that it can judge")
    parser.add_argument(
        "--devices",
        type=count,
        default=1,
        help="processes on this machine, one per GPU, which share the batch",
    )
    parser.add_argument("--nodes", type=count, default=1, help="machines (started by torchrun or srun)")
    parser.add_argument(
        "--strategy", choices=["auto", "ddp"], default="auto", help="of Lightning: how devices share the work"
    )
    parser.add_argument(
        "--precision",
        choices=["32-true", "bf16-mixed", "16-mixed"],
        help="of Lightning (default: bf16-mixed on cuda, else 32-true)",
    )


def pretrain(args) -> None:
    """Pre-train an encoder by contrast on stores, without labels (default: 10 minutes)."""
    from colalib import training
    from colalib.files import is_main_process

    config = configure(PretrainConfig, args, {"minutes": 10.0})
    trainer_kwargs = {"devices": args.devices, "num_nodes": args.nodes, "strategy": args.strategy}
    if args.precision:
        trainer_kwargs["precision"] = args.precision
    out = training.pretrain(
        args.store,
        args.out,
        config,
        args.resume,
        args.accelerator,
        trainer_kwargs=trainer_kwargs,
        leave_out=args.leave_out,
    )
    if args.devices * args.nodes == 1 or is_main_process():
        print(f"encoder in {out}; judge it with: python -m colalib probe {args.store[0]} --encoder {out}")


def finetune_options(parser: ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("--encoder", metavar="ENC", help="run folder of a pre-trained encoder, or default")
    parser.add_argument("--scratch", action="store_true", help="start from random weights")
    add_training(parser, FinetuneConfig)


def finetune(args) -> None:
    """Train a classifier from an encoder or from scratch (default: 20 epochs), test it once."""
    from colalib import training
    from colalib.data.splits import evaluation_splits
    from colalib.data.store import MelStore
    from colalib.evaluation.intervals import summary
    from colalib.training.runs import Run

    if bool(args.encoder) == args.scratch:
        raise UserError("give --encoder ENC or --scratch, one of the two")
    config = configure(FinetuneConfig, args, {"epochs": 20})
    store = MelStore(args.store)
    run = Run(training.finetune(store, args.out, config, args.encoder, args.resume, args.accelerator))
    splits = evaluation_splits(store.clips, config.label, config.fold)[:1]
    predictions = run.predictions()
    report(
        summary(predictions, {run.name: run.overlap(store, splits)}), predictions, run.path / "results.json"
    )


# --------------------------------------------------------------------------------------- evaluation


def evaluate_options(parser: ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("run", nargs="+", help="folder that finetune wrote")
    add_out(parser)
    add_accelerator(parser)


def evaluate(args) -> None:
    """Judge saved classifiers on the test clips, side by side."""
    from colalib import evaluation

    check_out(args.out)
    report(*evaluation.evaluate(args.store, args.run, args.accelerator), args.out)


def probe_options(parser: ArgumentParser) -> None:
    add_store(parser)
    add_encoder(parser)
    add_task(parser)
    add_out(parser)
    add_accelerator(parser)


def probe(args) -> None:
    """Judge a frozen encoder, or mel statistics, by a linear probe."""
    from colalib import evaluation

    check_out(args.out)
    task = args.label, args.fold, args.folds, args.arch, args.seed
    report(*evaluation.probe(args.store, args.encoder, *task, accelerator=args.accelerator), args.out)


def compare_options(parser: ArgumentParser) -> None:
    add_store(parser)
    runs = (
        "run folder, default, or with --frozen any MODULE[:PATH]; several count as seeds of one; "
        "{fold} in a name stands for the test fold"
    )
    parser.add_argument("--encoder", required=True, nargs="+", metavar="ENC", help=runs)
    parser.add_argument("--seeds", type=count, default=3, help="seeds of random, scratch and fine-tuned")
    parser.add_argument(
        "--labels-per-class",
        type=budget,
        nargs="+",
        metavar="K",
        help="label budgets of the training side: numbers, or all (default: all); the validation side keeps "
        "all its labels, to choose settings",
    )
    add_length(parser)  # of each supervised run; 20 epochs if it is not given
    parser.add_argument("--frozen", action="store_true", help="frozen features only: no supervised runs")
    add_out(parser, "results.json", "table; its figure and the runs lie beside it")
    add_task(parser)
    add_accelerator(parser)


def compare(args) -> None:
    """Compare mel-stats, random, probe, kNN, scratch and fine-tuned (default: 20 epochs) in one table."""
    from colalib import evaluation

    out = Path(args.out)
    check_out(out, figure=True)
    length = {name: getattr(args, name) for name in LENGTHS if getattr(args, name)} or {"epochs": 20}
    results = evaluation.compare(
        args.store,
        args.encoder,
        out.with_suffix(""),
        args.label,
        args.seeds,
        tuple(args.labels_per_class or [None]),
        args.fold,
        args.folds,
        None if args.frozen else FinetuneConfig(**length),
        args.accelerator,
    )
    report_comparison(*results, out)


def ablate_options(parser: ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument(
        "--epochs", type=positive, default=20, help="of every training: passes over the clips"
    )
    parser.add_argument("--seeds", type=count, default=3, help="trainings of each setting")
    parser.add_argument(
        "--label", default="label", metavar="COLUMN", help="column of the store's table to predict"
    )
    parser.add_argument("--arch", choices=[*ARCHITECTURES], default="b0-small", help="encoder")
    add_out(parser, "ablation.json", "table; its figure and the runs lie beside it")
    add_accelerator(parser)


def ablate(args) -> None:
    """Repeat the paper's comparisons in miniature: similarity, batch size, augmentation, fine-tuning."""
    from colalib import evaluation

    out = Path(args.out)
    check_out(out, figure=True)
    finetune = FinetuneConfig(label=args.label, arch=args.arch, epochs=args.epochs)
    results = evaluation.ablation(args.store, out.with_suffix(""), finetune, args.seeds, args.accelerator)
    report_comparison(*results, out)


def embed_options(parser: ArgumentParser) -> None:
    parser.add_argument("source", help="folder of audio, an audio file, or a store")
    add_encoder(parser, "default")
    parser.add_argument(
        "--every",
        type=positive,
        metavar="SECONDS",
        help="embed a window of 0.98 s every so many seconds, not whole clips; column `start` has its time",
    )
    parser.add_argument(
        "--out",
        type=file(".npz", ".parquet"),
        required=True,
        metavar="FILE",
        help="file to write: .npz for numpy; .parquet (needs: pip install pyarrow) for tables and "
        "`embedding-atlas FILE --x projection_x --y projection_y --neighbors neighbors`, with sound",
    )
    add_accelerator(parser)


def embed(args) -> None:
    """Write embeddings of a folder or store, with the table's columns, as .npz or .parquet."""
    from colalib import evaluation

    embedded = evaluation.embed_to_file(
        args.source, args.encoder, args.out, every=args.every, **sourcing(args)
    )
    print(f"{args.out}: {len(embedded.vectors)} embeddings of {embedded.vectors.shape[1]} numbers")
    tell_left_out(embedded)


def tell_left_out(made) -> None:
    """Print what was not looked at, and path and reason of each clip that could not be used."""
    if made.note:
        print(f"note: {made.note}")
    if len(made.left_out):
        print(f"{len(made.left_out)} clips left out:")
        print(made.left_out.to_string(index=False, header=False))


# ------------------------------------------------------------------------------------- collections


def map_options(parser: ArgumentParser) -> None:
    parser.add_argument("source", help="folder of audio, a store, or the name of a corpus")
    parser.add_argument(
        "--out", type=file(".html"), default="map.html", metavar="FILE.html", help="file to write"
    )
    add_encoder(parser, "default")
    add_accelerator(parser)
    parser.add_argument("--label", nargs="+", metavar="COLUMN", help="columns to colour by before all others")
    parser.add_argument(
        "--inside",
        type=float,
        default=50,
        metavar="MB",
        help="of sounds in the page; the others go to a folder beside it",
    )


def write_map(args) -> None:
    """Write a map of a corpus as one HTML file: points that are heard when pressed."""
    from colalib.widgets import page

    written = page.write_map(
        args.source, args.out, args.encoder, args.label or (), args.inside, **sourcing(args)
    )
    print(f"{args.out}: a map of {written.clips} clips, {written.inside} of their sounds inside")
    if written.beside:
        print(f"{written.beside} sounds are in {written.folder}: keep that folder beside the page")
    if written.missing:
        print(f"{len(written.missing)} sounds are missing (first: {written.missing[0]})")
    tell_left_out(written)


def search_options(parser: ArgumentParser) -> None:
    parser.add_argument("source", help="folder of audio, a store (keeps its embeddings), or a known corpus")
    parser.add_argument("clip", help="a clip_id of SOURCE, or any audio file")
    parser.add_argument("-k", type=count, default=10, help="how many clips to find")
    parser.add_argument("--other-groups", action="store_true", help="leave out the group of CLIP")
    parser.add_argument("--out", type=file(".csv"), metavar="FILE.csv", help="table to write")
    add_encoder(parser, "default")
    add_accelerator(parser)


def search(args) -> None:
    """Find the clips that sound most like one, and at which time (s) they match."""
    from colalib import collection
    from colalib.data.tables import write_table
    from colalib.files import check_ours

    if args.out:
        check_ours(Path(args.out), b"rank,similarity,")
    found = collection.search(
        args.source, args.clip, args.k, args.encoder, args.other_groups, **sourcing(args)
    )
    shown = found.drop(columns=["path"] if (found["path"] == found["clip_id"]).all() else [])
    print(shown.to_string(index=False, float_format="{:.2f}".format))
    if args.out:
        write_table(Path(args.out), found)
        print(f"written to {args.out}")


def audit_options(parser: ArgumentParser) -> None:
    parser.add_argument("source", help="folder of audio, a store (keeps its embeddings), or a known corpus")
    parser.add_argument(
        "--label", metavar="COLUMN", help="labels to check (default: label, if there are any)"
    )
    parser.add_argument(
        "--out", default="audit", metavar="FOLDER", help="folder for findings.csv and findings.html"
    )
    add_encoder(parser, "default")
    add_accelerator(parser)


def audit(args) -> None:
    """Look for leakage, duplicates, wrong labels, and clips that are lonely, clipped, silent or cut off."""
    from colalib import collection
    from colalib.collection import page

    out = Path(args.out)
    page.check_audit_folder(out)
    audited = collection.audit(args.source, args.label, args.encoder, **sourcing(args))
    page.write_audit(audited, out)
    findings = audited.findings
    for kind, number in audited.counts().items():
        print(f"{kind}: {number or 'none'}")
        for finding in findings[findings["kind"] == kind].head(3).itertuples():
            print(f"  {' and '.join(filter(None, [finding.clip_id, finding.other]))}: {finding.words}")
    for note in audited.notes:
        print(f"note: {note}")
    print(f"{audited.clips} clips; written to {out / 'findings.csv'} and, to listen, {out / 'findings.html'}")


def sourcing(args) -> dict:
    """Return how the clips of a collection are embedded, from the options."""
    return {"accelerator": args.accelerator, "arch": args.arch, "seed": args.seed, "progress": True}


def export_options(parser: ArgumentParser) -> None:
    parser.add_argument("--encoder", required=True, metavar="ENC", help="a run folder, or default")
    parser.add_argument("--out", type=file(".onnx"), required=True, metavar="FILE.onnx", help="file to write")


def export(args) -> None:
    """Write an encoder as an ONNX file, checked against torch."""
    from colalib.export import to_onnx

    difference = to_onnx(args.encoder, args.out)
    print(f"{args.out}: written; onnxruntime's results differ from torch's by {difference:.1e}")


# ------------------------------------------------------------------------------------------ reports


def check_out(out: str | Path | None, figure: bool = False) -> None:
    """Refuse --out before anything is computed, if it would overwrite what another program wrote."""
    from colalib.evaluation import intervals

    if out:
        intervals.check_replaceable(out, figure)
    if figure and Path(out).with_suffix("").is_file():
        raise UserError(f"{Path(out).with_suffix('')} is a file, but the runs go there: choose another --out")


def report(results: dict, predictions, out: str | Path | None) -> None:
    """Print the table of results; write results.json and predictions.csv if `out` names a file."""
    from colalib.evaluation import intervals

    if out:
        intervals.save(results, out, predictions)
    print(f"{results['task']}: {results['n_clips']} {results['split']} clips, accuracy in %")
    print(intervals.table(results).to_string(index=False))
    for row in results["results"]:
        if seen := row["pretrain_overlap"]:
            print(f"note: {row['model']}: {seen} of its test clips were in the encoder's training")
        if seen is None:
            print(f"note: {row['model']}: what its encoder has heard in training is not known")
    if results["n_groups"] < intervals.FEW_GROUPS:
        print(f"note: the clips are of {results['n_groups']} groups: with so few, intervals are too narrow")
    if out:
        print(f"written to {out}")


def report_comparison(results: dict, predictions, out: Path) -> None:
    """Do as `report`, print the differences within each label budget, draw the figure beside `out`."""
    from matplotlib.figure import Figure

    from colalib.evaluation import intervals, plots
    from colalib.files import atomic

    report(results, predictions, out)
    budgets = {row["model"]: row.get("labels_per_class") for row in results["results"]}
    same_budget = [budgets[d["a"]] == budgets[d["b"]] for d in results["differences"]]
    print(intervals.differences(results)[same_budget].to_string(index=False))
    plots.style()
    figure = Figure(figsize=(8, 1 + 0.35 * len(results["results"])))
    plots.results(results, figure.add_subplot())
    with atomic(out.with_suffix(".png")) as file:
        figure.savefig(file, dpi=150, bbox_inches="tight", metadata={"Software": intervals.SOFTWARE})


# ------------------------------------------------------------------------------------------ options


def configure(kind, args, default_length: dict):
    """Return the config dataclass `kind` from the options that were given.

    With --resume the run's own settings fill in the others; else `default_length` says how long to
    train.
    """
    from colalib.training.runs import Run

    names = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    run = Run(args.out)
    if args.resume and run.exists:
        kept = {name: value for name, value in dataclasses.asdict(run.config).items() if name in names}
        if given.keys() & set(LENGTHS):
            kept = {name: value for name, value in kept.items() if name not in LENGTHS}
        return kind(**kept | given)
    if not given.keys() & set(LENGTHS):
        given |= default_length
    return kind(**given)


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return value


def budget(text: str) -> int | None:
    return None if text == "all" else count(text)


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 2**63 - 1")
    return value


def file(*suffixes: str):
    """Return the type of an option that names a file to write, with one of these endings."""

    def check(text: str) -> str:
        wanted = " or ".join(suffixes)
        if Path(text).suffix not in suffixes or os.path.isdir(text):
            raise argparse.ArgumentTypeError(f"must name a file that ends in {wanted}, not {text!r}")
        if len(os.fsencode(Path(text).name)) > LONGEST_NAME:
            raise argparse.ArgumentTypeError(f"must name a file of at most {LONGEST_NAME} bytes")
        return text

    return check


def add_data(parser: ArgumentParser) -> None:
    parser.add_argument("--data", help="folder where corpora lie (default: COLA_DATA, else data/)")


def add_store(parser: ArgumentParser, **kwargs) -> None:
    parser.add_argument("store", help="folder that prepare wrote", **kwargs)


def add_accelerator(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--accelerator", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="where to compute"
    )


def add_out(
    parser: ArgumentParser, default: str | None = None, text: str = "table; the predictions lie beside it"
) -> None:
    parser.add_argument("--out", type=file(".json"), default=default, metavar="FILE.json", help=text)


def add_task(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--label", default="label", metavar="COLUMN", help="column of the store's table to predict"
    )
    parser.add_argument("--fold", help="test fold, for corpora with folds (default: each in turn)")
    parser.add_argument(
        "--folds", type=count, help="make so many new grouped folds instead of the corpus' own split"
    )


def add_encoder(parser: ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--encoder",
        required=default is None,
        default=default,
        metavar="ENC",
        help="a run folder, default, random, mel-stats, or MODULE[:PATH] with the HEAR interface",
    )
    parser.add_argument("--arch", choices=[*ARCHITECTURES], default="b0-small", help="of the random encoder")
    parser.add_argument("--seed", type=seed, default=0, help="of the random encoder")


def add_length(parser: ArgumentParser) -> None:
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=positive, help="train so many minutes of wall clock")
    length.add_argument("--steps", type=count, help="train so many steps (batches)")
    length.add_argument("--epochs", type=positive, help="train so many passes over the clips")


def add_training(parser: ArgumentParser, kind) -> None:
    """Add an option for every setting of a config dataclass; None where it is not given."""
    parser.add_argument("--out", required=True, metavar="RUN", help="run folder to write")
    add_length(parser)
    for field in dataclasses.fields(kind):
        if field.name in LENGTHS:
            continue
        about = field.metadata
        notes = [] if field.default is None else [f"default {field.default}"]
        notes += [f"paper {about['paper']}"] if "paper" in about else []
        text = about["text"] + (f" ({', '.join(notes)})" if notes else "")
        if field.type == "bool":
            kwargs = {"action": argparse.BooleanOptionalAction}
        else:
            kwargs = {"choices": about.get("choices"), "type": TYPES[field.type.removesuffix(" | None")]}
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, default=None, help=text.replace("%", "%%"), **kwargs)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, with its own settings; give stores and devices as before",
    )
    add_accelerator(parser)


COMMANDS = {  # name: what it does, whose docstring is its help, and what adds its options
    "course": (course, course_options),
    "site": (site, site_options),
    "lab": (lab, lambda parser: None),
    "corpora": (list_corpora, add_data),
    "fetch": (fetch, fetch_options),
    "prepare": (prepare, prepare_options),
    "pretrain": (pretrain, pretrain_options),
    "finetune": (finetune, finetune_options),
    "evaluate": (evaluate, evaluate_options),
    "probe": (probe, probe_options),
    "compare": (compare, compare_options),
    "ablate": (ablate, ablate_options),
    "embed": (embed, embed_options),
    "search": (search, search_options),
    "audit": (audit, audit_options),
    "map": (write_map, map_options),
    "export": (export, export_options),
    "bench": (bench, bench_options),
}


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default behind an option's text, where there is one."""

    def _get_help_string(self, action):
        return (
            action.help
            if action.default is None or action.default is False
            else super()._get_help_string(action)
        )


def build_parser() -> ArgumentParser:
    top = ArgumentParser(
        prog="python -m colalib", description="Contrastive learning of audio representations (COLA)."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, (call, add_options) in COMMANDS.items():
        text = call.__doc__.removesuffix(".")
        parser = commands.add_parser(name, help=text, description=text, formatter_class=Help)
        parser.set_defaults(call=call)
        add_options(parser)
    return top
