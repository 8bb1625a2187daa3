"""Failed jobs as Redis has them: which there are, why they failed, and each attempt at one with what was logged.

Redis keeps the last few failed attempts of a job and the end of the last one's log; the ledger of the machine that made
an attempt has more, and is asked where it is at hand.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from typing import Any

import redis
from pydantic import ValidationError
from rq.job import Job as RqJob
from rq.utils import utcparse

from renderkiln.home.folder import DataFolder
from renderkiln.home.reading import members_of_sorted_set, read_hashes
from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError, NotFoundError
from renderkiln.schema.jobs import Attempt, Failure, Job, JobStatus
from renderkiln.schema.limits import MAX_FIELD, MAX_META
from renderkiln.schema.payload import read_payload, unpack_payload

from .places import our_queues, scheduled_key
from .recorded import recorded_attempts
from .results import JobState, job_ids_of, read_states

_CHUNK = 500
_FIELDS = ("ended_at", "description", "data", "exc_info")


@dataclass(frozen=True)
class FailedJob:
    """A job that was given up, or refused.

    Attributes:
        is_refused: it is no job of ours, or not one that can be read: it is never queued again.
        failed_at: seconds since 1970; None where that is not known.
    """

    id: str
    batch: str
    failure: Failure
    worker: str
    attempts: int
    failed_at: float | None
    about: str
    is_refused: bool


@dataclass(frozen=True)
class Story:
    """What is known of one job's failing.

    Attributes:
        job: None where it cannot be read.
        due: when it is tried again, seconds since 1970, where it waits for that.
        attempts: oldest first, each with what is kept of its log.
    """

    id: str
    batch: str
    status: JobStatus
    failure: Failure | None
    job: Job | None
    due: float | None
    attempts: Sequence[Attempt]


def failed_jobs(connection: redis.Redis, batch: str | None = None) -> list[FailedJob]:
    """All failed jobs, or those of a batch; the last that failed first."""
    ids = _all_ids(connection) if batch is None else iter(job_ids_of(connection, batch))
    found: list[FailedJob] = []
    while piece := list(islice(ids, _CHUNK)):
        failed = [
            (job_id, state)
            for job_id, state in zip(piece, read_states(connection, piece), strict=True)
            if state is not None and state.status is JobStatus.FAILED
        ]
        found.extend(_read(connection, failed))
    return sorted(found, key=lambda job: -(job.failed_at or 0.0))


def story(connection: redis.Redis, folder: DataFolder, job_id: str) -> Story:
    """What became of a job, attempt by attempt. Raises NotFoundError where neither Redis nor a ledger knows it."""
    recorded, kept = recorded_attempts(folder, job_id)
    (state,) = read_states(connection, [job_id])
    if state is None:
        if kept is None:
            raise NotFoundError(
                f"no job {job_id!r}, neither in Redis nor in a ledger of this machine. `renderkiln failed` lists "
                "those that failed."
            )
        return Story(job_id, kept.batch, kept.status, kept.failure, None, None, _merge(recorded, (), ""))
    (fields,) = read_hashes(connection, [RqJob.key_for(job_id)], "meta", "data", "exc_info", names.LOG_FIELD)
    meta, data, said, log = fields or (None, None, None, None)
    due: Any = connection.zscore(scheduled_key(state.origin), job_id)
    job = _job(data)
    failure = state.result.failure if state.result else None
    if failure is None and state.status is JobStatus.FAILED:
        failure = _said(said)
    batch = state.result.batch if state.result else job.batch if job else ""
    attempts = _merge(recorded, _history(meta), (log or b"").decode(errors="replace"))
    return Story(job_id, batch, state.status, failure, job, due, attempts)


def _all_ids(connection: redis.Redis) -> Iterator[str]:
    for queue in our_queues(connection):
        listed = members_of_sorted_set(connection, queue.failed_job_registry.key)
        yield from (job_id.decode(errors="replace") for job_id, _ in listed)


def _read(connection: redis.Redis, jobs: Sequence[tuple[str, JobState]]) -> Iterator[FailedJob]:
    keys = [RqJob.key_for(job_id) for job_id, _ in jobs]
    for (job_id, state), row in zip(jobs, read_hashes(connection, keys, *_FIELDS), strict=True):
        ended_at, about, data, said = row or (None,) * len(_FIELDS)
        result = state.result
        # Only where there is no result of ours it takes a look at the payload to see whose job it is.
        job = None if result else _job(data)
        yield FailedJob(
            job_id,
            result.batch if result else job.batch if job else "",
            result.failure if result and result.failure else _said(said),
            result.worker if result else "",
            result.attempt if result else 0,
            _moment(ended_at),
            (about or b"").decode(errors="replace")[:200],
            is_refused=result is None and job is None,
        )


def _job(packed: bytes | None) -> Job | None:
    try:
        return read_payload(unpack_payload(packed or b""))
    except InvalidSpecError:
        return None


def _said(packed: bytes | None) -> Failure:
    """What stands in the place of a traceback: ours for what was refused, RQ's for what it gave up itself."""
    text = _unpacked(packed, 10_000).decode(errors="replace").strip()
    known = re.fullmatch(r"([a-z_]{1,40}): (.*)", text, re.DOTALL)
    if known:
        return Failure(kind=known[1], message=known[2])
    return Failure(kind="unknown", message=text.splitlines()[-1] if text else "Redis does not say why")


def _unpacked(packed: bytes | None, limit: int) -> bytes:
    """What was compressed, or is not; at most `limit` bytes of it."""
    if not packed:
        return b""
    try:
        return zlib.decompressobj().decompress(packed, limit)
    except zlib.error:
        return packed[:limit]


def _moment(text: bytes | None) -> float | None:
    try:
        moment: datetime | None = utcparse(text[:MAX_FIELD].decode()) if text else None
    except ValueError:
        return None
    return None if moment is None else _in_utc(moment).timestamp()


def _history(meta: bytes | None) -> list[Attempt]:
    if meta and len(meta) > MAX_META:
        return []
    try:
        found = json.loads(meta or b"{}").get("history", [])
        return [Attempt.model_validate(each) for each in found]
    except (ValueError, ValidationError, TypeError, AttributeError):
        return []  # somebody else's, or a later version's


def _merge(recorded: Mapping[str, Attempt], remembered: Sequence[Attempt], log: str) -> list[Attempt]:
    """One list of both; of an attempt that a ledger has, that."""
    found = {attempt.execution_id: attempt for attempt in remembered}
    if remembered and log:
        last = remembered[-1]
        found[last.execution_id] = last.model_copy(update={"log": log})
    found |= recorded
    return sorted(found.values(), key=lambda attempt: _in_utc(attempt.started_at))


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
