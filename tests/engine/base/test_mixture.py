"""Equation 1, W = (1/K) sum_k sum_i C[k,i] T[i], against loops that spell it out."""

import numpy as np
import pytest
import torch

from recast_cli.engine.base.mixture import mix
from recast_cli.engine.mimic.decompose.solution import mix_all

SHAPES = {"linear": (5, 7), "fused qkv": (12, 4), "conv1d": (4, 3, 3), "conv2d": (4, 3, 3, 3), "square": (6, 6)}


def by_loops(coefficients, templates):
    sets, count = coefficients.shape
    weight = np.zeros(templates.shape[1:])
    for place in np.ndindex(*weight.shape):
        for k in range(sets):
            for i in range(count):
                weight[place] += coefficients[k, i] * templates[(i, *place)] / sets
    return weight


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("sets", "count"), [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_mix_is_the_triple_loop(shape, sets, count):
    generator = np.random.default_rng(sets * 10 + count)
    coefficients, templates = generator.normal(size=(sets, count)), generator.normal(size=(count, *shape))
    mixed = mix(torch.from_numpy(coefficients), torch.from_numpy(templates))
    np.testing.assert_allclose(mixed.numpy(), by_loops(coefficients, templates), rtol=1e-12, atol=1e-12)


def test_all_layers_at_once_are_the_layers_one_by_one():
    generator = np.random.default_rng(0)
    coefficients, templates = generator.normal(size=(3, 2, 4)), generator.normal(size=(4, 5, 2, 3, 3))
    together = mix_all(torch.from_numpy(coefficients), torch.from_numpy(templates)).numpy()
    for layer in range(3):
        np.testing.assert_allclose(together[layer], by_loops(coefficients[layer], templates), rtol=1e-12, atol=1e-12)


def test_identity_rows_give_a_template_to_the_bit():
    templates = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    for layer in range(3):
        for sets in (1, 2, 3):
            rows = torch.eye(3)[layer].expand(sets, -1)
            assert torch.equal(mix(rows, templates), templates[layer])
