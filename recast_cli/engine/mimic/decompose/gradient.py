"""Algorithm 2 of RECAST (Neural Mimicry): templates and coefficients by gradient descent."""

import torch
from torch import Tensor, nn

from recast_cli.engine.mimic.decompose.solution import LOSSES, OnStep, Solution, mix_all
from recast_cli.engine.mimic.decompose.solver_options import GradientOptions

LOSS_WEIGHT = 2.0
DECAY_EVERY = 200
CLIP = 1.0


def solve_gradient(
    weights: Tensor, templates: int, sets: int, options: GradientOptions, progress: OnStep | None = None
) -> Solution:
    """Fit one bank by descent and keep the best step, judged without noise.

    Coefficients start orthogonal (Algorithm 1): each of K sets is an orthogonal (layers x n) matrix. The n templates
    start as the source's own scale asks for, Gaussian with the standard deviation of the weights (layers, *shape).
    """
    generator = torch.Generator().manual_seed(options.seed)
    target = weights.float()
    bank = torch.randn(templates, *target.shape[1:], generator=generator) * target.std()
    empty = [torch.empty(len(target), templates) for _ in range(sets)]
    start = torch.stack([nn.init.orthogonal_(each, generator=generator) for each in empty], dim=1)
    bank, coefficients = nn.Parameter(bank), nn.Parameter(start)
    optimizer = torch.optim.RMSprop([bank, coefficients], lr=options.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, DECAY_EVERY, gamma=0.1)
    distance = LOSSES[options.loss]
    best, kept = float("inf"), Solution(bank.detach().clone(), start.clone())
    for step in range(options.steps + 1):
        with torch.no_grad():
            value = float(distance(mix_all(coefficients, bank), target))
            if value < best:
                best, kept = value, Solution(bank.detach().clone(), coefficients.detach().clone())
        if step == options.steps:
            break
        noisy = coefficients + options.noise * torch.randn(coefficients.shape, generator=generator)
        loss = LOSS_WEIGHT * distance(mix_all(noisy, bank), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([bank, coefficients], CLIP)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, value)
    return kept
