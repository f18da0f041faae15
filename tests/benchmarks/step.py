"""A training step of `adapt` against a bare loop and against PEFT, on one timm model, batch and precision.

    python tests/benchmarks/step.py --weights vit_tiny_patch16_224.safetensors
    python tests/benchmarks/step.py --model vit_small_patch16_224 --image-size 224 --batch-size 128 --device cuda

The bare loop is what cannot be left out: the frozen forward pass, and the backward pass of activations alone down to
the first adapted module; no optimiser, no gradient of any parameter. A second bare loop has one product more for each
adapted module, which is what two templates a module need. Precision and attention are those of `adapt`, for all alike.
On CUDA every step is timed as Python starts its kernels, and once more recorded as a CUDA graph, as `adapt` does it.
Needs PEFT: pip install peft.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import peft
import torch
from common import add_network_options, arguments, matrix_rate, open_network, race, report
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from recast_cli.engine.architecture.modules import features
from recast_cli.engine.base.base import Base
from recast_cli.engine.images.transforms import augment, draw_crops, normalise
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import attach, coefficient_parameters, merge
from recast_cli.engine.model.coefficient_gradients import cheap_gradients
from recast_cli.engine.model.frozen_norms import frozen_norms
from recast_cli.engine.runtime.accumulate import Accumulator
from recast_cli.engine.runtime.cuda_graph import Replayed, Work
from recast_cli.engine.runtime.device import ready
from recast_cli.engine.runtime.precision import precision, quick_attention, training_precision
from recast_cli.engine.source.source import Source

CLASSES = 50
QKV = r"blocks\.\d+\.attn\.qkv"
TWO = "recast, 2 templates (paper-attention)"
RECORDED = ", as a graph"
Step = Callable[[], object]


def main() -> None:
    parser = arguments(__doc__)
    add_step_options(parser)
    options = parser.parse_args()
    batch = make_batch(options)
    device, size, count = batch.device, options.image_size, options.batch_size

    steps = cases(batch)
    seconds = race(steps, options.rounds, warmup=3, device=options.device)
    with FlopCounterMode(display=False) as counter:
        bare(batch, products=False)()
    flops = counter.get_total_flops()
    rate = matrix_rate(options.device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    rows = []
    for name, value in seconds.items():
        recorded = RECORDED if name.endswith(RECORDED) else ""
        rows.append(
            {
                "step": name,
                "ms": 1000 * value,
                "images/s": count / value,
                "bare loop / it": seconds["bare loop" + recorded] / value,
                "LoRA / it": seconds["PEFT LoRA r=1 on qkv" + recorded] / value,
                "of the matrix rate": flops / value / rate,
            }
        )
    way = RECORDED if device.type == "cuda" else ""
    products, templates = seconds[f"bare loop, one more product for each qkv{way}"], seconds[f"{TWO}{way}"]
    report(
        "step",
        rows,
        options.json,
        model=options.model,
        image_size=size,
        batch_size=count,
        precision=options.precision,
        products_bare_over_two_templates=products / templates,
        matrix_flop_per_second=rate,
    )
    print(f"\nbare loop with one more product / recast with 2 templates: {products / templates:.3f}")
    if not all(each.records for each in batch.graphs):
        print("Not every step could be recorded; those that could not were timed as they are.")


def cases(batch: Batch) -> dict[str, Step]:
    """Every step by name; on CUDA twice, the second time recorded."""
    depth = sum(name.endswith("attn.qkv") for name in batch.source.modules)
    four = ["blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc1", "blocks.*.mlp.fc2"]
    one: dict[str, Any] = {"groups": depth, "templates": 1, "sets": 1}
    makers: dict[str, Callable[[], Step]] = {
        "bare loop": lambda: bare(batch, products=False),
        "bare loop, one more product for each qkv": lambda: bare(batch, products=True),
        "recast, 1 template, qkv proj fc1 fc2": lambda: recast(batch, one | {"patterns": four}),
        "the same from uint8, with crops and flips": lambda: recast(batch, one | {"patterns": four}, prepare=True),
        "recast, 1 template, qkv alone": lambda: recast(batch, one | {"patterns": four[:1]}),
        "recast, 1 template, qkv fc2": lambda: recast(batch, one | {"patterns": four[::3]}),  # the default of 24 blocks
        TWO: lambda: recast(batch, {"layout": "paper-attention"}),
        "PEFT LoRA r=1 on qkv": lambda: with_peft(batch, peft.LoraConfig(r=1, target_modules=QKV)),
        "PEFT TinyLoRA on qkv": lambda: with_peft(batch, peft.TinyLoraConfig(target_modules=QKV)),
    }
    steps = {name: make() for name, make in makers.items()}
    if batch.device.type == "cuda":
        batch.recorded = True
        steps |= {name + RECORDED: make() for name, make in makers.items()}
    return steps


def add_step_options(parser: argparse.ArgumentParser) -> None:
    """Options of a step: the network's, and how it is run."""
    add_network_options(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile every network, the bare one too")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16 (default: %(default)s)")


def make_batch(options: argparse.Namespace) -> Batch:
    """A batch of random images for the network that the options name."""
    torch.manual_seed(0)
    device, size, count = torch.device(options.device), options.image_size, options.batch_size
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8).to(device)
    labels = torch.arange(count, device=device) % CLASSES
    return Batch(pixels, labels, open_network(options), device, options.compile, options.precision)


class Batch:
    """What all steps share: images, labels, the source, and how a network is run."""

    def __init__(
        self, pixels: Tensor, labels: Tensor, source: Source, device: torch.device, compiled: bool, wanted: str
    ) -> None:
        self.pixels, self.labels, self.source, self.device, self.compiled = pixels, labels, source, device, compiled
        assert source.architecture is not None
        self.data = source.architecture.preprocessing
        self.images = normalise(pixels, self.data)
        self.wanted = wanted
        self.recorded = False  # whether steps are recorded as CUDA graphs
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.graphs: list[Replayed] = []
        self.bases: dict[str, Base] = {}
        self.contexts = ExitStack()  # for as long as the benchmark runs
        with torch.no_grad():
            width = features(self.plain(), self.images[:1]).shape[1]
        self.head = torch.randn(CLASSES, width) * 0.02

    def loss(self, model: nn.Module, head: Tensor) -> Callable[[Tensor], Tensor]:
        """Images -> loss, compiled where that is asked for."""

        def forward(images: Tensor) -> Tensor:
            return F.linear(features(model, images), head)

        run = torch.compile(forward) if self.compiled else forward
        dtype = training_precision(model, self.device, self.wanted)
        self.contexts.enter_context(quick_attention(model, self.device, dtype))

        def loss(images: Tensor) -> Tensor:
            with precision(self.device, dtype):
                return F.cross_entropy(run(images), self.labels)

        return loss

    def step(self, loss: Callable[..., Tensor], parameters: list[nn.Parameter], *inputs: Tensor) -> Step:
        """A step as `adapt` does it: the loss of `inputs`, its gradients by `parameters`, an update of AdamW."""
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
        accumulator = Accumulator(loss, parameters, len(inputs[0]))
        accumulator.work = self.way(accumulator.plain)

        def step() -> None:
            _, gradients = accumulator.gradients(*inputs)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()

        return step

    def way(self, work: Work) -> Work:
        """How the work of a step is done: as it is, or recorded; all graphs share their memory."""
        if not self.recorded:
            return work
        replayed = Replayed(work)
        replayed.pool = self.pool
        self.graphs.append(replayed)
        return replayed

    def plain(self) -> nn.Module:
        """timm's own network with the source's weights, frozen."""
        return ready(merge(self.base(), image_size=self.pixels.shape[-1]), self.device)

    def base(self, **layout: Any) -> Base:
        """The source with such a layout, made once."""
        key = repr(layout)
        if key not in self.bases:
            self.bases[key] = mimic(self.source, plan_layout(self.source.modules, **layout))
        return self.bases[key]


def bare(batch: Batch, products: bool, names: str = "attn.qkv") -> Step:
    """Frozen forward, and backward down to what the first of the adapted modules gives."""
    model = batch.plain()
    adapted = [module for name, module in model.named_modules() if name.endswith(names)]

    def begin(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output.requires_grad_()

    def multiply(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        with torch.no_grad():
            F.linear(inputs[0], module.weight)

    adapted[0].register_forward_hook(begin)
    for module in adapted if products else ():
        module.register_forward_hook(multiply)
    loss = batch.loss(model, batch.head.to(batch.device))

    def work(images: Tensor) -> list[Tensor]:
        value = loss(images)
        value.backward()
        return [value.detach()]

    way = batch.way(work)
    return lambda: way(batch.images)


def recast(batch: Batch, layout: dict[str, Any], prepare: bool = False) -> Step:
    """What `adapt` does for a batch: coefficients and head; `prepare` from uint8, with crops and flips."""
    base = batch.base(**layout)
    model = ready(attach(base, image_size=batch.pixels.shape[-1]), batch.device)
    return learn(batch, model, coefficient_parameters(model, base), prepare)


def learn(batch: Batch, model: nn.Module, parameters: list[nn.Parameter], prepare: bool = False) -> Step:
    """What `adapt` does for a batch with these parameters of a network and a head."""
    head = nn.Parameter(batch.head.to(batch.device, copy=True))
    parameters = [*parameters, head]
    batch.contexts.enter_context(cheap_gradients(model))
    batch.contexts.enter_context(frozen_norms(model))
    loss = batch.loss(model, head)
    if not prepare:
        return batch.step(loss, parameters, batch.images)
    generator = torch.Generator().manual_seed(0)
    crops = draw_crops(len(batch.pixels), generator).to(batch.device)
    return batch.step(
        lambda pixels, crops: loss(augment(normalise(pixels, batch.data), crops)), parameters, batch.pixels, crops
    )


def with_peft(batch: Batch, config: Any) -> Step:
    """The same step with an adapter of PEFT's."""
    model = peft.get_peft_model(batch.plain(), config).get_base_model().to(batch.device).eval()
    head = nn.Parameter(batch.head.to(batch.device, copy=True))
    parameters = [*(each for each in model.parameters() if each.requires_grad), head]
    return batch.step(batch.loss(model, head), parameters, batch.images)


if __name__ == "__main__":
    main()
