"""The working folder: recast.yaml, the base, the images and the tasks, found the way every command finds them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recast_cli.engine.base.header import read_base_id
from recast_cli.engine.errors import RecastError
from recast_cli.engine.storage.yaml_file import check_keys, read_yaml
from recast_cli.engine.task.folder import RECORD, check_task_name
from recast_cli.engine.task.options import AdaptOptions, option_types
from recast_cli.engine.task.record import TaskRecord

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
        """The base: the flag, else recast.yaml's, else the one base in the folder, or that of a task's `base_id`.

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
            hint = "Make one with `recast mimic SOURCE -o base.safetensors`, or give --base FILE."
            raise RecastError(f"No base in {self.root}", hint)
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

    def unfinished_names(self) -> list[str]:
        """Folders among the tasks that are not finished ones, sorted: a run in the middle, or one that was killed."""
        folders = {path.name for path in (self.root / "tasks").glob("[!.]*") if path.is_dir()}
        return sorted(folders - {*self.task_names()})

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
        own = {key: value for key, value in self.tasks.get(name, {}).items() if key != "data"}
        given = {key: value for key, value in flags.items() if value is not None}
        try:
            return AdaptOptions(**{**own, **given})
        except RecastError:
            try:
                AdaptOptions(**own)
            except RecastError as error:  # without any flag
                raise RecastError(f"recast.yaml: tasks.{name}: {error.what}", error.hint) from None
            raise

    def recorded_data(self, record: TaskRecord) -> Path:
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
    content = read_yaml(path, "Write `base: FILE` and `tasks:`.")
    content = check_keys(path, "", content, {"base": (str,), "tasks": (dict,)})
    known = {"data": (str,), **option_types()}
    tasks = {}
    for name, values in content.get("tasks", {}).items():
        check_task_name(str(name))
        tasks[str(name)] = check_keys(path, f"tasks.{name}", {} if values is None else values, known)
    base = path.parent / Path(content["base"]).expanduser() if content.get("base") else None
    return Workspace(path.parent, base, tasks)
