"""`recast mimic`: checkpoint -> base."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recast_cli.cli.options import Debug, Device, Json, Quiet
from recast_cli.cli.output import Output, percent
from recast_cli.cli.startup import import_torch
from recast_cli.cli.views.mimic import show, summary
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import BUDGET
from recast_cli.engine.layout.published import PAPER_LAYOUTS

if TYPE_CHECKING:
    from recast_cli.engine.base.base import Base
    from recast_cli.engine.layout.layout import Layout
    from recast_cli.engine.measure.verify import Verification
    from recast_cli.engine.progress import Progress
    from recast_cli.engine.source.source import Source

Layouts = " | ".join(PAPER_LAYOUTS)


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
        str | None, typer.Option(metavar="smooth-l1|mse", help="gradient, vae.  [default: smooth-l1]")
    ] = None,
    noise: Annotated[float | None, typer.Option(help="gradient: noise on coefficients.  [default: 1e-4]")] = None,
    steps: Annotated[int | None, typer.Option(help="gradient, vae: steps a bank.  [default: 1000, vae 2500]")] = None,
    lr: Annotated[float | None, typer.Option(help="gradient, vae: learning rate.  [default: 0.1, vae 2e-3]")] = None,
    seed: Annotated[int | None, typer.Option(help="gradient, vae.  [default: 0]")] = None,
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
    out = Output(as_json, quiet)
    started = time.perf_counter()
    from recast_cli.engine.storage.atomic import check_writable

    check_writable(output)
    import_torch()
    check_output(output, Path(source.removeprefix("local-dir:")), weights)
    from recast_cli.engine.mimic.decompose.solver_options import solver_options

    options = solver_options(solver, loss=loss, noise=noise, steps=steps, lr=lr, seed=seed, kl=kl or None)
    from recast_cli.engine.layout.plan import plan_layout
    from recast_cli.engine.mimic.decompose.decompose import mimic as make_base
    from recast_cli.engine.runtime.device import choose_device
    from recast_cli.engine.source.open import open_source

    compressing = any(value is not None for value in (size, bits, group_size))
    check_stored(dtype, compressing, calibrate, heal)
    choose_device(device)
    opened = open_source(source, architecture, weights)
    plan = plan_layout(
        opened.modules,
        layout=layout,
        patterns=[pattern for each in modules or () for pattern in each.split(",")],
        groups=groups,
        templates=templates,
        sets=sets,
        budget=budget,
    )
    if plan.coefficients > budget:
        out.note(f"note: {plan.coefficients} coefficients, over the budget of {budget}; built as asked.")
    check_unlabelled(opened, plan, heal, verify)
    unfinished = output.with_name(f".{output.name}.heal")
    healed = None
    with out.progress() as progress:
        if heal is not None:
            from recast_cli.engine.images.unlabelled import read_images
            from recast_cli.engine.mimic.heal.heal import HEALING_IMAGES
            from recast_cli.engine.mimic.heal.heal import heal as heal_base

            assert opened.architecture is not None
            pixels = read_images(heal, opened.architecture, progress, most=HEALING_IMAGES)
            healed = make_base(opened, plan, options=options, dtype=dtype, progress=progress)
            healed = heal_base(opened, healed, pixels, device=device, state_path=unfinished, progress=progress)
        if compressing:
            from recast_cli.cli.views.compression import show_plan, wanted_bytes
            from recast_cli.engine.mimic.compress.compress import compress

            base = compress(
                opened,
                plan,
                options=options,
                size=wanted_bytes(size, opened),
                bits=bits,
                group=group_size,
                calibrate=calibrate,
                base=healed,
                path=output,
                device=device,
                announce=lambda chosen: out.explain(lambda console: show_plan(console, chosen, plan)),
                progress=progress,
            )
        elif healed is not None:
            from recast_cli.engine.base.file import save_base

            base = save_base(healed, output)
        else:
            base = make_base(opened, plan, options=options, dtype=dtype, path=output, progress=progress)
    unfinished.unlink(missing_ok=True)
    lossy = max(error["relative_error"] for error in base.errors.values())
    if healed is None and not all(bank.exact for bank in plan.banks):
        out.warn(
            f"fewer templates than layers lose weights: the worst module keeps {percent(max(0.0, 1 - lossy**2))} of "
            "its energy, and accuracy goes with it; leave out --templates to be exact, or --heal with images."
        )
    verification = None
    if verify is not None:
        with out.progress() as progress:
            base, verification = verify_with(verify, opened, base, output, device, progress)
    value = summary(opened, base, time.perf_counter() - started, verification)
    out.result(value, lambda console: show(console, base, value))


def check_stored(dtype: str, compressing: bool, calibrate: Path | None, heal: Path | None) -> None:
    """Raise RecastError where options that say how weights are stored do not go together."""
    from recast_cli.engine.mimic.decompose.manifest import DTYPES

    if dtype not in DTYPES:
        raise RecastError(f"--dtype {dtype} is unknown", f"Use {', '.join(DTYPES)}.")
    if calibrate is not None and not compressing:
        raise RecastError("--calibrate decides how weights are rounded", "Give --size or --bits, too, or leave it out.")
    if heal is not None and compressing and calibrate is None:
        raise RecastError("--heal with --size or --bits needs --calibrate", "The same folder will do.")
    if compressing and dtype != "float32":
        raise RecastError(f"--dtype {dtype} does not go with --size and --bits", "Leave it out; --bits 16 is float16.")


def check_unlabelled(source: Source, layout: Layout, heal: Path | None, verify: Path | None) -> None:
    """Raise RecastError where images will be of no use: now, before a solver may have run for long."""
    if verify is not None:
        from recast_cli.engine.measure.verify import check_verifiable

        check_verifiable(source, verify)
    if heal is not None:
        from recast_cli.engine.images.unlabelled import list_images
        from recast_cli.engine.mimic.heal.heal import HEALING_IMAGES, check_healable

        check_healable(source, layout)
        list_images(heal, HEALING_IMAGES)


def verify_with(
    images: Path, source: Source, base: Base, output: Path, device: str | None, progress: Progress | None
) -> tuple[Base, Verification]:
    """What is left of the source on these images, and the base with that in its file, so that it travels with it."""
    from recast_cli.engine.base.file import save_base
    from recast_cli.engine.measure.verify import verify

    found = verify(source, base, images, device=device, progress=progress)
    return save_base(replace(base, verified=asdict(found)), output), found


def check_output(output: Path, source: Path, weights: Path | None) -> None:
    """Raise RecastError where the base would replace what it is made from: a file, or one in the source's folder."""
    if not output.exists():
        return
    from recast_cli.engine.source.checkpoint import files_of

    given = [*(source.iterdir() if source.is_dir() else files_of(source)), *(files_of(weights) if weights else [])]
    if any(file.exists() and output.samefile(file) for file in given):
        raise RecastError(f"{output} is the source itself", "Give the base another name.")
