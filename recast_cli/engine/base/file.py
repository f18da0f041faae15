"""The base file: what stands in its metadata, written and read."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from recast_cli.engine.base.base import Base, plain_codes, shapes
from recast_cli.engine.base.codec.code import Deflated, code_from_dict
from recast_cli.engine.errors import DamagedFile, RecastError
from recast_cli.engine.layout.layout import Layout
from recast_cli.engine.storage.header import (
    CODED_VERSION,
    FORMAT_VERSION,
    MEANS_VERSION,
    TRELLIS_VERSION,
    read_header,
    read_metadata,
)
from recast_cli.engine.storage.tensors import StoredTensors, read_stored, read_tensors, specs
from recast_cli.engine.storage.writer import writing

LONGEST_NUMBER = -2.2250738585072014e-308
"""No float64 has more characters as JSON."""


def save_base(base: Base, path: Path) -> Base:
    """Write `base` to `path` atomically and return it with its path."""
    with writing(path, specs(base.tensors), widest(base)) as writer:
        writer.write_all(base.tensors.items())
        writer.finish(metadata_of(base))
    # what was read when it was asked for may now stand elsewhere
    tensors = read_stored(path) if isinstance(base.tensors, StoredTensors) else base.tensors
    return replace(base, tensors=tensors, path=path)


def version_of(base: Base) -> int:
    """The oldest format whose readers understand a base."""
    if any(isinstance(code, Deflated) for code in base.codes.values()):
        return TRELLIS_VERSION
    if base.layout.means:
        return MEANS_VERSION
    return CODED_VERSION if base.codes else FORMAT_VERSION


def metadata_of(base: Base) -> dict[str, Any]:
    """What the file says of `base` besides its tensors."""
    compressed = {**plain_codes(base.codes), "compression": base.compression} if base.codes else {}
    return {
        "kind": "base",
        "format": version_of(base),
        "base_id": base.base_id,
        "layout": base.layout.to_dict(),
        "architecture": asdict(base.architecture) if base.architecture else None,
        "source": base.source,
        "source_digest": base.source_digest,
        "errors": base.errors,
        "solver": base.solver,
        "aliases": base.aliases,
        # files from before these were known have neither
        **({"types": base.types} if base.types else {}),
        **({"verified": base.verified} if base.verified else {}),
        **compressed,
    }


def widest(base: Base) -> dict[str, Any]:
    """`metadata_of` with the longest values, as JSON, that can stand for what is known only once all tensors are."""
    error = {"relative_error": LONGEST_NUMBER, "cosine": LONGEST_NUMBER}
    errors = {module: error for module in base.layout.modules}
    return metadata_of(base) | {"base_id": "0" * 32, "source_digest": "sha256:" + "0" * 64, "errors": errors}


def load_base(path: Path) -> Base:
    """Read a base file.

    Raises:
        RecastError: Missing, damaged, from a newer version, or not a base.
    """
    from recast_cli.engine.architecture.description import Architecture

    path = Path(path)
    header = read_header(path)
    metadata = read_metadata(path, header)
    if metadata is None:
        raise RecastError(f"{path} is a safetensors file but not a base", "Make one: recast mimic SOURCE -o FILE.")
    if metadata["kind"] != "base":
        hint = "Give the base it was made with."
        raise RecastError(f"{path} is a task's {metadata['kind']} file, and a base is wanted here", hint)
    layout = Layout.from_dict(metadata.get("layout", {}))
    try:
        if metadata["format"] < TRELLIS_VERSION and any(
            "stream" in code for code in metadata.get("codes", {}).values()
        ):
            raise RecastError(f"{path} is of an earlier format of compressed bases", "Run `recast mimic` again.")
        codes = {name: code_from_dict(value) for name, value in metadata.get("codes", {}).items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise DamagedFile(f"{path}: the codes in its metadata are damaged", "Run `recast mimic` again.") from None
    wanted = {name: shape for name, shape in shapes(layout).items() if name not in codes}
    wanted |= {part: spec.shape for name, code in codes.items() for part, spec in code.specs(name).items()}
    for name, shape in wanted.items():
        if tuple(header.get(name, {}).get("shape", ())) != shape:
            raise DamagedFile(f"{path} is damaged: {name} is missing or of another shape", "Run `recast mimic` again.")
    try:
        return Base(
            layout=layout,
            tensors=read_tensors(path),
            base_id=metadata["base_id"],
            architecture=Architecture(**metadata["architecture"]) if metadata["architecture"] else None,
            source=metadata["source"],
            source_digest=metadata["source_digest"],
            errors=metadata["errors"],
            solver=metadata["solver"],
            aliases=metadata["aliases"],
            types=metadata.get("types", {}),
            verified=metadata.get("verified"),
            codes=codes,
            compression=metadata.get("compression", {}),
            path=path,
        )
    except (KeyError, TypeError):
        raise DamagedFile(f"{path}: its recast metadata is damaged", "Run `recast mimic` again.") from None
