"""Layer-wise healing: every shared bank fitted to the source's layers, weighed by how much each error would matter."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from recast_cli.engine.base.base import Base
from recast_cli.engine.layout.layout import Bank, coefficient_key, template_key
from recast_cli.engine.mimic.decompose.solution import Solution
from recast_cli.engine.mimic.heal.fit_bank import fit_bank
from recast_cli.engine.mimic.heal.kfac import Factors, layer_factors
from recast_cli.engine.mimic.heal.layer_inputs import groups_of, measurable
from recast_cli.engine.progress import Progress
from recast_cli.engine.source.source import Source


def heal_layers(source: Source, base: Base, model: nn.Module, pixels: Tensor, progress: Progress | None = None) -> Base:
    """A base whose shared banks are fitted to what their layers do to the source's decisions; see `fit_bank`.

    Exact banks of the base, which is in memory and without codes, stay as they are, and so does a bank with a module
    that is no plain linear layer or convolution. All is computed on the device of `model`, the source's frozen network,
    with pixels (N, 3, H, W) uint8; `progress` is called after every batch, and after every bank.
    """
    device, modules = next(model.parameters()).device, dict(model.named_modules())
    shared = [bank for bank in base.layout.banks if not bank.exact]
    shared = [bank for bank in shared if all(measurable(modules[name]) for name in bank.modules)]
    names = [name for bank in shared for name in bank.modules]
    found = layer_factors(model, names, pixels, base.known_architecture(), progress)
    fitted: dict[str, Tensor] = {}
    for number, bank in enumerate(shared):
        if all(name in found for name in bank.modules):
            weights = torch.stack([source.tensors[f"{name}.weight"].float() for name in bank.modules]).to(device)
            groups = groups_of(modules[bank.modules[0]])
            fitted |= heal_bank(base, bank, weights, groups, [found[name] for name in bank.modules])
        if progress:
            progress(number + 1, len(shared), f"fitting {bank.name}")
    return replace(base, tensors={**base.tensors, **fitted})


def heal_bank(base: Base, bank: Bank, weights: Tensor, groups: int, found: list[Factors]) -> dict[str, Tensor]:
    """The tensors of one bank, fitted to weights (layers, *shape)."""

    def cut(values: Tensor) -> Tensor:
        """(m, *shape) -> (m, G, rows, columns)."""
        return values.reshape(len(values), groups, -1, bank.numel // bank.shape[0])

    coefficients = torch.stack([base.coefficients(name) for name in bank.modules])
    start = Solution(cut(base.templates(bank).to(weights)), coefficients.to(weights))
    inputs, outputs = (torch.stack([getattr(each, kind) for each in found]) for kind in ("inputs", "outputs"))
    solution = fit_bank(cut(weights), start, inputs, outputs)
    templates = solution.templates.reshape(bank.templates, *bank.shape)
    return {
        template_key(bank): templates.cpu().to(base.tensors[template_key(bank)].dtype),
        **{coefficient_key(n): each.cpu() for n, each in zip(bank.modules, solution.coefficients, strict=True)},
    }
