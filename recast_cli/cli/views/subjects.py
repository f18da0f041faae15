"""What `recast inspect` looks at: a base, a task, or any safetensors file, as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recast_cli.cli.startup import import_torch
from recast_cli.engine.base.header import read_base_header, read_base_id
from recast_cli.engine.errors import RecastError
from recast_cli.engine.storage.header import INDEX, read_header, read_index, read_metadata, read_numbers
from recast_cli.engine.task.folder import COEFFICIENTS, RECORD, check_bound, check_parts, read_record
from recast_cli.workspace import Workspace

if TYPE_CHECKING:
    from recast_cli.engine.base.base import Base
    from recast_cli.engine.base.header import BaseHeader
    from recast_cli.engine.measure.diagnose import BankDiagnosis, ModuleChange, RoleDiagnosis


@dataclass(frozen=True)
class Subject:
    """One inspected thing: its JSON, and what is needed to show, compare and draw it.

    A task has its coefficients as `vector`, and the `places` (vector, entry) of those it chose, the last of them.
    """

    value: dict[str, Any]
    base: Base | None = None
    banks: list[BankDiagnosis] = field(default_factory=list)
    roles: list[RoleDiagnosis] = field(default_factory=list)
    vector: list[float] | None = None
    places: list[tuple[int, int]] | None = None
    changes: list[ModuleChange] | None = None


def open_subject(item: str, workspace: Workspace, base: Path | None) -> Subject:
    """Open what `item` names: a task by name, a task's folder, or a file."""
    path = Path(item)
    if item in workspace.task_names() or (path.name == item and path.suffix == "" and not path.exists()):
        return open_task(workspace.task_folder(item), workspace, base)
    if path.is_dir() and ((path / RECORD).is_file() or not (path / "config.json").is_file()):
        return open_task(path, workspace, base)
    if path.is_dir() or path.name.endswith(INDEX):
        return open_weights(path)
    header = read_header(path)
    metadata = read_metadata(path, header)
    if metadata is not None and metadata["kind"] == "base":
        return open_base(path)
    return open_file(path, header)


def open_base(path: Path) -> Subject:
    """A base: layout, parameters, savings, and the diagnosis of every bank."""
    import_torch()
    from recast_cli.engine.base.base import parameters
    from recast_cli.engine.base.file import load_base
    from recast_cli.engine.measure.diagnose import diagnose, diagnose_roles

    base = load_base(path)
    layout, banks, roles = base.layout, diagnose(base), diagnose_roles(base)
    value = {
        "kind": "base",
        "file": str(path),
        "base_id": base.base_id,
        "architecture": base.architecture.name if base.architecture else None,
        "source": base.source,
        "layout": layout.name,
        "solver": base.solver,
        "verified": base.verified,
        "sets": layout.sets,
        "modules": len(layout.modules),
        "coefficients": layout.coefficients,
        "degrees_of_freedom": layout.degrees_of_freedom,
        "parameters": parameters(base.specs),
        "source_parameters": base.source_parameters,
        "savings": layout.savings,
        "bytes": path.stat().st_size,
        **({"compression": base.compression} if base.codes else {}),
        "banks": [{**asdict(bank), "modules": list(bank.modules)} for bank in banks],
        "roles": [{**asdict(role), "shape": list(role.shape), "banks": list(role.banks)} for role in roles],
    }
    return Subject(value, base=base, banks=banks, roles=roles)


def open_task(folder: Path, workspace: Workspace, flag: Path | None) -> Subject:
    """A task: its coefficients by module beside the base's, where the base is at hand."""
    record = read_record(folder)
    shapes = check_parts(folder, record)
    vector = read_numbers(folder / COEFFICIENTS, ["coefficients"])
    places = None
    if "places" in shapes:
        flat = read_numbers(folder / COEFFICIENTS, ["places"], "I32")
        places = list(zip(flat[::2], flat[1::2], strict=True))
    base = find_base(record["base_id"], workspace, flag)
    value: dict[str, Any] = {
        "kind": "task",
        "task": record["name"],
        "base_id": record["base_id"],
        "base": str(base.path) if base else None,
        "coefficients": len(vector),
        "places": None,
        "adapter": record.get("adapter"),
        "head_parameters": math.prod(shapes["weight"]) + math.prod(shapes["bias"]),
        "classes": record["classes"],
        "image_size": record["image_size"],
        "metrics": record["metrics"],
        "banks": None,
    }
    if base is None:
        return Subject({**value, "places": places, "vector": vector}, vector=vector, places=places)
    from recast_cli.engine.measure.diagnose import chosen_changes, compare_to_base

    check_bound(record["base_id"], None if places else len(vector), base, "the task")
    of_layout: list[float] | None = vector
    changes: list[ModuleChange] = []
    if places:
        from recast_cli.engine.base.chosen import check_count, check_places, read_dictionary, spread

        assert base.path is not None, "it was read from a file"
        entries = read_dictionary(base.path, base.architecture)
        check_places(places, entries, str(folder / COEFFICIENTS))
        names, moved = [*entries], len(vector) - len(places)
        check_count(moved, base.layout, str(folder / COEFFICIENTS))
        value["places"] = [
            {"vector": names[number], "entry": entry, "added": added}
            for (number, entry), added in zip(places, vector[moved:], strict=True)
        ]
        changes = chosen_changes(names, places, vector[moved:])
        before = [float(each) for each in base.mimicked()]
        added_to = zip(before, spread(vector[:moved], len(before)), strict=True)
        of_layout = [one + other for one, other in added_to] if moved else None
    if of_layout is not None:
        changes = [*compare_to_base(base, of_layout), *changes]
        by_module = {change.module: asdict(change) for change in changes}
        value["banks"] = [
            {"name": bank.name, "group": bank.group, "modules": [by_module[module] for module in bank.modules]}
            for bank in base.layout.banks
        ]
    return Subject(value, vector=vector, places=places, changes=changes)


def find_base(base_id: str, workspace: Workspace, flag: Path | None) -> BaseHeader | None:
    """The base that the flag names, else the workspace's where its id is `base_id`."""
    if flag is not None:
        return read_base_header(flag)
    try:
        path = workspace.base_file(None, base_id)
    except RecastError:
        return None
    return read_base_header(path) if read_base_id(path) == base_id else None


def open_file(path: Path, header: dict[str, Any]) -> Subject:
    """Any other safetensors file: names, shapes, types, metadata."""
    tensors = [
        {"name": name, "shape": entry["shape"], "dtype": entry["dtype"]}
        for name, entry in sorted(header.items())
        if name != "__metadata__"
    ]
    about = {"kind": "safetensors", "file": str(path), "bytes": path.stat().st_size}
    return Subject({**about, "metadata": header.get("__metadata__", {}), "shards": 1, "tensors": tensors})


def open_weights(path: Path) -> Subject:
    """Shards by their index, or whatever weight file is in a folder with a config.json."""
    file: Path | None = path
    if path.is_dir():
        from recast_cli.engine.source.checkpoint import weights_in

        file = weights_in(path)
    if file is None:
        raise RecastError(f"{path} holds no weights", "Give a file.")
    if not file.name.endswith(INDEX):
        return open_file(file, read_header(file))
    shards = {shard: read_header(file.parent / shard) for shard in sorted(set(read_index(file).values()))}
    header = {name: shards[shard].get(name) for name, shard in read_index(file).items()}
    if lost := [name for name, entry in header.items() if entry is None]:
        raise RecastError(f"{lost[0]} is not in the shard that {file} names", "Fetch both again.")
    found = open_file(file, header)
    size = sum((file.parent / shard).stat().st_size for shard in shards)
    return Subject({**found.value, "bytes": size, "shards": len(shards)})
