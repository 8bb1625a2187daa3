"""Reads the init image and the mask of a job, which come from outside and are not trusted."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from renderkiln.schema.errors import ImageInputError

MAX_BYTES = 64 * 2**20
#: 8192 × 8192; far above what any Stable Diffusion model takes in, and 200 MB once decoded.
MAX_PIXELS = 2**26
#: Few decoders, well-tried ones.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MASK_BACKGROUND, INIT_BACKGROUND = "black", "white"


@dataclass(frozen=True)
class Inputs:
    """The pictures that a job starts from, in the job's size."""

    #: RGB.
    init: Image.Image
    #: L: 255 is painted, 0 stays. None: no inpainting.
    mask: Image.Image | None = None


def read_inputs(init: bytes, mask: bytes | None, size: tuple[int, int]) -> Inputs:
    """Decodes and resizes (width × height, the shape is not kept) the pictures of a job.

    Raises:
        ImageInputError: one of them is too large, damaged or not a picture.
    """
    picture = read_picture(init, "init image", size)
    if mask is None:
        return Inputs(picture)
    grey = _decode(mask, "mask", MASK_BACKGROUND).convert("L")
    if grey.size != size:
        # No new shades at the edge: what was drawn as fully kept is kept to the pixel.
        grey = grey.resize(size, Image.Resampling.NEAREST)
    if not np.asarray(grey).max() >= 128:
        raise ImageInputError("the mask has nothing to paint: white is painted, black stays")
    return Inputs(picture, grey)


def read_picture(data: bytes, name: str, size: tuple[int, int]) -> Image.Image:
    """Decodes and resizes a picture: RGB. Raises ImageInputError, as above; `name` says which one it is."""
    picture = _decode(data, name, INIT_BACKGROUND).convert("RGB")
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _decode(data: bytes, name: str, background: str) -> Image.Image:
    """A picture, upright, without transparency, in RGB or L.

    Raises:
        ImageInputError: as above.
    """
    if len(data) > MAX_BYTES:
        raise ImageInputError(f"the {name} is {len(data) / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} MB can be used")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own, higher, limit on pixels, and of odd metadata
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageInputError(
                    f"the {name} has {width} × {height} pixels; at most {MAX_PIXELS // 10**6} million can be used"
                )
            image.load()
            return _flatten(ImageOps.exif_transpose(image), background)
    except ImageInputError:
        raise
    except Image.DecompressionBombError:
        raise ImageInputError(
            f"the {name} has far too many pixels; at most {MAX_PIXELS // 10**6} million can be used"
        ) from None
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise ImageInputError(
            f"the {name} cannot be read as a picture ({', '.join(FORMATS)}): {error or type(error).__name__}"
        ) from None


def _flatten(image: Image.Image, background: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit greys to white instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")


def keep_unmasked(rgb: np.ndarray, inputs: Inputs) -> np.ndarray:
    """Puts the init image's own pixels back where the mask is black.

    The VAE changes every pixel a little, the kept ones too. Where the mask is 0 the result is the init image
    to the bit, where it is 255 the rendered one, and between them a blend, so that a soft mask has a soft
    seam.

    Args:
        rgb: the rendered picture, (H, W, 3) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    if inputs.mask is None:
        return rgb
    painted = Image.composite(Image.fromarray(rgb), inputs.init, inputs.mask)
    return np.asarray(painted)
