"""What mimicking costs: time against loading and saving the same file and against Algorithm 2, and peak memory.

    python tests/benchmarks/mimic.py                          # a generated file of the shape of ViT-Tiny
    python tests/benchmarks/mimic.py vit_tiny.safetensors     # a file of yours
    python tests/benchmarks/mimic.py --sharded 6              # a generated source of 6 GB in shards, of 1 GB each

Loading and saving is safetensors' own, written as every file here is: to a temporary name, synced, renamed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import arguments, peak_bytes, race, report, run

INDEX = "model.safetensors.index.json"
GRADIENT_STEPS = 20
"""How many of the 1000 steps are timed; a step costs the same from first to last."""


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help="a safetensors file (default: generated, like ViT-Tiny)")
    parser.add_argument("--sharded", type=float, metavar="GB", help="mimic a generated sharded source instead")
    parser.add_argument("--inside", choices=["generate", *CASES], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside == "generate":
        write_shards(chosen.file, chosen.sharded) if chosen.sharded else write_small(chosen.file)
    elif chosen.inside:
        print(memory_of(chosen.inside, chosen.file))
    else:
        with tempfile.TemporaryDirectory() as folder:
            if chosen.sharded:
                sharded(Path(folder), chosen.sharded, chosen.json)
            else:
                compare(chosen.file, Path(folder), chosen.rounds, chosen.json)


def inside(what: str, *options: str | Path) -> dict[str, Any]:
    """Run a part in a process of its own.

    A new process inherits the peak memory of the one that starts it, so the one that measures has to stay small:
    it must not import torch before all peaks are measured.
    """
    assert "torch" not in sys.modules
    return run(sys.executable, __file__, "--inside", what, *options)


def compare(given: Path | None, folder: Path, rounds: int, target: Path | None) -> None:
    """One file: seconds and peak memory of each case."""
    file = given or folder / "vit_tiny.safetensors"
    if given is None:
        inside("generate", file)
    peaks = {name: int(inside(name, file)["output"]) for name in CASES}
    cases = {name: make(file, folder / f"{name}.safetensors") for name, make in CASES.items()}
    seconds = {**race(cases, rounds), "gradient": gradient_seconds(file)}
    size, rows = file.stat().st_size, []
    for name, value in seconds.items():
        row = {"case": name, "seconds": value}
        row |= {"times load+save": value / seconds["load+save"], "times exact": value / seconds["exact"]}
        if name in peaks:
            row |= {"peak MB over imports": peaks[name] / 1e6, "peak of the file's size": peaks[name] / size}
        rows.append(row)
    rows[-1]["case"] = f"gradient, 1000 steps (scaled up from {GRADIENT_STEPS} steps of one bank to all of all banks)"
    report("mimic", rows, target, source=file.name, source_bytes=size)


def load_and_save(file: Path, out: Path) -> Callable[[], object]:
    """safetensors alone."""
    from safetensors.torch import load_file, save_file

    from recast_cli.engine.storage.atomic import atomic

    def case() -> None:
        with atomic(out) as temporary:
            save_file(load_file(file), temporary)

    return case


def exact(file: Path, out: Path) -> Callable[[], object]:
    """From the file to the base on disk, as `recast mimic FILE` does it."""
    from recast_cli.engine.layout.plan import plan_layout
    from recast_cli.engine.mimic.decompose.decompose import mimic
    from recast_cli.engine.source.open import open_source

    def case() -> None:
        source = open_source(str(file))
        mimic(source, plan_layout(source.modules), path=out)

    return case


def in_memory(file: Path, out: Path) -> Callable[[], object]:
    """The same by way of a base in memory."""
    from recast_cli.engine.base.file import save_base
    from recast_cli.engine.layout.plan import plan_layout
    from recast_cli.engine.mimic.decompose.decompose import mimic
    from recast_cli.engine.source.open import open_source

    def case() -> None:
        source = open_source(str(file))
        save_base(mimic(source, plan_layout(source.modules)), out)

    return case


CASES = {"load+save": load_and_save, "exact": exact, "exact, in memory": in_memory}


def gradient_seconds(file: Path) -> float:
    """Seconds of Algorithm 2 at 1000 steps for all banks, scaled up from a few steps of the first bank."""
    import torch

    from recast_cli.engine.layout.plan import plan_layout
    from recast_cli.engine.mimic.decompose.gradient import solve_gradient
    from recast_cli.engine.mimic.decompose.solver_options import GradientOptions
    from recast_cli.engine.source.open import open_source

    source = open_source(str(file))
    layout = plan_layout(source.modules)
    bank = layout.banks[0]
    weights = torch.stack([source.tensors[f"{module}.weight"].float() for module in bank.modules])
    solve_gradient(weights, bank.templates, layout.sets, GradientOptions(steps=2))
    start = time.perf_counter()
    solve_gradient(weights, bank.templates, layout.sets, GradientOptions(steps=GRADIENT_STEPS))
    return (time.perf_counter() - start) / GRADIENT_STEPS * 1000 * layout.source_parameters / weights.numel()


def memory_of(name: str, file: Path) -> int:
    """Peak memory in bytes of one case in this process, above what the imports took."""
    with tempfile.TemporaryDirectory() as folder:
        case = CASES[name](file, Path(folder) / "out.safetensors")
        before = peak_bytes()
        case()
        return peak_bytes() - before


def write_small(file: Path) -> None:
    """A file of the names and shapes of ViT-Tiny, with random values."""
    from safetensors.torch import save_file

    save_file(dict(vit_tensors(width=192, depth=12)), file)


def write_shards(folder: Path, gigabytes: float) -> None:
    """A vision transformer of that size in float32, in shards of about 1 GB, and its index."""
    from safetensors.torch import save_file

    width = 2048
    depth = max(2, round(gigabytes * 1e9 / (4 * 12 * width**2)))
    shards: list[dict[str, Any]] = [{}]
    size, total, places = 0, 0, {}
    for name, tensor in vit_tensors(width, depth):
        if size > 1e9:
            save_file(shards[-1], folder / f"model-{len(shards):05}.safetensors")
            shards[-1].clear()
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        places[name] = f"model-{len(shards):05}.safetensors"
        size, total = size + tensor.nbytes, total + tensor.nbytes
    save_file(shards[-1], folder / f"model-{len(shards):05}.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))


def sharded(folder: Path, gigabytes: float, target: Path | None) -> None:
    """Mimic a sharded source in a process of its own, command and all."""
    inside("generate", folder, "--sharded", str(gigabytes))
    size = json.loads((folder / INDEX).read_text())["metadata"]["total_size"]
    found = run(sys.executable, "-m", "recast_cli", "mimic", folder / INDEX, "-o", folder / "base.safetensors", "-q")
    row = {"source GB": size / 1e9, "shards": len(list(folder.glob("model-*.safetensors")))}
    row |= {"seconds": found["seconds"], "peak GB": found["peak_bytes"] / 1e9}
    report("mimic_sharded", [row], target, note="peak: ru_maxrss of the whole process, mapped pages included")


def vit_tensors(width: int, depth: int) -> Iterator[tuple[str, Any]]:
    """Names and random values of the tensors of a vision transformer, in float32."""
    import torch

    torch.manual_seed(0)
    yield "cls_token", torch.randn(1, 1, width)
    yield "pos_embed", torch.randn(1, 197, width)
    yield "patch_embed.proj.weight", torch.randn(width, 3, 16, 16)
    yield "patch_embed.proj.bias", torch.randn(width)
    for block in range(depth):
        for part, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            yield f"blocks.{block}.{part}.weight", torch.randn(rows, columns) / columns**0.5
            yield f"blocks.{block}.{part}.bias", torch.randn(rows)
        for part in ("norm1", "norm2"):
            yield f"blocks.{block}.{part}.weight", torch.rand(width)
            yield f"blocks.{block}.{part}.bias", torch.randn(width)
    yield "norm.weight", torch.rand(width)
    yield "norm.bias", torch.randn(width)
    yield "head.weight", torch.randn(1000, width)
    yield "head.bias", torch.randn(1000)


if __name__ == "__main__":
    main()
