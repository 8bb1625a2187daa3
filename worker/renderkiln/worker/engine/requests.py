"""A job, checked against its model before a stage is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from renderkiln.schema.errors import ImageInputError, InvalidSpecError, UnsupportedHereError
from renderkiln.schema.jobs import Job
from renderkiln.schema.spec import RenderSpec

from ..memory.planning import StageKey
from ..runtimes.naming import PROJECTION
from . import prompts
from .inputs import Inputs, read_inputs, read_picture
from .pipelines import Pipelines, Task
from .prompts import Embed


@dataclass
class Request:
    """A job and all that its images share."""

    job: Job
    pipelines: Pipelines
    pipeline: Any
    task: Task
    #: Width and height, in pixels.
    size: tuple[int, int]
    inputs: Inputs | None
    #: A picture for each of the spec's ControlNets, in RGB and of the job's size.
    controls: tuple[Image.Image, ...]
    notes: tuple[str, ...]
    prompts: prompts.EncodedPrompts | None = None
    #: Takes the place of whatever would embed the prompts; of a self-test.
    embed: Embed | None = None

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def text_encoders(self) -> tuple[StageKey, ...]:
        """What encodes the prompts, in the order in which the pipeline calls it."""
        if self.embed is not None or self.job.spec.text_encoder != "model":
            return (self._key(PROJECTION),)
        names = ("text_encoder", "text_encoder_2") if self.pipelines.family == "sdxl" else ("text_encoder",)
        return tuple(self._key(name) for name in names)

    @property
    def controlnets(self) -> tuple[StageKey, ...]:
        """In the order of their pictures; one may be there twice."""
        return tuple(self._key(f"controlnet-{each.model}") for each in self.job.spec.controlnets)

    @property
    def unet(self) -> StageKey:
        controlled = self.controls and self.pipelines.stages.has("control-unet")
        return self._key("control-unet" if controlled else "unet")

    @property
    def decoder(self) -> StageKey:
        return self._key("vae_decoder")

    @property
    def order(self) -> tuple[StageKey, ...]:
        """The stages that the job puts to work, each once, in their order."""
        encoder = () if self.task == "txt2img" else (self._key("vae_encoder"),)
        checker = (self._key("safety_checker"),) if getattr(self.pipeline, "safety_checker", None) is not None else ()
        order = (*self.text_encoders, *encoder, *self.controlnets, self.unet, self.decoder, *checker)
        return tuple(dict.fromkeys(order))  # a ControlNet may be there twice, with two pictures

    def _key(self, stage: str) -> StageKey:
        return StageKey(self.pipelines.name, stage)


def check(job: Job, pipelines: Pipelines, inputs: Mapping[str, bytes]) -> Request:
    """Finds out all that can be found out before a stage is loaded.

    Raises:
        InvalidSpecError, ImageInputError, ModelNotFoundError, ModelLoadError: why it cannot be rendered.
    """
    spec = job.spec
    size = _check_fit(pipelines, spec)
    pictures = None
    for reference in spec.pictures:
        if reference not in inputs:
            raise ImageInputError(f"the picture {reference} did not come with the job")
    if spec.init_image is not None:
        mask = None if spec.mask_image is None else inputs[spec.mask_image]
        pictures = read_inputs(inputs[spec.init_image], mask, size)
    controls = tuple(read_picture(inputs[each.image], f"picture for {each.model}", size) for each in spec.controlnets)
    names = tuple(each.model for each in spec.controlnets)
    pipeline = pipelines.get(spec.task, safety_checker=spec.safety_checker, controlnets=names)
    said = prompts.notes(pipeline, spec)
    return Request(job, pipelines, pipeline, spec.task, size, pictures, controls, said)


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
        raise UnsupportedHereError(
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
