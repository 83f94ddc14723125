"""The settings: what there is to choose, and what is refused."""

import dataclasses
import math

import pytest

from colalib.errors import UserError
from colalib.settings import ARCHITECTURES, FinetuneConfig, PretrainConfig, check_limits
from colalib.training.finetuning import OPTIMISERS

CONFIGS = (PretrainConfig, FinetuneConfig)


def test_choices_are_what_there_is():
    choices = {f.name: f.metadata.get("choices") for kind in CONFIGS for f in dataclasses.fields(kind)}
    assert set(choices["objective"]) == {"bilinear", "cosine", "triplet"}
    assert set(choices["optimiser"]) == set(OPTIMISERS)
    assert set(choices["arch"]) == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", CONFIGS)
def test_defaults_are_within_their_limits(kind):
    check_limits(kind())
    for field in dataclasses.fields(kind):
        low, high = field.metadata.get("between", (0, 0))
        assert low <= high
        if low < high:
            check_limits(kind(**{field.name: low}))
            check_limits(kind(**{field.name: high}))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (PretrainConfig(dropout=2), "dropout must be from 0 to 0.9, not 2"),
        (PretrainConfig(batch_size=1), "batch size must be at least 2, not 1"),
        (PretrainConfig(objective="x"), "unknown objective 'x': choose one of bilinear, cosine, triplet"),
        (FinetuneConfig(labels_per_class=0), "labels per class must be at least 1, not 0"),
        (FinetuneConfig(lr=math.nan), "lr must be a number, not nan"),
        (FinetuneConfig(warmup=math.inf), "warmup must be a number, not inf"),
    ],
)
def test_a_setting_out_of_its_limits_is_refused(config, text):
    with pytest.raises(UserError, match=f"^{text}$"):
        check_limits(config)
