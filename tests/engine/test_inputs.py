"""Pictures from outside: what is read, what is refused, and what inpainting keeps."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from renderkiln.schema.errors import ImageInputError
from renderkiln.worker.engine import inputs
from renderkiln.worker.engine.inputs import Inputs, keep_unmasked, read_inputs

SIZE = (32, 16)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


WHITE = encoded(Image.new("L", SIZE, 255))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_reads_common_formats_in_the_jobs_size(kind: str) -> None:
    read = read_inputs(encoded(Image.new("RGB", (100, 80), (200, 0, 0)), kind), WHITE, SIZE)
    assert (read.init.mode, read.init.size) == ("RGB", SIZE)
    assert np.abs(np.asarray(read.init, int) - (200, 0, 0)).max() <= 2
    assert read.mask is not None
    assert (read.mask.mode, read.mask.size) == ("L", SIZE)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8))
    assert read_inputs(encoded(picture), None, SIZE) == Inputs(picture)


def test_turns_a_photograph_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    picture = Image.new("RGB", (16, 32), "red")
    picture.paste((0, 0, 255), (0, 0, 16, 16))
    upright = read_inputs(encoded(picture, "PNG", exif=exif), None, SIZE).init
    assert upright.getpixel((31, 8)) == (0, 0, 255)
    assert upright.getpixel((0, 8)) == (255, 0, 0)


def test_transparency_shows_white_and_in_a_mask_stays() -> None:
    clear = encoded(Image.new("RGBA", SIZE, (255, 0, 0, 0)))
    half = Image.new("RGBA", SIZE, (255, 255, 255, 0))
    half.paste((255, 255, 255, 255), (0, 0, 16, 16))
    read = read_inputs(clear, encoded(half), SIZE)
    assert read.init.getpixel((0, 0)) == (255, 255, 255)
    assert read.mask is not None
    assert [read.mask.getpixel((x, 0)) for x in (0, 31)] == [255, 0]


def test_grey_of_sixteen_bits_is_scaled() -> None:
    grey = Image.fromarray(np.full((16, 32), 0x8000, np.uint16))
    assert read_inputs(encoded(grey), None, SIZE).init.getpixel((0, 0)) == (128, 128, 128)


def test_a_mask_is_resized_without_new_shades() -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (30, 0, 64, 64))
    read = read_inputs(WHITE, encoded(mask), SIZE)
    assert set(np.unique(np.asarray(read.mask))) == {0, 255}


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read"),
        (b"not a picture", "cannot be read"),
        (encoded(Image.new("RGB", (64, 64), "red"))[:-30], "cannot be read"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:400], "cannot be read"),
        (png_of_size(10_000, 10_000), "10000 × 10000 pixels"),
        (png_of_size(2**31 - 1, 2**31 - 1), "far too many pixels"),
        (png_of_size(16, 16), "cannot be read"),
        (b"%PDF-1.7".ljust(100), "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be read"),
    ],
    ids=["empty", "text", "cut-png", "cut-jpeg", "large", "bomb", "hollow", "pdf", "postscript"],
)
def test_refuses_what_is_no_picture(data: bytes, said: str) -> None:
    with pytest.raises(ImageInputError, match=said):
        read_inputs(data, None, SIZE)
    with pytest.raises(ImageInputError, match="the mask"):
        read_inputs(WHITE, data, SIZE)


def test_refuses_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 10)
    with pytest.raises(ImageInputError, match="MB"):
        read_inputs(WHITE, None, SIZE)


def test_refuses_a_mask_with_nothing_to_paint() -> None:
    with pytest.raises(ImageInputError, match="nothing to paint"):
        read_inputs(WHITE, encoded(Image.new("L", SIZE, 0)), SIZE)


def test_keeps_what_is_masked_out_to_the_bit() -> None:
    random = np.random.default_rng(0)
    init, rendered = random.integers(0, 256, (2, 16, 32, 3), dtype=np.uint8)
    shades = np.zeros((16, 32), np.uint8)
    shades[:, 10:20], shades[:, 20:] = 128, 255
    result = keep_unmasked(rendered, Inputs(Image.fromarray(init), Image.fromarray(shades)))
    assert np.array_equal(result[:, :10], init[:, :10])
    assert np.array_equal(result[:, 20:], rendered[:, 20:])
    between = (init[:, 10:20].astype(int) + rendered[:, 10:20]) / 2
    assert np.abs(result[:, 10:20] - between).max() <= 1.5
    assert keep_unmasked(rendered, Inputs(Image.fromarray(init))) is rendered
