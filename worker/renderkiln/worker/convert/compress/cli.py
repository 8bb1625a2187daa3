"""`renderkiln compress` and `renderkiln recipe`: the commands' options, and what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from renderkiln.schema.errors import BadInputError

from ...needs import CONVERTING, say_what_is_missing

if TYPE_CHECKING:
    from .targets import Target

#: How many of the most sensitive layers are shown.
_SHOWN = 12


def add_commands(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command("compress")(compress)
    app.command("recipe")(recipe)


def compress(
    source: Annotated[
        Path | None, typer.Argument(help="A .mlpackage, or a folder of converted models.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="What to write; must not exist yet.")] = None,
    nbits: Annotated[int | None, typer.Option(help="Bits per weight: 1, 2, 3, 4, 6 or 8.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Bits by layer: .json or .yaml. --nbits then counts for all other layers.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare outputs with those of the original.")
    ] = True,
    samples: Annotated[int, typer.Option(help="Sets of random inputs to compare on.", min=1, max=64)] = 2,
    seed: Annotated[int, typer.Option(help="Of the random inputs.", min=0, max=2**31)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Make Core ML models smaller: few bits for each weight.

    Weights become indices of few bits into small palettes. Works on any system.

    Of a folder, text encoders, UNets and ControlNets are compressed, as by Apple's converter, and the rest is copied.
    PSNR is that of the output that suffers most, on random inputs, against the model as it was.

    Example: renderkiln compress out -o out-6bit --nbits 6
    """
    if source is None:
        raise BadInputError("what shall be compressed? Say for example: renderkiln compress out -o out-6bit --nbits 6")
    if out is None:
        raise BadInputError("where to? Give a new package or folder with -o")
    _check_exists(source)
    if nbits is None and recipe is None:
        raise BadInputError("how small? Give --nbits or --recipe; `renderkiln recipe` makes a recipe for a size")
    say_what_is_missing("compressing", *CONVERTING["coreml"])
    from rich.console import Console

    from ..ending import signals_as_ctrl_c
    from . import display
    from .folder import Comparison
    from .folder import compress as run
    from .recipe_file import read_recipe

    layers = read_recipe(recipe) if recipe is not None else None
    comparison = Comparison(samples=samples, seed=seed) if check else None
    with signals_as_ctrl_c("nothing was written"), display.bars(Console(stderr=True)) as tell:
        reports = run(source, out, nbits=nbits, recipe=layers, comparison=comparison, progress=tell)
    if as_json:
        print(json.dumps(display.stages_as_json(reports, out), indent=2))
        return
    console = Console()
    console.print(display.stage_table(reports))
    for each in reports:
        if check and each.unchecked:
            console.print(f"{each.stage} was not compared: {each.unchecked}", markup=False, highlight=False)
    console.print(str(out), markup=False, highlight=False, soft_wrap=True)


def recipe(
    package: Annotated[Path | None, typer.Argument(help="A .mlpackage.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The recipe: a new .json or .yaml file.")] = None,
    nbits: Annotated[str, typer.Option(help="Bits to choose from; 16 leaves a layer as it is.")] = "2,4,6,8,16",
    target_size: Annotated[
        str | None, typer.Option(help="0.5x of the package, 900MB, or 4.2bits of the average weight.")
    ] = None,
    target_psnr: Annotated[float | None, typer.Option(help="In dB: the smallest that is at least as good.")] = None,
    measurements: Annotated[
        Path | None,
        typer.Option(help="Keep what is measured in this file, and go on from it: other targets are quick."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Sets of random inputs to measure on.", min=1, max=64)] = 2,
    seed: Annotated[int, typer.Option(help="Of the random inputs.", min=0, max=2**31)] = 0,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run once with all layers at the bits chosen.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Measure which layers suffer from few bits; write a recipe.

    The recipe gives each layer its own bits, for a size or a quality.

    Each layer alone is compressed to each number of bits, and the model's outputs are compared: one run of the model
    for each. Nothing is converted anew, and the package stays as it is.

    Example: renderkiln recipe unet.mlpackage -o recipe.json --target-size 4.2bits --measurements unet.json
    """
    from .recipe_file import check_new, write_recipe
    from .targets import Target, parse_size, parse_widths

    if package is None:
        raise BadInputError("which package? Say for example: renderkiln recipe unet.mlpackage -o recipe.json …")
    if out is None:
        raise BadInputError("where to? Give a new .json or .yaml file with -o")
    if (target_size is None) == (target_psnr is None):
        raise BadInputError("give --target-size or --target-psnr, and not both")
    target: Target = parse_size(target_size) if target_size is not None else Target("psnr", target_psnr or 0.0)
    widths = parse_widths(nbits)
    check_new(out)
    _check_exists(package)
    if package.is_dir() and package.suffix != ".mlpackage":
        raise BadInputError(f"{package} is a folder; a recipe is made for one package in it, say its UNet")
    say_what_is_missing("compressing", *CONVERTING["coreml"])
    from rich.console import Console

    from ..ending import signals_as_ctrl_c
    from . import display
    from .analysis import Verifier, make_plan, plan_and_verify, predicted_bytes
    from .palettize import average_bits
    from .recipe import UNTOUCHED, of_layers
    from .sensitivity import measure

    measured: float | None = None
    with (
        signals_as_ctrl_c("what was measured is in the file of --measurements, if one was given"),
        display.bars(Console(stderr=True)) as tell,
    ):
        found = measure(
            package,
            [width for width in widths if width != UNTOUCHED],
            samples=samples,
            seed=seed,
            keep=measurements,
            progress=lambda what, done, of: tell(package.stem, what, done, of),
        )
        plan = make_plan(found, widths, target)  # before the model is loaded again: it may be out of reach
        if verify:
            plan, measured = plan_and_verify(found, widths, target, Verifier(package, samples, seed))
    average = average_bits({each.name: (each.elements, plan.bits[each.name]) for each in found.layers})
    most = predicted_bytes(found, plan.bits)
    wanted = target_size or f"{target_psnr:g} dB"
    write_recipe(out, of_layers(plan.bits, note=f"{package.name} for {wanted}: {plan.psnr:.1f} dB predicted"))
    if as_json:
        print(json.dumps(display.plan_as_json(found, plan, average, most, measured, out), indent=2))
        return
    console = Console()
    console.print(display.layer_table(found, plan, widths, _SHOWN))
    lines = [
        f"The {min(_SHOWN, len(found.layers))} most sensitive of {len(found.layers)} layers: "
        "PSNR, in dB, of the outputs with this layer alone compressed.",
        f"{average:.2f} bits a weight, {most / 1e6:,.2f} MB at the most (now {found.package_bytes / 1e6:,.2f}), "
        f"predicted {plan.psnr:.1f} dB" + ("" if measured is None else f", measured {measured:.1f} dB"),
    ]
    if target_psnr is not None and measured is not None and measured < target_psnr:
        lines.append(f"That is less than {target_psnr:g} dB: allow more bits with --nbits.")
    lines.append(str(out))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise BadInputError(f"{path} does not exist")
