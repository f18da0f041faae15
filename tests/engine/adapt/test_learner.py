"""A learner that moves coefficients of the layout and chosen entries: what is shared, written, and its gradients."""

import pytest
import torch
from helpers import random_images

from recast_cli.engine.adapt.learner import make_learner
from recast_cli.engine.model.attach import merge
from recast_cli.engine.model.coefficient_gradients import cheap_gradients
from recast_cli.engine.task.options import AdaptOptions


def learner_of(base, numbers):
    """A learner whose entries are chosen, and everything that it trains a little moved."""
    learner = make_learner(base, AdaptOptions(choose=numbers, precision="float32"), torch.device("cpu"))
    biases = [place for place, name in enumerate(base.entries) if name.endswith(("fc1.bias", "qkv.bias"))]
    count = len(learner.entries.steps)
    places = torch.tensor([[biases[place % len(biases)], place % 8] for place in range(count)])
    learner.entries.choose(places, torch.full((count,), 0.5))
    draw = torch.Generator().manual_seed(numbers)
    gradients = [torch.randn(each.shape, generator=draw) for each in learner.parameters]
    learner.share(gradients)
    for parameter, gradient in zip(learner.parameters, gradients, strict=True):
        parameter.data += 0.1 * gradient
    return learner


@pytest.mark.parametrize("numbers", [24, 48, 96])
def test_what_is_written_is_what_was_trained(numbers, scaled_base):
    learner = learner_of(scaled_base, numbers)
    vector, _ = learner.learned([each.detach() for each in learner.parameters])
    assert vector.numel() + len(learner.entries.steps) == numbers
    again = merge(scaled_base, vector, places=learner.entries.places)
    assert (again(random_images()) - merge(scaled_base)(random_images())).abs().max() > 1e-3
    torch.testing.assert_close(again(random_images()), learner.model(random_images()), rtol=1e-4, atol=1e-5)


def test_neighbours_move_by_the_sum_of_their_gradients(scaled_base):
    learner = make_learner(scaled_base, AdaptOptions(choose=48), torch.device("cpu"))
    gradients = [torch.randn_like(each) for each in learner.parameters]
    before = [each.clone() for each in gradients]
    learner.share(gradients)
    for place in range(0, 48, 2):
        assert torch.equal(gradients[place], before[place] + before[place + 1])
        assert torch.equal(gradients[place], gradients[place + 1])
    assert torch.equal(gradients[48], before[48])  # steps of entries are each their own


def test_gradients_of_coefficients_beside_moved_biases_are_autograds(scaled_base):
    learner = learner_of(scaled_base, 96)

    def found():
        return torch.autograd.grad(learner.model(random_images()).square().sum(), learner.coefficients)

    wanted = found()
    with cheap_gradients(learner.model):
        for one, other in zip(found(), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("longest", [0.5, 50.0])
def test_a_gradient_by_entries_is_cut_to_the_length_it_may_have(longest, scaled_base):
    learner = learner_of(scaled_base, 48)
    learner.entries.longest = torch.tensor(longest)
    gradients = [torch.ones_like(each) for each in learner.parameters]
    learner.share(gradients)
    assert float(gradients[48].norm()) == pytest.approx(min(longest, 12**0.5))
    assert torch.equal(gradients[0], torch.full((1, 1), 2.0))
