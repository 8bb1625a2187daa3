"""Jobs, batches, attempts and results: what is asked for besides the pixels, and what came of it.

All are frozen. A job's id is taken from its content, so that the same job submitted twice is one job: `job_id` says
what counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from .canonical import canonical_json
from .errors import InvalidSpecError
from .limits import MAX_REMARK, MAX_REMARKS
from .spec import Frozen, RenderSpec, clean_text, describe_validation_error

#: Raised by one whenever a stored or queued form changes so that an older reader would misread it.
SCHEMA_VERSION = 1
MAX_IMAGES = 10_000

JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
BatchId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, StringConstraints(max_length=200)]
Priority = Literal["high", "normal", "low"]
ImageFormat = Literal["png", "jpeg", "webp"]
#: In the order in which workers empty them.
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


def _few_labels(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > 32:
        raise ValueError(f"at most 32 labels, not {len(labels)}")
    return labels


class JobStatus(str, Enum):
    """Where a job stands. The last three are final."""

    QUEUED = "queued"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.CANCELED)


class JobOptions(Frozen):
    """How a spec is to be rendered: nothing here changes the pixels of an image."""

    num_images: int = Field(1, ge=1, le=MAX_IMAGES, description="Images of the job; image k has seed + k.")
    priority: Priority = Field("normal", description="high, normal or low; workers empty high first.")
    labels: Annotated[dict[Label, Label], AfterValidator(_few_labels)] = Field(
        default_factory=dict, description="Free names and values, kept with the job."
    )
    max_attempts: int = Field(3, ge=1, le=20, description="Tries before the job is set aside.")
    timeout: float | None = Field(None, gt=0, le=7 * 86400, description="Seconds an attempt may take.")
    image_format: ImageFormat = Field("png", description="File format of the pictures.")
    store: Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(clean_text)] | None = Field(
        None, description="Where pictures go: a folder or an fsspec URL; empty: the worker's own store."
    )


class Job(JobOptions):
    """A `RenderSpec` times `num_images`, in a batch: what travels through the queue."""

    schema_version: Literal[1] = 1
    id: JobId
    batch: BatchId
    index: int = Field(ge=0, description="Number of the job's first image within its batch, from 0.")
    spec: RenderSpec
    again: Annotated[str, StringConstraints(max_length=40)] = Field(
        "", description="Set where a job is rendered anew on purpose; makes its id another one."
    )

    def image_spec(self, k: int) -> RenderSpec:
        """The spec of image k (0 ≤ k < num_images), which renders that image alone."""
        return self.spec.for_image(k)

    def to_json(self) -> str:
        """The form in which the job is queued: fields at their defaults are left out."""
        return self.model_dump_json(exclude_defaults=True)


def job_id(spec: RenderSpec, options: JobOptions, again: str = "") -> str:
    """The id of a job: 32 hex digits of SHA-256 over what makes it another job.

    That is the spec, the number of images, the file format, the store, and `again`. Priority, labels, attempts and
    timeout do not count: the same pictures asked for with more urgency are still the same job.
    """
    identity = {
        "spec": spec.model_dump(mode="json", exclude_defaults=True),
        "num_images": options.num_images,
        "image_format": options.image_format,
        "store": options.store,
        "again": again,
    }
    return hashlib.sha256(canonical_json(identity)).hexdigest()[:32]


def make_job(spec: RenderSpec, options: JobOptions, *, batch: str, index: int, again: str = "") -> Job:
    """A job ready to be queued; the parts are valid already, so they are not checked twice."""
    return Job.model_construct(
        _fields_set=None,
        **{name: getattr(options, name) for name in JobOptions.model_fields},
        schema_version=1,
        id=job_id(spec, options, again),
        batch=batch,
        index=index,
        spec=spec,
        again=again,
    )


def parse_options(fields: Mapping[str, Any]) -> JobOptions:
    """`JobOptions` from a mapping. Raises InvalidSpecError."""
    try:
        return JobOptions.model_validate(dict(fields))
    except ValidationError as error:
        raise InvalidSpecError(describe_validation_error(error, JobOptions.model_fields)) from None


def parse_request(fields: Mapping[str, Any]) -> tuple[RenderSpec, JobOptions]:
    """Splits one flat mapping, as scripts and prompt lists give it, into spec and options.

    Raises:
        InvalidSpecError: a field is unknown (the nearest known name is named), missing or outside its limits.
    """
    options = {name: fields[name] for name in fields if name in JobOptions.model_fields}
    rest = {name: value for name, value in fields.items() if name not in options}
    try:
        return RenderSpec.model_validate(rest), (JobOptions.model_validate(options) if options else DEFAULT_OPTIONS)
    except ValidationError as error:
        known = {**RenderSpec.model_fields, **JobOptions.model_fields}
        raise InvalidSpecError(describe_validation_error(error, known)) from None


DEFAULT_OPTIONS = JobOptions()


def parse_job(text: str | bytes) -> Job:
    """A job as it comes out of the queue, validated anew: the queue is not trusted.

    Raises:
        InvalidSpecError: it is not a job of this schema version.
    """
    try:
        job = Job.model_validate_json(text)
    except ValidationError as error:
        raise InvalidSpecError(f"not a job: {describe_validation_error(error, Job.model_fields)}") from None
    if fault := fault_of_id(job):
        raise InvalidSpecError(fault)
    return job


def fault_of_id(job: Job) -> str | None:
    """What is wrong with the id of a job that somebody hands in, as a sentence; None: nothing."""
    if job.id == job_id(job.spec, job, job.again):
        return None
    return f"job {job.id} does not hold what its id was taken from"


Remark = Annotated[str, Field(max_length=MAX_REMARK)]


class ImageResult(Frozen):
    """One picture that was written."""

    k: int = Field(ge=0, description="Number within the job.")
    index: int = Field(ge=0, description="Number within the batch.")
    seed: int
    digest: Sha256 = Field(description="Digest of the image's own spec.")
    url: str = Field(description="Where the file is: a path, or an fsspec URL.")
    sha256: Sha256 = Field(description="SHA-256 of the file's bytes.")
    size_bytes: int = Field(ge=0)
    width: int
    height: int
    seconds: float = Field(ge=0, description="Rendering time, without writing.")
    notes: tuple[Remark, ...] = Field(
        (),
        max_length=MAX_REMARKS,
        description="What its maker has to say of it, in sentences: decoded in tiles, a prompt cut off.",
    )


class Failure(Frozen):
    """Why an attempt ended without its pictures; `kind` is the `kind` of an error in `errors.py`."""

    kind: str
    message: str


class JobResult(Frozen):
    """What a job came to. Kept in Redis for a week, and in the ledger for good."""

    job_id: JobId
    batch: BatchId
    status: JobStatus
    images: tuple[ImageResult, ...] = ()
    failure: Failure | None = None
    worker: str = ""
    host: str = ""
    attempt: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0, description="Wall time of the last attempt.")


class Attempt(Frozen):
    """One try at a job by one worker; `execution_id` fences it against a worker that was thought dead."""

    execution_id: str
    job_id: JobId
    number: int = Field(ge=1)
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: Literal["finished", "failed", "canceled", "returned", "abandoned"] | None = Field(
        None, description="returned: given back by a worker that was told to stop; empty while it runs."
    )
    failure: Failure | None = None
    peak_bytes: int | None = Field(None, ge=0, description="The most memory that the renderer had meanwhile.")
    loads: int | None = Field(None, ge=0, description="Stages that were loaded meanwhile.")
    load_seconds: float | None = Field(None, ge=0, description="What that took.")
    evictions: int | None = Field(None, ge=0, description="Stages that were dropped to make room.")
    log: str = Field("", description="The end of what was logged meanwhile, where it failed.")


class Batch(Frozen):
    """The jobs of one submission."""

    id: BatchId
    name: str
    created_at: datetime
    num_jobs: int = Field(0, ge=0)
    num_images: int = Field(0, ge=0)
