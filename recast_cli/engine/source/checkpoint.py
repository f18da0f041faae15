"""Read a checkpoint: a safetensors file, shards of such by their index, or a pickle of plain tensors."""

import pickle
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from recast_cli.engine.architecture.timm_config import quiet
from recast_cli.engine.errors import DamagedFile, MissingFile, RecastError, one_line
from recast_cli.engine.storage.header import INDEX, read_header, read_index, read_metadata
from recast_cli.engine.storage.tensors import TYPE_NAMES, StoredTensors, read_stored, specs

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", INDEX)
PREFERRED = ("model.safetensors", f"model{INDEX}", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""Names that are looked for first in a folder, as timm does."""


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a weight file; of safetensors nothing but the headers is read before a tensor is asked for.

    Raises:
        RecastError: Missing, damaged, not plain tensors, or a file that recast wrote.
    """
    if path.name.endswith(INDEX):
        tensors: Mapping[str, Tensor] = read_shards(path)
    elif path.suffix == ".safetensors":
        header = read_header(path)
        if metadata := read_metadata(path, header):
            raise RecastError(f"{path} is a {metadata['kind']} file of recast, not a checkpoint", "Give its source.")
        tensors = read_stored(path, header)
    else:
        tensors = read_pickle(path)
    if not tensors:
        raise RecastError(f"{path} holds no tensors", "Give a state dict.")
    for name, spec in specs(tensors).items():
        if spec.dtype not in TYPE_NAMES:
            raise RecastError(f"{path}: {name} is of type {spec.dtype}, which safetensors cannot hold", "Convert it.")
    return tensors


def read_shards(index: Path) -> StoredTensors:
    """The tensors that an index names, each from its shard."""
    places = {}
    by_shard: dict[str, list[str]] = {}
    for name, shard in read_index(index).items():
        by_shard.setdefault(shard, []).append(name)
    for shard, names in sorted(by_shard.items()):
        file = index.parent / shard
        if not file.exists():
            raise MissingFile(f"{index} names the shard {shard}, which is not there", "Fetch it, too.")
        found = read_stored(file).places
        if missing := [name for name in names if name not in found]:
            raise DamagedFile(f"{file} lacks {missing[0]}, which {index.name} says it holds", "Fetch both again.")
        places.update({name: found[name] for name in names})
    return StoredTensors(places)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict in a pickle, through `weights_only=True` alone, training wrappers taken off."""
    if not path.is_file():
        raise MissingFile(f"{path} does not exist", "Check the path.")
    try:
        with quiet():
            tensors = load_pickle(path)
    except PermissionError:
        raise RecastError(f"{path}: no permission to read it", "Check its permissions.") from None
    except pickle.UnpicklingError as error:
        raise RecastError(f"{path} cannot be loaded safely: {one_line(error)}", safe_hint(path)) from None
    except Exception as error:
        raise DamagedFile(f"{path} is not a weight file: {one_line(error)}", safe_hint(path)) from None
    return {key: value for key, value in tensors.items() if isinstance(value, Tensor)}


def load_pickle(path: Path) -> dict[str, Tensor]:
    """timm's `load_state_dict`, which takes wrappers off; tensors stay in the mapped file where torch can map it."""
    try:
        with mapped():
            return timm.models.load_state_dict(str(path), weights_only=True)
    except RuntimeError:  # files in the format before torch 1.6 cannot be mapped
        return timm.models.load_state_dict(str(path), weights_only=True)


def mapped() -> AbstractContextManager[object]:
    """Let `torch.load` map files instead of reading them; torch before 2.6 has no such switch."""
    try:
        from torch.utils.serialization import config
    except ImportError:
        return nullcontext()
    settings: Any = config  # torch adds `patch` when it is imported, which no type checker sees
    return settings.patch("load.mmap", True)


def weights_in(folder: Path) -> Path | None:
    """The weight file of a folder that timm would take, or its index of shards; None where there is none."""
    files = [folder / name for name in PREFERRED]
    for pattern in (f"*{INDEX}", "*.safetensors", "*.pth", "*.bin", "*.pt"):
        files += sorted(folder.glob(pattern))
    return next((file for file in files if file.is_file()), None)


def files_of(path: Path) -> list[Path]:
    """All files that a weight file consists of: itself and, of an index, its shards."""
    shards = set(read_index(path).values()) if path.name.endswith(INDEX) else ()
    return [path, *(path.parent / shard for shard in shards)]


def safe_hint(path: Path) -> str:
    """What to do about a pickle that is not plain tensors."""
    return (
        f"Save its state dict as safetensors, or as plain tensors with torch.save, and use that instead of {path.name}."
    )
