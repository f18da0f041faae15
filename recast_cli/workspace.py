"""The working folder: recast.yaml, the base, the images and the tasks, found the way every command finds them."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recast_cli.engine.errors import RecastError, nearest
from recast_cli.engine.files import read_metadata
from recast_cli.engine.options import AdaptOptions
from recast_cli.engine.task import RECORD, check_task_name

CONFIG_NAMES = ("recast.yaml", "recast.yml")


@dataclass(frozen=True)
class Workspace:
    """A folder with a base, images and tasks.

    Attributes:
        root: Where recast.yaml lies, else the working folder; `tasks/` lies here.
        base: Of recast.yaml, already relative to `root`; None where it has none.
        tasks: Of recast.yaml: task name -> `data` and options of adapt.
    """

    root: Path
    base: Path | None = None
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def base_file(self, flag: Path | None = None, base_id: str | None = None) -> Path:
        """The base: the flag, else recast.yaml's, else the one base in the folder.

        Args:
            flag: As given on the command line.
            base_id: Of a task; chooses among several bases.

        Raises:
            RecastError: None is found, or several.
        """
        if flag is not None:
            return flag
        if self.base is not None:
            return self.base
        found = {path: read_base_id(path) for path in sorted(self.root.glob("*.safetensors"))}
        bases = [path for path, its_id in found.items() if its_id and its_id == base_id]
        bases = bases or [path for path, its_id in found.items() if its_id]
        if not bases:
            raise RecastError(
                f"No base in {self.root}",
                "Make one with `recast mimic SOURCE -o base.safetensors`, or give --base FILE.",
            )
        if len(bases) > 1 and base_id is None:
            names = ", ".join(path.name for path in bases)
            raise RecastError(f"Several bases in {self.root}: {names}", "Say which with --base FILE.")
        return bases[0]

    def task_folder(self, name: str) -> Path:
        """`tasks/<name>`. Raises RecastError for a name that is no plain folder name."""
        return self.root / "tasks" / check_task_name(name)

    def task_names(self) -> list[str]:
        """Finished tasks, sorted."""
        return sorted(path.parent.name for path in (self.root / "tasks").glob(f"*/{RECORD}"))

    def known_data(self, name: str, flag: Path | None = None) -> Path | None:
        """The images of a task: the flag, else recast.yaml's, else `data/<name>` where it is there; else None."""
        if flag is not None:
            return flag
        if configured := self.tasks.get(name, {}).get("data"):
            return self.root / Path(configured).expanduser()
        folder = self.root / "data" / name
        return folder if folder.is_dir() else None

    def adapt_options(self, name: str, flags: dict[str, Any]) -> AdaptOptions:
        """Options of adapt: a flag that is not None wins over recast.yaml, that over the default."""
        values = {**self.tasks.get(name, {}), **{key: value for key, value in flags.items() if value is not None}}
        return AdaptOptions(**{key: value for key, value in values.items() if key != "data" and value is not None})

    def recorded_data(self, record: dict[str, Any]) -> Path:
        """The data folder a task's record names, which is relative to `root` where it lies inside."""
        return self.root / str(record.get("data", ""))


def find_workspace(start: Path | None = None) -> Workspace:
    """The workspace of a folder: of the nearest recast.yaml or recast.yml in it or above, else of itself.

    Raises:
        RecastError: The file is not valid YAML, or has an unknown key or a value of the wrong type.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        for name in CONFIG_NAMES:
            if (folder / name).is_file():
                return read_workspace(folder / name)
    return Workspace(start)


def read_workspace(path: Path) -> Workspace:
    """The workspace that a recast.yaml describes; see `find_workspace`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecastError(f"{path} cannot be read: {error}", "Check the file.") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not valid YAML"
        place = f" line {mark.line + 1}" if mark else ""
        hint = "Indent with spaces, not tabs." if "\\t" in problem else "Correct it."
        raise RecastError(f"{path}{place}: {problem}", hint) from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise RecastError(f"{path} holds {typename(content)}, and keys are wanted", "Write `base: FILE` and `tasks:`.")
    check_keys(path, "", content, {"base": (str,), "tasks": (dict,)})
    known = {"data": (str,), **option_types()}
    tasks = {}
    for name, values in (content.get("tasks") or {}).items():
        check_task_name(str(name))
        given = {} if values is None else values
        check_keys(path, f"tasks.{name}", given, known)
        tasks[str(name)] = {str(key).replace("-", "_"): value for key, value in given.items()}
    base = path.parent / Path(content["base"]).expanduser() if content.get("base") else None
    return Workspace(path.parent, base, tasks)


def option_types() -> dict[str, tuple[type, ...]]:
    """The types that each option of adapt may have, e.g. `epochs` -> (int,)."""
    hints = typing.get_type_hints(AdaptOptions)
    return {
        option.name: tuple(
            kind for kind in typing.get_args(hints[option.name]) or (hints[option.name],) if kind is not type(None)
        )
        for option in dataclasses.fields(AdaptOptions)
    }


def check_keys(path: Path, where: str, values: Any, known: dict[str, tuple[type, ...]]) -> None:
    """Raise RecastError unless `values` is a mapping of known keys to values of their types."""
    if not isinstance(values, dict):
        raise RecastError(f"{path}: {where} is {typename(values)}, and keys are wanted", f"Known: {', '.join(known)}.")
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        kinds = known.get(str(key).replace("-", "_"))
        if kinds is None:
            raise RecastError(f"{path}: unknown key '{name}'", nearest(str(key), known))
        if kinds == (float,) and isinstance(value, str):
            value = values[key] = as_number(value)  # YAML 1.1 reads 2e-3 as text
        right = isinstance(value, (int, float) if kinds == (float,) else kinds) and not isinstance(value, bool)
        if value is not None and not right:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise RecastError(f"{path}: {name} is {typename(value)} ({value!r}), and {wanted} is wanted", "Correct it.")


def as_number(text: str) -> float | str:
    """The number that `text` is, else the text."""
    try:
        return float(text)
    except ValueError:
        return text


def typename(value: Any) -> str:
    """What a YAML value is, in words."""
    return {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}.get(
        type(value), type(value).__name__
    )


def read_base_id(path: Path) -> str | None:
    """The base_id of a base file; None for any other file."""
    try:
        metadata = read_metadata(path)
    except RecastError:
        return None
    return metadata.get("base_id") if metadata and metadata["kind"] == "base" else None
