"""Finding jobs whose worker died, and putting them back.

Three places hold such jobs: the registry of started jobs with an execution whose lease ran out; the same with a lease
that still runs but a worker process on this very machine that is gone; and the intermediate list of a queue, for a
worker that died between taking a job and registering it.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer

from .fates import MAX_RESCUES

log = logging.getLogger("renderkiln.supervisor")


def rescue(
    connection: Any,
    queues: Iterable[Queue],
    worker_key: Callable[[str], str],
    set_aside: Callable[[RqJob, Queue], None],
    patience: float,
) -> int:
    """Puts abandoned jobs back to the front of their queues; how many. A job rescued too often is set aside.

    Args:
        connection: a Redis client that answers in bytes.
        worker_key: the Redis key of a worker of this name.
        set_aside: writes the end of a job that was rescued too often.
        patience: seconds for which a job may sit between being taken and being registered before it counts as stuck.
    """
    count = 0
    for queue in queues:
        for member, lease_ends in connection.zrange(queue.started_job_registry.key, 0, -1, withscores=True):
            job_id, _, execution_id = member.decode().partition(":")
            if lease_ends > time.time() and not _worker_is_gone(connection, job_id, worker_key):
                continue
            count += _put_back(connection, queue, job_id, execution_id, set_aside)
        count += _rescue_intermediate(connection, queue, patience)
    return count


def _worker_is_gone(connection: Any, job_id: str, worker_key: Callable[[str], str]) -> bool:
    """Whether the job's worker ran on this machine and its process is no more. Elsewhere only the lease can tell."""
    name = connection.hget(RqJob.key_for(job_id), "worker_name")
    if not name:
        return False
    host, pid = connection.hmget(worker_key(name.decode()), "hostname", "pid")
    if host is None or pid is None or host.decode() != socket.gethostname():
        return False
    return not psutil.pid_exists(int(pid))


def _put_back(
    connection: Any,
    queue: Queue,
    job_id: str,
    execution_id: str,
    set_aside: Callable[[RqJob, Queue], None],
) -> bool:
    registry = queue.started_job_registry.key
    member = f"{job_id}:{execution_id}"
    key = RqJob.key_for(job_id)
    with connection.pipeline() as pipe:
        pipe.watch(key)
        if pipe.zscore(registry, member) is None:
            return False
        try:
            job = RqJob.fetch(job_id, connection=connection, serializer=JSONSerializer)
        except NoSuchJobError:
            connection.zrem(registry, member)
            return False
        rescues = int(job.meta.get("rescues", 0)) + 1
        job.meta["rescues"] = rescues
        pipe.multi()
        pipe.zrem(registry, member)
        pipe.delete(f"rq:execution:{member}")
        pipe.hset(key, "meta", JSONSerializer.dumps(job.meta))
        aside = rescues >= MAX_RESCUES
        if not aside:
            pipe.hset(key, mapping={"status": RqStatus.QUEUED.value, "worker_name": ""})
            pipe.lpush(queue.key, job_id)
        try:
            pipe.execute()
        except redis.WatchError:
            return False  # its worker lives after all, or another rescuer was first
    if aside:
        log.warning("job %s lost its worker %d times: it is set aside", job_id, rescues)
        set_aside(job, queue)
        return False
    log.warning("job %s lost its worker: it is back in %s (rescue %d)", job_id, queue.name, rescues)
    return True


def _rescue_intermediate(connection: Any, queue: Queue, patience: float) -> int:
    count = 0
    for raw in connection.lrange(queue.intermediate_queue_key, 0, -1):
        job_id = raw.decode()
        seen = queue.intermediate_queue.get_first_seen_key(job_id)
        now = time.time()
        first_seen = connection.set(seen, now, nx=True, ex=3600, get=True)
        if first_seen is None or now - float(first_seen) < patience:
            continue
        with connection.pipeline() as pipe:
            pipe.watch(queue.intermediate_queue_key, RqJob.key_for(job_id))
            status = connection.hget(RqJob.key_for(job_id), "status")
            pipe.multi()
            pipe.lrem(queue.intermediate_queue_key, 1, job_id)
            pipe.delete(seen)
            if status == RqStatus.QUEUED.value.encode():
                pipe.lpush(queue.key, job_id)
                count += 1
            try:
                pipe.execute()
            except redis.WatchError:
                continue
        if status == RqStatus.QUEUED.value.encode():
            log.warning("job %s was taken and never started: it is back in %s", job_id, queue.name)
    return count
