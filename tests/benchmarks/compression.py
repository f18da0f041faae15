"""What compressing costs: bytes, decisions kept and accuracy of a base, calibrated and not, beside plain rounding.

Divergence is the mean of KL(source | base) over the images, in nats: a finer measure than decisions, one of which is
0.2 % of 500 images.

    python tests/benchmarks/compression.py vit_tiny.safetensors images --model vit_tiny_patch16_224

`images` has class folders named by index or wnid. Images are cut into two halves, every second one, or into as
many `--folds`. A calibrated base is judged on the fold that it has not seen, and there is one for each, so that all
images are judged. Other bases are judged on all images. Plain rounding has one width, one bit more for as many
tensors as fit, 64 values a scale, and scales that reach the largest value. torchao's rows are there where it can be
imported; it rounds linear layers alone, and the rest counts in float16; ours at the same bytes follow. Shared bases
have fewer templates than layers, before and after healing on the folds that do not judge. `--rows` makes some of the
rows alone.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import arguments, report
from torch import Tensor, nn

from recast_cli.engine.architecture.build import build
from recast_cli.engine.base.base import Base
from recast_cli.engine.base.codec.code import BITS, Code, Fixed, code_bytes, round_to_nearest
from recast_cli.engine.base.codec.grid import stored as as_stored
from recast_cli.engine.base.file import save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.images.decode import Images, decode
from recast_cli.engine.images.unlabelled import read_images
from recast_cli.engine.layout.layout import Layout
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.measure.evaluate import class_indices, labelled_items
from recast_cli.engine.mimic.compress.compress import compress
from recast_cli.engine.mimic.compress.matrices import is_large, tensors_of_base
from recast_cli.engine.mimic.compress.plan import HALF, fixed_code, planned, small_codes, source_bytes
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.decompose.finalize import finalize
from recast_cli.engine.mimic.heal.heal import heal
from recast_cli.engine.runtime.device import ready
from recast_cli.engine.runtime.inference import infer
from recast_cli.engine.source.open import open_source
from recast_cli.engine.source.source import Source

CPU = torch.device("cpu")
MLP, ALL = ["blocks.*.mlp.fc?"], ["blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc?"]
SHARING: dict[str, dict[str, Any]] = {
    "MLP 2:1": {"patterns": MLP, "groups": 6, "templates": 1},
    "all 12:11": {"patterns": ALL, "groups": 1, "templates": 11},
    "all 12:8": {"patterns": ALL, "groups": 1, "templates": 8},
}
ROWS = ("float16", "sizes", "sharing", "torchao")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="weight file of the source")
    parser.add_argument("images", type=Path, help="class folders named by index or wnid")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="timm name (default: %(default)s)")
    parser.add_argument("--times", type=float, nargs="+", default=[4, 6, 8], help="times smaller (default: 4 6 8)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="(default: all)")
    parser.add_argument("--folds", type=int, default=2, help="that judge, one at a time (default: %(default)s)")
    chosen = parser.parse_args()
    source = open_source(chosen.model, weights=chosen.weights)
    judge = Judge(source, chosen.images, chosen.folds)
    rows = []
    for row in cases(source, judge, chosen.times, chosen.rows):
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    report("compression", rows, chosen.json, model=chosen.model, images=len(judge.images), folds=chosen.folds)


class Judge:
    """What the source makes of all images, and how much of it another network keeps."""

    def __init__(self, source: Source, folder: Path, count: int) -> None:
        assert source.architecture is not None
        self.architecture, self.folder, self.count = source.architecture, folder, count
        items = labelled_items(folder, class_indices(int(source.architecture.args["num_classes"])))
        self.images: Images = decode(folder, items, source.architecture.preprocessing)
        self.source = self.see(source.network(), slice(None))

    def see(self, model: nn.Module, part: slice) -> Tensor:
        """Logarithms of the probabilities of every class, (images, classes)."""
        logits = infer(ready(model, CPU), self.images.pixels[part], self.architecture.preprocessing, CPU, 32)
        return logits.log_softmax(1)

    def folds(self, folder: Path) -> Iterator[tuple[Path, slice]]:
        """A folder of images to calibrate with, and which images are judged then: all the others."""
        for fold in range(self.count):
            root = folder / str(fold)
            for place, path in enumerate(self.images.paths):
                if place % self.count != fold:
                    link = root / path
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to((self.folder / path).resolve())
            yield root, slice(fold, None, self.count)

    def row(self, name: str, nbytes: int, original: int, parts: list[tuple[slice, Tensor]], seconds: float) -> dict:
        """A row of the table."""
        found = torch.cat([each for _, each in parts])
        source, labels = (torch.cat([of[part] for part, _ in parts]) for of in (self.source, self.images.labels))
        agreed, right = found.argmax(1) == source.argmax(1), found.argmax(1) == labels
        return {
            "base": name,
            "MB": nbytes / 1e6,
            "times smaller": original / nbytes,
            "agreement %": 100 * float(agreed.float().mean()),
            "top-1 %": 100 * float(right.float().mean()),
            "divergence": float((source.exp() * (source - found)).sum(1).mean()),
            "seconds": seconds,
        }


def cases(source: Source, judge: Judge, times: list[float], wanted: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of the source and of some of ROWS."""
    original = source_bytes(source)
    yield judge.row("source", original, original, [(slice(None), judge.source)], 0.0)
    layout = plan_layout(source.modules)
    if "float16" in wanted:
        yield whole("float16", source, judge, lambda path: compress(source, layout, bits=HALF, path=path))
    for each in times if "sizes" in wanted else ():
        yield from at_size(source, judge, layout, each)
    for name in SHARING if "sharing" in wanted else ():
        yield from sharing(name, source, judge)
    if "torchao" in wanted:
        yield from torchao(source, judge, layout, original)


def at_size(source: Source, judge: Judge, layout: Layout, times: float) -> Iterator[dict[str, Any]]:
    """Plain, by entropy, and calibrated, so many times smaller."""
    original = source_bytes(source)
    size = int(original / times)
    yield whole(f"{times:.3g}x, plain rounding", source, judge, lambda path: plain(source, layout, size, path))
    yield whole(f"{times:.3g}x", source, judge, lambda path: compress(source, layout, size=size, path=path))
    parts, spent, nbytes = [], 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for images, judged in judge.folds(Path(folder)):
            start = time.perf_counter()
            base = compress(source, layout, size=size, calibrate=images, path=Path(folder) / "base.safetensors")
            spent += time.perf_counter() - start
            assert base.path is not None
            nbytes = max(nbytes, base.path.stat().st_size)
            parts.append((judged, judge.see(build(judge.architecture, base.state()), judged)))
    yield judge.row(f"{times:.3g}x, calibrated", nbytes, original, parts, spent / judge.count)


def sharing(name: str, source: Source, judge: Judge) -> Iterator[dict[str, Any]]:
    """Fewer templates than layers, before and after healing."""
    try:
        layout = plan_layout(source.modules, sets=1, **SHARING[name])
    except RecastError as error:
        print(f"{name} is left out: {error.what}", file=sys.stderr)
        return
    yield whole(name, source, judge, lambda path: mimic(source, layout, path=path))
    parts, spent, nbytes = [], 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for images, judged in judge.folds(Path(folder)):
            start = time.perf_counter()
            base = heal(source, mimic(source, layout), read_images(images, judge.architecture.preprocessing))
            spent += time.perf_counter() - start
            path = Path(folder) / "base.safetensors"
            nbytes = max(nbytes, save_base(base, path).path.stat().st_size)
            parts.append((judged, judge.see(build(judge.architecture, base.state()), judged)))
            print(name, base.solver["healed"], file=sys.stderr, flush=True)
    yield judge.row(f"{name}, healed", nbytes, source_bytes(source), parts, spent / judge.count)


def whole(name: str, source: Source, judge: Judge, make: Callable[[Path], Base]) -> dict[str, Any]:
    """The row of a base that is judged on all images."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        base = make(Path(folder) / "base.safetensors")
        seconds = time.perf_counter() - start
        assert base.path is not None
        found = judge.see(build(judge.architecture, base.state()), slice(None))
        return judge.row(name, base.path.stat().st_size, source_bytes(source), [(slice(None), found)], seconds)


def plain(source: Source, layout: Layout, size: int, path: Path) -> Base:
    """Rounding to the nearest in about one width, at most `size` bytes."""
    base = mimic(source, layout)
    large = {name: tensor for name, tensor in tensors_of_base(base) if is_large(tensor.shape)}
    small = small_codes(tensors_of_base(base))

    def codes_of(bits: int) -> dict[str, Code]:
        return small | {name: fixed_code(name, tensor, bits, 64) for name, tensor in large.items()}

    def nbytes(codes: dict[str, Code]) -> int:
        return planned(source, layout, None, codes).nbytes

    narrow = max((bits for bits in BITS if nbytes(codes_of(bits)) <= size), default=2)
    codes, wider = codes_of(narrow), codes_of(min(8, narrow + 1))
    left = size - nbytes(codes)
    for name in large:
        if (more := code_bytes(wider[name]) - code_bytes(codes[name])) <= left:
            codes[name], left = wider[name], left - more
    stored = {name: tensor for name, tensor in base.tensors.items() if name not in codes}
    for name, code in codes.items():
        stored |= (
            widest(name, base.tensors[name], code)
            if isinstance(code, Fixed)
            else round_to_nearest(name, base.tensors[name], code)
        )
    return save_base(finalize(replace(base, tensors=stored, codes=codes), source), path)


def widest(name: str, tensor: Tensor, code: Fixed) -> dict[str, Tensor]:
    """A tensor as stored, with scales that reach its largest values."""
    rows = tensor.reshape(-1, code.columns)
    scales = as_stored(code.grid.cut(rows).abs().amax(-1) / code.grid.centre)
    return code.store(name, code.grid.encode(rows, scales), scales)


def torchao(source: Source, judge: Judge, layout: Layout, original: int) -> Iterator[dict[str, Any]]:
    """Weight-only rounding of linear layers by torchao, where it is installed, and ours at equal bytes."""
    try:
        from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_
    except ImportError:
        print("torchao cannot be imported: its rows are left out", file=sys.stderr)
        return
    for name, width, granularity in (
        ("torchao int8, a scale a row", torch.int8, PerAxis(0)),
        ("torchao int4, 64 values a scale", torch.int4, PerGroup(64)),
    ):
        model = source.network()
        bits = 8 if width == torch.int8 else 4
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        count = sum(module.weight.numel() for module in linear)
        scales = sum(m.weight.numel() // 64 if bits == 4 else m.out_features for m in linear)
        others = sum(parameter.numel() for parameter in model.parameters()) - count
        start = time.perf_counter()
        quantize_(model, IntxWeightOnlyConfig(weight_dtype=width, granularity=granularity))
        seconds = time.perf_counter() - start
        found = judge.see(model, slice(None))
        nbytes = count * bits // 8 + 2 * scales + 2 * others
        yield judge.row(name, nbytes, original, [(slice(None), found)], seconds)
        yield from at_size(source, judge, layout, original / nbytes)


if __name__ == "__main__":
    main()
