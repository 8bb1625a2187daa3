"""Finding jobs whose worker died, and putting them back.

Three places hold such jobs: the registry of started jobs with an execution whose lease ran out; the same with a lease
that still runs but a worker process on this very machine that is gone; and the intermediate list of a queue, for a
worker that died between taking a job and registering it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any

import redis
from rq import Queue
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer

from renderkiln.home.processes import is_no_more
from renderkiln.home.reading import members_of_sorted_set, read_hashes
from renderkiln.schema.limits import MAX_FIELD

from .endings import add_set_aside
from .fates import MAX_RESCUES
from .refusals import Refusals
from .taking import counter, known_id, read_job, rescue_intermediate

log = logging.getLogger("renderkiln.supervisor")


def rescue(
    connection: Any,
    queues: Iterable[Queue],
    worker_key: Callable[[str], str],
    patience: float,
    refusals: Refusals | None = None,
) -> int:
    """Puts abandoned jobs back to the front of their queues; how many. A job rescued too often is set aside.

    Args:
        connection: a Redis client that answers in bytes.
        worker_key: the Redis key of a worker of this name.
        patience: see `rescue_intermediate`.
        refusals: counts what is refused.
    """
    count, refusals = 0, refusals or Refusals()
    for queue in queues:
        registry = queue.started_job_registry.key
        for member, _ in members_of_sorted_set(connection, registry):
            job_id = known_id(member.partition(b":")[0])
            if job_id is None or not member.isascii():
                connection.zrem(registry, member)
                refusals.job(repr(member[:80]), queue.name, "what stands among the started jobs is none")
                continue
            if _lease_runs(connection, member) and not _worker_is_gone(connection, job_id, worker_key):
                continue
            count += _put_back(connection, queue, job_id, member.decode(), refusals)
        count += rescue_intermediate(connection, queue, patience, refusals)
    return count


def process_of(found: list[bytes | None] | None, host: str) -> int | None:
    """The process id of a worker on this host, from what its record says of `hostname` and `pid`; None elsewhere."""
    said_host, said_pid = found or (None, None)
    if said_host is None or said_pid is None or said_host != host.encode():
        return None
    pid = int(said_pid) if said_pid.isdigit() and len(said_pid) < 10 else 0
    return pid if pid > 0 else None


def _lease_runs(connection: Any, member: bytes) -> bool:
    """Whether a lease has not ended, by the server's clock: it lets the execution's key expire with it.

    The score in the registry is by the clock of whoever wrote it. One Mac with a wrong clock would take everybody's
    jobs away, or have its own taken.
    """
    return bool(connection.exists(b"rq:execution:" + member))


def _worker_is_gone(connection: Any, job_id: str, worker_key: Callable[[str], str]) -> bool:
    """Whether the job's worker ran on this machine and its process is no more. Elsewhere only the lease can tell."""
    (job,) = read_hashes(connection, [RqJob.key_for(job_id)], "worker_name")
    name = (job or [None])[0]
    if not name or len(name) > MAX_FIELD:
        return False
    (worker,) = read_hashes(connection, [worker_key(name.decode(errors="replace"))], "hostname", "pid")
    pid = process_of(worker, socket.gethostname())
    return pid is not None and is_no_more(pid)


def _put_back(connection: Any, queue: Queue, job_id: str, member: str, refusals: Refusals) -> bool:
    registry = queue.started_job_registry.key
    key = RqJob.key_for(job_id)
    with connection.pipeline() as pipe:
        pipe.watch(key)
        job = read_job(connection, job_id, queue, refusals)
        if job is None:
            connection.zrem(registry, member)
            return False
        if pipe.zscore(registry, member) is None:
            return False
        is_ours: bool = job.get_status(refresh=False) == RqStatus.STARTED
        rescues = counter(job, "rescues") + 1
        job.meta["rescues"] = rescues
        pipe.multi()
        pipe.zrem(registry, member)
        pipe.delete(f"rq:execution:{member}")
        if is_ours and rescues >= MAX_RESCUES:
            add_set_aside(pipe, job, queue, counter(job, "attempts"))
        elif is_ours:
            mapping = {"meta": JSONSerializer.dumps(job.meta), "status": RqStatus.QUEUED.value, "worker_name": ""}
            pipe.hset(key, mapping=mapping)
            pipe.lpush(queue.key, job_id)
        try:
            pipe.execute()
        except redis.WatchError:
            return False  # its worker lives after all, or another rescuer was first
    if is_ours and rescues >= MAX_RESCUES:
        log.warning("job %s lost its worker %d times: it is set aside", job_id, rescues)
        return False
    if is_ours:
        log.warning("job %s lost its worker: it is back in %s (rescue %d)", job_id, queue.name, rescues)
    return is_ours
