"""What a killed `adapt` leaves behind, and how the next run goes on from it."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recast_cli.engine.adapt.linear_probe import Probe
from recast_cli.engine.adapt.state import CHOSEN, Epoch, State, Trained
from recast_cli.engine.errors import DamagedFile, MissingFile, RecastError, option
from recast_cli.engine.storage.atomic import atomic
from recast_cli.engine.storage.header import to_json
from recast_cli.engine.task.folder import RECORD, read_record
from recast_cli.engine.task.head import Head

FILE = "resume.pt"
LATER = {"choose": 0, "statistic": "damped", "dictionary": "all", "cross_fit": False}
"""Options of adapt since version 0.1, and what they were before: a run that knew none of them goes on."""


def save_state(folder: Path, identity: dict[str, Any], state: State) -> None:
    """Write the state after an epoch, bound to base, data, split and options by `identity`."""
    content = {
        "identity": to_json(identity),
        "trained": [*state.trained.values, *state.trained.head],
        "best": [*state.best.values, *state.best.head],
        "probe": list(state.probe.head),
        "probe_val_top1": state.probe.val_top1,
        "penalty": state.probe.penalty,
        "best_epoch": state.best_epoch,
        "batch_size": state.batch_size,
        "optimizer": state.optimizers,
        "history": [asdict(epoch) for epoch in state.history],
        "fixed": state.fixed,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(folder / FILE) as temporary:
        temporary.write_bytes(buffer.getbuffer())  # a full disk is an OSError here, as everywhere


def load_state(folder: Path, identity: dict[str, Any]) -> State | None:
    """The state to go on from; None where there is none.

    Raises:
        RecastError: The state belongs to other options, another base or another split.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        optimizers, fixed = content["optimizer"], content["fixed"]
        if isinstance(optimizers, dict):  # of a version that knew one
            optimizers = [optimizers]
        older = 0 < len(fixed.keys() & {*CHOSEN}) < len(CHOSEN)  # they were trained in another way
        made = json.loads(content["identity"])
        made["options"] = LATER | made["options"]
        if made != json.loads(to_json(identity)) or older:
            hint = f"Give the same command as before to go on, or {option('restart', True)} to begin anew."
            raise RecastError(f"{folder} holds an unfinished run with other options, images or base", hint)
        return State(
            trained=Trained(content["trained"][:-2], Head(*content["trained"][-2:])),
            best=Trained(content["best"][:-2], Head(*content["best"][-2:])),
            probe=Probe(Head(*content["probe"]), content["penalty"], content["probe_val_top1"]),
            best_epoch=content["best_epoch"],
            batch_size=content["batch_size"],
            optimizers=optimizers,
            history=[Epoch(**epoch) for epoch in content["history"]],
            fixed=fixed,
        )
    except RecastError:
        raise
    except Exception:  # a damaged file shows itself in many ways; all of them mean the same to the user
        raise DamagedFile(f"{path} is damaged", f"Begin anew with {option('restart', True)}.") from None


def load_begun(folder: Path, identity: dict[str, Any]) -> State | None:
    """The state of an equal run that was to replace a finished task, and was killed; None where there is none."""
    try:
        return load_state(folder, identity) if (folder / RECORD).exists() else None
    except RecastError:
        return None


def begun_with(folder: Path) -> int | None:
    """What `choose` was in the run that the folder holds, finished or not: its default was another once. Else None."""
    if (folder / RECORD).exists():
        options = read_record(folder)["options"]
    else:
        try:
            options = json.loads(torch.load(folder / FILE, weights_only=True)["identity"])["options"]
        except Exception:  # there is none, or `load_state` will say what is wrong with it
            return None
    found = options.get("choose", LATER["choose"])
    return found if isinstance(found, int) else None


def prepare(folder: Path, anew: bool = False) -> None:
    """Make the task's folder and sweep out half-written files of a killed run; where one begins `anew`, its state too.

    A finished task stays until the next one is.
    """
    if not folder.parent.parent.is_dir():
        raise MissingFile(f"The folder {folder.parent.parent} does not exist", "Create it first.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".*.tmp"):
            stale.unlink()
        if anew:
            forget(folder)
    except FileExistsError:
        hint = "Move it, or name another task."
        raise RecastError(f"{folder} is a file, and a folder is wanted there", hint) from None
    except PermissionError:
        raise RecastError(f"No permission to write in {folder.parent}", "Check its permissions.") from None


def forget(folder: Path) -> None:
    """Remove the state."""
    (folder / FILE).unlink(missing_ok=True)
