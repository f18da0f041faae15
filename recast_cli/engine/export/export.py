"""Merged networks for other programs: a format is one file here, and nothing is left of RECAST in what it writes.

Whatever is written is opened again by the road its readers take, timm or onnxruntime, and compared with the merged
network before it counts as written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recast_cli.engine.base.base import Base
from recast_cli.engine.errors import OptionError, RecastError, UnknownArchitecture, option, suggest
from recast_cli.engine.export.merged import merge_task
from recast_cli.engine.export.onnx import check_extra, write_onnx
from recast_cli.engine.export.restore import write_source
from recast_cli.engine.export.timm_files import CONFIG, WEIGHTS, line, write_folder, write_plain
from recast_cli.engine.storage.atomic import check_new_folder, check_writable, staged
from recast_cli.engine.task.task import Task

SUFFIXES = {"safetensors": ".safetensors", "timm": "", "onnx": ".onnx"}
"""Format -> how the name of its file ends, which its readers go by; timm's is a folder."""
NOTES = ".json"
"""Added to the name of an ONNX file: how its images are prepared, and its classes."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        task: Name of the task; None for the source's own classifier.
        format: One of SUFFIXES.
        files: Of the export.
        max_logit_difference: Largest difference between the logits of the merged network and of what was written,
            opened again; None where the architecture is unknown, so that nothing can run.
        identical: Whether the source's tensors came back bit by bit; None with a task, and of ONNX.
        opened: The line of Python that opens it.
    """

    task: str | None
    format: str
    files: list[Path]
    max_logit_difference: float | None
    identical: bool | None
    opened: str

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files)


def export(base: Base, path: Path, format: str, task: Task | None = None) -> Exported:
    """Write a base, or a task of it, in a format that other programs read; whole or not at all.

    Args:
        base: The base.
        path: The file; of the format `timm` the folder, new or empty.
        format: `safetensors` (timm's state dict, or of an unknown architecture the source's tensors), `timm` (a folder
            that `local-dir:` opens) or `onnx`.
        task: Its coefficients, adapter and head; default: the source's own weights and classifier.

    Returns:
        What was written, once it was opened again and gave the merged network's logits.

    Raises:
        RecastError: The format cannot hold the network, or an extra is missing.
        OSError: The disk is full, among others.
    """
    path = Path(path)
    check_target(path, format)
    names = [f"{path.name}{NOTES}", path.name] if format == "onnx" else [path.name]
    with staged(path.parent, names) as folder:
        return write_one(base, task, format, folder / path.name, path)


def export_all(base: Base, tasks: Sequence[Task], format: str, folder: Path) -> list[Exported]:
    """`export` for several tasks, each by its name in one folder: all of them or none.

    `folder` is new or empty. Returns what was written of each task, in order.

    Raises:
        RecastError: As of `export`, or the folder holds something.
        OSError: The disk is full, among others.
    """
    folder = Path(folder)
    check_format(format)
    check_new_folder(folder)
    with staged(folder.parent, [folder.name]) as temporary:
        inside = temporary / folder.name
        inside.mkdir()
        names = [f"{task.name}{SUFFIXES[format]}" for task in tasks]
        return [
            write_one(base, task, format, inside / name, folder / name) for task, name in zip(tasks, names, strict=True)
        ]


def check_format(format: str) -> None:
    """Raise RecastError for a format that is unknown, or whose extra is missing."""
    if format not in SUFFIXES:
        raise OptionError("format", f"{format} is unknown", suggest(format, SUFFIXES))
    if format == "onnx":
        check_extra()


def check_target(path: Path, format: str) -> None:
    """Raise RecastError where `format` cannot be put at `path`; called before any work."""
    check_format(format)
    if not path.name.endswith(SUFFIXES[format]):
        raise RecastError(f"{path} does not end in {SUFFIXES[format]}, as files of this format do", "Name it so.")
    if format == "timm":
        check_new_folder(path)
    else:
        check_writable(path)


def write_one(base: Base, task: Task | None, format: str, path: Path, final: Path) -> Exported:
    """Write one export to `path` and compare it; `final` is where it will be, and what is said of it."""
    if base.architecture is None and format == "safetensors" and task is None:
        identical = write_source(base, path)
        return Exported(None, format, [final], None, identical, f"safetensors.torch.load_file({str(final)!r})")
    if base.architecture is None:
        rebuilt = f"mimic its source with {option('architecture', 'NAME')}"
        hint = f"Use {option('format', 'safetensors')} for its tensors, or {rebuilt}."
        raise UnknownArchitecture(base.path or base.source, hint, "there is no network to export")
    network = merge_task(base, task)
    title = task.name if task else None
    if format == "onnx":
        difference = write_onnx(network, path, path.with_name(path.name + NOTES))
        files = [final, final.with_name(final.name + NOTES)]
        return Exported(title, format, files, difference, None, f"onnxruntime.InferenceSession({str(final)!r})")
    opened = line(network, final, format)
    if format == "safetensors":
        return Exported(title, format, [final], *write_plain(network, path), opened)
    return Exported(title, format, [final / CONFIG, final / WEIGHTS], *write_folder(network, path), opened)
