"""The embedding map (notebook 6): clips as points that are heard when they are pressed, in one or
two spaces at once.
"""

from __future__ import annotations

import base64
import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import anywidget
import ipywidgets as w
import numpy as np
import soundfile
import torch
import traitlets
from joblib import Parallel, delayed
from jupyter_core.paths import jupyter_runtime_dir
from matplotlib.figure import Figure
from sklearn.preprocessing import StandardScaler

from colalib import course, evaluation
from colalib.data import audio, segments
from colalib.data.corpora import Corpus
from colalib.data.store import MelStore
from colalib.encoder import Encoder, in_batches, pool_segments
from colalib.evaluation import plots
from colalib.files import atomic, fingerprint
from colalib.widgets import parts

HERE = Path(__file__).parent
IN_PAGE = 500  # clips whose previews are kept in the page; of more, the files are linked
PREVIEW = 6.0  # seconds of a preview in the page; 20 kB each
PLAYABLE = {".mp3", ".wav", ".flac", ".ogg"}  # what browsers play


class Space(NamedTuple):
    """What is drawn: clip embeddings [n, d]; a map of their standardised columns, fitted by UMAP;
    and their encoder, if other recordings are to be placed on the map."""

    features: np.ndarray
    reducer: object  # umap.UMAP: `embedding_` [n, 2], `transform`
    encoder: Encoder | None = None


class Map(anywidget.AnyWidget):
    """The points and what belongs to them, as the page sees them. Numbers of clips count from 0."""

    _esm = HERE / "maps.js"
    _css = HERE / "maps.css"
    size = traitlets.Int().tag(sync=True)
    names = traitlets.List().tag(sync=True)  # of the spaces
    titles = traitlets.List().tag(sync=True)  # of the clips
    # column → {"names": values, "colours": one each, "codes": one a clip}
    columns = traitlets.Dict().tag(sync=True)
    column = traitlets.Unicode().tag(sync=True)
    points = traitlets.Bytes().tag(sync=True)  # float32 [spaces, n, 2]
    near = traitlets.List().tag(sync=True)  # a space: neighbours [n · k]
    k = traitlets.Int().tag(sync=True)
    links = traitlets.List().tag(sync=True)  # of files on the Jupyter server, or empty
    previews = traitlets.Bytes().tag(sync=True)  # MP3 files, one after the other
    offsets = traitlets.List().tag(sync=True)  # where they begin, and the end
    selected = traitlets.Int(-1).tag(sync=True)
    picked = traitlets.List().tag(sync=True)
    # {"name", "sound", "points": [x, y] a space, "near": numbers a space}
    added = traitlets.List().tag(sync=True)
    latency = traitlets.Float(0.0).tag(sync=True)  # ms from the last press to sound


def to_mp3(wave: np.ndarray, seconds: float = PREVIEW) -> bytes:
    """The beginning of samples at 16 kHz as MP3."""
    file = io.BytesIO()
    part = np.clip(wave[: int(seconds * 16_000)], -1, 1)
    soundfile.write(file, part, 16_000, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.8)
    return file.getvalue()


def preview(path: Path) -> bytes:
    """The beginning of a recording as MP3; nothing if it can't be read."""
    try:
        return to_mp3(audio.load_audio(path))
    except audio.Unusable:
        return b""


def server_root() -> Path:
    """The folder whose files the Jupyter server gives out: of the server that started this kernel,
    else the course's own.
    """
    file = Path(jupyter_runtime_dir()) / f"jpserver-{os.environ.get('JPY_PARENT_PID')}.json"
    try:
        return Path(json.loads(file.read_text())["root_dir"]).resolve()
    except (OSError, ValueError, KeyError):  # no server, or one of another kind
        return course.home().resolve()


def links(files: list[Path]) -> list[str]:
    """Addresses of recordings on the Jupyter server, under its base. Files that the server doesn't
    give out are hard-linked to a folder that it does; of those that can't be, or that browsers
    don't play, a preview is made there."""
    root, kept = server_root(), (course.runs() / "previews").resolve()
    if not kept.is_relative_to(root):
        kept = Path.cwd() / "previews"
    kept.mkdir(parents=True, exist_ok=True)

    def link(path: Path) -> str:
        path = path.resolve()
        plays = path.suffix.lower() in PLAYABLE
        if not plays or not path.is_relative_to(root):
            made_of = [
                str(path),
                *((f"{(at := path.stat()).st_mtime_ns}", f"{at.st_size}") if path.exists() else ()),
            ]
            copy = kept / (fingerprint(made_of) + (path.suffix if plays else ".mp3"))
            if plays and not copy.exists():
                with suppress(OSError):  # another disk, or no such links there
                    copy.hardlink_to(path)
            if not copy.exists():
                with atomic(copy) as file:
                    file.write(preview(path))
            path = copy
        return "files/" + quote(Path(os.path.relpath(path, root)).as_posix())

    return Parallel(n_jobs=2, prefer="threads")(delayed(link)(file) for file in files)


def place(space: Space, wave: np.ndarray, store: MelStore, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Where a recording [samples] lands on a map (x, y), and the numbers of its k nearest clips in
    the space itself. Raises `ValueError` for a space without an encoder."""
    if space.encoder is None:
        raise ValueError("this space has no encoder to embed a recording with")
    x = torch.from_numpy(
        segments.split_segments(
            audio.log_mel(wave, store.mel), segments.EVAL_HOP_FRAMES, silence=store.mel.silence
        )
    )
    with torch.no_grad():
        embedding = pool_segments(in_batches(space.encoder.eval().block_features, x)).numpy()[None]
    scaler = StandardScaler().fit(space.features)
    new, all_ = scaler.transform(embedding), scaler.transform(space.features)
    similarity = all_ @ new[0] / (np.linalg.norm(all_, axis=1) * np.linalg.norm(new) + 1e-9)
    return space.reducer.transform(new)[0], np.argsort(-similarity)[:k]


def embedding_map(
    corpus: Corpus, store: MelStore, spaces: dict[str, Space], columns: list[str] | None = None, k: int = 5
) -> parts.WidgetWithFallback:
    """Maps of a corpus' clips side by side: hover to read, press (or arrow keys and Enter) to hear,
    drag around some to list and play them in turn. Lines lead to a clip's k nearest in the space
    itself, its own group left out.

    `spaces`: name → `Space`, one or two; `columns`: those of the store's table to colour by
    (default: all with 2 to 20 values). A recording of one's own can be added where a space has an
    encoder. Sounds are in the page (up to 500 clips) or files on the Jupyter server, so that they
    play without a kernel.
    """
    clips, n = store.clips, len(store)
    if columns is None:  # those with a few values
        columns = [
            c
            for c in clips
            if c == "label" or (c not in ("shard", "start") and 2 <= clips[c].nunique() <= 20)
        ]
    paths = dict(zip(corpus.clips["clip_id"], corpus.clips["path"]))
    files = [corpus.root / paths[clip] for clip in clips["clip_id"]]
    sounds = {}
    if n <= IN_PAGE:
        previews = Parallel(n_jobs=2)(delayed(preview)(f) for f in files)
        ends = np.cumsum([0, *map(len, previews)])
        sounds = {"previews": b"".join(previews), "offsets": [int(v) for v in ends]}
    else:
        sounds = {"links": links(files)}
    near = [evaluation.neighbours(s.features, clips["group"].values, k) for s in spaces.values()]
    page = Map(
        size=n,
        names=list(spaces),
        titles=clips.get("title", clips["clip_id"]).tolist(),
        columns={c: encode_column(clips[c].to_numpy(dtype=object)) for c in columns},
        column=columns[0],
        points=np.stack([s.reducer.embedding_ for s in spaces.values()]).astype(np.float32).tobytes(),
        near=[found.ravel().tolist() for found in near],
        k=near[0].shape[1],
        **sounds,
    )
    path = w.Text(placeholder="or a path, then Enter", continuous_update=False, layout=w.Layout(width="24em"))
    said = w.HTML()

    def add(name: str, wave: np.ndarray) -> None:
        said.value = f"{parts.text(name)}: embedding …"
        found = [place(s, wave, store, k) for s in spaces.values()]
        sound = "data:audio/mpeg;base64," + base64.b64encode(to_mp3(wave)).decode()
        point = {"name": name, "sound": sound, "points": [xy.tolist() for xy, _ in found]}
        page.added = [*page.added, point | {"near": [near.tolist() for _, near in found]}]
        said.value = f"{parts.text(name)}: the star on the map; its nearest are listed"

    def dropped(name: str, content: bytes) -> None:
        try:
            add(name, parts.decode(name, content))
        except audio.Unusable as error:
            said.value = parts.text(f"{name}: {error}")

    def typed(change) -> None:
        if change["new"].strip():
            file = Path(change["new"].strip()).expanduser()
            try:
                add(file.name, audio.load_audio(file))
            except audio.Unusable as error:
                said.value = parts.text(f"{file.name}: {error}")

    path.observe(typed, "value")
    parts.persist("embedding_map", {"column": page}, "column")
    children = [page]
    if all(s.encoder is not None for s in spaces.values()):
        children.append(
            w.HBox(
                [parts.FileDrop(dropped), path, said],
                layout=w.Layout(flex_flow="row wrap", align_items="center"),
            )
        )
    return parts.WidgetWithFallback(children, lambda: _static_figure(store, spaces, page.column))


def encode_column(values: np.ndarray) -> dict:
    """A column as numbers: its values with a colour each (those of `plots.embedding_map`), and a
    number a clip.
    """
    names, codes = np.unique(values.astype(str), return_inverse=True)
    colour = {"": "#CCCCCC"} | plots.colours(set(names) - {""})
    return {"names": names.tolist(), "colours": [colour[name] for name in names], "codes": codes.tolist()}


def _static_figure(store: MelStore, spaces: dict[str, Space], column: str) -> Figure:
    """The same maps as a figure, for print and where widgets cannot run."""
    figure = Figure(figsize=(1.5 + 5 * len(spaces), 4.4), layout="constrained")
    axes = figure.subplots(1, len(spaces), squeeze=False)[0]
    for ax, (name, space) in zip(axes, spaces.items()):
        legend = "right" if ax is axes[-1] else None
        plots.embedding_map(space.reducer.embedding_, store.clips[column], ax, name, legend)
    return figure
