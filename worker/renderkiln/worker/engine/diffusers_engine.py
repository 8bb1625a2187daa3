"""The engine: renders jobs with diffusers' own pipelines, whatever runs the stages.

Images are rendered one at a time, on every device: batches crash or come out wrong on mps, and on any device
the bits of an image depend on what shares its batch, so that image k of a job could not be made again alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from renderkiln.schema.errors import (
    ImageInputError,
    InvalidSpecError,
    OutOfMemoryError,
    RenderFailedError,
    RenderkilnError,
    SafetyFilteredError,
)
from renderkiln.schema.jobs import Job, JobOptions, make_job
from renderkiln.schema.spec import RenderSpec

from . import noise, prompts, quality, self_test
from .base import Engine, EngineInfo, OnStep, RenderedImage, WarmUp
from .device import give_memory_back, is_out_of_memory
from .inputs import Inputs, keep_unmasked, read_inputs, read_picture
from .libraries import diffusers, known_warnings_ignored, transformers
from .model_stages import OpenStages
from .pipelines import Pipelines, Task
from .prompts import Embed
from .residency import Residency

#: Finds a model's folder by name and revision; raises ModelNotFoundError.
FindModel = Callable[[str, str | None], Path]
#: What changes when a model's folder is fetched or converted anew.
Identity = tuple[Path, tuple[tuple[str, int], ...]]
#: Models whose pipelines (tokenizers and settings, a few MB each; no weights) stay when another takes over.
_MODELS_KEPT = 8
_T = TypeVar("_T")


class _StepFailedError(Exception):
    """Carries what `on_step` raised through the pipeline: that is not a fault of the rendering."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason
        super().__init__(str(reason))


@dataclass
class _Request:
    """A job, checked against its model."""

    job: Job
    pipelines: Pipelines
    pipeline: Any
    task: Task
    size: tuple[int, int]
    inputs: Inputs | None
    #: A picture for each of the spec's ControlNets, in RGB and of the job's size.
    controls: tuple[Image.Image, ...]
    notes: tuple[str, ...]
    #: Filled by the first image; the others share it.
    prompts: prompts.EncodedPrompts | None = None
    #: Takes the place of whatever would embed the prompts; of a self-test.
    embed: Embed | None = None


class DiffusersEngine(Engine):
    """Renders the jobs of any number of models, one model at a time in memory.

    Args:
        find_model: see `FindModel`.
        open_stages: opens the stages of a model's folder; two models may well have different kinds of them.
        info: what this engine says of itself before a model was opened.
    """

    def __init__(self, find_model: FindModel, open_stages: OpenStages, info: EngineInfo) -> None:
        self._find_model, self._open_stages = find_model, open_stages
        self._info = info
        self.residency = Residency(after_drop=give_memory_back)
        self._models: dict[str, tuple[Identity, Pipelines]] = {}

    def render(
        self, job: Job, inputs: Mapping[str, bytes], *, skip: Collection[int] = (), on_step: OnStep
    ) -> Iterator[RenderedImage]:
        """See `Engine.render`."""
        wanted = [k for k in range(job.num_images) if k not in skip]
        if not wanted:
            return
        request = self._typed(lambda: self._prepare(job, inputs))
        for k in wanted:
            yield self._typed(partial(self._render_image, request, k, on_step))

    def warm_up(self, model: str, revision: str | None = None) -> WarmUp:
        """See `Engine.warm_up`."""
        start = time.perf_counter()
        likeness = self._typed(lambda: self._warm_up(model, revision))
        seconds = time.perf_counter() - start
        return WarmUp(model, seconds, self._info.device, self._info.dtype, self.residency.loaded(), likeness)

    def self_test_picture(self, model: str, revision: str | None = None) -> np.ndarray:
        """The picture of a converted model's self-test: (H, W, 3) uint8. Raises RenderkilnError."""
        return self._typed(lambda: self._self_test(self._open(model, revision)))

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        versions = {library.__name__: library.__version__ for library in (torch, diffusers, transformers)}
        return replace(self._info, versions={**versions, **self._info.versions}, stages=self.residency.loaded())

    def close(self) -> None:
        """See `Engine.close`."""
        self.residency.drop_all()

    def _open(self, model: str, revision: str | None) -> Pipelines:
        """The pipelines of a model, which is from now on the only one with stages in memory."""
        folder = self._find_model(model, revision)
        name = model if revision is None else f"{model}@{revision}"
        self.residency.drop_others(name)
        identity = _identity(folder)
        known = self._models.pop(name, None)
        if known is None or known[0] != identity:  # not seen yet, or fetched anew since
            self.residency.forget(name)
            known = identity, Pipelines(name, folder, self._open_stages(model, folder), self.residency, _check_decoded)
        self._info = known[1].stages.info
        self._models[name] = known
        if len(self._models) > _MODELS_KEPT:
            oldest = next(iter(self._models))
            del self._models[oldest]
            self.residency.forget(oldest)
        return known[1]

    def _prepare(self, job: Job, inputs: Mapping[str, bytes]) -> _Request:
        """Finds out all that can be found out before a stage is loaded."""
        spec = job.spec
        pipelines = self._open(spec.model, spec.revision)
        size = _check_fit(pipelines, spec)
        pictures = None
        for reference in spec.pictures:
            if reference not in inputs:
                raise ImageInputError(f"the picture {reference} did not come with the job")
        if spec.init_image is not None:
            mask = None if spec.mask_image is None else inputs[spec.mask_image]
            pictures = read_inputs(inputs[spec.init_image], mask, size)
        controls = tuple(
            read_picture(inputs[each.image], f"picture for {each.model}", size) for each in spec.controlnets
        )
        names = tuple(each.model for each in spec.controlnets)
        pipeline = pipelines.get(spec.task, safety_checker=spec.safety_checker, controlnets=names)
        said = prompts.notes(pipeline, spec)
        return _Request(job, pipelines, pipeline, spec.task, size, pictures, controls, said)

    def _render_image(self, request: _Request, k: int, on_step: OnStep) -> RenderedImage:
        start = time.perf_counter()
        loads, load_seconds = self.residency.loads, self.residency.load_seconds
        spec = request.job.image_spec(k)

        def step_done(step: int, num_steps: int) -> None:
            try:
                on_step(k, step, num_steps)
            except Exception as error:
                raise _StepFailedError(error) from None

        image, flagged = self._run(request, spec, step_done)
        if flagged:
            raise SafetyFilteredError(
                f"the model's safety checker hid image {k} (seed {spec.seed}); "
                "change the prompt or the seed, or switch safety_checker off"
            )
        rgb = quality.to_rgb(image)
        quality.check_not_black(rgb, dtype=self._info.dtype, device=self._info.device)
        if request.inputs is not None:
            rgb = keep_unmasked(rgb, request.inputs)
        return RenderedImage(
            k=k,
            seed=spec.seed,
            width=rgb.shape[1],
            height=rgb.shape[0],
            rgb=np.ascontiguousarray(rgb).tobytes(),
            seconds=time.perf_counter() - start,
            loads=self.residency.loads - loads,
            load_seconds=self.residency.load_seconds - load_seconds,
            notes=request.notes,
        )

    def _run(
        self, request: _Request, spec: RenderSpec, step_done: Callable[[int, int], None]
    ) -> tuple[torch.Tensor, bool]:
        """One call of the pipeline: the picture, (1, 3, H, W) in [0, 1], and whether it was found unsafe."""
        pipeline = request.pipeline

        def after_step(_pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            # What will run is only known here: image-to-image leaves steps out, and some schedulers add some.
            step, num_steps = index + 1, pipeline.num_timesteps
            quality.check_finite(tensors["latents"], f"after step {step} of {num_steps}")
            step_done(step, num_steps)
            return {}

        with torch.inference_mode():
            if request.prompts is None:
                embed = request.embed or request.pipelines.embedder(spec)
                request.prompts = prompts.encode(pipeline, spec, embed)
                request.notes += request.prompts.notes
            pipeline.scheduler = request.pipelines.schedulers.build(spec.scheduler, spec.seed)
            output = pipeline(
                **request.prompts.arguments,
                **self._task_arguments(request, spec, pipeline.scheduler),
                num_inference_steps=spec.num_inference_steps,
                guidance_scale=spec.guidance_scale,
                generator=noise.generator(spec.seed),
                output_type="pt",
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=["latents"],
            )
        flags = getattr(output, "nsfw_content_detected", None)
        return output.images, bool(flags and flags[0])

    def _task_arguments(self, request: _Request, spec: RenderSpec, scheduler: Any) -> dict[str, Any]:
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

    def _warm_up(self, model: str, revision: str | None) -> float | None:
        """Renders a step on every stage that a plain job needs; on every one that there is of a converted model."""
        pipelines = self._open(model, revision)
        rgb = self._self_test(pipelines)
        stored = pipelines.stages.self_test
        if stored is None:
            return None
        if pipelines.stages.has("vae_encoder") and not pipelines.only_inpaints:
            self._self_test(pipelines, "img2img")
        quality.check_not_black(rgb, dtype=self._info.dtype, device=self._info.device)
        return self_test.likeness(rgb, stored) if stored.is_file() else None

    def _self_test(self, pipelines: Pipelines, task: Task = "txt2img") -> np.ndarray:
        size = pipelines.native_size
        if pipelines.only_inpaints:
            task = "inpaint"
        # Of two steps, those that start from a picture at the default strength run one.
        spec = self_test.spec_of(1 if task == "txt2img" else 2)
        grey, mask = Image.new("RGB", size, "grey"), Image.new("L", size, 255)
        pictures = None if task == "txt2img" else Inputs(grey, mask if task == "inpaint" else None)
        job = make_job(spec, JobOptions(), batch="self-test", index=0)
        pipeline = pipelines.get(task, safety_checker=True)
        embed = pipelines.test_embedder()
        request = _Request(job, pipelines, pipeline, task, size, pictures, (), (), embed=embed)
        image, _ = self._run(request, spec, lambda _step, _num_steps: None)
        return quality.to_rgb(image)

    def _typed(self, work: Callable[[], _T]) -> _T:
        """Runs `work`; whatever it raises comes out as a RenderkilnError, but for what `on_step` raised."""
        try:
            with known_warnings_ignored():
                return work()
        except _StepFailedError as error:
            raise error.reason from None
        except RenderkilnError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise RenderFailedError(f"{type(error).__name__}: {error}") from error
            message = f"memory ran out on {self._info.device} ({self._info.dtype}): {error}"
        # Outside the handler: its traceback holds on to the tensors of the step that failed.
        give_memory_back()
        raise OutOfMemoryError(message)


def _check_fit(pipelines: Pipelines, spec: RenderSpec) -> tuple[int, int]:
    """The size of the picture, (width, height) in pixels.

    Raises:
        InvalidSpecError: the model cannot do what the spec asks for.
    """
    native_width, native_height = pipelines.native_size
    width, height = spec.width or native_width, spec.height or native_height
    # Both: diffusers wants pixels in eights, and a latent pixel may be larger than that.
    unit = max(8, pipelines.vae_scale_factor)
    sizes = pipelines.stages.sizes
    if sizes and (width, height) not in sizes:
        there = ", ".join(f"{each[0]} × {each[1]}" for each in sizes)
        raise InvalidSpecError(
            f"{width} × {height}: {spec.model!r} was converted for {there} and has no other size. "
            "Ask for one of these, or convert it with --sizes"
        )
    if width % unit or height % unit:
        raise InvalidSpecError(f"{width} × {height} does not fit {spec.model!r}: sides must be multiples of {unit}")
    if pipelines.only_inpaints and spec.task != "inpaint":
        raise InvalidSpecError(f"{spec.model!r} is made for inpainting: it needs an init_image and a mask_image")
    pipelines.check(spec)
    pipelines.schedulers.check(spec.scheduler, spec.num_inference_steps)
    return width, height


def _check_decoded(decoded: torch.Tensor) -> None:
    quality.check_finite(decoded, "in the decoded picture")


def _identity(folder: Path) -> Identity:
    files = sorted([folder / "model_index.json", *folder.glob("manifest.json"), *folder.glob("*/manifest.json")])
    return folder, tuple((file.name, file.stat().st_mtime_ns) for file in files if file.is_file())
