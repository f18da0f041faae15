"""Image sets known by name: downloaded once, then an ordinary image folder like any other."""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import os
import pickle
import socket
import ssl
import tarfile
import tempfile
import urllib.error
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recast_cli.engine.errors import DamagedFile, RecastError, option, suggest

if TYPE_CHECKING:
    from recast_cli.engine.progress import Progress

BY_TORCHVISION = {
    "aircraft": ("FGVCAircraft", ("train", "val", "test")),
    "cifar10": ("CIFAR10", ("train", "test")),
    "cifar100": ("CIFAR100", ("train", "test")),
    "flowers": ("Flowers102", ("train", "val", "test")),
}
"""Class in torchvision.datasets, and official splits."""
BY_HAND = {
    "birds": ("CUB-200-2011", "https://www.vision.caltech.edu/datasets/cub_200_2011/"),
    "scenes": ("MIT Indoor-67", "https://web.mit.edu/torralba/www/indoor.html"),
}
"""Sets torchvision does not have: name among people, and authors' page."""
FORBIDDEN = '<>:"/\\|?*\0' if os.name == "nt" else "/\0"
TIMEOUT = 60
"""Seconds a server may be silent; torchvision would wait for ever."""

OFFLINE = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
DAMAGED = (
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    tarfile.TarError,
    zlib.error,
    pickle.UnpicklingError,
)
"""What reading a damaged archive raises; RuntimeError is torchvision's word for a wrong checksum."""
MACHINE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def known_names() -> list[str]:
    """Names of the known sets, sorted; of some the images must be fetched by hand, and `fetch_known` says how."""
    return sorted({*BY_TORCHVISION, *BY_HAND})


def fetch_known(name: str, destination: Path, progress: Progress | None = None) -> Path:
    """Download a known set into `destination/{train,val,test}/<class>/<image>`, whole or not at all.

    Images that come as JPEG files stay those files; the arrays of CIFAR become PNG files. The splits are the
    authors' own. A destination that already holds something is left as it is.

    Args:
        name: One of `known_names`.
        destination: The image folder; its parents are made where they are missing.
        progress: Called with megabytes while downloading and with images while writing.

    Returns:
        The destination.

    Raises:
        RecastError: The name is unknown, torchvision does not have the set, scipy is missing, the download failed or
            is damaged, or the destination cannot be written.
        OSError: The machine failed, e.g. its disk is full.
    """
    destination = Path(destination)
    if name not in known_names():
        raise RecastError(f"No known image set is called '{name}'", suggest(name, known_names()))
    if is_filled(destination):
        return destination
    if name in BY_HAND:
        title, page = BY_HAND[name]
        raise RecastError(
            f"{name} ({title}) is not downloaded automatically",
            f"Get it from {page} and lay it out as {destination}/{{train,test}}/<class>/<image>, "
            f"or put its class folders into {destination}.",
        )
    if name == "flowers":
        check_scipy()
    target = destination.resolve()  # a link may lead to another disk, and renaming works on one disk only
    with workplace(target) as temporary:
        downloads, images = temporary / "downloads", temporary / "images"
        try:
            datasets = download(name, downloads, progress)
            write_images(name, datasets, downloads, images, progress)
            put_in_place(images, target)
        except (*OFFLINE, *DAMAGED) as error:
            if fault := machine_fault(error):
                raise fault from None
            raise explain(name, destination, error) from None
    return destination


def is_filled(folder: Path) -> bool:
    """Whether `folder` is a folder with something in it. Raises RecastError where it is a file or not readable."""
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise RecastError(f"{folder} is a file, or lies in one, and is to be a folder", "Rename the file.") from None
    except PermissionError:
        raise RecastError(f"No permission to read the folder {folder}", "Check its permissions.") from None


def check_scipy() -> None:
    """Raise RecastError unless scipy is there, with which torchvision reads the labels of the flowers."""
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        hint = "Install it with `pip install 'recast-cli[data]'`."
        raise RecastError("flowers needs scipy to read its labels, and scipy is not installed", hint) from None


@contextlib.contextmanager
def workplace(destination: Path) -> Iterator[Path]:
    """A temporary folder beside `destination`, removed at the end; on failure parents made for it go as well."""
    made = [folder for folder in destination.parents if not folder.exists()]
    try:
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            home, prefix = destination.parent, f".{destination.name}."
            temporary = tempfile.TemporaryDirectory(".tmp", prefix, home, ignore_cleanup_errors=True)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            what = f"No folder can be made in {destination.parent}: {error.strerror}"
            raise RecastError(what, f"Choose another with {option('data', 'DIR')}.") from None
        with temporary:
            yield Path(temporary.name)
    except BaseException:
        with contextlib.suppress(OSError):  # another program may have put something there meanwhile
            for folder in made:
                folder.rmdir()
        raise


def download(name: str, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Download into `folder` through torchvision: part -> its dataset. Raises what torchvision raises."""
    import torchvision

    class_name, parts = BY_TORCHVISION[name]
    loader = getattr(torchvision.datasets, class_name)
    folder.mkdir()
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()), reported(name, progress), timeout(TIMEOUT):
        for part in parts:
            which = {"train": part == "train"} if class_name.startswith("CIFAR") else {"split": part}
            found[part] = loader(folder, download=not found, **which)
    return found


@contextlib.contextmanager
def reported(name: str, progress: Progress | None) -> Iterator[None]:
    """Let `progress` take the place of the bar that torchvision draws on stderr whatever the user asked for."""
    from torchvision.datasets import utils

    class Bar(contextlib.AbstractContextManager[Any]):
        """The part of tqdm that torchvision uses."""

        def __init__(self, total: int | None = None, **_: Any) -> None:
            self.total, self.done = total or 0, 0

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int) -> None:
            before, self.done = self.done, self.done + count
            if progress and (before == 0 or before // 10**6 != self.done // 10**6):
                progress(self.done // 10**6, max(self.total, self.done) // 10**6, f"downloading {name} (MB)")

    theirs = getattr(utils, "tqdm", None)  # a torchvision to come may draw otherwise: its own bar does no harm
    utils.tqdm = Bar
    try:
        yield
    finally:
        utils.tqdm = theirs


@contextlib.contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Sockets opened inside give up after `seconds` of silence."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def write_images(name: str, datasets: dict[str, Any], downloads: Path, images: Path, progress: Progress | None) -> None:
    """Put the images of torchvision's datasets into `images/<part>/<class>/`.

    Files are moved out of `downloads`; arrays are written as PNG, named by their place in the dataset.
    """
    from PIL import Image

    # torchvision has no public way to an image's file; these names are as old as the two classes
    labels = {
        part: dataset._labels if hasattr(dataset, "_labels") else dataset.targets for part, dataset in datasets.items()
    }
    total, done = sum(map(len, labels.values())), 0
    folders = class_folders(datasets, max(max(found) for found in labels.values()) + 1)
    for part, dataset in datasets.items():
        files = getattr(dataset, "_image_files", None)
        for place, label in enumerate(labels[part]):
            folder = images / part / folders[label]
            folder.mkdir(parents=True, exist_ok=True)
            if files is None:
                Image.fromarray(dataset.data[place]).save(folder / f"{place:05d}.png")
            else:
                file = Path(files[place])
                # not every list of files comes with a checksum; none may name a file of the user's
                if not file.resolve().is_relative_to(downloads.resolve()):
                    raise ValueError(f"it names a file outside of itself: {file.name}")
                file.rename(folder / file.name)
            done += 1
            if progress:
                progress(done, total, f"writing {name}")


def class_folders(datasets: dict[str, Any], count: int) -> list[str]:
    """Folder names of the classes by label: torchvision's names, or the label where a version of it has none."""
    names: Sequence[str] | None = getattr(next(iter(datasets.values())), "classes", None)
    if names is None:
        return [str(label).zfill(len(str(count - 1))) for label in range(count)]
    folders = ["".join("-" if letter in FORBIDDEN else letter for letter in name) for name in names]
    folders = ["-" + folder[1:] if folder.startswith(".") else folder for folder in folders]  # dots hide folders
    if len(set(folders)) < len(folders):
        raise ValueError("two of its classes have one name")
    return folders


def put_in_place(images: Path, destination: Path) -> None:
    """Rename `images` to `destination`, unless another run was faster."""
    with contextlib.suppress(FileNotFoundError):
        if not is_filled(destination):
            destination.rmdir()  # Windows renames onto no folder, not even an empty one
    try:
        images.rename(destination)
    except OSError:
        if not destination.is_dir():
            raise


def machine_fault(error: BaseException | None) -> OSError | None:
    """The fault of the machine that `error` is or came from.

    After a full disk torchvision tries again over http; what fails then would hide the disk.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
            return error
        error = error.__cause__ or error.__context__
    return None


def explain(name: str, destination: Path, error: BaseException) -> RecastError:
    """What to tell the user of a failed download."""
    by_hand = f"or put the images into {destination}/<class>/."
    if isinstance(error, urllib.error.HTTPError):
        return RecastError(f"Cannot download {name}: {first_line(error)} at {error.url}", f"Try again later, {by_hand}")
    if isinstance(error, OFFLINE):
        return RecastError(f"Cannot download {name}: {first_line(error)}", f"Go online, {by_hand}")
    return DamagedFile(f"The download of {name} is damaged: {first_line(error)}", f"Try again, {by_hand}")


def first_line(error: BaseException) -> str:
    """The first line of an error, without numbers and temporary folders that say nothing to a user."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason if isinstance(error.reason, BaseException) else OSError(error.reason)
    text = str(error)
    if isinstance(error, OSError) and error.strerror and not isinstance(error, urllib.error.HTTPError):
        text = error.strerror + (f": {Path(error.filename).name}" if isinstance(error.filename, str) else "")
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")
