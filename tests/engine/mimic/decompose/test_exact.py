"""The exact solver against the optimum that Eckart and Young promise."""

import pytest
import torch

from recast_cli.engine.mimic.decompose.exact import solve_exact

SHAPES = {"linear": (12, 8), "conv2d": (4, 3, 3, 3), "conv1d": (6, 4, 3)}


def bank(layers=4, shape=(12, 8), seed=0):
    return torch.randn(layers, *shape, generator=torch.Generator().manual_seed(seed))


def rebuilt(solution):
    """Every layer from its coefficients, in float64 and without the engine's own mixing."""
    rows = solution.coefficients.double().mean(1)
    return (rows @ solution.templates.double().flatten(1)).reshape(len(rows), *solution.templates.shape[1:])


@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_as_many_templates_as_layers_is_exact_to_the_bit(shape, sets):
    weights = bank(3, shape)
    solution = solve_exact(weights, 3, sets)
    assert torch.equal(solution.templates, weights)
    assert solution.coefficients.shape == (3, sets, 3)
    for chosen in range(sets):
        assert torch.equal(solution.coefficients[:, chosen], torch.eye(3))
    assert solution.errors(weights) == [{"relative_error": 0.0, "cosine": 1.0}] * 3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_templates_lose_only_the_smallest_singular_values(shape, count):
    weights = bank(6, shape)
    solution = solve_exact(weights, count, 2)
    values = torch.linalg.svdvals(weights.double().flatten(1))
    error = (rebuilt(solution) - weights.double()).norm()
    torch.testing.assert_close(error, values[count:].square().sum().sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_signs_norms_and_sets(seed):
    weights = bank(6, seed=seed)
    solution = solve_exact(weights, 3, 3)
    rows = solution.coefficients[:, 0]
    assert all(column[column.abs().argmax()] > 0 for column in rows.T)
    assert (rows.norm(dim=1) <= 1 + 1e-6).all()
    torch.testing.assert_close(rows.T @ rows, torch.eye(3), atol=1e-6, rtol=0)
    for chosen in (1, 2):
        assert torch.equal(solution.coefficients[:, chosen], rows)
    # the templates carry the singular values, the largest first
    values = torch.linalg.svdvals(weights.double().flatten(1))[:3]
    torch.testing.assert_close(solution.templates.double().flatten(1).norm(dim=1), values, rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [2, 5])
def test_equal_calls_give_equal_bytes(count):
    first, second = (solve_exact(bank(5), count, 2) for _ in range(2))
    assert torch.equal(first.templates, second.templates)
    assert torch.equal(first.coefficients, second.coefficients)


def test_repeated_and_zero_layers_need_fewer_templates():
    weights = bank(2)
    weights = torch.cat([weights, weights, torch.zeros_like(weights[:1])])
    solution = solve_exact(weights, 2, 1)
    torch.testing.assert_close(rebuilt(solution).float(), weights, atol=1e-5, rtol=0)
    assert torch.isfinite(solution.coefficients).all()


def test_errors_are_relative_frobenius_and_cosine():
    weights = bank(4)
    solution = solve_exact(weights, 2, 1)
    for found, now, source in zip(solution.errors(weights), rebuilt(solution), weights.double(), strict=True):
        assert found["relative_error"] == pytest.approx(float((now - source).norm() / source.norm()), rel=1e-4)
        assert found["cosine"] == pytest.approx(float((now * source).sum() / (now.norm() * source.norm())), rel=1e-5)
