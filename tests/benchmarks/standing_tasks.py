"""Image folders of the standing comparison: eight tasks, each with at most 20 and at most 100 training images a class.

    python tests/benchmarks/standing_tasks.py images images/standing

The first folder holds `cifar10` and a folder `shift` with six more tasks, all of them cut into `train` and `test`; the
eighth, `digits`, are scikit-learn's. They come to `images/standing/20/TASK` and `images/standing/100/TASK`. The 20 are
among the 100, and the test images of both are all there are.
"""

import argparse
import random
import shutil
import tempfile
from pathlib import Path

from kept_aside import write_digits
from shifted_tasks import shuffled

MOST = (100, 20)
"""Training images a class."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder with cifar10 and shift")
    parser.add_argument("out", type=Path, help="where the folders go")
    chosen = parser.parse_args()
    draws = random.Random(0)
    for task in (chosen.images / "cifar10", *sorted((chosen.images / "shift").iterdir())):
        for folder in sorted((task / "train").iterdir()):
            write(shuffled(folder, draws), sorted((task / "test" / folder.name).iterdir()), chosen.out, task.name)
    with tempfile.TemporaryDirectory() as made:
        write_digits(Path(made))
        for folder in sorted(Path(made).iterdir()):
            files = shuffled(folder, draws)
            write(files[: max(MOST)], files[max(MOST) :], chosen.out, "digits")


def write(train: list[Path], test: list[Path], out: Path, task: str) -> None:
    """A class of a task, once for every number of training images."""
    for most in MOST:
        for part, files in (("train", train[:most]), ("test", test)):
            for file in files:
                target = out / str(most) / task / part / file.parent.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


if __name__ == "__main__":
    main()
