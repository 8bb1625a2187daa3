"""How models are named in files and stages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_CONTROLNET = "controlnet-"
#: The stage that takes the vectors of macOS's multilingual text encoder to a UNet's embeddings.
PROJECTION = "multilingual_projection"

#: What Apple's tools call a stage's file: Xcode's compiled models, and Core AI's assets.
XCODE_NAMES: Mapping[str, str] = {
    "text_encoder": "TextEncoder",
    "text_encoder_2": "TextEncoder2",
    "unet": "Unet",
    "control-unet": "ControlledUnet",
    "vae_decoder": "VAEDecoder",
    "vae_encoder": "VAEEncoder",
    "safety_checker": "SafetyChecker",
    PROJECTION: "MultilingualTextEncoderProjection",
}


def safe_name(name: str) -> str:
    """A model's name as it stands in file names: as Apple's converter writes it, and nothing that a path could mean."""
    return _UNSAFE.sub("_", name).strip(".") or "model"


def controlnet_stage(name: str) -> str:
    """The stage of a ControlNet: each has one of its own."""
    return _CONTROLNET + safe_name(name)


def controlnet_names(stages: Iterable[str]) -> tuple[str, ...]:
    """The names of the ControlNets among stages, as they stand in file names."""
    return tuple(stage.removeprefix(_CONTROLNET) for stage in stages if stage.startswith(_CONTROLNET))


def kind_of(stage: str) -> str:
    """What kind of stage it is: unet, vae_decoder, …; `controlnet` for each ControlNet's."""
    return "controlnet" if stage.startswith(_CONTROLNET) else stage
