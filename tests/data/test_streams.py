"""Streams of random numbers by name, seed and further keys."""

import numpy as np

from colalib.data.streams import STREAMS, stream


def test_the_same_keys_give_the_same_numbers():
    assert np.array_equal(stream("pairs", 3, 7).random(5), stream("pairs", 3, 7).random(5))


def test_other_names_seeds_or_steps_give_other_numbers():
    keys = [(name, seed, step) for name in STREAMS for seed in (0, 1) for step in (0, 1)]
    assert len({stream(*key).random() for key in keys}) == len(keys)
