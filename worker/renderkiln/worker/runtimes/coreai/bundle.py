"""`metadata.json` of a folder of Core AI assets, as Apple's `coreai.diffusion.export` writes it: a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from renderkiln.home.json_files import read_small
from renderkiln.schema.errors import ModelLoadError

FILE_NAME = "metadata.json"
KIND, VERSION = "diffusion", "0.2"
#: What it calls the kinds of pipelines that are known here, by the manifest's family.
TYPES: Mapping[str, str] = {"sd": "stable-diffusion", "sdxl": "stable-diffusion-xl"}
_LIMIT = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """What a bundle says of itself."""

    #: stable-diffusion, stable-diffusion-3, flux2 …
    type: str
    #: The repository of the model that it was made of.
    original: str | None


def read_bundle(folder: Path) -> Bundle | None:
    """What a folder's `metadata.json` says; None where there is none, or none of a diffusion model's.

    Raises:
        ModelLoadError: it cannot be read.
    """
    try:
        said = read_small(folder / FILE_NAME, _LIMIT, "the description of a bundle of Core AI assets")
    except FileNotFoundError:
        return None
    if not isinstance(said, dict) or said.get("kind") != KIND:
        return None
    diffusion, source = said.get("diffusion"), said.get("source")
    if not isinstance(diffusion, dict) or not isinstance(diffusion.get("type"), str):
        raise ModelLoadError(f"{folder / FILE_NAME} does not say what type of diffusion model it describes")
    original = source.get("hf_model_id") if isinstance(source, dict) else None
    return Bundle(diffusion["type"], original if isinstance(original, str) else None)
