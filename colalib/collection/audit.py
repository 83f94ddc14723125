"""Audit: what is wrong with a collection, as a table of findings, the gravest kind first."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from colalib.collection.duplicates import near_duplicates
from colalib.collection.levels import SILENT_DB, Levels, measure
from colalib.collection.opening import NO_LENGTH, Collection, open_collection, scale_of
from colalib.collection.wrong_labels import label_probabilities
from colalib.data.audio import PREVIEW
from colalib.data.processes import number_of, worker_errors
from colalib.data.splits import check_column
from colalib.evaluation.probes import neighbours

KINDS = {  # in the order of the table: what they are, for the page
    "leakage": "One recording on both sides of a split, or in two groups: what is learned there is memory.",
    "duplicate": "One recording twice.",
    "label": "A probe that has not heard the clip's group expects another label. The score is by how much.",
    "lonely": "The clips that are least like any other: rare, or not of this collection.",
    "clipped": "Samples above full scale, or flat at it: recorded too loud.",
    "silent": f"Parts of 50 ms under {SILENT_DB:.0f} dBFS.",
    "cut off": "The clip begins or ends at the level of its loudest part, as if it were cut out.",
}
COLUMNS = "kind rank score clip_id path other words second other_second other_path".split()
NEAR = 5  # neighbours that propose duplicates; the distance to the last one says how lonely a clip is
LONELY = 0.05  # share of the clips that is listed as lonely, at most
MOST_LONELY = 50
CLIPPED = 1e-4  # share of the samples, from which a clip is listed
SILENT = 0.25  # share of the parts
CUT_OFF_DB = -3.0  # of an edge, relative to the loudest 20 ms
LEAD = 0.5  # seconds that a player begins before the place of a finding


@dataclass
class Audit:
    """What is wrong with a collection.

    `findings`: columns kind (see `KINDS`), rank (from 1 within a kind), score (higher is graver), clip_id,
    path, other (clip_id of the other one of a pair), words, `second` and `other_second` (where to listen),
    other_path.
    `notes`: what was not looked for, and why. `audio`: the folder that paths are relative to, if it is there.
    """

    name: str
    clips: int
    findings: pd.DataFrame
    notes: list[str]
    audio: Path | None

    def counts(self) -> dict[str, int]:
        """Return how many findings there are of each kind."""
        return {kind: int((self.findings["kind"] == kind).sum()) for kind in KINDS}


def audit(
    source: str | Path, label: str | None = None, encoder: str | Path = "default", jobs: int = -1, **options
) -> Audit:
    """Look for leakage, duplicates, wrong labels, lonely, clipped, silent and cut off clips in a collection.

    `source`: a folder, a store, or a known corpus. `label`: the column of labels to check (default: "label",
    if it has any). `options`: see `open_collection`. Raises `UserError` if there is no such source, encoder
    or column, or no usable clip.
    """
    with open_collection(source, encoder, jobs=jobs, **options) as collection:
        if label is not None:
            check_column(collection.table, label)
        n = len(collection.table)
        near = np.zeros((n, 0), int)
        if n > 1:
            near = neighbours(np.asarray(collection.vectors), np.arange(n), NEAR)
        rows, notes = [], collection.notes
        rows += duplicates(collection, near, options.get("progress", False))
        rows += wrong_labels(collection, label or "label", notes)
        rows += lonely(collection, near, notes)
        rows += levels(collection, jobs, notes)
        return Audit(collection.store.name, n, as_table(collection, rows), notes, collection.audio)


def as_table(collection: Collection, rows: list[dict]) -> pd.DataFrame:
    """Return findings as a table, ranked within each kind."""
    clips = collection.table
    table = pd.DataFrame(
        rows, columns=["kind", "score", "row", "words", "other_row", "second", "other_second"]
    )
    table["order"] = table["kind"].map([*KINDS].index)
    table = table.sort_values(["order", "score"], ascending=[True, False], kind="stable", ignore_index=True)
    table["rank"] = table.groupby("kind").cumcount() + 1
    names = {"clip_id": ("row", "clip_id"), "path": ("row", "path")}
    names |= {"other": ("other_row", "clip_id"), "other_path": ("other_row", "path")}
    for name, (row, column) in names.items():
        table[name] = table[row].map(clips[column]).fillna("")
    table["score"] = table["score"].astype(float).round(4)
    return table[COLUMNS]


def duplicates(collection: Collection, near: np.ndarray, progress: bool) -> list[dict]:
    """Return pairs of clips that are one recording; those across splits or groups are leakage."""
    clips = collection.table
    ids, groups, splits = (clips[c].values for c in ("clip_id", "group", "split"))
    rows = []
    for pair in near_duplicates(collection.store, near, progress).itertuples():
        a, b = pair.a, pair.b
        across = ["split"] * (collection.store.own_split and splits[a] != splits[b])
        # a group of its own is what a clip without a group gets
        named = groups[a] != ids[a] or groups[b] != ids[b]
        across += ["group"] * (named and groups[a] != groups[b])
        words = f"likeness {pair.likeness:.2f}"
        if pair.likeness > 0.9995:
            words = "equal, or equal but for the level"
        if abs(pair.shift) >= 0.02:
            words += f", {abs(pair.shift):.2f} s {'later' if pair.shift > 0 else 'earlier'} than in the other"
        lengths = [collection.store.mel.seconds(clips["frames"].iloc[i]) for i in (a, b)]
        if abs(lengths[0] - lengths[1]) >= 0.02:
            words += f", {lengths[0]:.2f} s and {lengths[1]:.2f} s long"
        if "split" in across:
            words += f"; splits {isolated(splits[a])} and {isolated(splits[b])}"
        if "group" in across:
            words += f"; groups {isolated(groups[a])} and {isolated(groups[b])}"
        seconds = {"second": max(pair.shift, 0.0), "other_second": abs(min(pair.shift, 0.0))}
        kind = "leakage" if across else "duplicate"
        rows.append(
            {"kind": kind, "score": pair.likeness, "row": a, "other_row": b, "words": words} | seconds
        )
    return rows


def wrong_labels(collection: Collection, label: str, notes: list[str]) -> list[dict]:
    """Return the clips that the probe expects another label of."""
    clips = collection.table
    y = clips[label].to_numpy(object)
    if len(set(y) - {""}) < 2:
        notes.append(f"labels were not checked: column {label!r} has fewer than two classes")
        return []
    judged = label_probabilities(collection.vectors, y, clips["group"].values)
    if unjudged := int((y != "").sum()) - len(judged):
        notes.append(
            f"{unjudged} labels were not checked: of a class that only one group has, nothing is learned"
        )
    agrees = judged["best"].to_numpy(object) == y[judged["row"].astype(int)]
    if len(judged):
        notes.append(
            f"the probe agrees with {100 * agrees.mean():.0f}% of the labels: the fewer, the more of its "
            "doubts are its own mistakes"
        )
    wrong = judged[~agrees]
    return [
        {
            "kind": "label",
            "score": r.best_probability - r.given,
            "row": r.row,
            "words": f"labelled {isolated(y[r.row])} ({r.given:.2f}), "
            f"expected {isolated(r.best)} ({r.best_probability:.2f})",
        }
        for r in wrong.itertuples()
    ]


def isolated(name: str) -> str:
    """Return a name so that text from right to left turns nothing around it; other names as they are."""
    left_to_right = all(unicodedata.bidirectional(letter) not in ("R", "AL", "AN") for letter in name)
    return name if left_to_right else f"\u2068{name}\u2069"


def lonely(collection: Collection, near: np.ndarray, notes: list[str]) -> list[dict]:
    """Return the clips whose fifth neighbour is farthest away."""
    n = len(near)
    if n < 4 * NEAR:
        notes.append(f"lonely clips were not looked for: {n} clips are too few")
        return []
    scale = scale_of(collection.vectors)
    unit = scale.transform(np.asarray(collection.vectors)) / np.maximum(scale.lengths, NO_LENGTH)[:, None]
    distance = 1 - np.einsum("nd,nd->n", unit, unit[near[:, -1]])
    most = min(math.ceil(LONELY * n), MOST_LONELY)
    return [
        {
            "kind": "lonely",
            "score": distance[i],
            "row": i,
            "other_row": near[i, 0],
            "words": f"cosine distance to the {NEAR}th neighbour {distance[i]:.2f}, "
            f"usually {np.median(distance):.2f}; the other is the nearest",
        }
        for i in np.argsort(-distance, kind="stable")[:most]
    ]


def levels(collection: Collection, jobs: int, notes: list[str]) -> list[dict]:
    """Return the clips that are clipped, silent in parts, or cut off."""
    if collection.audio is None:
        notes.append("levels were not measured: the recordings are not where they were")
        return []
    paths = [Path(collection.audio).absolute() / path for path in collection.table["path"]]
    with worker_errors():
        measured = Parallel(n_jobs=number_of(jobs, len(paths)))(delayed(measure)(path) for path in paths)
    if gone := sum(m is None for m in measured):
        notes.append(f"levels of {gone} clips were not measured: their files can no longer be read")
    return [
        {"row": row} | finding for row, m in enumerate(measured) if m for finding in findings_of_levels(m)
    ]


def findings_of_levels(m: Levels) -> Iterator[dict]:
    """Yield what is wrong with the levels of a clip."""
    if m.clipped >= CLIPPED:
        yield {"kind": "clipped", "score": m.clipped, "words": f"{100 * m.clipped:.2f}% of the samples"}
    if m.silent >= SILENT:
        start, end = m.silence
        words = f"{100 * m.silent:.0f}% of {m.seconds:.1f} s, the longest from {start:.1f} to {end:.1f} s"
        yield {"kind": "silent", "score": m.silent, "words": words, "second": start}
    if max(m.begin, m.end) >= CUT_OFF_DB:
        edges = [("begins", m.begin), ("ends", m.end)]
        words = " and ".join(f"{verb} at {round(db)} dB" for verb, db in edges if db >= CUT_OFF_DB)
        second = 0.0 if m.begin >= CUT_OFF_DB else max(m.seconds + LEAD - PREVIEW, 0.0)
        score = 10 ** (max(m.begin, m.end) / 20)
        yield {"kind": "cut off", "score": score, "words": words + " of the loudest part", "second": second}
