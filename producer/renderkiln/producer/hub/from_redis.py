"""Jobs as Redis has them, as records for the ledger: what was queued, and what ended without a worker's ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

import redis
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from renderkiln.home.ledger import utc_now
from renderkiln.producer.enqueue import CHUNK
from renderkiln.producer.results import JobState, read_states
from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import Job
from renderkiln.schema.payload import read_payload
from renderkiln.schema.records import ImageRecord, JobRecord, Record


def read_records(connection: redis.Redis, job_ids: Sequence[str]) -> list[Record]:
    """The records of the jobs among these that Redis has. What is none of ours is left out.

    Raises:
        redis.RedisError: Redis failed.
    """
    records: list[Record] = []
    for start in range(0, len(job_ids), CHUNK):
        part = job_ids[start : start + CHUNK]
        states = read_states(connection, part)
        for stored, state in zip(_fetch(connection, part), states, strict=True):
            if stored is not None and state is not None:
                records += _records(stored, state)
    return records


def _fetch(connection: redis.Redis, job_ids: Iterable[str]) -> list[RqJob | None]:
    return list(RqJob.fetch_many(job_ids, connection=connection, serializer=JSONSerializer))


def _records(stored: RqJob, state: JobState) -> list[Record]:
    try:
        job: Job = read_payload(stored.data)
    except InvalidSpecError:
        return []
    fence = stored.meta.get(names.FENCE) if isinstance(stored.meta, dict) else None
    failure = state.result.failure if state.result is not None else None
    seen = _utc(stored.created_at) or utc_now()
    ended_at = (_utc(stored.ended_at) or seen) if state.status.is_final else None
    record = JobRecord(
        job=job,
        batch_id=job.batch,
        status=state.status,
        fence=fence if isinstance(fence, int) and fence > 0 else 0,
        failure_kind=failure.kind if failure else None,
        failure_message=failure.message if failure else None,
        first_seen=seen,
        ended_at=ended_at,
    )
    images = state.result.images if state.result is not None and ended_at is not None else ()
    return [
        record,
        *(
            ImageRecord(**image.model_dump(), job_id=job.id, execution_id=None, recorded_at=ended_at or seen)
            for image in images
        ),
    ]


def _utc(time: datetime | None) -> datetime | None:
    """As the ledger has its times; RQ's have an offset or are UTC without one."""
    if time is None or time.tzinfo is None:
        return time
    return time.astimezone(timezone.utc).replace(tzinfo=None)
