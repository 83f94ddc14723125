"""The training panel (notebooks 3 and 4): change settings, train in a process of its own, watch, stop,
resume, compare runs.
"""

from __future__ import annotations

import math
import os
import threading
import time
from itertools import count
from pathlib import Path

import ipywidgets as w
from matplotlib.figure import Figure

from colalib.data.clips import Clips, pretraining_clips, split_validation
from colalib.data.corpus import UNPRINTABLE
from colalib.data.store import open_store
from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training.runs import Run
from colalib.widgets import overview, parts
from colalib.widgets.choices import change_choice, chosen_encoder
from colalib.widgets.controls import WIDE, arguments, controls
from colalib.widgets.job import Job

SHOWN = {
    PretrainConfig: (
        "objective", "batch_size", "lr", "filter_db", "mask_bands", "temperature", "margin", "seed",
    ),
    FinetuneConfig: (
        "labels_per_class", "optimiser", "batch_size", "lr", "encoder_lr_factor", "weight_decay", "dropout",
        "seed",
    ),
}  # fmt: skip


class TrainingPanel(parts.WidgetWithFallback):
    """Settings to train with, and the curves of the runs in `folder`; train, stop and resume.

    `stores`: paths of the stores to train on. In a pre-training panel you pick the encoder that the next
    notebooks use. A fine-tuning panel offers the encoders of `starts` to start from (name → run, None: from
    scratch).

    Training is `python -m colalib pretrain` (or `finetune`) in a process of its own: the notebook stays
    usable, and a restarted kernel finds the training still running.
    """

    _steps: int | None = None  # tests train by steps, because minutes differ from machine to machine

    def __init__(
        self,
        stores: list,
        folder: Path | str,
        kind: type = PretrainConfig,
        starts: dict[str, str | Path | None] | None = None,
    ):
        super().__init__()
        # absolute: a training that was begun in another folder is found, and resumed with the same paths
        self.stores = [os.path.abspath(store) for store in stores]
        self.folder = Path(os.path.abspath(folder))
        self.command = "pretrain" if kind is PretrainConfig else "finetune"
        self.starts = starts or {}
        self.validation: Clips | None = None  # clips that show how the similarity matrix sharpens
        if self.command == "pretrain":
            self.validation = split_validation(pretraining_clips([open_store(s) for s in self.stores]))[1]
        self.job: Job | None = None
        self.training = False
        self.stopping = False
        self.switching = threading.Lock()  # of the buttons: a training ends in a thread of its own
        self.refreshing = False
        self.checkpoint_time = 0.0  # of the checkpoint whose similarities are shown
        self.judgements: dict[tuple, dict] = {}  # run and time of its checkpoint → what `judge` says
        self.settings = controls(kind, SHOWN[kind])
        self.make_inputs()
        self.make_outputs()
        self.children = self.arrange()
        self.tuned = {**self.settings, "minutes": self.minutes}
        self.defaults = {name: control.value for name, control in self.tuned.items()}
        self.refresh()
        kept = self.tuned | {"show runs": self.overlay}
        if self.starts:
            kept["start from"] = self.start_from
        parts.persist(f"training_panel_{self.command}", kept)
        self.listen()
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
        self.runs = w.HTML()

    def arrange(self) -> list[w.Widget]:
        """Return the rows of the widget."""
        flow = parts.ROW | {"align_items": "flex-start"}
        buttons = w.HBox([self.train, self.stop, self.resume, self.usual], layout=parts.ROW)
        start_from = [self.start_from] if self.starts else []
        left = [*self.settings.values(), *start_from, self.minutes, self.run_name, buttons]
        left += [self.bar, self.status, self.failure]
        right = w.VBox([self.curves, self.matrix], layout={"flex": "1 1 24em", "min_width": "0"})
        encoder = [self.encoder] if self.command == "pretrain" else []
        below = [self.runs, w.VBox([self.overlay, *encoder])]
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
        if running := [job for job in jobs if job.given()[:1] == [self.command] and job.process()]:
            self.watch(running[-1])

    # what the buttons do

    def start_training(self, _) -> None:
        """Train with the settings as they are."""
        if self.train.disabled:  # pressed twice
            return
        name = self.run_name.value.strip()
        if not name or Path(name).name != name or name.startswith(".") or UNPRINTABLE.search(name):
            self.status.value = "Give the run a name: one line, without slashes, and no dot in front."
            return
        length = ["--steps", str(self._steps)] if self._steps else ["--minutes", str(self.minutes.value)]
        given = [self.command, *self.stores, *arguments(self.settings), *length]
        if self.command == "finetune":
            given += ["--encoder", self.start_from.value] if self.start_from.value else ["--scratch"]
        self.begin(name, given)

    def begin(self, name: str, given: list[str]) -> None:
        """Start a training by arguments of the command line and watch it, or say why that cannot be."""
        try:
            job = Job(self.folder / name)
            if job.process():
                raise UserError("it is being trained already")
            if job.run.exists and "--resume" not in given:
                raise UserError(f"{job.run.path} holds a run already: resume it, or choose another name")
            self.watch(Job.start(job.run.path, given))
        except (OSError, ValueError) as error:  # a full disk, a name that no file can have
            self.status.value = f"{parts.escape(name)} cannot be started: {parts.reason(error)}"

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
        given = Job(self.folder / name).given()
        self.begin(name, [*given, *({"--resume"} - {*given})])

    def restore(self, _) -> None:
        """Set all settings back to their defaults."""
        for name, value in self.defaults.items():
            self.tuned[name].value = value

    def pick_encoder(self, change) -> None:
        """Keep which encoder the next notebooks use."""
        if not self.refreshing:
            change_choice("encoder", lambda _: change["new"])

    # how a training is followed

    def watch(self, job: Job) -> None:
        """Show a training from now on until it ends."""
        self.job = job
        self.training = True
        self.stopping = False
        self.checkpoint_time = 0.0
        self.update_buttons()
        self.alert("")
        self.matrix.value = ""
        self.bar.value = 0
        self.say("starting …")
        threading.Thread(target=self.follow, args=(job,), daemon=True).start()

    def follow(self, job: Job) -> None:
        """Show what a training does until it ends, and how it ended. Runs in a thread of its own."""
        running = True
        while running:
            running = bool(job.process())
            try:
                self.show_progress(job.run)
            except Exception as error:  # a damaged file must not end the watching
                self.alert(f"{type(error).__name__}: {error}")
            if running:
                time.sleep(0.7)
        try:
            words = job.error()
            begun = "stopped. Press Resume to go on." if job.run.exists else "stopped before it had begun"
            ended = "failed" if words else "finished" if job.run.finished else begun
            self.refresh()
            self.draw()
        except Exception as error:  # nobody else reports what goes wrong in a thread
            ended, words = "failed", f"{type(error).__name__}: {error}"
        self.alert(words)
        self.say(ended)
        self.training = False
        self.update_buttons()

    def show_progress(self, run: Run) -> None:
        """Show how far a training is: bar, words, curves and similarities."""
        share, seconds = run.progress()
        if not math.isnan(seconds):
            self.bar.value = share
            self.say(f"{100 * share:.0f}%, " + ("stopping …" if self.stopping else f"{seconds:.0f} s left"))
            self.draw()
        checkpoint = run.path / "last.ckpt"
        if self.validation is None or not checkpoint.exists():
            return
        if (written := checkpoint.stat().st_mtime) > self.checkpoint_time:
            self.checkpoint_time = written
            self.show_similarities(run)

    def alert(self, words: str) -> None:
        """Show what went wrong; nothing if there are no words."""
        style = "color:#b00020;white-space:pre-wrap;margin:0"
        self.failure.value = f"<pre role='alert' style='{style}'>{parts.escape(words)}</pre>" if words else ""

    def say(self, words: str) -> None:
        """Say how the training is doing."""
        self.status.value = f"{parts.escape(self.job.run.name)}: {words}"

    def show_similarities(self, run: Run) -> None:
        """Show the similarity matrix of validation pairs by the last checkpoint."""
        try:
            similarity, step = overview.similarities(run, self.validation)
        except (OSError, UserError, RuntimeError):  # the checkpoint is being replaced right now
            return
        figure = Figure(figsize=(3.8, 2.9), layout="constrained")
        plots.similarity_matrix(similarity, figure.subplots(), f"held-out pairs, step {step}")
        words = f"similarity matrix of {len(similarity)} held-out pairs; the diagonal sharpens"
        self.matrix.value = parts.picture(figure, words)

    def update_buttons(self) -> None:
        """Switch the buttons to what can be done now. Train comes last: then all is decided."""
        with self.switching:
            self.resume.disabled = self.training or not self.stopped_run()
            self.stop.disabled = not self.training
            self.train.disabled = self.training

    def stopped_run(self) -> str | None:
        """Return the run to resume: the newest that was stopped, preferably of those shown.

        Only runs that a panel began, because their arguments are recorded.
        """
        runs = overview.runs_of(self.folder, self.command)
        stopped = [run.name for run in runs if overview.state(run) == "stopped"]
        stopped = [name for name in stopped if Job(self.folder / name).given()[:1] == [self.command]]
        shown = [name for name in stopped if name in self.overlay.value]
        return (shown or stopped or [None])[-1]

    def draw(self, *_) -> None:
        """Draw the curves of the chosen runs and of the one that trains."""
        if self.refreshing:
            return
        self.update_buttons()
        names = [*self.overlay.value, *([self.job.run.name] if self.job else [])]
        runs = {name: overview.metrics_of(Run(self.folder / name)) for name in dict.fromkeys(names)}
        runs = {name: metrics for name, metrics in runs.items() if len(metrics)}
        words = "curves over steps: loss, accuracy, rank of the positive, of " + ", ".join(runs)
        nothing = "<i>Curves appear here while a run trains.</i>"
        self.curves.value = parts.picture(overview.curves(runs), words) if runs else nothing

    def judged(self, run: Run) -> dict:
        """Return what the last weights of a pre-training are worth on the validation clips; computed once."""
        try:
            checkpoint = run.name, (run.path / "last.ckpt").stat().st_mtime_ns
            if checkpoint not in self.judgements:
                self.judgements[checkpoint] = overview.judge(run, self.validation)
            return self.judgements[checkpoint]
        except (OSError, UserError, RuntimeError):  # none yet, being replaced, damaged, of other mel settings
            return {}

    def refresh(self) -> None:
        """Show the runs that are there now, and offer them for curves and as encoders."""
        runs = overview.run_table(self.folder, self.command, self.judged if self.validation else None)
        faults = "; ".join(overview.faults(self.folder, self.command))
        self.runs.value = parts.table(runs) if len(runs) else "<i>No runs yet: press Train.</i>"
        self.runs.value += f"<div>Cannot be read: {parts.escape(faults)}</div>" if faults else ""
        self.refreshing = True  # what changes now, nobody chose
        shown = self.overlay.value
        self.overlay.options = list(runs["run"])
        self.overlay.value = tuple(name for name in shown if name in self.overlay.options)
        finished = [name for name in runs["run"][runs["state"] == "finished"] if name != "pretrained"]
        encoders = {"": "the course's own"} | {str(self.folder / name): name for name in finished}
        self.encoder.options = [(name, path) for path, name in encoders.items()]
        picked = str(chosen_encoder() or "")
        self.encoder.value = picked if picked in encoders else ""
        self.refreshing = False
        taken = {path.name for path in self.folder.glob("*")}
        self.run_name.value = next(name for i in count(1) if (name := f"run-{i}") not in taken)

    def static_figure(self) -> Figure:
        """Return the curves of the last runs."""
        # more than six lines cannot be told apart
        runs = overview.runs_of(self.folder, self.command)[-6:]
        metrics = {run.name: overview.metrics_of(run) for run in runs}
        return overview.curves({name: of_run for name, of_run in metrics.items() if len(of_run)})
