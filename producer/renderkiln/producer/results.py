"""Reading jobs out of Redis: where they stand and what came of them, many at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from pydantic import ValidationError
from rq.job import Job as RqJob

from renderkiln.home.reading import is_wrong_type, read_hashes
from renderkiln.home.replies import ReplyTooLargeError
from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import Job, JobResult, JobStatus
from renderkiln.schema.limits import MAX_FIELD, MAX_MEMBERS, MAX_META
from renderkiln.schema.payload import read_payload, unpack_payload

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
    #: Of its last claim, or of its queueing: see `names.FENCE`. 0: not known.
    fence: int = 0


def read_states(connection: redis.Redis, job_ids: Sequence[str]) -> list[JobState | None]:
    """The state of each job, in order; None where Redis does not know it (any more)."""
    found = read_hashes(connection, [RqJob.key_for(job_id) for job_id in job_ids], "status", "meta", "origin")
    return [None if row is None else _state(*row) for row in found]


def read_jobs(connection: redis.Redis, job_ids: Sequence[str]) -> list[tuple[Job, str] | None]:
    """Each job as it was queued, and its queue; None where it is not there, or none of ours."""
    found = read_hashes(connection, [RqJob.key_for(job_id) for job_id in job_ids], "data", "origin")
    return [None if row is None else _job(*row) for row in found]


def read_batch(connection: redis.Redis, batch: str) -> Iterator[tuple[str, JobState | None]]:
    """The jobs of a batch in the order of their index, with their states; read in pieces."""
    start = 0
    while job_ids := job_ids_of(connection, batch, start, start + _CHUNK - 1):
        yield from zip(job_ids, read_states(connection, job_ids), strict=True)
        start += len(job_ids)


def job_ids_of(connection: redis.Redis, batch: str, start: int = 0, end: int = -1) -> list[str]:
    """The ids of a batch's jobs, in the order of their index, from `start` to `end` (both included)."""
    found: list[bytes] = []
    while end < 0 or start <= end:
        last = start + MAX_MEMBERS - 1 if end < 0 else min(end, start + MAX_MEMBERS - 1)
        try:
            page: Any = connection.zrange(names.batch_jobs(batch), start, last)
        except (redis.ResponseError, ReplyTooLargeError) as error:
            if not is_wrong_type(error) and not isinstance(error, ReplyTooLargeError):
                raise
            break  # somebody wrote something else there: what cannot be read is no batch
        found += page
        if len(page) <= last - start:
            break
        start = last + 1
    return [job_id.decode(errors="replace") for job_id in found]


def _job(packed: bytes | None, origin: bytes | None) -> tuple[Job, str] | None:
    if packed is None:
        return None
    try:
        return read_payload(unpack_payload(packed)), (origin or b"")[:MAX_FIELD].decode(errors="replace")
    except InvalidSpecError:
        return None


def _state(status: bytes | None, meta: bytes | None, origin: bytes | None) -> JobState | None:
    if status is None:
        return None
    known = _STATUS.get(status[:MAX_FIELD].decode(errors="replace"), JobStatus.QUEUED)
    kept = _meta(meta)
    fence = kept.get(names.FENCE)
    origin = (origin or b"")[:MAX_FIELD]
    return JobState(
        known, _result(kept), origin.decode(errors="replace"), fence if isinstance(fence, int) and fence > 0 else 0
    )


def _meta(meta: bytes | None) -> dict[str, Any]:
    """What is kept with a job; nothing where that is somebody else's."""
    if not meta or len(meta) > MAX_META:
        return {}
    try:
        found = json.loads(meta)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _result(kept: dict[str, Any]) -> JobResult | None:
    try:
        return JobResult.model_validate(kept["result"]) if "result" in kept else None
    except ValidationError:
        return None  # a later version's: the status still stands
