"""AUTOMATIC1111's text: what we write, what others write, and what no one should."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderkiln.home.pictures.infotext import parameters_text, parse_parameters_text
from renderkiln.schema.spec import RenderSpec

from .specs import specs

REF = "sha256:" + "ab" * 32


def test_text_is_as_automatic1111_writes_it() -> None:
    spec = RenderSpec(
        prompt="a red hat, studio light",
        negative_prompt="blurry",
        seed=1,
        scheduler="dpm++ 2m karras",
        init_image=REF,
        strength=0.5,
        clip_skip=1,
    )
    assert parameters_text(spec, (64, 96)) == (
        "a red hat, studio light\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 1, Size: 64x96, Model: shapes, "
        f'Denoising strength: 0.5, Init image: "{REF}", Clip skip: 2'
    )


def test_the_system_s_text_encoder_is_written_and_read() -> None:
    spec = RenderSpec(prompt="猫", text_encoder="system-multilingual", script="cjk")
    text = parameters_text(spec)
    assert text.endswith("Text encoder: system-multilingual, Script: cjk")
    assert RenderSpec(**parse_parameters_text(text).fields) == spec


def test_controlnets_are_written_as_automatic1111_s_extension_writes_them() -> None:
    nets = [
        {"model": "canny", "image": REF, "conditioning_scale": 0.5},
        {"model": "owner/depth", "image": REF, "guidance_start": 0.25, "guidance_end": 0.9},
    ]
    spec = RenderSpec.model_validate({"prompt": "a hat", "controlnets": nets})
    text = parameters_text(spec)
    assert text.endswith(
        f'ControlNet 0: "Model: canny, Image: {REF}, Weight: 0.5, Guidance Start: 0, Guidance End: 1", '
        f'ControlNet 1: "Model: owner/depth, Image: {REF}, Weight: 1, Guidance Start: 0.25, Guidance End: 0.9"'
    )
    assert RenderSpec(**parse_parameters_text(text).fields) == spec


@pytest.mark.parametrize(
    "said",
    [
        # AUTOMATIC1111's own: it has a preprocessor, which we do not run, and no picture.
        "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1, Resize Mode: Crop and Resize, "
        "Processor Res: 512, Guidance Start: 0.0, Guidance End: 1.0, Pixel Perfect: True, Control Mode: Balanced",
        "Model: canny, Weight: 1",
        f"Model: ../canny, Image: {REF}",
        "Model: canny, Image: /etc/passwd",
        f"Model: canny, Image: {REF}, Weight: 3",
        f"Model: canny, Image: {REF}, Guidance Start: 1",
        f"Model: canny, Image: {REF}, Weight: nan",
        f"Model: canny, Image: {REF}, controlnets: x",
        "",
        "None",
    ],
)
def test_a_controlnet_that_is_not_ours_is_kept_as_text(said: str) -> None:
    parsed = parse_parameters_text(
        f'a hat\nSteps: 20, Seed: 1, CFG scale: 7, ControlNet 0: "{said}", ControlNet Version: 1'
    )
    assert "controlnets" not in parsed.fields
    assert parsed.other == {"ControlNet 0": said, "ControlNet Version": "1"}


def test_more_controlnets_than_a_spec_may_have_are_kept_as_text() -> None:
    nets = ", ".join(f'ControlNet {number}: "Model: canny, Image: {REF}"' for number in range(6))
    parsed = parse_parameters_text(f"a hat\nSteps: 20, Seed: 1, {nets}")
    assert len(parsed.fields["controlnets"]) == 4
    assert set(parsed.other) == {"ControlNet 4", "ControlNet 5"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("euler a", "Euler a"),
        ("unipc", "UniPC"),
        ("dpm2 a karras", "DPM2 a Karras"),
        ("lms", "LMS"),
        ("ddim", "DDIM"),
    ],
)
def test_samplers_have_their_familiar_spelling(name: str, shown: str) -> None:
    assert f"Sampler: {shown}, " in parameters_text(RenderSpec(prompt="x", scheduler=name))


# Prompts that the form can hold: no line of theirs may look like the form's own, and it trims white space.
tame = st.from_regex(r"[a-z0-9äé🙂]([a-z0-9äé🙂 ,:\"()]{0,30}[a-z0-9)])?(\n[a-z][a-z ]{0,10}[a-z])?", fullmatch=True)


@given(spec=specs(prompts=tame))
@settings(max_examples=60)
def test_text_gives_back_the_spec_where_the_prompt_is_plain(spec: RenderSpec) -> None:
    parsed = parse_parameters_text(parameters_text(spec))
    has_size = bool(spec.width and spec.height)
    left_out = set() if has_size else {"width", "height"}
    assert RenderSpec(**parsed.fields).model_dump(exclude=left_out) == spec.model_dump(exclude=left_out)
    assert parsed.other == {}


def test_a_text_of_automatic1111_is_read() -> None:
    parsed = parse_parameters_text(
        "masterpiece, (hat:1.2)\nsecond line\nNegative prompt: ugly, blurry\nmore of it\n"
        "Steps: 28, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7, Seed: 965400086, "
        "Size: 512x768, Model hash: 45dee52b, Model: sd_v1.5, Denoising strength: 0.7, Clip skip: 2, "
        'RNG: NV, Lora hashes: "a: 12, b: 34", TI: "say \\"x\\"", Version: v1.9.4'
    )
    assert parsed.fields == {
        "prompt": "masterpiece, (hat:1.2)\nsecond line",
        "negative_prompt": "ugly, blurry\nmore of it",
        "num_inference_steps": 28,
        "scheduler": "dpm++ 2m karras",
        "guidance_scale": 7.0,
        "seed": 965400086,
        "width": 512,
        "height": 768,
        "model": "sd_v1.5",
        "clip_skip": 1,
    }
    assert parsed.other == {
        "Model hash": "45dee52b",
        "Denoising strength": "0.7",  # of the second pass; we have no init image to start from
        "RNG": "NV",
        "Lora hashes": "a: 12, b: 34",
        "TI": 'say "x"',
        "Version": "v1.9.4",
    }


def test_what_our_limits_do_not_allow_is_kept_as_text() -> None:
    parsed = parse_parameters_text("x\nSteps: 5000, Sampler: DPM adaptive, Seed: -1, Size: 500x500, Clip skip: 1")
    assert parsed.fields == {"prompt": "x"}
    assert parsed.other == {"Steps": "5000", "Sampler": "DPM adaptive", "Seed": "-1", "Size": "500x500"}


def test_text_without_settings_is_a_prompt() -> None:
    assert parse_parameters_text("a hat: red, big").fields == {"prompt": "a hat: red, big"}
    assert parse_parameters_text("").fields == {"prompt": ""}


@given(text=st.text(st.sampled_from('abSteps: ,"\\\n\x00🙂1x'), max_size=200))
def test_any_text_is_read_somehow(text: str) -> None:
    parsed = parse_parameters_text(text)
    if "prompt" in parsed.fields:
        RenderSpec(**parsed.fields)


@pytest.mark.parametrize("text", ["a" * 900_000, ":" * 900_000, 'a:"' * 300_000, 'a: "b\\' * 100_000, "a, " * 300_000])
def test_long_odd_text_takes_no_time(text: str) -> None:
    begun = time.process_time()
    parse_parameters_text(text)
    assert time.process_time() - begun < 2
