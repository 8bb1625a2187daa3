"""Moving jobs that wait to a more urgent queue, when they are asked for again with more urgency."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from rq import Queue
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer

from renderkiln.schema import names
from renderkiln.schema.jobs import PRIORITIES, Priority

from .places import scheduled_key
from .results import read_jobs


@dataclass(frozen=True)
class Move:
    """A job's way from the queue in which it waits to a more urgent one, and what it then holds."""

    job_id: str
    source: str
    target: str
    data: bytes
    #: When it is tried again, where it waits for that after a failure, in seconds since 1970.
    due: float | None = None

    def write(self, pipe: redis.client.Pipeline) -> None:
        """Adds the move to a MULTI that watches the job.

        A worker that took the id out of the list just now, and has not started the job yet, sees that it belongs to
        another queue and leaves it to that.
        """
        source, target = (f"{Queue.redis_queue_namespace_prefix}{name}" for name in (self.source, self.target))
        if self.due is None:
            pipe.lrem(source, 1, self.job_id)
            pipe.rpush(target, self.job_id)
        else:
            pipe.zrem(scheduled_key(self.source), self.job_id)
            pipe.zadd(scheduled_key(self.target), {self.job_id: self.due})
        pipe.sadd(Queue.redis_queues_keys, target)
        pipe.hset(RqJob.key_for(self.job_id), mapping={"origin": self.target, "data": self.data})


def is_more_urgent(priority: Priority, queue_name: str) -> bool:
    """Whether a job of this priority would come before those in a queue of ours."""
    return priority in PRIORITIES[: _rank(queue_name)]


def most_urgent(first: Priority, second: Priority) -> Priority:
    """The one that workers empty first."""
    return min(first, second, key=PRIORITIES.index)


def moves(connection: redis.Redis, wanted: Sequence[tuple[str, Priority]]) -> list[Move]:
    """How waiting jobs, given with the priority that is wanted for each, get there.

    What was asked for first stays as it was asked for, but for the priority. Jobs that are not ours are left out.
    """
    made = []
    for (job_id, priority), stored in zip(wanted, read_jobs(connection, [each for each, _ in wanted]), strict=True):
        if stored is None:
            continue
        job, origin = stored
        moved = job.model_copy(update={"priority": priority})
        # As RQ stores a call: function, instance, arguments, keywords.
        data = zlib.compress(JSONSerializer.dumps((names.RENDER_FUNCTION, None, (moved.to_json(),), {})))
        made.append(Move(job_id, origin, names.queue(priority, job.spec.model), data, _due(connection, job_id, origin)))
    return made


def _due(connection: Any, job_id: str, queue_name: str) -> float | None:
    if connection.hget(RqJob.key_for(job_id), "status") != RqStatus.SCHEDULED.value.encode():
        return None
    due: float | None = connection.zscore(scheduled_key(queue_name), job_id)
    return due


def _rank(queue_name: str) -> int:
    """The place of a queue's priority among all; 0, before which nothing comes, for a queue that is not ours."""
    return next((rank for rank, each in enumerate(PRIORITIES) if queue_name.startswith(names.queue(each, ""))), 0)
