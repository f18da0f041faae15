"""Images + base -> task: decode, probe, train, measure once, write."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

from recast_cli.engine.adapt import resume
from recast_cli.engine.adapt.fit import learn_task, timed
from recast_cli.engine.adapt.learner import make_learner
from recast_cli.engine.adapt.loop import TrainingData
from recast_cli.engine.adapt.record import check_same, describe_learned, describe_split, now, recorded_path, versions
from recast_cli.engine.adapt.state import Epoch
from recast_cli.engine.base.base import Base
from recast_cli.engine.images.decode import Images, decode
from recast_cli.engine.images.splits import check_read, split_folder
from recast_cli.engine.measure.evaluate import measure
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime import distributed
from recast_cli.engine.runtime.device import choose_device
from recast_cli.engine.storage.header import FORMATS
from recast_cli.engine.task.folder import RECORD, check_task_name, read_record
from recast_cli.engine.task.options import AdaptOptions, settled
from recast_cli.engine.task.record import TaskRecord
from recast_cli.engine.task.task import Task, load_task, save_task


def adapt(
    base: Base,
    data: Path,
    name: str,
    folder: Path,
    options: AdaptOptions | None = None,
    *,
    device: str | None = None,
    compiled: bool = False,
    cache_size: int | None = None,
    restart: bool = False,
    progress: Progress | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Task:
    """Learn a task: its coefficients and its head; nothing of the base changes.

    A run that was killed goes on after its last whole epoch. A finished task with equal options is returned as it is.
    Processes that torchrun started work together, and all of them return the task.

    Args:
        base: From `load_base` or `mimic`; its architecture must be known.
        data: Image folder.
        name: Of the task.
        folder: Where the task's files go, e.g. `tasks/flowers`.
        options: Recipe and data options.
        device: cpu, cuda, …; default: CUDA where it is.
        compiled: Compile the network before training, which pays in long runs.
        cache_size: Bytes that the cache of decoded images may take; 0: no cache; None: 10 GB.
        restart: Replace what `folder` holds of this task, once the new one is finished; a run that was killed while it
            was to replace a finished task goes on.
        progress: Called with images done and images in all.
        on_epoch: Called after every epoch, first with epoch 0, the start.

    Returns:
        The task, with coefficients (layout.coefficients,) or those it chose, a head of (classes, head_hidden_size) and
        its record; also written to `folder`.

    Raises:
        RecastError: Wrong data, options, base or folder.

    Example:
        >>> task = adapt(base, Path("data/flowers"), "flowers", Path("tasks/flowers"), AdaptOptions(epochs=1))
        >>> task.vector.shape, task.classes
        (torch.Size([48]), ['daisy', 'poppy', 'rose'])
        >>> sorted(path.name for path in Path("tasks/flowers").iterdir())
        ['coefficients.safetensors', 'head.safetensors', 'task.yaml']
    """
    architecture = base.known_architecture()
    options = options or AdaptOptions()
    if options.choose is None and not restart:
        options = replace(options, choose=resume.begun_with(folder))
    options = settled(options, base.layout, architecture.image_size)
    check_task_name(name)
    where = choose_device(device)
    # what makes two runs of a task the same run, but for its images
    identity = {"base_id": base.base_id, "data": recorded_path(data, folder), "options": asdict(options)}
    if (folder / RECORD).exists() and not restart:
        check_same(read_record(folder), identity, folder)
        return load_task(folder, base)
    started, clock = now(), time.perf_counter()
    preprocessing = architecture.preprocessing.at(options.image_size)
    split = split_folder(data, options.split_seed, options.split == "pooled")
    identity["split"] = describe_split(split, options)
    timings: dict[str, float] = {}

    def read(part: str) -> Images:
        items, on_bad_image = getattr(split, part), options.on_bad_image
        with timed(timings, "decode"), distributed.first_goes_first():
            return decode(data, items, preprocessing, on_bad_image, progress, cache_size=cache_size)

    with distributed.join(where):
        read_state = resume.load_begun if restart else resume.load_state
        state = distributed.from_first(lambda: read_state(folder, identity))
        with timed(timings, "build"):
            learner = make_learner(base, options, where)
        images = {"train": read("train"), "val": read("val")}
        check_read(split, images["train"].labels, data)
        distributed.from_first(lambda: resume.prepare(folder, restart and state is None))
        learned = learn_task(
            learner,
            TrainingData(images, len(split.classes), preprocessing, options),
            state=state,
            compiled=compiled,
            save=lambda reached: distributed.from_first(lambda: resume.save_state(folder, identity, reached)),
            on_epoch=on_epoch,
            progress=progress,
        )
        timings |= learned.timings
        del learner  # test wants the memory
        # the test images are read only now, and measured once
        images["test"] = read("test")
        with timed(timings, "test"):
            switcher, size = Switcher(base, device), options.image_size
            model = switcher.switch(base.vector, size)
            probe_top1 = measure(model, learned.state.probe.head, images["test"], preprocessing)
            model = switcher.switch(learned.vector, size, learned.adapter, learned.places)
            test_top1 = measure(model, learned.head, images["test"], preprocessing)
        record = {
            "format": FORMATS["task"],
            "name": name,
            "base_id": base.base_id,
            "base_source": base.source,
            "architecture": architecture.name,
            "data": identity["data"],
            "image_size": options.image_size or architecture.image_size,
            **describe_learned(learned, options, images, where, test_top1, probe_top1),
            "seconds": round(time.perf_counter() - clock, 2),
            "timings": {part: round(seconds, 2) for part, seconds in timings.items()},
            "started": started,
            "finished": now(),
            "versions": versions(),
            "classes": list(split.classes),
            "split": identity["split"],
        }
        head, about = learned.head, cast(TaskRecord, record)
        task = Task(name, base.base_id, learned.vector, *head, about, learned.adapter, learned.places)
        distributed.from_first(lambda: save_task(task, folder))
        distributed.from_first(lambda: resume.forget(folder))  # what a run that goes on would need
    return task
