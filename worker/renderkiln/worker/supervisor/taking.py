"""Taking a job from its queue in two steps, neither of which can lose it or give it to two.

First its id moves into the queue's intermediate list (LMOVE, queue by queue): RQ's BLPOP over several queues would lose
a job whose worker dies just then. Then one MULTI, fenced by a WATCH on the job, makes it this worker's: started, in the
registry under an execution with a lease, out of the intermediate list, and said so to who listens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import redis
from rq import Queue
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer

from renderkiln.home.reading import is_wrong_type, members_of_list, read_hashes
from renderkiln.home.replies import ReplyTooLargeError
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import Failure
from renderkiln.schema.limits import MAX_FIELD, MAX_META, MAX_PAYLOAD
from renderkiln.schema.payload import unpack_payload

from .endings import refuse
from .refusals import Refusals

log = logging.getLogger("renderkiln.supervisor")

#: Seconds for which it is remembered when a job was first seen between the two steps.
_SEEN = 3600


#: The fields of a job that are read, and how long each may be. Besides ours, those that RQ writes again at a job's end.
_LIMITS = dict.fromkeys(
    (
        *("status", "origin", "created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat", "description"),
        *("timeout", "result_ttl", "failure_ttl", "ttl", "worker_name", "retries_left", "number_of_retries"),
    ),
    MAX_FIELD,
) | {"data": MAX_PAYLOAD, "meta": MAX_META}
_ID = re.compile(rb"[A-Za-z0-9_-]{1,200}")


def take(connection: Any, queues: Iterable[Queue], refusals: Refusals | None = None) -> tuple[RqJob, Queue] | None:
    """The first waiting job, its id now in its queue's intermediate list; None if nothing waits.

    A queue that cannot be read is passed over: the others go on.
    """
    refusals = refusals or Refusals()
    for queue in queues:
        while (raw := _next_id(connection, queue, refusals)) is not None:
            job_id = known_id(raw)
            job = None if job_id is None else read_job(connection, job_id, queue, refusals)
            if job_id is None:
                refusals.job(repr(raw[:80]), queue.name, "that is no id of a job")
            # Canceled or moved up while it waited, or queued twice and taken already.
            if job is not None and job.get_status(refresh=False) == RqStatus.QUEUED and job.origin == queue.name:
                return job, queue
            connection.lrem(queue.intermediate_queue_key, 1, raw)
    return None


def known_id(raw: bytes) -> str | None:
    """The id of a job as RQ allows them, or None."""
    return raw.decode() if _ID.fullmatch(raw) else None


def _next_id(connection: Any, queue: Queue, refusals: Refusals) -> bytes | None:
    while True:
        try:
            raw: bytes | None = connection.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
            return raw
        except ReplyTooLargeError:
            refusals.job("of more than 64 MiB", queue.name, "that is no id of a job")
            members_of_list(connection, queue.intermediate_queue_key)  # takes it out
        except redis.ResponseError as error:
            if not is_wrong_type(error):
                raise
            if not refusals.make_way(connection, {queue.key: "list", queue.intermediate_queue_key: "list"}):
                return None


def read_job(connection: Any, job_id: str, queue: Queue, refusals: Refusals | None = None) -> RqJob | None:
    """A job as RQ keeps it, or None: it is not there, or cannot be read and has been set aside."""
    refusals = refusals or Refusals()
    key = RqJob.key_for(job_id)
    (found,) = read_hashes(connection, [key], *_LIMITS)
    try:
        if found is None:
            if not refusals.make_way(connection, {key: "hash"}):
                raise ValueError("they are too large")
            raise ValueError("its key is no hash")
        fields = {name: value for name, value in zip(_LIMITS, found, strict=True) if value is not None}
        if not fields:
            return None
        return _restored(connection, job_id, fields)
    except redis.RedisError:
        raise
    except Exception as error:  # whatever somebody wrote into its fields: it must not stop the queue
        why = f"its fields in Redis cannot be read: {str(error)[:500]}"
        refusals.job(job_id, queue.name, why)
        refuse(connection, job_id, queue, Failure(kind=InvalidSpecError.kind, message=why))
        return None


def _restored(connection: Any, job_id: str, fields: Mapping[str, bytes]) -> RqJob:
    for name, value in fields.items():
        if len(value) > _LIMITS[name]:
            raise ValueError(f"{name} has {len(value):,} bytes; the limit is {_LIMITS[name]:,}")
    if "data" not in fields or "status" not in fields:
        raise ValueError("data or status is missing")
    job = RqJob(job_id, connection=connection, serializer=JSONSerializer)
    job.restore({**fields, "data": b"[]"})  # it would decompress a bomb
    job.data = unpack_payload(fields["data"])
    if not isinstance(job.meta, dict):
        raise ValueError("its meta is not an object")
    JSONSerializer.dumps(job.meta)  # what RQ could not read stands there as bytes
    return job


def counter(rq_job: RqJob, name: str) -> int:
    """A count that we keep in a job's meta; 0 where there is none, or something else."""
    found = rq_job.meta.get(name)
    return found if isinstance(found, int) and found > 0 else 0


def claim(connection: Any, rq_job: RqJob, queue: Queue, add: Callable[[Any], None], halfway: str = "") -> bool:
    """Makes a job that was taken this worker's; False where it no longer waits, and so is nobody's to start.

    Args:
        add: adds to the MULTI what makes the job started.
        halfway: name of a worker that tried before: what it has started and not registered, as a key of the wrong type
            was in the way, counts as waiting. A MULTI does the rest where one of its commands fails.

    Raises:
        redis.WatchError: the job changed just now; claim again.
    """
    with connection.pipeline() as pipe:
        pipe.watch(rq_job.key)
        waits = _waits_in(pipe, rq_job.key, queue) or (
            halfway != ""
            and pipe.hmget(rq_job.key, "status", "worker_name") == [RqStatus.STARTED.value.encode(), halfway.encode()]
        )
        pipe.multi()
        if waits:
            add(pipe)
        pipe.lrem(queue.intermediate_queue_key, 1, rq_job.id)
        pipe.delete(queue.intermediate_queue.get_first_seen_key(rq_job.id))
        pipe.execute()
    return waits


def put_back(connection: Any, rq_job: RqJob, queue: Queue) -> None:
    """Puts a job that was taken, and not claimed, back to the front of its queue."""
    with connection.pipeline() as pipe:
        pipe.lrem(queue.intermediate_queue_key, 1, rq_job.id)
        pipe.delete(queue.intermediate_queue.get_first_seen_key(rq_job.id))
        pipe.lpush(queue.key, rq_job.id)
        pipe.execute()


def _waits_in(connection: Any, key: str, queue: Queue) -> bool:
    """Whether a job waits, and in this queue: one that was moved to another is taken from there."""
    wanted = [RqStatus.QUEUED.value.encode(), queue.name.encode()]
    return bool(connection.hmget(key, "status", "origin") == wanted)


def rescue_intermediate(connection: Any, queue: Queue, patience: float, refusals: Refusals | None = None) -> int:
    """Puts back jobs that were taken and never claimed; how many.

    Args:
        patience: seconds for which a job may sit between the two steps before it counts as stuck.
    """
    count, refusals = 0, refusals or Refusals()
    for raw in members_of_list(connection, queue.intermediate_queue_key):
        job_id = known_id(raw)
        if job_id is None:
            connection.lrem(queue.intermediate_queue_key, 1, raw)
            refusals.job(repr(raw[:80]), queue.name, "that is no id of a job")
            continue
        seen = queue.intermediate_queue.get_first_seen_key(job_id)
        if _seen_for(connection, seen) < patience:
            continue
        with connection.pipeline() as pipe:
            pipe.watch(queue.intermediate_queue_key, RqJob.key_for(job_id))
            waits = _waits_in(pipe, RqJob.key_for(job_id), queue)
            pipe.multi()
            pipe.lrem(queue.intermediate_queue_key, 1, raw)
            pipe.delete(seen)
            if waits:
                pipe.lpush(queue.key, raw)
            try:
                pipe.execute()
            except redis.WatchError:
                continue
        if waits:
            count += 1
            log.warning("job %s was taken and never started: it is back in %s", job_id, queue.name)
    return count


def _seen_for(connection: Any, key: str) -> float:
    """Seconds since a job was first seen between the two steps; -1 where that is now.

    By the server's clock, which lets the key expire: whoever saw the job first may have a wrong one.
    """
    if connection.set(key, "seen", nx=True, ex=_SEEN):
        return -1.0
    left: int = connection.pttl(key)
    if not 0 <= left <= _SEEN * 1000:  # gone just now, or somebody else's
        connection.set(key, "seen", ex=_SEEN)
        return -1.0
    return _SEEN - left / 1000
