"""The paper's comparison: an encoder for coefficients."""

import pytest
import torch

from recast_cli.engine.mimic.decompose.solver_options import VaeOptions
from recast_cli.engine.mimic.decompose.vae import solve_vae

WEIGHTS = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1)) * 0.05


@pytest.mark.slow
def test_it_finds_a_small_bank():
    solution = solve_vae(WEIGHTS, 2, 2, VaeOptions())
    mixed = torch.einsum("lkn,nab->lab", solution.coefficients, solution.templates) / 2
    assert float((mixed - WEIGHTS).norm() / WEIGHTS.norm()) < 0.05


def test_the_variant_with_a_divergence_runs_and_differs():
    plain = solve_vae(WEIGHTS, 2, 1, VaeOptions(steps=60))
    sampled = solve_vae(WEIGHTS, 2, 1, VaeOptions(steps=60, kl=True))
    assert sampled.templates.shape == (2, 12, 8)
    assert sampled.coefficients.shape == (2, 1, 2)
    assert torch.isfinite(sampled.templates).all()
    assert torch.isfinite(sampled.coefficients).all()
    assert not torch.equal(plain.templates, sampled.templates)


def test_equal_seeds_give_equal_bytes_and_others_do_not():
    for kl in (False, True):
        first, second = (solve_vae(WEIGHTS, 2, 2, VaeOptions(steps=10, kl=kl)) for _ in range(2))
        other = solve_vae(WEIGHTS, 2, 2, VaeOptions(steps=10, kl=kl, seed=1))
        assert torch.equal(first.templates, second.templates)
        assert torch.equal(first.coefficients, second.coefficients)
        assert not torch.equal(first.templates, other.templates)


def test_the_best_step_is_kept():
    losses = []
    options = VaeOptions(steps=40, lr=1e-2, kl=True)  # the divergence pulls away from where the weights are met best
    solution = solve_vae(WEIGHTS, 1, 1, options, lambda _, loss: losses.append(loss))
    mixed = torch.einsum("lkn,nab->lab", solution.coefficients, solution.templates)
    kept = float(torch.nn.functional.smooth_l1_loss(mixed, WEIGHTS))
    assert losses[-1] > 1.01 * min(losses)
    assert kept == pytest.approx(min(losses), rel=1e-5)
