"""The type that a network's products are computed in, by hardware and by network."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from recast_cli.engine.runtime import distributed
from recast_cli.engine.runtime.device import threads

MANY_TOKENS = 400
"""From here on attention maps take more memory than all other activations."""


def training_precision(model: nn.Module, device: torch.device, wanted: str = "auto") -> torch.dtype:
    """The type that products are computed in while training: `float32`, `bfloat16`, or `auto`.

    That is bfloat16 on CUDA, and on CPUs that are faster in it unless the network has grouped convolutions, whose
    backward pass is slow there.
    """
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
    fast = device.type == "cuda" or (device.type == "cpu" and not grouped and cpu_gains_from_bfloat16())
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def cpu_gains_from_bfloat16() -> bool:
    """Whether this CPU has instructions that multiply in bfloat16, and is faster with them; torch may not tell: False.

    Not all are: a Xeon whose matrix unit (AMX) the hypervisor hides has half its float32 speed with what is left. Of
    several processes the first one's answer counts.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return False
    return distributed.from_first(lambda: seconds_of_products(torch.bfloat16) < seconds_of_products(torch.float32))


def seconds_of_products(dtype: torch.dtype) -> float:
    """What a product of the size that networks have takes one core, at its quickest; whatever else the core does."""
    tokens, weight = torch.ones(512, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    taken = []
    with threads(1):
        for _ in range(6):  # the first one is slower
            start = time.thread_time()
            F.linear(tokens, weight)
            taken.append(time.thread_time() - start)
    return min(taken)


def measuring_precision(device: torch.device) -> torch.dtype:
    """The type that products are computed in while measuring: bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def precision(device: torch.device, dtype: torch.dtype | None = None) -> torch.autocast:
    """Autocast to `dtype`; default: the one for measuring."""
    dtype = measuring_precision(device) if dtype is None else dtype
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled)


@contextmanager
def quick_attention(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within it, timm's attention is two products where the fused kernel's backward pass is the slower one.

    That is in bfloat16 on a CPU, where it takes 40 % of a step. Attention maps are then kept for the backward pass,
    so networks of many tokens keep the fused one.
    """
    tokens = getattr(getattr(model, "patch_embed", None), "num_patches", MANY_TOKENS)
    quick = device.type == "cpu" and dtype == torch.bfloat16 and tokens < MANY_TOKENS
    fused: list[Any] = [module for module in model.modules() if quick and getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True
