"""The benchmarks run and report what they say; how fast anything is, no test asks."""

import pytest

from colalib.course import bench


def test_throughput_is_a_ratio_to_the_reference():
    rows = bench.training_throughput(("b0-small",), batch=2, seconds=0.1)
    assert rows[0]["precision"] == "reference" and rows[0]["ratio"] == 1
    for row in rows:
        assert row["ratio"] == pytest.approx(row["segments_per_s"] / rows[0]["segments_per_s"])
        # of a segment; b0's 0.39 GMAC at 224x224, by size and width
        assert 0.03 < row["gflops"] / row["segments_per_s"] < 0.3


def test_shares_add_up():
    shares = bench.step_shares("b0-small", "float32", batch=2, steps=1)
    assert set(shares) == {*bench.OPERATORS, "other"} and sum(shares.values()) == pytest.approx(1)
    assert shares["convolutions"] > 0.05
    assert 0 < bench.loader_share(steps=1) < 1


def test_preparing_is_timed():
    assert list(bench.preparing(clips=8, seconds=0.5)) == ["one process", "two processes"]
    parts = bench.preparing_parts(seconds=2, rounds=1)
    assert parts["prepare"] > 0 and parts["librosa"] > 0 and parts["decoding"] < 1


def test_memory_is_weighed():
    memory = bench.peak_memory(batch=32, chunk=4)
    assert 0 < memory["chunks"] < memory["whole"] / 2
    # most of what a whole batch adds is what its segments keep
    assert 0.5 < memory["whole"] / (64 * bench.activations()) < 2
