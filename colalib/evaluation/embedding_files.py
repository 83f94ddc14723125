"""Files of embeddings: .npz for numpy, .parquet for tables and for maps such as Embedding Atlas."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Container
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from colalib.data import audio
from colalib.errors import UserError
from colalib.evaluation.embedding import Embedded, embed
from colalib.evaluation.flattening import layout
from colalib.files import atomic, check_ours

NEIGHBOURS = 15  # of a row in a .parquet file, as many as UMAP looks at


def embed_to_file(source: str | Path, encoder: str | Path, out: Path | str, **options) -> Embedded:
    """Write `embed` to a file, and return it. `options` are those of `embed`.

    An .npz file holds clip_id, embedding float32 [n, d], and the table's other columns as fixed-width text
    (no pickle); `start` is float64. A .parquet file is described at `write_parquet`. A column whose name is
    taken gets a _ behind it.
    """
    parquet = Path(out).suffix == ".parquet"
    if parquet and not find_spec("pyarrow"):
        raise UserError(".parquet needs pyarrow: pip install pyarrow, or name a file that ends in .npz")
    check_ours(Path(out), b"colalib embed" if parquet else b"clip_id.npy")
    embedded = embed(source, encoder, **options)
    (write_parquet if parquet else write_npz)(embedded, Path(out))
    return embedded


def write_npz(embedded: Embedded, out: Path) -> None:
    """Write embeddings as an .npz file."""
    members = {"embedding": np.asarray(embedded.vectors)}
    for column in embedded.clips:
        values = np.array(embedded.clips[column].tolist())
        name = re.sub(r"[^\w .-]", "_", column).lstrip(".")  # a column is not a path
        members[free(name, members)] = values if column == "start" else values.astype(str)
    with atomic(out) as file, zipfile.ZipFile(file, "w") as archive:
        # np.savez would take a column named `file` for its own argument
        for name, values in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def free(name: str, taken: Container[str]) -> str:
    """Return a name that is not taken: with _ behind it, as often as needed."""
    while name in taken:
        name += "_"
    return name


def write_parquet(embedded: Embedded, out: Path) -> None:
    """Write embeddings as a .parquet file, in the form that Embedding Atlas opens with sound.

    One row per clip (or window): the table's columns; `vector` large_list<float32>; `audio` struct{bytes,
    path}, an MP3 of its first 6 s, where the audio is there; `projection_x`, `projection_y`, a UMAP map;
    `neighbors` struct{ids, distances}, the nearest rows, numbered from 0, by cosine distance of standardised
    embeddings.
    """
    import pyarrow as pa
    import pyarrow.parquet

    vectors = np.asarray(embedded.vectors, np.float32)
    columns = {"vector": as_lists(vectors)}
    if embedded.root:
        starts = embedded.clips.get("start", np.zeros(len(vectors)))
        files = [embedded.root / path for path in embedded.clips["path"]]
        sounds = audio.previews(zip(files, starts))
        names = [f"{path}.mp3" for path in embedded.clips["path"]]
        columns["audio"] = pa.StructArray.from_arrays(
            [pa.array([sound or None for sound in sounds], pa.large_binary()), names], ["bytes", "path"]
        )
    x, y = layout(vectors, metric="cosine", init="pca").astype(np.float32).T.copy()
    columns |= {"projection_x": pa.array(x), "projection_y": pa.array(y)}
    if len(vectors) > 1:
        x = StandardScaler().fit_transform(vectors)
        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(x) - 1), metric="cosine").fit(x)
        distances, ids = near.kneighbors()  # [n, k]; without a clip itself
        parts = [as_lists(ids), as_lists(distances.astype(np.float32))]
        columns["neighbors"] = pa.StructArray.from_arrays(parts, ["ids", "distances"])
    table = {}
    for column in embedded.clips:
        table[free(column, columns.keys() | table.keys())] = pa.array(embedded.clips[column].tolist())
    with atomic(out) as file:
        table = pa.table(table | columns, metadata={"made by": "colalib embed"})
        pyarrow.parquet.write_table(table, file, compression="zstd")


def as_lists(rows: np.ndarray):
    """Return an array [n, k] as pyarrow's list column."""
    import pyarrow as pa

    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int64)
    return pa.LargeListArray.from_arrays(offsets, rows.ravel())
