"""Open what is to be mimicked: a timm name, an `hf-hub:` name, a folder with config.json, or weight files."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
from torch import Tensor

from recast_cli.engine.architecture.build import check_fit, skeleton
from recast_cli.engine.architecture.description import classifiers_of
from recast_cli.engine.architecture.timm_config import check_name, quiet
from recast_cli.engine.errors import MissingFile, OptionError, RecastError, one_line, option, suggest
from recast_cli.engine.source.checkpoint import WEIGHT_FILES, read_weights, weights_in
from recast_cli.engine.source.source import (
    Source,
    from_model,
    from_tensors,
    modules_by_name,
    shapes,
    shared,
    under_all_names,
)
from recast_cli.engine.storage.tensors import specs, without


def open_source(name: str, architecture: str | None = None, weights: Path | None = None) -> Source:
    """Open a source.

    Args:
        name: timm name (tags too), `hf-hub:org/name`, a folder with config.json, a weight file, or the index of shards.
        architecture: timm name for a weight file; without it modules are found by name and shape, as in a folder
            whose config.json is not timm's.
        weights: Local weight file, or index of shards, for a timm name.

    Raises:
        RecastError: Nothing such exists, it cannot be fetched, or the weights do not fit.
    """
    path = Path(name.removeprefix("local-dir:"))
    # a folder of whatever else may be called after the network whose files it has
    if path.is_dir() and ((path / "config.json").is_file() or not timm.is_model(name)):
        reject("architecture", architecture, f"{name} is a folder")
        reject("weights", weights, f"{name} is a folder")
        return from_folder(path)
    if path.is_file() or path.name.endswith(WEIGHT_FILES):
        reject("weights", weights, f"{name} is a weight file itself")
        return from_file(path, architecture)
    if name.startswith((".", "/", "~")):
        raise MissingFile(f"{name} does not exist", "Check the path.")
    reject("architecture", architecture, f"{name} is not a file")
    if weights is not None:
        if name.startswith("hf-hub:"):
            hint = "Give the architecture's timm name."
            raise OptionError("weights", "goes with a timm name, not with hf-hub:", hint)
        return replace(from_file(Path(weights), name), name=name)
    return from_timm(name)


def reject(name: str, value: object, why: str) -> None:
    """Raise OptionError where a `value` was given to a parameter that means nothing here."""
    if value:
        raise OptionError(name, f"does not apply: {why}", f"Leave out {option(name)}.")


def from_file(path: Path, architecture: str | None) -> Source:
    """A weight file, with or without the timm name of its architecture."""
    tensors = read_weights(path)
    if architecture is None:
        aliases = shared(tensors)
        modules = modules_by_name(without(tensors, {*aliases, *aliases.values()}))
        return Source(path.name, without(tensors, aliases), modules, None, aliases)
    check_name(architecture)
    config = timm.models.get_pretrained_cfg(architecture)
    heads = classifiers_of(config.to_dict() if config else {}) or ("head",)
    weight = specs(tensors).get(f"{heads[0]}.weight")
    model = skeleton(architecture, num_classes=weight.shape[0] if weight and weight.shape else None)
    tensors = under_all_names(tensors, model)
    if tensors.keys() - model.state_dict().keys():
        overlay = {"num_classes": model.num_classes, "label_offset": 0}
        # any filter may stumble over foreign keys in its own way; `check_fit` then says what differs
        with suppress(Exception):
            tensors = filtered(architecture, tensors, overlay, num_classes=model.num_classes)
    lacking = model.state_dict().keys() - tensors.keys()
    if lacking and all(key.rpartition(".")[0] in heads for key in lacking):
        model = skeleton(architecture, num_classes=0)
    check_fit(model, tensors, architecture)
    return from_tensors(path.name, tensors, model, {})


def filtered(name: str, tensors: Mapping[str, Tensor], overlay: dict[str, Any], **args: Any) -> dict[str, Tensor]:
    """What timm makes of tensors with other key names: all in memory, through the filter of their architecture."""
    overlay = {**overlay, "state_dict": dict(tensors), "source": ""}  # a source would be preferred to the state dict
    with quiet():
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args).state_dict()


def from_folder(path: Path) -> Source:
    """A folder that timm's `local-dir:` opens: config.json (model arguments included) and its weights, or shards.

    Where config.json is of another library, modules are found by name and shape, as in a weight file.
    """
    config = path / "config.json"
    if not config.is_file():
        hint = "Give a file, a timm name, or timm's own folder."
        raise RecastError(f"{path} is a folder without a config.json", hint)
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        if "architecture" not in values and (file := weights_in(path)) and is_foreign(values):
            return replace(from_file(file, None), name=path.resolve().name)
        name = values["architecture"] if "architecture" in values else values["pretrained_cfg"]["architecture"]
    except (ValueError, KeyError, TypeError, OSError):
        raise RecastError(f"{config} is not a timm config: no architecture in it", "Write it with timm.") from None
    check_name(name)
    file = weights_in(path)
    if file is None:
        raise RecastError(f"{path} holds no weights", "Put model.safetensors beside config.json.")
    tensors = read_weights(file)
    try:
        model = skeleton(f"local-dir:{path}")
        tensors = under_all_names(tensors, model)
        if shapes(model.state_dict()) != shapes(tensors):
            tensors = filtered(f"local-dir:{path}", tensors, {})
    except Exception as error:
        raise RecastError(f"timm cannot open {path}: {one_line(error)}", "Check config.json and weights.") from None
    return from_tensors(path.resolve().name, tensors, model, values.get("model_args", {}))


def is_foreign(config: dict[str, Any]) -> bool:
    """Whether a config.json is of a library that calls its networks otherwise, as transformers does."""
    return "pretrained_cfg" not in config and bool({"architectures", "model_type"} & config.keys())


def from_timm(name: str) -> Source:
    """A timm name or `hf-hub:` name, fetched by timm (or found in its cache)."""
    args: dict[str, Any] = {}
    from_hub = name.startswith(("hf-hub:", "hf_hub:"))
    if not from_hub:
        check_name(name)
    with quiet(), offline_if_unreachable():
        try:
            if from_hub:
                args = timm.models.load_model_config_from_hf(name.split(":", 1)[1])[2] or {}
            model = timm.create_model(name, pretrained=True)
        except Exception as error:
            if "Invalid pretrained tag" in str(error):
                tags = timm.list_pretrained(name.split(".")[0] + ".*")
                raise RecastError(f"timm has no weights '{name}'", suggest(name, tags)) from None
            named = option("architecture", "NAME") if from_hub else option("weights", "FILE")
            hint = f"Go online, or give {'a weight file' if from_hub else 'local weights'} with {named}."
            raise RecastError(f"Cannot get the weights of {name}: {one_line(error)}", hint) from None
    return from_model(name, model, args)


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Tell the hub client at once that there is no network, instead of letting it retry for most of a minute."""
    from huggingface_hub import constants

    host = urlparse(constants.ENDPOINT)
    proxied = any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    before = constants.HF_HUB_OFFLINE
    if not before and not proxied:
        try:
            port = host.port or (443 if host.scheme == "https" else 80)
            socket.create_connection((host.hostname or "", port), timeout=5).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
