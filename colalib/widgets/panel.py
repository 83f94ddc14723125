"""The training panel (notebooks 3 and 4): change settings, train in a process of its own, watch, stop,
resume, compare runs.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import ipywidgets as w
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from colalib.cola import Cola
from colalib.data.clips import Clips, pretraining_clips, split_validation
from colalib.data.segments import pair_batch
from colalib.data.store import open_store
from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training.runs import CONFIGS, Run, read_checkpoint
from colalib.widgets import parts
from colalib.widgets.choices import keep_choice, read_choices
from colalib.widgets.controls import WIDE, arguments, controls
from colalib.widgets.job import Job

SHOWN = {
    PretrainConfig: (
        "objective", "batch_size", "lr", "filter_db", "mask_bands", "temperature", "margin", "seed",
    ),
    FinetuneConfig: ("labels_per_class", "optimiser", "batch_size", "lr", "weight_decay", "dropout", "seed"),
}  # fmt: skip
CURVES = {"loss": "loss (nats)", "accuracy": "accuracy", "rank": "rank of the positive"}

# --------------------------------------------------------------------------------------------- runs


def runs_of(folder: Path, kind: str) -> list[Run]:
    """Return the runs of a kind ("pretrain", "finetune") in a folder, oldest first."""
    runs = []
    for file in sorted(folder.glob("*/config.json"), key=lambda file: file.stat().st_mtime):
        with suppress(UserError):  # another folder with a config.json, such as a store
            if Run(file.parent).kind == kind:
                runs.append(Run(file.parent))
    return runs


def state(run: Run) -> str:
    """Return "training", "finished" or "stopped"."""
    if Job(run.path).process():
        return "training"
    return "finished" if run.finished else "stopped"


def run_table(folder: Path, kind: str) -> pd.DataFrame:
    """Return one row per run of a kind in a folder, oldest first.

    State, steps, best validation accuracy, and the settings that differ from the defaults.
    """
    usual = dataclasses.asdict(CONFIGS[kind]())
    rows = []
    for run in runs_of(folder, kind):
        metrics = run.metrics()
        valid = metrics["valid/accuracy"].dropna() if "valid/accuracy" in metrics else []
        config = dataclasses.asdict(run.config)
        changed = {name: value for name, value in config.items() if value != usual[name]}
        rows.append(
            {
                "run": run.name,
                "state": state(run),
                "steps": f"{metrics['step'].max():.0f}" if len(metrics) else "0",
                "validation accuracy (%)": f"{100 * valid.max():.1f}" if len(valid) else "",
                "settings": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changed.items()),
            }
        )
    return pd.DataFrame(rows, columns=["run", "state", "steps", "validation accuracy (%)", "settings"])


@torch.no_grad()
def similarities(run: Run, clips: Clips, pairs: int = 24) -> tuple[np.ndarray, int]:
    """Return similarities of anchors and positives from `clips` [pairs, pairs], and their step.

    By the run's own objective, with the weights of its last checkpoint.
    """
    module = Cola(run.config, std=1.0)  # the checkpoint brings its own
    checkpoint = read_checkpoint(run.path / "last.ckpt")
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    anchors, positives = pair_batch(clips, 0, min(pairs, len(clips)), seed=0)
    similarity = module.objective(module.encoder(anchors), module.encoder(positives))[1]
    return similarity.numpy(), checkpoint["global_step"]


def curves(runs: dict[str, pd.DataFrame]) -> Figure:
    """Draw the curves of runs over steps: loss, accuracy, and in pre-training the rank of the positive.

    `runs`: name → metrics. Validation is dashed.
    """
    logged = [
        name
        for name in CURVES
        if any(f"train/{name}" in m and m[f"train/{name}"].notna().any() for m in runs.values())
    ]
    figure = Figure(figsize=(8.1, 2.3 + 0.2 * len(runs) * (len(runs) > 1)), layout="constrained")
    axes = figure.subplots(1, max(len(logged), 1), squeeze=False)[0]
    for ax, name in zip(axes, logged):
        for side in ("train", "valid"):
            column = f"{side}/{name}"
            having = {run: metrics for run, metrics in runs.items() if column in metrics}
            plots.curves(having, column, ax, dashed=side == "valid")
        ax.set(xlabel="step (dashed: validation)", ylabel="", title=CURVES[name], ylim=(0, None))
        if ax.get_legend():
            ax.get_legend().remove()
    if len(runs) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


# ------------------------------------------------------------------------------------------- widget


def training_panel(
    stores: list,
    folder: Path | str,
    kind: type = PretrainConfig,
    names: tuple[str, ...] | None = None,
    starts: dict[str, str | Path | None] | None = None,
) -> TrainingPanel:
    """Show settings to train with, and the curves of the runs in `folder`; train, stop and resume.

    `stores`: paths of the stores to train on. `names`: the settings to show (default: `SHOWN`). In a
    pre-training panel you pick the encoder that the next notebooks use. A fine-tuning panel offers the
    encoders of `starts` to start from (name → run, None: from scratch).

    Training is `python -m colalib pretrain` (or `finetune`) in a process of its own: the notebook stays
    usable, and a restarted kernel finds the training still running.
    """
    return TrainingPanel(stores, folder, kind, names or SHOWN[kind], starts or {})


class TrainingPanel(parts.WidgetWithFallback):
    """Controls of the settings, buttons, what the training says of itself, its curves, and the runs."""

    def __init__(self, stores: list, folder: Path | str, kind: type, names: tuple[str, ...], starts: dict):
        super().__init__()
        self.stores = [str(store) for store in stores]
        self.folder = Path(folder)
        self.command = "pretrain" if kind is PretrainConfig else "finetune"
        self.starts = starts
        self.validation: Clips | None = None  # clips that show how the similarity matrix sharpens
        if self.command == "pretrain":
            self.validation = split_validation(pretraining_clips([open_store(s) for s in self.stores]), 0)[1]
        self.job: Job | None = None
        self.stopping = False
        self.refreshing = False
        self.checkpoint_time = 0.0  # of the checkpoint whose similarities are shown
        self.settings = controls(kind, names)
        self.make_inputs()
        self.make_outputs()
        self.children = self.arrange()
        self.tuned = {**self.settings, "minutes": self.minutes}
        self.defaults = {name: control.value for name, control in self.tuned.items()}
        self.refresh()
        kept = self.tuned | {"show runs": self.overlay}
        if starts:
            kept["start from"] = self.start_from
        parts.persist(f"training_panel_{self.command}", kept)
        self.listen()
        self.ready(True)
        self.draw()
        self.find_running()

    def make_inputs(self) -> None:
        """Make what can be changed and pressed."""
        narrow = {"width": "7em"}
        self.minutes = w.FloatSlider(
            1, min=0.25, max=30, step=0.25, description="minutes", continuous_update=False, **WIDE
        )
        self.run_name = w.Text(description="name of the run", **WIDE)
        options = [(name, str(run or "")) for name, run in self.starts.items()]
        self.start_from = w.Dropdown(options=options, description="start from", **WIDE)
        self.train = w.Button(description="Train", icon="play", button_style="primary", layout=narrow)
        self.stop = w.Button(description="Stop", icon="stop", layout=narrow)
        self.resume = w.Button(description="Resume", icon="forward", layout=narrow)
        self.usual = w.Button(description="defaults", icon="undo", layout=narrow)
        self.usual.tooltip = "set all settings back to their defaults"
        self.overlay = w.SelectMultiple(description="show runs", rows=4, **WIDE)
        wide = {"description_width": "initial"}
        self.encoder = w.Dropdown(description="encoder to go on with", style=wide)

    def make_outputs(self) -> None:
        """Make what shows how the training goes."""
        self.bar = w.FloatProgress(0, min=0, max=1, layout={"width": "28em"})
        self.status = w.HTML()
        self.failure = w.HTML()
        self.curves = w.HTML()
        self.matrix = w.HTML()
        self.overview = w.HTML()

    def arrange(self) -> list[w.Widget]:
        """Return the rows of the widget."""
        flow = parts.ROW | {"align_items": "flex-start"}
        buttons = w.HBox([self.train, self.stop, self.resume, self.usual], layout=parts.ROW)
        start_from = [self.start_from] if self.starts else []
        left = [*self.settings.values(), *start_from, self.minutes, self.run_name, buttons]
        left += [self.bar, self.status, self.failure]
        right = w.VBox([self.curves, self.matrix], layout={"flex": "1 1 24em", "min_width": "0"})
        encoder = [self.encoder] if self.command == "pretrain" else []
        below = [self.overview, w.VBox([self.overlay, *encoder])]
        return [
            w.HBox([w.VBox(left, layout={"width": "30em"}), right], layout=flow),
            w.HBox(below, layout=flow),
        ]

    def listen(self) -> None:
        """Connect buttons and controls with what they do."""
        self.train.on_click(self.start_training)
        self.stop.on_click(self.stop_training)
        self.resume.on_click(self.resume_training)
        self.usual.on_click(self.restore)
        self.overlay.observe(self.draw, "value")
        self.encoder.observe(self.pick_encoder, "value")

    def find_running(self) -> None:
        """Watch a training that an earlier kernel, or an earlier run of the cell, began."""
        records = self.folder.glob("*.job.json")
        jobs = [Job(record.with_name(record.name.removesuffix(".job.json"))) for record in records]
        if running := [job for job in jobs if job.process()]:
            self.watch(running[-1])

    # what the buttons do

    def start_training(self, _) -> None:
        """Train with the settings as they are."""
        if self.train.disabled:  # pressed twice
            return
        name = self.run_name.value.strip()
        if not name or Path(name).name != name:
            self.status.value = "Give the run a name without slashes."
            return
        given = [self.command, *self.stores, *arguments(self.settings), "--minutes", str(self.minutes.value)]
        if self.command == "finetune":
            given += ["--encoder", self.start_from.value] if self.start_from.value else ["--scratch"]
        self.watch(Job.start(self.folder / name, given))

    def stop_training(self, _) -> None:
        """Stop the training; it can be resumed."""
        if self.job:
            self.stopping = True
            self.say("stopping …")
            self.job.stop()

    def resume_training(self, _) -> None:
        """Go on with the stopped run."""
        if self.resume.disabled or not (name := self.stopped_run()):
            return
        given = Job(self.folder / name).recorded()["given"]
        self.watch(Job.start(self.folder / name, [*given, *({"--resume"} - {*given})]))

    def restore(self, _) -> None:
        """Set all settings back to their defaults."""
        for name, value in self.defaults.items():
            self.tuned[name].value = value

    def pick_encoder(self, change) -> None:
        """Keep which encoder the next notebooks use."""
        if not self.refreshing:
            keep_choice("encoder", change["new"])

    # how a training is followed

    def watch(self, job: Job) -> None:
        """Show a training from now on until it ends."""
        self.job = job
        self.stopping = False
        self.checkpoint_time = 0.0
        self.ready(False)
        self.failure.value = ""
        self.matrix.value = ""
        self.bar.value = 0
        self.say("starting …")
        threading.Thread(target=self.follow, args=(job,), daemon=True).start()

    def follow(self, job: Job) -> None:
        """Show what a training does until it ends, and how it ended. Runs in a thread of its own."""
        try:
            while job.process():
                time.sleep(0.7)
                self.show_progress(job.run)
            self.show_progress(job.run)
            error = job.error()
            begun = "stopped. Press Resume to go on." if job.run.exists else "stopped before it had begun"
            self.say("failed" if error else "finished" if job.run.finished else begun)
        except Exception as problem:  # nobody else reports what goes wrong in a thread
            error = f"{type(problem).__name__}: {problem}"
        style = "color:#b00020;white-space:pre-wrap;margin:0"
        alert = f"<pre role='alert' style='{style}'>{parts.escape(error)}</pre>"
        self.failure.value = alert if error else ""
        self.ready(True)
        self.refresh()
        self.draw()

    def show_progress(self, run: Run) -> None:
        """Show how far a training is: bar, words, curves and similarities."""
        share, seconds = run.progress()
        self.bar.value = share
        if not math.isnan(seconds):
            self.say(f"{100 * share:.0f}%, " + ("stopping …" if self.stopping else f"{seconds:.0f} s left"))
            self.draw()
        checkpoint = run.path / "last.ckpt"
        if self.validation is None or not checkpoint.exists():
            return
        if (written := checkpoint.stat().st_mtime) > self.checkpoint_time:
            self.checkpoint_time = written
            self.show_similarities(run)

    def say(self, words: str) -> None:
        """Say how the training is doing."""
        self.status.value = f"{parts.escape(self.job.run.name)}: {words}"

    def show_similarities(self, run: Run) -> None:
        """Show the similarity matrix of validation pairs by the last checkpoint."""
        try:
            similarity, step = similarities(run, self.validation)
        except (OSError, UserError, RuntimeError):  # the checkpoint is being replaced right now
            return
        figure = Figure(figsize=(3.8, 2.9), layout="constrained")
        plots.similarity_matrix(similarity, figure.subplots(), f"held-out pairs, step {step}")
        words = f"similarity matrix of {len(similarity)} held-out pairs; the diagonal sharpens"
        self.matrix.value = parts.picture(figure, words)

    def ready(self, now: bool) -> None:
        """Switch the buttons: `now` a training can be started, or one runs."""
        self.train.disabled = not now
        self.stop.disabled = now
        self.resume.disabled = not now or not self.stopped_run()

    def stopped_run(self) -> str | None:
        """Return the run to resume: the newest that was stopped, preferably of those shown.

        Only runs that a panel began, because their arguments are recorded.
        """
        stopped = [run.name for run in runs_of(self.folder, self.command) if state(run) == "stopped"]
        stopped = [name for name in stopped if Job(self.folder / name).recorded()]
        shown = [name for name in stopped if name in self.overlay.value]
        return (shown or stopped or [None])[-1]

    def draw(self, *_) -> None:
        """Draw the curves of the chosen runs and of the one that trains."""
        if self.refreshing:
            return
        self.resume.disabled = not self.stop.disabled or not self.stopped_run()
        names = [*self.overlay.value, *([self.job.run.name] if self.job else [])]
        runs = {name: Run(self.folder / name).metrics() for name in dict.fromkeys(names)}
        runs = {name: metrics for name, metrics in runs.items() if len(metrics)}
        words = "curves over steps: loss, accuracy, rank of the positive, of " + ", ".join(runs)
        nothing = "<i>Curves appear here while a run trains.</i>"
        self.curves.value = parts.picture(curves(runs), words) if runs else nothing

    def refresh(self) -> None:
        """Show the runs that are there now, and offer them for curves and as encoders."""
        runs = run_table(self.folder, self.command)
        self.overview.value = parts.table(runs) if len(runs) else "<i>No runs yet: press Train.</i>"
        self.refreshing = True  # what changes now, nobody chose
        shown = self.overlay.value
        self.overlay.options = list(runs["run"])
        self.overlay.value = tuple(name for name in shown if name in self.overlay.options)
        finished = [name for name in runs["run"][runs["state"] == "finished"] if name != "pretrained"]
        encoders = {"": "the course's own"} | {str(self.folder / name): name for name in finished}
        self.encoder.options = [(name, path) for path, name in encoders.items()]
        picked = read_choices().get("encoder", "")
        self.encoder.value = picked if picked in encoders else ""
        self.refreshing = False
        taken = {path.name for path in self.folder.glob("*")}
        self.run_name.value = next(name for i in count(1) if (name := f"run-{i}") not in taken)

    def static_figure(self) -> Figure:
        """Return the curves of the last runs."""
        # more than six lines cannot be told apart
        runs = {run.name: run.metrics() for run in runs_of(self.folder, self.command)[-6:]}
        return curves({name: metrics for name, metrics in runs.items() if len(metrics)})
