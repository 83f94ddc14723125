"""Running the course: build the demo corpus, execute the notebooks in order, print the results."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

from colalib.course.profiles import profile, store
from colalib.errors import UserError
from colalib.evaluation import intervals
from colalib.files import atomic, file_state, fingerprint, home, runs_folder
from colalib.widgets import KEEP_PAGES, PAGE

WIDGET = "application/vnd.jupyter.widget-view+json"  # the type of output that a widget is


def notebooks(only: list[str] | None = None) -> list[Path]:
    """The course's notebooks in order; only those whose names start with one of `only`."""
    found = sorted((home() / "notebooks").glob("[0-9]*.ipynb"))
    if not found:
        raise UserError(f"no notebooks in {home() / 'notebooks'}: run this from a checkout of the course")
    for start in only or []:
        if not any(n.name.startswith(start) for n in found):
            raise UserError(f"no notebook begins with {start}: there are {', '.join(n.stem for n in found)}")
    return [n for n in found if not only or n.name.startswith(tuple(only))]


def own_copies() -> list[Path]:
    """Copy the notebooks to `my-notebooks/`, where a learner works in them, and return the copies.

    A copy that is there stays as it is, whatever happens to the course. If its notebook has changed
    since, the new version is put beside it under another name, and said.
    """
    copies = []
    for notebook in notebooks():
        text = notebook.read_text(encoding="utf-8")
        version = fingerprint([text])[:6]
        copy = home() / "my-notebooks" / notebook.name
        newer = copy.with_stem(f"{copy.stem}-{version}")
        copies.append(copy)
        if copy.exists() and (version_of(copy) == version or newer.exists()):
            continue
        content = json.loads(text)
        content["metadata"]["cola"] = {"version": version}  # Jupyter keeps it
        content["metadata"]["jupytext"] = {"formats": "ipynb"}  # saving it writes no source
        target = newer if copy.exists() else copy
        with atomic(target, "w") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
        if target == newer:
            print(f"{notebook.name} has changed: your copy stays, the new version is {newer.name}")
    return copies


def version_of(copy: Path) -> str:
    """Return the version that a learner's copy was made from, "" if it does not say so."""
    try:
        return json.loads(copy.read_text(encoding="utf-8"))["metadata"]["cola"]["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def lab() -> int:
    """Open the learner's own copies of the notebooks in JupyterLab; return its exit code."""
    first = own_copies()[0]
    again = "To start one afresh, delete it there and run this again."
    print(f"Your notebooks are in {first.parent}. {again}", flush=True)
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.root_dir={home()}", str(first)]
    # JupyterLab answers Ctrl-C itself: it asks, and saves its sessions
    signal.signal(signal.SIGINT, lambda *_: None)
    return subprocess.run(command, cwd=home()).returncode


def run(out: str | Path | None = None, only: list[str] | None = None, publish: bool = False) -> int:
    """Build the demo corpus, execute the notebooks in order, print the results; return the exit code.

    Executed copies and results.json go to `out` (default: `runs_folder()`). With `publish` the notebooks
    themselves get the outputs too, without audio and widget state.
    """
    if out is not None:
        os.environ["COLA_RUNS"] = str(Path(out).resolve())
    todo, plan, begun = notebooks(only), profile(), time.monotonic()
    place = next(p for p in (runs_folder(), *runs_folder().absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 1e9
    need = plan.disk_gb
    print(
        f"The course, profile {plan.name}: {len(todo)} notebooks, about {plan.minutes} minutes on 2 cores "
        f"the first time, {need} GB of disk ({free:.0f} GB free), no download."
    )
    if free < need and not (runs_folder() / "results.json").exists():
        raise UserError(f"only {free:.1f} GB of disk are free in {place}: {need} GB are needed")
    if (runs_folder() / "notebooks").resolve() == todo[0].parent.resolve():
        raise UserError(f"{runs_folder()} holds the notebooks themselves: choose another folder with --runs")
    store()
    results = runs_folder() / "results.json"
    before = file_state(results)
    for notebook in todo:
        if not execute(notebook, runs_folder() / "notebooks" / notebook.name, publish):
            return 1
    print(f"\nDone in {(time.monotonic() - begun) / 60:.1f} minutes.")
    if file_state(results) != before:
        found = json.loads(results.read_text(encoding="utf-8"))
        print(f"\n{found['task']}: {found['n_clips']} test clips, accuracy in %")
        print(intervals.table(found).to_string(index=False))
        print(f"The numbers are in {results}.")
    print(f"\nExecuted notebooks are in {runs_folder() / 'notebooks'}.")
    print(
        "Next: `make lab` opens the notebooks to work through them. "
        "README.md shows how to use your own recordings."
    )
    return 0


def execute(notebook: Path, copy: Path, publish: bool = False) -> bool:
    """Execute one notebook in a fresh kernel and write the executed copy; return whether all cells ran.

    If a cell fails, its error is printed and the copy is written up to there.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from tqdm.auto import tqdm

    content = nbformat.read(notebook, as_version=4)
    code = sum(cell.cell_type == "code" for cell in content.cells)
    bar = tqdm(total=code, desc=notebook.stem, unit="cell")
    client = NotebookClient(
        content,
        km=own_kernel(),
        timeout=None,
        store_widget_state=False,  # it would be shown instead of the picture that stands in, and empty
        resources={"metadata": {"path": str(notebook.parent)}},
        on_cell_executed=lambda **_: bar.update(),
    )
    failed = None
    try:
        # the manager is ours: shut its kernel down; widgets leave what the site shows of them
        client.execute(cleanup_kc=True, env=os.environ | {KEEP_PAGES: "1"})
    except CellExecutionError as error:
        failed = f"a cell failed: {error.ename}: {error.evalue}"
    except (AssertionError, DeadKernelError) as error:
        if hasattr(client, "_async_cleanup_kernel_future"):  # nbclient's answer to Ctrl-C and SIGTERM
            raise KeyboardInterrupt from None
        if isinstance(error, AssertionError):
            raise
        failed = "its kernel died, perhaps for want of memory"
    finally:
        bar.close()
        with atomic(copy, "w") as file:
            nbformat.write(content, file)
    if failed:
        print(f"{notebook.name}: {failed}")
        print(f"The notebook up to there: {copy}")
        return False
    if publish:
        with atomic(notebook, "w") as file:
            nbformat.write(stripped(content), file)
    return True


def own_kernel():
    """Return a manager of kernels that run this interpreter, whatever kernel is installed as `python3`."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    manager = AsyncKernelManager(kernel_name="python3")
    manager._kernel_spec = KernelSpec(**get_kernel_dict())
    return manager


def stripped(content):
    """Return a copy of an executed notebook to keep under version control.

    Figures stay, and of widgets the picture that stands in for them. Audio becomes a line of text. Progress
    bars, timings and widget state go.
    """
    content = deepcopy(content)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        cell.metadata.pop("execution", None)
        kept = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "data:audio" in "".join(data.get("text/html", "")):
                data.clear()
                data["text/plain"] = "[audio: run this cell to listen]"
            data.pop(PAGE, None)
            widget = data.pop(WIDGET, None)
            if output.get("name") == "stderr" or (
                widget is not None and not {"image/png", "text/html"} & set(data)
            ):
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
    """Return a figure (PNG in base64) with a palette of 256 colours.

    It has a quarter of the size and looks the same.
    """
    from PIL import Image  # comes with matplotlib

    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    out = io.BytesIO()
    picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True
    )
    return min(base64.b64encode(out.getvalue()).decode(), encoded, key=len)
