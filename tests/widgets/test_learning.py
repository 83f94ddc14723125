"""Watch it learn: maps that stay in place from snapshot to snapshot, and what the page gets of them."""

import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from colalib import widgets
from colalib.errors import UserError
from colalib.training.runs import Run, snapshot_name
from colalib.widgets import learning
from colalib.widgets.choices import read_settings
from colalib.widgets.flatten import kept_neighbours

ROWS = np.arange(0, 96, 5)  # of the store: 20 clips of all labels


@pytest.fixture
def quick_maps(monkeypatch):
    """The first two columns of the features stand for UMAP, which takes long."""
    monkeypatch.setattr(learning, "aligned_maps", lambda features: [x[:, :2] for x in features])


@pytest.fixture(scope="module")
def run_with_snapshots(short_run, tmp_path_factory):
    """A run with three snapshots, which are all its end."""
    out = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(short_run, out)
    (out / "snapshots").mkdir()
    for step in (0, 8, 16):
        shutil.copy(out / "encoder.safetensors", out / snapshot_name(step))
    return out


def movement(maps) -> float:
    """Return how far a point moves from map to map, as a share of the map's width."""
    steps = [np.linalg.norm(a - b, axis=1).mean() / np.ptp(b, axis=0).max() for a, b in zip(maps, maps[1:])]
    return float(np.mean(steps))


def test_a_map_that_was_turned_mirrored_and_shifted_comes_back():
    points = np.random.default_rng(0).normal(size=(30, 2))
    turn = np.array([[0.6, 0.8], [0.8, -0.6]])
    assert np.allclose(learning.align(points @ turn + [5, -3], points), points)


@pytest.mark.slow
def test_points_move_less_than_between_maps_of_their_own():
    rng = np.random.default_rng(0)
    islands = np.repeat(3 * rng.normal(size=(4, 8)), 15, axis=0)  # [60, 8]
    noise = rng.normal(size=(60, 8))
    features = [share * islands + noise for share in (0.0, 0.6, 1.2)]
    maps = learning.aligned_maps(features)
    assert [points.shape for points in maps] == [(60, 2)] * 3
    alone = [learning.aligned_maps([x])[0] for x in features]
    assert movement(maps) < 0.7 * movement(alone)
    # a map that starts from another keeps as many neighbours of its own space
    x = StandardScaler().fit_transform(features[0])
    assert kept_neighbours(x, maps[0]) > kept_neighbours(x, alone[0]) - 0.05
    assert kept_neighbours(x, maps[0]) > kept_neighbours(x, maps[-1]) + 0.1
    # a point is still its clip: the islands of the last map are those of the features
    distance = np.linalg.norm(maps[-1][:, None] - maps[-1], axis=2) + 1e9 * np.eye(60)
    assert np.mean(distance.argmin(axis=1) // 15 == np.arange(60) // 15) > 0.9


@pytest.mark.parametrize("n", [1, 3])
def test_too_few_clips_for_a_map(n):
    with pytest.raises(UserError, match=f"{n} clips are too few for UMAP: take at least 4"):
        learning.aligned_maps([np.zeros((n, 5))] * 2)


def test_the_accuracy_leaves_out_own_groups_and_clips_without_label():
    clips = pd.DataFrame(
        {"clip_id": [*"abcde"], "group": [*"ppqrs"], "label": ["x", "x", "y", "z", ""]}, index=range(7, 12)
    )
    # a and b are two takes, each nearest the other but for c, which lies between; e has no label
    space = np.array([[1, 0.05], [1, -0.05], [1, 0], [-3, 0], [1, 0.04]])
    scores = learning.neighbour_accuracy({"step 0": space, "step 8": space}, clips, "label")
    assert [score["mean"] for score in scores] == [0, 0]
    assert scores[0]["words"].startswith("the nearest neighbour has the same label for 0% of the clips (95%")
    clips["label"] = ["x", "x", "x", "z", ""]  # now c, of another group, agrees with both
    (score,) = learning.neighbour_accuracy({"step 0": space}, clips, "label")
    assert score["mean"] == 0.75
    assert score["low"] <= 0.75 <= score["high"]
    with pytest.raises(UserError, match="fewer than two groups"):
        learning.neighbour_accuracy({"step 0": space[:2]}, clips.iloc[:2], "label")


def test_the_page_shows_one_snapshot_at_a_time(corpus, mel_store, run_with_snapshots, quick_maps):
    shown = widgets.watch_it_learn(corpus, mel_store, run_with_snapshots, ROWS)
    page = shown.page
    assert page.names == ["step 0", "step 8", "step 16"]
    assert page.size == len(ROWS)
    assert len(page.points) == 3 * len(ROWS) * 2 * 4
    points = np.frombuffer(page.points, np.float32).reshape(3, len(ROWS), 2)
    assert np.allclose(points[1], shown.maps["step 8"])
    assert len(page.scores) == 3
    assert len(page.near) == 3
    assert page.titles[3] == mel_store.clips["clip_id"][ROWS[3]]
    assert len(page.offsets) == len(ROWS) + 1, "every clip has its sound"
    page.moment = 2
    assert read_settings("watch_it_learn") == {"moment": 2}
    with pytest.raises(Exception, match="no space 3"):
        page.moment = 3
    bundle = shown._repr_mimebundle_()
    assert bundle["image/png"]
    titles = [ax.get_title() for ax in shown.static_figure().axes]
    assert len(titles) == 3
    assert titles[0].startswith("step 0: ")


def test_a_run_without_snapshots_is_told_in_a_line(corpus, mel_store, short_run):
    assert Run(short_run).snapshots() == {}
    with pytest.raises(UserError, match="has no snapshots"):
        widgets.watch_it_learn(corpus, mel_store, short_run, ROWS)
