"""What a plan needs to know of a model, in plain values: read by `source.py`, planned with by `plan.py`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Family = Literal["sd", "sdxl"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ControlNetFacts(Record):
    name: str
    config: dict[str, Any]
    weights: str


class ProjectionFacts(Record):
    """A linear layer from Apple's multilingual embeddings to the UNet's."""

    inputs: int
    outputs: int
    weights: str


class ModelFacts(Record):
    """What a plan needs to know of a model: its small files' contents, and what tells its weights apart."""

    name: str
    revision: str | None = None
    #: model_index.json's `_class_name`.
    pipeline: str
    family: Family
    #: config.json of each component that the model has: text_encoder, text_encoder_2, unet, vae, safety_checker.
    configs: dict[str, dict[str, Any]]
    #: A digest of each component's weights.
    weights: dict[str, str]
    #: Whether the VAE was put in the place of the model's own.
    custom_vae: bool = False
    #: Digests of the LoRA files, in the options' order.
    loras: tuple[str, ...] = ()
    controlnets: tuple[ControlNetFacts, ...] = ()
    projection: ProjectionFacts | None = None
    #: Digests of the recipe files, by stage.
    recipes: dict[str, str] = {}
