"""What a live worker says of itself, for producers, for `renderkiln status`, and for whoever starts another worker."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .spec import Frozen, ModelName, TextEncoder

#: Width and height in pixels.
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]

#: What stays in a worker's memory. resident: what was loaded. jit: only the stage at work, as with `reduceMemory` of
#: Apple's Swift package. auto: what fits the budget.
MemoryPolicy = Literal["auto", "resident", "jit"]
#: How short of memory a machine is.
MemoryPressure = Literal["calm", "warn", "critical"]


class Refused(Frozen):
    """How much of what stood in Redis a worker has refused since it started; its log says what and why."""

    #: Jobs, and ids of jobs, that are none of ours. A job is in the registry of failed jobs.
    jobs: int = Field(0, ge=0)
    #: Keys of the wrong type that were moved out of the way, to `renderkiln:set-aside:…`.
    keys: int = Field(0, ge=0)
    #: Messages on its channel that are no command.
    messages: int = Field(0, ge=0)


class StageHeld(Frozen):
    """A stage in a renderer's memory, with the bytes of its weights."""

    #: The model's name, with `@revision` where a job asked for one.
    model: str
    #: `unet`, `vae_decoder` …
    stage: str
    size_bytes: int = Field(ge=0)


class MemoryHeld(Frozen):
    """What a worker's renderer held when the worker announced it, in bytes."""

    #: The policy in force: stricter than the settings' after memory ran out, and while it is short.
    policy: MemoryPolicy
    #: The renderer's resident memory, seen from outside.
    held_bytes: int = Field(ge=0)
    #: What it may hold; None: no budget is heeded.
    budget_bytes: int | None = Field(None, gt=0)
    stages: tuple[StageHeld, ...] = ()
    pressure: MemoryPressure = "calm"


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
    #: A paused worker takes no job, or keeps what it has rendered, until something is put right; an unwell one takes
    #: none since many in a row failed on it: see `reason`.
    state: Literal["starting", "idle", "busy", "paused", "unwell"] = "starting"
    #: What is in its way, as a sentence; empty: nothing.
    reason: str = ""
    started_at: float
    refused: Refused = Refused()
    #: None: its renderer has not said yet.
    memory: MemoryHeld | None = None
