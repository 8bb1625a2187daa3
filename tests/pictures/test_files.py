"""Pictures written and read again: exact specs, equal bytes, other programs' files, and hostile ones."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from renderkiln.home.pictures.encode import encode
from renderkiln.home.pictures.metadata import describe, parameters_text
from renderkiln.home.pictures.read import read_metadata
from renderkiln.schema.canonical import digest
from renderkiln.schema.errors import ImageInputError
from renderkiln.schema.jobs import ImageFormat
from renderkiln.schema.spec import RenderSpec

from .specs import picture, specs

FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")
WIDTH, HEIGHT = 16, 8
RGB = bytes(range(256)) + bytes(128)
SPEC = RenderSpec(prompt="a red hat, “quoted” 猫", seed=7)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, width: int = 8, height: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + 3 * 8) * 8)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", FORMATS)
@given(spec=specs())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_spec_comes_back_exactly(image_format: ImageFormat, spec: RenderSpec) -> None:
    metadata = describe(spec, engine="torch", device="cpu", model_info="m", versions={"torch": "2.13.0"})
    data = encode(RGB, WIDTH, HEIGHT, image_format, metadata)
    shown = read_metadata(data)
    assert shown.spec == spec
    assert shown.spec.digest == spec.digest
    assert shown.metadata == metadata
    assert shown.is_exact
    assert (shown.format.lower(), shown.width, shown.height, shown.note) == (image_format, WIDTH, HEIGHT, "")
    if "\r" not in spec.prompt + spec.negative_prompt:
        assert shown.parameters == parameters_text(spec, (WIDTH, HEIGHT))
    assert encode(RGB, WIDTH, HEIGHT, image_format, metadata) == data


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_pixels_are_exact(image_format: ImageFormat) -> None:
    with Image.open(io.BytesIO(encode(RGB, WIDTH, HEIGHT, image_format, describe(SPEC)))) as image:
        assert image.convert("RGB").tobytes() == RGB


def test_a_jpeg_keeps_its_colours() -> None:
    red = bytes((250, 10, 20)) * (WIDTH * HEIGHT)
    with Image.open(io.BytesIO(encode(red, WIDTH, HEIGHT, "jpeg", describe(SPEC)))) as image:
        assert all(abs(a - b) < 6 for a, b in zip(image.getpixel((3, 3)), (250, 10, 20), strict=True))


def test_too_few_pixels_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="needs 384 bytes"):
        encode(RGB[:-1], WIDTH, HEIGHT, "png", describe(SPEC))


def test_others_read_our_files() -> None:
    """As AUTOMATIC1111 does: text chunk in a PNG, UserComment in UTF-16-BE in a JPEG."""
    text = parameters_text(SPEC, (WIDTH, HEIGHT))
    with Image.open(io.BytesIO(encode(RGB, WIDTH, HEIGHT, "png", describe(SPEC)))) as image:
        assert image.info["parameters"] == text
        told = json.loads(image.info["renderkiln"])
        assert digest(told["spec"]) == told["digest"] == SPEC.digest
    for image_format in ("jpeg", "webp"):
        with Image.open(io.BytesIO(encode(RGB, WIDTH, HEIGHT, image_format, describe(SPEC)))) as image:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
            assert comment[:8] == b"UNICODE\x00"
            assert comment[8:].decode("utf-16-be") == text


def test_a_picture_of_automatic1111_is_shown() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a hat\nSteps: 8, Sampler: Euler a, CFG scale: 2, Seed: 3, Version: v1.9")
    info.add_text("Software", "x" * 5000)
    shown = read_metadata(picture(pnginfo=info))
    assert shown.spec == RenderSpec(
        prompt="a hat", num_inference_steps=8, scheduler="euler a", guidance_scale=2, seed=3
    )
    assert not shown.is_exact
    assert shown.other["Version"] == "v1.9"
    assert len(shown.other["Software"]) == 2000


@pytest.mark.parametrize("codec", ["utf-16-be", "utf-16-le", "utf-16", "ascii"])
@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "PNG"])
def test_comments_in_exif_are_read_whatever_their_byte_order(codec: str, image_format: str) -> None:
    text = "a hat\nSteps: 8, Sampler: Euler a, Seed: 3"
    exif = Image.Exif()
    code = b"ASCII\x00\x00\x00" if codec == "ascii" else b"UNICODE\x00"
    exif.get_ifd(0x8769)[0x9286] = code + text.encode(codec)
    shown = read_metadata(picture(image_format=image_format, exif=exif.tobytes()))
    assert shown.parameters == text
    assert shown.spec is not None
    assert shown.spec.seed == 3


def test_a_picture_without_settings_says_so() -> None:
    shown = read_metadata(picture())
    assert (shown.spec, shown.metadata, shown.parameters, shown.width, shown.height) == (
        None,
        None,
        None,
        64,
        48,
    )


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"digest": "0" * 64}, "edited"),
        ({"schema_version": 2}, "newer renderkiln"),
        ({"spec": {"prompt": "a", "seed": -1}}, "cannot be taken"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_settings_that_are_not_ours_are_noted_and_the_text_is_used(change: dict[str, object], note: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a hat\nSteps: 8, Seed: 3, CFG scale: 2")
    info.add_itxt("renderkiln", json.dumps(json.loads(describe(SPEC).to_json()) | change))
    shown = read_metadata(picture(pnginfo=info))
    assert shown.metadata is None
    assert note in shown.note
    assert shown.spec is not None
    assert shown.spec.prompt == "a hat"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"GIF89a" + bytes(50), "is a GIF"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(50), "HEIC"),
        (b"<svg xmlns=''/>", "SVG"),
        (png(width=60_000, height=60_000), "more pixels"),
        (png(chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(50_000_000)))), "too large"),
        (picture()[:20], "damaged"),
    ],
)
def test_what_is_no_picture_is_refused_in_plain_words(data: bytes, said: str) -> None:
    with pytest.raises(ImageInputError, match=said):
        read_metadata(data, "'it.png'")


def test_a_text_bomb_of_ours_is_not_read() -> None:
    shown = read_metadata(png(chunk(b"tEXt", b"renderkiln\x00" + b"[" * 2_000_000)))
    assert shown.metadata is None
    assert "longer than" in shown.note
    deep = read_metadata(png(chunk(b"tEXt", b"renderkiln\x00" + b"[" * 500_000)))
    assert "cannot be taken" in deep.note


@pytest.mark.parametrize("image_format", FORMATS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_read_or_refused(image_format: ImageFormat, data: st.DataObject) -> None:
    whole = bytearray(encode(RGB, WIDTH, HEIGHT, image_format, describe(SPEC)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole)))
    try:
        shown = read_metadata(bytes(whole[:end]))
    except ImageInputError:
        return
    if shown.metadata is not None:
        assert shown.metadata.digest == shown.metadata.spec.digest


def test_files_are_read_from_disk_within_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(RGB, WIDTH, HEIGHT, "png", describe(SPEC)))
    assert read_metadata(path).spec == SPEC
    assert read_metadata(str(path)).spec == SPEC
    huge = tmp_path / "huge.png"
    huge.touch()
    os.truncate(huge, 200_000_000)
    for bad, said in ((tmp_path / "no.png", "does not exist"), (tmp_path, "folder"), (huge, "200.0 MB")):
        with pytest.raises(ImageInputError, match=said):
            read_metadata(bad)
