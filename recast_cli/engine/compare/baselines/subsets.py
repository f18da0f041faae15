"""Methods that train some of the network's own parameters: biases, normalisation layers, or everything."""

from collections.abc import Callable
from typing import Any

from torch import nn

from recast_cli.engine.architecture.modules import CONVOLUTIONS
from recast_cli.engine.errors import RecastError


def bias(model: nn.Module) -> list[nn.Parameter]:
    """Train all biases, those of normalisation layers too: BitFit, arXiv 2106.10199.

    Raises:
        RecastError: The network has no biases.
    """
    # timm's BEiT has q_bias and v_bias beside its layers; tables of position biases are no biases of layers
    return train_where(model, lambda module, name: name.endswith("bias"), "biases")


def norm(model: nn.Module) -> list[nn.Parameter]:
    """Train weights and biases of all normalisation layers: for LayerNorm arXiv 2304.01195, for BatchNorm 2003.00152.

    Running statistics stay as they are, since the network is in eval mode.

    Raises:
        RecastError: The network has no normalisation layers that can be trained.
    """
    return train_where(model, lambda module, name: normalises(module), "normalisation layers to train")


def full(model: nn.Module) -> list[nn.Parameter]:
    """Train everything but the classifier."""
    for module in model.modules():
        if hasattr(module, "attention_bias_cache"):  # kept in eval mode, of a table that is trained here
            module.register_forward_pre_hook(forget_biases)
    return train_where(model, lambda module, name: True, "parameters")


def forget_biases(attention: Any, inputs: object) -> None:
    """Let an attention of timm's make its biases anew, as LeViT, TinyViT and EfficientFormer do while training."""
    attention.attention_bias_cache = {}


def normalises(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer; torch's, timm's and a network's own all have `norm` in their names."""
    return "norm" in type(module).__name__.lower() and not isinstance(module, (nn.Linear, *CONVOLUTIONS))


def train_where(model: nn.Module, wanted: Callable[[nn.Module, str], bool], what: str) -> list[nn.Parameter]:
    """Make those parameters trainable for which `wanted(module, name in it)` holds, but not the classifier's.

    Raises:
        RecastError: There are none; `what` says of what.
    """
    network: Any = model  # timm's models have no common type
    heads = network.get_classifier()  # distilled networks have two
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    left_out = {id(each) for head in heads if isinstance(head, nn.Module) for each in head.parameters()}
    found: dict[int, nn.Parameter] = {}  # a tied parameter once
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in left_out and wanted(module, name):
                parameter.requires_grad_(True)
                found[id(parameter)] = parameter
    if not found:
        raise RecastError(f"This network has no {what}", "Use another method.")
    return list(found.values())
