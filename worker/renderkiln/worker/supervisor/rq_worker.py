"""The supervisor's loop: RQ's `SimpleWorker`, made safe for one long-lived process and several queues.

What is different from RQ's own, and why, job by job:

- Jobs are taken and started as `taking` says, which loses none when a worker dies in between.
- A job's function name is compared, not imported.
- While a job runs its heartbeat goes on, with a short lease, and canceling works.
- How an attempt ended is written in one MULTI with its event; a Redis that is away just then is waited for.
- The first SIGTERM or SIGINT lets the image at hand be finished and gives the rest of the job back, the second gives
  everything back at once. Neither uses up an attempt.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

import redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer
from rq.utils import now as rq_now
from rq.worker.base import WorkerStatus

from renderkiln.home.fences import next_fence
from renderkiln.home.processes import is_no_more
from renderkiln.home.workers import live_workers
from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError, LedgerError
from renderkiln.schema.events import Started
from renderkiln.schema.jobs import Failure, Job, JobResult, JobStatus
from renderkiln.schema.payload import read_payload
from renderkiln.schema.workers import WorkerInfo

from .endings import add_end, hear_cancel, publish, refuse
from .gate import Gate
from .guarded import GuardedWorker, types_of
from .health import Health
from .listening import Listener
from .outage import Backoff, is_outage, ride_out
from .outcomes import Beat, Current, Outcome
from .postponing import Postponed
from .refusals import Refusals
from .rescue import rescue
from .signals import Signals
from .taking import claim, counter, put_back, take
from .verdicts import Verdict, in_words, judge, remember, result_of

log = logging.getLogger("renderkiln.supervisor")
# RQ tells of every registry that it looks at, every few seconds; its warnings are worth hearing.
logging.getLogger("renderkiln.rq").setLevel(logging.WARNING)

#: Seconds that an idle worker sleeps at most before it looks at its queues and at its own stop flag again.
IDLE_WAIT = 0.5


class RenderWorker(GuardedWorker):
    """Takes jobs from the queues and has each attempted by `attempt(current)`.

    Args:
        attempt: makes one attempt and says how it ended; must not raise.
        signals: how a running attempt is told to stop.
        announce: tells the world that this worker lives, with its state; called about every lease / 3.
        health: told of each job that fails or finishes, and asked before one is taken.
        lease: seconds without a heartbeat after which others count this worker as dead.
        gate: whether a job may be taken; None: always.
        owner: a process for which this worker was started; it ends, when idle, once that is gone.
        refusals: counts what is refused.
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
        health: Health,
        lease: float,
        gate: Gate | None = None,
        owner: int | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        super().__init__(
            queues,
            signals=signals,
            refusals=refusals or Refusals(),
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
        self._announce = announce
        self._health = health
        self._postponed = Postponed(connection, name)
        self._lease = lease
        self._gate = gate
        self._owner = owner
        self._current: Current | None = None
        self._next_heartbeat = 0.0
        self._listener = Listener(connection, signals)
        self._found_empty = False

    # Starting and stopping.

    @property
    def is_done(self) -> bool:
        """Whether it was told to stop, or found its queues empty and was to end there."""
        return bool(self._stop_requested) or self._found_empty

    @property
    def connection_timeout(self) -> int:
        """What RQ raises the client's socket timeout to: not at all, since nothing here waits in Redis for long."""
        return 1

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

    # Signs of life.

    def get_heartbeat_ttl(self, job: RqJob) -> int:
        return max(1, int(self._lease))

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        super().heartbeat(timeout, pipeline)
        if not self.connection.hexists(self.key, "birth"):  # Redis was emptied
            self.register_birth()
        self.announce()

    def announce(self) -> None:
        """Tells the world how it stands now, between two heartbeats."""
        self._announce("busy" if self._current else "unwell" if self._health.reason else "idle")

    def show_state(self) -> None:
        """The same where it does not matter much: nothing where Redis is away."""
        with contextlib.suppress(redis.RedisError):
            self.announce()

    def beat_while_rendering(self) -> Beat:
        """Keeps the lease of the job at hand; looks whether it is still ours and wanted. Survives an absent Redis."""
        current = self._current
        assert current is not None
        try:
            if time.monotonic() >= self._next_heartbeat:
                self._next_heartbeat = time.monotonic() + self._lease / 3
                self.maintain_heartbeats(current.rq_job)
            with self.connection.pipeline(transaction=False) as pipe:
                pipe.hexists(current.rq_job.key, names.CANCEL_FIELD)
                pipe.zscore(current.rq_job.started_job_registry.key, current.execution.composite_key)
                is_canceled, lease_ends = pipe.execute()
        except redis.RedisError as error:
            log.warning("Redis does not answer while job %s renders: %s", current.job.id, error)
            return Beat.GOING_ON
        if lease_ends is None:
            return Beat.LOST
        return Beat.CANCEL if is_canceled else Beat.GOING_ON

    # Taking jobs.

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RqJob, Queue] | None:
        """The next job and its queue; None where there is none in burst mode, or when the worker is to stop."""
        next_beat, backoff = 0.0, Backoff(self._signals)
        while not self._stop_requested:
            try:
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + self._lease / 3
                    self.set_state(WorkerStatus.SUSPENDED if self._health.rests else WorkerStatus.IDLE)
                    self.heartbeat()
                if self.should_run_maintenance_tasks:
                    self.run_maintenance_tasks()
                may_take = self._gate is None or self._gate.is_open()
                if self._health.rests:
                    if timeout is None or self._owner is not None:
                        self._stop_requested = True  # whoever started it is to hear why
                        return None
                elif may_take and (found := self._take()) is not None:
                    return found
                elif self._is_done_here(burst=timeout is None and may_take):
                    return None
                self._listener.wait(IDLE_WAIT)
                backoff.reset()
            except redis.RedisError as error:
                if self.mend(error):
                    continue
                if not is_outage(error):
                    raise
                backoff.wait("Redis is away", error)
        return None

    def _take(self) -> tuple[RqJob, Queue] | None:
        """The next job that this worker is to have; those that others are to have are left to them."""
        self._postponed.bring_back(self._ordered_queues)
        while (found := take(self.connection, self._ordered_queues, self._refusals)) is not None:
            if not self._postponed.leave_to_others(*found):
                return found
        return None

    def _is_done_here(self, burst: bool) -> bool:
        """Whether a worker that found its queues empty ends there: told to, or left behind, and nothing waits."""
        is_orphan = self._owner is not None and is_no_more(self._owner)
        if not (burst or is_orphan) or self._postponed.is_any(self._ordered_queues):
            return False
        if is_orphan:
            log.info("process %d, for which this worker was started, is gone: ending", self._owner)
            self._stop_requested = True
        self._found_empty = burst
        return True

    def clean_registries(self) -> None:
        """Puts abandoned jobs back, and forgets what RQ's registries keep for longer than the jobs are kept.

        Not RQ's own, which rescues without a fence, and counts differently.
        """
        patience = min(10.0, self._lease / 3)
        for queue in self.queues:
            self.tidy(
                f"looking for abandoned jobs in {queue.name}",
                partial(rescue, self.connection, [queue], self._key_of, patience, self._refusals),
            )
            for registry in (queue.finished_job_registry, queue.canceled_job_registry):
                forget = partial(self.connection.zremrangebyscore, registry.key, 0, time.time())
                self.tidy(f"forgetting old jobs of {queue.name}", forget)
            self.tidy(f"forgetting dead workers of {queue.name}", partial(self.forget_dead_workers, queue))
        self.last_cleaned_at = rq_now()

    def _key_of(self, name: str) -> str:
        return f"{self.redis_worker_namespace_prefix}{name}"

    # Doing them.

    def execute_job(self, job: RqJob, queue: Queue) -> None:
        try:
            asked = read_payload(job.data, job.id)
        except InvalidSpecError as error:
            self._refusals.job(job.id, queue.name, str(error))
            failure = Failure(kind=error.kind, message=str(error))
            self._ride_out(lambda: refuse(self.connection, job.id, queue, failure), "a job's refusal")
            return
        if self._gate is not None and not self._gate.admits(asked, queue):
            self._ride_out(lambda: put_back(self.connection, job, queue), f"putting job {job.id} back")
            return
        self._signals.canceled_job = None
        self._current = self._claim(job, asked, queue)
        if self._current is None:
            return
        try:
            self.show_state()  # a short job is over before the next heartbeat
            began = time.monotonic()
            outcome = self._attempt(self._current)
            self._conclude(self._current, queue, outcome, time.monotonic() - began)
        finally:
            self._current = None

    def _claim(self, rq_job: RqJob, job: Job, queue: Queue) -> Current | None:
        """Starts a job that was taken; None where it is somebody else's by now, or Redis is away and we must stop."""
        number = counter(rq_job, "attempts") + 1
        rq_job.meta["attempts"] = number
        fence, resumes = counter(rq_job, names.FENCE), rq_job.started_at is not None
        claimed: list[Execution] = []

        def add(pipe: Any) -> None:
            ttl = self.get_heartbeat_ttl(rq_job)
            self.execution = Execution.create(rq_job, ttl, pipeline=pipe, worker_name=self.name)
            self.set_state(WorkerStatus.BUSY, pipeline=pipe)
            self.set_current_job_id(rq_job.id, pipeline=pipe)
            pipe.hdel(rq_job.key, names.ENDING_FIELD)  # of a worker that died while it wrote the end
            rq_job.prepare_for_execution(self.name, pipeline=pipe)
            pipe.hset(rq_job.key, "meta", JSONSerializer.dumps(rq_job.meta))
            started = Started(
                time=time.time(),
                job_id=job.id,
                batch=job.batch,
                worker=self.name,
                attempt=number,
                execution_id=self.execution.id,
            )
            publish(pipe, started)

        def try_once() -> None:
            rq_job.meta[names.FENCE] = next_fence(self.connection, fence)
            before = self.execution
            if before is not None and self._holds(rq_job, before):  # done, and only the answer was lost
                claimed.append(before)
            elif claim(self.connection, rq_job, queue, add, halfway=self.name if before else ""):
                claimed.append(self.execution)

        self.execution = None
        self._ride_out(try_once, f"starting job {job.id}", types_of(rq_job))
        if not claimed:
            return None
        self._next_heartbeat = time.monotonic() + self._lease / 3
        return Current(rq_job, job, number, claimed[0], rq_job.meta[names.FENCE], resumes)

    def _holds(self, rq_job: RqJob, execution: Execution) -> bool:
        """Whether a job is in the hands of this execution, which means: nobody has rescued it."""
        return self.connection.zscore(rq_job.started_job_registry.key, execution.composite_key) is not None

    def _ride_out(self, write: Callable[[], None], what: str, more: Mapping[str, str] | None = None) -> bool:
        """Writes, however long Redis is away. A stop signal too many ends the waiting: the lease brings the job back.

        While a job is rendered that is the second signal, since its end is worth waiting for; else the first.
        """
        return ride_out(
            write,
            self._signals,
            what,
            lambda: self._signals.stop_now or (self._current is None and bool(self._stop_requested)),
            partial(self.mend, more=more),
        )

    def _conclude(self, current: Current, queue: Queue, outcome: Outcome, seconds: float) -> None:
        job, rq_job, said = current.job, current.rq_job, f"the end of job {current.job.id}"
        rq_job.ended_at = rq_now()
        verdict = judge(rq_job, job, outcome, self.name, self._live_workers)
        if not outcome.lost:
            self._ride_out(lambda: self._hear_cancel(current, outcome, is_final=verdict.status.is_final), said)
            verdict = Verdict(JobStatus.CANCELED) if outcome.canceled else verdict
        try:
            self._on_ended(current, outcome, verdict.status)
        except LedgerError as error:
            log.error("the end of job %s could not be recorded: %s", job.id, error)
            if verdict.status is JobStatus.FINISHED:  # nothing is said to be done before the ledger has it
                outcome.hold_up(error)
                verdict = judge(rq_job, job, outcome, self.name, self._live_workers)
        if outcome.lost:
            log.warning("job %s was given to another worker meanwhile: nothing more is written", job.id)
            self.execution = None
            return
        if outcome.failure is not None:
            remember(rq_job, job, current.execution.id, current.number, self.name, outcome.failure)
        level = logging.INFO if outcome.failure is None else logging.WARNING
        log.log(level, "%s", in_words(job, outcome, verdict, number=current.number, seconds=seconds))
        self._health.ended(job.id, outcome)
        about = {"worker": self.name, "host": self.hostname or "", "number": current.number, "seconds": seconds}
        result = result_of(job, outcome, verdict, **about)
        self._ride_out(
            lambda: self._write_end(current, queue, outcome, result, verdict), said, types_of(current.rq_job)
        )

    def _live_workers(self) -> list[WorkerInfo]:
        found: list[WorkerInfo] = []
        self._ride_out(lambda: found.extend(live_workers(self.connection)), "asking which workers are up")
        return found

    def _hear_cancel(self, current: Current, outcome: Outcome, *, is_final: bool) -> None:
        rq_job, execution = current.rq_job, current.execution
        if hear_cancel(self.connection, rq_job, lambda: self._holds(rq_job, execution), is_final=is_final):
            outcome.canceled, outcome.failure = True, None

    def _write_end(self, current: Current, queue: Queue, outcome: Outcome, result: JobResult, verdict: Verdict) -> None:
        rq_job, execution = current.rq_job, current.execution
        with self.connection.pipeline() as pipe:
            pipe.watch(rq_job.key)  # whoever rescues the job changes it
            if self._holds(rq_job, execution):
                if result.status is JobStatus.QUEUED and pipe.hexists(rq_job.key, names.CANCEL_FIELD):
                    result = result.model_copy(update={"status": JobStatus.CANCELED})  # it came just now
                pipe.multi()
                add_end(
                    pipe,
                    rq_job,
                    queue,
                    result,
                    outcome.failure,
                    wait=verdict.wait,
                    last=outcome.held_up,
                    log=outcome.log,
                )
                if result.status is JobStatus.FINISHED:
                    self.increment_successful_job_count(pipeline=pipe)
                elif result.status is JobStatus.FAILED:
                    self.increment_failed_job_count(pipeline=pipe)
                self.increment_total_working_time(rq_job.ended_at - rq_job.started_at, pipe)
                self.set_current_job_id(None, pipeline=pipe)
                execution.delete(job=rq_job, pipeline=pipe)
                pipe.execute()
            else:
                log.warning("job %s is no longer this attempt's: its end is written already, or another's", rq_job.id)
        self.execution = None
