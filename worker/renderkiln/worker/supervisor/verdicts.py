"""What an attempt's outcome means for its job: a status, a wait, and what its meta is to remember."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from rq.job import Job as RqJob

from renderkiln.schema.jobs import Attempt, Failure, Job, JobResult, JobStatus
from renderkiln.schema.workers import WorkerInfo

from .fates import Where, fate_of
from .outcomes import Outcome
from .placing import KEPT_FOR, better_placed, forget_kept, note_failed_on, note_kept_on
from .taking import counter

#: Failed attempts that a job's meta remembers, for clients without a ledger; and characters of each one's message.
_REMEMBERED, _MESSAGE = 5, 500


@dataclass(frozen=True)
class Verdict:
    """Where a job stands after an attempt."""

    status: JobStatus
    #: Seconds until it may be tried again, where it is queued.
    wait: float = 0.0


def judge(
    rq_job: RqJob,
    job: Job,
    outcome: Outcome,
    name: str,
    workers: Callable[[], Sequence[WorkerInfo]],
) -> Verdict:
    """The verdict on an attempt by the worker of this name; notes in the job's meta what the next one must know.

    Args:
        workers: gives those that are alive; asked only where it matters.
    """
    meta = rq_job.meta
    if outcome.canceled:
        return Verdict(JobStatus.CANCELED)
    if outcome.given_back or outcome.lost or outcome.held_up:
        meta["attempts"] = counter(rq_job, "attempts") - 1  # neither a shutdown nor a full disk uses up an attempt
        if outcome.held_up:  # what it has rendered is in the spool here
            note_kept_on(meta, name, time.time() + KEPT_FOR)
        return Verdict(JobStatus.QUEUED)
    forget_kept(meta)
    if outcome.failure is None:
        return Verdict(JobStatus.FINISHED)
    if outcome.tightened is not None:  # which can happen a few times only, and is worth a try each time
        return Verdict(JobStatus.QUEUED)
    fate = fate_of(outcome.failure.kind)
    failures = counter(rq_job, "failures") + (not fate.is_free)
    meta["failures"] = failures
    elsewhere = False
    if fate.where in (Where.ELSEWHERE_FIRST, Where.ELSEWHERE_ONLY):
        note_failed_on(meta, name)
    if fate.where is Where.ELSEWHERE_ONLY:
        elsewhere = bool(better_placed(meta, name, job.spec.model, workers(), time.time()))
    if fate.is_final(failures, job.max_attempts, elsewhere=elsewhere):
        return Verdict(JobStatus.FAILED)
    wait = fate.wait(failures, random.uniform)
    if fate.where is Where.HERE_FIRST:
        note_kept_on(meta, name, time.time() + wait + KEPT_FOR)
    return Verdict(JobStatus.QUEUED, wait)


def result_of(
    job: Job, outcome: Outcome, verdict: Verdict, *, worker: str, host: str, number: int, seconds: float
) -> JobResult:
    """What a job came to, or has so far."""
    return JobResult(
        job_id=job.id,
        batch=job.batch,
        status=verdict.status,
        images=tuple(outcome.images[k] for k in sorted(outcome.images)),
        failure=outcome.failure if verdict.status is JobStatus.FAILED else None,
        worker=worker,
        host=host,
        attempt=number,
        seconds=round(seconds, 6),
    )


def in_words(job: Job, outcome: Outcome, verdict: Verdict, *, number: int, seconds: float) -> str:
    """How an attempt went, for the log."""
    if outcome.failure is not None:
        then = f" (again in {verdict.wait:.1f} s)" if verdict.wait else ""
        return f"job {job.id}, attempt {number}: {outcome.failure.kind}: {outcome.failure.message}{then}"
    made = f"{len(outcome.images)} of {job.num_images} images"
    return f"job {job.id} {verdict.status.value}: {made} in {seconds:.1f} s ({job.spec.prompt[:60]})"


def remember(rq_job: RqJob, job: Job, execution_id: str, number: int, name: str, failure: Failure) -> None:
    """Keeps a failed attempt in the job's meta, beside the last few before it."""
    attempt = Attempt(
        execution_id=execution_id,
        job_id=job.id,
        number=number,
        worker=name,
        started_at=_utc(rq_job.started_at),
        ended_at=_utc(rq_job.ended_at),
        outcome="failed",
        failure=failure.model_copy(update={"message": failure.message[:_MESSAGE]}),
    )
    before = rq_job.meta.get("history")
    history = before if isinstance(before, list) else []
    rq_job.meta["history"] = [*history, attempt.model_dump(mode="json", exclude_defaults=True)][-_REMEMBERED:]


def _utc(moment: datetime | None) -> datetime:
    if moment is None:
        return datetime.now(timezone.utc)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
