"""Pictures that jobs start from: checked when handed in, and again by the worker that gets them through Redis.

Limits come first, on what costs nothing to look at: bytes before the file is read, pixels before they are
decoded. Then all is decoded once, so that a truncated picture is refused at submit and not in the night.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from renderkiln.schema.errors import ImageInputError

from .opening import megabytes, open_picture, quiet, read_limited

MAX_BYTES = 32_000_000
MAX_PIXELS = 64_000_000
#: Pillow's names of what is taken. Not TIFF: its many variants may come out other than people see them.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class InputImage:
    """A picture that is fit to travel beside a job."""

    #: What a spec calls it: `sha256:` and the digest of `data`.
    ref: str
    data: bytes = field(repr=False)
    #: Pixels, as it is seen: turned as its EXIF orientation says.
    width: int
    height: int
    #: PNG, JPEG, WEBP or BMP.
    format: str


def check_input_image(path: str | Path) -> InputImage:
    """Reads and checks a picture that a job starts from: a regular file of at most 32 MB and 64 megapixels.

    Raises:
        ImageInputError: it cannot be used; the message names the file, what is wrong, and the limit.
    """
    return check_input_bytes(read_limited(Path(path), MAX_BYTES), repr(str(path)))


def check_input_bytes(data: bytes, name: str) -> InputImage:
    """The same for bytes from anywhere; `name` is how messages call the picture.

    Raises:
        ImageInputError: as `check_input_image`.
    """
    with _open(data, name) as picture, quiet():
        _load(picture, name)
        width, height = picture.size
        if _orientation(picture) in (5, 6, 7, 8):  # a quarter turn
            width, height = height, width
        file_format = "JPEG" if picture.format == "MPO" else str(picture.format)
    return InputImage(f"sha256:{hashlib.sha256(data).hexdigest()}", data, width, height, file_format)


def picture_bytes(picture: Image.Image) -> bytes:
    """A PIL image as the bytes of a PNG; equal pixels give equal bytes. It is turned as its file would be.

    Raises:
        ImageInputError: its pixels are of a kind that no PNG holds (floats), or its file is damaged.
    """
    with quiet():
        try:
            turned = _transposed(picture)
            turned = turned.convert("RGB") if turned.mode in ("CMYK", "YCbCr", "HSV", "LAB", "RGBX") else turned
            # Only what decides the pixels: no comments, no colour profile, no resolution.
            kept = {"transparency": turned.info["transparency"]} if "transparency" in turned.info else {}
            turned = turned.copy()
            turned.info = {}
            file = io.BytesIO()
            turned.save(file, "PNG", **kept)
        except Exception as error:  # whatever a decoder makes of a file that was only opened yet
            said = str(error) or type(error).__name__
            raise ImageInputError(f"the picture (PIL, mode {picture.mode}) cannot be sent as a PNG: {said}") from None
    return file.getvalue()


def decode_input(data: bytes, name: str, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """The pixels as a person sees them: upright, 8 bits, what is transparent put on white (RGB) or black (L).

    `L` is for masks: there black stays as it is, and so does what is transparent.

    Raises:
        ImageInputError: as `check_input_image`.
    """
    with _open(data, name) as opened, quiet():
        _load(opened, name)
        try:
            picture = _transposed(opened)
            if picture.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would cut, not scale
                picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                ground = Image.new("RGBA", picture.size, "white" if mode == "RGB" else "black")
                picture = Image.alpha_composite(ground, picture)
            return picture.convert(mode)
        except Exception as error:
            raise ImageInputError(f"{name} cannot be decoded: {error or type(error).__name__}") from None


def _open(data: bytes, name: str) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise ImageInputError(f"{name} has {megabytes(len(data))}; a picture may have {megabytes(MAX_BYTES)}")
    picture = open_picture(data, name, FORMATS)
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageInputError(f"{name} has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise ImageInputError(
            f"{name} is {width}x{height}, {width * height / 1e6:.0f} megapixels; "
            f"a picture may have {MAX_PIXELS // 1_000_000}. Save it smaller."
        )
    # An MPO is a JPEG from a phone with a depth map or a preview behind it: the first picture is the picture.
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    if frames > 1:
        raise ImageInputError(f"{name} is animated ({frames} frames); save the frame that you want as a PNG")
    return picture


def _load(picture: Image.Image, name: str) -> None:
    try:
        picture.load()
    except Exception as error:  # whatever a decoder makes of a hostile file
        said = str(error) or type(error).__name__
        raise ImageInputError(f"{name} is damaged or truncated: {said}; save or copy it anew") from None


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF: every viewer shows such a picture as it lies
        return 1


def _transposed(picture: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(picture) if _orientation(picture) in range(2, 9) else picture
