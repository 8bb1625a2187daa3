"""The limits that the schema sets, each at its edge and one beyond."""

from __future__ import annotations

from typing import Any

import pytest

from renderkiln.schema import ControlNet, parse_options, parse_request, parse_spec
from renderkiln.schema.errors import InvalidSpecError

PICTURE = "sha256:" + "0" * 64
CANNY: dict[str, Any] = {"model": "canny", "image": PICTURE}

ACCEPTED: list[tuple[str, Any]] = [
    ("num_inference_steps", 1),
    ("num_inference_steps", 1000),
    ("guidance_scale", 0),
    ("guidance_scale", 50),
    ("width", 8),
    ("width", 4096),
    ("height", 520),
    ("seed", 0),
    ("seed", 2**32 - 1),
    ("prompt", ""),
    ("prompt", "x" * 10_000),
    ("negative_prompt", "x" * 10_000),
    ("model", "shapes"),
    ("model", "runwayml/stable-diffusion-v1-5"),
    ("clip_skip", 12),
    ("rng", "numpy"),
    ("controlnets", ()),
    ("controlnets", (ControlNet(model="canny", image=PICTURE),) * 4),
    ("controlnets", (ControlNet(model="owner/canny", image=PICTURE, conditioning_scale=2, guidance_end=0.001),)),
]
REFUSED: list[tuple[str, Any]] = [
    ("num_inference_steps", 0),
    ("num_inference_steps", 1001),
    ("num_inference_steps", 2.5),
    ("guidance_scale", -0.1),
    ("guidance_scale", 50.1),
    ("guidance_scale", float("nan")),
    ("guidance_scale", float("inf")),
    ("width", 0),
    ("width", 12),
    ("width", 4104),
    ("height", -8),
    ("seed", -1),
    ("seed", 2**32),
    ("prompt", "x" * 10_001),
    ("prompt", None),
    ("prompt", "a\x00b"),
    ("prompt", "a\udc80b"),
    ("negative_prompt", "x" * 10_001),
    ("model", ""),
    ("model", "../secret"),
    ("model", "/etc/passwd"),
    ("model", "a/b/c"),
    ("model", "a" * 97),
    ("clip_skip", 0),
    ("clip_skip", 13),
    ("rng", "dice"),
    ("scheduler", ""),
    ("scheduler", "x" * 1_000_000),
    ("strength", 0),
    ("init_image", "cat.png"),
    ("init_image", "sha256:" + "A" * 64),
    ("controlnets", [CANNY] * 5),
    ("controlnets", None),
    ("text_encoder", "bert"),
    ("script", "hangul"),
    ("script", "cyrillic"),
    ("controlnets", "canny"),
    ("controlnets", 5),
    ("controlnets", CANNY),
    ("controlnets", [None]),
    ("controlnets", ["canny=edges.png"]),
    ("controlnets", [[CANNY]]),
    ("controlnets", [{}]),
    ("controlnets", [{"model": "canny"}]),
    ("controlnets", [CANNY | {"model": "../secret"}]),
    ("controlnets", [CANNY | {"model": "canny/.."}]),
    ("controlnets", [CANNY | {"image": "../edges.png"}]),
    ("controlnets", [CANNY | {"image": "sha256:../../ledger.db"}]),
    ("controlnets", [CANNY | {"image": None}]),
    ("controlnets", [CANNY | {"conditioning_scale": 2.1}]),
    ("controlnets", [CANNY | {"conditioning_scale": -0.1}]),
    ("controlnets", [CANNY | {"conditioning_scale": float("nan")}]),
    ("controlnets", [CANNY | {"guidance_start": -0.1}]),
    ("controlnets", [CANNY | {"guidance_end": 1.1}]),
    ("controlnets", [CANNY | {"controlnets": [CANNY]}]),
]
OPTIONS_ACCEPTED: list[tuple[str, Any]] = [
    ("num_images", 1),
    ("num_images", 10_000),
    ("priority", "high"),
    ("max_attempts", 20),
    ("timeout", 0.5),
    ("labels", {str(number): "v" for number in range(32)}),
    ("labels", {"n" * 200: "v" * 200}),
    ("image_format", "webp"),
    ("store", "s3://bucket/renders"),
]
OPTIONS_REFUSED: list[tuple[str, Any]] = [
    ("num_images", 0),
    ("num_images", 10_001),
    ("priority", "urgent"),
    ("max_attempts", 0),
    ("max_attempts", 21),
    ("timeout", 0),
    ("timeout", 8 * 86400),
    ("labels", {str(number): "v" for number in range(33)}),
    ("labels", {"n" * 201: "v"}),
    ("labels", {"n": "v" * 201}),
    ("labels", {"n": 5}),
    ("image_format", "gif"),
    ("store", ""),
    ("store", "out\x00"),
]


def test_the_system_s_text_encoder_takes_a_script_and_leaves_out_no_layers() -> None:
    spec = parse_spec({"prompt": "кошка", "text_encoder": "system-multilingual", "script": "cyrillic"})
    assert (spec.text_encoder, spec.script) == ("system-multilingual", "cyrillic")
    with pytest.raises(InvalidSpecError, match="clip_skip is for the model's own"):
        parse_spec({"prompt": "a cat", "text_encoder": "system-multilingual", "clip_skip": 1})


def _id(case: Any) -> str:
    return str(case)[:24]


@pytest.mark.parametrize(("name", "value"), ACCEPTED, ids=_id)
def test_a_spec_takes_the_values_within_its_limits(name: str, value: Any) -> None:
    assert getattr(parse_spec({"prompt": "a cat", name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=_id)
def test_a_spec_refuses_the_values_beyond_its_limits_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidSpecError, match=f"{name}|text must not|scheduler") as caught:
        parse_spec({"prompt": "a cat", name: value})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("name", "value"), OPTIONS_ACCEPTED, ids=_id)
def test_options_take_the_values_within_their_limits(name: str, value: Any) -> None:
    assert getattr(parse_options({name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), OPTIONS_REFUSED, ids=_id)
def test_options_refuse_the_values_beyond_their_limits(name: str, value: Any) -> None:
    with pytest.raises(InvalidSpecError, match=f"{name}|text must not"):
        parse_options({name: value})


def test_an_unknown_field_is_refused_with_the_nearest_names_of_spec_and_job() -> None:
    with pytest.raises(InvalidSpecError, match=r"unknown field 'guidence_scale'\. Did you mean 'guidance_scale'"):
        parse_request({"prompt": "a cat", "guidence_scale": 5})
    with pytest.raises(InvalidSpecError, match="Did you mean 'num_images'"):
        parse_request({"prompt": "a cat", "num_image": 5})


def test_a_missing_prompt_is_said_to_be_missing() -> None:
    with pytest.raises(InvalidSpecError, match="field 'prompt' is missing"):
        parse_request({"seed": 1})


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(InvalidSpecError, match=r"seed = -1.*width = 3"):
        parse_spec({"prompt": "a cat", "seed": -1, "width": 3})


def test_a_long_wrong_value_is_not_repeated_in_full() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse_spec({"prompt": "a cat", "model": "?" * 100_000})
    assert len(str(caught.value)) < 300


def test_a_mask_needs_an_init_image_and_so_does_a_strength() -> None:
    picture = "sha256:" + "0" * 64
    with pytest.raises(InvalidSpecError, match="mask_image needs an init_image"):
        parse_spec({"prompt": "a cat", "mask_image": picture})
    with pytest.raises(InvalidSpecError, match="strength needs an init_image"):
        parse_spec({"prompt": "a cat", "strength": 0.5})
    assert parse_spec({"prompt": "a cat", "init_image": picture, "strength": 0.5}).task == "img2img"
    with pytest.raises(InvalidSpecError, match="leaves no step"):
        parse_spec({"prompt": "a cat", "init_image": picture, "strength": 0.2, "num_inference_steps": 4})
    assert parse_spec({"prompt": "a cat", "init_image": picture, "mask_image": picture}).task == "inpaint"


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.5), (1, 1), (0, 0)])
def test_a_controlnet_ends_after_it_begins(start: float, end: float) -> None:
    with pytest.raises(InvalidSpecError, match=r"guidance_start .* must be less than its guidance_end"):
        parse_spec({"prompt": "a cat", "controlnets": [CANNY | {"guidance_start": start, "guidance_end": end}]})


def test_a_misspelt_field_of_a_controlnet_is_told_the_names_that_a_controlnet_has() -> None:
    with pytest.raises(InvalidSpecError, match=r"'controlnets\.1\.conditioning'\. Did you mean 'conditioning_scale'"):
        parse_spec({"prompt": "a cat", "controlnets": [CANNY, CANNY | {"conditioning": 1}]})


def test_pictures_and_models_of_a_spec_are_each_named_once() -> None:
    first, second, third = ("sha256:" + digit * 64 for digit in "123")
    nets = [
        {"model": "canny", "image": third},
        {"model": "depth", "image": second},
        {"model": "canny", "image": first},
    ]
    spec = parse_spec({"prompt": "a cat", "init_image": first, "mask_image": second, "controlnets": nets})
    assert spec.pictures == (first, second, third)
    assert spec.models == ("shapes", "canny", "depth")
    assert spec.task == "inpaint"
    plain = parse_spec({"prompt": "a cat"})
    assert (plain.pictures, plain.models) == ((), ("shapes",))


@pytest.mark.parametrize("scheduler", ["lcm", "LCMScheduler", "tcd", "TCD"])
def test_a_distilled_scheduler_makes_at_most_fifty_steps(scheduler: str) -> None:
    assert parse_spec({"prompt": "a cat", "scheduler": scheduler, "num_inference_steps": 50}).num_inference_steps == 50
    with pytest.raises(InvalidSpecError, match=r"at most 50 steps, and num_inference_steps is 51: lower it"):
        parse_spec({"prompt": "a cat", "scheduler": scheduler, "num_inference_steps": 51})


def test_text_that_a_csv_file_holds_is_read_as_numbers() -> None:
    spec, options = parse_request({"prompt": "a cat", "seed": "7", "guidance_scale": "5", "num_images": "2"})
    assert (spec.seed, spec.guidance_scale, options.num_images) == (7, 5.0, 2)


def test_a_spec_cannot_be_changed() -> None:
    spec = parse_spec({"prompt": "a cat"})
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 5  # type: ignore[misc]
