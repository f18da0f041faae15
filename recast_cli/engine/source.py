"""Open what is to be mimicked: a timm name, an `hf-hub:` name, a folder with config.json, or a weight file."""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from torch import Tensor

from recast_cli.engine.errors import RecastError, nearest
from recast_cli.engine.files import read_metadata, read_tensors, tensors_digest
from recast_cli.engine.network import Architecture, check_name, describe, find_modules, load, quiet
from recast_cli.engine.plan import Modules

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Source:
    """A pretrained checkpoint.

    Attributes:
        name: As the user named it, without folders.
        tensors: Every tensor under its own name; tied ones once, with their other names in `aliases`.
        modules: The weights that may be reparameterised.
        architecture: None for a file whose architecture nobody knows.
        digest: Digest over `tensors`.
    """

    name: str
    tensors: dict[str, Tensor]
    modules: Modules
    architecture: Architecture | None
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """`sha256:…` over names and bytes of all tensors, whatever file they came in."""
        return tensors_digest(self.tensors)


def open_source(name: str, architecture: str | None = None, weights: Path | None = None) -> Source:
    """Open a source.

    Args:
        name: timm name (tags too), `hf-hub:org/name`, a folder with config.json, or a weight file.
        architecture: timm name for a weight file; without it modules are found by name and shape.
        weights: Local weight file for a timm name.

    Raises:
        RecastError: Nothing such exists, it cannot be fetched, or the weights do not fit.
    """
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        reject(architecture or weights, f"{name} is a folder with a config.json", "--architecture and --weights")
        return from_folder(path)
    if path.is_file() or path.suffix in WEIGHT_FILES:
        reject(weights, f"{name} is a weight file itself", "--weights")
        return from_file(path, architecture)
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
        tensors, aliases = untie(tensors)
        modules = modules_by_name({key: value for key, value in tensors.items() if key not in aliases.values()})
        return Source(path.name, tensors, modules, None, aliases)
    check_name(architecture)
    heads = classifier_names(architecture)
    weight = tensors.get(f"{heads[0]}.weight")
    with quiet():
        model = timm.create_model(architecture, num_classes=None if weight is None else len(weight))
        state = fit(tensors, model, architecture)
        lacking = model.state_dict().keys() - state.keys()
        if lacking and all(key.rpartition(".")[0] in heads for key in lacking):
            model = timm.create_model(architecture, num_classes=0)
    load(model, state, architecture)
    return from_model(path.name, model, {})


def classifier_names(architecture: str) -> tuple[str, ...]:
    """Names of the classifier modules of a timm architecture."""
    config = timm.models.get_pretrained_cfg(architecture)
    names = (config and config.classifier) or "head"
    return (names,) if isinstance(names, str) else tuple(names)


def fit(tensors: dict[str, Tensor], model: torch.nn.Module, architecture: str) -> dict[str, Tensor]:
    """`tensors` as they are where their names are the model's; else through timm's filter for other key names."""
    if not tensors.keys() - model.state_dict().keys():
        return tensors
    overlay = {"state_dict": dict(tensors), "num_classes": model.num_classes, "label_offset": 0}
    try:
        other = timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=model.num_classes
        )
    except Exception:  # any filter may stumble over foreign keys in its own way; `load` then says what differs
        return tensors
    return other.state_dict()


def from_folder(path: Path) -> Source:
    """A folder that timm's `local-dir:` opens: config.json (model arguments included) and its weights."""
    config = path / "config.json"
    if not config.is_file():
        raise RecastError(
            f"{path} is a folder without a config.json", "Give a file, a timm name, or timm's own folder."
        )
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        name = values["architecture"] if "architecture" in values else values["pretrained_cfg"]["architecture"]
    except (ValueError, KeyError, TypeError, OSError):
        raise RecastError(f"{config} is not a timm config: no architecture in it", "Write it with timm.") from None
    check_name(name)
    for file in [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        read_weights(file)  # a clear line about a damaged file, which timm would meet less clearly
    if not any(file.suffix in WEIGHT_FILES for file in path.iterdir()):
        raise RecastError(f"{path} holds no weights", "Put model.safetensors beside config.json.")
    try:
        with quiet():
            model = timm.create_model(f"local-dir:{path}", pretrained=True)
    except Exception as error:
        raise RecastError(f"timm cannot open {path}: {one_line(error)}", "Check config.json and weights.") from None
    return from_model(path.resolve().name, model, values.get("model_args", {}))


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
    """The source that a loaded timm model is, tied tensors stored once."""
    tensors, aliases = untie(model.state_dict())
    modules = {module: shape for module, shape in find_modules(model).items() if f"{module}.weight" in tensors}
    return Source(name, tensors, modules, describe(model, args), aliases)


def untie(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor under its first name, and the other names of those that share their memory."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for key, tensor in state.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            aliases[key] = seen[place]
        else:
            seen[place] = key
            tensors[key] = tensor
    return tensors, aliases


def modules_by_name(tensors: dict[str, Tensor]) -> Modules:
    """Modules of an unknown architecture: every floating-point `<name>.weight` of 2 to 5 dimensions, no embeddings."""
    return {
        key.removesuffix(".weight"): tuple(tensor.shape)
        for key, tensor in tensors.items()
        if key.endswith(".weight")
        and 2 <= tensor.ndim <= 5
        and tensor.is_floating_point()
        and not re.search(r"embed|wte|wpe", key)
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a weight file; pickles through `weights_only=True` alone, training wrappers taken off."""
    if path.suffix == ".safetensors":
        if metadata := read_metadata(path):
            raise RecastError(f"{path} is a {metadata['kind']} file of recast, not a checkpoint", "Give its source.")
        tensors = read_tensors(path)
    else:
        if not path.is_file():
            raise RecastError(f"{path} does not exist", "Check the path.")
        try:
            with quiet():
                tensors = timm.models.load_state_dict(str(path), weights_only=True)
        except PermissionError:
            raise RecastError(f"{path}: no permission to read it", "Check its permissions.") from None
        except pickle.UnpicklingError as error:
            raise RecastError(f"{path} cannot be loaded safely: {one_line(error)}", safe_hint(path)) from None
        except Exception as error:
            raise RecastError(f"{path} is not a weight file: {one_line(error)}", safe_hint(path)) from None
    tensors = {key: own(value) for key, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise RecastError(f"{path} holds no tensors", "Give a state dict.")
    return tensors


def own(tensor: Tensor) -> Tensor:
    """The tensor, copied where it is a part of a larger storage: safetensors refuses views that overlap."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def safe_hint(path: Path) -> str:
    """What to do about a pickle that is not plain tensors."""
    return (
        f"Save its state dict as safetensors, or as plain tensors with torch.save, and use that instead of {path.name}."
    )


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first sentence of an exception's message, at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.split(". ")[0].rstrip(".")
    return text if len(text) <= limit else text[: limit - 1] + "…"


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
