"""Whether what runs a converted model computes rightly: one small picture, always the same, against a stored one.

A compute unit can be wrong without an error: macOS updates have distorted pictures on one unit and not on another
(apple/ml-stable-diffusion#313).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from renderkiln.schema.errors import BadImageError
from renderkiln.schema.spec import RenderSpec

from ..runtimes.manifest import SELF_TEST
from .inputs import read_picture

#: In decibels. Arithmetic in half precision leaves a picture of one step far above it; a distorted one falls far below.
BAR = 20.0


def spec_of(steps: int) -> RenderSpec:
    """What the picture is of: noise of seed 0, after so many steps. The model is whichever is tested."""
    return RenderSpec(model="self-test", prompt="", num_inference_steps=steps)


def likeness(rgb: np.ndarray, stored: Path) -> float:
    """PSNR of a picture, (H, W, 3) uint8, against the stored one, in decibels; at most 99.

    Raises:
        ImageInputError: the stored one cannot be read.
        BadImageError: the two differ by more than arithmetic does.
    """
    height, width = rgb.shape[:2]
    wanted = np.asarray(read_picture(stored.read_bytes(), "self-test picture", (width, height)), dtype=float)
    error = float(((rgb.astype(float) - wanted) ** 2).mean())
    decibels = 99.0 if error == 0 else min(99.0, 10 * float(np.log10(255**2 / error)))
    if decibels < BAR:
        raise BadImageError(
            f"the self-test picture is {decibels:.1f} dB from the one that is stored with the model ({stored}); "
            f"{BAR:.0f} dB are needed. What runs this model here does not compute rightly"
        )
    return decibels


def save(rgb: np.ndarray, folder: Path) -> None:
    """Stores a picture, whole or not at all, as the one that others are held against."""
    temporary = folder / f".{SELF_TEST}.tmp"
    Image.fromarray(rgb).save(temporary, "PNG")
    temporary.replace(folder / SELF_TEST)
