"""The torch engine: renders on mps, cuda or the CPU with diffusers' own pipelines.

Images are rendered one at a time, on every device: batches crash or come out wrong on mps, and on any device
the bits of an image depend on what shares its batch, so that image k of a job could not be made again alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
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

from . import noise, prompts, quality
from .base import Engine, EngineInfo, OnStep, RenderedImage, WarmUp
from .device import give_memory_back, is_out_of_memory, pick_device, pick_dtype, wants_attention_slicing
from .inputs import Inputs, keep_unmasked, read_inputs
from .libraries import diffusers, known_warnings_ignored, transformers
from .pipelines import Pipelines, StageOptions, Task
from .residency import Residency

#: Finds a model's folder by name and revision; raises ModelNotFoundError.
FindModel = Callable[[str, str | None], Path]
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
    notes: tuple[str, ...]
    #: Filled by the first image; the others share it.
    prompts: prompts.EncodedPrompts | None = None


class TorchEngine(Engine):
    """Renders with torch.

    Args:
        find_model: see `FindModel`.
        device: auto (mps, else cuda, else cpu), or one of these by name.
        dtype: auto (float16 on an accelerator, float32 on the CPU), float32, float16 or bfloat16.

    Raises:
        SettingsError: no such device or precision here.
    """

    def __init__(self, find_model: FindModel, device: str = "auto", dtype: str = "auto") -> None:
        self._find_model = find_model
        self._device = pick_device(device)
        self._options = StageOptions(
            pick_dtype(dtype, self._device), self._device, wants_attention_slicing(self._device)
        )
        self.residency = Residency(after_drop=lambda: give_memory_back(self._device))
        self._models: dict[str, tuple[tuple[Path, int], Pipelines]] = {}

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def dtype(self) -> str:
        return str(self._options.dtype).removeprefix("torch.")

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
        self._typed(lambda: self._warm_up(model, revision))
        return WarmUp(model, time.perf_counter() - start, self.device, self.dtype, self.residency.loaded())

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return EngineInfo(
            engine="torch",
            device=self.device,
            dtype=self.dtype,
            attention_slicing=self._options.attention_slicing,
            versions={library.__name__: library.__version__ for library in (torch, diffusers, transformers)},
            stages=self.residency.loaded(),
        )

    def close(self) -> None:
        """See `Engine.close`."""
        self.residency.drop_all()

    def _open(self, model: str, revision: str | None) -> Pipelines:
        """The pipelines of a model, which is from now on the only one with stages in memory."""
        folder = self._find_model(model, revision)
        name = model if revision is None else f"{model}@{revision}"
        self.residency.drop_others(name)
        index = folder / "model_index.json"
        identity = folder, index.stat().st_mtime_ns if index.exists() else 0
        known = self._models.pop(name, None)
        if known is None or known[0] != identity:  # not seen yet, or fetched anew since
            self.residency.forget(name)
            known = identity, Pipelines(name, folder, self.residency, self._options, _check_decoded)
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
        if spec.init_image is not None:
            for reference in (spec.init_image, spec.mask_image):
                if reference is not None and reference not in inputs:
                    raise ImageInputError(f"the picture {reference} did not come with the job")
            mask = None if spec.mask_image is None else inputs[spec.mask_image]
            pictures = read_inputs(inputs[spec.init_image], mask, size)
        pipeline = pipelines.get(spec.task, safety_checker=spec.safety_checker)
        return _Request(job, pipelines, pipeline, spec.task, size, pictures, prompts.notes(pipeline, spec))

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
        quality.check_not_black(rgb, dtype=self.dtype, device=self._device.type)
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
                request.prompts = prompts.encode(pipeline, spec)
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
        if request.task == "inpaint":
            arguments["mask_image"] = request.inputs.mask if request.inputs else None
        if spec.rng == "numpy":
            scale = request.pipelines.vae_scale_factor
            shape = (1, request.pipelines.latent_channels, height // scale, width // scale)
            drawn = noise.numpy_noise(spec.seed, shape, dtype=self._options.dtype, device=self._device)
            # Inpainting at full strength starts from noise alone, as text-to-image does.
            if request.task == "txt2img" or (request.task == "inpaint" and spec.strength == 1):
                arguments["latents"] = drawn
            else:
                noise.use_noise(scheduler, drawn)
        return arguments

    def _warm_up(self, model: str, revision: str | None) -> None:
        pipelines = self._open(model, revision)
        size = pipelines.native_size
        task: Task = "inpaint" if pipelines.only_inpaints else "txt2img"
        # Of two steps, inpainting at the default strength runs one.
        steps = 2 if pipelines.only_inpaints else 1
        pictures = Inputs(Image.new("RGB", size), Image.new("L", size, 255)) if pipelines.only_inpaints else None
        spec = RenderSpec(model=model, revision=revision, prompt="", num_inference_steps=steps)
        job = make_job(spec, JobOptions(), batch="warm-up", index=0)
        pipeline = pipelines.get(task, safety_checker=True)
        request = _Request(job, pipelines, pipeline, task, size, pictures, ())
        self._run(request, spec, lambda _step, _num_steps: None)

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
            message = f"memory ran out on {self.device} ({self.dtype}): {error}"
        # Outside the handler: its traceback holds on to the tensors of the step that failed.
        give_memory_back(self._device)
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
    if width % unit or height % unit:
        raise InvalidSpecError(f"{width} × {height} does not fit {spec.model!r}: sides must be multiples of {unit}")
    if pipelines.only_inpaints and spec.task != "inpaint":
        raise InvalidSpecError(f"{spec.model!r} is made for inpainting: it needs an init_image and a mask_image")
    pipelines.schedulers.check(spec.scheduler, spec.num_inference_steps)
    return width, height


def _check_decoded(decoded: torch.Tensor) -> None:
    quality.check_finite(decoded, "in the decoded picture")
