"""Measuring a task against plain timm inference, and switching tasks against copying ready-made weights.

    python tests/benchmarks/evaluate.py --weights vit_tiny_patch16_224.safetensors

Both networks see the same decoded images in the same batches and in the same precision: bfloat16 autocast on CUDA,
float32 elsewhere. Targets: images a second 1.00 +- 0.03 of timm's, a switch at most 1.5 times a copy.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import timm
import torch
from common import add_network_options, arguments, matrix_rate, open_network, race, report, synchronise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from recast_cli.engine.architecture.modules import features
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import merge
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.runtime.inference import infer, take_features
from recast_cli.engine.runtime.precision import precision

BATCH = 64
SWITCHES = 5
"""Of each kind, a round."""


def main() -> None:
    parser = arguments(__doc__)
    add_network_options(parser)
    parser.add_argument("--images", type=int, default=256, help="images a measurement (default: %(default)s)")
    options = parser.parse_args()
    device, size = options.device, options.image_size
    torch.manual_seed(0)

    source = open_network(options)
    base = mimic(source, plan_layout(source.modules))
    vectors = [base.vector + 0.05 * torch.randn(len(base.vector)) for _ in range(2)]
    switcher = Switcher(base, device)
    ours = switcher.switch(vectors[0], size)
    data = base.known_architecture().preprocessing
    plain = plain_network(options.model, size)
    plain.load_state_dict(merge(base, vectors[0], size).state_dict())
    plain.to(device)
    pixels = torch.randint(0, 256, (options.images, 3, size, size), dtype=torch.uint8)
    outputs: dict[str, Tensor] = {}

    def recast_road() -> None:
        outputs["recast"] = infer(take_features(ours), pixels, data, torch.device(device), BATCH, frozen=True)

    def timm_road() -> None:
        outputs["timm"] = timm_features(plain, pixels, data, device)

    seconds = race({"timm": timm_road, "recast eval": recast_road}, options.rounds)
    apart = float((outputs["recast"] - outputs["timm"]).norm() / outputs["timm"].norm())
    assert apart < (0.02 if device.startswith("cuda") else 1e-4), f"the networks differ by {apart:.1e}"
    work = flops(plain, size, device) * options.images
    rate = matrix_rate(device, torch.bfloat16 if device.startswith("cuda") else torch.float32)
    rows: list[dict[str, Any]] = [
        {
            "case": case,
            "ms": 1e3 * value,
            "images/s": options.images / value,
            "share of the matrix rate": work / value / rate,
            "ratio": seconds["timm"] / value,
            "target": "1.00 +- 0.03" if case == "recast eval" else None,
        }
        for case, value in seconds.items()
    ]
    taken = race_of_switching(switcher, vectors, plain, device, options.rounds)
    rows += [
        {
            "case": case,
            "ms": 1e3 * value,
            "ratio": value / taken["copy of ready weights"],
            "target": "<= 1.5" if case == "switch" else None,
        }
        for case, value in taken.items()
    ]
    layout = base.layout
    report(
        "evaluate",
        rows,
        options.json,
        flops_an_image=work / options.images,
        matrix_rate=rate,
        layout={"modules": len(layout.modules), "groups": layout.groups, "n": layout.templates, "sets": layout.sets},
    )


def plain_network(name: str, size: int) -> nn.Module:
    """The architecture as timm builds it for this image size."""
    try:
        return timm.create_model(name, img_size=size).eval()
    except TypeError:  # any size will do
        return timm.create_model(name).eval()


@torch.inference_mode()
def timm_features(model: nn.Module, pixels: Tensor, data: dict[str, Any], device: str) -> Tensor:
    """What a user of timm writes: move, normalise, run, batch by batch."""
    mean = 255 * torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
    std = 255 * torch.tensor(data.std, device=device).view(1, 3, 1, 1)
    outputs = []
    for batch in pixels.split(BATCH):
        images = batch.to(device, non_blocking=True).float().sub_(mean).div_(std)
        with precision(torch.device(device)):
            outputs.append(features(model, images).float())
    return torch.cat(outputs).cpu()


@torch.no_grad()
def flops(model: nn.Module, size: int, device: str) -> int:
    """Of one image: matrix products and convolutions, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        features(model, torch.zeros(1, 3, size, size, device=device))
    return int(counter.get_total_flops())


def race_of_switching(
    switcher: Switcher, vectors: list[Tensor], model: nn.Module, device: str, rounds: int
) -> dict[str, float]:
    """Median seconds of one switch, and of copying the same weights, ready on the device, into a network.

    Before each the caches are filled with something else, as they are after a network has run; without that, weights
    as few as ViT-Tiny's would never leave them.
    """
    size = next(iter(switcher.networks))
    names = [f"{module}.weight" for module in switcher.base.layout.modules]
    into = [model.get_parameter(name) for name in names]
    ready = [[switcher.switch(each, size).get_parameter(name).clone() for name in names] for each in vectors]
    other = torch.zeros(2**26, device=device)

    def switch(turn: int) -> None:
        switcher.switch(vectors[turn % 2], size)

    @torch.no_grad()
    def copy(turn: int) -> None:
        for parameter, weight in zip(into, ready[turn % 2], strict=True):
            parameter.copy_(weight)

    seconds: dict[str, list[float]] = {"copy of ready weights": [], "switch": []}
    for turn in range(SWITCHES * rounds):
        for case, action in zip(seconds, (copy, switch), strict=True):
            other.add_(1)
            synchronise(device)
            start = time.perf_counter()
            action(turn)
            synchronise(device)
            seconds[case].append(time.perf_counter() - start)
    return {case: statistics.median(values) for case, values in seconds.items()}


if __name__ == "__main__":
    main()
