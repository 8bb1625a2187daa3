"""Writing jobs into Redis: in chunks, each chunk in one MULTI with its `submitted` event.

A job whose id is there already is not queued twice. One that waits or runs is joined, and moved up where it waits less
urgently than it is asked for now. One that is done is left alone if its pictures are still where they were put. One
that failed or was canceled is queued again. The ids are WATCHed, so two producers that submit the same list at once
still queue each job once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import redis
from rq import Queue, Retry
from rq.job import Job as RqJob
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry
from rq.serializers import JSONSerializer

from renderkiln.home.fences import next_fence
from renderkiln.schema import names
from renderkiln.schema.errors import ServerUnavailableError
from renderkiln.schema.events import Submitted
from renderkiln.schema.jobs import Job, JobStatus, Priority

from .pictures import are_there
from .results import JobState, read_states
from .urgency import is_more_urgent, most_urgent, moves

CHUNK = 500


@dataclass
class Tally:
    """What became of the jobs of a submission."""

    jobs: int = 0
    images: int = 0
    queued: int = 0
    joined: int = 0
    #: Of those that were joined: waited in a less urgent queue, and were moved to the one that was asked for now.
    moved_up: int = 0
    done: int = 0


def enqueue(connection: redis.Redis, jobs: Iterable[Job], batch: str, name: str) -> Tally:
    """Queues jobs of one batch, reading the iterable chunk by chunk, so that memory does not grow with it.

    Raises:
        ServerUnavailableError: Redis went away or refused; chunks that were written stay queued, and submitting
            the same again joins them.
    """
    return _enqueue(connection, jobs, _Listing(batch, name))


def requeue(connection: redis.Redis, jobs: Iterable[Job], *, above: int = 0) -> int:
    """Queues jobs again that are listed in their batches already; how many. Raises like `enqueue`.

    Args:
        above: a fence (`names.FENCE`) that theirs must be higher than.
    """
    return _enqueue(connection, jobs, None, above).queued


def relist(connection: redis.Redis, listings: Mapping[str, Sequence[tuple[str, int, int]]]) -> None:
    """Lists the jobs of batches again, where Redis has lost the batch.

    Args:
        listings: by batch, each of its jobs: id, index, number of images.
    """
    for batch, jobs in listings.items():
        if connection.exists(names.batch_jobs(batch)):
            continue
        now = time.time()
        with connection.pipeline() as pipe:
            pipe.zadd(names.batch_jobs(batch), {job_id: index for job_id, index, _ in jobs})
            pipe.zadd(names.BATCHES, {batch: now}, nx=True)
            pipe.hset(names.batch(batch), mapping={"name": batch, "created_at": repr(now)})
            num_images = sum(count for *_, count in jobs)
            pipe.hset(names.batch(batch), mapping={"num_jobs": len(jobs), "num_images": num_images})
            for key in (names.batch(batch), names.batch_jobs(batch)):
                pipe.expire(key, names.BATCH_TTL)
            pipe.execute()


@dataclass(frozen=True)
class _Listing:
    """The batch under which jobs are listed as they are queued."""

    batch: str
    name: str


def _enqueue(connection: redis.Redis, jobs: Iterable[Job], listing: _Listing | None, above: int = 0) -> Tally:
    tally = Tally()
    queues: dict[tuple[str, str], Queue] = {}
    iterator = iter(jobs)
    try:
        while chunk := list(islice(iterator, CHUNK)):
            _enqueue_chunk(connection, chunk, listing, queues, tally, above)
    except redis.RedisError as error:
        raise ServerUnavailableError(
            f"Redis stopped taking jobs after {tally.queued:,} were queued: {error}. Submit the same again to go on."
        ) from error
    return tally


def _enqueue_chunk(
    connection: redis.Redis,
    chunk: Sequence[Job],
    listing: _Listing | None,
    queues: dict[tuple[str, str], Queue],
    tally: Tally,
    above: int,
) -> None:
    unique = _unique(chunk)
    while True:
        with connection.pipeline() as pipe:
            pipe.watch(*(RqJob.key_for(job_id) for job_id in unique))
            states = read_states(connection, list(unique))
            fresh, joined, done = [], 0, 0
            stale: list[tuple[Job, JobState]] = []
            late: list[tuple[str, Priority]] = []
            for job, state in zip(unique.values(), states, strict=True):
                if state is None:
                    fresh.append(job)
                elif state.status in (JobStatus.QUEUED, JobStatus.STARTED):
                    joined += 1
                    if state.status is JobStatus.QUEUED and is_more_urgent(job.priority, state.origin):
                        late.append((job.id, job.priority))
                elif state.status is JobStatus.FINISHED and state.result is not None and are_there(state.result):
                    done += 1
                else:
                    fresh.append(job)
                    stale.append((job, state))
            moving = moves(connection, late) if late else []
            pipe.multi()
            for move in moving:
                move.write(pipe)
            for job, state in stale:
                _forget(connection, pipe, job, state)
            _push(connection, pipe, fresh, queues, next_fence(connection, above))
            if listing is not None:
                _list(pipe, chunk, listing, tally)
            _announce(pipe, fresh)
            try:
                pipe.execute()
            except redis.WatchError:
                continue  # somebody else queued or took one of them just now: look again
        tally.jobs += len(chunk)
        tally.images += sum(job.num_images for job in chunk)
        tally.queued += len(fresh)
        tally.joined += joined + len(chunk) - len(unique)
        tally.moved_up += len(moving)
        tally.done += done
        return


def _unique(chunk: Sequence[Job]) -> dict[str, Job]:
    """The jobs by id; of one that is there several times, the most urgent counts."""
    unique: dict[str, Job] = {}
    for job in chunk:
        first = unique.get(job.id, job)
        unique[job.id] = job if most_urgent(first.priority, job.priority) == job.priority else first
    return unique


def _list(pipe: redis.client.Pipeline, chunk: Sequence[Job], listing: _Listing, tally: Tally) -> None:
    batch, now = listing.batch, time.time()
    pipe.zadd(names.batch_jobs(batch), {job.id: job.index for job in chunk})
    pipe.zadd(names.BATCHES, {batch: now}, nx=True)
    pipe.zremrangebyscore(names.BATCHES, 0, now - names.BATCH_TTL)
    pipe.hsetnx(names.batch(batch), "name", listing.name)
    pipe.hsetnx(names.batch(batch), "created_at", repr(now))
    images = tally.images + sum(job.num_images for job in chunk)
    pipe.hset(names.batch(batch), mapping={"num_jobs": tally.jobs + len(chunk), "num_images": images})
    for key in (names.batch(batch), names.batch_jobs(batch)):
        pipe.expire(key, names.BATCH_TTL)


def _announce(pipe: redis.client.Pipeline, jobs: Sequence[Job]) -> None:
    """Says which jobs were queued: one event for each batch, none where there is nothing new."""
    by_batch: dict[str, list[str]] = {}
    for job in jobs:
        by_batch.setdefault(job.batch, []).append(job.id)
    for batch, ids in by_batch.items():
        event = Submitted(time=time.time(), batch=batch, jobs=tuple(ids))
        pipe.xadd(names.EVENTS, {"event": event.model_dump_json()}, maxlen=names.EVENTS_LENGTH, approximate=True)


def _push(
    connection: redis.Redis,
    pipe: redis.client.Pipeline,
    jobs: Sequence[Job],
    queues: dict[tuple[str, str], Queue],
    fence: int,
) -> None:
    by_queue: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        by_queue.setdefault((job.priority, job.spec.model), []).append(job)
    for key, members in by_queue.items():
        queue = queues.get(key)
        if queue is None:
            queue = queues[key] = Queue(names.queue(*key), connection=connection, serializer=JSONSerializer)
            # The oldest that we run on. Else RQ asks with INFO, which a producer need not be allowed.
            queue.redis_server_version = (6, 2, 0)
        queue.enqueue_many([_data(job, fence) for job in members], pipeline=pipe)


def _data(job: Job, fence: int) -> object:
    return Queue.prepare_data(
        names.RENDER_FUNCTION,
        args=(job.to_json(),),
        job_id=job.id,
        # A sentence for `rq info`; RQ would otherwise make one out of the whole payload.
        description=f"{job.spec.model}: {job.spec.prompt[:80]}",
        # The supervisor keeps the deadline. RQ's own is a backstop that must never come first.
        timeout=-1,
        result_ttl=names.RESULT_TTL,
        meta={names.FENCE: fence},
        # Only for RQ's own clean-up of abandoned jobs, which any `rq` command may trigger.
        retry=Retry(max=job.max_attempts),
    )


def _forget(connection: redis.Redis, pipe: redis.client.Pipeline, job: Job, state: JobState) -> None:
    """Takes a job out of the registry that its end put it in, so that it can be queued anew."""
    registries = {
        JobStatus.FAILED: FailedJobRegistry,
        JobStatus.CANCELED: CanceledJobRegistry,
        JobStatus.FINISHED: FinishedJobRegistry,
    }
    # The queue that it was in: asked for again, it may have another priority.
    name = state.origin or names.queue(job.priority, job.spec.model)
    for registry in {registries[state.status], FailedJobRegistry}:
        pipe.zrem(registry(name, connection=connection).key, job.id)
    pipe.delete(RqJob.key_for(job.id))
