"""Events: what happened to jobs, as it is published for whoever watches.

Durable ones go to a Redis stream in the order they happened; `progress` goes to a channel and is gone when nobody
listens. Each is one JSON object, told apart by `type`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from .jobs import BatchId, Failure, ImageResult, JobId, JobResult
from .spec import Frozen


class _Event(Frozen):
    schema_version: Literal[1] = 1
    time: float = Field(description="Seconds since 1970, UTC, by the clock of whoever says it.")


class Submitted(_Event):
    """Jobs were queued; written in the same MULTI as the jobs themselves."""

    type: Literal["submitted"] = "submitted"
    batch: BatchId
    jobs: tuple[JobId, ...]


class Started(_Event):
    type: Literal["started"] = "started"
    job_id: JobId
    batch: BatchId
    worker: str
    attempt: int
    execution_id: str


class ImageDone(_Event):
    type: Literal["image"] = "image"
    job_id: JobId
    batch: BatchId
    worker: str
    image: ImageResult


class Ended(_Event):
    """A job reached a final status."""

    type: Literal["ended"] = "ended"
    result: JobResult


class Returned(_Event):
    """An attempt ended without a final status: the job waits again."""

    type: Literal["returned"] = "returned"
    job_id: JobId
    batch: BatchId
    worker: str
    failure: Failure | None = None


class Progress(_Event):
    """A step was done. Ephemeral."""

    type: Literal["progress"] = "progress"
    job_id: JobId
    batch: BatchId
    worker: str
    k: int = Field(description="Image within the job, from 0.")
    num_images: int
    step: int = Field(description="Steps done of this image.")
    num_steps: int


Event: TypeAlias = Annotated[Submitted | Started | ImageDone | Ended | Returned | Progress, Field(discriminator="type")]
_adapter: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(text: str | bytes) -> Event:
    """An event from its JSON. Raises pydantic's ValidationError where it is none."""
    return _adapter.validate_json(text)
