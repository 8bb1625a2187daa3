"""ControlNets on the torch engine, against diffusers' own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from renderkiln.schema import errors
from renderkiln.worker.engine.libraries import diffusers

from .conftest import Renderer

SIZE = (32, 32)
INIT, EDGES, DEPTH = (
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8), "RGB")
    for seed in range(3)
)
MASK = Image.new("L", SIZE, 0)
MASK.paste(255, (16, 0, 32, 32))


def pixels(rgb: bytes) -> np.ndarray:
    return np.frombuffer(rgb, np.uint8).reshape(*SIZE, 3)


def control(render: Renderer, model: str, picture: Image.Image, **fields: Any) -> dict[str, Any]:
    return {"model": model, "image": render.picture(picture), **fields}


@pytest.fixture
def theirs(library: Path) -> Any:
    """The picture of a pipeline of diffusers, loaded as usual."""

    def run(kind: str, model: str, controlnets: list[str], **call: Any) -> np.ndarray:
        nets = [diffusers.ControlNetModel.from_pretrained(library / name) for name in controlnets]
        pipeline = getattr(diffusers, kind).from_pretrained(
            library / model, controlnet=nets[0] if len(nets) == 1 else nets
        )
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(5)
        call = {"prompt": "a red circle", "num_inference_steps": 4, "guidance_scale": 7.5, **call}
        return np.asarray(pipeline(generator=generator, **call).images[0])

    return run


TASKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "txt2img": ("", {}, {"image": EDGES}),
    "img2img": ("Img2Img", {"init_image": INIT}, {"image": INIT, "control_image": EDGES, "strength": 0.8}),
    "inpaint": (
        "Inpaint",
        {"init_image": INIT, "mask_image": MASK},
        {"image": INIT, "mask_image": MASK, "control_image": EDGES, "strength": 0.8},
    ),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("model", "family"), [("tiny", "StableDiffusion"), ("tiny-xl", "StableDiffusionXL")])
def test_one_controlnet_equals_the_plain_pipeline(
    render: Renderer, theirs: Any, task: str, model: str, family: str
) -> None:
    suffix, pictures, call = TASKS[task]
    name = "edges-xl" if model == "tiny-xl" else "edges"
    fields = {key: render.picture(picture) for key, picture in pictures.items()}
    controls = (control(render, name, EDGES, conditioning_scale=0.7, guidance_end=0.6),)
    ours = render(model=model, seed=5, num_inference_steps=4, controlnets=controls, **fields)[0]
    if task != "img2img":
        call = {**call, "width": 32, "height": 32}
    wanted = theirs(
        f"{family}ControlNet{suffix}Pipeline",
        model,
        [name],
        controlnet_conditioning_scale=0.7,
        control_guidance_end=0.6,
        **call,
    )
    # What inpainting keeps is the init image's own.
    assert np.array_equal(pixels(ours.rgb)[:, 16:], wanted[:, 16:])
    free = render(model=model, seed=5, num_inference_steps=4, **fields)[0]
    assert free.rgb != ours.rgb


def test_two_controlnets_add_up(render: Renderer, theirs: Any) -> None:
    controls = (control(render, "edges", EDGES), control(render, "depth", DEPTH, conditioning_scale=0.5))
    ours = render(seed=5, num_inference_steps=4, controlnets=controls)[0]
    scales = {"controlnet_conditioning_scale": [1.0, 0.5]}
    wanted = theirs("StableDiffusionControlNetPipeline", "tiny", ["edges", "depth"], image=[EDGES, DEPTH], **scales)
    assert np.array_equal(pixels(ours.rgb), wanted)
    assert render.engine.residency.loaded()[-1].stage.startswith("controlnet-")


def test_a_picture_of_another_size_is_fitted(render: Renderer) -> None:
    large = EDGES.resize((64, 64), Image.Resampling.NEAREST)
    assert render(controlnets=(control(render, "edges", large),))[0].width == 32


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("not-there", errors.ModelNotFoundError, "no model 'not-there'"),
        ("other", errors.InvalidSpecError, "'other' is not a ControlNet"),
    ],
)
def test_what_is_no_controlnet_is_said_before_anything_is_loaded(
    render: Renderer, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        render(controlnets=(control(render, name, EDGES),))
    assert not render.engine.residency.loaded()


def test_a_picture_that_did_not_come_is_an_error(render: Renderer) -> None:
    missing = {"model": "edges", "image": "sha256:" + "0" * 64}
    with pytest.raises(errors.ImageInputError, match="did not come"):
        render(controlnets=(missing,))
