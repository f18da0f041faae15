"""Write a safetensors file tensor by tensor: safetensors' own writer wants all of them in memory at once."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from recast_cli.engine.storage.atomic import atomic
from recast_cli.engine.storage.header import METADATA_KEY, to_json
from recast_cli.engine.storage.tensors import TYPE_NAMES, Place, Spec, StoredTensors, raw, spec_of
from recast_cli.engine.storage.tensors import specs as all_specs

UNSYNCED = 2**22
"""Bytes from which the disk begins to take what is written, while the next tensors are made."""


@contextmanager
def writing(
    path: Path, specs: Mapping[str, Spec], widest: dict[str, Any], key: str | None = METADATA_KEY
) -> Iterator[TensorWriter]:
    """Yield a writer for the file at `path`, which is there, whole, once the block has ended without an error.

    Args:
        path: The file.
        specs: Type and shape of every tensor that will be written.
        widest: Metadata at least as long, as JSON, as what `finish` will be given; room for it is kept.
        key: Under which metadata stand in the file as JSON; None: they are strings by name, written as they are.

    Raises:
        OSError: The disk is full, among others.
    """
    with atomic(path) as temporary, temporary.open("r+b", buffering=0) as stream, ThreadPoolExecutor(1) as disk:
        writer = TensorWriter(stream, specs, widest, key, disk)
        yield writer
        assert writer.finished, "the header is missing"


def file_bytes(specs: Mapping[str, Spec], widest: dict[str, Any]) -> int:
    """Size in bytes of the file that `writing` makes of these arguments."""
    return 8 + header_bytes(entries_of(specs), widest, METADATA_KEY) + sum(spec.nbytes for spec in specs.values())


def entries_of(specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The header's entries: every tensor and its place."""
    entries: dict[str, Any] = {}
    end = 0
    # no holes are allowed, so large types come first: every tensor then starts at a multiple of its type's size
    for name, spec in sorted(specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        start, end = end, end + spec.nbytes
        entries[name] = {"dtype": TYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [start, end]}
    return entries


def header_json(entries: dict[str, Any], metadata: dict[str, Any], key: str | None) -> bytes:
    """The JSON header with `metadata` in it."""
    written = metadata if key is None else {key: to_json(metadata)}
    return to_json({"__metadata__": written, **entries}).encode()


def header_bytes(entries: dict[str, Any], widest: dict[str, Any], key: str | None) -> int:
    """Bytes kept for the header; tensors start at a multiple of 8, as in every such file."""
    return -(-len(header_json(entries, widest, key)) // 8) * 8


class TensorWriter:
    """Writes each tensor to its place as it comes, in any order, and the header last.

    The header stands first in the file but holds what is known only at the end. So its length is fixed beforehand, and
    what is not needed is filled with spaces, which the format allows.
    """

    def __init__(
        self,
        stream: BinaryIO,
        specs: Mapping[str, Spec],
        widest: dict[str, Any],
        key: str | None,
        disk: ThreadPoolExecutor,
    ) -> None:
        self.stream, self.specs, self.left, self.finished = stream, specs, dict(specs), False
        self.disk, self.unsynced = disk, 0
        self.syncing: Future[None] | None = None
        self.key = key
        self.entries = entries_of(specs)
        self.length = header_bytes(self.entries, widest, key)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor of the type and shape that were announced. Raises OSError where the disk does not take it."""
        assert spec_of(tensor) == self.left.pop(name), f"{name} is not what was announced"
        self.put(raw(tensor), 8 + self.length + self.entries[name]["data_offsets"][0])

    def write_all(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """`write` tensors as they come; none is in memory here while the next one is made."""
        for name, tensor in tensors:
            self.write(name, tensor)
            del tensor

    def written(self) -> StoredTensors:
        """The tensors that are there, read from the unfinished file; gone once it has its name."""
        file, start = Path(self.stream.name), 8 + self.length
        places = {name: entry["data_offsets"][0] for name, entry in self.entries.items() if name not in self.left}
        return StoredTensors({name: Place(file, start + place, self.specs[name]) for name, place in places.items()})

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write the header, once all tensors are there."""
        assert not self.left, f"not written: {', '.join(self.left)}"
        header = header_json(self.entries, metadata, self.key)
        assert len(header) <= self.length, "the metadata needs more room than was kept"
        self.put(memoryview(struct.pack("<Q", self.length) + header.ljust(self.length)), 0)
        self.synced()
        self.finished = True

    def put(self, data: memoryview, place: int) -> None:
        """Write `data` at `place`, an offset in bytes."""
        self.stream.seek(place)
        self.unsynced += len(data)
        while data:  # the system may take less than all at once
            data = data[self.stream.write(data) :]
        if self.unsynced >= UNSYNCED and (self.syncing is None or self.syncing.done()):
            self.synced()
            self.syncing, self.unsynced = self.disk.submit(os.fsync, self.stream.fileno()), 0

    def synced(self) -> None:
        """Wait for the disk to have taken what it was given. Raises its OSError, which the system tells once."""
        if self.syncing:
            self.syncing.result()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write `tensors` and `metadata` (one JSON key) to a safetensors file, atomically."""
    with writing(path, all_specs(tensors), metadata) as writer:
        writer.write_all(tensors.items())
        writer.finish(metadata)
