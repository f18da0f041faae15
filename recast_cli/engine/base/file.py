"""The base file, written and read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from recast_cli.engine.base.base import Base, base_of, plain_codes, shapes
from recast_cli.engine.base.codec.code import Code, Deflated, code_from_dict
from recast_cli.engine.base.header import CODED, MEANS, PLAIN, TRELLIS, BaseHeader, header_of, widest
from recast_cli.engine.errors import DamagedFile, RecastError
from recast_cli.engine.storage.header import read_header, read_metadata
from recast_cli.engine.storage.tensors import StoredTensors, read_stored, read_tensors, specs
from recast_cli.engine.storage.writer import writing


def save_base(base: Base, path: Path) -> Base:
    """Write `base` to `path` atomically and return it with its path.

    Raises:
        RecastError: There is no such folder, or no permission to write there.
        OSError: The disk is full, among others.
    """
    metadata = metadata_of(base, base.codes)
    with writing(path, specs(base.tensors), widest(metadata, base.layout)) as writer:
        writer.write_all(base.tensors.items())
        writer.finish(metadata)
    # what was read when it was asked for may now stand elsewhere
    tensors = read_stored(path) if isinstance(base.tensors, StoredTensors) else base.tensors
    return replace(base, tensors=tensors, path=path)


def metadata_of(header: BaseHeader, codes: Mapping[str, Code]) -> dict[str, Any]:
    """What the file says of a base besides its tensors, in the oldest format whose readers understand it."""
    trellis = any(isinstance(code, Deflated) for code in codes.values())
    version = TRELLIS if trellis else MEANS if header.layout.means else CODED if codes else PLAIN
    return header.metadata(plain_codes(codes), version)


def load_base(path: Path) -> Base:
    """Read a base file.

    Raises:
        RecastError: Missing, damaged, from a newer version, or not a base.
    """
    path = Path(path)
    found = read_header(path)
    metadata = read_metadata(path, found)
    if metadata is None:
        raise RecastError(f"{path} is a safetensors file but not a base", "Make one: recast mimic SOURCE -o FILE.")
    if metadata["kind"] != "base":
        hint = "Give the base it was made with."
        raise RecastError(f"{path} is a task's {metadata['kind']} file, and a base is wanted here", hint)
    header = header_of(metadata, path)
    try:
        plain = metadata.get("codes", {})
        if metadata["format"] < TRELLIS and any("stream" in code for code in plain.values()):
            raise RecastError(f"{path} is of an earlier format of compressed bases", "Run `recast mimic` again.")
        codes = {name: code_from_dict(value) for name, value in plain.items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise DamagedFile(f"{path}: the codes in its metadata are damaged", "Run `recast mimic` again.") from None
    wanted = {name: shape for name, shape in shapes(header.layout).items() if name not in codes}
    wanted |= {part: spec.shape for name, code in codes.items() for part, spec in code.specs(name).items()}
    for name, shape in wanted.items():
        if tuple(found.get(name, {}).get("shape", ())) != shape:
            raise DamagedFile(f"{path} is damaged: {name} is missing or of another shape", "Run `recast mimic` again.")
    return base_of(header, read_tensors(path), codes)
