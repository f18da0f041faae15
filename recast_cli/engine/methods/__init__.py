"""Adaptation methods beside RECAST, each one function from a frozen timm network to its trainable parameters.

A method gets a network in eval mode whose parameters are all frozen, changes it in place, and returns the parameters
that it trains; nothing else requires a gradient. The classifier is not among them: it is trained apart, on features.
Options are plain keywords. `seed` decides what a method draws at random; torch's own generator is left as it was.
All methods but Uni-LoRA start as the network they were given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recast_cli.engine.methods.table import METHODS

__all__ = ["LEARNING_RATES", "METHODS"]

LEARNING_RATES: dict[str, float] = {
    # Where a sweep may start: AdamW without weight decay, batches of 32, about 250 steps. Published rates are for runs
    # of thousands of steps. All were tried at a fifth and five times on ViT-Tiny (one seed, about 100 steps, training
    # loss): of the first five none was better, the others hardly differ within a factor of five.
    "bias": 2e-3,  # judgement: between full fine-tuning and LoRA
    "norm": 2e-3,  # judgement: as for biases, the same kind of parameter
    "full": 1e-4,  # judgement: usual for vision transformers under AdamW
    "lora": 5e-3,  # PEFT's example of image classification with LoRA
    "dora": 5e-3,  # judgement: as LoRA, whose update it contains
    "lora-xs": 1e-2,  # A carries the singular values, so this moves W by 1 % of the largest a step
    "tinylora": 5e-3,  # LoRA-XS, but a float moves all of R at once
    "unilora": 5e-2,  # 48 floats of size 1 make updates of norm 1, and they start within 0.02
    "fourierft": 1e-1,  # with scaling 300 a float of 1 is a matrix of norm 0.6 (576 x 192)
    "waveft": 5e-3,  # with scaling 25 a float of 1 is a matrix of norm 25
    "shared-lora": 2e-2,  # above LoRA's, as most entries are pruned
}
"""Learning rate at which a sweep of each method starts."""


def __getattr__(name: str) -> Any:
    # the rates alone are wanted, too, by what has no use for torch
    if name != "METHODS":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from recast_cli.engine.methods.table import METHODS

    return METHODS
