"""Canceling jobs that wait or run, and queueing ended ones again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

import redis
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as RqJob
from rq.registry import CanceledJobRegistry
from rq.serializers import JSONSerializer

from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.events import Ended
from renderkiln.schema.jobs import Job, JobResult, JobStatus
from renderkiln.schema.payload import read_payload

from .results import read_states


def cancel(connection: redis.Redis, job_ids: Iterable[str]) -> int:
    """Cancels jobs; how many were open. One that runs stops at its next step, and ends as canceled.

    The mark is written first and the status read after; a worker writes its status first and reads the mark after. So
    whichever way the two meet, one of them sees the other.
    """
    return sum(_cancel_one(connection, job_id) for job_id in job_ids)


def _cancel_one(connection: redis.Redis, job_id: str) -> bool:
    key = RqJob.key_for(job_id)
    while True:
        with connection.pipeline() as pipe:
            pipe.watch(key)
            (state,) = read_states(connection, [job_id])
            if state is None or state.status.is_final:
                return False
            pipe.multi()
            pipe.hset(key, names.CANCEL_FIELD, "1")
            try:
                if state.status is JobStatus.QUEUED:
                    _end_as_canceled(connection, pipe, job_id)
                pipe.execute()
            except (redis.WatchError, NoSuchJobError):
                continue  # it was just taken or forgotten, or it just ended: look again
        if state.status is JobStatus.STARTED:
            # The worker would see the mark with its next heartbeat; this makes it at once.
            with contextlib.suppress(InvalidJobOperation, NoSuchJobError):
                send_stop_job_command(connection, job_id, serializer=JSONSerializer)
        return True


def _end_as_canceled(connection: redis.Redis, pipe: redis.client.Pipeline, job_id: str) -> None:
    # The id stays in its queue's list, where taking it out would cost the length of the list for each job. Workers
    # drop what is no longer queued.
    job = RqJob.fetch(job_id, connection=connection, serializer=JSONSerializer)
    try:
        batch = read_payload(job.data).batch
    except InvalidSpecError:
        batch = "unknown"
    result = JobResult(job_id=job_id, batch=batch, status=JobStatus.CANCELED)
    pipe.hset(
        job.key,
        mapping={
            "status": "canceled",
            "meta": JSONSerializer.dumps({"result": result.model_dump(mode="json")}),
        },
    )
    pipe.expire(job.key, names.RESULT_TTL)
    pipe.zadd(CanceledJobRegistry(job.origin, connection=connection).key, {job_id: time.time() + names.RESULT_TTL})
    event = Ended(time=time.time(), result=result)
    pipe.xadd(names.EVENTS, {"event": event.model_dump_json()}, maxlen=names.EVENTS_LENGTH, approximate=True)


def ended_jobs(connection: redis.Redis, job_ids: Iterable[str]) -> Iterator[Job]:
    """The jobs among these that failed or were canceled, as they were queued; `requeue` queues them again.

    What was refused because it is no job of ours stays as it is.
    """
    for job_id in job_ids:
        (state,) = read_states(connection, [job_id])
        if state is None or state.status not in (JobStatus.FAILED, JobStatus.CANCELED):
            continue
        try:
            job = read_payload(RqJob.fetch(job_id, connection=connection, serializer=JSONSerializer).data)
        except (NoSuchJobError, InvalidSpecError):
            continue
        yield job
