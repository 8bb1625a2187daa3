"""ControlNets in prompt lists of every form, in flags and in sweeps; and what no list may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.schema.strategies import controlnets, refs

from renderkiln.producer.prompts import ListOptions, Request, parse_sweep, read, requests
from renderkiln.producer.prompts.fields import GivenControlNet, check
from renderkiln.schema import ControlNet
from renderkiln.schema.errors import ImageInputError, InvalidSpecError, PromptListError

from .helpers import PICTURE, asked, refused


class Pictures:
    """Gives each path a reference, and remembers in which folder it was looked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Path]] = []

    def __call__(self, path: str, folder: Path) -> str:
        self.calls.append((path, folder))
        return f"sha256:{sum(path.encode()):064x}"


def of(path: str) -> str:
    return Pictures()(path, Path())


def one(path: Path, text: str, **options: Any) -> Request:
    path.write_text(text)
    (found,) = asked(path, resolve=Pictures(), **options)
    return found


NETS = (
    ControlNet(model="canny", image=of("edges.png"), conditioning_scale=0.8),
    ControlNet(model="owner/depth", image=of("my depth.png"), guidance_start=0.1, guidance_end=0.5),
)
FORMS = {
    "mappings.jsonl": '{"prompt": "a", "controlnets": ['
    '{"model": "canny", "image": "edges.png", "conditioning_scale": 0.8}, '
    '{"model": "owner/depth", "image": "my depth.png", "guidance_start": "0.1", "guidance_end": 0.5}]}',
    "texts.jsonl": '{"prompt": "a", "controlnets": ["canny=edges.png:0.8", "owner/depth=my depth.png:1:0.1:0.5"]}',
    "text.jsonl": '{"prompt": "a", "controlnets": "canny=edges.png:0.8;owner/depth=my depth.png:1:0.1:0.5"}',
    "blocks.yaml": "- prompt: a\n  controlnets:\n  - model: canny\n    image: edges.png\n    conditioning_scale: 0.8\n"
    "  - {model: owner/depth, image: my depth.png, guidance_start: 0.1, guidance_end: 0.5}\n",
    "texts.yaml": "- prompt: a\n  controlnets: ['canny=edges.png:0.8', 'owner/depth=my depth.png:1:0.1:0.5']\n",
    "text.yaml": "- prompt: a\n  controlnets: canny=edges.png:0.8; owner/depth=my depth.png:1:0.1:0.5\n",
    "defaults.yaml": "defaults:\n  controlnets:\n  - canny=edges.png:0.8\n  - owner/depth=my depth.png:1:0.1:0.5\n"
    "prompts:\n- a\n",
    "cell.csv": "prompt,controlnets\na,canny=edges.png:0.8; owner/depth=my depth.png:1:0.1:0.5\n",
    "semicolons.csv": 'prompt;controlnets\na;"canny=edges.png:0.8; owner/depth=my depth.png:1:0.1:0.5"\n',
    "twice.txt": '--prompt a --controlnet canny=edges.png:0.8 --controlnet "owner/depth=my depth.png:1:0.1:0.5"\n',
    "once.txt": '--prompt a --controlnets "canny=edges.png:0.8;owner/depth=my depth.png:1:0.1:0.5"\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_list_names_them(tmp_path: Path, name: str) -> None:
    assert one(tmp_path / name, FORMS[name]).spec.controlnets == NETS


def test_the_forms_agree_about_the_seed(tmp_path: Path) -> None:
    assert len({one(tmp_path / name, text).spec.seed for name, text in FORMS.items()}) == 1


def test_pictures_are_found_beside_the_list_and_those_of_flags_where_one_is(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(
        '{"prompt": "a", "controlnets": ["canny=x.png", "depth=y.png"]}\n'
        '{"prompt": "b"}\n'
        '{"prompt": "c", "controlnets": []}\n'
        f'{{"prompt": "d", "init_image": "z.png", "controlnets": ["canny={PICTURE}"]}}\n'
    )
    pictures = Pictures()
    defaults = {"controlnets": [{"model": "pose", "image": "flag.png"}]}
    found = list(requests([read(str(path), ListOptions(defaults=defaults))], pictures))
    assert pictures.calls == [("x.png", tmp_path), ("y.png", tmp_path), ("flag.png", Path()), ("z.png", tmp_path)]
    assert [[net.model for net in each.spec.controlnets] for each in found] == [
        ["canny", "depth"],
        ["pose"],
        [],
        ["canny"],
    ]
    assert found[3].spec.pictures == (of("z.png"), PICTURE)


def test_a_sweep_tries_one_after_another_with_the_same_seed() -> None:
    pictures = Pictures()
    sweep = parse_sweep('controlnets=canny=a.png:0.5,canny=a.png,"canny=a.png; depth=b.png"')
    found = list(requests([read("a hat", ListOptions(sweeps=(sweep,)))], pictures))
    assert [[(net.model, net.conditioning_scale) for net in each.spec.controlnets] for each in found] == [
        [("canny", 0.5)],
        [("canny", 1)],
        [("canny", 1), ("depth", 1)],
    ]
    assert len({each.spec.seed for each in found}) == 1
    assert set(pictures.calls) == {("a.png", Path()), ("b.png", Path())}
    with pytest.raises(PromptListError, match="is given twice"):
        parse_sweep("controlnets=canny=a.png,canny=a.png:1")
    with pytest.raises(PromptListError, match="expected MODEL=IMAGE"):
        parse_sweep("controlnets=0.5,1")


def test_a_controlnet_makes_another_seed_and_its_defaults_written_out_do_not(tmp_path: Path) -> None:
    def seed(fields: dict[str, Any]) -> int:
        return one(tmp_path / "list.jsonl", json.dumps({"prompt": "a", **fields})).spec.seed

    edges = {"model": "canny", "image": "edges.png"}
    assert seed({}) == seed({"controlnets": []})
    assert seed({"controlnets": [edges]}) == seed({"controlnets": [edges | {"conditioning_scale": 1}]})
    assert len({seed({}), seed({"controlnets": [edges]}), seed({"controlnets": [edges, edges]})}) == 3


def line(nets: Any) -> str:
    return json.dumps({"prompt": "a", "controlnets": nets})


EDGES = {"model": "canny", "image": "edges.png"}
WRONG: list[tuple[Any, str]] = [
    (None, "expected a list"),
    (5, "expected a list"),
    (True, "expected a list"),
    ("", "expected MODEL=IMAGE"),
    (EDGES, "expected a list"),
    ([None], "controlnets.0 = None"),
    ([5], "controlnets.0 = 5"),
    ([[EDGES]], "controlnets.0 = ["),
    (["edges.png"], "expected MODEL=IMAGE"),
    ([{}], "'controlnets.0.model' is missing"),
    ([EDGES, {"model": "canny"}], "'controlnets.1.image' is missing"),
    ([EDGES | {"image": 5}], "controlnets.0.image: expected the path of a picture, not 5"),
    ([EDGES | {"image": None}], "controlnets.0.image: expected the path"),
    ([EDGES | {"image": " "}], "controlnets.0.image: expected the path"),
    ([EDGES | {"image": "a\0b"}], "controlnets.0.image: expected the path"),
    ([EDGES | {"image": {"x": 1}}], "controlnets.0.image: expected the path"),
    ([EDGES | {"model": "../../etc"}], "controlnets.0.model"),
    ([EDGES | {"model": ["canny"]}], "controlnets.0.model"),
    ([EDGES | {"conditioning_scale": 2.5}], "controlnets.0.conditioning_scale = 2.5"),
    ([EDGES | {"guidance_start": 0.5, "guidance_end": 0.5}], "must be less than its guidance_end"),
    ([EDGES | {"weight": 1}], "unknown field 'controlnets.0.weight'"),
    (["canny=edges.png:1:0.9:0.1"], "must be less than its guidance_end"),
    (["canny=edges.png:1e999"], "controlnets.0.conditioning_scale"),
    ([EDGES] * 5, "at most 4 items"),
    ([EDGES] * 10_000, "at most 4 items"),
]


@pytest.mark.parametrize(("nets", "said"), WRONG, ids=[repr(nets)[:40] for nets, _ in WRONG])
def test_what_is_no_controlnet_is_refused_at_its_place_before_any_picture_is_looked_at(
    tmp_path: Path, nets: Any, said: str
) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "good"}\n' + line(nets) + "\n")
    error = refused(path)
    assert said in str(error)
    assert (error.line, error.column) == (2, 17)
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("- prompt: a\n  controlnets: [[x]]\n", "2:17", "takes one value"),
        ("- prompt: a\n  controlnets: {model: canny}\n", "2:16", "takes one value"),
        ("- prompt: a\n  controlnets:\n  - {model: canny, image: [x]}\n", "3:27", "takes one value"),
        ("- prompt: a\n  controlnets:\n  - {model: canny, model: depth}\n", "3:20", "is there twice"),
        ("- prompt: a\n  controlnets:\n  - &net {model: canny, image: x}\n", "3:5", "cannot be anchored"),
        ("- prompt: a\n  controlnets:\n  -\n", "2:3", "controlnets.0 = None"),
        ("- prompt: a\n  controlnets:\n  - {model: canny, <<: *x}\n", "3:20", "merge keys"),
        ("- &a {prompt: x}\n- prompt: a\n  controlnets: [*a]\n", "3:17", "not the mapping that this alias stands for"),
    ],
)
def test_yaml_that_is_no_controlnet_is_refused_at_its_place(tmp_path: Path, text: str, place: str, said: str) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(text)
    error = refused(path)
    assert (f"{error.line}:{error.column}", said in str(error)) == (place, True), error


def test_a_wrong_one_in_a_table_or_a_line_of_options_is_said_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("prompt,controlnets\na,\nb,canny=x.png:9\n")
    (tmp_path / "list.txt").write_text("--prompt a --controlnet canny=x.png --controlnet canny=y.png:9\n")
    assert str(refused(tmp_path / "list.csv")).startswith(
        f"{tmp_path / 'list.csv'}:3:2: controlnets.0.conditioning_scale"
    )
    assert str(refused(tmp_path / "list.txt")).startswith(f"{tmp_path / 'list.txt'}:1:50: controlnets.")
    (tmp_path / "list.csv").write_text("prompt,controlnet\na,canny=x.png\n")
    assert "unknown field 'controlnet'. Here it is called 'controlnets'." in str(refused(tmp_path / "list.csv"))


def test_a_picture_that_cannot_be_used_is_said_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "controlnets": ["canny=../../x.png"]}\n')

    def resolve(name: str, folder: Path) -> str:
        raise ImageInputError(f"{folder / name} is missing")

    with pytest.raises(PromptListError) as caught:
        list(requests([read(str(path))], resolve))
    assert str(caught.value) == f"{path}:2:17: controlnets: {tmp_path / '../../x.png'} is missing"
    path.write_text('{"prompt": "b", "controlnets": ["canny=sha256:../../x.png"]}\n')
    assert "controlnets.0.image" in str(refused(path))


@given(st.lists(controlnets(), max_size=4), st.lists(refs, min_size=4, max_size=4))
def test_a_list_gives_back_what_a_spec_holds(nets: list[dict[str, Any]], images: list[str]) -> None:
    fields = [{**each, "image": image} for each, image in zip(nets, images, strict=False)]
    given_ = check("controlnets", fields)
    assert [net._asdict() for net in given_] == [ControlNet(**each).model_dump() for each in fields]
    assert check("controlnets", given_) == given_
    assert hash(given_) == hash(check("controlnets", json.loads(json.dumps(fields))))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("canny=x.png"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "image", "conditioning_scale", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_whatever_stands_there_is_taken_or_refused(value: Any) -> None:
    try:
        found = check("controlnets", value)
    except InvalidSpecError:
        return
    assert len(found) <= 4
    assert all(isinstance(net, GivenControlNet) and net.image.strip() for net in found)
