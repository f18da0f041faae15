"""Tensors by name, in memory or in files: their types and shapes, their bytes, and reading them one at a time."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recast_cli.engine.errors import DamagedFile, MissingFile, RecastError
from recast_cli.engine.storage.header import read_header

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The name of a type in safetensors -> torch's."""
TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}


class Spec(NamedTuple):
    """Type and shape of a tensor: all that is known of it before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


class Place(NamedTuple):
    """Where a tensor lies: `start` is the offset of its first byte in `file`."""

    file: Path
    start: int
    spec: Spec


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of safetensors files: names, types and shapes are known, values are read whenever they are asked for.

    They are read into memory of their own. Pages of a mapped file would count as memory of the process for as long as
    any tensor sees the mapping, and a source may be larger than memory.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = dict(places)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, read now. Raises RecastError where the file is no longer what it was."""
        file, start, spec = self.places[name]
        tensor = torch.empty(spec.shape, dtype=spec.dtype)
        buffer, done = raw(tensor), 0
        try:
            with file.open("rb", buffering=0) as stream:
                stream.seek(start)
                while done < len(buffer) and (count := stream.readinto(buffer[done:])):
                    done += count
        except FileNotFoundError:
            raise MissingFile(f"{file} is gone", "Fetch or write the file again.") from None
        if done < len(buffer):
            raise DamagedFile(f"{file} is truncated: {name} ends early", "Fetch or write the file again.")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def read_stored(file: Path, header: dict[str, Any] | None = None) -> StoredTensors:
    """The tensors of one safetensors file, whose header may have been read before.

    Raises:
        RecastError: As `read_header`, a type that torch does not have, or bytes that do not fit type and shape.
    """
    header = header or read_header(file)
    with file.open("rb") as stream:
        data = 8 + int.from_bytes(stream.read(8), "little")
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = TYPES.get(entry["dtype"]), tuple(int(size) for size in entry["shape"])
            start, end = (int(offset) for offset in entry["data_offsets"])
        except (LookupError, TypeError, ValueError):
            raise DamagedFile(f"{file} is damaged: {name} has no type or shape", "Fetch it again.") from None
        if dtype is None:
            raise RecastError(f"{file}: {name} is of type {entry['dtype']}, which recast cannot read", "Convert it.")
        spec = Spec(dtype, shape)
        if start < 0 or min(shape, default=1) < 0 or end - start != spec.nbytes:
            what = f"{file} is damaged: {name} has {end - start} bytes where its shape needs {spec.nbytes}"
            raise DamagedFile(what, "Fetch or write the file again.")
        places[name] = Place(file, data + start, spec)
    return StoredTensors(places)


def spec_of(tensor: Tensor) -> Spec:
    """Type and shape of a tensor."""
    return Spec(tensor.dtype, tuple(tensor.shape))


def specs(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Types and shapes of all `tensors`; none is read for it."""
    if isinstance(tensors, StoredTensors):
        return {name: place.spec for name, place in tensors.places.items()}
    return {name: spec_of(tensor) for name, tensor in tensors.items()}


def without(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """`tensors` but those called `names`; none is read for it."""
    left_out = set(names)
    if isinstance(tensors, StoredTensors):
        return StoredTensors({name: place for name, place in tensors.places.items() if name not in left_out})
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}


def also_as(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Mapping[str, Tensor]:
    """`tensors`, and under each new name of `names` the one that it stands for; none is read for it."""
    if isinstance(tensors, StoredTensors):
        return StoredTensors(tensors.places | {new: tensors.places[name] for new, name in names.items()})
    return {**tensors, **{new: tensors[name] for new, name in names.items()}}


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row order; they are its own memory where it lies there contiguously."""
    flat = (tensor.detach() if tensor.requires_grad else tensor).cpu().reshape(-1)
    if flat.stride() != (1,):  # one element counts as contiguous whatever its stride, but only 1 can be seen as bytes
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises RecastError as `read_header` does."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DamagedFile(f"{path} is damaged: {error}", "Fetch or write the file again.") from None
