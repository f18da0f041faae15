"""Inside a timm network: its linear and convolution modules, their outputs, and the features before the classifier."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.architecture.description import classifiers_of
from recast_cli.engine.architecture.timm_config import config_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def ties(model: nn.Module) -> dict[str, str]:
    """Other names of parameters and buffers that a model has under several -> the first name."""
    first: dict[int, str] = {}
    names = {key: first.setdefault(id(value), key) for key, value in model.state_dict(keep_vars=True).items()}
    return {key: name for key, name in names.items() if key != name}


def find_modules(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and weight shapes of all linear and convolution modules but the classifier's and tied ones.

    In an attached network, too, where weights are made by parametrizations.
    """
    heads = classifiers_of(config_of(model))
    owners = Counter(id(each) for module in model.modules() for each in module.parameters(recurse=False))
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, *CONVOLUTIONS))
        and (parametrize.is_parametrized(module, "weight") or owners[id(module.weight)] == 1)
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    }


def is_plain(module: Any) -> bool:
    """Whether a module is torch's own linear layer or convolution, with a number of zeros at each border.

    A subclass may do more with its weight: weight standardisation, padding that depends on the input.
    """
    kind = type(module).forward
    if kind is nn.Linear.forward:
        return True
    convolution = kind in [each.forward for each in CONVOLUTIONS]
    return convolution and module.padding_mode == "zeros" and not isinstance(module.padding, str)


@contextmanager
def replaced_forwards(
    model: nn.Module, choose: Callable[[nn.Module], Callable[[Tensor], Tensor] | None]
) -> Iterator[None]:
    """Within it, each module of a model has the forward that is chosen for it, where one is."""
    found: dict[Any, Callable[[Tensor], Tensor]] = {}
    for module in model.modules():
        if (forward := choose(module)) is not None:
            found[module] = module.forward = forward
    try:
        yield
    finally:
        for module in found:
            del module.forward


def features(model: nn.Module, images: Tensor) -> Tensor:
    """What the classifier sees: (batch, head_hidden_size) from normalised images (batch, 3, H, W)."""
    network: Any = model  # timm's models have no common type
    return network.forward_head(network.forward_features(images), pre_logits=True).flatten(1)


def listen(model: nn.Module, names: tuple[str, ...], seen: dict[str, Tensor]) -> None:
    """Keep the latest output of each named module in `seen`."""
    for name in names:

        def keep(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
            seen[name] = output

        model.get_submodule(name).register_forward_hook(keep)
