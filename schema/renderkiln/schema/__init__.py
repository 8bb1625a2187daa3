"""What crosses a boundary: specs, jobs, events, tables and names. Knows neither who asks nor who renders."""

from .canonical import canonical_json, digest
from .errors import RenderkilnError
from .jobs import (
    SCHEMA_VERSION,
    Attempt,
    Batch,
    Failure,
    ImageResult,
    Job,
    JobOptions,
    JobResult,
    JobStatus,
    make_job,
    parse_job,
    parse_options,
    parse_request,
)
from .spec import ControlNet, RenderSpec, parse_spec

__all__ = [
    "SCHEMA_VERSION",
    "Attempt",
    "Batch",
    "ControlNet",
    "Failure",
    "ImageResult",
    "Job",
    "JobOptions",
    "JobResult",
    "JobStatus",
    "RenderSpec",
    "RenderkilnError",
    "canonical_json",
    "digest",
    "make_job",
    "parse_job",
    "parse_options",
    "parse_request",
    "parse_spec",
]
