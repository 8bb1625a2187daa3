"""What `renderkiln convert` was asked for, checked before anything is read or written. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from renderkiln.schema.errors import BadInputError, did_you_mean

Attention = Literal["original", "split-einsum", "split-einsum-v2"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
Target = Literal["macOS13", "macOS14", "macOS15"]
TARGETS: tuple[Target, ...] = get_args(Target)
Format = Literal["coreml", "coreai"]
Precision = Literal["float16", "float32"]
Bits = Literal[1, 2, 4, 6, 8]
BITS: tuple[int, ...] = get_args(Bits)
#: In the order in which they are converted. `controlnet` stands for every ControlNet that was named.
STAGES = (
    "text_encoder",
    "text_encoder_2",
    "unet",
    "control-unet",
    "controlnet",
    "vae_decoder",
    "vae_encoder",
    "safety_checker",
)
#: What --nbits makes smaller. A VAE and a safety checker are small, and palettes show in a VAE's pictures at once.
COMPRESSED = ("text_encoder", "text_encoder_2", "unet", "control-unet", "controlnet")
#: Flags that are called otherwise than their field.
_FLAGS = {"target": "deployment-target", "loras": "lora", "recipes": "recipe"}
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class Lora(BaseModel):
    """A LoRA to fuse into the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    weight: float = Field(default=1.0, allow_inf_nan=False)

    @classmethod
    def parse(cls, text: str) -> Lora:
        """`PATH` or `PATH:WEIGHT`. Raises BadInputError."""
        path, colon, weight = text.rpartition(":")
        # A path may hold colons itself: what follows the last one is a weight only where no such file is.
        if not colon or Path(text).expanduser().exists():
            return cls(path=Path(text).expanduser())
        try:
            return cls(path=Path(path).expanduser(), weight=float(weight))
        except ValueError:
            raise BadInputError(
                f"--lora {text}: {weight!r} is no number; write PATH:WEIGHT, say style.safetensors:0.8"
            ) from None


class ConvertOptions(BaseModel):
    """How to convert a model; which model is in `source.Source`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format = "coreml"
    #: Of all that is computed, and of the weights that --nbits does not make smaller.
    precision: Precision = "float16"
    attention: Attention = "original"
    #: Width and height in pixels, the default one first; empty: the model's own.
    sizes: tuple[tuple[int, int], ...] = ()
    unet_batch_one: bool = False
    loras: tuple[Lora, ...] = ()
    nbits: Bits | None = None
    #: A recipe file by the stage whose layers it names.
    recipes: tuple[tuple[str, Path], ...] = ()
    chunk_unet: bool = False
    #: Names of stages, or `text_encoders` for one or both; empty: all that the model has.
    stages: tuple[str, ...] = ()
    target: Target = "macOS13"
    #: None: where the runtime that this system has gets through it in minutes.
    check: bool | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ConvertOptions:
        for flag, names in (("--stages", self.stages), ("--recipe", [stage for stage, _ in self.recipes])):
            for name in names:
                if name not in (*STAGES, "text_encoders"):
                    hint = did_you_mean(name, STAGES) or f" There are {', '.join(STAGES)}."
                    raise ValueError(f"{flag}: there is no stage {name!r}.{hint}")
        if len(set(self.sizes)) != len(self.sizes):
            raise ValueError("--sizes names a size twice")
        if len(self.sizes) > 1 and self.attention == "split-einsum-v2":
            # Its pieces of 512 queries are cut when the model is traced, so they fit one size only.
            raise ValueError("--sizes with several sizes goes with --attention original or split-einsum, not with v2")
        return self

    @model_validator(mode="after")
    def _fits_the_format(self) -> ConvertOptions:
        if self.format == "coreml":
            return self
        if self.nbits not in (None, 4):
            raise ValueError(
                f"--nbits {self.nbits}: for Core AI there are 4 bits; leave it out for those of --precision"
            )
        only_coreml = {
            f"--attention {self.attention}": self.attention != "original",
            "--recipe": bool(self.recipes),
            "--chunk-unet": self.chunk_unet,
            f"--deployment-target {self.target}": self.target != "macOS13",
        }
        for flag, is_given in only_coreml.items():
            if is_given:
                raise ValueError(f"{flag} goes with --format coreml; Core AI has no such choice")
        return self

    def recipe_for(self, stage: str) -> Path | None:
        return next((path for name, path in self.recipes if name == stage), None)


def make_options(**values: object) -> ConvertOptions:
    """`ConvertOptions`; what is wrong with them comes as one sentence. Raises BadInputError."""
    try:
        return ConvertOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        where = _FLAGS.get(name, name).replace("_", "-")
        message = first["msg"].removeprefix("Value error, ")
        raise BadInputError(f"--{where}: {message}" if where else message) from None


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """`512x512,768x512`: widths and heights in pixels. Raises BadInputError."""
    found = []
    for part in text.split(","):
        match = _SIZE.fullmatch(part.strip().lower().replace("×", "x"))
        if match is None:
            raise BadInputError(f"--sizes: {part.strip()!r} is no size; write WIDTHxHEIGHT, say 512x512,768x512")
        found.append((int(match[1]), int(match[2])))
    return tuple(found)


def parse_recipe(text: str) -> tuple[str, Path]:
    """`FILE` for the UNet, or `STAGE=FILE`."""
    stage, equals, path = text.partition("=")
    return (stage, Path(path).expanduser()) if equals and stage in STAGES else ("unet", Path(text).expanduser())
