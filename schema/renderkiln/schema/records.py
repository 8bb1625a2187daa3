"""Records: what one ledger tells another. A row of its tables as it stands now, not what was done to it.

A worker publishes the rows that changed since the hub had them last (`Shipment`), at least once and perhaps out of
order; the hub writes each into its own ledger. Whatever comes twice or late changes nothing, since of every row the
same version wins in whichever order they come:

- of a worker's row, and of an attempt's, which one ledger alone writes, the latest revision;
- of an image's, which a second worker may have rendered anew, the one recorded last;
- of a job's, the one with the highest `fence`: a claim's is higher than that of the queueing before it, and than that
  of every earlier claim. Within one claim the later `rank` holds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from .errors import InvalidSpecError
from .jobs import BatchId, ImageResult, Job, JobId, JobStatus, fault_of_id
from .limits import MAX_SHIPMENT
from .spec import Frozen, describe_validation_error

#: Which of two words about a job holds that come from the same claim: it is started before it is given back or ends.
#: Where a rescuer set aside what its worker had finished after all, the pictures are there; what a person canceled is
#: not done.
STATUS_RANKS = {
    JobStatus.STARTED: 0,
    JobStatus.QUEUED: 1,
    JobStatus.FAILED: 2,
    JobStatus.FINISHED: 3,
    JobStatus.CANCELED: 4,
}

_Revision = Annotated[int, Field(ge=0, le=2**62)]


class _Record(Frozen):
    model_config = ConfigDict(from_attributes=True)

    revision: _Revision = 0


class WorkerRecord(_Record):
    table: Literal["workers"] = "workers"
    name: str
    host: str
    pid: int
    started_at: datetime
    ended_at: datetime | None
    about: dict[str, Any]


class JobRecord(_Record):
    table: Literal["jobs"] = "jobs"
    job: Job
    batch_id: BatchId
    status: JobStatus
    fence: _Revision
    failure_kind: str | None = None
    failure_message: str | None = None
    first_seen: datetime
    ended_at: datetime | None = None

    @field_validator("job")
    @classmethod
    def _is_named_by_its_content(cls, job: Job) -> Job:
        if fault := fault_of_id(job):
            raise ValueError(fault)
        return job


class AttemptRecord(_Record):
    table: Literal["attempts"] = "attempts"
    execution_id: str
    job_id: JobId
    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    failure_kind: str | None
    failure_message: str | None
    load_seconds: float | None
    render_seconds: float | None
    write_seconds: float | None
    peak_bytes: int | None
    loads: int | None
    evictions: int | None
    log: str | None = None


class ImageRecord(_Record, ImageResult):
    table: Literal["images"] = "images"
    job_id: JobId
    execution_id: str | None
    recorded_at: datetime


Record: TypeAlias = Annotated[WorkerRecord | JobRecord | AttemptRecord | ImageRecord, Field(discriminator="table")]


class Shipment(Frozen):
    """The rows of one ledger that changed after one revision and up to another: one entry of the stream."""

    schema_version: Literal[1] = 1
    #: The ledger's id and the machine's name: a ledger that was copied to another machine is another one.
    ledger: Annotated[str, Field(min_length=1, max_length=300)]
    after: _Revision
    upto: _Revision
    records: tuple[Record, ...]


_shipment: TypeAdapter[Shipment] = TypeAdapter(Shipment)


def parse_shipment(text: str | bytes) -> Shipment:
    """A shipment from its JSON. Raises InvalidSpecError: it is none, or too large."""
    if len(text) > MAX_SHIPMENT:
        raise InvalidSpecError(f"a shipment of {len(text):,} bytes is over the limit of {MAX_SHIPMENT:,}")
    try:
        return _shipment.validate_json(text)
    except ValidationError as error:
        raise InvalidSpecError(f"not a shipment: {describe_validation_error(error, Shipment.model_fields)}") from None
