"""LoRA and methods after it, as PEFT implements them; options have names as in `inject`, else PEFT's."""

from torch import nn

from recast_cli.engine.compare.baselines.peft import inject
from recast_cli.engine.compare.baselines.targets import QKV, at_least_one, at_most, choose, choose_linear
from recast_cli.engine.errors import RecastError


def lora(model: nn.Module, *, rank: int = 1, modules: str = QKV, seed: int = 0) -> list[nn.Parameter]:
    """LoRA, arXiv 2106.09685: W + B A, rank * (in + out) floats a module; B starts at zero, nothing scales B A.

    `modules` may match convolutions without groups, too; `seed` is of A's start.

    Returns:
        A (r, in) and B (out, r) of every module.
    """
    at_least_one(rank=rank)
    return inject(model, "LoraConfig", low_rank_targets(model, modules), seed, r=rank, lora_alpha=rank)


def dora(model: nn.Module, *, rank: int = 1, modules: str = QKV, seed: int = 0) -> list[nn.Parameter]:
    """DoRA, arXiv 2402.09353: LoRA, and the length of each of W's rows (PEFT's reading): out more floats a module.

    Options and result as of `lora`.
    """
    at_least_one(rank=rank)
    targets = low_rank_targets(model, modules)
    return inject(model, "LoraConfig", targets, seed, r=rank, lora_alpha=rank, use_dora=True)


def tinylora(
    model: nn.Module, *, rank: int = 2, u: int = 4, weight_tying: float = 0.0, modules: str = QKV, seed: int = 0
) -> list[nn.Parameter]:
    """TinyLoRA, arXiv 2602.04118: LoRA-XS whose R is a sum of fixed random matrices, weighted by u floats from zero.

    Args:
        rank: Of the frozen SVD.
        u: Floats a group of modules.
        weight_tying: 0: every module is a group; 1: all are one; between: round((1 - weight_tying) * modules) groups.
        seed: Of the fixed matrices.

    Returns:
        A vector (u,) of every group.
    """
    at_least_one(rank=rank, u=u)
    if not 0 <= weight_tying <= 1:
        raise RecastError(f"weight_tying is {weight_tying}, and a number from 0 to 1 is wanted", "Correct it.")
    targets = choose_linear(model, modules, "tinylora")
    for name, module in targets.items():
        at_most("rank", rank, min(module.weight.shape), name)  # PEFT would lower it in silence
    tying = float(weight_tying)
    return inject(model, "TinyLoraConfig", targets, seed, r=rank, u=u, weight_tying=tying, projection_seed=seed)


def unilora(
    model: nn.Module, *, rank: int = 4, theta_d_length: int = 48, modules: str = QKV, seed: int = 0
) -> list[nn.Parameter]:
    """Uni-LoRA, arXiv 2506.00799: every entry of all A and B is one of `theta_d_length` shared floats, scaled.

    It does not start as the given network: where all floats are zero, so are all gradients. PEFT draws them within
    0.02 of zero, which changes features by about 1e-5 of their size.

    `seed` decides which entry is which float, and their start.

    Returns:
        The vector (theta_d_length,).
    """
    at_least_one(rank=rank, theta_d_length=theta_d_length)
    targets = choose_linear(model, modules, "unilora")
    entries = sum(rank * (module.in_features + module.out_features) for module in targets.values())
    at_most("theta_d_length", theta_d_length, entries, "what it is spread over")
    return inject(model, "UniLoraConfig", targets, seed, r=rank, theta_d_length=theta_d_length, proj_seed=seed)


def low_rank_targets(model: nn.Module, modules: str) -> dict[str, nn.Module]:
    """The modules that `modules` matches. Raises RecastError where PEFT's LoRA would not compute what it should."""
    found = choose(model, modules)
    for name, module in found.items():
        if isinstance(module, nn.Linear):
            continue
        if getattr(module, "groups", 1) > 1:
            raise RecastError(f"lora and dora do not change {name}, a convolution with groups", "Narrow `modules`.")
        # timm's subclasses pad by the size of the image or standardise their weights, which A and B would not
        if type(module) is not nn.Conv2d:
            raise RecastError(f"lora and dora do not change {name}, a {type(module).__name__}", "Narrow `modules`.")
    return found
