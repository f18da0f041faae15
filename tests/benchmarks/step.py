"""A training step of `adapt` against a bare loop and against PEFT, on one timm model, batch and precision.

    python tests/benchmarks/step.py --weights vit_tiny_patch16_224.safetensors
    python tests/benchmarks/step.py --model vit_small_patch16_224 --image-size 224 --batch-size 128 --device cuda

The bare loop is what cannot be left out: the frozen forward pass, and the backward pass of activations alone down to
the first adapted module; no optimiser, no gradient of any parameter. A second bare loop has one product more for each
adapted module, which is what two templates a module need. Precision and attention are those of `adapt`, for all alike.
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

from recast_cli.engine.attach import attach, coefficient_parameters
from recast_cli.engine.batch import Accumulator
from recast_cli.engine.frozen_norms import frozen_norms
from recast_cli.engine.gradients import cheap_gradients
from recast_cli.engine.images import normalise
from recast_cli.engine.mimic import mimic
from recast_cli.engine.network import features
from recast_cli.engine.plan import plan_layout
from recast_cli.engine.run import augment, draw_windows, precision, quick_attention, ready, training_precision
from recast_cli.engine.source import Source

CLASSES = 50
Step = Callable[[], object]


def main() -> None:
    parser = arguments(__doc__)
    add_step_options(parser)
    options = parser.parse_args()
    batch = make_batch(options)
    source, device, size, count = batch.source, batch.device, options.image_size, options.batch_size

    one = {"patterns": ["blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc1", "blocks.*.mlp.fc2"]}
    depth = sum(name.endswith("attn.qkv") for name in source.modules)
    steps: dict[str, Step] = {
        "bare loop": bare(batch, products=False),
        "bare loop, one more product for each qkv": bare(batch, products=True),
        "recast, 1 template, qkv proj fc1 fc2": recast(batch, one | {"groups": depth, "templates": 1, "sets": 1}),
        "the same from uint8, with windows and flips": recast(
            batch, one | {"groups": depth, "templates": 1, "sets": 1}, prepare=True
        ),
        "recast, 1 template, qkv alone": recast(
            batch, {"patterns": ["blocks.*.attn.qkv"], "groups": depth, "templates": 1, "sets": 1}
        ),
        "recast, 2 templates (paper-attention)": recast(batch, {"layout": "paper-attention"}),
        "PEFT LoRA r=1 on qkv": with_peft(batch, peft.LoraConfig(r=1, target_modules=r"blocks\.\d+\.attn\.qkv")),
        "PEFT TinyLoRA on qkv": with_peft(batch, peft.TinyLoraConfig(target_modules=r"blocks\.\d+\.attn\.qkv")),
    }

    seconds = race(steps, options.rounds, warmup=2, device=options.device)
    with FlopCounterMode(display=False) as counter:
        steps["bare loop"]()
    flops = counter.get_total_flops()
    rate = matrix_rate(options.device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    rows = [
        {
            "step": name,
            "ms": 1000 * value,
            "images/s": count / value,
            "bare loop / it": seconds["bare loop"] / value,
            "LoRA / it": seconds["PEFT LoRA r=1 on qkv"] / value,
            "of the matrix rate": flops / value / rate,
        }
        for name, value in seconds.items()
    ]
    two = seconds["bare loop, one more product for each qkv"] / seconds["recast, 2 templates (paper-attention)"]
    report(
        "step",
        rows,
        options.json,
        model=options.model,
        image_size=size,
        batch_size=count,
        precision=options.precision,
        products_bare_over_two_templates=two,
        matrix_flop_per_second=rate,
    )
    print(f"\nbare loop with one more product / recast with 2 templates: {two:.3f}")


def add_step_options(parser: argparse.ArgumentParser) -> None:
    """Options of a step: the network's, and how it is run."""
    add_network_options(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile every network, the bare one too")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16 (default: %(default)s)")


def make_batch(options: argparse.Namespace) -> Batch:
    """A batch of random pictures for the network that the options name."""
    torch.manual_seed(0)
    device, size, count = torch.device(options.device), options.image_size, options.batch_size
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8).to(device)
    labels = torch.arange(count, device=device) % CLASSES
    return Batch(pixels, labels, open_network(options), device, options.compile, options.precision)


class Batch:
    """What all steps share: pictures, labels, the source, and how a network is run."""

    def __init__(
        self, pixels: Tensor, labels: Tensor, source: Source, device: torch.device, compiled: bool, wanted: str
    ) -> None:
        self.pixels, self.labels, self.source, self.device, self.compiled = pixels, labels, source, device, compiled
        assert source.architecture is not None
        self.data: dict[str, Any] = source.architecture.data
        self.images = normalise(pixels, self.data)
        self.wanted = wanted
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

    def plain(self) -> nn.Module:
        """timm's own network with the source's weights, frozen."""
        size = self.pixels.shape[-1]
        base = mimic(self.source, plan_layout(self.source.modules))
        from recast_cli.engine.attach import merge

        return ready(merge(base, image_size=size), self.device)


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

    def step() -> None:
        loss(batch.images).backward()

    return step


def recast(batch: Batch, layout: dict[str, Any], prepare: bool = False) -> Step:
    """What `adapt` does for a batch: coefficients and head; `prepare` from uint8, with windows and flips."""
    base = mimic(batch.source, plan_layout(batch.source.modules, **layout))
    model = ready(attach(base, image_size=batch.pixels.shape[-1]), batch.device)
    return learn(batch, model, coefficient_parameters(model, base), prepare)


def learn(batch: Batch, model: nn.Module, parameters: list[nn.Parameter], prepare: bool = False) -> Step:
    """What `adapt` does for a batch with these parameters of a network and a head."""
    head = nn.Parameter(batch.head.to(batch.device, copy=True))
    parameters = [*parameters, head]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    batch.contexts.enter_context(cheap_gradients(model))
    batch.contexts.enter_context(frozen_norms(model))
    loss = batch.loss(model, head)
    accumulator, rows = Accumulator(len(batch.labels)), torch.arange(len(batch.labels), device=batch.device)
    generator = torch.Generator().manual_seed(0)

    def images() -> Tensor:
        if not prepare:
            return batch.images
        windows = draw_windows(len(rows), generator).to(batch.device)
        return augment(normalise(batch.pixels[rows], batch.data), windows)

    def step() -> None:
        _, gradients = accumulator.gradients(lambda part: loss(images()), rows, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step


def with_peft(batch: Batch, config: Any) -> Step:
    """The same step with an adapter of PEFT's."""
    model = peft.get_peft_model(batch.plain(), config).get_base_model().to(batch.device).eval()
    head = nn.Parameter(batch.head.to(batch.device, copy=True))
    parameters = [*(each for each in model.parameters() if each.requires_grad), head]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    loss = batch.loss(model, head)

    def step() -> None:
        optimizer.zero_grad()
        loss(batch.images).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
