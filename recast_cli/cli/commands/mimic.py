"""`recast mimic`: checkpoint -> base."""

import time
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from recast_cli.cli.options import Debug, Device, Json, Quiet
from recast_cli.cli.output import Output
from recast_cli.cli.startup import prepare
from recast_cli.cli.views.mimic import show, show_plan, summary
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import BUDGET
from recast_cli.engine.layout.published import PAPER_LAYOUTS
from recast_cli.engine.mimic.decompose.solver_options import GradientOptions, VaeOptions
from recast_cli.engine.mimic.options import MimicOptions
from recast_cli.engine.storage.atomic import check_writable
from recast_cli.engine.units import percent

Layouts = " | ".join(PAPER_LAYOUTS)


def defaults(option: str) -> str:
    """What an option of a solver is where it is not given, for its help."""
    own, other = getattr(GradientOptions, option, None), getattr(VaeOptions, option, None)
    return f"default: {own}" if other in (own, None) else f"default: {own}, vae {other}"


def mimic(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="timm name, hf-hub:org/name, weight file or index of shards, or folder with config.json.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the base goes.")],
    architecture: Annotated[
        str | None, typer.Option(metavar="NAME", help="timm name of the network in a weight file.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Local weights for a timm name.")] = None,
    layout: Annotated[str | None, typer.Option(metavar="NAME", help=f"A published layout: {Layouts}.")] = None,
    modules: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Modules to take, e.g. 'blocks.*.mlp.fc1'. Repeatable.")
    ] = None,
    groups: Annotated[int | None, typer.Option(help="Groups per role and shape.  [default: pairs of layers]")] = None,
    templates: Annotated[
        int | None, typer.Option(help="Templates a bank.  [default: layers in each group, which is exact]")
    ] = None,
    sets: Annotated[int | None, typer.Option(help="Coefficient sets a module.  [default: 2 within the budget]")] = None,
    budget: Annotated[int, typer.Option(help="Most coefficients of a layout that the tool picks.")] = BUDGET,
    solver: Annotated[str, typer.Option(metavar="exact|gradient|vae", help="How templates are found.")] = "exact",
    loss: Annotated[
        str | None, typer.Option(metavar="smooth-l1|mse", help=f"gradient, vae.  [{defaults('loss')}]")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help=f"gradient: noise on coefficients.  [{defaults('noise')}]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help=f"gradient, vae: steps a bank.  [{defaults('steps')}]")] = None,
    lr: Annotated[float | None, typer.Option(help=f"gradient, vae: learning rate.  [{defaults('lr')}]")] = None,
    seed: Annotated[int | None, typer.Option(help=f"gradient, vae.  [{defaults('seed')}]")] = None,
    kl: Annotated[bool, typer.Option("--kl", help="vae: sample, and add the KL term.")] = False,
    dtype: Annotated[
        str, typer.Option(metavar="float32|bfloat16|float16", help="Stored type of the templates.")
    ] = "float32",
    size: Annotated[
        str | None, typer.Option(metavar="4x|6MB", help="Compress the base to so little, by entropy coding.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Compress: 2 to 8 bits a weight, or 16.")] = None,
    group_size: Annotated[
        int | None, typer.Option(help="With --bits: weights that share a scale.  [default: 64]")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compress: round by what these images need; no labels.")
    ] = None,
    heal: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Fit shared templates to what these images need; no labels.")
    ] = None,
    verify: Annotated[Path | None, typer.Option(metavar="DIR", help="Compare base and source on these images.")] = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rewrite a checkpoint's weights as mixtures of shared templates.

    \b
        recast mimic vit_small_patch16_224 -o base.safetensors
        recast mimic vit_tiny_patch16_224 --weights vit.safetensors -o base.safetensors
        recast mimic weights.pth --architecture resnet50 --layout paper-resnet -o base.safetensors
        recast mimic vit_base_patch16_224 --modules 'blocks.*.mlp.fc?' --templates 1 -o base.safetensors
        recast mimic vit_tiny_patch16_224 --size 6x --calibrate images -o small.safetensors
        recast mimic vit_tiny_patch16_224 --modules 'blocks.*' --groups 1 --templates 9 --heal images -o b.safetensors
    """
    given = locals() | {"modules": tuple(pattern for each in modules or () for pattern in each.split(","))}
    out = Output(as_json, quiet)
    started = time.perf_counter()
    check_writable(output)
    options = MimicOptions(**{each.name: given[each.name] for each in fields(MimicOptions)})
    options.check_images(calibrate, heal)
    prepare(device, runs_networks=calibrate is not None or heal is not None)
    check_output(output, Path(source.removeprefix("local-dir:")), weights)
    from recast_cli.engine.mimic.make_base import make_base
    from recast_cli.engine.source.open import open_source

    opened = open_source(source, architecture, weights)
    plan = options.plan(opened.modules)
    if plan.coefficients > budget:
        out.note(f"note: {plan.coefficients} coefficients, over the budget of {budget}; built as asked.")
    with out.progress() as progress:
        base = make_base(
            opened,
            options,
            file=output,
            calibrate=calibrate,
            heal=heal,
            verify=verify,
            device=device,
            announce=lambda chosen: out.explain(lambda console: show_plan(console, chosen, plan)),
            progress=progress,
        )
    if heal is None and not all(bank.exact for bank in plan.banks):
        lossy = max(error["relative_error"] for error in base.errors.values())
        out.warn(
            f"fewer templates than layers lose weights: the worst module keeps {percent(max(0.0, 1 - lossy**2))} of "
            "its energy, and accuracy goes with it; leave out --templates to be exact, or --heal with images."
        )
    value = summary(opened, base, time.perf_counter() - started)
    out.result(value, lambda console: show(console, base, value))


def check_output(output: Path, source: Path, weights: Path | None) -> None:
    """Raise RecastError where the base would replace what it is made from: a file, or one in the source's folder."""
    if not output.exists():
        return
    from recast_cli.engine.source.checkpoint import files_of

    given = [*(source.iterdir() if source.is_dir() else files_of(source)), *(files_of(weights) if weights else [])]
    if any(file.exists() and output.samefile(file) for file in given):
        raise RecastError(f"{output} is the source itself", "Give the base another name.")
