"""Pixels and settings to the bytes of a PNG, JPEG or WebP file; the same input gives the same bytes.

(The same on one machine: another release of Pillow may carry another compressor.) The settings are in every
file twice: as AUTOMATIC1111's `parameters` text, for other programs, and as our JSON, for the exact spec.

- PNG: exact pixels; text chunks `parameters` and `renderkiln`.
- WebP: exact pixels (lossless, about half of a PNG); EXIF UserComment and MakerNote.
- JPEG: quality 95, colour at full resolution; EXIF as WebP, and segments of our own where EXIF is too small.
"""

from __future__ import annotations

import io
import struct

from PIL import Image, PngImagePlugin

from renderkiln.schema.jobs import ImageFormat

from .metadata import PictureMetadata, parameters_text

#: Name of our text chunk in a PNG, and how our data begins in EXIF and in a JPEG's own segments.
JSON_KEY = "renderkiln"
JSON_MARK = b"renderkiln\x00"
EXIF_IFD, MAKER_NOTE, USER_COMMENT = 0x8769, 0x927C, 0x9286

#: At 512², level 3 takes a third of the time of Pillow's own level 6; files are a tenth larger.
_PNG_LEVEL = 3
#: WebP's effort, 0–6: above 2 the files hardly shrink and the time doubles.
_WEBP_METHOD = 2
#: A JPEG segment holds 65,533 bytes; six go to EXIF's own mark, and Pillow counts it in.
_MAX_EXIF = 65_533
_MAX_PIECE = 65_000
_APP0, _APP1, _APP9 = 0xE0, 0xE1, 0xE9


def encode(rgb: bytes, width: int, height: int, image_format: ImageFormat, metadata: PictureMetadata) -> bytes:
    """The file for 8-bit RGB pixels, row by row from the top: `len(rgb) == width * height * 3`.

    Raises:
        ValueError: the pixels are not as many as the size says; a mistake of the caller.
    """
    if len(rgb) != width * height * 3:
        raise ValueError(f"{width}x{height} needs {width * height * 3} bytes of RGB, not {len(rgb)}")
    picture = Image.frombytes("RGB", (width, height), rgb)
    text, settings = parameters_text(metadata.spec, (width, height)), metadata.to_json()
    file = io.BytesIO()
    if image_format == "png":
        chunks = PngImagePlugin.PngInfo()
        # tEXt where Latin-1 can hold it, else iTXt, as AUTOMATIC1111 does.
        chunks.add_text("parameters", text)
        chunks.add_itxt(JSON_KEY, settings)
        picture.save(file, "PNG", compress_level=_PNG_LEVEL, pnginfo=chunks)
    elif image_format == "webp":
        exif = _exif(text, settings)
        picture.save(file, "WEBP", lossless=True, quality=50, method=_WEBP_METHOD, exif=exif)
    else:
        return _jpeg(picture, text, settings)
    return file.getvalue()


def _jpeg(picture: Image.Image, text: str, settings: str) -> bytes:
    exif, segments = _exif(text, settings), b""
    if len(exif) > _MAX_EXIF:
        segments = _segments(settings.encode("ascii"))
        exif = _exif(text, None)
    if len(exif) > _MAX_EXIF:
        exif = b""  # a text cut short would be read as another prompt; the JSON has it all
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    data = file.getvalue()
    if not segments:
        return data
    at = 2  # after the start mark; JFIF's and EXIF's segments must stay first
    while data[at] == 0xFF and data[at + 1] in (_APP0, _APP1):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at] + segments + data[at:]


def _segments(settings: bytes) -> bytes:
    pieces = [settings[at : at + _MAX_PIECE] for at in range(0, len(settings), _MAX_PIECE)]
    found = b""
    for number, piece in enumerate(pieces):
        body = JSON_MARK + struct.pack(">HH", number, len(pieces)) + piece
        found += struct.pack(">BBH", 0xFF, _APP9, len(body) + 2) + body
    return found


def _exif(text: str, settings: str | None) -> bytes:
    """An EXIF block; UserComment is `UNICODE` and big-endian UTF-16, as AUTOMATIC1111 writes and reads it."""
    exif = Image.Exif()
    tags = exif.get_ifd(EXIF_IFD)
    tags[0x9000] = b"0232"
    tags[USER_COMMENT] = b"UNICODE\x00" + text.encode("utf-16-be")
    if settings is not None:
        tags[MAKER_NOTE] = JSON_MARK + settings.encode("ascii")
    return exif.tobytes()
