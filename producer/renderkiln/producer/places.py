"""Where jobs that wait or are at work stand in Redis, and putting one back that stands nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import redis
from rq import Queue
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from renderkiln.home.reading import is_wrong_type
from renderkiln.schema import names

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
    # In the order in which a job moves, so that none slips through while it does; each at once, since what moves while
    # it is read in pieces would be missed.
    waiting = [
        *_members(connection.zrange, scheduled_key(queue.name)),
        *_members(connection.lrange, queue.key),
        *_members(connection.lrange, queue.intermediate_queue_key),
    ]
    started = _members(connection.zrange, StartedJobRegistry(queue=queue).key)
    return Places({_text(each) for each in waiting}, {_text(each).partition(":")[0] for each in started})


def scheduled_key(queue_name: str) -> str:
    """Redis' key of the jobs of a queue that wait for their time: a sorted set by when that is, seconds since 1970."""
    return str(ScheduledJobRegistry.key_template.format(queue_name))


def our_queues(connection: redis.Redis) -> list[Queue]:
    """The queues of ours that anything was ever put into."""
    known: Any = connection.smembers(Queue.redis_queues_keys)
    named = sorted(_text(key).removeprefix(Queue.redis_queue_namespace_prefix) for key in known)
    return [
        Queue(name, connection=connection, serializer=JSONSerializer) for name in named if name.startswith(names.QUEUES)
    ]


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
        if not origin.startswith(names.QUEUES) or status not in (*_WAITING, RqStatus.STARTED.value):
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


def _members(read: Callable[[str, int, int], Any], key: str) -> list[bytes]:
    try:
        found: list[bytes] = read(key, 0, -1)
    except redis.ResponseError as error:
        if not is_wrong_type(error):
            raise
        return []  # somebody wrote something else there; a worker moves it out of the way
    return found


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
