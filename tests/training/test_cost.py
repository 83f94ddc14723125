"""The cost of a project is plain arithmetic on measured constants."""

import pytest

from colalib.training.cost import MP3, Constants, cost

MEASURED = Constants("b0", "cpu", pairs_per_s=50, weights_mb=80, segment_mb=10, prepare_s=0.002)
PROJECT = {"clips": 10_000, "seconds": 30, "epochs": 10, "batch": 1000, "devices": 2, "cores": 4, "speed": 5}


def test_a_cost_is_plain_arithmetic():
    assert cost(MEASURED, **PROJECT) == pytest.approx(
        {
            "audio as MP3 (GB)": 10_000 * 30 * MP3 / 1e9,
            "store (GB)": 10_000 * 3001 * 128 / 1e9,
            "preparing (h)": 10_000 * 30 * 0.002 / 4 / 3600,
            "steps": 100,
            "pre-training (h)": 10 * 10_000 / (50 * 5 * 2) / 3600,
            "memory of a device (GB)": (80 + 1000 * 10) / 1000,
        }
    )


def test_chunks_take_longer_and_less_memory():
    plain, chunked = cost(MEASURED, **PROJECT), cost(MEASURED, **PROJECT, chunk=100)
    assert chunked["memory of a device (GB)"] == pytest.approx((80 + 100 * 10) / 1000)
    assert chunked["pre-training (h)"] == pytest.approx(4 / 3 * plain["pre-training (h)"])
