"""A widget as one HTML file, which needs no kernel, no server and no network; and the map of a corpus as one.

`standalone` makes the file of any widget of ours that has page code. `write_map` embeds clips, lays them out
and writes the embedding map of `maps`, the same page as in notebook 7.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import anywidget
import numpy as np
import pandas as pd

from colalib.data.audio import previews
from colalib.data.corpus import UNPRINTABLE
from colalib.data.splits import check_column
from colalib.data.store import MelStore, is_store
from colalib.errors import UserError
from colalib.evaluation import embed
from colalib.evaluation.embedding import corpus_of
from colalib.evaluation.flattening import layout
from colalib.files import MAP_GENERATOR, atomic, check_ours, check_writable, fingerprint
from colalib.widgets.maps import colour_columns, make_page

MOST_INSIDE = 300  # MB of sounds in a page
LARGEST = 450_000_000  # characters of a page: browsers hold no longer text

# What belongs to ipywidgets' own protocol, and not to the page
PROTOCOL = {"layout", "tabbable", "tooltip"}

# JupyterLab's names for its colours: widgets take them from the lab in a notebook, and from here in a file
THEME = """
:root { color-scheme: light dark; --jp-ui-font-family: system-ui, sans-serif;
  --cola-height: max(400px, 60vh); --cola-width: none;
  --jp-layout-color0: #fff; --jp-layout-color1: #fff; --jp-layout-color2: #eee; --jp-ui-font-color1: #222;
  --jp-ui-font-color2: #555; --jp-border-color1: #bbb; --jp-border-color2: #ddd; }
@media (prefers-color-scheme: dark) { :root {
  --jp-layout-color0: #111; --jp-layout-color1: #1b1b1b; --jp-layout-color2: #333; --jp-ui-font-color1: #eee;
  --jp-ui-font-color2: #aaa; --jp-border-color1: #666; --jp-border-color2: #444; } }
body { margin: 16px; background: var(--jp-layout-color0); color: var(--jp-ui-font-color1);
  font: 14px/1.45 var(--jp-ui-font-family); }
h1 { font-size: 1.3em; margin: 0 0 0.5em; overflow-wrap: anywhere; }
"""

# The part of anywidget's model that the page code of our widgets uses. Nobody listens to `send`.
HOST = """
const kept = JSON.parse(document.getElementById("state").textContent);
for (const { dataset, textContent } of document.querySelectorAll("script[data-bytes]")) {
  const text = atob(textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  kept[dataset.bytes] = new DataView(bytes.buffer);
}
const listeners = new Map();
const model = {
  get: (name) => kept[name],
  set(name, value) {
    if (kept[name] === value) return;
    kept[name] = value;
    for (const listener of listeners.get(`change:${name}`) || []) listener();
  },
  on: (event, listener) => listeners.set(event, [...(listeners.get(event) || []), listener]),
  off: (event, listener) => listeners.set(event, (listeners.get(event) || []).filter((l) => l !== listener)),
  save_changes() {},
  send() {},
};
widget.render({ model, el: document.getElementById("widget") });
"""

POLICY = (  # of what may be loaded: files beside the page and what is in it
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    "img-src 'self' file: data: blob:",
    "media-src 'self' file: data: blob:",
    "connect-src 'self' data: blob:",
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{generator}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<h1 dir="auto">{title}</h1>
<div id="widget"></div>
<script type="application/json" id="state">{state}</script>
{data}
<script type="module">{script}</script>
</body>
</html>
"""


def standalone(widget: anywidget.AnyWidget, title: str) -> str:
    """Return a whole HTML document that shows a widget by its own page code, without a kernel.

    `title` stands in the window's title and above the widget. All synced traits are in the page: bytes as
    base64, the others as JSON. The page runs this code only, and asks no other server for anything: its
    content security policy forbids both. Files that traits name are read relative to the page.
    """
    traits = {
        name: value
        for name, value in widget.get_state().items()
        if not name.startswith("_") and name not in PROTOCOL
    }
    binary = {name: value for name, value in traits.items() if isinstance(value, bytes | memoryview)}
    values = {name: value for name, value in traits.items() if name not in binary}
    # the page code is a module: what it exports becomes a name that the host can use
    code, exports = re.subn(r"^export default\b", "const widget =", str(widget._esm), flags=re.M)
    assert exports == 1, "the page code of a widget exports one thing"
    # in a block, so that no name of it is the window's; its hash is what the policy lets run
    script = f"{{\n{code}\n{HOST}}}".replace("</script", "<\\/script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return PAGE.format(
        title=escape(title),
        generator=MAP_GENERATOR,
        policy="; ".join([*POLICY, f"script-src 'sha256-{digest}'"]),
        css=THEME + str(getattr(widget, "_css", "")).replace("</style", "<\\/style"),
        state=json_text(values),
        data="\n".join(
            f'<script type="text/plain" data-bytes="{name}">{base64.b64encode(value).decode()}</script>'
            for name, value in binary.items()
        ),
        script=script,
    )


def json_text(value) -> str:
    """Return JSON that can stand inside a `<script>` element: no text in it can end the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


# ------------------------------------------------------------------------------------ the map as a file


class MapFile(NamedTuple):
    """What `write_map` wrote: the numbers of clips, and of sounds in the page and in `folder` beside it.

    `missing` are the paths of clips whose sound could not be read. `left_out` lists path and reason of clips
    that could not be embedded, and `note` tells of other files (see `Corpus`).
    """

    clips: int
    inside: int
    beside: int
    folder: Path
    missing: list[str]
    left_out: pd.DataFrame
    note: str


def write_map(
    source: str | Path,
    out: str | Path,
    encoder: str | Path = "default",
    labels: Sequence[str] = (),
    inside: float = 50,
    **options,
) -> MapFile:
    """Write the map of a corpus as one HTML file that is opened by a double click.

    `source` is a folder, a store or the name of a corpus, and `encoder` and `options` are those of `embed`.
    Clips are coloured by the columns `labels` first, then by all others with 2 to 20 values.

    Up to `inside` MB of the page are sounds, the first 6 s of each as MP3. The others are written to a folder
    beside the page, named after it: `map-sounds/` of `map.html`. Raises `UserError` if there is nothing to
    draw, a column is missing, the file cannot be written or would be too large for a browser.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} cannot be written (it is a folder): choose another --out")
    check_writable(out.parent)
    check_ours(out, MAP_GENERATOR.encode())
    if not 0 <= inside <= MOST_INSIDE:
        raise UserError(f"--inside {inside:g}: a page holds 0 to {MOST_INSIDE} MB of sounds")
    if is_store(source):
        known = MelStore(source)
        known.audio_root()  # must be there: a map is to be heard
    elif labels:
        known = corpus_of(source)
    for label in labels:
        check_column(known.clips, label)
    embedded = embed(source, encoder, **options)
    clips = embedded.clips
    folder = out.with_name(f"{out.stem}-sounds")
    sounds = write_sounds([embedded.root / path for path in clips["path"]], folder, int(inside * 1e6 * 3 / 4))
    # name → features and places; the name stands above the map
    spaces = {f"encoder: {encoder}": (embedded.vectors, layout(embedded.vectors))}
    columns = colour_columns(clips, list(dict.fromkeys(labels)))
    widget = make_page(clips, spaces, columns, sounds)
    html = standalone(
        widget, f"Map of {UNPRINTABLE.sub('_', Path(source).resolve().name)}: {len(clips)} clips"
    )
    if len(html) > LARGEST:
        raise UserError(
            f"a page of {len(html) / 1e6:.0f} MB is too large for browsers: take fewer clips or less --inside"
        )
    with atomic(out, "w") as file:
        file.write(html)
    remove_unused(folder, sounds["links"])
    sizes = np.diff(sounds["offsets"])
    linked = np.array([bool(link) for link in sounds["links"]])
    missing = clips["path"][(sizes == 0) & ~linked].tolist()
    inside, beside = int((sizes > 0).sum()), int(linked.sum())
    return MapFile(len(clips), inside, beside, folder, missing, embedded.left_out, embedded.note)


def write_sounds(files: list[Path], folder: Path, limit: int) -> dict:
    """Return the traits of `maps.Map` that hold the sounds: `limit` bytes of previews, links to the others.

    The others are written to `folder`, named by their content, so that an interrupted call harms no page. The
    links are relative to the folder around it. A file that cannot be read has neither.
    """
    inside, offsets, links = [], [0], []
    for sound in previews((file, 0.0) for file in files):
        fits = offsets[-1] + len(sound) <= limit
        link = ""
        if fits:
            inside.append(sound)
        else:
            file = folder / f"{fingerprint([sound.hex()])}.mp3"
            if not file.exists():
                with atomic(file) as opened:
                    opened.write(sound)
            link = f"{quote(os.fsencode(folder.name))}/{file.name}"
        links.append(link)
        offsets.append(offsets[-1] + fits * len(sound))
    return {"previews": b"".join(inside), "offsets": offsets, "links": links}


def remove_unused(folder: Path, links: list[str]) -> None:
    """Remove previews from `folder` that an earlier page linked; other files stay."""
    used = {link.rpartition("/")[2] for link in links}
    for file in folder.glob("*.mp3"):
        if re.fullmatch("[0-9a-f]{16}.mp3", file.name) and file.name not in used:
            file.unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or something else is in it
        folder.rmdir()
