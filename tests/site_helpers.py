"""A small executed course, written without a kernel, for the tests of the site."""

import base64
import json
import re
from pathlib import Path

import nbformat
import numpy as np
from helpers import tone
from matplotlib.figure import Figure
from widget_helpers import Tags

from colalib import widgets
from colalib.course import running, site
from colalib.evaluation import plots
from colalib.widgets import PAGE, maps, parts, quiz

SCRIPT = "<img src=x onerror=alert(1)>"  # a name that must stay text
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
FIRST = """# 1 Sounds <small>first</small>

You hear *one* sound.

## A recording, twice
See [the second](02_map.ipynb#a-map), [the results](../RESULTS.md), ![a picture](pictures/cola.svg) and
[elsewhere](https://example.org/x). With $a_1$ it is
$$\\frac{1}{2} \\sum_i x_i$$ and

\\begin{align}a\\end{align}
"""


def shown(data: dict) -> nbformat.NotebookNode:
    """Return an output of a cell."""
    return nbformat.v4.new_output("display_data", data=data)


def said(text: str, name: str = "stdout") -> nbformat.NotebookNode:
    """Return printed text."""
    return nbformat.v4.new_output("stream", text=text, name=name)


def map_page(scores: bool) -> dict:
    """Return what a map of three clips hands over; two have a sound."""
    sounds = [maps.to_mp3(tone(pitch, 1.0, 0)) for pitch in (220, 440)]
    view = maps.Map(
        size=3,
        names=["step 0", "step 1"],
        titles=["one", SCRIPT, "silent"],
        columns={"label": {"names": ["a"], "colours": ["#0072b2"], "codes": [0, 0, 0]}},
        column="label",
        points=np.arange(12, dtype=np.float32).tobytes(),
        near=[[1, 0, 0], [1, 0, 0]],
        k=1,
        previews=b"".join(sounds),
        offsets=np.cumsum([0, *map(len, sounds), 0]).tolist(),
        scores=[{"words": "", "mean": 0.5, "low": 0.4, "high": 0.6}] * 2 if scores else [],
    )
    return {PAGE: {"map": view.packed()}} | WIDGET


def small_course(root: Path) -> None:
    """Write notebooks, their executed copies and a document into `root`."""
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    picture = {"image/png": base64.b64encode(parts.png(figure)).decode()}
    player = plots.player(tone(330, 1.0, 0))._repr_html_()
    cards = [parts.sound(tone(pitch, 0.5, 0), f"candidate {pitch}") for pitch in (300, 400, 500)]
    question = quiz.question_html(1, cards, [SCRIPT, "a reel"], 1, {"default": 0})
    guess = widgets.guess("q", "Which?", {"this": "Because.", SCRIPT: "It is not."}, "this")
    bundle = guess._repr_mimebundle_()
    outputs = {
        "01_sounds": [
            said("loading: 1%\rloaded\nair: a tune \\sum\n"),
            shown({"text/html": player}),
            shown({"text/html": player}),
            said("a warning", "stderr"),
            shown(dict(bundle[0] if isinstance(bundle, tuple) else bundle)),
            shown(picture),
            shown(picture | WIDGET),
            shown({"text/plain": "progress"} | WIDGET),
        ],
        "02_map": [
            shown({PAGE: {"html": quiz.quiz_html([question])}} | WIDGET | picture),
            shown(map_page(scores=False) | picture),
            shown(map_page(scores=True) | picture),
        ],
    }
    texts = {"01_sounds": FIRST, "02_map": "# 2 A map\n\nYou see it.\n\n## A map\n"}
    for name, shown_there in outputs.items():
        code = nbformat.v4.new_code_cell("1 + 1", execution_count=1, outputs=shown_there)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(texts[name]), code])
        for folder in ("notebooks", "runs/notebooks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, root / folder / f"{name}.ipynb")
    (root / "notebooks" / "pictures").mkdir()
    (root / "notebooks" / "pictures" / "cola.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (root / "RESULTS.md").write_text("# Results\n\n| a |\n|---|\n| 1 |\n\n[one](notebooks/01_sounds.ipynb)\n")


def use(root: Path, monkeypatch) -> None:
    """Let `root` be the checkout for the rest of the test."""
    for module in (running, site):
        monkeypatch.setattr(module, "home", lambda: root)
    monkeypatch.setenv("COLA_RUNS", str(root / "runs"))
    monkeypatch.delenv("COLA_PROFILE", raising=False)


def listed(out: Path) -> set[str]:
    """Return the names of the files that a site says it has."""
    return set(json.loads((out / "site.json").read_text())["files"])


def links_are_whole(out: Path) -> int:
    """Fail if a link of a site leads nowhere; return how many links there are."""
    pages = sorted(out.rglob("*.html"))
    anchors = {page: set(re.findall(r' id="([^"]*)"', page.read_text(encoding="utf-8"))) for page in pages}
    links = 0
    for page in pages:
        for tag, attributes in Tags(page.read_text(encoding="utf-8")).tags:
            for address in filter(None, (attributes.get("href"), attributes.get("src"))):
                if address.startswith("data:") or (tag == "a" and re.match("https?://", address)):
                    continue
                path, _, anchor = address.partition("#")
                target = (page.parent / path).resolve() if path else page
                assert target.is_file(), address
                assert not anchor or anchor in anchors[target] | {"content"}, address
                links += 1
    return links
