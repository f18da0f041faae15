"""A comparison: the YAML file with sources, tasks, methods and seeds, read into a plan. No torch.

A run is known by a digest of all that determines its numbers, in the words of the file: no absolute path and no name
that only the table shows. So a file of results stays valid on another machine, and an edit of the YAML file reruns
only what it changes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recast_cli.engine.compare.baselines.rates import LEARNING_RATES
from recast_cli.engine.errors import RecastError, suggest
from recast_cli.engine.layout.plan import PICK
from recast_cli.engine.mimic.options import MimicOptions
from recast_cli.engine.storage.header import to_json
from recast_cli.engine.storage.yaml_file import as_number, check_keys, read_yaml, typename, with_underscores
from recast_cli.engine.task.options import ADAPTERS, CHOOSER, CHOSEN_LR, AdaptOptions, option_types

OWN_KINDS = ("linear-probe", "head", "recast", "adapter")
"""Methods of ours: they take the options of mimic. All others work on the merged network of the source's base."""
ADAPTER: dict[str, tuple[type, ...]] = {"adapter": (str,), "rank": (int,), "density": (float,)}
"""Options of an adapter: alone with the method `adapter`, joined with the method `recast`."""
CHOICE: dict[str, tuple[type, ...]] = {"choose": (int,), "statistic": (str,), "dictionary": (str,)}
"""Options of chosen coefficients, of the method `recast`."""
A_METHODS_OWN = ("lr", "seed", "adapter_lr", "coefficients", *ADAPTER, *CHOICE)
"""Options of adapt that are a method's or a run's, not a task's."""
SPELT = ("modules", "groups", "templates", "sets")
"""Options of mimic that spell a layout out, and so do not go with a named one."""
OF_BASES = ("layout", *SPELT, "budget", "solver", "loss", "noise", "steps", "seed", "dtype", "kl")
"""Options of mimic that a source or a method of ours may have: `lr` is a method's own, and no base is compressed."""
KINDS = option_types(MimicOptions) | {"modules": (str, list)}
MIMIC = {name: KINDS[name] for name in OF_BASES}
SOURCE: dict[str, tuple[type, ...]] = {"source": (str,), "weights": (str,), "architecture": (str,), **MIMIC}
RECAST_RATE = 0.02
"""Learning rate at which the sweep of coefficients starts; the default of `adapt` is what such sweeps came to."""
PROBED = ("image_size", "split", "split_seed", "class_weights", "on_bad_image")
"""Options of adapt that the linear probe depends on."""


@dataclass(frozen=True)
class TaskSpec:
    """Images as the file names them, and how they are trained on; seed and learning rate are a run's."""

    data: str
    options: AdaptOptions


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        kind: `linear-probe`, `head`, `recast`, `adapter`, or one of METHODS.
        options: Of mimic for the first four, else of the method.
        adapter: Options of adapt that describe the adapter of `adapter` or `recast`, or the choice of `recast`.
        rates: Learning rates to begin with; none where nothing but the head is trained.
        start: The rate that wins a tie.
        factor: Between neighbouring rates where the sweep may grow; 1: it does not.
    """

    kind: str
    options: dict[str, Any]
    rates: tuple[float, ...]
    start: float
    factor: float
    adapter: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The file.

    Attributes:
        path: The file; relative paths in it start at its folder.
        seeds: The first one is the seed of the sweep.
        sources: Name -> `source`, `weights`, `architecture` and options of mimic.
        tasks: By name.
        methods: By name.
        keys: Digests that were asked for before: they are asked for after every run.
    """

    path: Path
    seeds: tuple[int, ...]
    sources: dict[str, dict[str, Any]]
    tasks: dict[str, TaskSpec]
    methods: dict[str, Method]
    keys: dict[tuple[Any, ...], str] = field(default_factory=dict, compare=False, repr=False)

    def base_spec(self, source: str, method: str) -> dict[str, Any]:
        """What the base of a run is made from: the source, with the method's options of mimic where it has some."""
        spec, own = dict(self.sources[source]), self.methods[method]
        given = own.options if own.kind in OWN_KINDS else {}
        rivals = SPELT if "layout" in given else ("layout",) if given.keys() & set(SPELT) else ()
        return {key: value for key, value in spec.items() if key not in rivals} | given

    def pick(self, source: str, method: str) -> tuple[int, ...]:
        """What digests hold of a layout that nobody spelt out: runs of an earlier pick are not taken for today's."""
        return () if {"layout", *SPELT} & self.base_spec(source, method).keys() else (PICK,)

    def place(self, named: str) -> Path:
        """Where a file or folder that the file names lies."""
        return self.path.parent / Path(named).expanduser()

    def key(self, source: str, task: str, method: str, seed: int, lr: float | None) -> str:
        """The digest that a run is known by."""
        place = (source, task, method, seed, lr)
        if place in self.keys:
            return self.keys[place]
        own, images = self.methods[method], self.tasks[task]
        base = self.base_spec(source, method)
        parts: tuple[Any, ...] = (base, images.data, probe_options(images.options))
        if own.kind != "linear-probe":
            options = own.adapter if own.kind in OWN_KINDS else own.options
            pick = self.pick(source, method) if own.kind == "recast" else ()
            if "choose" in own.adapter:  # runs of an earlier way to choose are not taken for today's
                pick = (*pick, CHOOSER)
            parts = (options, base, images.data, training_options(images.options), seed, lr, *pick)
        return self.keys.setdefault(place, digest_of(own.kind, *parts))


def digest_of(*parts: Any) -> str:
    """A short digest of plain values."""
    return hashlib.sha256(to_json(parts).encode()).hexdigest()[:24]


def probe_options(options: AdaptOptions) -> dict[str, Any]:
    """The options that the linear probe depends on."""
    return {name: getattr(options, name) for name in PROBED}


def training_options(options: AdaptOptions) -> dict[str, Any]:
    """All options but a run's own, without defaults: an option that a later version adds changes no digest."""
    defaults = {each.name: each.default for each in fields(AdaptOptions)}
    return {
        name: value
        for name, value in asdict(options).items()
        if name not in ("seed", "lr") and (name == "recipe" or value != defaults[name])
    }


def read_comparison(path: Path) -> Plan:
    """Read the file.

    Raises:
        RecastError: It is missing or no valid YAML, or holds an unknown key, an unknown method or a wrong value.
    """
    path = Path(path)
    content = read_yaml(path, "Write `sources:`, `tasks:` and `methods:`.")
    shared = {key: kinds for key, kinds in option_types().items() if key not in A_METHODS_OWN}
    own = {"seeds": (list,), "sweep": (float,), "sources": (dict,), "tasks": (dict,), "methods": (dict,)}
    content = check_keys(path, "", content, {**own, **shared})
    for part in ("sources", "tasks", "methods"):
        if not content.get(part):
            raise RecastError(f"{path}: {part} is empty", f"Name at least one of the {part}.")
    options = {key: value for key, value in content.items() if key in shared}
    tasks = {str(name): read_task(path, str(name), given, options, shared) for name, given in content["tasks"].items()}
    factor = content.get("sweep", 3.0)
    if not 1 <= factor < float("inf"):
        raise RecastError(f"{path}: sweep is {factor}, and a factor of 1 or more is wanted", "Leave it out for 3.")
    return Plan(
        path=path,
        seeds=read_seeds(path, content.get("seeds")),
        sources={str(name): read_source(path, str(name), given) for name, given in content["sources"].items()},
        tasks=tasks,
        methods={str(name): read_method(path, str(name), given, factor) for name, given in content["methods"].items()},
    )


def read_seeds(path: Path, given: list[Any] | None) -> tuple[int, ...]:
    """The seeds; default: 0 alone."""
    seeds = [0] if given is None else given
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise RecastError(f"{path}: seeds are {seeds}, and different whole numbers are wanted", "Write [0, 1, 2].")
    return tuple(seeds)


def read_source(path: Path, name: str, given: Any) -> dict[str, Any]:
    """A source; text alone is what it is made from."""
    given = {"source": given} if isinstance(given, str) else given
    spec = mimic_options(path, f"sources.{name}", given, SOURCE)
    if not spec.get("source"):
        hint = "Write `source: ` and a timm name, folder or file."
        raise RecastError(f"{path}: sources.{name} names no source", hint)
    return spec


def mimic_options(path: Path, where: str, given: Any, known: dict[str, tuple[type, ...]]) -> dict[str, Any]:
    """Options of mimic, checked. `modules` is a list, as text or list in the file."""
    spec = check_keys(path, where, given, known)
    spec |= {key: float(value) for key, value in spec.items() if known[key] == (float,)}
    if isinstance(spec.get("modules"), str):
        spec["modules"] = spec["modules"].split(",")
    return spec


def read_task(
    path: Path, name: str, given: Any, shared: dict[str, Any], known: dict[str, tuple[type, ...]]
) -> TaskSpec:
    """A task; text alone is its image folder."""
    given = {"data": given} if isinstance(given, str) else given
    values = check_keys(path, f"tasks.{name}", given, {"data": (str,), **known})
    data = values.pop("data", None)
    if not data:
        raise RecastError(f"{path}: tasks.{name} names no images", "Write `data: ` and an image folder.")
    try:
        return TaskSpec(data, AdaptOptions(**{**shared, **values}))
    except RecastError as error:
        raise RecastError(f"{path}: {error.what} (tasks.{name}, or for all)", error.hint) from None


def read_method(path: Path, name: str, given: Any, factor: float) -> Method:
    """A method by name; a bare name is its own method, with defaults."""
    where = f"methods.{name}"
    given = {} if given is None else {"method": given} if isinstance(given, str) else given
    if not isinstance(given, dict):
        raise RecastError(f"{path}: {where} is {typename(given)}, and keys are wanted", "Write `method: NAME`.")
    options = with_underscores(given)
    kind, lr = str(options.pop("method", None) or name), options.pop("lr", None)
    known = (*OWN_KINDS, *LEARNING_RATES)
    if kind not in known:
        hint = f"{suggest(kind, known, ' ')} Known: {', '.join(known)}."
        raise RecastError(f"{path}: {where}: unknown method '{kind}'", hint)
    for key in options:
        if key in option_types().keys() - set(A_METHODS_OWN) or (key == "seed" and kind not in OWN_KINDS):
            hint = f"Write {key} for all methods, at the top or at a task."
            raise RecastError(f"{path}: {where}.{key} would give this method a budget of its own", hint)
    adapter: dict[str, Any] = {}
    if kind in OWN_KINDS:
        of_adapt = {key: options.pop(key) for key in [*options] if key in ADAPTER | CHOICE}
        adapter = adapter_options(path, where, kind, of_adapt)
        options = mimic_options(path, where, options, {"method": (str,), "lr": (float,), **MIMIC})
    start = RECAST_RATE if kind == "recast" else LEARNING_RATES.get(kind)
    if "adapter" in adapter:
        start = ADAPTERS[adapter["adapter"]].lr
    elif "choose" in adapter:
        start = CHOSEN_LR
    if start is None:
        if lr is not None:
            raise RecastError(f"{path}: {where}.lr: {kind} has no learning rate but the head's", "Leave it out.")
        return Method(kind, options, (), 0.0, 1)
    if lr is None:
        swept = tuple(rate_at(start, factor, step) for step in (-1, 0, 1)) if factor > 1 else (start,)
        return Method(kind, options, swept, start, factor, adapter)
    return Method(kind, options, tuple(read_rates(path, where, lr)), start, 1, adapter)


def adapter_options(path: Path, where: str, kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The adapter of a method of ours, as options of adapt; empty where there is none."""
    given = check_keys(path, where, given, ADAPTER | CHOICE)
    if kind != "recast" and given.keys() & CHOICE.keys():
        raise RecastError(f"{path}: {where}: only recast chooses coefficients", "Use the method recast.")
    if kind not in ("adapter", "recast") and given:
        raise RecastError(f"{path}: {where}: {kind} has no adapter", "Use the method recast, or adapter.")
    if kind == "adapter" and "adapter" not in given:
        raise RecastError(f"{path}: {where} names no adapter", f"Write `adapter: ` and one of {', '.join(ADAPTERS)}.")
    try:
        AdaptOptions(**given)
    except RecastError as error:
        raise RecastError(f"{path}: {where}: {error.what}", error.hint) from None
    return given


def read_rates(path: Path, where: str, given: Any) -> Iterator[float]:
    """The rates that a method is given: a number, or a list of such."""
    listed = given if isinstance(given, list) else [given]
    for rate in listed:
        number = as_number(rate) if isinstance(rate, str) else rate
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number < float("inf"):
            raise RecastError(f"{path}: {where}.lr has {rate!r}, and a number above 0 is wanted", "Correct it.")
        yield float(number)
    if not listed:
        raise RecastError(f"{path}: {where}.lr is empty", "Leave it out to sweep.")


def rate_at(start: float, factor: float, step: int) -> float:
    """The rate `step` factors above `start`, in six digits, so that it reads well and has one digest."""
    return float(f"{start * factor**step:.6g}")
