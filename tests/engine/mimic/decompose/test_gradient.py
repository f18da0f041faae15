"""Neural Mimicry by gradient descent."""

import pytest
import torch
from torch.nn import functional as F

from recast_cli.engine.mimic.decompose.gradient import solve_gradient
from recast_cli.engine.mimic.decompose.solver_options import GradientOptions

SMALL = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(1)) * 0.05


def smooth_l1(solution, weights):
    mixed = torch.einsum("lkn,nab->lab", solution.coefficients, solution.templates) / solution.coefficients.shape[1]
    return float(F.smooth_l1_loss(mixed, weights))


@pytest.mark.slow
def test_the_published_recipe_finds_a_bank_of_real_size():
    weights = torch.randn(2, 576, 192, generator=torch.Generator().manual_seed(0)) * 0.05
    solution = solve_gradient(weights, 2, 2, GradientOptions())
    mixed = torch.einsum("lkn,nab->lab", solution.coefficients, solution.templates) / 2
    cosines = F.cosine_similarity(mixed.flatten(1), weights.flatten(1), dim=1)
    assert (cosines >= 0.98).all(), cosines


def test_equal_seeds_give_equal_bytes_and_others_do_not():
    options = GradientOptions(steps=15, seed=3)
    first, second = (solve_gradient(SMALL, 2, 2, options) for _ in range(2))
    other = solve_gradient(SMALL, 2, 2, GradientOptions(steps=15, seed=4))
    assert torch.equal(first.templates, second.templates)
    assert torch.equal(first.coefficients, second.coefficients)
    assert not torch.equal(first.templates, other.templates)


def test_the_global_seed_is_neither_used_nor_touched():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = solve_gradient(SMALL, 2, 1, GradientOptions(steps=5))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(solve_gradient(SMALL, 2, 1, GradientOptions(steps=5)).templates, first.templates)


def test_noise_changes_the_path():
    quiet = solve_gradient(SMALL, 2, 2, GradientOptions(steps=15, noise=0.0))
    noisy = solve_gradient(SMALL, 2, 2, GradientOptions(steps=15, noise=1e-2))
    assert not torch.equal(quiet.templates, noisy.templates)


def test_the_loss_decides():
    smooth = solve_gradient(SMALL, 2, 2, GradientOptions(steps=15, loss="smooth-l1"))
    # below 1 smooth L1 is half the squared error, so the weights have to be large to tell the two apart
    large = SMALL * 100
    assert not torch.equal(
        solve_gradient(large, 2, 2, GradientOptions(steps=15, loss="mse")).templates,
        solve_gradient(large, 2, 2, GradientOptions(steps=15, loss="smooth-l1")).templates,
    )
    assert torch.isfinite(smooth.templates).all()


def test_the_best_step_is_kept():
    seen = []
    options = GradientOptions(steps=25, lr=3.0)  # far too fast: it does not end where it was best
    solution = solve_gradient(SMALL, 2, 2, options, lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == list(range(1, 26))
    losses = [loss for _, loss in seen]
    assert losses[-1] > 2 * min(losses)
    assert smooth_l1(solution, SMALL) == pytest.approx(min(losses), rel=1e-5)


def test_coefficients_start_orthogonal():
    start = solve_gradient(SMALL, 2, 3, GradientOptions(steps=0)).coefficients
    for chosen in range(3):
        torch.testing.assert_close(start[:, chosen].T @ start[:, chosen], torch.eye(2), atol=1e-5, rtol=0)


def test_learning_rate_and_clipping_are_the_published_ones(monkeypatch):
    seen = []

    class Spy(torch.optim.RMSprop):
        def step(self, *args, **kwargs):
            gradients = [parameter.grad.flatten() for parameter in self.param_groups[0]["params"]]
            seen.append((self.param_groups[0]["lr"], float(torch.cat(gradients).norm())))
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "RMSprop", Spy)
    solve_gradient(SMALL * 1000, 2, 2, GradientOptions(steps=402))
    rates, norms = zip(*seen, strict=True)
    assert rates[:200] == (0.1,) * 200
    assert rates[200:400] == pytest.approx((0.01,) * 200)
    assert rates[400:] == pytest.approx((0.001,) * 2)
    assert max(norms) == pytest.approx(1.0, rel=1e-4)
