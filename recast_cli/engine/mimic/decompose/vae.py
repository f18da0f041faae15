"""The paper's comparison: an encoder predicts the coefficients, the templates are the decoder."""

import math

import torch
from torch import Tensor, nn

from recast_cli.engine.mimic.decompose.solution import LOSSES, OnStep, Solution, mix_all
from recast_cli.engine.mimic.decompose.solver_options import VaeOptions

HIDDEN = 8


class Encoder(nn.Module):
    """Source weight (numel,) -> mean and log variance of its K*n coefficients."""

    def __init__(self, numel: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = nn.Linear(numel, HIDDEN)
        self.mean = nn.Linear(HIDDEN, outputs)
        self.log_variance = nn.Linear(HIDDEN, outputs)
        for layer in (self.hidden, self.mean, self.log_variance):
            bound = 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def forward(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        hidden = nn.functional.leaky_relu(self.hidden(weights))
        return self.mean(hidden), self.log_variance(hidden)


def solve_vae(
    weights: Tensor, templates: int, sets: int, options: VaeOptions, progress: OnStep | None = None
) -> Solution:
    """Fit one bank; what is kept are the templates and the coefficients that the encoder gives at the best step.

    Weights (layers, *shape) enter the encoder with norm 1: one step of RMSprop moves every entry of the encoder alike,
    and would otherwise throw its activations about.
    """
    generator = torch.Generator().manual_seed(options.seed)
    target = weights.float()
    scale = float(target.std()) or 1.0
    inputs = nn.functional.normalize(target.reshape(len(target), -1), dim=1)
    encoder = Encoder(inputs.shape[1], sets * templates, generator)
    bank = nn.Parameter(torch.randn(templates, *target.shape[1:], generator=generator) * scale)
    optimizer = torch.optim.RMSprop([bank, *encoder.parameters()], lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    distance = LOSSES[options.loss]
    best, kept = float("inf"), None
    for step in range(options.steps + 1):
        mean, log_variance = encoder(inputs)
        with torch.no_grad():
            coefficients = mean.reshape(-1, sets, templates)
            value = float(distance(mix_all(coefficients, bank), target))
            if kept is None or value < best:
                best, kept = value, Solution(bank.detach().clone(), coefficients.clone())
        if step == options.steps:
            break
        sample = mean
        if options.kl:
            sample = mean + torch.randn(mean.shape, generator=generator) * (0.5 * log_variance).exp()
        loss = distance(mix_all(sample.reshape(-1, sets, templates), bank), target)
        if options.kl:
            loss = loss + (mean.square() + log_variance.exp() - 1 - log_variance).sum() / (2 * target.numel())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, value)
    assert kept is not None  # the loop runs at least once
    return kept
