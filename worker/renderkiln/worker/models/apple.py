"""Apple's layouts of converted models, for Core ML and for Core AI.

What files and folders are called in them, and what Apple's repositories were made of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..runtimes.coreai.asset import SUFFIX as ASSET_SUFFIX
from ..runtimes.naming import XCODE_NAMES, controlnet_stage, safe_name
from .layout import VARIANTS, Variant

PACKAGE, COMPILED, ASSET = ".mlpackage", ".mlmodelc", ASSET_SUFFIX
#: Whose small files go with Apple's repositories, which have none.
ORIGINALS: Mapping[str, str] = {
    "apple/coreml-stable-diffusion-v1-4": "CompVis/stable-diffusion-v1-4",
    "apple/coreml-stable-diffusion-1-4-palettized": "CompVis/stable-diffusion-v1-4",
    "apple/coreml-stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "apple/coreml-stable-diffusion-v1-5-palettized": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "apple/coreml-stable-diffusion-2-base": "stabilityai/stable-diffusion-2-base",
    "apple/coreml-stable-diffusion-2-base-palettized": "stabilityai/stable-diffusion-2-base",
    "apple/coreml-stable-diffusion-2-1-base": "stabilityai/stable-diffusion-2-1-base",
    "apple/coreml-stable-diffusion-2-1-base-palettized": "stabilityai/stable-diffusion-2-1-base",
    "apple/coreml-stable-diffusion-xl-base": "stabilityai/stable-diffusion-xl-base-1.0",
    "apple/coreml-stable-diffusion-xl-base-ios": "stabilityai/stable-diffusion-xl-base-1.0",
    "apple/coreml-stable-diffusion-xl-base-with-refiner": "stabilityai/stable-diffusion-xl-base-1.0",
}
#: By what Xcode's names are in small letters.
_COMPILED_STAGES = {name.casefold(): stage for stage, name in XCODE_NAMES.items()}
_PACKAGE_STAGES = tuple(_COMPILED_STAGES.values())
_CHUNK = re.compile(r"(.*?)_?chunk([12])", re.IGNORECASE)
_CONTROLNET = "ControlNet_"


@dataclass(frozen=True)
class Part:
    """What a package or a compiled model is: a stage, or one chunk of it."""

    stage: str
    #: 1 or 2; 0 for a stage in one piece.
    chunk: int = 0


def part_of(file: str, *, in_controlnet_folder: bool = False) -> Part | None:
    """What a package is, by its name; None for what rendering does not use, such as a refiner.

    Args:
        file: the last part of its path.
        in_controlnet_folder: whether that folder is `controlnet/`, where Apple's compiled ControlNets lie.
    """
    stem, dot, suffix = file.rpartition(".")
    if f"{dot}{suffix}" not in (PACKAGE, COMPILED, ASSET):
        return None
    if in_controlnet_folder or stem.startswith(_CONTROLNET):
        return Part(controlnet_stage(stem.removeprefix(_CONTROLNET)))
    chunk = 0
    found = _CHUNK.fullmatch(stem)
    if found:
        stem, chunk = found[1], int(found[2])
    compiled = _COMPILED_STAGES.get(stem.casefold())
    # The longest name that fits: a text_encoder_2 is no vae_encoder, and a control-unet no unet.
    fitting = [stage for stage in _PACKAGE_STAGES if stem == stage or stem.endswith(f"_{stage}")]
    stage = compiled or max(fitting, key=len, default=None)
    return Part(stage, chunk) if stage else None


def file_name(file: str, *, in_controlnet_folder: bool) -> str:
    """What a package is called in a folder of ours, where ControlNets lie beside the others."""
    stem, _, suffix = file.rpartition(".")
    prefix = _CONTROLNET if in_controlnet_folder and not stem.startswith(_CONTROLNET) else ""
    return f"{prefix}{safe_name(stem)}.{suffix}"


def variant_of(folder: str) -> Variant | None:
    """The variant that a folder's name means, in either spelling, or None."""
    name = folder.casefold().replace("_", "-")
    return next((variant for variant in VARIANTS if variant == name), None)
