"""The course as a whole: its profiles, where its files lie, what one notebook leaves for the next, and running it all.

The notebooks take `profile`, `corpus`, `store` and `encoder` from here, so that each runs on its own: whatever an earlier
one would have made is loaded if it is there and made if it is not.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from colalib import corpora, intervals, training
from colalib import store as stores
from colalib.errors import UserError


@dataclass(frozen=True)
class Profile:
    """How much of everything the notebooks do."""

    name: str
    clips_per_class: int  # of the corpus `scores`, 8 classes
    pretrain_minutes: float
    finetune_minutes: float  # of each supervised run
    seeds: int  # of whatever is repeated
    labels_per_class: tuple[int | None, ...]  # label budgets; None: all
    minutes: int  # about what the whole course takes on 2 cores


PROFILES = {
    "test": Profile("test", 20, 0.15, 0.05, 2, (5, None), 5),
    "quick": Profile("quick", 200, 4.0, 0.5, 3, (10, None), 24),
    "full": Profile("full", 200, 20.0, 2.0, 5, (2, 5, 10, 20, 50, None), 150),
}
DISK_GB = {"test": 0.1, "quick": 0.6, "full": 0.8}


def profile() -> Profile:
    """The profile that the variable COLA_PROFILE names; `quick` if it is not set."""
    name = os.environ.get("COLA_PROFILE", "quick")
    if name not in PROFILES:
        raise UserError(f"COLA_PROFILE is {name!r}: use one of {', '.join(PROFILES)}")
    return PROFILES[name]


def home() -> Path:
    """The checkout, if colalib is installed from one (as `make` does), else the current folder."""
    checkout = Path(__file__).parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def runs() -> Path:
    """Where runs, executed notebooks and results go: the variable COLA_RUNS, else `runs/` of the checkout. Each profile but
    `quick` has a folder of its own there."""
    base = Path(os.environ.get("COLA_RUNS", home() / "runs"))
    return base if profile().name == "quick" else base / profile().name


def corpus() -> corpora.Corpus:
    """The demo corpus at the profile's size; rendered at the first call."""
    return corpora.load("scores", clips_per_class=profile().clips_per_class)


def store() -> stores.MelStore:
    """The demo corpus as a store; prepared at the first call."""
    clips = corpus()
    return stores.build(clips, clips.root.with_name(f"{clips.root.name}.store"))


def choices_file() -> Path:
    """Where the notebooks' widgets keep what a learner chose."""
    return runs() / "choices.json"


def choices() -> dict:
    """What a learner chose; nothing if the file is not there or damaged."""
    try:
        found = json.loads(choices_file().read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def encoder() -> Path:
    """The run folder of the course's encoder: the one picked in the training panel; else loaded if notebook 3 has left it,
    else trained now; says which."""
    picked = Path(choices().get("encoder") or ".")
    if (picked / "encoder.safetensors").exists():
        print(f"using the encoder {picked}, as picked in notebook 3's training panel")
        return picked
    out = runs() / "pretrained"
    minutes = profile().pretrain_minutes
    there = (out / "encoder.safetensors").exists()
    print(f"{'loading' if there else 'training'} the encoder {out.name} ({minutes:g} minutes of pre-training)")
    return training.pretrain([store()], out, training.PretrainConfig(minutes=minutes), resume=True)


def supervised() -> training.FinetuneConfig:
    """Settings of the course's supervised runs."""
    return training.FinetuneConfig(minutes=profile().finetune_minutes)


def supervised_folder(encoder: Path) -> Path:
    """Where the supervised runs and features that belong to an encoder are kept."""
    name = "supervised" if encoder == runs() / "pretrained" else f"supervised-{encoder.name}"
    return runs() / name


def attempt(check: Callable, answer: Callable) -> None:
    """Run an exercise's check on a learner's function and print what came of it: passed, not solved yet, or the property
    that broke. Never raises, so that the lesson goes on."""
    try:
        check(answer)
    except NotImplementedError:
        print(f"{answer.__name__}: not solved yet")
    except AssertionError as broken:
        print(f"{answer.__name__}: not yet: {broken}")
    except Exception as error:
        print(f"{answer.__name__}: not yet: it raises {type(error).__name__}: {error}")
    else:
        print(f"{answer.__name__}: passed")


# ------------------------------------------------------------------------------------------------ running it all


def notebooks(only: list[str] | None = None) -> list[Path]:
    """The course's notebooks in order; only those whose names start with one of `only`."""
    found = sorted((home() / "notebooks").glob("[0-9]*.ipynb"))
    found = [n for n in found if not only or any(n.name.startswith(o) for o in only)]
    if not found:
        raise UserError(f"no such notebooks in {home() / 'notebooks'}: run this from a checkout of the course")
    return found


def run(out: str | Path | None = None, only: list[str] | None = None, publish: bool = False) -> int:
    """Build the demo corpus, execute the notebooks in order, print the table of results; returns the exit code.

    Executed copies and results.json go to `out` (default: `runs()`). With `publish` the notebooks themselves get the
    outputs too, without audio and widget state.
    """
    if out is not None:
        os.environ["COLA_RUNS"] = str(Path(out).resolve())
    todo, plan, begun = notebooks(only), profile(), time.monotonic()
    free = shutil.disk_usage(home()).free / 1e9
    need = DISK_GB[plan.name]
    print(
        f"The course, profile {plan.name}: {len(todo)} notebooks, about {plan.minutes} minutes on 2 cores the first time, "
        f"{need} GB of disk ({free:.0f} GB free), no download."
    )
    if free < need:
        raise UserError(f"only {free:.1f} GB of disk are free in {home()}: {need} GB are needed")
    store()
    for notebook in todo:
        if not execute(notebook, runs() / "notebooks" / notebook.name, publish):
            return 1
    print(f"\nDone in {(time.monotonic() - begun) / 60:.1f} minutes.")
    if (runs() / "results.json").exists():
        results = json.loads((runs() / "results.json").read_text(encoding="utf-8"))
        print(f"\n{results['task']}: {results['n_clips']} test clips, accuracy in %")
        print(intervals.table(results).to_string(index=False))
    print(f"\nExecuted notebooks are in {runs() / 'notebooks'}, the numbers in {runs() / 'results.json'}.")
    print("Next: `make lab` opens the notebooks to work through them; README.md shows how to use your own recordings.")
    return 0


def execute(notebook: Path, copy: Path, publish: bool = False) -> bool:
    """Execute one notebook in a fresh kernel and write the executed copy, whole or up to the cell that failed, whose error is
    printed. True if all cells ran."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from tqdm.auto import tqdm

    content = nbformat.read(notebook, as_version=4)
    code = sum(cell.cell_type == "code" for cell in content.cells)
    bar = tqdm(total=code, desc=notebook.stem, unit="cell")
    client = NotebookClient(
        content,
        timeout=None,
        kernel_name="python3",
        store_widget_state=False,  # it would be shown instead of the picture that stands in, and empty
        resources={"metadata": {"path": str(notebook.parent)}},
        on_cell_executed=lambda **_: bar.update(),
    )
    failed = None
    try:
        client.execute()
    except CellExecutionError as error:
        failed = error
    finally:
        bar.close()
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(content, copy)
    if failed:
        print(f"{notebook.name}: a cell failed: {failed.ename}: {failed.evalue}\nThe notebook up to there: {copy}")
        return False
    if publish:
        nbformat.write(stripped(content), notebook)
    return True


def stripped(content):
    """A copy of an executed notebook to keep under version control: figures stay, and of widgets the picture that stands in
    for them; audio becomes a line of text; progress bars, timings and widget state go."""
    import nbformat

    content = nbformat.from_dict(json.loads(json.dumps(content)))
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        cell.metadata.pop("execution", None)
        kept = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "data:audio" in "".join(data.get("text/html", "")):
                data.clear()
                data["text/plain"] = "[audio: run this cell to listen]"
            widget = data.pop("application/vnd.jupyter.widget-view+json", None)
            if output.get("name") == "stderr" or (widget is not None and "image/png" not in data):
                continue
            if "image/png" in data:
                data["image/png"] = small_png(data["image/png"])
            if "text" in output:
                output["text"] = re.sub(r"[^\n]*\r", "", output["text"])
            kept.append(output)
        if "outputs" in cell:
            cell.outputs = kept
    return content


def small_png(encoded: str) -> str:
    """A figure (PNG in base64) with a palette of 256 colours: a quarter of the size, and nobody sees a difference."""
    from PIL import Image  # comes with matplotlib

    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    out = io.BytesIO()
    picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(base64.b64encode(out.getvalue()).decode(), encoded, key=len)


def describe() -> str:
    """The profile in words, for the head of a notebook."""
    values = dataclasses.asdict(profile())
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
