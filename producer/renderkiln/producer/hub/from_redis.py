"""Jobs as Redis has them, as records for the ledger: what was queued, and what ended without a worker's ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

import redis
from rq.job import Job as RqJob

from renderkiln.home.ledger import utc_now
from renderkiln.home.reading import read_hashes
from renderkiln.producer.enqueue import CHUNK
from renderkiln.producer.results import JobState, read_jobs, read_states
from renderkiln.schema.jobs import Job
from renderkiln.schema.records import ImageRecord, JobRecord, Record


def read_records(connection: redis.Redis, job_ids: Sequence[str]) -> list[Record]:
    """The records of the jobs among these that Redis has. What is none of ours is left out.

    Raises:
        redis.RedisError: Redis failed.
    """
    records: list[Record] = []
    for start in range(0, len(job_ids), CHUNK):
        part = job_ids[start : start + CHUNK]
        times = read_hashes(connection, [RqJob.key_for(job_id) for job_id in part], "created_at", "ended_at")
        rows = zip(read_jobs(connection, part), read_states(connection, part), times, strict=True)
        for found, state, row in rows:
            if found is not None and state is not None and row is not None:
                records += _records(found[0], state, _time(row[0]) or utc_now(), _time(row[1]))
    return records


def _records(job: Job, state: JobState, seen: datetime, ended_at: datetime | None) -> list[Record]:
    failure = state.result.failure if state.result is not None else None
    ended_at = (ended_at or seen) if state.status.is_final else None
    record = JobRecord(
        job=job,
        batch_id=job.batch,
        status=state.status,
        fence=state.fence,
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


def _time(text: bytes | None) -> datetime | None:
    """A time of RQ's, which is ISO 8601 in UTC, as the ledger has its times; None for what is none."""
    try:
        time = datetime.fromisoformat((text or b"").decode().replace("Z", "+00:00"))
    except ValueError:
        return None
    return time if time.tzinfo is None else time.astimezone(timezone.utc).replace(tzinfo=None)
