"""Known image sets, fetched from a server on this machine that has tiny archives of the true structure."""

import errno
import functools
import hashlib
import http.server
import io
import pickle
import socket
import sys
import tarfile
import threading
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as sets
from PIL import Image
from torchvision.datasets import utils

from recast_cli.engine.errors import RecastError
from recast_cli.engine.images import datasets as known
from recast_cli.engine.images.datasets import fetch_known, is_known, known_names
from recast_cli.engine.images.splits import split_folder

VARIANTS = ["707-320", "F-16A/B", "F/A-18"]
AIRCRAFT = {
    "train": [("0000001", 0), ("0000002", 1), ("0000003", 2)],
    "val": [("0000004", 1)],
    "test": [("0000005", 2)],
}
FLOWERS = {"trnid": [3, 1, 2], "valid": [4, 5], "tstid": [6, 7]}
FLOWER_LABELS = [1, 2, 60, 1, 2, 60, 1]
"""Of images 1 to 7, counted from 1: pink primrose, hard-leaved pocket orchid, pink-yellow dahlia?."""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word; `X.cut` of a file X announces all of it and sends half."""

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2] if Path(f"{source.name}.cut").exists() else content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The served folder and its address."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def md5(content):
    return hashlib.md5(content).hexdigest()


def pack(path, files):
    """A .tgz of name -> bytes; returns its checksum."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return md5(path.read_bytes())


def jpeg(seed):
    """A JPEG whose bytes another encoder or another quality would not give."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 24, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=37)
    return stream.getvalue()


def cifar(server, monkeypatch, cls, batches, meta, label_key):
    """Serve a CIFAR archive of `batches`: file -> labels; returns file -> (pixels (N, 32, 32, 3), labels)."""
    folder, address = server
    made, files = {}, {}
    for seed, (name, labels) in enumerate(batches.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
        rows = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(labels), 3072)  # red, green, blue planes
        files[name] = pickle.dumps({"data": rows, label_key: labels, "batch_label": name}, protocol=2)
        made[name] = (pixels, labels)
    meta_name, meta_key, classes = meta
    files[meta_name] = pickle.dumps({meta_key: classes}, protocol=2)
    checksum = pack(folder / cls.filename, {f"{cls.base_folder}/{name}": data for name, data in files.items()})
    monkeypatch.setattr(cls, "url", address + cls.filename)
    monkeypatch.setattr(cls, "tgz_md5", checksum)
    monkeypatch.setattr(cls, "train_list", [[name, md5(files[name])] for name in batches if "test" not in name])
    monkeypatch.setattr(cls, "test_list", [[name, md5(files[name])] for name in batches if "test" in name])
    monkeypatch.setattr(cls, "meta", {"filename": meta_name, "key": meta_key, "md5": md5(files[meta_name])})
    return made


@pytest.fixture
def cifar10(server, monkeypatch):
    batches = {**{f"data_batch_{number}": [number % 3, 0] for number in range(1, 6)}, "test_batch": [2, 0, 1]}
    return cifar(
        server, monkeypatch, sets.CIFAR10, batches, ("batches.meta", "label_names", ["plane", "car", "bird"]), "labels"
    )


@pytest.fixture
def cifar100(server, monkeypatch):
    batches = {"train": [1, 0, 1, 0], "test": [0, 1]}
    meta = ("meta", "fine_label_names", ["apple", "aquarium_fish"])
    return cifar(server, monkeypatch, sets.CIFAR100, batches, meta, "fine_labels")


@pytest.fixture
def flowers(server, monkeypatch):
    """Image number -> its bytes."""
    from scipy.io import savemat

    folder, address = server
    made = {number: jpeg(number) for number in range(1, 8)}
    archive = pack(folder / "102flowers.tgz", {f"jpg/image_{number:05d}.jpg": data for number, data in made.items()})
    savemat(folder / "imagelabels.mat", {"labels": np.array([FLOWER_LABELS], np.uint8)})
    savemat(folder / "setid.mat", {key: np.array([ids], np.uint16) for key, ids in FLOWERS.items()})
    monkeypatch.setattr(sets.Flowers102, "_download_url_prefix", address)
    monkeypatch.setattr(
        sets.Flowers102,
        "_file_dict",
        {
            "image": ("102flowers.tgz", archive),
            "label": ("imagelabels.mat", md5((folder / "imagelabels.mat").read_bytes())),
            "setid": ("setid.mat", md5((folder / "setid.mat").read_bytes())),
        },
    )
    return made


def aircraft_files():
    base = "fgvc-aircraft-2013b/data/"
    files = {f"{base}variants.txt": "\n".join(VARIANTS).encode() + b"\n"}
    for part, images in AIRCRAFT.items():
        lines = "".join(f"{image} {VARIANTS[label]}\n" for image, label in images)
        files[f"{base}images_variant_{part}.txt"] = lines.encode()
        files.update({f"{base}images/{image}.jpg": jpeg(int(image)) for image, _ in images})
    return files


@pytest.fixture
def aircraft(server, monkeypatch):
    """Serve the archive; returns a function that serves other files in its place."""
    folder, address = server
    monkeypatch.setattr(sets.FGVCAircraft, "_URL", address + "fgvc-aircraft-2013b.tar.gz")

    def serve(files):
        pack(folder / "fgvc-aircraft-2013b.tar.gz", files)

    serve(aircraft_files())
    return serve


def tree(folder):
    """All files below `folder`, as sorted relative names."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def refuse(name, words, destination=None):
    """`fetch_known` raises RecastError with these words in one line; returns the line."""
    destination = destination or Path("data") / name
    with pytest.raises(RecastError) as caught:
        fetch_known(name, destination)
    line = str(caught.value)
    for word in words:
        assert word in line
    assert "\n" not in line
    return line


def nothing_left(tmp_path):
    """Neither the folder `data` nor anything else but the server's own folder."""
    return [path.name for path in tmp_path.iterdir() if path.name != "served"] == []


def test_cifar10_becomes_png_files_of_the_very_same_pixels(cifar10):
    assert fetch_known("cifar10", Path("data/cifar10")) == Path("data/cifar10")
    train = [cifar10[f"data_batch_{number}"] for number in range(1, 6)]
    parts = {
        "train": (np.concatenate([pixels for pixels, _ in train]), [label for _, labels in train for label in labels]),
        "test": cifar10["test_batch"],
    }
    expected = {}
    for part, (pixels, labels) in parts.items():
        for place, label in enumerate(labels):
            expected[f"{part}/{['plane', 'car', 'bird'][label]}/{place:05d}.png"] = pixels[place]
    assert tree(Path("data")) == sorted(f"cifar10/{name}" for name in expected)
    assert len(expected) == 13
    for name, pixels in expected.items():
        with Image.open(Path("data/cifar10") / name) as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image), pixels)


def test_cifar100_has_its_fine_classes(cifar100):
    fetch_known("cifar100", Path("data/cifar100"))
    assert tree(Path("data/cifar100")) == [
        "test/apple/00000.png",
        "test/aquarium_fish/00001.png",
        "train/apple/00001.png",
        "train/apple/00003.png",
        "train/aquarium_fish/00000.png",
        "train/aquarium_fish/00002.png",
    ]


def test_flowers_keep_their_files_splits_and_names(flowers):
    fetch_known("flowers", Path("data/flowers"))
    root = Path("data/flowers")
    names = {1: "pink primrose", 2: "hard-leaved pocket orchid", 60: "pink-yellow dahlia?"}
    expected = {
        f"{part}/{names[FLOWER_LABELS[number - 1]]}/image_{number:05d}.jpg": flowers[number]
        for part, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
        for number in FLOWERS[key]
    }
    assert {name: (root / name).read_bytes() for name in tree(root)} == expected
    split = split_folder(root)
    assert (split.kind, len(split.train), len(split.val), len(split.test)) == ("folders", 3, 2, 2)


def test_flowers_without_names_in_torchvision_get_numbers(flowers, monkeypatch):
    monkeypatch.delattr(sets.Flowers102, "classes")
    fetch_known("flowers", Path("data/flowers"))
    assert sorted(path.name for path in Path("data/flowers/train").iterdir()) == ["00", "01", "59"]


def test_aircraft_keep_their_files_and_slashes_become_dashes(aircraft):
    fetch_known("aircraft", Path("data/aircraft"))
    root, names = Path("data/aircraft"), ["707-320", "F-16A-B", "F-A-18"]
    expected = {
        f"{part}/{names[label]}/{image}.jpg": jpeg(int(image))
        for part, found in AIRCRAFT.items()
        for image, label in found
    }
    assert {name: (root / name).read_bytes() for name in tree(root)} == expected
    assert tree(Path("data")) == sorted(f"aircraft/{name}" for name in expected)
    assert split_folder(root).classes == tuple(names)


def test_a_folder_with_something_in_it_is_left_as_it_is(server):
    Path("data/cifar10/mine").mkdir(parents=True)
    fetch_known("cifar10", Path("data/cifar10"))
    fetch_known("cifar10", Path("data/cifar10"))
    assert [path.name for path in Path("data/cifar10").iterdir()] == ["mine"]


@pytest.mark.parametrize("linked", [False, True])
def test_an_empty_folder_or_a_link_to_one_is_filled(cifar100, linked):
    Path("data").mkdir()
    if linked:
        Path("elsewhere").mkdir()
        Path("data/cifar100").symlink_to(Path("elsewhere").resolve())
    else:
        Path("data/cifar100").mkdir()
    fetch_known("cifar100", Path("data/cifar100"))
    assert len(tree(Path("data/cifar100/"))) == 6
    assert Path("data/cifar100").is_symlink() == linked
    assert not list(Path().glob("**/*.tmp"))


def test_a_run_that_was_slower_than_another_keeps_the_images_of_the_other(cifar100):
    def other(done, total, text):
        Path("data/cifar100/other").mkdir(parents=True, exist_ok=True)

    fetch_known("cifar100", Path("data/cifar100"), other)
    assert [path.name for path in Path("data").rglob("*")] == ["cifar100", "other"]


def test_progress_counts_and_nothing_is_printed(cifar10, capfd, monkeypatch):
    retrieve = utils._urlretrieve

    def talk(url, *arguments):  # as older versions of torchvision do
        print(f"Downloading {url}")
        retrieve(url, *arguments)

    monkeypatch.setattr(utils, "_urlretrieve", talk)
    seen = []
    fetch_known("cifar10", Path("data/cifar10"), lambda *report: seen.append(report))
    assert seen[0] == (0, 0, "downloading cifar10 (MB)")
    assert seen[1:] == [(done, 13, "writing cifar10") for done in range(1, 14)]
    assert capfd.readouterr() == ("", "")


def test_progress_is_in_megabytes(tmp_path):
    seen = []
    with known.reported("cifar10", lambda *report: seen.append(report)), utils.tqdm(total=3_500_000) as bar:
        for _ in range(7):
            bar.update(500_000)
    assert [report[:2] for report in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_torchvision_is_left_as_it_was(cifar10):
    before, wait = utils.tqdm, socket.getdefaulttimeout()
    fetch_known("cifar10", Path("data/cifar10"))
    assert utils.tqdm is before
    assert socket.getdefaulttimeout() == wait


def test_missing_on_the_server(cifar10, server, tmp_path):
    (server[0] / "cifar-10-python.tar.gz").unlink()
    line = refuse("cifar10", ["Cannot download cifar10: HTTP Error 404", "cifar-10-python.tar.gz"])
    assert line.endswith("or put the images into data/cifar10/<class>/.")
    assert nothing_left(tmp_path)


def test_truncated_with_a_checksum(flowers, server, tmp_path):
    (server[0] / "102flowers.tgz.cut").touch()
    refuse("flowers", ["The download of flowers is damaged", "Try again", "data/flowers/<class>/"])
    assert nothing_left(tmp_path)


def test_truncated_without_a_checksum(aircraft, server, tmp_path):
    (server[0] / "fgvc-aircraft-2013b.tar.gz.cut").touch()
    refuse("aircraft", ["The download of aircraft is damaged", "Try again", "data/aircraft/<class>/"])
    assert nothing_left(tmp_path)


def test_another_archive_than_the_right_one(cifar10, server, tmp_path):
    pack(server[0] / "cifar-10-python.tar.gz", {"other": b"1"})
    refuse("cifar10", ["The download of cifar10 is damaged", "Try again"])
    assert nothing_left(tmp_path)


def test_a_page_in_place_of_the_archive(aircraft, server, tmp_path):
    (server[0] / "fgvc-aircraft-2013b.tar.gz").write_text("<html>Please log in</html>")
    refuse("aircraft", ["The download of aircraft is damaged"])
    assert nothing_left(tmp_path)


def test_an_archive_that_lacks_an_image(aircraft, tmp_path):
    files = aircraft_files()
    del files["fgvc-aircraft-2013b/data/images/0000005.jpg"]
    aircraft(files)
    line = refuse("aircraft", ["The download of aircraft is damaged: No such file or directory: 0000005.jpg"])
    assert str(tmp_path) not in line
    assert nothing_left(tmp_path)


def test_an_archive_that_names_a_file_of_the_user(aircraft, tmp_path):
    mine = tmp_path / "served" / "mine.jpg"
    mine.write_bytes(b"mine")
    files = aircraft_files()
    files["fgvc-aircraft-2013b/data/images_variant_test.txt"] = f"{mine.with_suffix('')} 707-320\n".encode()
    aircraft(files)
    refuse("aircraft", ["outside", "mine.jpg"])
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(("names", "folders"), [(["..", ".x", "a/../b"], ["-.", "-x", "a-..-b"])])
def test_no_class_leaves_its_folder(names, folders):
    assert known.class_folders({"train": type("Set", (), {"classes": names})}, 3) == folders


def test_two_classes_never_share_a_folder(aircraft, tmp_path):
    files = aircraft_files()
    files["fgvc-aircraft-2013b/data/variants.txt"] += b"F-A/18\n"
    aircraft(files)
    refuse("aircraft", ["two of its classes have one name"])
    assert nothing_left(tmp_path)


def test_no_server(cifar10, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(sets.CIFAR10, "url", f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")
    line = refuse("cifar10", [])
    assert line == (
        "Cannot download cifar10: Connection refused. Go online, or put the images into data/cifar10/<class>/."
    )
    assert nothing_left(tmp_path)


def test_a_silent_server(cifar10, tmp_path, monkeypatch):
    monkeypatch.setattr(known, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(sets.CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar.gz")
        refuse("cifar10", ["Cannot download cifar10: timed out", "Go online"])
    assert nothing_left(tmp_path)


def test_a_full_disk_is_no_mistake_of_the_user(cifar10, tmp_path, monkeypatch):
    calls = []

    def retrieve(url, path):
        calls.append(url)
        raise OSError(errno.ENOSPC, "No space left on device") if len(calls) == 1 else urllib.error.URLError("refused")

    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(utils, "_urlretrieve", retrieve)
    monkeypatch.setattr(sets.CIFAR10, "url", "https://nowhere.invalid/cifar-10-python.tar.gz")
    with pytest.raises(OSError, match="No space left") as caught:
        fetch_known("cifar10", Path("data/cifar10"))
    assert caught.value.errno == errno.ENOSPC
    assert len(calls) == 2, "torchvision tries again over http, and that failure came last"
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_stopped_while_writing(cifar10, tmp_path, monkeypatch, error):
    def stop(done, total, text):
        if text.startswith("writing") and done == 5:
            raise error

    with pytest.raises(type(error)) as caught:
        fetch_known("cifar10", Path("data/cifar10"), stop)
    assert caught.value is error
    assert nothing_left(tmp_path)


def test_failure_leaves_the_folders_of_the_user(cifar10, server):
    (server[0] / "cifar-10-python.tar.gz").unlink()
    Path("data/birds").mkdir(parents=True)
    refuse("cifar10", ["404"])
    assert [path.name for path in Path("data").rglob("*")] == ["birds"]


def test_flowers_without_scipy(flowers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    monkeypatch.setattr(known, "download", lambda *_: pytest.fail("nothing may be downloaded"))
    refuse("flowers", ["scipy is not installed", "pip install 'recast-cli[data]'"])
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("name", "title", "site"),
    [("birds", "CUB-200-2011", "www.vision.caltech.edu"), ("scenes", "MIT Indoor-67", "web.mit.edu")],
)
def test_sets_to_be_fetched_by_hand(name, title, site, tmp_path):
    refuse(name, [title, site, f"data/{name}/{{train,test}}/<class>/", "class folders"])
    assert nothing_left(tmp_path)


def test_names():
    assert known_names() == ["aircraft", "birds", "cifar10", "cifar100", "flowers", "scenes"]
    assert all(map(is_known, known_names()))
    assert not is_known("flower")
    refuse("flower", ["'flower'", "Did you mean 'flowers'?"])


def test_a_file_in_the_way(cifar10, tmp_path):
    Path("data").write_text("mine")
    refuse("cifar10", ["data"])
    assert Path("data").read_text() == "mine"
    refuse("cifar10", ["is a file"], Path("data"))
