"""A whole task within a time: 6,500 images at 224 px with ViT-S within 60 seconds on one H200, decoding included.

    python tests/benchmarks/budget.py --device cuda
    python tests/benchmarks/budget.py --device cpu --model vit_tiny_patch16_224 --images 60 --image-size 32 --epochs 1

Images are generated (smooth colours and noise, JPEG, the size of photographs of ImageNet), weights are random unless
given: neither changes what a step costs. `recast adapt` runs as a command of its own, without a cache of decoded
images; its start, the imports and the network included, counts. Patience is off, so that no epoch is saved.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import yaml
from common import add_network_options, arguments, open_network, report, run

CLASSES = 50
WIDTH, HEIGHT = 500, 375


def main() -> None:
    parser = arguments(__doc__)
    add_network_options(parser)
    parser.add_argument("--images", type=int, default=6500, help="images, test ones included (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="(default: the recipe's)")
    parser.add_argument("--seconds", type=float, default=60, help="the budget (default: %(default)s)")
    parser.set_defaults(model="vit_small_patch16_224", image_size=224)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, base, here = Path(folder, "images"), Path(folder, "base.safetensors"), Path.cwd()
        draw(data, options.images)
        mimic_to(options, base)
        flags = ["--base", base, "--data", data, "--task", "task", "--image-size", options.image_size]
        flags += ["--device", options.device, "--cache-size", 0, "--patience", 0, "--json"]
        flags += ["--epochs", options.epochs] if options.epochs else []
        os.chdir(folder)  # the task goes into the working folder
        found = run(sys.executable, "-m", "recast_cli", "adapt", *flags)
        os.chdir(here)
        record = yaml.safe_load(Path(folder, "tasks", "task", "task.yaml").read_text(encoding="utf-8"))
    row = {"images": options.images, "epochs": len(record["history"]) - 1, "whole command, s": found["seconds"]}
    row |= {f"{part}, s": seconds for part, seconds in record["timings"].items()}
    row |= {"budget, s": options.seconds, "within": "yes" if found["seconds"] <= options.seconds else "no"}
    report("budget", [row], options.json, model=options.model, image_size=options.image_size, device=record["device"])


def draw(folder: Path, count: int) -> None:
    """An image folder of `count` JPEGs, about 50 kB each."""
    for number in range(CLASSES):
        (folder / f"class{number:02}").mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(draw_one, folder), range(count), chunksize=50))


def draw_one(folder: Path, number: int) -> None:
    """The image of this number."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(number)
    colours = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), 3)
    noise = generator.normal(0, 12, (HEIGHT, WIDTH, 1))
    pixels = (np.asarray(colours) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"class{number % CLASSES:02}" / f"{number:05}.jpg", quality=88)


def mimic_to(options: argparse.Namespace, base: Path) -> None:
    """The base, with the layout that the tool picks."""
    from recast_cli.engine.layout.plan import plan_layout
    from recast_cli.engine.mimic.decompose.decompose import mimic

    source = open_network(options)
    mimic(source, plan_layout(source.modules), path=base)


if __name__ == "__main__":
    main()
