"""Canceling jobs that wait or run, and queueing ended ones again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import redis
from rq import Queue
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

from .enqueue import CHUNK
from .results import JobState, read_states

_MAY_GO_AGAIN = (JobStatus.FAILED, JobStatus.CANCELED)


def cancel(connection: redis.Redis, job_ids: Iterable[str]) -> int:
    """Cancels jobs; how many were open. One that runs stops at its next step, and ends as canceled.

    One whose worker has begun to write down how it ended is no longer open, and ends as it did: of the two, whichever
    is first in Redis holds (see `hear_cancel` of the supervisor).

    The jobs are WATCHed, a piece of them at a time: what a worker takes or ends just now is looked at again.
    """
    return sum(_cancel_piece(connection, piece) for piece in _pieces(job_ids))


def cancel_all(connection: redis.Redis) -> int:
    """Cancels all that waits or runs, of whichever batch; how many jobs that were."""
    total, seen = 0, set[str]()
    # Once more, until there is nothing new: a job may go back to its queue just after that was read.
    while fresh := [job_id for job_id in _open_jobs(connection) if job_id not in seen]:
        seen.update(fresh)
        total += cancel(connection, fresh)
    return total


def _open_jobs(connection: redis.Redis) -> list[str]:
    """The ids of the jobs that wait or run, each once. In the order in which a job goes, so that none slips by."""
    found: dict[str, None] = {}
    for queue in Queue.all(connection=connection, serializer=JSONSerializer):
        if not queue.name.startswith(names.QUEUES):
            continue
        lists: list[Any] = [connection.lrange(key, 0, -1) for key in (queue.key, queue.intermediate_queue_key)]
        sets: list[Any] = [
            connection.zrange(registry.key, 0, -1)
            for registry in (queue.scheduled_job_registry, queue.started_job_registry)
        ]
        for raw in chain(*lists, *sets):
            found[raw.decode(errors="replace").partition(":")[0]] = None
    return list(found)


def _cancel_piece(connection: redis.Redis, job_ids: Sequence[str]) -> int:
    while True:
        with connection.pipeline() as pipe:
            pipe.watch(*(RqJob.key_for(job_id) for job_id in job_ids))
            states = zip(job_ids, read_states(connection, job_ids), strict=True)
            still_open = {job_id: state for job_id, state in states if state is not None and not state.status.is_final}
            for job_id in _ending(connection, still_open):
                del still_open[job_id]
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


def _ending(connection: redis.Redis, states: Mapping[str, JobState]) -> list[str]:
    """Those of these jobs whose end is being written."""
    running = [job_id for job_id, state in states.items() if state.status is JobStatus.STARTED]
    with connection.pipeline(transaction=False) as pipe:
        for job_id in running:
            pipe.hexists(RqJob.key_for(job_id), names.ENDING_FIELD)
        return [job_id for job_id, is_ending in zip(running, pipe.execute(), strict=True) if is_ending]


def _end_as_canceled(connection: redis.Redis, pipe: redis.client.Pipeline, job: RqJob) -> None:
    # The id stays in its queue's list, where taking it out would cost the length of the list for each job. Workers
    # drop what is no longer queued.
    try:
        batch = read_payload(job.data).batch
    except InvalidSpecError:
        batch = "unknown"
    result = JobResult(job_id=job.id, batch=batch, status=JobStatus.CANCELED)
    kept = {names.FENCE: job.meta[names.FENCE]} if names.FENCE in job.meta else {}
    pipe.hset(
        job.key,
        mapping={
            "status": "canceled",
            "meta": JSONSerializer.dumps(kept | {"result": result.model_dump(mode="json")}),
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
