"""One call of a diffusers pipeline, as far as its latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from renderkiln.schema.spec import RenderSpec

from . import noise, quality
from .requests import Request

#: Called after each step as (step, num_steps), step from 1; may raise.
StepDone = Callable[[int, int], None]


def denoise(request: Request, spec: RenderSpec, step_done: StepDone) -> torch.Tensor:
    """The latents, (1, 4, h, w), of one image; its prompts are encoded already.

    Raises:
        BadImageError: NaN after a step. What `step_done` raises.
    """
    pipeline = request.pipeline
    assert request.prompts is not None

    def after_step(_pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        # What will run is only known here: image-to-image leaves steps out, and some schedulers add some.
        step, num_steps = index + 1, pipeline.num_timesteps
        quality.check_finite(tensors["latents"], f"after step {step} of {num_steps}")
        step_done(step, num_steps)
        return {}

    pipeline.scheduler = request.pipelines.schedulers.build(spec.scheduler, spec.seed)
    latents: torch.Tensor = pipeline(
        **request.prompts.arguments,
        **_task_arguments(request, spec, pipeline.scheduler),
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        generator=noise.generator(spec.seed),
        output_type="latent",
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=["latents"],
    ).images
    return latents


def _task_arguments(request: Request, spec: RenderSpec, scheduler: Any) -> dict[str, Any]:
    """What one kind of pipeline takes besides: size, pictures, and a first noise that is not torch's."""
    width, height = request.size
    arguments: dict[str, Any] = {}
    if request.task != "img2img":  # there, the init image has the size
        arguments |= {"width": width, "height": height}
    if request.inputs is not None:
        arguments |= {"image": request.inputs.init, "strength": spec.strength}
    if request.controls:
        arguments |= {
            "image" if request.task == "txt2img" else "control_image": list(request.controls),
            "controlnet_conditioning_scale": [each.conditioning_scale for each in spec.controlnets],
            "control_guidance_start": [each.guidance_start for each in spec.controlnets],
            "control_guidance_end": [each.guidance_end for each in spec.controlnets],
        }
    if request.task == "inpaint":
        arguments["mask_image"] = request.inputs.mask if request.inputs else None
    if spec.rng == "numpy":
        scale = request.pipelines.vae_scale_factor
        shape = (1, request.pipelines.latent_channels, height // scale, width // scale)
        drawn = noise.numpy_noise(
            spec.seed, shape, dtype=request.pipelines.latents_dtype, device=request.pipelines.stages.device
        )
        # Inpainting at full strength starts from noise alone, as text-to-image does.
        if request.task == "txt2img" or (request.task == "inpaint" and spec.strength == 1):
            arguments["latents"] = drawn
        else:
            noise.use_noise(scheduler, drawn)
    return arguments
