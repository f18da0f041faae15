"""Images to calibrate, to heal or to compare with: any, without labels."""

from pathlib import Path

from torch import Tensor

from recast_cli.engine.errors import MissingFile, RecastError
from recast_cli.engine.images.decode import decode
from recast_cli.engine.images.folders import Item, list_files
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.progress import Progress

CALIBRATION_IMAGES = 512
"""More images to calibrate with take longer, fewer calibrate worse: at 8x 400 leave 0.86 of the divergence of 200."""


def list_images(folder: Path, most: int | None = CALIBRATION_IMAGES) -> list[Item]:
    """All images, or at most so many, in a folder and below it, by name, however they lie in there.

    Of more than that they are taken at even distances.

    Raises:
        RecastError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise MissingFile(f"The folder of images {folder} does not exist", "Give one with a few hundred images.")
    found = sorted(file.relative_to(folder).as_posix() for file in list_files(folder))
    if not found:
        raise RecastError(f"There are no images in {folder}", "Give a folder with a few hundred, labelled or not.")
    count = min(len(found), most or len(found))
    return [Item(found[place * len(found) // count], 0) for place in range(count)]


def read_images(
    folder: Path,
    preprocessing: Preprocessing,
    progress: Progress | None = None,
    *,
    most: int = CALIBRATION_IMAGES,
) -> Tensor:
    """The images of `list_images` as the network sees them: (N, 3, H, W) uint8."""
    return decode(folder, list_images(folder, most), preprocessing, progress=progress).pixels
