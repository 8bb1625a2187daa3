"""Writing into Redis how a job ended: status, result, registries and event in one MULTI.

RQ's own handlers do this in several steps and keep only a traceback of a failure. Here all of it is there or none, the
result is the one that clients read. Each function adds to a MULTI that its caller began, fenced by a WATCH.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any

from rq import Queue
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.registry import CanceledJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now as rq_now
from rq.utils import utcformat

from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError, RendererDiedError
from renderkiln.schema.events import Ended, Event, Returned
from renderkiln.schema.jobs import Failure, JobResult, JobStatus
from renderkiln.schema.payload import read_payload

from .fates import MAX_RESCUES

_RQ_STATUS = {
    JobStatus.FINISHED: RqStatus.FINISHED,
    JobStatus.FAILED: RqStatus.FAILED,
    JobStatus.CANCELED: RqStatus.CANCELED,
}


#: Of an attempt's log that a job keeps in Redis; the ledger of its worker has more.
_LOG_BYTES = 4_000


def publish(connection: Any, event: Event) -> None:
    """Adds a durable event; `connection` may be a pipeline."""
    connection.xadd(names.EVENTS, {"event": event.model_dump_json()}, maxlen=names.EVENTS_LENGTH, approximate=True)


def hear_cancel(connection: Any, rq_job: RqJob, is_ours: Callable[[], bool], *, is_final: bool) -> bool:
    """Settles whether a job that is about to end was canceled before; asked before its end is recorded anywhere.

    Of a cancel and an end that meet, whichever reaches Redis first holds. Where the mark of a cancel is there, the job
    ends as canceled, whatever became of it. Where it is not, the job is marked as ending in the same fenced step, and a
    cancel that comes later is told that it was too late. So nothing that was canceled ever appears as finished, not
    even in a ledger, and nothing that was finished is canceled afterwards.

    Args:
        is_ours: whether the attempt still holds the job; where not, its end is another's to write.
        is_final: whether it is to end for good. One that goes back to its queue can be canceled until it is there.

    Raises:
        redis.WatchError: the job changed just now; ask again.
    """
    with connection.pipeline() as pipe:
        pipe.watch(rq_job.key)
        if pipe.hexists(rq_job.key, names.CANCEL_FIELD):
            return True
        if is_final and is_ours():
            pipe.multi()
            pipe.hset(rq_job.key, names.ENDING_FIELD, "1")
            pipe.execute()
    return False


def add_end(
    pipe: Any,
    rq_job: RqJob,
    queue: Queue,
    result: JobResult,
    failure: Failure | None,
    *,
    wait: float = 0.0,
    last: bool = False,
    log: str = "",
) -> None:
    """Adds the end of an attempt to a MULTI: final, or back to the front of its queue where the result is QUEUED.

    Args:
        result: what the job came to; kept in its meta where final.
        failure: why the attempt failed, where it did.
        wait: seconds until the job may be tried again, where it goes back.
        last: back behind the others instead: what it waits for is not to be had just now.
        log: what was logged during the attempt, where it failed; its end is kept.
    """
    now = time.time()
    if result.status is JobStatus.QUEUED:
        if wait:
            postpone(pipe, rq_job.id, queue, now + wait)
        else:
            pipe.hset(rq_job.key, mapping={"status": RqStatus.QUEUED.value, "worker_name": ""})
            (pipe.rpush if last else pipe.lpush)(queue.key, rq_job.id)
        event: Event = Returned(time=now, job_id=rq_job.id, batch=result.batch, worker=result.worker, failure=failure)
    else:
        rq_job.meta["result"] = result.model_dump(mode="json")
        _register(pipe, rq_job, queue, result)
        event = Ended(time=now, result=result)
    ended_at = utcformat(rq_job.ended_at) if rq_job.ended_at else ""
    pipe.hset(rq_job.key, mapping={"meta": JSONSerializer.dumps(rq_job.meta), "ended_at": ended_at})
    if failure is not None:
        pipe.hset(rq_job.key, names.LOG_FIELD, log.encode()[-_LOG_BYTES:])
    elif result.status is not JobStatus.QUEUED:
        pipe.hdel(rq_job.key, names.LOG_FIELD)
    publish(pipe, event)


def postpone(pipe: Any, job_id: str, queue: Queue, due: float) -> None:
    """Adds to a MULTI that a job waits until `due`, in seconds since 1970. `postponing` brings it back."""
    pipe.hset(RqJob.key_for(job_id), mapping={"status": RqStatus.SCHEDULED.value, "worker_name": ""})
    pipe.zadd(queue.scheduled_job_registry.key, {job_id: due})


def add_set_aside(pipe: Any, rq_job: RqJob, queue: Queue, attempts: int) -> None:
    """Adds to a MULTI the end of a job that was rescued too often."""
    message = (
        f"its worker died {MAX_RESCUES} times while rendering it, the last time {rq_job.worker_name or 'one unknown'}; "
        "the job may be what kills them. `renderkiln failed --requeue` with its id tries it again."
    )
    failure = Failure(kind=RendererDiedError.kind, message=message)
    try:
        batch = read_payload(rq_job.data, rq_job.id).batch
    except InvalidSpecError:
        add_refusal(pipe, rq_job.id, queue, failure)
        return
    rq_job.ended_at = rq_now()
    result = JobResult(
        job_id=rq_job.id,
        batch=batch,
        status=JobStatus.FAILED,
        failure=failure,
        worker=rq_job.worker_name or "",
        attempt=attempts,
    )
    add_end(pipe, rq_job, queue, result, failure)


def add_refusal(pipe: Any, job_id: str, queue: Queue, failure: Failure) -> None:
    """Adds to a MULTI that a job is set aside which is none of ours; its fields are not trusted."""
    key = RqJob.key_for(job_id)
    said = zlib.compress(_said(failure).encode())
    pipe.hset(key, mapping={"status": RqStatus.FAILED.value, "exc_info": said, "ended_at": utcformat(rq_now())})
    pipe.persist(key)
    pipe.zadd(queue.failed_job_registry.key, {job_id: -1})
    pipe.lrem(queue.intermediate_queue_key, 1, job_id)


def refuse(connection: Any, job_id: str, queue: Queue, failure: Failure) -> None:
    """Sets aside what is no job of ours."""
    with connection.pipeline() as pipe:
        add_refusal(pipe, job_id, queue, failure)
        pipe.execute()


def _register(pipe: Any, rq_job: RqJob, queue: Queue, result: JobResult) -> None:
    rq_job.set_status(_RQ_STATUS[result.status], pipeline=pipe)
    if result.status is JobStatus.FAILED:
        # Failed jobs stay until somebody retries or forgets them.
        said = _said(result.failure) if result.failure else ""
        queue.failed_job_registry.add(rq_job, ttl=-1, exc_string=said, pipeline=pipe)
        return
    if result.status is JobStatus.FINISHED:
        queue.finished_job_registry.add(rq_job, names.RESULT_TTL, pipe)
        pipe.delete(names.images(rq_job.id))  # its result has them
    else:
        key = CanceledJobRegistry(queue.name, connection=queue.connection).key
        pipe.zadd(key, {rq_job.id: time.time() + names.RESULT_TTL})
    pipe.expire(rq_job.key, names.RESULT_TTL)


def _said(failure: Failure) -> str:
    return f"{failure.kind}: {failure.message}"
