"""`renderkiln convert`: the command's options, and how they become a conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from renderkiln.home.settings import load
from renderkiln.schema.errors import BadInputError, WorkerUnavailableError

from ..needs import CONVERTING, say_what_is_missing

if TYPE_CHECKING:
    from .options import ConvertOptions
    from .source import Source


def convert(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A diffusers folder, a .safetensors checkpoint, an installed model, or OWNER/NAME on the Hub."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write into.")] = None,
    format: Annotated[str, typer.Option(help="coreml, or coreai (macOS 26 and later).")] = "coreml",
    precision: Annotated[str, typer.Option(help="float16, or float32 throughout.")] = "float16",
    attention: Annotated[
        str,
        typer.Option(help="original (GPU), split-einsum or split-einsum-v2 (Neural Engine)."),
    ] = "original",
    width: Annotated[int | None, typer.Option(help="Pixels; the model's own unless told.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own unless told.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Several sizes in one model: 512x512,768x512.")] = None,
    unet_batch_one: Annotated[bool, typer.Option("--unet-batch-one", help="One latent a call, not two.")] = False,
    nbits: Annotated[int | None, typer.Option(help="Fewer bits for weights: 1, 2, 4, 6 or 8; Core AI: 4.")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Bits by layer: FILE for the UNet, or STAGE=FILE (repeatable).")
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(help="Fuse a LoRA: PATH or PATH:WEIGHT (repeatable).")] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(
            help="Convert a ControlNet, and a UNet that takes what it gives (repeatable).",
        ),
    ] = None,
    custom_vae: Annotated[str | None, typer.Option(help="Another VAE: folder or OWNER/NAME.")] = None,
    chunk_unet: Annotated[
        bool, typer.Option("--chunk-unet", help="Cut the UNet in two, for iPhones and iPads.")
    ] = False,
    stages: Annotated[str | None, typer.Option(help="These stages only: unet,vae_decoder …")] = None,
    deployment_target: Annotated[
        str,
        typer.Option(help="macOS13, macOS14 or macOS15."),
    ] = "macOS13",
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check", help="Run each stage beside its torch original; unless told, if that is quick."
        ),
    ] = None,
    bundle_for_swift: Annotated[
        bool,
        typer.Option("--bundle-for-swift", help="Lay out Resources/ for Swift."),
    ] = False,
    multilingual_projection: Annotated[
        Path | None, typer.Option(help="Convert a multilingual text encoder's projection (.safetensors; macOS 14).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a model on the Hub.")] = None,
    config: Annotated[Path | None, typer.Option(help="A diffusers folder that describes a checkpoint file.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of ledger, server and models.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    latent_h: Annotated[int | None, typer.Option(hidden=True)] = None,
    latent_w: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Convert a model to Core ML or Core AI, and check all stages.

    Works on any system.

    A stage that is there already, made with the same settings, is kept: the same command goes on where it was stopped.
    The flags of Apple's converter are accepted, too.

    Example: renderkiln convert shapes -o out --attention split-einsum --nbits 6
    """
    if model is None:
        raise BadInputError("which model? Say for example: renderkiln convert shapes -o out")
    if out is None:
        raise BadInputError("where to? Give a folder with -o")
    say_what_is_missing("converting", *CONVERTING["coreml" if format == "coreml" else "torch"])
    from renderkiln.home.folder import DataFolder

    from .options import Lora, make_options, parse_recipe, parse_sizes
    from .source import find_source

    settings: dict[str, Any] = {
        "format": format,
        "precision": precision,
        "attention": attention,
        "unet_batch_one": unet_batch_one,
        "loras": tuple(Lora.parse(text) for text in lora or ()),
        "nbits": nbits,
        "recipes": tuple(parse_recipe(text) for text in recipe or ()),
        "chunk_unet": chunk_unet,
        "stages": tuple(part.strip() for part in stages.split(",")) if stages else (),
        "target": deployment_target,
        "check": check,
        "sizes": parse_sizes(sizes) if sizes else (),
    }
    if format == "coreai":
        _check_coreai()
        if bundle_for_swift or multilingual_projection:
            flag = "--bundle-for-swift" if bundle_for_swift else "--multilingual-projection"
            raise BadInputError(f"{flag} goes with --format coreml; a folder of Core AI assets is a bundle as it is")
    make_options(**settings)  # what is wrong is said before anything is fetched
    if sizes and (width or height or latent_h or latent_w):
        raise BadInputError("--sizes and --width or --height both say which size; give one of them")
    source = find_source(
        model,
        DataFolder(load(data_dir=data_dir).data_dir),
        revision=revision,
        config=config,
        custom_vae=custom_vae,
        controlnets=tuple(controlnet or ()),
        projection=multilingual_projection,
    )
    if width or height or latent_w or latent_h:
        settings["sizes"] = (_size(source, (width, height), (latent_w, latent_h)),)
    _convert(source, make_options(**settings), out, bundle_for_swift, as_json)


def _check_coreai() -> None:
    from ..runtimes.coreai.system import why_not

    lacking = why_not()
    if lacking is not None:
        raise WorkerUnavailableError(f"converting to Core AI {lacking}; --format coreml works on every system")


def _size(
    source: Source, pixels: tuple[int | None, int | None], latents: tuple[int | None, int | None]
) -> tuple[int, int]:
    """Width and height in pixels: what was given in pixels, or as Apple counts in latents, or the model's own."""
    from ..models.weights import read_json
    from .source import component_folder

    scale = 2 ** (len(read_json(component_folder(source, "vae") / "config.json")["block_out_channels"]) - 1)
    own = read_json(source.folder / "unet" / "config.json").get("sample_size")
    height, width = (own, own) if isinstance(own, int) or own is None else own
    found = []
    for given, latent, default in zip(pixels, latents, (width, height), strict=True):
        size = given or (latent or default or 0) * scale
        if not size:
            raise BadInputError("the model does not say which size it was made for; give both --width and --height")
        found.append(size)
    return found[0], found[1]


def _convert(source: Source, options: ConvertOptions, out: Path, bundle_for_swift: bool, as_json: bool) -> None:
    from rich.console import Console

    from . import display
    from .bundle import make_bundle
    from .ending import signals_as_ctrl_c
    from .run import convert as run

    errors = Console(stderr=True)
    left = "the stages that are done are kept, and the same command goes on from there"
    with signals_as_ctrl_c(left), display.ProgressWatcher(errors) as watcher:
        report = run(source, options, out, watcher)
        bundle = make_bundle(out, report.manifest) if bundle_for_swift else None
    unchecked = [name for name, info in report.manifest.stages.items() if info.check is None]
    if unchecked and options.check is None:
        # Core ML's stages always are.
        errors.print(
            f"not checked: {', '.join(unchecked)}. Core AI's interpreter takes hours for stages of this size; "
            "on macOS 27 they are checked, and --check insists.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if report.no_picture is not None:
        errors.print(f"no self-test picture was drawn: {report.no_picture}", markup=False, highlight=False)
    if as_json:
        print(json.dumps(display.as_json(report, out, bundle), indent=2))
        return
    console = Console()
    console.print(display.table(report))
    console.print(
        f"{out}: {report.manifest.model}, {report.manifest.variant}", markup=False, highlight=False, soft_wrap=True
    )
    if bundle is not None:
        console.print(f"{bundle.folder}: for Swift", markup=False, highlight=False, soft_wrap=True)
        if bundle.left_out:
            console.print(
                f"Left out: {', '.join(bundle.left_out)}. Compiling takes macOS with Xcode: run the same command "
                "there, and what is converted is kept.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
