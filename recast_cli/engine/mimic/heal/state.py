"""Where healing stands after an epoch, what comes next, and what a killed run leaves behind."""

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recast_cli.engine.storage.atomic import atomic

LR, LEAST_LR = 3e-4, 1e-5
"""AdamW's learning rate at the start, and the least."""
PATIENCE = 2
"""Epochs without a better result, after which training goes on from the best one at a third of the rate."""


@dataclass
class HealingState:
    """Where training stands, after an epoch; all that a killed run needs.

    Attributes:
        values: By name of a tensor of the base.
        best: The same at the best epoch.
        losses: On images that were held out, from epoch 0, which is before training.
        best_epoch: Number of that epoch.
        rate: Learning rate of the next epoch.
        tries: Epochs since the best one, or since the rate was lowered.
        optimizer: AdamW's state dict; None at a new rate.
        mimicked: The loss before any healing.
    """

    values: dict[str, Tensor]
    best: dict[str, Tensor]
    losses: list[float]
    best_epoch: int = 0
    rate: float = LR
    tries: int = 0
    optimizer: dict[str, Any] | None = None
    mimicked: float = math.nan


def next_state(
    state: HealingState, trained: dict[str, Tensor], loss: float, optimizer: torch.optim.Optimizer
) -> HealingState:
    """The state after an epoch; without a better one for as long as patience lasts, from the best at a lower rate."""
    losses = [*state.losses, loss]
    values = {name: tensor.detach().cpu().clone() for name, tensor in trained.items()}
    after = replace(state, values=values, losses=losses, tries=state.tries + 1, optimizer=optimizer.state_dict())
    if loss < state.losses[state.best_epoch]:
        return replace(after, best=values, best_epoch=len(losses) - 1, tries=0)
    if after.tries < PATIENCE and math.isfinite(loss):
        return after
    return replace(after, values=state.best, tries=0, rate=state.rate / 3, optimizer=None)


def save_state(path: Path, identity: str, state: HealingState) -> None:
    """Keep the state, bound to base and images by `identity`."""
    buffer = io.BytesIO()
    torch.save({"identity": identity, **vars(state)}, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_state(path: Path, identity: str) -> HealingState | None:
    """The state to go on from; None where there is none, one of another base or other images, or a damaged one."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return HealingState(**content) if content.pop("identity") == identity else None
    except Exception:  # a damaged file shows itself in many ways
        return None
