"""What is known of a base before its tensors are made: their types and shapes, and the bytes of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from recast_cli.engine.base.base import Base, shapes
from recast_cli.engine.base.codec.code import Code
from recast_cli.engine.base.file import LONGEST_NUMBER, widest
from recast_cli.engine.layout.layout import Layout, template_key
from recast_cli.engine.mimic.decompose.solver_options import GradientOptions, SolverOptions, VaeOptions
from recast_cli.engine.source.source import Source
from recast_cli.engine.storage.tensors import TYPE_NAMES, Spec, specs
from recast_cli.engine.storage.writer import file_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def manifest(source: Source, layout: Layout, options: SolverOptions, dtype: str, codes: Mapping[str, Code]) -> Base:
    """The base without tensors and without what is known only once they are there."""
    name = {type(None): "exact", GradientOptions: "gradient", VaeOptions: "vae"}[type(options)]
    return Base(
        layout=layout,
        tensors={},
        base_id="",
        architecture=source.architecture,
        source=source.name,
        source_digest="",
        errors={},
        solver={"name": name, "dtype": dtype, **(asdict(options) if options else {})},
        aliases=source.aliases,
        types=stored_types(source, layout),
        codes=dict(codes),
    )


def stored_types(source: Source, layout: Layout) -> dict[str, str]:
    """Module -> type of its weight in the source, as safetensors calls it, where that is not F32."""
    found = specs(source.tensors)
    types = {module: TYPE_NAMES[found[f"{module}.weight"].dtype] for module in layout.modules}
    return {module: name for module, name in types.items() if name != "F32"}


def stored_bytes(source: Source, layout: Layout, options: SolverOptions, codes: Mapping[str, Code]) -> int:
    """Size of the file that `mimic` writes with these codes, in bytes, with room for what `verify` finds."""
    verified: dict[str, Any] = {"images": 10**9, "agreement": LONGEST_NUMBER}
    verified["feature_cosine"] = dict.fromkeys(layout.modules, LONGEST_NUMBER)
    base = replace(manifest(source, layout, options, "float32", codes), verified=verified)
    return file_bytes(stored_specs(base_specs(source, layout, "float32"), codes), widest(base))


def base_specs(source: Source, layout: Layout, dtype: str) -> dict[str, Spec]:
    """Type and shape of every tensor of the base."""
    mixed = {f"{module}.weight" for module in layout.modules}
    ours = shapes(layout)
    types = {template_key(bank): DTYPES[dtype] for bank in layout.banks}
    rest = {name: spec for name, spec in specs(source.tensors).items() if name not in mixed}
    return rest | {name: Spec(types.get(name, torch.float32), shape) for name, shape in ours.items()}


def stored_specs(tensors: Mapping[str, Spec], codes: Mapping[str, Code]) -> dict[str, Spec]:
    """Type and shape of everything in the file of a base whose tensors are `tensors` before they are encoded."""
    stored = {name: spec for name, spec in tensors.items() if name not in codes}
    return stored | {part: spec for name, code in codes.items() for part, spec in code.specs(name).items()}
