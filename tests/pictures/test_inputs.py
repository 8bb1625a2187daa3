"""Init images and masks: what is taken, and each thing that is refused, with what is said."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from renderkiln.home.pictures.inputs import check_input_bytes, check_input_image, decode_input
from renderkiln.schema.errors import ImageInputError
from renderkiln.schema.spec import RenderSpec

from .specs import picture
from .test_files import png


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_picture_is_taken(tmp_path: Path, image_format: str) -> None:
    path = tmp_path / "init"
    path.write_bytes(picture(image_format=image_format))
    image = check_input_image(path)
    assert (image.width, image.height, image.format) == (64, 48, image_format)
    assert image.data == path.read_bytes()
    assert image.ref == "sha256:" + hashlib.sha256(image.data).hexdigest()
    assert RenderSpec(prompt="x", init_image=image.ref).init_image == image.ref
    assert len(repr(image)) < 300


def gif() -> bytes:
    return picture(image_format="GIF", mode="P")


def frames(image_format: str) -> bytes:
    first, *rest = (Image.new("RGB", (8, 8), color) for color in ("red", "green"))
    file = io.BytesIO()
    first.save(file, image_format, save_all=True, append_images=rest)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not a picture"),
        (b"%PDF-1.7", "is a PDF"),
        (gif(), "is a GIF; save it as PNG, JPEG, WebP or BMP"),
        (picture(image_format="TIFF"), "is a TIFF"),
        (frames("PNG"), r"animated \(2 frames\)"),
        (frames("WEBP"), r"animated \(2 frames\)"),
        (picture()[:-60], "damaged or truncated"),
        (picture(image_format="JPEG")[:-200], "damaged or truncated"),
        (picture(image_format="BMP")[:-9], "damaged or truncated"),
        (png(width=9000, height=9000), "81 megapixels; a picture may have 64"),
        (png(width=12_000, height=12_000), "144 megapixels"),
        (png(width=60_000, height=60_000), "more pixels"),
        (picture() + bytes(32_000_000), "32.0 MB"),
    ],
)
def test_what_cannot_be_used_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ImageInputError, match=said) as caught:
        check_input_bytes(data, "'cat.png'")
    assert str(caught.value).startswith("'cat.png' ")
    assert caught.value.exit_code == 2


def test_paths_that_are_no_picture(tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    big.touch()
    os.truncate(big, 200_000_000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, said in (
        (tmp_path / "none.png", "does not exist"),
        (tmp_path, "is a folder"),
        (big, "has 200.0 MB; a picture may have 32.0 MB"),
        (pipe, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (Path("a\x00b"), "cannot be read"),
    ):
        with pytest.raises(ImageInputError, match=said) as caught:
            check_input_image(path)
        assert repr(str(path)) in str(caught.value)


def test_a_photo_is_turned_as_its_camera_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture(image_format="JPEG", exif=exif.tobytes())
    image = check_input_bytes(data, "photo")
    assert (image.width, image.height) == (48, 64)
    assert decode_input(data, "photo").size == (48, 64)


def test_a_phone_s_jpeg_with_more_behind_it_is_its_first_picture() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    image = check_input_bytes(file.getvalue(), "photo")
    assert (image.format, image.width, image.height) == ("JPEG", 8, 8)


def test_transparency_becomes_white_or_for_a_mask_black() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(file, "PNG")
    assert decode_input(file.getvalue(), "x").getpixel((0, 0)) == (255, 255, 255)
    assert decode_input(file.getvalue(), "x", "L").getpixel((0, 0)) == 0


def test_sixteen_bits_of_grey_are_scaled() -> None:
    rows = b"".join(b"\x00" + struct.pack(">H", 0x8000) * 8 for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    assert decode_input(data, "x").getpixel((4, 4)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_kind_of_pixel_can_be_used(mode: str) -> None:
    data = picture(mode=mode, image_format="JPEG" if mode == "CMYK" else "PNG")
    check_input_bytes(data, "x")
    assert decode_input(data, "x").mode == "RGB"
    assert decode_input(data, "x", "L").mode == "L"


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "BMP"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_file_is_taken_or_refused(image_format: str, data: st.DataObject) -> None:
    whole = bytearray(picture((16, 16), image_format))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        check_input_bytes(bytes(whole), "x")
    except ImageInputError:
        return
    decode_input(bytes(whole), "x")
