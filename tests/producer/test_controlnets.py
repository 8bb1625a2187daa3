"""ControlNets as people write them, and their pictures on the way to a worker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.fakes import FakeWorker, job_keys
from tests.schema.strategies import controlnets

from renderkiln.producer import RenderQueue
from renderkiln.producer.controlnets import controlnet_text, parse_controlnet, parse_controlnets
from renderkiln.schema import ControlNet, names
from renderkiln.schema.errors import ImageInputError, InvalidSpecError

from .test_inputs import png

REF = "sha256:" + "12" * 32


@pytest.mark.parametrize(
    ("text", "image", "settings"),
    [
        ("canny=edges.png", "edges.png", ()),
        ("canny=edges.png:0.8", "edges.png", (0.8,)),
        ("canny=edges.png:0.8:0.1", "edges.png", (0.8, 0.1)),
        ("canny=edges.png:1:.1:9e-1", "edges.png", (1, 0.1, 0.9)),
        ("canny=/a b/é=ü.png:1", "/a b/é=ü.png", (1,)),
        ("canny=10:30.png", "10:30.png", ()),
        ("canny=10:30.png:2", "10:30.png", (2,)),
        ("canny=scan:1", "scan", (1,)),
        ("canny=scan:1:1:0:1", "scan:1", (1, 0, 1)),
        ("canny=scan:1:2:3:4:5", "scan:1:2", (3, 4, 5)),
        ("canny=:1", ":1", ()),
        ("canny=edges.png:", "edges.png:", ()),
        ("canny=edges.png:nan", "edges.png:nan", ()),
        ("canny=edges.png:-1", "edges.png", (-1,)),
        (f"canny={REF}", REF, ()),
        (f"canny={REF}:0.5", REF, (0.5,)),
        ("canny=sha256:" + "1" * 64, "sha256:" + "1" * 64, ()),
        (" canny =edges.png ", "edges.png", ()),
    ],
)
def test_numbers_at_the_end_of_a_path_are_settings(text: str, image: str, settings: tuple[float, ...]) -> None:
    fields = parse_controlnet(text)
    assert (fields.pop("model"), fields.pop("image")) == ("canny", image)
    assert fields == dict(zip(("conditioning_scale", "guidance_start", "guidance_end"), settings, strict=False))


@pytest.mark.parametrize("text", ["", "canny", "canny=", "=edges.png", "edges.png:0.5", "canny= ", " =x"])
def test_what_names_no_model_or_no_picture_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(InvalidSpecError, match=re.escape("expected MODEL=IMAGE[:SCALE[:START[:END]]]")):
        parse_controlnet(text)


# Any path that a person may have, and those that look like settings.
paths = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00;"), min_size=1).filter(
        lambda text: text == text.strip()
    ),
    st.from_regex(r"[a-z]{1,3}(:[0-9]{1,2}(\.[0-9])?){1,5}", fullmatch=True),
    st.just(REF),
)


@given(controlnets(), paths)
def test_what_is_written_is_read_as_it_was(fields: dict[str, Any], path: str) -> None:
    fields = {**fields, "image": path}
    read = parse_controlnet(controlnet_text(fields))
    defaults = {"conditioning_scale": 1.0, "guidance_start": 0.0, "guidance_end": 1.0}
    assert defaults | read == fields


@given(st.lists(st.tuples(controlnets(), paths), min_size=1, max_size=4))
def test_several_stand_in_one_text(given_: list[tuple[dict[str, Any], str]]) -> None:
    texts = [controlnet_text({**fields, "image": path}) for fields, path in given_]
    assert parse_controlnets("; ".join(texts)) == [parse_controlnet(text) for text in texts]


def test_a_semicolon_in_a_path_stays_where_no_model_follows() -> None:
    assert [each["image"] for each in parse_controlnets("canny=a; b.png;depth=c;d.png")] == ["a; b.png", "c;d.png"]


def test_pictures_of_controlnets_travel_beside_their_job(queue: RenderQueue, tmp_path: Path) -> None:
    path = tmp_path / "edges.png"
    path.write_bytes(png("white"))
    reference = queue.inputs.add(png("blue"))
    nets: list[Any] = [
        {"model": "canny", "image": path, "conditioning_scale": 0.5},
        {"model": "depth", "image": png("green"), "guidance_end": 0.5},
        {"model": "pose", "image": Image.new("RGB", (64, 64), "red")},
        ControlNet(model="tile", image=reference),
    ]
    queue.submit(prompt="a cat", controlnets=nets)
    job = FakeWorker(queue.connection).take()
    assert job is not None
    assert [(net.model, net.conditioning_scale, net.guidance_end) for net in job.spec.controlnets] == [
        ("canny", 0.5, 1),
        ("depth", 1, 0.5),
        ("pose", 1, 1),
        ("tile", 1, 1),
    ]
    assert job.spec.task == "txt2img"
    sent = [queue.connection.get(names.blob(each.removeprefix("sha256:"))) for each in job.spec.pictures]
    assert [sent[0], sent[1], sent[3]] == [png("white"), png("green"), png("blue")]
    assert job.spec.controlnets[3].image == reference
    assert nets[0]["image"] == path  # what was handed in is left as it was


def test_one_picture_for_several_uses_is_sent_once(queue: RenderQueue) -> None:
    nets = [{"model": name, "image": png()} for name in ("canny", "depth")]
    queue.submit(prompt="a cat", init_image=png(), strength=0.5, controlnets=nets)
    assert len(list(queue.connection.scan_iter("renderkiln:blob:*"))) == 1


def net(**fields: Any) -> dict[str, Any]:
    return {"model": "canny", "image": png(), **fields}


@pytest.mark.parametrize(
    ("nets", "error", "said"),
    [
        ([net(image="missing.png")], ImageInputError, r"missing\.png"),
        ([net(image=b"meow")], ImageInputError, "not a picture"),
        ([net(image=5)], ImageInputError, "as a PIL image, not as int"),
        ([net(image="sha256:../../ledger.db")], ImageInputError, "not on this machine"),
        ([net(image="sha256:" + "0" * 64)], ImageInputError, "not on this machine"),
        ([net(image=None)], ImageInputError, "not as NoneType"),
        ([net(image=Image.new("F", (8, 8)))], ImageInputError, "mode F"),
        ([net(model="../secret")], InvalidSpecError, r"controlnets\.0\.model"),
        ([net(conditioning_scale="much")], InvalidSpecError, r"controlnets\.0\.conditioning_scale"),
        ([net(), {"model": "canny"}], InvalidSpecError, r"'controlnets\.1\.image' is missing"),
        ([net(image="missing.png")] * 5, InvalidSpecError, "at most 4, not 5"),
        ([None], InvalidSpecError, r"controlnets\.0"),
        (["canny"], InvalidSpecError, r"controlnets\.0"),
        (net(), InvalidSpecError, "valid tuple"),
        ("canny=edges.png", InvalidSpecError, "valid tuple"),
        (None, InvalidSpecError, "controlnets = None"),
    ],
)
def test_what_is_no_controlnet_is_refused_and_nothing_queued(
    queue: RenderQueue, no_settings: Path, nets: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        queue.submit(prompt="a cat", controlnets=nets)
    assert job_keys(queue.connection) == []


def test_equal_pil_images_are_one_picture_whatever_else_they_carry(queue: RenderQueue, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.new("RGB", (64, 64), "red").save(path, dpi=(300, 300))
    with Image.open(path) as opened:
        assert queue.inputs.add(opened) == queue.inputs.add(Image.new("RGB", (64, 64), "red"))
    assert queue.inputs.add(Image.new("CMYK", (8, 8))) == queue.inputs.add(Image.new("CMYK", (8, 8)).convert("RGB"))


def test_a_pil_image_is_turned_as_its_file_would_be(queue: RenderQueue, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48)).save(path, exif=exif)
    with Image.open(path) as opened:
        queue.submit(prompt="a cat", init_image=opened)
    job = FakeWorker(queue.connection).take()
    assert job is not None
    assert job.spec.init_image is not None
    (kept,) = queue.folder.blobs.iterdir()
    with Image.open(kept) as sent:
        assert sent.size == (48, 64)


def test_a_pil_image_whose_file_is_cut_short_is_refused(queue: RenderQueue, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    noise = Image.effect_noise((64, 64), 90)
    noise.save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with Image.open(path) as opened, pytest.raises(ImageInputError, match="cannot be sent as a PNG"):
        queue.submit(prompt="a cat", init_image=opened)
