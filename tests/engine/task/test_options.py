"""Options of adapting: one that is out of range is refused, and named."""

import dataclasses

import pytest

from recast_cli.engine.errors import OptionError, RecastError
from recast_cli.engine.layout.layout import Layout
from recast_cli.engine.task.options import AdaptOptions, with_rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"lr": -1.0}, "lr -1"),
        ({"lr": float("nan")}, "lr nan"),
        ({"head_lr": 0}, "head_lr 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"image_size": -3}, "image_size -3"),
        ({"split": "random"}, "split random"),
        ({"class_weights": "even"}, "class_weights even"),
        ({"on_bad_image": "ignore"}, "on_bad_image ignore"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(OptionError, match=f"^{message}") as caught:
        AdaptOptions(**change)
    assert caught.value.option == next(iter(change))


@pytest.mark.parametrize("change", [{"seed": 2**63}, {"split_seed": -1}])
def test_a_seed_out_of_range_is_refused(change):
    with pytest.raises(RecastError, match=r"seed .* is out of range"):
        dataclasses.replace(AdaptOptions(), **change)


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({"choose": 2}, 0.3),
        ({"choose": 4800}, 0.3),
        ({"choose": 48, "lr": 0.1}, 0.1),
        ({}, 0.05),
    ],
)
def test_chosen_coefficients_have_a_rate_of_their_own(given, rate):
    assert with_rate(AdaptOptions(**given), Layout("any", 1, ())).lr == rate
