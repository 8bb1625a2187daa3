"""Where the converted stages lie in a folder of the model store.

Either the packages and their `manifest.json` lie beside the small files, as `renderkiln convert` writes them: one
variant. Or each variant has a folder of its own below them, with its own `manifest.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from renderkiln.schema.errors import ModelLoadError

from ..runtimes import manifest

#: How the attention of a UNet is written that was converted to Core ML, as manifests and folders name it.
CoreMLVariant = Literal["original", "split-einsum", "split-einsum-v2"]
#: Those, and Core AI's only one.
Variant = Literal["original", "split-einsum", "split-einsum-v2", "coreai"]
COREML_VARIANTS: tuple[CoreMLVariant, ...] = get_args(CoreMLVariant)
VARIANTS: tuple[Variant, ...] = get_args(Variant)
COREAI: Literal["coreai"] = "coreai"


def variants(folder: Path) -> dict[str, Path]:
    """The folders with a manifest of converted stages, by the variant that the manifest names.

    Empty for a model that is here in diffusers' layout alone. Only manifests are read; `manifest.load` compares one
    with its files.

    Raises:
        ModelLoadError: a manifest is not one of ours, or names another variant than its folder does.
    """
    found: dict[str, Path] = {}
    if (folder / manifest.FILE_NAME).is_file():
        found[manifest.read(folder).variant] = folder
    for name in VARIANTS:
        below = folder / name
        if not (below / manifest.FILE_NAME).is_file():
            continue
        variant = manifest.read(below).variant
        if variant != name:
            raise ModelLoadError(f"{below / manifest.FILE_NAME} says that it is {variant}; its folder says {name}")
        if name in found:
            raise ModelLoadError(f"{folder} holds the variant {name} twice: beside its small files, and in {below}")
        found[name] = below
    return found
