"""A base with fewer templates than layers, healed: layer-wise first, then end to end."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from recast_cli.engine.architecture.build import build
from recast_cli.engine.base.base import Base
from recast_cli.engine.errors import OptionError, option
from recast_cli.engine.layout.layout import Layout
from recast_cli.engine.mimic.decompose.finalize import finalize
from recast_cli.engine.mimic.heal.distil import distil, judge_by
from recast_cli.engine.mimic.heal.layerwise import heal_layers
from recast_cli.engine.mimic.heal.state import HealingState, load_state, save_state
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime.device import choose_device, ready
from recast_cli.engine.source.source import Source
from recast_cli.engine.storage.digest import digest, hashed

HEALING_IMAGES = 4096
"""Images that are used of a large folder; each takes as much memory as its values."""
HELD_OUT = 8
"""Every eighth image is not fitted to: it says when to stop."""


def heal(
    source: Source,
    base: Base,
    pixels: Tensor,
    *,
    device: str | None = None,
    state_path: Path | None = None,
    progress: Progress | None = None,
) -> Base:
    """Fit the shared templates and their coefficients to what the source makes of images.

    `heal_layers` first, then `distil`. The base never gets worse on the images that are held out than it was after
    the first.

    Args:
        source: As of `make_base`, like `device` and `progress`.
        base: From `mimic`, in memory and without codes.
        pixels: (N, 3, H, W) uint8, without labels.
        state_path: Where the state is kept, so that a run that was killed goes on after its last whole epoch. The
            caller removes it once the base is safe.

    Returns:
        The healed base, with an id and errors of its own; `solver["healed"]` says what was done and measured.

    Raises:
        RecastError: As of `check_healable`, or there are too few images.
    """
    check_healable(source, base.layout)
    if len(pixels) < 2 * HELD_OUT:
        raise OptionError("heal", f"needs {2 * HELD_OUT} images that can be read", "Give some hundreds.")
    architecture = base.known_architecture()
    where = choose_device(device)
    teacher = ready(source.network(), where)
    held = torch.arange(len(pixels)) % HELD_OUT == 0
    judge = judge_by(teacher, pixels[held], base)
    # the source makes the base, and the base's id the rest of what is fitted
    identity = digest({"pixels": hashed(pixels)}, base.base_id)
    state = load_state(state_path, identity) if state_path else None
    if state is None:
        mimicked = judge(ready(build(architecture, base.state()), where))
        base = heal_layers(source, base, teacher, pixels[~held], progress)
    else:
        mimicked = state.mimicked

    def keep(state: HealingState) -> None:
        state.mimicked = mimicked
        if state_path:
            save_state(state_path, identity, state)

    state = distil(teacher, base, pixels[~held], state, judge, keep=keep, progress=progress)
    tensors = {name: tensor.to(base.tensors[name].dtype) for name, tensor in state.best.items()}
    healed = {
        "images": len(pixels),
        "pictures": len(pixels),  # the name of this key before; goes with format 6 or version 0.3
        "epochs": len(state.losses) - 1,
        "best_epoch": state.best_epoch,
        "divergence": {"mimicked": mimicked, "layers": state.losses[0], "healed": state.losses[state.best_epoch]},
    }
    base = replace(base, tensors={**base.tensors, **tensors}, solver={**base.solver, "healed": healed})
    return finalize(base, source)


def check_healable(source: Source, layout: Layout) -> None:
    """Raise RecastError where nothing is shared, or nobody knows the source's architecture."""
    source.known_architecture(f"Leave out {option('heal')}.")
    if all(bank.exact for bank in layout.banks):
        hint = f"Give fewer {option('templates')} than layers, or leave it out."
        raise OptionError("heal", "fits what layers share, and here every layer has a template of its own", hint)
