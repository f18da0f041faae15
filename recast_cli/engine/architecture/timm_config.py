"""What timm says of a network: its pretrained config, whether it knows a name."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import timm
from torch import nn

from recast_cli.engine.architecture.description import Architecture
from recast_cli.engine.errors import RecastError, suggest

SOURCE_FIELDS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "label_names")
"""Fields of timm's pretrained config that say where weights come from; a base has its own."""


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


def check_name(name: str) -> None:
    """Raise RecastError unless timm knows `name`, with the nearest name it does know."""
    if not timm.is_model(name.split(".")[0]):
        hint = suggest(name, timm.list_models(), "Give a timm name (timm.list_models() has them all) or a weight file.")
        raise RecastError(f"timm {timm.__version__} has no model '{name}'", hint)


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keep log lines off the user's terminal, timm's and the hub client's by default; errors are raised anyway."""
    loggers = [logging.getLogger(name) for name in names or ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
