"""What a live worker says of itself, for producers, for `renderkiln status`, and for whoever starts another worker."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .spec import Frozen, ModelName, TextEncoder

#: Width and height in pixels.
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]


class WorkerInfo(Frozen):
    """A worker's announcement: it expires with the worker's lease, so one that can be read is alive."""

    schema_version: Literal[1] = 1
    name: str
    host: str
    pid: int
    models: tuple[ModelName, ...]
    #: The sizes of each model that exists in fixed ones only, its own first. Models that are not in it render any size.
    sizes: dict[ModelName, tuple[Size, ...]] = Field(default_factory=dict)
    #: The ControlNets that a model can be rendered with; of models that are not in it, that is not said. A converted
    #: model knows its ControlNets by the names of their files, where `owner/name` is `owner_name`.
    controlnets: dict[ModelName, tuple[ModelName, ...]] = Field(default_factory=dict)
    #: Who can read the prompts of a model, as a spec's `text_encoder` has it; of models that are not in it, that is not
    #: said.
    text_encoders: dict[ModelName, tuple[TextEncoder, ...]] = Field(default_factory=dict)
    engine: str
    device: str
    store: str
    #: A paused worker takes no job, or keeps what it has rendered, until something is put right: see `reason`.
    state: Literal["starting", "idle", "busy", "paused"] = "starting"
    #: What is in its way, as a sentence; empty: nothing.
    reason: str = ""
    started_at: float
