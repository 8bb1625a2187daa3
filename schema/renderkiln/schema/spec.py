"""`RenderSpec`: all that decides the pixels of an image.

Two specs with the same digest give the same picture on the same engine and device. What a person wants besides (how
many, how urgent, where to) belongs to the job, in `jobs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from typing_extensions import Self

from .canonical import digest
from .errors import InvalidSpecError, did_you_mean
from .schedulers import canonical_name, most_steps

MAX_SEED = 2**32 - 1
MAX_PROMPT = 10_000
MAX_SIDE = 4096
MAX_CONTROLNETS = 4


def clean_text(text: str) -> str:
    """Refuses what no file, terminal or tokenizer should be handed: NUL and unpaired surrogates."""
    if "\x00" in text:
        raise ValueError("text must not hold NUL characters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text is not valid Unicode (unpaired surrogate at {error.start})") from None
    return text


def _scheduler(name: str) -> str:
    try:
        return canonical_name(name)
    except InvalidSpecError as error:
        raise ValueError(str(error)) from None


PromptText = Annotated[str, StringConstraints(max_length=MAX_PROMPT), AfterValidator(clean_text)]
#: A model's name in the model store, or `owner/name` as the Hub writes it. Never a path.
ModelName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
]
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")]
#: A picture that travels beside the job, named by the SHA-256 of its bytes.
ImageRef = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=8, le=MAX_SIDE, multiple_of=8)]
#: Who reads the prompts: the model's own text encoder, or macOS's.
TextEncoder = Literal["model", "system-multilingual"]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Frozen(BaseModel):
    """A value: immutable, strict about unknown fields, without NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ControlNet(Frozen):
    """One ControlNet beside the model, and the picture (edges, depth, a pose …) that it holds the image to."""

    model: ModelName = Field(description="Name of the ControlNet in the model store, or owner/name.")
    image: ImageRef = Field(description="Picture that the ControlNet follows, prepared for its kind.")
    conditioning_scale: float = Field(1.0, ge=0, le=2, description="How closely to follow the picture; 0: not at all.")
    guidance_start: float = Field(0.0, ge=0, le=1, description="Share of the steps after which it begins.")
    guidance_end: float = Field(1.0, ge=0, le=1, description="Share of the steps after which it ends.")

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if self.guidance_start >= self.guidance_end:
            raise ValueError(
                f"a ControlNet's guidance_start ({self.guidance_start:g}) must be less than its guidance_end "
                f"({self.guidance_end:g})"
            )
        return self


class RenderSpec(Frozen):
    """Everything that decides the pixels of one image; names and defaults as diffusers has them, where it has them."""

    model: ModelName = Field("shapes", description="Name of the model in the model store, or owner/name.")
    revision: Revision | None = Field(None, description="Revision of the model; empty: the one that is there.")
    prompt: PromptText = Field(description="What to render.")
    negative_prompt: PromptText = Field("", description="What to keep out.")
    seed: Seed = Field(0, description="Seed of the first image; image k has seed + k.")
    num_inference_steps: int = Field(20, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(7.5, ge=0, le=50, description="How closely to follow the prompt; 1 or less: off.")
    scheduler: Annotated[str, StringConstraints(max_length=100), AfterValidator(_scheduler)] | None = Field(
        None, description="Scheduler by familiar name ('euler a') or diffusers class name; empty: the model's own."
    )
    width: Side | None = Field(None, description="Width in pixels, a multiple of 8; empty: the model's own.")
    height: Side | None = Field(None, description="Height in pixels, a multiple of 8; empty: the model's own.")
    rng: Literal["torch", "numpy"] = Field("torch", description="Whose random numbers make the first noise.")
    init_image: ImageRef | None = Field(None, description="Picture to start from (image-to-image, inpainting).")
    mask_image: ImageRef | None = Field(None, description="Mask for inpainting: white is painted, black stays.")
    strength: float = Field(0.8, gt=0, le=1, description="How far from the init image to go; 1: all the way.")
    controlnets: tuple[ControlNet, ...] = Field(
        (), max_length=MAX_CONTROLNETS, description="ControlNets, each with its picture; what they ask for adds up."
    )
    text_encoder: TextEncoder = Field(
        "model", description="Who reads the prompts: the model, or macOS (14 or later) for models made for that."
    )
    script: Literal["latin", "cyrillic", "cjk"] = Field(
        "latin", description="In which script the prompts are, where macOS reads them."
    )
    clip_skip: int | None = Field(None, ge=1, le=12, description="Layers of the text encoder to leave out.")
    safety_checker: bool = Field(True, description="Run the model's safety checker, where it has one.")

    @model_validator(mode="after")
    def _images_fit_together(self) -> Self:
        if self.mask_image is not None and self.init_image is None:
            raise ValueError("mask_image needs an init_image to paint on")
        if self.init_image is None and "strength" in self.model_fields_set and self.strength != 0.8:
            raise ValueError("strength needs an init_image to start from")
        if self.init_image is not None and int(self.num_inference_steps * self.strength) < 1:
            raise ValueError(
                f"strength {self.strength:g} of {self.num_inference_steps} steps leaves no step: raise one of them"
            )
        return self

    @model_validator(mode="after")
    def _text_encoder_can(self) -> Self:
        if self.text_encoder == "model" and self.script != "latin":
            raise ValueError("script is for text_encoder system-multilingual; the model's own reads what it was taught")
        if self.text_encoder != "model" and self.clip_skip is not None:
            raise ValueError("clip_skip is for the model's own text encoder; leave it out, or text_encoder")
        return self

    @model_validator(mode="after")
    def _scheduler_makes_the_steps(self) -> Self:
        most = None if self.scheduler is None else most_steps(self.scheduler)
        if most is not None and self.num_inference_steps > most:
            raise ValueError(
                f"scheduler {self.scheduler!r} makes at most {most} steps, and num_inference_steps is "
                f"{self.num_inference_steps}: lower it, or choose another scheduler"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over canonical JSON of the fields that differ from their defaults: 64 hex digits."""
        return digest(self.model_dump(mode="json", exclude_defaults=True))

    @property
    def task(self) -> Literal["txt2img", "img2img", "inpaint"]:
        """Which kind of pipeline the spec asks for."""
        if self.init_image is None:
            return "txt2img"
        return "img2img" if self.mask_image is None else "inpaint"

    @property
    def pictures(self) -> tuple[str, ...]:
        """References of all pictures that travel beside the spec, each once: init image, mask, ControlNets' images."""
        found = (self.init_image, self.mask_image, *(each.image for each in self.controlnets))
        return tuple(dict.fromkeys(reference for reference in found if reference is not None))

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models that the spec needs, each once, its own first."""
        return tuple(dict.fromkeys((self.model, *(each.model for each in self.controlnets))))

    def for_image(self, k: int) -> RenderSpec:
        """The spec of image `k` of a job alone: the same with seed + k (modulo 2**32)."""
        return self if k == 0 else self.model_copy(update={"seed": (self.seed + k) % (MAX_SEED + 1)})


def describe_validation_error(error: ValidationError, fields: Mapping[str, Any]) -> str:
    """Turns pydantic's findings into one plain sentence per field, with the nearest name for an unknown one."""
    said = []
    for finding in error.errors(include_url=False):
        name = ".".join(str(part) for part in finding["loc"]) or "spec"
        if finding["type"] == "extra_forbidden":
            inside = ControlNet.model_fields if finding["loc"][0] == "controlnets" else fields
            said.append(f"unknown field {name!r}.{did_you_mean(str(finding['loc'][-1]), inside)}")
        elif finding["type"] == "missing":
            said.append(f"field {name!r} is missing")
        elif finding["type"] == "value_error":
            said.append(str(finding["msg"]).removeprefix("Value error, "))
        else:
            shown = repr(finding["input"])
            shown = shown if len(shown) <= 60 else shown[:57] + "…"
            said.append(f"{name} = {shown}: {finding['msg'][0].lower()}{finding['msg'][1:]}")
    return "; ".join(said)


def parse_spec(fields: Mapping[str, Any]) -> RenderSpec:
    """A `RenderSpec` from a mapping.

    Raises:
        InvalidSpecError: a field is unknown, missing or outside its limits.
    """
    try:
        return RenderSpec.model_validate(dict(fields))
    except ValidationError as error:
        raise InvalidSpecError(describe_validation_error(error, RenderSpec.model_fields)) from None
