"""The supervisor's loop: RQ's `SimpleWorker`, made safe for one long-lived process and several queues.

What is different from RQ's own, and why, job by job:

- Jobs are taken with LMOVE into the queue's intermediate list, queue by queue in order of priority. RQ's BLPOP over
  several queues would lose a job for good if the worker died between taking and registering it.
- A job's function name is compared, not imported.
- While a job runs its heartbeat goes on, with a short lease, and canceling works.
- How an attempt ended is written in one MULTI with its event; when Redis is away just then, the worker waits for it.
- The first SIGTERM or SIGINT lets the image at hand be finished and gives the rest of the job back, the second gives
  everything back at once. Neither uses up an attempt.
"""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import psutil
import redis
from rq import Queue, SimpleWorker
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer
from rq.utils import now as rq_now
from rq.worker.base import WorkerStatus

from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.events import ImageDone, Progress, Started
from renderkiln.schema.jobs import Failure, ImageResult, Job, JobResult, JobStatus
from renderkiln.schema.payload import read_payload
from renderkiln.worker.protocol import Step

from .attempt import Outcome, Signals
from .endings import publish, refuse, set_aside, write_end
from .fates import tries_again
from .rescue import rescue

log = logging.getLogger("renderkiln.supervisor")
# RQ tells of every registry that it looks at, every few seconds; its warnings are worth hearing.
logging.getLogger("renderkiln.rq").setLevel(logging.WARNING)

#: Seconds that an idle worker sleeps at most before it looks at its queues and at its own stop flag again.
IDLE_WAIT = 0.5
#: Steps are published at most this often, seconds: enough for a moving bar, few enough not to matter.
PROGRESS_EVERY = 0.2


@dataclass(frozen=True)
class Current:
    """The attempt at hand."""

    rq_job: RqJob
    job: Job
    number: int
    execution: Execution


class RenderWorker(SimpleWorker):  # type: ignore[misc]  # RQ is untyped to us
    """Takes jobs from the queues and has each attempted by `attempt(current)`.

    Args:
        attempt: makes one attempt and says how it ended; must not raise.
        signals: how a running attempt is told to stop.
        announce: tells the world that this worker lives, with its state; called about every lease / 3.
        lease: seconds without a heartbeat after which others count this worker as dead.
        owner: a process for which this worker was started; it ends, when idle, once that is gone.
    """

    def __init__(
        self,
        queues: list[str],
        *,
        connection: redis.Redis,
        name: str,
        attempt: Callable[[Current], Outcome],
        on_ended: Callable[[Current, Outcome, JobStatus], None],
        signals: Signals,
        announce: Callable[[str], None],
        lease: float,
        owner: int | None = None,
    ) -> None:
        super().__init__(
            queues,
            connection=connection,
            name=name,
            serializer=JSONSerializer,
            worker_ttl=max(16, int(lease * 2)),
            job_monitoring_interval=max(1, int(lease)),
            maintenance_interval=max(1, int(lease / 2)),
            log_job_description=False,
        )
        self.log = logging.getLogger("renderkiln.rq")  # RQ's own logger would format for its own handlers
        self._attempt = attempt
        self._on_ended = on_ended
        self._signals = signals
        self._announce = announce
        self._lease = lease
        self._owner = owner
        self._current: Current | None = None
        self._next_heartbeat = 0.0
        self._next_progress = 0.0
        self._last_event = "$"

    # Starting and stopping.

    def register_birth(self) -> None:
        """Takes its name back at once from a dead process of this machine, or from itself when it lost Redis.

        RQ would refuse the name until the lease ends.
        """
        host, pid = self.connection.hmget(self.key, "hostname", "pid")
        ours = host is not None and pid is not None and host.decode() == self.hostname
        if ours and (int(pid) == self.pid or not psutil.pid_exists(int(pid))):
            self.connection.delete(self.key)
        super().register_birth()

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stop_requested = True
        signal.signal(signal.SIGINT, self.request_force_stop)
        signal.signal(signal.SIGTERM, self.request_force_stop)
        if self._current is not None:
            log.info("stopping after this image; once more to stop at once")
        self._signals.stop_after_image = True
        self._signals.wake()

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        self._signals.stop_now = True
        self._signals.wake()

    def kill_horse(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """RQ's stop-job command ends here, in the thread that hears commands."""
        self._signals.cancel = True
        self._signals.wake()

    # Signs of life.

    def get_heartbeat_ttl(self, job: RqJob) -> int:
        return max(1, int(self._lease))

    @property
    def stop_requested(self) -> bool:
        return bool(self._stop_requested)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        super().heartbeat(timeout, pipeline)
        self._announce("busy" if self._current else "idle")

    def beat_while_rendering(self) -> bool:
        """Keeps the lease of the job at hand and says whether its cancel was asked for. Survives an absent Redis."""
        current = self._current
        assert current is not None
        try:
            if time.monotonic() >= self._next_heartbeat:
                self._next_heartbeat = time.monotonic() + self._lease / 3
                self.maintain_heartbeats(current.rq_job)
            return bool(self.connection.hexists(current.rq_job.key, names.CANCEL_FIELD))
        except redis.RedisError as error:
            log.warning("Redis does not answer while job %s renders: %s", current.job.id, error)
            return False

    def publish_step(self, job: Job, step: Step) -> None:
        """Tells whoever watches; drops most steps of a fast model and all of them while Redis is away."""
        now = time.monotonic()
        if now < self._next_progress and step.step != step.num_steps:
            return
        self._next_progress = now + PROGRESS_EVERY
        progress = Progress(
            time=time.time(),
            job_id=job.id,
            batch=job.batch,
            worker=self.name,
            k=step.k,
            num_images=job.num_images,
            step=step.step,
            num_steps=step.num_steps,
        )
        with contextlib.suppress(redis.RedisError):
            self.connection.publish(names.PROGRESS, progress.model_dump_json())

    def publish_image(self, job: Job, image: ImageResult) -> None:
        event = ImageDone(time=time.time(), job_id=job.id, batch=job.batch, worker=self.name, image=image)
        with contextlib.suppress(redis.RedisError):  # the ledger has it, and so will the job's result
            publish(self.connection, event)

    # Taking jobs.

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RqJob, Queue] | None:
        """The next job and its queue; None where there is none in burst mode, or when the worker is to stop."""
        self.set_state(WorkerStatus.IDLE)
        idle_since, next_beat, wait = time.monotonic(), 0.0, 0.1
        while not self._stop_requested:
            try:
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + self._lease / 3
                    self.heartbeat()
                if self.should_run_maintenance_tasks:
                    self.run_maintenance_tasks()
                found = self._take()
                if found is not None or timeout is None:
                    return found
                if max_idle_time is not None and time.monotonic() - idle_since > max_idle_time:
                    return None
                if self._owner is not None and not psutil.pid_exists(self._owner):
                    log.info("process %d, for which this worker was started, is gone: ending", self._owner)
                    self._stop_requested = True
                    return None
                self._wait_for_news()
                wait = 0.1
            except (redis.ConnectionError, redis.TimeoutError) as error:
                log.warning("Redis does not answer: %s; trying again in %.1f s", error, wait)
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(wait * 2, 5.0)
        return None

    def _take(self) -> tuple[RqJob, Queue] | None:
        for queue in self._ordered_queues:
            while True:
                job_id = self.connection.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
                if job_id is None:
                    break
                try:
                    job = RqJob.fetch(job_id.decode(), connection=self.connection, serializer=JSONSerializer)
                except NoSuchJobError:
                    self._drop(queue, job_id)
                    continue
                if job.get_status(refresh=False) != RqStatus.QUEUED:
                    # Canceled while it waited, or queued twice and taken already.
                    self._drop(queue, job_id)
                    continue
                return job, queue
        return None

    def _drop(self, queue: Queue, job_id: bytes) -> None:
        self.connection.lrem(queue.intermediate_queue_key, 1, job_id)

    def _wait_for_news(self) -> None:
        """Sleeps until anything happens in the fleet; submitting writes an event in the same MULTI as its jobs."""
        reply = self.connection.xread({names.EVENTS: self._last_event}, count=100, block=int(IDLE_WAIT * 1000))
        if reply:
            self._last_event = reply[0][1][-1][0].decode()
        elif self._last_event == "$":
            # From here on by id: an event between two waits on "$" would go unheard.
            newest = self.connection.xrevrange(names.EVENTS, count=1)
            self._last_event = newest[0][0].decode() if newest else "0-0"

    def clean_registries(self) -> None:
        rescue(
            self.connection,
            self.queues,
            lambda name: self.redis_worker_namespace_prefix + name,
            lambda job, queue: set_aside(self.connection, job, queue),
            patience=min(10.0, self._lease / 3),
        )
        super().clean_registries()

    # Doing them.

    def execute_job(self, job: RqJob, queue: Queue) -> None:
        try:
            asked = read_payload(job.data)
        except InvalidSpecError as error:
            log.warning("job %s in %s is refused: %s", job.id, queue.name, error)
            failure = Failure(kind=error.kind, message=str(error))
            self._until_redis_answers(lambda: refuse(self.connection, job, queue, failure))
            return
        number = int(job.meta.get("attempts", 0)) + 1
        job.meta["attempts"] = number
        job.save_meta()
        execution = self.prepare_execution(job)
        self._signals.cancel = False
        self._current = Current(job, asked, number, execution)
        try:
            self.prepare_job_execution(job, remove_from_intermediate_queue=True)
            job.started_at = rq_now()
            self._next_heartbeat = time.monotonic() + self._lease / 3
            publish(
                self.connection,
                Started(
                    time=time.time(),
                    job_id=job.id,
                    batch=asked.batch,
                    worker=self.name,
                    attempt=number,
                    execution_id=execution.id,
                ),
            )
            began = time.monotonic()
            outcome = self._attempt(self._current)
            self._conclude(self._current, queue, outcome, time.monotonic() - began)
        finally:
            self._current = None

    def _conclude(self, current: Current, queue: Queue, outcome: Outcome, seconds: float) -> None:
        status = self._status_after(current, outcome)
        self._on_ended(current, outcome, status)
        job = current.job
        if outcome.failure is not None:
            kind, message = outcome.failure.kind, outcome.failure.message
            log.warning("job %s, attempt %d: %s: %s", job.id, current.number, kind, message)
        else:
            made = f"{len(outcome.images)} of {job.num_images} images"
            log.info("job %s %s: %s in %.1f s (%s)", job.id, status.value, made, seconds, job.spec.prompt[:60])
        result = JobResult(
            job_id=job.id,
            batch=job.batch,
            status=status,
            images=tuple(outcome.images[k] for k in sorted(outcome.images)),
            failure=outcome.failure if status is JobStatus.FAILED else None,
            worker=self.name,
            host=self.hostname or "",
            attempt=current.number,
            seconds=round(seconds, 6),
        )
        self._until_redis_answers(lambda: self._write_end(current, queue, outcome, result))

    def _status_after(self, current: Current, outcome: Outcome) -> JobStatus:
        meta = current.rq_job.meta
        if outcome.canceled:
            return JobStatus.CANCELED
        if outcome.given_back:
            meta["attempts"] = current.number - 1  # a shutdown uses up no attempt
            return JobStatus.QUEUED
        if outcome.failure is None:
            return JobStatus.FINISHED
        meta["failures"] = int(meta.get("failures", 0)) + 1
        again = tries_again(outcome.failure.kind, meta["failures"], current.job.max_attempts)
        return JobStatus.QUEUED if again else JobStatus.FAILED

    def _write_end(self, current: Current, queue: Queue, outcome: Outcome, result: JobResult) -> None:
        rq_job, execution = current.rq_job, current.execution
        if self.connection.zscore(queue.started_job_registry.key, execution.composite_key) is None:
            log.warning("job %s was given to another worker meanwhile: this end is not written", rq_job.id)
            self.execution = None
            self.set_current_job_id(None)
            return
        rq_job.ended_at = rq_now()

        def bookkeeping(pipe: Any) -> None:
            if result.status is JobStatus.FINISHED:
                self.increment_successful_job_count(pipeline=pipe)
            elif result.status is JobStatus.FAILED:
                self.increment_failed_job_count(pipeline=pipe)
            self.increment_total_working_time(rq_job.ended_at - rq_job.started_at, pipe)
            self.cleanup_execution(rq_job, pipeline=pipe)

        try:
            write_end(self.connection, rq_job, queue, result, outcome.failure, bookkeeping)
        except redis.RedisError:
            self.execution = execution  # `cleanup_execution` forgot it; the next try needs it
            raise

    def _until_redis_answers(self, write: Callable[[], None]) -> None:
        """Writes an end, however long Redis is away: the work is done, only its news is late.

        A second stop signal ends the waiting; the lease then runs out and the job is rescued, and the ledger knows
        which of its pictures are there.
        """
        wait = 0.1
        while True:
            try:
                write()
                return
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if self._signals.stop_now:
                    log.warning("stopping while Redis is away: the job's end was not written")
                    return
                log.warning("Redis is away at a job's end: %s; trying again in %.1f s", error, wait)
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(wait * 2, 5.0)
