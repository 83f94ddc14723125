"""The embedding map (notebook 7): clips as points that are heard when they are pressed, in one or two
spaces at once.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import anywidget
import ipywidgets as w
import numpy as np
import pandas as pd
import traitlets
from joblib import Parallel, delayed
from jupyter_core.paths import jupyter_runtime_dir
from matplotlib.figure import Figure
from sklearn.preprocessing import StandardScaler

from colalib.data import audio
from colalib.data.audio import previews, previews_of_file, to_mp3
from colalib.data.corpus import Corpus
from colalib.data.splits import RESERVED_COLUMNS
from colalib.data.store import MelStore
from colalib.evaluation import embed, neighbours, plots
from colalib.files import atomic, fingerprint, home, runs_folder
from colalib.widgets import parts

HERE = Path(__file__).parent
IN_PAGE = 500  # up to so many clips, their previews are kept in the page; of more, files are linked
PLAYABLE = {".mp3", ".wav", ".flac", ".ogg"}  # what browsers play


class Space(NamedTuple):
    """What is drawn: clip embeddings [n, d], a map of them, and perhaps the name of their encoder.

    With the encoder, as `embed` takes it, other recordings can be placed on the map.
    """

    features: np.ndarray
    reducer: object  # umap.UMAP fitted to the standardised features: `embedding_` [n, 2], `transform`
    encoder: str | Path | None = None


def bundle(*names: str) -> str:
    """Return modules of page code as one, in their order: each stands after those that it imports."""
    text = "".join((HERE / name).read_text(encoding="utf-8") for name in names)
    return re.sub(r"^import .*\n|^export (?!default)", "", text, flags=re.M)


class Map(anywidget.AnyWidget):
    """The points and what belongs to them, as the page sees them. Numbers of clips count from 0.

    With `scores` the spaces are shown one at a time in the same place, as a slider chooses.
    """

    _esm = bundle("maps_parts.js", "maps_spectrogram.js", "maps_view.js", "maps.js")
    _css = HERE / "maps.css"
    size = traitlets.Int().tag(sync=True)
    names = traitlets.List().tag(sync=True)  # of the spaces
    titles = traitlets.List().tag(sync=True)  # of the clips
    ids = traitlets.List().tag(sync=True)
    paths = traitlets.List().tag(sync=True)  # relative to the corpus
    # column → {"names": values, "colours": one per value, "codes": one per clip}
    columns = traitlets.Dict().tag(sync=True)
    column = traitlets.Unicode().tag(sync=True)
    points = traitlets.Bytes().tag(sync=True)  # float32 [spaces, n, 2]
    near = traitlets.List().tag(sync=True)  # per space: neighbours [n · k]
    k = traitlets.Int().tag(sync=True)
    # to files on the Jupyter server or beside the page; "" or no list where the sound is in `previews`
    links = traitlets.List().tag(sync=True)
    previews = traitlets.Bytes().tag(sync=True)  # MP3 files, one after the other
    offsets = traitlets.List().tag(sync=True)  # where they begin, and the end
    selected = traitlets.Int(-1).tag(sync=True)
    picked = traitlets.List().tag(sync=True)
    # {"name", "sound", "points": [x, y] per space, "near": numbers per space}
    added = traitlets.List().tag(sync=True)
    # {"words", "mean", "low", "high"} per space, or empty
    scores = traitlets.List().tag(sync=True)
    moment = traitlets.Int(0).tag(sync=True)  # number of the space that is shown

    @traitlets.validate("column")
    def known(self, proposal: dict) -> str:
        """Refuse a column that is not there, such as one that was kept for another store."""
        if proposal["value"] not in self.columns:
            raise traitlets.TraitError(f"no column {proposal['value']!r}")
        return proposal["value"]

    @traitlets.validate("moment")
    def within(self, proposal: dict) -> int:
        """Refuse a space that is not there."""
        if not 0 <= proposal["value"] < len(self.names):
            raise traitlets.TraitError(f"no space {proposal['value']}")
        return proposal["value"]

    def packed(self) -> dict:
        """Return the traits as JSON can hold them, bytes in base64."""
        traits = {name: getattr(self, name) for name in Map.class_own_traits(sync=True)}
        coded = {
            name: base64.b64encode(value).decode() for name, value in traits.items() if type(value) is bytes
        }
        return traits | coded

    @staticmethod
    def unpacked(packed: dict) -> Map:
        """Return the page that `packed` describes."""
        coded = {name for name, trait in Map.class_own_traits().items() if isinstance(trait, traitlets.Bytes)}
        return Map(**packed | {name: base64.b64decode(packed[name]) for name in coded})


def server_root() -> Path:
    """Return the folder whose files the Jupyter server serves.

    Of the server that started this kernel; without one, the course's own folder.
    """
    file = Path(jupyter_runtime_dir()) / f"jpserver-{os.environ.get('JPY_PARENT_PID')}.json"
    try:
        return Path(json.loads(file.read_text())["root_dir"]).resolve()
    except (OSError, ValueError, KeyError):  # no server, or one of another kind
        return home().resolve()


def links(files: list[Path]) -> list[str]:
    """Return addresses of recordings on the Jupyter server, relative to its base.

    Files that the server does not serve, or that browsers do not play, get a stand-in where it does.
    """
    root = server_root()
    folder = (runs_folder() / "previews").resolve()
    if not folder.is_relative_to(root):
        folder = Path.cwd() / "previews"
    folder.mkdir(parents=True, exist_ok=True)

    def link(path: Path) -> str:
        path = path.resolve()
        # the server hides what lies in a folder whose name begins with a dot
        served = path.is_relative_to(root) and not any(p[0] == "." for p in path.relative_to(root).parts)
        if path.suffix.lower() not in PLAYABLE or not served:
            path = stand_in(path, folder)
        return "files/" + quote(Path(os.path.relpath(path, root)).as_posix())

    return Parallel(n_jobs=2, prefer="threads")(delayed(link)(file) for file in files)


def stand_in(path: Path, folder: Path) -> Path:
    """Return a file in `folder` that sounds like the one at `path`.

    A hard link; where that cannot be made, or browsers do not play the file, a preview.
    """
    plays = path.suffix.lower() in PLAYABLE
    # named by the content: an edited recording gets another
    identity = [str(path)]
    with suppress(OSError):  # it is gone, or may not be read
        identity += [str(path.stat().st_mtime_ns), str(path.stat().st_size)]
    copy = folder / (fingerprint(identity) + (path.suffix if plays else ".mp3"))
    if plays and not copy.exists():
        with suppress(OSError):  # on another disk, or a file system without hard links
            copy.hardlink_to(path)
    if not copy.exists() and (sound := previews_of_file(path, [0.0])[0]):
        with suppress(OSError), atomic(copy) as file:  # without room on the disk a map without this sound
            file.write(sound)
    return copy


def place(space: Space, wave: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return where samples [n] at 16 kHz lie on a map (x, y), and the numbers of their k nearest clips.

    Nearest in the space itself, by cosine similarity of standardised features.
    """
    embedding = embed((wave, 16_000), space.encoder).vectors  # [1, d]
    scaler = StandardScaler().fit(space.features)
    new = scaler.transform(embedding)
    clips = scaler.transform(space.features)
    similarity = clips @ new[0] / (np.linalg.norm(clips, axis=1) * np.linalg.norm(new) + 1e-9)  # [n]
    return space.reducer.transform(new)[0], np.argsort(-similarity)[:k]


def encode_column(values: np.ndarray) -> dict:
    """Return a column as numbers: its values, a colour for each, and the number of each clip's value.

    The colours are those of `plots.embedding_map`.
    """
    names, codes = np.unique(values.astype(str), return_inverse=True)
    colour = {"": "#CCCCCC"} | plots.colours(set(names) - {""})
    return {"names": names.tolist(), "colours": [colour[name] for name in names], "codes": codes.tolist()}


class EmbeddingMap(parts.WidgetWithFallback):
    """Maps of a corpus' clips side by side.

    Hover over a point to read, press it to hear it (or use arrow keys and Enter). Drag around several to
    list them and play them in turn. Lines lead to the k clips that are nearest in the space itself; the
    clip's own group is left out.

    `spaces`: name → `Space`, one or two. `columns`: those of the store's table to colour by (default: label,
    and all with 2 to 20 values). If all spaces have an encoder, you can add a recording of your own. Sounds
    play without a kernel: they are in the page (up to 500 clips) or files on the Jupyter server.
    """

    def __init__(
        self,
        corpus: Corpus,
        store: MelStore,
        spaces: dict[str, Space],
        columns: list[str] | None = None,
        k: int = 5,
    ):
        super().__init__()
        self.store = store
        self.spaces = spaces
        self.k = k
        maps = {name: (space.features, space.reducer.embedding_) for name, space in spaces.items()}
        sounds = page_sounds([corpus.root / path for path in store.clips["path"]])
        self.page = make_page(store.clips, maps, columns or colour_columns(store.clips), sounds, k)
        self.drop, self.refused = parts.FileDrop(self.add), parts.Refused()
        options = {"continuous_update": False, "layout": {"width": "24em"}}
        self.path = w.Text(placeholder="or a path, then Enter", **options)
        self.path.observe(self.add_path, "value")
        self.message = w.HTML()
        parts.persist("embedding_map", {"column": self.page}, "column")
        row = w.HBox([self.drop, self.path, self.message], layout=parts.ROW | {"align_items": "center"})
        can_embed = all(space.encoder is not None for space in spaces.values())
        self.children = [self.page, row, self.refused] if can_embed else [self.page]

    def add(self, name: str, load: Callable[[], np.ndarray]) -> None:
        """Place a recording on the maps; `load()` returns its samples or raises the reason why it cannot."""
        title = parts.escape(name)
        self.message.value = f"{title}: embedding …"
        try:
            wave = load()
            placed = [place(space, wave, self.k) for space in self.spaces.values()]
            sound = base64.b64encode(to_mp3(wave)).decode()
        # also a path that no file can have, no such home folder, too long for the memory
        except (*parts.NO_SOUND, ValueError, RuntimeError, MemoryError) as error:
            self.message.value = ""
            self.refused.add(name, error)
            return
        recording = {
            "name": name,
            "sound": f"data:audio/mpeg;base64,{sound}",
            "points": [point.tolist() for point, _ in placed],
            "near": [near.tolist() for _, near in placed],
        }
        self.page.added = [*self.page.added, recording]
        self.message.value = f"{title}: the star on the map. Its nearest clips are listed."

    def add_path(self, change) -> None:
        """Place the file at the path that was typed."""
        if path := change["new"].strip():
            self.add(parts.shown_name(path), lambda: audio.load_audio(Path(path).expanduser()))

    def without_kernel(self) -> dict:
        """Return the page with the maps."""
        return {"map": self.page.packed()}

    def static_figure(self) -> Figure:
        """Return the maps as a figure."""
        figure = Figure(figsize=(1.5 + 5 * len(self.spaces), 4.4), layout="constrained")
        axes = figure.subplots(1, len(self.spaces), squeeze=False)[0]
        labels = self.store.clips[self.page.column]
        for ax, (name, space) in zip(axes, self.spaces.items()):
            legend = "right" if ax is axes[-1] else None
            plots.embedding_map(space.reducer.embedding_, labels, ax, name, legend)
        return figure


def make_page(
    clips: pd.DataFrame,
    spaces: dict[str, tuple[np.ndarray, np.ndarray]],
    columns: list[str],
    sounds: dict,
    k: int = 5,
    scores: list[dict] = (),
) -> Map:
    """Return the page of maps of some clips, with all that it needs when the kernel is gone.

    `spaces`: name → features [n, d] and map [n, 2]. `sounds`: traits of `Map`, as `page_sounds` gives them.
    `scores`: see `Map`.
    """
    groups = clips["group"].values
    near = [neighbours(features, groups, k) for features, _ in spaces.values()]
    points = np.stack([points for _, points in spaces.values()])
    return Map(
        size=len(clips),
        names=list(spaces),
        titles=clips.get("title", clips["clip_id"]).tolist(),
        ids=clips["clip_id"].tolist(),
        paths=clips["path"].tolist(),
        columns={column: encode_column(clips[column].to_numpy(dtype=object)) for column in columns},
        column=columns[0],
        points=points.astype(np.float32).tobytes(),
        near=[of_space.ravel().tolist() for of_space in near],
        k=near[0].shape[1],
        scores=list(scores),
        **sounds,
    )


def colour_columns(clips: pd.DataFrame, first: Sequence[str] = ()) -> list[str]:
    """Return the columns of a table that clips can be coloured by: those with 2 to 20 values, and label.

    The columns in `first` come first, however many values they have. A column in which every clip has its
    own value, as a name, says nothing.
    """
    others = [column for column in clips if column not in RESERVED_COLUMNS.union(first)]
    most = min(20, len(clips) - 1)
    return [*first, *(c for c in others if c == "label" or 2 <= clips[c].nunique() <= most)]


def page_sounds(files: list[Path]) -> dict:
    """Return the traits of `Map` that hold the sounds: previews of a few clips, links to many."""
    if len(files) > IN_PAGE:
        return {"links": links(files)}
    sounds = [*previews((file, 0.0) for file in files)]
    return {"previews": b"".join(sounds), "offsets": np.cumsum([0, *map(len, sounds)]).tolist()}
