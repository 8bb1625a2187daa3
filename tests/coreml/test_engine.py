"""The Core ML engine, on the reference runtime, against the torch modules that its models were converted from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.engine.conftest import Renderer

from renderkiln.schema import errors

from .conftest import Make

# Conversions, some of them by another process that this one waits for.
pytestmark = pytest.mark.timeout(600)
SIZE = (32, 32)
INIT, EDGES, DEPTH = (
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8), "RGB")
    for seed in range(3)
)
MASK = Image.new("L", SIZE, 0)
MASK.paste(255, (16, 0, 32, 32))
TASKS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "img2img": {"init_image": INIT},
    "inpaint": {"init_image": INIT, "mask_image": MASK},
}


def pixels(render: Renderer, **fields: Any) -> np.ndarray:
    for name in ("init_image", "mask_image"):
        if name in fields:
            fields[name] = render.picture(fields[name])
    if "controlnets" in fields:
        fields["controlnets"] = tuple(
            {**control, "image": render.picture(control["image"])} for control in fields["controlnets"]
        )
    image = render(seed=5, **fields)[0]
    return np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3).astype(float)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a - b) ** 2).mean())
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def compare(converted: Renderer, original: Renderer, bar: float = 40.0, **fields: Any) -> None:
    """Renders with both; what torch made must be a picture of some kind, and ours like it."""
    wanted = pixels(original, **fields)
    assert wanted.std() > 10
    assert psnr(pixels(converted, **fields), wanted) > bar
    assert converted.steps == original.steps


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_every_task_with_and_without_guidance(
    converted: Make, original: Make, task: str, guidance_scale: float
) -> None:
    fields = {"guidance_scale": guidance_scale, "negative_prompt": "blue" if guidance_scale > 1 else ""}
    compare(converted("tiny"), original("tiny"), **fields, **TASKS[task])


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_a_unet_of_batch_one_in_chunks(converted: Make, original: Make, guidance_scale: float) -> None:
    compare(converted("tiny-one"), original("tiny"), guidance_scale=guidance_scale)


@pytest.mark.parametrize("rng", ["torch", "numpy"])
@pytest.mark.parametrize("scheduler", ["euler a", "dpm++ 2m karras", "heun"])
def test_schedulers_and_noise(converted: Make, original: Make, scheduler: str, rng: str) -> None:
    compare(converted("tiny"), original("tiny"), scheduler=scheduler, rng=rng, num_inference_steps=5)


@pytest.mark.parametrize("task", TASKS)
def test_sdxl(converted: Make, original: Make, task: str) -> None:
    compare(converted("xl-pictures"), original("xl"), guidance_scale=5.0, **TASKS[task])


def test_a_consistency_model_is_told_its_guidance(converted: Make, original: Make) -> None:
    ours, theirs = converted("lcm-core"), original("lcm")
    compare(ours, theirs, guidance_scale=8.0, num_inference_steps=4)
    assert not np.array_equal(pixels(ours, guidance_scale=8.0), pixels(ours, guidance_scale=2.0))


def test_a_unet_that_only_paints(converted: Make, original: Make) -> None:
    compare(converted("painter-pictures"), original("painter"), **TASKS["inpaint"])


@pytest.mark.parametrize("task", TASKS)
def test_controlnets_add_up(converted: Make, original: Make, task: str) -> None:
    controls = (
        {"model": "edges", "image": EDGES, "conditioning_scale": 0.7, "guidance_end": 0.6},
        {"model": "depth", "image": DEPTH},
    )
    compare(converted("tiny-controls"), original("tiny"), num_inference_steps=4, controlnets=controls, **TASKS[task])


def test_a_unet_for_controlnets_renders_without_them_too(converted: Make, original: Make) -> None:
    ours = converted("tiny-controls")
    compare(ours, original("tiny"))
    stages = [stage.stage for stage in ours.engine.describe().stages]
    assert "control-unet" not in stages  # it is the UNet that there is
    assert "unet" in stages


def test_the_safety_checker_is_asked_only_where_it_is_wanted(converted: Make) -> None:
    render = converted("tiny")
    pixels(render, safety_checker=False)
    assert "safety_checker" not in [stage.stage for stage in render.engine.describe().stages]
    pixels(render)
    assert "safety_checker" in [stage.stage for stage in render.engine.describe().stages]


def test_each_size_that_there_is_and_no_other(converted: Make, original: Make) -> None:
    ours = converted("tiny-sizes")
    compare(ours, original("tiny"))
    wide = pixels(ours, width=48, height=32)
    assert wide.shape == (32, 48, 3)
    assert psnr(wide, pixels(original("tiny"), width=48, height=32)) > 40
    before = ours.engine.residency.counts.loads
    with pytest.raises(errors.InvalidSpecError, match=r"64 × 32.*32 × 32, 48 × 32"):
        ours(width=64, height=32)
    assert ours.engine.residency.counts.loads == before


def test_what_the_stages_cannot_do_is_said_before_anything_is_loaded(converted: Make) -> None:
    ours = converted("tiny-one")
    for message, fields in {
        "clip_skip": {"clip_skip": 1},
        "no vae_encoder": {"init_image": ours.picture(INIT)},
    }.items():
        with pytest.raises(errors.InvalidSpecError, match=message):
            ours(**fields)
    with pytest.raises(errors.ModelNotFoundError, match=r"without the ControlNet 'edges'.*none"):
        ours(controlnets=({"model": "edges", "image": ours.picture(EDGES)},))
    assert ours.engine.residency.counts.loads == 0


def test_an_unknown_controlnet_names_those_that_there_are(converted: Make) -> None:
    ours = converted("tiny-controls")
    with pytest.raises(errors.ModelNotFoundError, match=r"Did you mean.*edges.*It has"):
        ours(controlnets=({"model": "edge", "image": ours.picture(EDGES)},))


def test_it_says_what_it_is(converted: Make) -> None:
    engine = converted("tiny").engine
    warm = engine.warm_up("tiny")
    assert (warm.device, warm.dtype) == ("reference", "float16")
    every = {"text_encoder", "unet", "vae_decoder", "vae_encoder", "safety_checker"}
    assert {stage.stage for stage in warm.stages} == every
    assert all(stage.size_bytes > 1000 for stage in warm.stages)
    assert engine.describe().engine == "coreml"
