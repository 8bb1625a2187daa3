"""Taking a job from its queue in two steps, neither of which can lose it or give it to two.

First its id moves into the queue's intermediate list (LMOVE, queue by queue): RQ's BLPOP over several queues would lose
a job whose worker dies just then. Then one MULTI, fenced by a WATCH on the job, makes it this worker's: started, in the
registry under an execution with a lease, out of the intermediate list, and said so to who listens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer

from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import Failure

from .endings import refuse

log = logging.getLogger("renderkiln.supervisor")

#: Seconds for which it is remembered when a job was first seen between the two steps.
_SEEN = 3600


def take(connection: Any, queues: Iterable[Queue]) -> tuple[RqJob, Queue] | None:
    """The first waiting job, its id now in its queue's intermediate list; None if nothing waits."""
    for queue in queues:
        while (job_id := connection.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")) is not None:
            job = read_job(connection, job_id.decode(errors="replace"), queue)
            # Canceled while it waited, or queued twice and taken already.
            if job is not None and job.get_status(refresh=False) == RqStatus.QUEUED:
                return job, queue
            connection.lrem(queue.intermediate_queue_key, 1, job_id)
    return None


def read_job(connection: Any, job_id: str, queue: Queue) -> RqJob | None:
    """A job as RQ keeps it, or None: it is not there, or cannot be read and has been set aside."""
    try:
        job = RqJob.fetch(job_id, connection=connection, serializer=JSONSerializer)
        if not isinstance(job.meta, dict):
            raise ValueError("its meta is not an object")
        JSONSerializer.dumps(job.meta)  # what RQ could not read stands there as bytes
    except NoSuchJobError:
        return None
    except redis.RedisError:
        raise
    except Exception as error:  # whatever somebody wrote into its fields: it must not stop the queue
        log.warning("job %s in %s is refused: %s", job_id, queue.name, error)
        failure = Failure(kind=InvalidSpecError.kind, message=f"its fields in Redis cannot be read: {error}")
        refuse(connection, job_id, queue, failure)
        return None
    return job


def counter(rq_job: RqJob, name: str) -> int:
    """A count that we keep in a job's meta; 0 where there is none, or something else."""
    found = rq_job.meta.get(name)
    return found if isinstance(found, int) and found > 0 else 0


def next_fence(connection: Any, before: int) -> int:
    """A number for a claim: above `before`, and by the server's clock (microseconds since 1970) above all earlier ones.

    The clock decides where the number before is lost, as when a job is queued anew after Redis was emptied.
    """
    seconds, microseconds = (int(part) for part in connection.time())
    return max(before + 1, seconds * 1_000_000 + microseconds)


def claim(connection: Any, rq_job: RqJob, queue: Queue, add: Callable[[Any], None]) -> bool:
    """Makes a job that was taken this worker's; False where it no longer waits, and so is nobody's to start.

    Args:
        add: adds to the MULTI what makes the job started.

    Raises:
        redis.WatchError: the job changed just now; claim again.
    """
    with connection.pipeline() as pipe:
        pipe.watch(rq_job.key)
        waits: bool = pipe.hget(rq_job.key, "status") == RqStatus.QUEUED.value.encode()
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


def rescue_intermediate(connection: Any, queue: Queue, patience: float) -> int:
    """Puts back jobs that were taken and never claimed; how many.

    Args:
        patience: seconds for which a job may sit between the two steps before it counts as stuck.
    """
    count = 0
    for raw in connection.lrange(queue.intermediate_queue_key, 0, -1):
        job_id = raw.decode(errors="replace")
        seen = queue.intermediate_queue.get_first_seen_key(job_id)
        if connection.set(seen, time.time(), nx=True, ex=_SEEN):
            continue
        # How long ago that was is told by the server's clock: whoever saw it first may have a wrong one.
        if _SEEN - connection.pttl(seen) / 1000 < patience:
            continue
        with connection.pipeline() as pipe:
            pipe.watch(queue.intermediate_queue_key, RqJob.key_for(job_id))
            waits = pipe.hget(RqJob.key_for(job_id), "status") == RqStatus.QUEUED.value.encode()
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
