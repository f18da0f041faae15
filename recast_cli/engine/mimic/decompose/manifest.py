"""What is known of a base before its tensors are made: their types and shapes, and the bytes of its file."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from recast_cli.engine.base.base import shapes
from recast_cli.engine.base.codec.code import Code
from recast_cli.engine.base.file import metadata_of
from recast_cli.engine.base.header import BaseHeader, widest
from recast_cli.engine.errors import OptionError
from recast_cli.engine.layout.layout import Layout, template_key
from recast_cli.engine.mimic.decompose.solver_options import DTYPES, GradientOptions, SolverOptions, VaeOptions
from recast_cli.engine.source.source import Source
from recast_cli.engine.storage.tensors import TYPE_NAMES, Spec, specs
from recast_cli.engine.storage.writer import file_bytes

TORCH_TYPES = {name: getattr(torch, name) for name in DTYPES}


def manifest(
    source: Source, layout: Layout, options: SolverOptions, dtype: str, compression: Mapping[str, Any] | None = None
) -> BaseHeader:
    """The header of a base without what is known only once its tensors are there.

    Raises:
        RecastError: No such `dtype`.
    """
    if dtype not in DTYPES:
        raise OptionError("dtype", f"{dtype} is unknown", f"Use {', '.join(DTYPES)}.")
    name = {type(None): "exact", GradientOptions: "gradient", VaeOptions: "vae"}[type(options)]
    found = specs(source.tensors)
    types = {module: TYPE_NAMES[found[f"{module}.weight"].dtype] for module in layout.modules}
    return BaseHeader(
        layout=layout,
        architecture=source.architecture,
        source=source.name,
        solver={"name": name, "dtype": dtype, **(asdict(options) if options else {})},
        aliases=source.aliases,
        types={module: kind for module, kind in types.items() if kind != "F32"},
        compression=dict(compression or {}),
    )


def stored_bytes(source: Source, layout: Layout, options: SolverOptions, codes: Mapping[str, Code]) -> int:
    """Size of the file that `mimic` writes with these codes, in bytes, with room for what `verify` finds."""
    metadata = metadata_of(manifest(source, layout, options, "float32"), codes)
    room = widest(metadata, layout, verified=True)
    return file_bytes(stored_specs(base_specs(source, layout, "float32"), codes), room)


def base_specs(source: Source, layout: Layout, dtype: str) -> dict[str, Spec]:
    """Type and shape of every tensor of the base."""
    mixed = {f"{module}.weight" for module in layout.modules}
    ours = shapes(layout)
    types = {template_key(bank): TORCH_TYPES[dtype] for bank in layout.banks}
    rest = {name: spec for name, spec in specs(source.tensors).items() if name not in mixed}
    return rest | {name: Spec(types.get(name, torch.float32), shape) for name, shape in ours.items()}


def stored_specs(tensors: Mapping[str, Spec], codes: Mapping[str, Code]) -> dict[str, Spec]:
    """Type and shape of everything in the file of a base whose tensors are `tensors` before they are encoded."""
    stored = {name: spec for name, spec in tensors.items() if name not in codes}
    return stored | {part: spec for name, code in codes.items() for part, spec in code.specs(name).items()}
