"""Tells a picture from what is none: NaN, infinities and all-black are failures, never results.

Looked at as floats, before the conversion to bytes would hide them (NaN becomes black, infinity white).
"""

from __future__ import annotations

import numpy as np
import torch

from renderkiln.schema.errors import BadImageError

_ADVICE = "This precision or device is not up to this model: try dtype float32, or another device"


def check_finite(values: torch.Tensor, where: str) -> None:
    """Raises BadImageError if a tensor holds NaN or infinities. `where`: 'after step 3 of 20', say.

    On an accelerator this waits until the tensor is there, which is wanted: progress that is reported has
    been made, and a cancel stops the work at once instead of what is already queued.
    """
    if torch.isfinite(values).all():
        return
    what = "NaN" if torch.isnan(values).any() else "infinite values"
    dtype = str(values.dtype).removeprefix("torch.")
    raise BadImageError(f"{what} {where} ({dtype} on {values.device.type}). {_ADVICE}.")


def to_rgb(image: torch.Tensor) -> np.ndarray:
    """Bytes of a picture, to the bit as diffusers makes them for PIL.

    Args:
        image: (1, 3, H, W) floats in [0, 1].

    Returns:
        (H, W, 3) uint8.
    """
    pixels: np.ndarray = image[0].permute(1, 2, 0).float().cpu().numpy()
    rgb: np.ndarray = (pixels * 255).round().astype(np.uint8)
    return rgb


def check_not_black(rgb: np.ndarray, *, dtype: str, device: str) -> None:
    """Raises BadImageError if every pixel is black, as they are after many an overflow in half precision."""
    if not rgb.any():
        raise BadImageError(f"the picture is all black ({dtype} on {device}). {_ADVICE}.")
