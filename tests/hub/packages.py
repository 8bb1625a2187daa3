"""Real packages under Apple's names: programs that do next to nothing, with the inputs and outputs of their stages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from tests.runtimes.programs import mb, save

from .repositories import files_of

_PREFIX = "Stable_Diffusion_version_runwayml_stable-diffusion-v1-5"
_HALF = "float16"


def apples_packages(folder: Path) -> dict[str, bytes]:
    """A repository of Apple's with packages: text encoder, UNet and VAE decoder."""

    def unet(sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        total = mb.add(x=mb.reduce_sum(x=encoder_hidden_states), y=mb.reduce_sum(x=timestep))
        return mb.add(x=mb.mul(x=sample, y=_weights(8, 8, dtype=np.float16)), y=total, name="noise_pred")

    programs: dict[str, tuple[Any, dict[str, Any]]] = {
        "unet": (
            unet,
            {
                "sample": ((2, 4, 8, 8), _HALF),
                "timestep": ((2,), _HALF),
                "encoder_hidden_states": ((2, 32, 1, 77), _HALF),
            },
        ),
        "text_encoder": (
            lambda input_ids: mb.mul(
                x=mb.expand_dims(x=input_ids, axes=[2]), y=_weights(32, dtype=np.float32), name="last_hidden_state"
            ),
            {"input_ids": ((1, 77), "float32")},
        ),
        "vae_decoder": (
            lambda z: mb.mul(x=z, y=_weights(8, 8, dtype=np.float32), name="image"),
            {"z": ((1, 4, 8, 8), "float32")},
        ),
    }
    for stage, (build, inputs) in programs.items():
        made = save(folder / stage, build, inputs)
        target = folder / "repository" / "original" / "packages" / f"{_PREFIX}_{stage}.mlpackage"
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
    return files_of(folder / "repository")


def _weights(*shape: int, dtype: type) -> Any:
    # Enough to go to a file: of a package without one a folder would be empty, which no repository can hold.
    return np.linspace(-1, 1, math.prod(shape), dtype=dtype).reshape(shape)
