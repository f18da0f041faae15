"""A training step of `adapt` with every adapter, alone and joined with RECAST, against PEFT's LoRA and DoRA.

    python tests/benchmarks/adapters.py --weights vit_tiny_patch16_224.safetensors
    python tests/benchmarks/adapters.py --model mobilenetv2_100

All at rank 1, on one timm model, batch and precision; PEFT's on qkv, where MeLo and DoRA are. On a convolutional
network the adapters for those are measured, and PEFT's on its pointwise convolutions. The bare loop is `step.py`'s.
Needs PEFT: pip install peft.
"""

from __future__ import annotations

from typing import Any

import peft
import torch
from common import arguments, race, report
from step import Step, add_step_options, bare, learn, make_batch, with_peft

from recast_cli.engine.adapt.learner import make_learner
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.task.options import AdaptOptions

TRANSFORMER = (("melo", "dora", "rosa", "rosa-mlp", "adaptformer"), r"blocks\.\d+\.attn\.qkv", "attn.qkv")
CONVOLUTIONS = (("piggyback", "clr"), r"blocks\..*\.conv_(pw|pwl)", "conv_stem")


def main() -> None:
    parser = arguments(__doc__)
    add_step_options(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    batch = make_batch(options)
    attention = any(name.endswith("attn.qkv") for name in batch.source.modules)
    names, modules, first = TRANSFORMER if attention else CONVOLUTIONS
    base = mimic(batch.source, plan_layout(batch.source.modules))

    def step(**given: Any) -> Step:
        chosen = AdaptOptions(image_size=options.image_size, **given)
        learner = make_learner(base, chosen, batch.device)
        return learn(batch, learner.model, learner.parameters)

    steps: dict[str, Step] = {"bare loop": bare(batch, products=False, names=first)}
    steps["PEFT LoRA r=1"] = with_peft(batch, peft.LoraConfig(r=1, target_modules=modules))
    steps["PEFT DoRA r=1"] = with_peft(batch, peft.LoraConfig(r=1, use_dora=True, target_modules=modules))
    steps["recast"] = step()
    for name in names:
        steps[name] = step(adapter=name, coefficients=False)
        steps[f"recast + {name}"] = step(adapter=name)

    seconds = race(steps, options.rounds, warmup=2, device=options.device)
    rows = [
        {
            "step": name,
            "ms": 1000 * value,
            "images/s": options.batch_size / value,
            "bare loop / it": seconds["bare loop"] / value,
            "PEFT LoRA / it": seconds["PEFT LoRA r=1"] / value,
            "PEFT DoRA / it": seconds["PEFT DoRA r=1"] / value,
        }
        for name, value in seconds.items()
    ]
    report("adapters", rows, options.json, model=options.model, image_size=options.image_size)


if __name__ == "__main__":
    main()
