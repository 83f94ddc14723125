"""The command line: `python -m colalib COMMAND …`. Every command is one call of the package; nothing is computed here."""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import sys
from pathlib import Path

from colalib.errors import UserError
from colalib.settings import ARCHITECTURES, FinetuneConfig, PretrainConfig

TYPES = {"int": int, "float": float, "str": str}


def main(argv: list[str] | None = None) -> None:
    """Run one command. Exits 0 on success; for what a user got wrong, for a full disk and for Ctrl-C it prints one line and
    exits non-zero."""
    args = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows another
    try:
        args.call(args)
    except UserError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail(
            "interrupted: what was finished is kept, call the same command again to go on (training: with --resume)",
            130,
        )
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{where}: mend that and call again; finished parts are kept", 1)


def fail(text: str, code: int) -> None:
    """Print one line to standard error and leave."""
    from colalib.files import leads

    if leads():  # of several processes one speaks
        print(f"colalib: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)


# ------------------------------------------------------------------------------------------------ commands


def course(args) -> None:
    from colalib import course

    sys.exit(course.run(args.runs, args.only))


def list_corpora(args) -> None:
    from colalib import corpora

    for name, text in corpora.KNOWN.items():
        there = "to be fetched" if name in corpora.PARTS else "rendered when asked for"
        if corpora.place(name, args.data).is_dir():
            there = "on disk"
        print(f"{name:15} {text} [{there}]")
    print("FOLDER          any folder with an index.csv, one sub-folder a class, or unlabelled audio")


def fetch(args) -> None:
    from colalib import corpora
    from colalib.corpora import download

    if args.name in corpora.PARTS and args.licence is None:
        print(f"{args.name}: {corpora.KNOWN[args.name]}")
        for archive in (download.ARCHIVES[part] for part in corpora.PARTS[args.name]):
            print(f"  {archive.url}: {archive.packed / 1e9:.2f} GB, unpacked up to {archive.unpacked / 1e9:.1f} GB")
        licence = download.ARCHIVES[corpora.PARTS[args.name][-1]].licence
        raise UserError(f"nothing fetched yet: if you accept the licence, add --licence {licence!r}")
    for folder in corpora.fetch(args.name, args.licence, args.data):
        print(folder)
    where = f" --data {args.data}" if args.data else ""
    print(f"next: python -m colalib prepare {args.name} --out stores/{args.name}{where}")


def prepare(args) -> None:
    from colalib import corpora, store

    kwargs = {"clips_per_class": args.clips_per_class} if args.clips_per_class else {}
    corpus = corpora.load(args.corpus, labels=args.labels, data=args.data, jobs=args.jobs, **kwargs)
    with store.backend(args.backend, args.scheduler):
        made = store.build(corpus, args.out, jobs=args.jobs)
    hours = made.mel.seconds(made.clips["frames"].sum()) / 3600
    print(f"{made.path}: {len(made)} clips, {hours:.2f} h of log-mel frames")
    if len(made.quarantine):
        path, reason = made.quarantine.iloc[0][["path", "reason"]]
        print(
            f"{len(made.quarantine)} clips left out, listed in {made.path / 'quarantine.csv'}; the first: {path}: {reason}"
        )


def pretrain(args) -> None:
    from colalib import training
    from colalib.files import leads

    config = configure(PretrainConfig, args, {"minutes": 10.0})
    trainer = {"devices": args.devices, "num_nodes": args.nodes, "strategy": args.strategy}
    trainer |= {"precision": args.precision} if args.precision else {}
    out = training.pretrain(args.store, args.out, config, args.resume, args.accelerator, trainer=trainer)
    if leads():
        print(f"encoder in {out}; judge it with: python -m colalib probe {args.store[0]} --encoder {out}")


def finetune(args) -> None:
    from colalib import evaluation, training

    if bool(args.encoder) == args.scratch:
        raise UserError("give --encoder ENC or --scratch, one of the two")
    config = configure(FinetuneConfig, args, {"epochs": 20})
    out = training.finetune(args.store, args.out, config, args.encoder, args.resume, args.accelerator)
    report(*evaluation.evaluate(args.store, [out], args.accelerator), out / "results.json")


def evaluate(args) -> None:
    from colalib import evaluation

    report(*evaluation.evaluate(args.store, args.run, args.accelerator), args.out)


def probe(args) -> None:
    from colalib import evaluation

    task = args.label, args.fold, args.folds, args.arch, args.seed
    report(*evaluation.probe(args.store, args.encoder, *task, accelerator=args.accelerator), args.out)


def compare(args) -> None:
    from colalib import evaluation

    out = Path(args.out)
    counts = tuple(args.labels_per_class or [None])
    length = {name: getattr(args, name) for name in ("minutes", "steps", "epochs") if getattr(args, name)}
    supervised = FinetuneConfig(**length or {"epochs": 20})
    if args.frozen:
        supervised = None
    results = evaluation.compare(
        args.store,
        args.encoder,
        out.with_suffix(""),
        args.label,
        args.seeds,
        counts,
        args.fold,
        args.folds,
        supervised,
        args.accelerator,
    )
    report_comparison(*results, out)


def ablate(args) -> None:
    from colalib import evaluation

    out = Path(args.out)
    finetune = FinetuneConfig(label=args.label, arch=args.arch, epochs=args.epochs)
    results = evaluation.ablation(
        args.store, out.with_suffix(""), args.epochs, finetune, args.label, args.seeds, args.accelerator
    )
    report_comparison(*results, out)


def report_comparison(results: dict, predictions, out: Path) -> None:
    """`report`, the paired differences between rows of one label budget, and the figure beside `out`."""
    from matplotlib.figure import Figure

    from colalib import intervals, plots
    from colalib.files import atomic

    report(results, predictions, out)
    budget = [[m[m.find(" (") :] if " (" in m else "" for m in (d["a"], d["b"])] for d in results["differences"]]
    print(intervals.differences(results)[[a == b for a, b in budget]].to_string(index=False))
    plots.style()
    figure = Figure(figsize=(8, 1 + 0.35 * len(results["results"])))
    plots.results(results, figure.add_subplot())
    with atomic(out.with_suffix(".png")) as file:
        figure.savefig(file, dpi=150, bbox_inches="tight")


def embed(args) -> None:
    from colalib import evaluation

    random = {"arch": args.arch, "seed": args.seed}
    found = evaluation.embed_to_file(args.source, args.encoder, args.out, args.accelerator, **random)
    print(f"{args.out}: {len(found.vectors)} embeddings of {found.vectors.shape[1]} numbers")
    if len(found.left_out):
        print(f"{len(found.left_out)} clips left out:")
        print(found.left_out.to_string(index=False, header=False))


def export(args) -> None:
    from colalib.export import to_onnx

    print(f"{args.out}: written; onnxruntime's results differ from torch's by {to_onnx(args.encoder, args.out):.1e}")


def bench(args) -> None:
    from colalib import bench

    bench.run(quick=args.quick)


# ------------------------------------------------------------------------------------------------ helpers


def configure(kind, args, default: dict):
    """The config dataclass from the options that were given. With --resume the run's own settings fill in the others; else
    `default` says how long to train."""
    from colalib.files import read_json

    names = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    length = {"steps", "epochs", "minutes"}
    if args.resume and (Path(args.out) / "config.json").exists():
        made = read_json(Path(args.out) / "config.json", "a run").get("config", {})
        if length & given.keys():
            made = {name: value for name, value in made.items() if name not in length}
        return kind(**{name: value for name, value in made.items() if name in names} | given)
    if not length & given.keys():
        given |= default
    return kind(**given)


def report(results: dict, predictions, out: str | Path | None) -> None:
    """Print the table of results; write results.json and predictions.csv if `out` names a file."""
    from colalib import intervals

    if out:
        intervals.save(results, out, predictions)
    print(f"{results['task']}: {results['n_clips']} {results['split']} clips, accuracy in %")
    print(intervals.table(results).to_string(index=False))
    for row in results["results"]:
        if row["pretrain_overlap"]:
            print(
                f"note: {row['model']}: {row['pretrain_overlap']} of its test clips were in pre-training (without labels)"
            )
    if out:
        print(f"written to {out}")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults behind an option's text, where there are any."""

    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


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


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 2**63 - 1")
    return value


def file(suffix: str):
    """The type of an option that names a file to write."""

    def check(text: str) -> str:
        if Path(text).suffix != suffix or Path(text).is_dir():
            raise argparse.ArgumentTypeError(f"must name a file that ends in {suffix}, not {text!r}")
        return text

    return check


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m colalib", description="Contrastive learning of audio representations (COLA)."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name, call, text):
        made = commands.add_parser(name, help=text, description=text, formatter_class=Help)
        made.set_defaults(call=call)
        return made

    def training_length(made):
        length = made.add_mutually_exclusive_group()
        length.add_argument("--minutes", type=positive, help="train so many minutes of wall clock")
        length.add_argument("--steps", type=count, help="train so many steps (batches)")
        length.add_argument("--epochs", type=positive, help="train so many passes over the clips")

    def training_options(made, kind):
        """An option for every setting of a config dataclass; None where it is not given."""
        made.add_argument("--out", required=True, metavar="RUN", help="run folder to write")
        training_length(made)
        for field in dataclasses.fields(kind):
            if field.name in ("minutes", "steps", "epochs"):
                continue
            about, shown = field.metadata, {} if field.default is None else {"default": field.default}
            shown |= {"paper": about["paper"]} if "paper" in about else {}
            text = about["text"] + (f" ({', '.join(f'{k} {v}' for k, v in shown.items())})" if shown else "")
            how = {"choices": about.get("choices"), "type": TYPES.get(field.type.removesuffix(" | None"))}
            if field.type == "bool":
                how = {"action": argparse.BooleanOptionalAction}
            made.add_argument("--" + field.name.replace("_", "-"), default=None, help=text.replace("%", "%%"), **how)
        made.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own settings")
        accelerator(made)

    def accelerator(made):
        made.add_argument(
            "--accelerator", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="where to compute"
        )

    def store(made, **how):
        made.add_argument("store", help="folder that prepare wrote", **how)

    def task(made):
        made.add_argument("--label", default="label", metavar="COLUMN", help="column of the store's table to predict")
        made.add_argument("--fold", help="test fold, for corpora with folds (default: each in turn)")
        made.add_argument("--folds", type=count, help="make so many new grouped folds instead of the corpus' own split")

    def encoder(made, extra=""):
        made.add_argument("--encoder", required=True, metavar="ENC", help=f"a run folder, default, or random{extra}")
        made.add_argument("--arch", choices=ARCHITECTURES, default="b0-small", help="of the random encoder")
        made.add_argument("--seed", type=seed, default=0, help="of the random encoder")

    made = command("course", course, "build the demo corpus, run all notebooks in order, print the table of results")
    made.add_argument(
        "--runs", default=None, help="folder for runs, executed notebooks and results.json (default: runs/)"
    )
    made.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="only notebooks whose names start so, e.g. 01")

    made = command("corpora", list_corpora, "known corpora, and which are on disk")
    made.add_argument("--data", help="folder where corpora lie (default: COLA_DATA, else data/)")

    made = command("fetch", fetch, "fetch a public corpus")
    made.add_argument("name", help="fma_small, fma_medium, fma_large, esc50, esc10, fsdd, speech_commands or nsynth")
    made.add_argument(
        "--licence", help="the licence that you accept, by its name; without it the call tells which it is"
    )
    made.add_argument("--data", help="folder where corpora lie (default: COLA_DATA, else data/)")

    made = command("prepare", prepare, "turn a corpus into a store of log-mel frames")
    made.add_argument("corpus", help="scores, a corpus that was fetched, or a folder of audio")
    made.add_argument(
        "--out", required=True, metavar="STORE", help="folder to write; an interrupted call goes on when repeated"
    )
    made.add_argument("--jobs", type=int, default=-1, help="processes; -1: all cores, or all of a cluster")
    made.add_argument(
        "--backend",
        choices=["loky", "multiprocessing", "threading", "dask"],
        help="of joblib: processes (default: loky), threads, a cluster",
    )
    made.add_argument("--scheduler", metavar="ADDRESS", help="of the Dask cluster")
    made.add_argument(
        "--labels", choices=["folder", "none"], help="sub-folders are classes, or no labels (default: by the layout)"
    )
    made.add_argument("--data", help="folder where corpora lie (default: COLA_DATA, else data/)")
    made.add_argument("--clips-per-class", type=count, help="size of the rendered corpus `scores` (default 200)")

    made = command(
        "pretrain", pretrain, "pre-train an encoder by contrast on stores, without labels (default: 10 minutes)"
    )
    store(made, nargs="+")
    training_options(made, PretrainConfig)
    made.add_argument("--devices", type=count, default=1, help="processes on this machine, one a GPU")
    made.add_argument("--nodes", type=count, default=1, help="machines (started by torchrun or srun)")
    made.add_argument(
        "--strategy", choices=["auto", "ddp"], default="auto", help="of Lightning: how devices share the work"
    )
    made.add_argument(
        "--precision",
        choices=["32-true", "bf16-mixed", "16-mixed"],
        help="of Lightning (default: bf16-mixed on cuda, else 32-true)",
    )

    made = command(
        "finetune", finetune, "train a classifier from an encoder or from scratch (default: 20 epochs), test it once"
    )
    store(made)
    made.add_argument("--encoder", metavar="ENC", help="run folder of a pre-trained encoder, or default")
    made.add_argument("--scratch", action="store_true", help="start from random weights")
    training_options(made, FinetuneConfig)

    made = command("evaluate", evaluate, "saved classifiers on the test clips, side by side")
    store(made)
    made.add_argument("run", nargs="+", help="folder that finetune wrote")
    made.add_argument("--out", type=file(".json"), metavar="FILE.json", help="table; the predictions lie beside it")
    accelerator(made)

    made = command("probe", probe, "linear probe of a frozen encoder, or of mel statistics")
    store(made)
    encoder(made, ", or mel-stats")
    task(made)
    made.add_argument("--out", type=file(".json"), metavar="FILE.json", help="table; the predictions lie beside it")
    accelerator(made)

    made = command(
        "compare", compare, "mel-stats, random, probe, kNN, scratch and fine-tuned (default: 20 epochs) in one table"
    )
    store(made)
    runs = "run folder of a pre-trained encoder, or default; several that differ in their seed count as seeds of one"
    made.add_argument("--encoder", required=True, nargs="+", metavar="ENC", help=runs)
    made.add_argument("--seeds", type=count, default=3, help="seeds of random, scratch and fine-tuned")
    made.add_argument(
        "--labels-per-class", type=count, nargs="+", metavar="K", help="label budgets (default: all labels)"
    )
    training_length(made)  # of each supervised run; 20 epochs if it is not given
    made.add_argument("--frozen", action="store_true", help="frozen features only: no supervised runs")
    made.add_argument(
        "--out",
        type=file(".json"),
        default="results.json",
        metavar="FILE.json",
        help="table; its figure and the runs lie beside it",
    )
    task(made)
    accelerator(made)

    made = command(
        "ablate", ablate, "the paper's comparisons in miniature: similarity, batch size, augmentation, fine-tuning"
    )
    store(made)
    made.add_argument("--epochs", type=positive, default=20, help="of every training: passes over the clips")
    made.add_argument("--seeds", type=count, default=3, help="trainings of each setting")
    made.add_argument("--label", default="label", metavar="COLUMN", help="column of the store's table to predict")
    made.add_argument("--arch", choices=ARCHITECTURES, default="b0-small", help="encoder")
    made.add_argument(
        "--out",
        type=file(".json"),
        default="ablation.json",
        metavar="FILE.json",
        help="table; its figure and the runs lie beside it",
    )
    accelerator(made)

    made = command(
        "embed", embed, "embeddings of a folder or store as .npz: clip_id, embedding [n, d], the table's columns"
    )
    made.add_argument("source", help="folder of audio, or a store")
    encoder(made)
    made.add_argument("--out", type=file(".npz"), required=True, metavar="FILE.npz", help="file to write")
    accelerator(made)

    made = command("export", export, "an encoder as an ONNX file, checked against torch")
    made.add_argument("--encoder", required=True, metavar="ENC", help="a run folder, or default")
    made.add_argument("--out", type=file(".onnx"), required=True, metavar="FILE.onnx", help="file to write")

    made = command("bench", bench, "speed of training and preparing, as ratios to a reference in the same run")
    made.add_argument("--quick", action="store_true", help="shorter, noisier")
    return top
