"""timm networks: build one from a state dict at any image size, find its modules, take its features."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from recast_cli.engine.errors import RecastError, nearest
from recast_cli.engine.storage.tensors import specs

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
DRAWS = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
"""What fills weights with random numbers; torch's other initialisations end in one of these."""
SOURCE_FIELDS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "label_names")
"""Fields of timm's pretrained config that say where weights come from; a base has its own."""


@dataclass(frozen=True)
class Architecture:
    """What timm needs to build a network again, and how its images are prepared.

    Attributes:
        name: timm's model name, with its tag where there is one.
        args: Model arguments, as in `timm.create_model(name, **args)`.
        config: timm's pretrained config, without the fields that name a source.
        data: timm's data config: input_size (3, H, W), mean, std, interpolation, crop_pct, crop_mode.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> int:
        """Height of the images the network was made for, in pixels."""
        return int(self.data["input_size"][-2])

    @property
    def classifies(self) -> bool:
        """Whether the network has a classifier; without one it gives features."""
        return bool(self.args.get("num_classes"))


def describe(model: nn.Module, args: dict[str, Any]) -> Architecture:
    """The architecture of a model that timm built with `args`."""
    config = {k: v for k, v in config_of(model).items() if k not in SOURCE_FIELDS and v is not None}
    name = config["architecture"] + (f".{config['tag']}" if config.get("tag") else "")
    data = timm.data.resolve_model_data_config(model)
    args = {**args, "num_classes": model.num_classes}
    plain = json.loads(json.dumps({"args": args, "config": config, "data": data}))
    return Architecture(name, **plain)


def config_of(model: nn.Module) -> dict[str, Any]:
    """timm's pretrained config of a model."""
    return cast(dict[str, Any], model.pretrained_cfg)


class NothingDrawn(TorchFunctionMode):
    """Within it random numbers for weights are zeros, for a network whose weights are loaded next.

    Drawing them took two thirds of the time in which ViT-L was made.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DRAWS:
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            with torch.no_grad():
                return tensor.zero_()
        if func == Tensor.erfinv_ or (func == Tensor.clamp_ and args[0].is_meta):
            # what makes a truncated normal of uniform values: 0 stays 0, and where there are no values it is slow
            return args[0]
        return func(*args, **(kwargs or {}))


def create(architecture: Architecture, *, pretrained: bool = False, overlay: dict[str, Any] | None = None, **args: Any):
    """`timm.create_model` for a stored architecture: a plain model in eval mode, whose weights are to be loaded."""
    known = {f.name for f in dataclasses.fields(PretrainedCfg)}
    config = {k: v for k, v in architecture.config.items() if k in known} | (overlay or {})
    with quiet(), NothingDrawn():
        model = timm.create_model(
            architecture.name.split(".")[0],
            pretrained=pretrained,
            pretrained_cfg=config,
            **{**architecture.args, **args},
        )
    return model.eval()


def skeleton(name: str, **args: Any) -> nn.Module:
    """`timm.create_model` on the meta device: names and shapes without values, in no time and no memory."""
    with quiet():
        try:
            with torch.device("meta"), NothingDrawn():
                return timm.create_model(name, **args)
        except Exception:  # an architecture that computes with values while it is built; or a real error, raised again
            return timm.create_model(name, **args)


def build(architecture: Architecture, state: dict[str, Tensor], image_size: int | None = None) -> nn.Module:
    """The network with the weights of `state`, in eval mode, for images of `image_size` pixels.

    At another size than its own, timm's checkpoint filter resamples position embeddings; networks that take any
    size just take it.

    Raises:
        RecastError: timm does not know the architecture, the weights do not fit it, or they fix the image size.
    """
    check_name(architecture.name)
    size = image_size or architecture.image_size
    if size == architecture.image_size:
        model = create(architecture)
        load(model, state, architecture.name)
        return model
    refusal = RecastError(
        f"{architecture.name} does not take images of {size} px: its weights or its strides fix the image size "
        f"({architecture.image_size} px is its own)",
        "Leave out --image-size, or try another.",
    )
    overlay = {"state_dict": dict(state), "label_offset": 0, "num_classes": architecture.args["num_classes"]}
    try:
        model = create(architecture, pretrained=True, overlay=overlay, img_size=size)
    except TypeError:
        model = create(architecture)  # takes no img_size: either any size will do, or the trial below says no
        load(model, state, architecture.name)
    except (RuntimeError, ValueError, AssertionError, KeyError, IndexError):
        raise refusal from None
    try:
        with torch.no_grad():
            model(torch.zeros(1, architecture.data["input_size"][0], size, size))
    except (RuntimeError, ValueError, AssertionError, IndexError):
        raise refusal from None
    return model


def load(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load `state` strictly. Raises RecastError as `check_fit` does."""
    check_fit(model, state, name)
    model.load_state_dict(state)


def check_fit(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Raise RecastError naming the first keys or shapes of `state` that are not the model's; no value is looked at."""
    own, given = specs(model.state_dict()), specs(state)
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    wrong = [key for key in own if key in given and own[key].shape != given[key].shape]
    if missing or unexpected or wrong:
        parts = [f"lacks {first_of(missing)}"] if missing else []
        parts += [f"has {first_of(unexpected)} too many"] if unexpected else []
        parts += [f"has {key} of shape {given[key].shape} instead of {own[key].shape}" for key in wrong[:1]]
        raise RecastError(f"The weights do not fit {name}: the file {', '.join(parts)}", "Check --architecture.")


def first_of(keys: list[str]) -> str:
    """`a` or `a and 3 more`."""
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def check_name(name: str) -> None:
    """Raise RecastError unless timm knows `name`, with the nearest name it does know."""
    if not timm.is_model(name.split(".")[0]):
        hint = nearest(name, timm.list_models(), "Give a timm name (timm.list_models() has them all) or a weight file.")
        raise RecastError(f"timm {timm.__version__} has no model '{name}'", hint)


def ties(model: nn.Module) -> dict[str, str]:
    """Other names of parameters and buffers that a model has under several -> the first name."""
    first: dict[int, str] = {}
    names = {key: first.setdefault(id(value), key) for key, value in model.state_dict(keep_vars=True).items()}
    return {key: name for key, name in names.items() if key != name}


def find_modules(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and weight shapes of all linear and convolution modules but the classifier's and tied ones.

    In an attached network, too, where weights are made by parametrizations.
    """
    heads = classifiers(config_of(model))
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1

    def of_its_own(module: nn.Module) -> bool:
        if parametrize.is_parametrized(module, "weight"):
            return True
        return isinstance(module.weight, nn.Parameter) and owners[id(module.weight)] == 1

    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, *CONVOLUTIONS))
        and of_its_own(module)
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    }


def classifiers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classifier's modules, by timm's pretrained config: none, one, or two in distilled networks."""
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def features(model: nn.Module, images: Tensor) -> Tensor:
    """What the classifier sees: (batch, head_hidden_size) from normalised images (batch, 3, H, W)."""
    network: Any = model  # timm's models have no common type
    return network.forward_head(network.forward_features(images), pre_logits=True).flatten(1)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep timm's and the hub client's log lines off the user's terminal; errors are raised anyway."""
    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
