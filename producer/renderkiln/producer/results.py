"""Reading jobs out of Redis: where they stand and what came of them, many at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from pydantic import ValidationError
from rq.job import Job as RqJob

from renderkiln.schema import names
from renderkiln.schema.jobs import JobResult, JobStatus

#: RQ's statuses in our words.
_STATUS = {
    "created": JobStatus.QUEUED,
    "queued": JobStatus.QUEUED,
    "deferred": JobStatus.QUEUED,
    "scheduled": JobStatus.QUEUED,
    "started": JobStatus.STARTED,
    "finished": JobStatus.FINISHED,
    "failed": JobStatus.FAILED,
    "stopped": JobStatus.CANCELED,
    "canceled": JobStatus.CANCELED,
}
_CHUNK = 1000


@dataclass(frozen=True)
class JobState:
    """Where a job stands, and its result once that is final."""

    status: JobStatus
    result: JobResult | None
    #: The queue that it was put into.
    origin: str = ""


def read_states(connection: redis.Redis, job_ids: Sequence[str]) -> list[JobState | None]:
    """The state of each job, in order; None where Redis does not know it (any more)."""
    with connection.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hmget(RqJob.key_for(job_id), "status", "meta", "origin")
        return [_state(*row) for row in pipe.execute()]


def read_batch(connection: redis.Redis, batch: str) -> Iterator[tuple[str, JobState | None]]:
    """The jobs of a batch in the order of their index, with their states; read in pieces."""
    start = 0
    while job_ids := job_ids_of(connection, batch, start, start + _CHUNK - 1):
        yield from zip(job_ids, read_states(connection, job_ids), strict=True)
        start += len(job_ids)


def job_ids_of(connection: redis.Redis, batch: str, start: int = 0, end: int = -1) -> list[str]:
    """The ids of a batch's jobs, in the order of their index, from `start` to `end` (both included)."""
    found: Any = connection.zrange(names.batch_jobs(batch), start, end)
    return [job_id.decode() for job_id in found]


def _state(status: bytes | None, meta: bytes | None, origin: bytes | None) -> JobState | None:
    if status is None:
        return None
    known = _STATUS.get(status.decode(errors="replace"), JobStatus.QUEUED)
    return JobState(known, _result(meta), (origin or b"").decode(errors="replace"))


def _result(meta: bytes | None) -> JobResult | None:
    if not meta:
        return None
    try:
        found = json.loads(meta)
        return JobResult.model_validate(found["result"]) if "result" in found else None
    except (ValueError, ValidationError, TypeError):
        return None  # somebody else's, or a later version's: the status still stands
