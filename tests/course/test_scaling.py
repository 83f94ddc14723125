"""The constants of this machine are measured as the calculator needs them."""

import pytest

from colalib.course import scaling
from colalib.training.cost import cost


@pytest.mark.slow
def test_measured_constants_give_a_cost():
    constants = scaling.measure(accelerator="cpu", batch=4, rounds=1)
    assert constants.arch == "b0-small"
    assert constants.device == "cpu"
    assert all(value > 0 for value in cost(constants, clips=8000).values())
