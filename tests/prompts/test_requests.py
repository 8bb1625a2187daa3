from __future__ import annotations

from pathlib import Path

import pytest

from renderkiln.producer.prompts import ListOptions, parse_sweep, read, requests
from renderkiln.schema.errors import ImageInputError, InvalidSpecError, PromptListError

from .helpers import PICTURE, asked, refused, texts


def test_defaults_fill_what_a_list_leaves_open(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a", "guidance_scale": 3, "labels": {"x": "1"}}\n{"prompt": "b"}\n')
    defaults = {"guidance_scale": 9, "num_images": 4, "labels": {"y": "2", "x": "0"}}
    first, second = asked(path, defaults=defaults)
    assert (first.spec.guidance_scale, second.spec.guidance_scale) == (3, 9)
    assert (first.options.labels, second.options.labels) == ({"y": "2", "x": "1"}, {"y": "2", "x": "0"})
    assert (first.options.num_images, second.options.num_images) == (4, 4)


@pytest.mark.parametrize("defaults", [{"seed": -1}, {"sed": 1}, {"scheduler": "eulr"}, {"prompt": 3}])
def test_a_default_that_cannot_be_is_the_flags_fault(defaults: dict[str, object]) -> None:
    with pytest.raises(InvalidSpecError):
        read("a", ListOptions(defaults=defaults))


def test_a_prompt_may_come_from_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("seed\n1\n2\n")
    assert texts(path, defaults={"prompt": "a {b|b}"}) == ["a b", "a b"]
    assert str(refused(path, defaults={"prompt": "a {b"})).startswith(f"{path}:2:1: '{{' is not closed")


def test_pictures_are_looked_up_beside_the_list_or_where_the_flag_was_given(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(
        f'{{"prompt": "a", "init_image": "x.png", "strength": 0.5}}\n{{"prompt": "b"}}\n'
        f'{{"prompt": "c", "init_image": "{PICTURE}", "mask_image": null}}\n'
    )
    calls = []

    def resolve(name: str, folder: Path) -> str:
        calls.append((name, folder))
        return PICTURE

    found = list(
        requests([read(str(path), ListOptions(defaults={"mask_image": "m.png", "init_image": "y.png"}))], resolve)
    )
    here = Path()
    assert calls == [("x.png", tmp_path), ("m.png", here), ("y.png", here), ("m.png", here)]
    assert [request.spec.task for request in found] == ["inpaint", "inpaint", "img2img"]
    calls.clear()
    swept = read(str(path), ListOptions(sweeps=(parse_sweep("init_image=p.png,q.png"),)))
    assert len(list(requests([swept], resolve))) == 6
    assert set(calls) == {("p.png", here), ("q.png", here)}


def test_a_picture_that_cannot_be_used_is_said_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "init_image": "x.png"}\n')

    def resolve(name: str, folder: Path) -> str:
        raise ImageInputError(f"{folder / name} is missing")

    with pytest.raises(PromptListError) as caught:
        list(requests([read(str(path))], resolve))
    assert str(caught.value) == f"{path}:2:17: init_image: {tmp_path / 'x.png'} is missing"
    assert caught.value.exit_code == 2


def test_what_the_schema_alone_can_see_is_said_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a", "init_image": "sha256:xyz"}\n')
    error = refused(path)
    assert (error.line, error.column) == (1, 17)
    path.write_text(f'{{"prompt": "a", "mask_image": "{PICTURE}"}}\n')
    assert "needs an init_image" in str(refused(path))
