"""Where adapters go: attention, MLPs, blocks and convolutions of a timm network, found by name and type."""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.architecture.description import classifiers_of
from recast_cli.engine.architecture.modules import CONVOLUTIONS, find_modules
from recast_cli.engine.architecture.timm_config import config_of
from recast_cli.engine.errors import RecastError

FUSED = {"qkv": "qkv", "kv": "kv"}
"""Last part of a module's name -> what its rows are, in order and in equal shares."""
APART = {part + end: part for part in "qkv" for end in ("", "_proj")}
"""The same for modules that are one of them."""
STEM = 2
"""A network of no more convolutions than these has them in its stem alone."""


def attention(model: nn.Module, wanted: str, adapter: str) -> dict[str, tuple[int, list[int]]]:
    """Linear modules that make queries, keys and values: those of the letters `q`, `k`, `v` that are wanted.

    Returns:
        Name of each module that makes one of them -> into how many equal shares its rows fall, and which are wanted.

    Raises:
        RecastError: The network has none.
    """
    found = {}
    for name in linear_modules(model):
        parent, _, last = name.rpartition(".")
        letters = FUSED.get(last) or APART.get(last, "")
        if last in FUSED and is_mixed(model.get_submodule(parent)):
            continue
        shares = [place for place, letter in enumerate(letters) if letter in wanted]
        # multi-query attention has fewer keys than queries: its rows do not fall into equal shares
        if shares and len(weight_of(model, name)) % len(letters) == 0:
            found[name] = (len(letters), shares)
    return found or none_here(adapter, "attention with queries, keys and values", "piggyback and clr")


def is_mixed(attention: nn.Module) -> bool:
    """Whether the rows of an attention's `qkv` go by heads (MaxViT, TinyViT, EfficientFormer), or lack q (GCViT)."""
    by_heads = getattr(attention, "head_first", False) or {"key_dim", "val_dim"} <= vars(attention).keys()
    return bool(by_heads or getattr(attention, "use_global", False))


def mlps(model: nn.Module, adapter: str) -> list[str]:
    """Names of the linear modules of MLPs inside blocks. Raises RecastError where there are none."""
    found = [name for name in linear_modules(model) if {"mlp", "ffn"} & set(name.split("."))]
    return found or none_here(adapter, "transformer blocks with an MLP", "piggyback and clr")


def blocks(model: nn.Module, adapter: str) -> dict[str, Any]:
    """Transformer blocks by name: `x + drop_path2(mlp(norm2(x)))` or norm and MLP the other way round.

    Raises:
        RecastError: The network has none.
    """
    parts = ("norm2", "mlp", "drop_path2")
    found = {
        name: block
        for name, block in model.named_modules()
        if all(hasattr(block, part) for part in parts) and has_channels_last(block.norm2)
    }
    return found or none_here(adapter, "transformer blocks with norm2, mlp and drop_path2", "piggyback and clr")


def has_channels_last(norm: nn.Module) -> bool:
    """Whether what a normalisation layer gets has its channels at the end, as far as its weight and its type tell."""
    maps = isinstance(norm, (nn.GroupNorm, nn.modules.batchnorm._BatchNorm)) or "2d" in type(norm).__name__
    return isinstance(getattr(norm, "weight", None), Tensor) and not maps


def convolutions(model: nn.Module, adapter: str) -> list[str]:
    """Names of all two-dimensional convolutions of a convolutional network but its classifier's.

    Raises:
        RecastError: It is none.
    """
    heads = classifiers_of(config_of(model))
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and name not in heads]
    if len(found) > STEM:
        return found
    return none_here(adapter, "convolutions beyond a stem", "melo, adaptformer, dora, rosa and rosa-mlp")


def linear_modules(model: nn.Module) -> list[str]:
    """Names of all linear modules but the classifier's."""
    return [name for name in find_modules(model) if not isinstance(model.get_submodule(name), CONVOLUTIONS)]


def none_here(adapter: str, what: str, others: str) -> Any:
    """Raise the RecastError of a network that an adapter cannot be put into."""
    raise RecastError(f"The adapter {adapter} needs {what}, and this network has none", f"Use {others} here.")


def weight_of(model: nn.Module, name: str) -> Tensor:
    """The weight of a module, whatever it is made of."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def on_weight(model: nn.Module, name: str, piece: nn.Module) -> nn.Module:
    """Let `piece` change the weight of a module, after whatever changes it already; returns the piece."""
    parametrize.register_parametrization(model.get_submodule(name), "weight", piece)
    return piece
