"""Options of adapting: one that is out of range is refused, and named."""

import dataclasses

import pytest

from recast_cli.engine.errors import OptionError, RecastError
from recast_cli.engine.layout.layout import Bank, Layout
from recast_cli.engine.task.options import AdaptOptions, settled


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
        ({"choose": 2}, 0.04),
        ({"choose": 4800}, 0.04),
        ({"choose": 48, "lr": 0.1}, 0.1),
        ({}, 0.05),
    ],
)
def test_chosen_coefficients_have_a_rate_of_their_own(given, rate):
    assert settled(AdaptOptions(**given), Layout("any", 1, ()), None).lr == rate


def layout_of(modules, templates=1, sets=1):
    return Layout("any", sets, tuple(Bank(str(n), "r", 1, (str(n),), (4, 4), templates) for n in range(modules)))


@pytest.mark.parametrize(
    ("given", "modules", "chosen"),
    [
        ({}, {"modules": 8}, 8),
        ({"image_size": 32}, {"modules": 8}, 8),
        ({"image_size": 16}, {"modules": 8}, 0),  # another size than the network's own
        ({"recipe": "paper"}, {"modules": 8}, 0),
        ({"adapter": "melo"}, {"modules": 8}, 0),
        ({"choose": 0}, {"modules": 8}, 0),
        ({"choose": 20, "image_size": 16}, {"modules": 8}, 20),
        ({}, {"modules": 7}, 0),  # one of them has no neighbour
        ({}, {"modules": 4, "templates": 2}, 0),
        ({}, {"modules": 4, "sets": 2}, 0),
    ],
)
def test_a_task_chooses_as_many_numbers_as_the_layout_has_where_nothing_is_said(given, modules, chosen):
    assert settled(AdaptOptions(**given), layout_of(**modules), 32).choose == chosen
