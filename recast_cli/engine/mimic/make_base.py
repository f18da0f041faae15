"""The whole road from a source to a base file: plan, decompose, heal, shrink, verify, write."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from recast_cli.engine.base.base import Base
from recast_cli.engine.base.file import save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.images.unlabelled import list_images, read_images
from recast_cli.engine.measure.verify import check_verifiable, verify
from recast_cli.engine.mimic.compress.compress import check_calibration, compress
from recast_cli.engine.mimic.compress.plan import Compression, source_bytes
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.heal.heal import HEALING_IMAGES, check_healable
from recast_cli.engine.mimic.heal.heal import heal as fit_shared
from recast_cli.engine.mimic.options import MimicOptions
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime.device import choose_device
from recast_cli.engine.source.source import Source
from recast_cli.engine.storage.atomic import check_writable
from recast_cli.engine.storage.tensors import StoredTensors


def make_base(
    source: Source,
    options: MimicOptions | None = None,
    *,
    file: Path,
    calibrate: Path | None = None,
    heal: Path | None = None,
    verify: Path | None = None,
    device: str | None = None,
    announce: Callable[[Compression], None] | None = None,
    progress: Progress | None = None,
) -> Base:
    """Make a base of a source and write its file, whole or not at all: all that `recast mimic` does.

    Args:
        source: From `open_source`.
        options: Layout, solver and size; default: exact, in the tool's own layout.
        file: Where the base goes.
        calibrate: Folder of images, labelled or not, by whose needs weights are rounded; with a size or bits.
        heal: Folder of images that shared templates are fitted to. A run that was killed goes on.
        verify: Folder of images on which base and source are compared; what is found stands in the file.
        device: Where images are looked at: cpu, cuda, …; default: CUDA where it is.
        announce: Called with the plan of a compression before it is carried out.
        progress: Called as the work goes on.

    Returns:
        The base; its tensors, up to templates of (n, *shape), are read from the file when they are asked for, unless
        they had to be in memory anyway.

    Raises:
        RecastError: Options, images or source do not go together, or a weight is NaN or infinite.
        OSError: The file cannot be written.

    Example:
        >>> base = make_base(source, MimicOptions(layout="paper-attention"), file=Path("base.safetensors"))
        >>> base.vector.shape, base.layout.degrees_of_freedom  # 12 layers * 2 templates * 2 sets, averaged
        (torch.Size([48]), 24)
    """
    options, file = options or MimicOptions(), Path(file)
    check_writable(file)
    check_source(source, file)
    options.check_images(calibrate, heal)
    choose_device(device)
    layout = options.plan(source.modules)
    if verify is not None:
        check_verifiable(source, verify)
    if heal is not None:
        check_healable(source, layout)
        list_images(heal, HEALING_IMAGES)
    if calibrate is not None:
        check_calibration(source, calibrate, options.bits)
    check = partial(compared, source, verify, device, progress) if verify is not None else None
    recipe, dtype, state = options.recipe, options.dtype, file.with_name(f".{file.name}.heal")
    healed = None
    if heal is not None:
        pixels = read_images(heal, source.known_architecture().preprocessing, progress, most=HEALING_IMAGES)
        healed = mimic(source, layout, options=recipe, dtype=dtype, progress=progress)
        healed = fit_shared(source, healed, pixels, device=device, state_path=state, progress=progress)
    if options.compresses:
        base = compress(
            source,
            layout,
            size=options.most_bytes(source_bytes(source)),
            bits=options.bits,
            group=options.group_size,
            calibrate=calibrate,
            options=recipe,
            base=healed,
            path=file,
            device=device,
            verify=check,
            announce=announce,
            progress=progress,
        )
    elif healed is not None:
        base = save_base(replace(healed, verified=check(healed) if check else None), file)
    else:
        base = mimic(source, layout, options=recipe, dtype=dtype, path=file, verify=check, progress=progress)
    state.unlink(missing_ok=True)
    return base


def check_source(source: Source, file: Path) -> None:
    """Raise RecastError where the base would replace a file that the source is read from."""
    read = {place.file for place in source.tensors.places.values()} if isinstance(source.tensors, StoredTensors) else ()
    if file.exists() and any(file.samefile(each) for each in read):
        raise RecastError(f"{file} is the source itself", "Give the base another name.")


def compared(source: Source, images: Path, device: str | None, progress: Progress | None, base: Base) -> dict[str, Any]:
    """What `verify` finds, as it stands in the file."""
    return asdict(verify(source, base, images, device=device, progress=progress))
