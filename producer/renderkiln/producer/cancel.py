"""Canceling jobs that wait or run, and queueing ended ones again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import redis
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.registry import CanceledJobRegistry, ScheduledJobRegistry
from rq.serializers import JSONSerializer

from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.events import Ended
from renderkiln.schema.jobs import Job, JobResult, JobStatus
from renderkiln.schema.payload import read_payload

from .enqueue import CHUNK
from .results import read_states

_MAY_GO_AGAIN = (JobStatus.FAILED, JobStatus.CANCELED)


def cancel(connection: redis.Redis, job_ids: Iterable[str]) -> int:
    """Cancels jobs; how many were open. One that runs stops at its next step, and ends as canceled.

    The jobs are WATCHed, a piece of them at a time: what a worker takes or ends just now is looked at again.
    """
    return sum(_cancel_piece(connection, piece) for piece in _pieces(job_ids))


def _cancel_piece(connection: redis.Redis, job_ids: Sequence[str]) -> int:
    while True:
        with connection.pipeline() as pipe:
            pipe.watch(*(RqJob.key_for(job_id) for job_id in job_ids))
            states = zip(job_ids, read_states(connection, job_ids), strict=True)
            still_open = {job_id: state for job_id, state in states if state is not None and not state.status.is_final}
            waiting = [job_id for job_id, state in still_open.items() if state.status is JobStatus.QUEUED]
            found = RqJob.fetch_many(waiting, connection=connection, serializer=JSONSerializer) if waiting else []
            pipe.multi()
            for job_id in still_open:
                pipe.hset(RqJob.key_for(job_id), names.CANCEL_FIELD, "1")
            for job in found:
                if job is not None:  # else it was just forgotten, and the watch will say so
                    _end_as_canceled(connection, pipe, job)
            try:
                pipe.execute()
            except redis.WatchError:
                continue
        for job_id in still_open.keys() - set(waiting):
            # The worker would see the mark with its next heartbeat; this makes it at once.
            with contextlib.suppress(InvalidJobOperation, NoSuchJobError):
                send_stop_job_command(connection, job_id, serializer=JSONSerializer)
        return len(still_open)


def _end_as_canceled(connection: redis.Redis, pipe: redis.client.Pipeline, job: RqJob) -> None:
    # The id stays in its queue's list, where taking it out would cost the length of the list for each job. Workers
    # drop what is no longer queued. One that waits for its time goes out of that registry, which costs next to nothing.
    if job.get_status(refresh=False) == RqStatus.SCHEDULED:
        pipe.zrem(ScheduledJobRegistry(job.origin, connection=connection).key, job.id)
    try:
        batch = read_payload(job.data).batch
    except InvalidSpecError:
        batch = "unknown"
    result = JobResult(job_id=job.id, batch=batch, status=JobStatus.CANCELED)
    pipe.hset(
        job.key,
        mapping={
            "status": "canceled",
            "meta": JSONSerializer.dumps({"result": result.model_dump(mode="json")}),
        },
    )
    pipe.expire(job.key, names.RESULT_TTL)
    pipe.zadd(CanceledJobRegistry(job.origin, connection=connection).key, {job.id: time.time() + names.RESULT_TTL})
    event = Ended(time=time.time(), result=result)
    pipe.xadd(names.EVENTS, {"event": event.model_dump_json()}, maxlen=names.EVENTS_LENGTH, approximate=True)


def ended_jobs(connection: redis.Redis, job_ids: Iterable[str]) -> Iterator[Job]:
    """The jobs among these that failed or were canceled, as they were queued; `requeue` queues them again.

    What was refused because it is no job of ours stays as it is.
    """
    for piece in _pieces(job_ids):
        states = zip(piece, read_states(connection, piece), strict=True)
        ended = [job_id for job_id, state in states if state is not None and state.status in _MAY_GO_AGAIN]
        for job in RqJob.fetch_many(ended, connection=connection, serializer=JSONSerializer) if ended else []:
            if job is None:  # forgotten just now
                continue
            try:
                again = read_payload(job.data)
            except InvalidSpecError:
                continue
            yield again


def _pieces(job_ids: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(job_ids)
    while piece := list(islice(iterator, CHUNK)):
        yield piece
