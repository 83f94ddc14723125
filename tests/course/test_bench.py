"""The benchmarks run and report what they say; how fast anything is, no test asks."""

import inspect

import numpy as np
import pytest
from helpers import call

from colalib.course import bench
from colalib.data.clips import pretraining_clips
from colalib.data.segments import pair_batch
from colalib.data.store import MelStore


@pytest.mark.slow
def test_throughput_is_a_ratio_to_the_reference():
    rows = bench.training_throughput(("b0-small",), batch=2, seconds=0.1)
    assert rows[0]["precision"] == "reference"
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["ratio"] == pytest.approx(row["segments_per_s"] / rows[0]["segments_per_s"])
        # of a segment; b0's 0.39 GMAC at 224x224, by size and width
        assert 0.03 < row["gflops"] / row["segments_per_s"] < 0.3


@pytest.mark.slow
def test_shares_add_up():
    shares = bench.step_shares("b0-small", "float32", batch=2, steps=1)
    assert set(shares) == {*bench.OPERATORS, "other"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["convolutions"] > 0.05
    assert 0 < bench.loader_share(steps=1) < 1


@pytest.mark.slow
def test_preparing_is_timed():
    assert list(bench.preparing(clips=8, seconds=0.5)) == ["one process", "two processes"]
    parts = bench.preparing_parts(seconds=2, rounds=1)
    assert parts["prepare"] > 0
    assert parts["librosa"] > 0
    assert parts["decoding"] > 0


@pytest.mark.slow
def test_memory_is_weighed():
    memory = bench.peak_memory(batch=32, chunk=4)
    assert 0 < memory["chunks"] < memory["whole"] / 2
    # most of what a whole batch adds is what its segments keep
    assert 0.5 < memory["whole"] / (64 * bench.activations()) < 2


TINY = {  # what `colalib bench` measures, at the smallest size
    "gemm_peak": {"seconds": 0.01},
    "training_throughput": {"batch": 2, "seconds": 0.1},
    "step_shares": {"batch": 2, "steps": 1},
    "embedding_speed": {"segments": 4, "seconds": 0.1},
    "loader_share": {"steps": 1},
    "preparing": {"clips": 4, "seconds": 0.5},
    "preparing_parts": {"seconds": 1.0, "rounds": 1},
    "large_store": {"pairs": 8},
    "searching": {"clips": 100, "size": 8, "seconds": 0.1},
    "peak_memory": {"batch": 8, "chunk": 4},
}


def smaller(function, size):
    """Return a function whose arguments are replaced by those of `size`."""

    def call_smaller(*args, **kwargs):
        given = inspect.signature(function).bind_partial(*args, **kwargs).arguments
        for name in given.keys() & size:  # what is replaced would have done as well
            assert type(given[name]) is type(size[name]), f"{function.__name__}: {name} = {given[name]}"
        return function(**given | size)

    return call_smaller


@pytest.mark.slow
def test_the_bench_from_the_shell(capsys, monkeypatch):
    for name, size in TINY.items():
        monkeypatch.setattr(bench, name, smaller(getattr(bench, name), size))
    code, out, error = call(capsys, "bench", "--quick")
    assert code == 0, error
    for head in ("Matrix product", "Training, segments/s", "Shares of a training step", "Drawing the pairs"):
        assert head in out
    for head in (
        "Preparing 300 clips",
        "A stereo MP3",
        "Embedding 256 segments",
        "A store of 106,574",
        "Peak memory",
    ):
        assert head in out


class Rows:
    """Frames that note how many rows are read of them."""

    def __init__(self, rows: range, sizes: list[int]):
        self.rows, self.sizes, self.shape = rows, sizes, (len(rows), 64)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, part):
        return Rows(self.rows[part], self.sizes)

    def astype(self, kind):
        self.sizes.append(len(self.rows))
        return np.zeros((len(self.rows), 64), kind)


def test_of_a_large_store_only_the_crops_are_read(tmp_path, monkeypatch):
    large = MelStore(bench.sparse_store(tmp_path))
    assert len(large) == 106_574
    assert large.frames(106_573).shape == (3000, 64)
    sizes, open_shard = [], large._shard
    monkeypatch.setattr(large, "_shard", lambda shard: Rows(range(len(open_shard(shard))), sizes))
    anchors, positives = pair_batch(pretraining_clips([large]), 0, 1024, 0)
    assert anchors.shape == positives.shape == (1024, 98, 64)
    assert sizes == [98] * 2048


def test_searching_is_timed_beside_the_product_in_memory():
    times = bench.searching(clips=50, size=8, seconds=0.01)
    assert list(times) == ["first", "later", "product"]
    assert min(times.values()) > 0
