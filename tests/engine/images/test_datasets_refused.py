"""Known image sets that cannot be had: one line that says why and what to do, and nothing half-written."""

import errno
import socket
import sys
import urllib.error
from pathlib import Path

import pytest
import torchvision.datasets as sets
from fixtures.datasets import aircraft_files, pack
from torchvision.datasets import utils

from recast_cli.engine.errors import RecastError
from recast_cli.engine.images import datasets as known
from recast_cli.engine.images.datasets import fetch_known, known_names

pytest_plugins = ["fixtures.datasets"]


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
    refuse("flower", ["'flower'", "Did you mean 'flowers'?"])


def test_a_file_in_the_way(cifar10, tmp_path):
    Path("data").write_text("mine")
    refuse("cifar10", ["data"])
    assert Path("data").read_text() == "mine"
    refuse("cifar10", ["is a file"], Path("data"))
