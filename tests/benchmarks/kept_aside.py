"""Image folders of tasks that no choice in this tool was made on, out of packages that anyone can have.

    npm pack emoji-datasource-google@16.0.0
    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
    python tests/benchmarks/kept_aside.py images emoji-datasource-google-16.0.0.tgz stamps

`digits` are scikit-learn's (1797 handwritten ones of 8 x 8 pixels), `emoji` Google's by category, without variants of
skin colour, `stamps` photographs and drawings of Debian's Tux Paint package by folder. None of them has a split.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

FEWEST = 15
"""Images that a class needs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the folders go")
    parser.add_argument("emoji", type=Path, help="archive of the npm package emoji-datasource-google")
    parser.add_argument("stamps", type=Path, help="folder of the Debian package tuxpaint-stamps-default")
    chosen = parser.parse_args()
    write_digits(chosen.out / "digits")
    write_emoji(chosen.out / "emoji", chosen.emoji)
    write_stamps(chosen.out / "stamps", chosen.stamps)


def write_digits(out: Path) -> None:
    """scikit-learn's digits, four times larger, so that a viewer shows more than a dot."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
        save(image.resize((32, 32), Image.Resampling.BICUBIC), out / str(label) / f"{number:04}.png")


def write_emoji(out: Path, archive: Path) -> None:
    """A class for each category; what stands for a part of another emoji has none that says anything."""
    with tarfile.open(archive) as files:
        found = {member.name: member for member in files.getmembers()}
        about = json.load(files.extractfile(found["package/emoji.json"]))
        for emoji in about:
            member = found.get(f"package/img/google/64/{emoji['image']}")
            if member is not None and emoji["category"] != "Component":
                name = emoji["category"].replace(" & ", "-and-").lower()
                save(Image.open(files.extractfile(member)), out / name / emoji["image"])


def write_stamps(out: Path, folder: Path) -> None:
    """A class for each folder of the first level that holds images enough."""
    (root,) = folder.rglob("stamps/animals")
    for theme in sorted(each for each in root.parent.iterdir() if each.is_dir()):
        images = sorted(theme.rglob("*.png"))
        if len(images) >= FEWEST:
            for number, image in enumerate(images):
                save(Image.open(image), out / theme.name / f"{number:03}-{image.name}")


def save(image: Image.Image, path: Path) -> None:
    """Write an image as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


if __name__ == "__main__":
    main()
