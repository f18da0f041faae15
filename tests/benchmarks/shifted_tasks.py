"""Image folders on which choices about chosen coefficients are made: photographs shifted away from ImageNet.

    python tests/benchmarks/shifted_tasks.py images images/tuning

Out of flowers17, birds50 and cifar10 in the first folder it makes `edges` (17 flowers as dark lines on white, 50 images
each to learn from), `tinybirds` (20 birds of no more detail than 40 pixels show, some 29 each), `birdlines` (15 other
birds as lines) and `negative` (CIFAR-10 with inverted colours, red and blue exchanged, 100 each). No table of results
is made of them.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder with flowers17, birds50 and cifar10")
    parser.add_argument("out", type=Path, help="where the folders go")
    chosen = parser.parse_args()
    draws = random.Random(0)
    for folder in sorted((chosen.images / "flowers17").iterdir()):
        files = shuffled(folder, draws)
        for place, file in enumerate(files):
            save(file, chosen.out / "edges" / ("train" if place < 50 else "test"), edges)
    for part in ("train", "test"):
        for place, folder in enumerate(sorted((chosen.images / "birds50" / part).iterdir())[:35]):
            name, change = ("tinybirds", blurred) if place < 20 else ("birdlines", edges)
            for file in folder.iterdir():
                save(file, chosen.out / name / part, change)
    for part, count in (("train", 100), ("test", 60)):
        for folder in sorted((chosen.images / "cifar10" / part).iterdir()):
            for file in shuffled(folder, draws)[:count]:
                save(file, chosen.out / "negative" / part, negative)


def shuffled(folder: Path, draws: random.Random) -> list[Path]:
    """The files of a folder in an order that is drawn."""
    files = sorted(folder.iterdir())
    draws.shuffle(files)
    return files


def save(file: Path, part: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    """Write a changed image into its class of a part."""
    target = part / file.parent.name / f"{file.stem}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    change(Image.open(file).convert("RGB")).save(target)


def edges(image: Image.Image) -> Image.Image:
    """Dark lines on white."""
    lines = image.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    return ImageOps.invert(lines).convert("RGB")


def blurred(image: Image.Image) -> Image.Image:
    """The short side cut to 40 pixels, and back."""
    scale = 40 / min(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def negative(image: Image.Image) -> Image.Image:
    """Inverted, red and blue exchanged."""
    return ImageOps.invert(Image.merge("RGB", image.split()[::-1]))


if __name__ == "__main__":
    main()
