"""Canceling jobs that wait or run, and queueing ended ones again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import redis
from rq.command import send_command
from rq.job import Job as RqJob
from rq.registry import CanceledJobRegistry
from rq.serializers import JSONSerializer

from renderkiln.home.reading import read_hashes
from renderkiln.schema import names
from renderkiln.schema.events import Ended
from renderkiln.schema.jobs import Job, JobResult, JobStatus
from renderkiln.schema.limits import MAX_FIELD

from .enqueue import CHUNK
from .places import read_places, scheduled_key
from .results import JobState, read_jobs, read_states

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
    while fresh := set().union(*read_places(connection)) - seen:
        seen |= fresh
        total += cancel(connection, fresh)
    return total


def _cancel_piece(connection: redis.Redis, job_ids: Sequence[str]) -> int:
    while True:
        with connection.pipeline() as pipe:
            pipe.watch(*(RqJob.key_for(job_id) for job_id in job_ids))
            states = zip(job_ids, read_states(connection, job_ids), strict=True)
            still_open = {job_id: state for job_id, state in states if state is not None and not state.status.is_final}
            for job_id in _ending(connection, still_open):
                del still_open[job_id]
            waiting = [job_id for job_id, state in still_open.items() if state.status is JobStatus.QUEUED]
            jobs = dict(zip(waiting, read_jobs(connection, waiting), strict=True))
            pipe.multi()
            for job_id in still_open:
                pipe.hset(RqJob.key_for(job_id), names.CANCEL_FIELD, "1")
            for job_id, found in jobs.items():
                batch = found[0].batch if found else "unknown"
                _end_as_canceled(connection, pipe, job_id, batch, still_open[job_id])
            try:
                pipe.execute()
            except redis.WatchError:
                continue
        _tell_workers(connection, [job_id for job_id in still_open if job_id not in jobs])
        return len(still_open)


def _ending(connection: redis.Redis, states: Mapping[str, JobState]) -> list[str]:
    """Those of these jobs whose end is being written."""
    running = [job_id for job_id, state in states.items() if state.status is JobStatus.STARTED]
    with connection.pipeline(transaction=False) as pipe:
        for job_id in running:
            pipe.hmget(RqJob.key_for(job_id), names.ENDING_FIELD)
        return [job_id for job_id, (mark,) in zip(running, pipe.execute(), strict=True) if mark is not None]


def _tell_workers(connection: redis.Redis, job_ids: Sequence[str]) -> None:
    """Workers would see the mark with their next heartbeat; this makes it at once."""
    found = read_hashes(connection, [RqJob.key_for(job_id) for job_id in job_ids], "worker_name")
    for job_id, row in zip(job_ids, found, strict=True):
        name = row[0] if row else None
        if name and len(name) <= MAX_FIELD:
            send_command(connection, name.decode(errors="replace"), "stop-job", job_id=job_id)


def _end_as_canceled(
    connection: redis.Redis, pipe: redis.client.Pipeline, job_id: str, batch: str, state: JobState
) -> None:
    # The id stays in its queue's list, where taking it out would cost the length of the list for each job. Workers
    # drop what is no longer queued. One that waits for its time goes out of that registry, which costs next to nothing.
    result = JobResult(job_id=job_id, batch=batch, status=JobStatus.CANCELED)
    key = RqJob.key_for(job_id)
    kept = {names.FENCE: state.fence} if state.fence else {}
    pipe.zrem(scheduled_key(state.origin), job_id)
    pipe.hset(
        key,
        mapping={
            "status": "canceled",
            "meta": JSONSerializer.dumps(kept | {"result": result.model_dump(mode="json")}),
        },
    )
    pipe.expire(key, names.RESULT_TTL)
    pipe.zadd(CanceledJobRegistry(state.origin, connection=connection).key, {job_id: time.time() + names.RESULT_TTL})
    event = Ended(time=time.time(), result=result)
    pipe.xadd(names.EVENTS, {"event": event.model_dump_json()}, maxlen=names.EVENTS_LENGTH, approximate=True)


def ended_jobs(connection: redis.Redis, job_ids: Iterable[str]) -> Iterator[Job]:
    """The jobs among these that failed or were canceled, as they were queued; `requeue` queues them again.

    What was refused because it is no job of ours stays as it is.
    """
    for piece in _pieces(job_ids):
        states = zip(piece, read_states(connection, piece), strict=True)
        ended = [job_id for job_id, state in states if state is not None and state.status in _MAY_GO_AGAIN]
        for found in read_jobs(connection, ended):
            if found is not None:
                yield found[0]


def _pieces(job_ids: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(job_ids)
    while piece := list(islice(iterator, CHUNK)):
        yield piece
