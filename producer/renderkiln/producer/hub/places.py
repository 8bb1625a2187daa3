"""Where a job that waits or is at work stands in Redis, and putting one back that stands nowhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import redis
from rq import Queue
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

#: How the queues of ours are called; see `names.queue`.
_OURS = "renderkiln:"
#: Where a job says that it is, which must then hold it.
_WAITING = (RqStatus.QUEUED.value, RqStatus.SCHEDULED.value)


class Places(NamedTuple):
    """The ids that some list holds: of jobs that wait, and of jobs that are at work."""

    waiting: set[str]
    started: set[str]


def read_places(connection: redis.Redis) -> Places:
    """All ids that stand in a queue of ours, in its intermediate list, or in its registries of open jobs."""
    found = [_read(connection, queue) for queue in our_queues(connection)]
    return Places(
        set().union(*(each.waiting for each in found)),
        set().union(*(each.started for each in found)),
    )


def _read(connection: Any, queue: Queue) -> Places:
    # In the order in which a job moves, so that none slips through while it does.
    waiting = [
        *connection.zrange(ScheduledJobRegistry(queue=queue).key, 0, -1),
        *connection.lrange(queue.key, 0, -1),
        *connection.lrange(queue.intermediate_queue_key, 0, -1),
    ]
    started = connection.zrange(StartedJobRegistry(queue=queue).key, 0, -1)
    return Places({_text(each) for each in waiting}, {_text(each).partition(":")[0] for each in started})


def our_queues(connection: redis.Redis) -> list[Queue]:
    """The queues of ours that anything was ever put into."""
    known: Any = connection.smembers(Queue.redis_queues_keys)
    named = sorted(_text(key).removeprefix(Queue.redis_queue_namespace_prefix) for key in known)
    return [Queue(name, connection=connection, serializer=JSONSerializer) for name in named if name.startswith(_OURS)]


def put_back(connection: redis.Redis, job_id: str) -> bool:
    """Puts a job back into its queue that says it waits or is at work and stands nowhere; whether it was so.

    The job is WATCHed, so that a worker that takes it just now keeps it. An id that comes to stand twice does no harm:
    workers drop what is not waiting.
    """
    key = RqJob.key_for(job_id)
    with connection.pipeline() as pipe:
        pipe.watch(key)
        found: Any = pipe.hmget(key, "status", "origin")
        status, origin = (_text(each or b"") for each in found)
        if not origin.startswith(_OURS) or status not in (*_WAITING, RqStatus.STARTED.value):
            return False
        queue = Queue(origin, connection=connection, serializer=JSONSerializer)
        places = _read(pipe, queue)
        if job_id in (places.waiting if status in _WAITING else places.started):
            return False
        pipe.multi()
        pipe.hset(key, mapping={"status": RqStatus.QUEUED.value, "worker_name": ""})
        pipe.lpush(queue.key, job_id)
        pipe.sadd(Queue.redis_queues_keys, queue.key)
        try:
            pipe.execute()
        except redis.WatchError:
            return False
    return True


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
