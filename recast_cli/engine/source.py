"""Open what is to be mimicked: a timm name, an `hf-hub:` name, a folder with config.json, or weight files."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from torch import Tensor, nn

from recast_cli.engine.architecture.build import build, check_fit, skeleton
from recast_cli.engine.architecture.description import Architecture, check_name, describe, quiet
from recast_cli.engine.architecture.modules import find_modules, ties
from recast_cli.engine.errors import RecastError, nearest, one_line
from recast_cli.engine.layout.families import Modules
from recast_cli.engine.storage.digest import tensors_digest
from recast_cli.engine.storage.tensors import StoredTensors, also_as, specs, without
from recast_cli.engine.weights import WEIGHT_FILES, read_weights, weights_in


@dataclass(frozen=True)
class Source:
    """A pretrained checkpoint.

    Attributes:
        name: As the user named it, without folders.
        tensors: Every tensor under its own name; tied ones once, with their other names in `aliases`. Those of
            safetensors files are read whenever they are asked for, and not kept.
        modules: The weights that may be reparameterised.
        architecture: None for a file whose architecture nobody knows.
        digest: Digest over `tensors`.
    """

    name: str
    tensors: Mapping[str, Tensor]
    modules: Modules
    architecture: Architecture | None
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """`sha256:…` over names and bytes of all tensors, whatever file they came in."""
        return tensors_digest(self.tensors)

    def network(self) -> nn.Module:
        """The network itself, frozen, in eval mode. Raises RecastError where nobody knows the architecture."""
        if self.architecture is None:
            raise RecastError(f"{self.name} has no known architecture, so it cannot run", "Give --architecture.")
        tensors = dict(self.tensors)
        tensors |= {alias: tensors[name] for alias, name in self.aliases.items()}
        return build(self.architecture, tensors).requires_grad_(False)


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
        reject(architecture or weights, f"{name} is a folder", "--architecture or --weights")
        return from_folder(path)
    if path.is_file() or path.name.endswith(WEIGHT_FILES):
        reject(weights, f"{name} is a weight file itself", "--weights")
        return from_file(path, architecture)
    if name.startswith((".", "/", "~")):
        raise RecastError(f"{name} does not exist", "Check the path.")
    reject(architecture, f"{name} is not a file", "--architecture")
    if weights is not None:
        if name.startswith("hf-hub:"):
            raise RecastError("--weights goes with a timm name, not with hf-hub:", "Give the architecture's timm name.")
        source = from_file(Path(weights), name)
        return Source(name, source.tensors, source.modules, source.architecture, source.aliases)
    return from_timm(name)


def reject(value: object, why: str, option: str) -> None:
    """Raise RecastError where `value` was given though `option` means nothing here."""
    if value:
        raise RecastError(f"{why}; {option} does not apply", f"Leave out {option}.")


def from_file(path: Path, architecture: str | None) -> Source:
    """A weight file, with or without the timm name of its architecture."""
    tensors = read_weights(path)
    if architecture is None:
        aliases = shared(tensors)
        modules = modules_by_name(without(tensors, {*aliases, *aliases.values()}))
        return Source(path.name, without(tensors, aliases), modules, None, aliases)
    check_name(architecture)
    heads = classifier_names(architecture)
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


def classifier_names(architecture: str) -> tuple[str, ...]:
    """Names of the classifier modules of a timm architecture."""
    config = timm.models.get_pretrained_cfg(architecture)
    names = (config and config.classifier) or "head"
    return (names,) if isinstance(names, str) else tuple(names)


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
        raise RecastError(
            f"{path} is a folder without a config.json", "Give a file, a timm name, or timm's own folder."
        )
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
                raise RecastError(f"timm has no weights '{name}'", nearest(name, tags)) from None
            local = "a weight file with --architecture NAME" if from_hub else "local weights with --weights FILE"
            raise RecastError(
                f"Cannot get the weights of {name}: {one_line(error)}", f"Go online, or give {local}."
            ) from None
    return from_model(name, model, args)


def from_model(name: str, model: torch.nn.Module, args: dict[str, Any]) -> Source:
    """The source that a loaded timm model is."""
    return from_tensors(name, model.state_dict(), model, args)


def from_tensors(name: str, tensors: Mapping[str, Tensor], model: torch.nn.Module, args: dict[str, Any]) -> Source:
    """The source of `tensors` that fit `model`, whose own values do not matter; tied tensors are kept once."""
    aliases = ties(model)
    kept = without(tensors, aliases)
    modules = {module: shape for module, shape in find_modules(model).items() if f"{module}.weight" in kept}
    return Source(name, kept, modules, describe(model, args), aliases)


def under_all_names(tensors: Mapping[str, Tensor], model: torch.nn.Module) -> Mapping[str, Tensor]:
    """`tensors` under all the names that `model` has for one: safetensors' `save_model` keeps one name of each."""
    names: dict[str, list[str]] = {}
    for alias, first in ties(model).items():
        names.setdefault(first, [first]).append(alias)
    lacking: dict[str, str] = {}
    for tied in names.values():
        given = [name for name in tied if name in tensors]
        lacking |= {name: given[0] for name in tied if given and name not in tensors}
    return also_as(tensors, lacking)


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes alone: a file may hold its tensors in another type than the network."""
    return {key: spec.shape for key, spec in specs(tensors).items()}


def shared(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Other names of tensors that share their memory -> the first name. What is read from a file shares nothing."""
    if isinstance(tensors, StoredTensors):
        return {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for key, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and seen.setdefault(place, key) != key:
            aliases[key] = seen[place]
    return aliases


def modules_by_name(tensors: Mapping[str, Tensor]) -> Modules:
    """Modules of an unknown architecture: every floating-point `<name>.weight` of 2 to 5 dimensions, no embeddings."""
    return {
        key.removesuffix(".weight"): spec.shape
        for key, spec in specs(tensors).items()
        if key.endswith(".weight")
        and 2 <= len(spec.shape) <= 5
        and spec.dtype.is_floating_point
        and not re.search(r"embed|wte|wpe", key)
    }


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
