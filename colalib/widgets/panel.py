"""The training panel (notebooks 3 and 4): turn settings, train in a process of its own, watch,
stop, resume, compare runs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ipywidgets as w
import numpy as np
import pandas as pd
import psutil
import torch
from matplotlib.figure import Figure

from colalib.cola import Cola
from colalib.data import segments
from colalib.data.clips import Clips, pretraining_clips, split_validation
from colalib.data.store import open_store
from colalib.errors import UserError
from colalib.evaluation import plots
from colalib.files import write_json
from colalib.settings import FinetuneConfig, PretrainConfig
from colalib.training.runs import read_checkpoint
from colalib.widgets import parts
from colalib.widgets.choices import keep_choice, read_choices

# a kernel ignores SIGINT between cells, and its children would inherit that; SIGTERM, once the
# training runs, is answered by a
# checkpoint (`loop.Schedule`), and before that as Ctrl-C
COMMAND = (
    "import signal; [signal.signal(s, signal.default_int_handler) for s in (signal.SIGINT, signal.SIGTERM)]; "
    "from colalib.cli import main; main()"
)
SHOWN = {
    PretrainConfig: (
        "objective",
        "batch_size",
        "lr",
        "filter_db",
        "mask_bands",
        "temperature",
        "margin",
        "seed",
    ),
    FinetuneConfig: ("labels_per_class", "optimiser", "batch_size", "lr", "weight_decay", "dropout", "seed"),
}
WIDE = {"style": {"description_width": "14.5em"}, "layout": w.Layout(width="29em")}


def controls(kind: type, names: tuple[str, ...]) -> dict[str, w.Widget]:
    """A control for each of `names` among the settings of a config dataclass, made from what it
    says of itself: its text and the paper's value are the tooltip and stand behind the name."""
    made = {}
    for f in dataclasses.fields(kind):
        if f.name not in names:
            continue
        about = f.metadata
        paper = about.get("paper")
        label = about.get("label", f.name.replace("_", " ")) + (
            f" (paper {paper:g})" if _number(paper) else ""
        )
        common = {"description": label, "tooltip": about["text"], **WIDE}
        low, high = about.get("between") or about.get("limits") or (0, None)
        if "choices" in about:
            options = [(f"{c} (paper)" if c == paper else c, c) for c in about["choices"]]
            made[f.name] = w.Dropdown(options=options, value=f.default, **common)
        elif isinstance(f.default, bool):
            made[f.name] = w.Checkbox(f.default, **common)
        elif f.default is None:  # an optional number
            made[f.name] = w.Text("", placeholder="all" if "label" in f.name else "", **common)
        elif high is None or high > 2**31:
            made[f.name] = w.BoundedIntText(f.default, min=low, max=2**31 - 1, **common)
        elif isinstance(f.default, int) and high > 128:  # by doubling
            sizes = [2**p for p in range(math.ceil(math.log2(low)), int(math.log2(high)) + 1)]
            made[f.name] = w.SelectionSlider(
                options=sizes, value=f.default, continuous_update=False, **common
            )
        elif isinstance(f.default, int):
            made[f.name] = w.IntSlider(f.default, min=low, max=high, continuous_update=False, **common)
        elif low and high / low >= 50:  # round numbers, three a decade
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
            values = [v for d in decades for m in (1, 2, 5) if low <= (v := float(f"{m}e{d}")) <= high]
            options = [(f"{v:g}", v) for v in [*values, high]]
            made[f.name] = w.SelectionSlider(
                options=options, value=f.default, continuous_update=False, **common
            )
        else:
            step = 0.5 if high - low > 5 else 0.05
            made[f.name] = w.FloatSlider(
                f.default, min=low, max=high, step=step, continuous_update=False, **common
            )
    return made


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def arguments(controls: dict[str, w.Widget]) -> list[str]:
    """What the controls say, as options of the command line."""
    given = []
    for name, control in controls.items():
        flag = name.replace("_", "-")
        if isinstance(control.value, bool):
            given.append(f"--{flag}" if control.value else f"--no-{flag}")
        elif control.value != "":
            given += [f"--{flag}", str(control.value)]
    return given


class Job:
    """One training as its own process of the command line. What it prints goes to `RUN.log.txt`
    beside the run folder; its number and its words to `RUN.job.json`, by which a later kernel finds
    it again and resumes it."""

    def __init__(self, out: Path, given: list[str] | None = None):
        self.out, self.log, self.kept = (
            out,
            out.with_name(f"{out.name}.log.txt"),
            out.with_name(f"{out.name}.job.json"),
        )
        self.process = None
        if given is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            # so that interrupting the kernel does not interrupt the training
            apart = {"start_new_session": True}
            if os.name == "nt":
                apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            command = [sys.executable, "-c", COMMAND, *given, "--out", str(out)]
            with open(self.log, "wb") as log:
                self.process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **apart
                )
            write_json(self.kept, {"process": self.process.pid, "given": given})

    def known(self) -> dict:
        """What is written down of it: "process", "given"."""
        try:
            return json.loads(self.kept.read_text("utf-8"))
        except (OSError, ValueError):
            return {}

    def found(self) -> psutil.Process | None:
        """The process, if it runs."""
        if self.process is not None and self.process.poll() is not None:
            return None
        try:
            process = psutil.Process(self.known()["process"])
            return process if str(self.out) in process.cmdline() and process.status() != "zombie" else None
        except (KeyError, psutil.Error):
            return None

    def stop(self) -> None:
        """It writes a checkpoint within a few steps and ends; it can be resumed."""
        if process := self.found():
            process.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGTERM)

    def error(self) -> str:
        """All that it printed, without progress bars, if it neither finished nor was interrupted."""
        text = self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""
        lines = [
            line for line in text.splitlines() if line.strip() and "it/s" not in line and "█" not in line
        ]
        refused = any(line.startswith(("colalib: ", "Traceback")) or ": error: " in line for line in lines)
        if "colalib: interrupted" in text or ((self.out / "encoder.safetensors").exists() and not refused):
            return ""
        return "\n".join(lines if refused else [*lines, "It ended without a word: killed, or out of memory."])


def metrics(run: Path) -> pd.DataFrame:
    """metrics.csv of a run as far as it is written."""
    try:
        return pd.read_csv(run / "metrics.csv")
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError):
        return pd.DataFrame({"step": []})


def progress(run: Path) -> tuple[float, float]:
    """Share done, and seconds left (not a number before the first step)."""
    found = metrics(run)
    if found.empty:
        return 0.0, math.nan
    config, last = json.loads((run / "config.json").read_text("utf-8"))["config"], found.iloc[-1]
    done = {"minutes": last["seconds"] / 60, "steps": last["step"], "epochs": last["epoch"]}
    share = next(min(done[k] / config[k], 1.0) for k in done if config[k])
    return share, last["seconds"] * (1 / max(share, 1e-6) - 1)


@torch.no_grad()
def similarities(run: Path, clips: Clips, pairs: int = 24) -> tuple[np.ndarray, int]:
    """The run's own similarity of anchors and positives [pairs, pairs] from `clips`, by its last
    checkpoint; and the step of that."""
    config = PretrainConfig(**json.loads((run / "config.json").read_text("utf-8"))["config"])
    module = Cola(config, std=1.0)  # the checkpoint brings its own
    checkpoint = read_checkpoint(run / "last.ckpt")
    module.load_state_dict(checkpoint["state_dict"])
    anchors, positives = segments.pair_batch(clips, 0, min(pairs, len(clips)), seed=0)
    module.eval()
    return module.objective(module.encoder(anchors), module.encoder(positives))[1].numpy(), checkpoint[
        "global_step"
    ]


def table(folder: Path, kind: str) -> pd.DataFrame:
    """The runs of a kind in a folder, oldest first: how far they came, their best validation
    accuracy, and in which settings they differ from the defaults."""
    usual = dataclasses.asdict({"pretrain": PretrainConfig, "finetune": FinetuneConfig}[kind]())
    rows = []
    for file in sorted(folder.glob("*/config.json"), key=lambda p: p.stat().st_mtime):
        run, made = file.parent, json.loads(file.read_text("utf-8"))
        if made.get("kind") != kind:
            continue
        found = metrics(run)
        valid = found["valid/accuracy"].dropna() if "valid/accuracy" in found else []
        changed = {k: v for k, v in made["config"].items() if v != usual.get(k)}
        state = (
            "training"
            if Job(run).found()
            else "finished"
            if (run / "encoder.safetensors").exists()
            else "stopped"
        )
        rows.append(
            {
                "run": run.name,
                "state": state,
                "steps": f"{found['step'].max():.0f}" if len(found) else "0",
                "validation accuracy (%)": f"{100 * valid.max():.1f}" if len(valid) else "",
                "settings": ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in changed.items()),
            }
        )
    return pd.DataFrame(rows, columns=["run", "state", "steps", "validation accuracy (%)", "settings"])


def curves(runs: dict[str, pd.DataFrame]) -> Figure:
    """Loss, accuracy and, in pre-training, rank of the positive of several runs, over steps; on
    validation dashed.
    """
    names = {"train/loss": "loss (nats)", "train/accuracy": "accuracy", "train/rank": "rank of the positive"}
    names = {
        c: label for c, label in names.items() if any(c in m and m[c].notna().any() for m in runs.values())
    }
    figure = Figure(figsize=(8.1, 2.3 + 0.2 * len(runs) * (len(runs) > 1)), layout="constrained")
    axes = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
    for ax, (column, label) in zip(axes, names.items()):
        for side in ("train", "valid"):
            part = column.replace("train", side)
            plots.curves({r: m for r, m in runs.items() if part in m}, part, ax, dashed=side == "valid")
        ax.set(xlabel="step (dashed: validation)", ylabel="", title=label, ylim=(0, None))
        if ax.get_legend():
            ax.get_legend().remove()
    if len(runs) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def training_panel(
    stores: list,
    folder: Path | str,
    kind: type = PretrainConfig,
    names: tuple[str, ...] | None = None,
    starts: dict[str, str | Path | None] | None = None,
) -> parts.WidgetWithFallback:
    """Turn settings, train, watch, stop, resume; overlay the curves of the runs in `folder`.

    `stores`: paths of stores to train on; `names`: the settings to show (default: `SHOWN`). Of a
    pre-training panel the encoder that the next notebooks use can be picked; to a fine-tuning panel
    `starts` offers encoders to start from (name → run, None: from scratch). Training is `python -m
    colalib pretrain` (or `finetune`) in a process of its own, so that the notebook stays usable and
    a restarted kernel finds it still running.
    """
    folder, stores = Path(folder), [str(s) for s in stores]
    pretraining = kind is PretrainConfig
    command = "pretrain" if pretraining else "finetune"
    settings = controls(kind, names or SHOWN[kind])
    minutes = w.FloatSlider(
        1, min=0.25, max=30, step=0.25, description="minutes", continuous_update=False, **WIDE
    )
    name = w.Text(description="name of the run", **WIDE)
    start_from = w.Dropdown(
        options=[(n, str(r or "")) for n, r in (starts or {}).items()], description="start from", **WIDE
    )
    narrow = w.Layout(width="7em")
    train = w.Button(description="Train", icon="play", button_style="primary", layout=narrow)
    stop = w.Button(description="Stop", icon="stop", layout=narrow)
    resume = w.Button(description="Resume", icon="forward", layout=narrow)
    usual = w.Button(description="defaults", icon="undo", tooltip="all settings back", layout=narrow)
    bar = w.FloatProgress(0, min=0, max=1, layout=w.Layout(width="28em"))
    said, curve, matrix, failure, overview = (w.HTML() for _ in range(5))
    overlay = w.SelectMultiple(description="show runs", rows=4, **WIDE)
    choose = w.Dropdown(description="encoder to go on with", style={"description_width": "initial"})
    state: dict = {"job": None, "filling": False, "stopping": False}
    held = None
    if pretraining:
        held = split_validation(pretraining_clips([open_store(s) for s in stores]), 0)[1]

    def begin(out: Path, given: list[str] | None) -> None:
        ready(False)
        failure.value = matrix.value = ""
        bar.value, said.value = 0, f"{parts.text(out.name)}: starting …"
        state["stopping"], state["job"] = False, Job(out, given)
        threading.Thread(target=watch, args=(state["job"],), daemon=True).start()

    def watch(job: Job) -> None:
        seen = 0.0
        try:
            while job.found():
                time.sleep(0.7)
                share, left = progress(job.out)
                bar.value = share
                if not math.isnan(left):
                    now = "stopping …" if state["stopping"] else f"{left:.0f} s left"
                    said.value = f"{parts.text(job.out.name)}: {100 * share:.0f}%, {now}"
                    draw()
                checkpoint = job.out / "last.ckpt"
                if held is not None and checkpoint.exists() and checkpoint.stat().st_mtime > seen:
                    seen = checkpoint.stat().st_mtime
                    sharpen(job.out)
            if (job.out / "config.json").exists():
                bar.value = progress(job.out)[0]
                if held is not None and (job.out / "last.ckpt").exists():
                    sharpen(job.out)
            text = job.error()
            done, begun = ((job.out / name).exists() for name in ("encoder.safetensors", "config.json"))
            halted = "stopped; Resume goes on with it" if begun else "stopped before it had begun"
            ended = "failed" if text else "finished" if done else halted
            said.value = f"{parts.text(job.out.name)}: {ended}"
        except Exception as error:  # in a thread nobody else would tell
            text = f"{type(error).__name__}: {error}"
        style = "color:#b00020;white-space:pre-wrap;margin:0"
        failure.value = f"<pre role='alert' style='{style}'>{parts.text(text)}</pre>" if text else ""
        ready(True)
        refresh()
        draw()

    def ready(now: bool) -> None:
        train.disabled = not now
        stop.disabled = now
        resume.disabled = not now or not stopped()

    def stopped() -> str | None:
        """The run to resume: of those shown, else of all, the newest that was stopped and began
        here.
        """
        runs = table(folder, command)
        found = [r for r in runs["run"][runs["state"] == "stopped"] if Job(folder / r).known()]
        return next(iter([r for r in found if r in overlay.value][-1:] or found[-1:]), None)

    def sharpen(run: Path) -> None:
        try:
            found, step = similarities(run, held)
        except (OSError, UserError, RuntimeError):  # the checkpoint is just being replaced
            return
        figure = Figure(figsize=(3.8, 2.9), layout="constrained")
        plots.similarity_matrix(found, figure.subplots(), f"held-out pairs, step {step}")
        matrix.value = parts.picture(
            figure, f"similarity matrix of {len(found)} held-out pairs; the diagonal sharpens"
        )

    def draw(*_) -> None:
        if state["filling"]:
            return
        resume.disabled = not stop.disabled or not stopped()
        now = [state["job"].out.name] if state["job"] else []
        found = {r: m for r in dict.fromkeys([*overlay.value, *now]) if len(m := metrics(folder / r))}
        words = "curves over steps: loss, accuracy, rank of the positive, of " + ", ".join(found)
        curve.value = (
            parts.picture(curves(found), words) if found else "<i>Curves appear here while a run trains.</i>"
        )

    def refresh() -> None:
        runs = table(folder, command)
        overview.value = parts.rows(runs) if len(runs) else "<i>No runs yet: press Train.</i>"
        state["filling"] = True
        shown = overlay.value
        overlay.options = list(runs["run"])
        overlay.value = tuple(r for r in shown if r in overlay.options)
        finished = list(runs["run"][runs["state"] == "finished"])
        choose.options = [
            ("the course's own", ""),
            *((r, str(folder / r)) for r in finished if r != "pretrained"),
        ]
        picked = read_choices().get("encoder", "")
        choose.value = picked if picked in dict(choose.options).values() else ""
        state["filling"] = False
        taken = {p.name for p in folder.glob("*")}
        name.value = next(f"run-{i}" for i in range(1, 10**6) if f"run-{i}" not in taken)

    def on_train(_) -> None:
        if train.disabled:  # pressed twice
            return
        given = [command, *stores, *arguments(settings), "--minutes", str(minutes.value)]
        if not pretraining:
            given += ["--encoder", start_from.value] if start_from.value else ["--scratch"]
        wanted = name.value.strip()
        if not wanted or Path(wanted).name != wanted:
            said.value = "give the run a name without slashes"
            return
        begin(folder / wanted, given)

    def on_resume(_) -> None:
        if not resume.disabled and (run := stopped()):
            given = Job(folder / run).known()["given"]
            begin(folder / run, [*given, *(["--resume"] if "--resume" not in given else [])])

    def on_stop(_) -> None:
        if state["job"]:
            state["stopping"], said.value = True, f"{parts.text(state['job'].out.name)}: stopping …"
            state["job"].stop()

    def on_choose(change) -> None:
        if not state["filling"]:
            keep_choice("encoder", change["new"])

    train.on_click(on_train)
    stop.on_click(on_stop)
    resume.on_click(on_resume)
    usual.on_click(
        lambda _: [setattr(c, "value", v) for c, v in zip([*settings.values(), minutes], defaults)]
    )
    overlay.observe(draw, "value")
    choose.observe(on_choose, "value")
    defaults = [c.value for c in [*settings.values(), minutes]]
    refresh()
    parts.persist(
        f"training_panel_{command}",
        {**settings, "minutes": minutes, "show runs": overlay}
        | ({"start from": start_from} if starts else {}),
    )
    ready(True)
    draw()
    running = [job.out for p in folder.glob("*.job.json") if (job := Job(folder / p.name[:-9])).found()]
    if running:  # started by an earlier kernel or an earlier run of the cell
        begin(running[-1], None)
    buttons = w.HBox([train, stop, resume, usual], layout=w.Layout(flex_flow="row wrap"))
    left = [*settings.values(), *([start_from] if starts else []), minutes, name, buttons, bar, said, failure]
    flow = w.Layout(flex_flow="row wrap", align_items="flex-start")
    right = w.VBox([curve, matrix], layout=w.Layout(flex="1 1 24em", min_width="0"))
    below = w.HBox([overview, w.VBox([overlay, *([choose] if pretraining else [])])], layout=flow)
    panel = [w.HBox([w.VBox(left, layout=w.Layout(width="30em")), right], layout=flow), below]
    return parts.WidgetWithFallback(panel, lambda: static_figure(folder, command))


def static_figure(folder: Path, command: str) -> Figure:
    """The curves of the last runs, at most six, for where widgets cannot run."""
    runs = {r: metrics(folder / r) for r in table(folder, command)["run"][-6:]}
    return curves({r: m for r, m in runs.items() if len(m)})
