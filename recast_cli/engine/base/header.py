"""What a base file says beside its tensors, without torch, which takes longer to import than to read it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recast_cli.engine.architecture.description import Architecture
from recast_cli.engine.errors import DamagedFile, RecastError, UnknownArchitecture, option
from recast_cli.engine.layout.layout import Layout, coefficient_key
from recast_cli.engine.storage.header import read_metadata, read_numbers

PLAIN, CODED, MEANS, TRELLIS = 1, 2, 3, 5
"""Formats: of plain bases; of compressed ones, which a reader of format 1 would take for damaged; of layouts that take
means of templates; of bases that have integers on a trellis. A file has the oldest whose readers understand it."""
ALWAYS = ("base_id", "source", "source_digest", "errors", "solver", "aliases")
SOMETIMES = ("types", "verified")
"""Attributes of a header that stand in the file as they are; the latter where there is something to say."""
LONGEST_NUMBER = -2.2250738585072014e-308
"""No float64 has more characters as JSON."""


@dataclass(frozen=True, kw_only=True)
class BaseHeader:
    """What is known of a base beside its tensors.

    Attributes:
        layout: Which modules are in which bank.
        architecture: None where nobody knows it.
        source: Name of the source; `source_digest` its digest.
        base_id: Digest of layout, codes and stored tensors, see `identify`; tasks are bound to it. Empty before the
            tensors are there, as are the source's digest and `errors`.
        errors: Per module, relative Frobenius error and cosine between W and the source weight.
        solver: How templates and coefficients were found, with all options.
        aliases: Other names of tensors that the source shares.
        types: Module -> type of its weight in the source, as safetensors calls it, where that is not F32.
        verified: What `verify` found, where it ran: `images`, `agreement`, `feature_cosine` by module.
        compression: What was done to compress it and what was measured; base_id does not depend on it.
        path: The file, where there is one.
    """

    layout: Layout
    architecture: Architecture | None
    source: str
    source_digest: str = ""
    base_id: str = ""
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    solver: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    verified: dict[str, Any] | None = None
    compression: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def known_architecture(self) -> Architecture:
        """The architecture. Raises UnknownArchitecture where nobody knows it: such a base can only be inspected."""
        if self.architecture is None:
            hint = f"Mimic its source with {option('architecture', 'NAME')} where timm has it."
            raise UnknownArchitecture(self.path or self.source, hint, "no network can be built from it")
        return self.architecture

    def mimicked(self) -> list[float]:
        """All mimicked coefficients in layout order, from the file: layout.coefficients numbers."""
        assert self.path is not None
        values = read_numbers(self.path, [coefficient_key(module) for module in self.layout.modules])
        if len(values) != self.layout.coefficients:
            raise damaged(self.path)
        return values

    def metadata(self, codes: Mapping[str, Any], version: int) -> dict[str, Any]:
        """What the file says of the base besides its tensors, with `codes` as plain values."""
        return {
            "kind": "base",
            "format": version,
            "layout": self.layout.to_dict(),
            "architecture": asdict(self.architecture) if self.architecture else None,
            **{name: getattr(self, name) for name in ALWAYS},
            **{name: getattr(self, name) for name in SOMETIMES if getattr(self, name)},
            **({"codes": codes, "compression": self.compression} if codes else {}),
        }


def widest(metadata: dict[str, Any], layout: Layout, verified: bool = False) -> dict[str, Any]:
    """Metadata with the longest values, as JSON, that can stand for what is known only once all tensors are.

    With `verified` there is room for what `verify` finds, too.
    """
    error = {"relative_error": LONGEST_NUMBER, "cosine": LONGEST_NUMBER}
    room: dict[str, Any] = {"errors": {module: error for module in layout.modules}}
    if verified:
        cosines = dict.fromkeys(layout.modules, LONGEST_NUMBER)
        room["verified"] = {"images": 10**9, "agreement": LONGEST_NUMBER, "feature_cosine": cosines}
    return metadata | {"base_id": "0" * 32, "source_digest": "sha256:" + "0" * 64, **room}


def header_of(metadata: dict[str, Any], path: Path) -> BaseHeader:
    """The inverse of `BaseHeader.metadata`. Raises RecastError where something is missing or of the wrong type."""
    layout = Layout.from_dict(metadata.get("layout", {}))
    try:
        return BaseHeader(
            layout=layout,
            architecture=Architecture(**metadata["architecture"]) if metadata["architecture"] else None,
            path=path,
            **{name: metadata[name] for name in ALWAYS},
            **{name: metadata[name] for name in (*SOMETIMES, "compression") if name in metadata},
        )
    except (KeyError, TypeError):
        raise damaged(path) from None


def read_base_header(path: Path) -> BaseHeader:
    """Read all of a base file but its tensors.

    Raises:
        RecastError: Missing, damaged, from a newer version, or not a base.
    """
    metadata = read_metadata(path)
    if metadata is None or metadata["kind"] != "base":
        raise RecastError(f"{path} is not a base", "Give the base the task was made with, or make one: recast mimic.")
    return header_of(metadata, path)


def read_base_id(path: Path) -> str | None:
    """The base_id of a base file; None for any other file."""
    try:
        metadata = read_metadata(path)
    except RecastError:
        return None
    return metadata.get("base_id") if metadata and metadata["kind"] == "base" else None


def stored_as(compression: dict[str, Any]) -> str:
    """How a compressed base is stored, in words."""
    if not compression["rounded"]:
        return "float16"
    calibrated = compression["calibrated"]
    # files of versions that called images otherwise have the second key
    images = calibrated and calibrated.get("images", calibrated.get("pictures"))
    how = f"calibrated on {images} images" if calibrated else "rounded to the nearest"
    return f"{compression['bits']:.2f} bits a weight, {how}"


def damaged(path: Path) -> DamagedFile:
    """The error of a base whose metadata cannot be used."""
    return DamagedFile(f"{path}: its recast metadata is damaged", "Run `recast mimic` again.")
