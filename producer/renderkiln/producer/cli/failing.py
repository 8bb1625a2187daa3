"""The command `failed`: which jobs failed, why, what was logged, and queueing them again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from renderkiln.schema.errors import BadInputError, NotFoundError

from .options import AsJson, DataDir
from .wording import count, duration, in_words

if TYPE_CHECKING:
    from renderkiln.producer.failures import FailedJob, Story
    from renderkiln.producer.queue import RenderQueue
    from renderkiln.schema.jobs import Attempt

_REFUSED = "refused"


def add_commands(app: typer.Typer) -> None:
    app.command("failed")(failed)


def failed(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="JOB", help="Jobs; one is shown with its log.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only those of this batch.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only failures of this kind, such as renderer_died.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="List at most so many; 0: all.")] = 50,
    requeue: Annotated[bool, typer.Option("--requeue", help="Queue them again.")] = False,
    every: Annotated[bool, typer.Option("--all", help="With --requeue: all that failed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List failed jobs, show one with its log, queue them again.

    What was refused because it is no job of ours is listed, and never queued again.

    Example: renderkiln failed --kind renderer_died --requeue
    """
    from renderkiln.home.connect import answering
    from renderkiln.home.settings import load
    from renderkiln.producer.failures import failed_jobs, story
    from renderkiln.producer.overview import find_batch
    from renderkiln.producer.queue import RenderQueue

    if jobs and (batch or kind or every):
        raise BadInputError("name jobs, or choose them by --batch, --kind or --all.")
    if requeue and not (jobs or batch or kind or every):
        raise BadInputError("say which: name jobs, or choose them by --batch, --kind or --all.")
    queue = RenderQueue(settings=load(data_dir=data_dir))
    with answering():
        if jobs and not requeue:
            for story_of in [story(queue.connection, queue.folder, job) for job in jobs]:
                print(json.dumps(_story_row(story_of))) if as_json else _show(story_of)
            return
        if batch is not None and find_batch(queue.connection, batch) is None:
            raise NotFoundError(f"no batch {batch!r} is known to Redis. `renderkiln status` lists them.")
        found = [] if jobs else failed_jobs(queue.connection, batch)
        if kind is not None:
            found = [job for job in found if kind == _kind(job)]
    if requeue:
        ids = [job.id for job in found if not job.is_refused]
        _requeue(queue, jobs if jobs else [ids], ask=not yes and not jobs, as_json=as_json)
        return
    shown = found[: limit or None]
    if as_json:
        for job in shown:
            print(json.dumps(_row(job), ensure_ascii=False))
        return
    _list(shown)
    if len(found) > len(shown):
        print(f"and {len(found) - len(shown):,} more: --limit 0 lists all")
    if any(not job.is_refused for job in found):
        print("\nrenderkiln failed JOB            shows a job's attempts, and what was logged")
        print("renderkiln failed --requeue JOB  queues it again (or --all, --batch, --kind)")
    elif not found:
        print("no job has failed")


def _requeue(queue: RenderQueue, what: Sequence[str] | Sequence[list[str]], *, ask: bool, as_json: bool) -> None:
    """`what`: as `RenderQueue.retry` takes it, each."""
    jobs = sum(1 if isinstance(each, str) else len(each) for each in what)
    if jobs and ask:
        if not sys.stdin.isatty():
            raise BadInputError(f"{count(jobs, 'job')} would be queued again; say --yes.")
        typer.confirm(f"Queue {count(jobs, 'job')} again?", abort=True, err=True)
    total = sum(queue.retry(each) for each in what)
    print(json.dumps({"queued": total}) if as_json else f"{count(total, 'job')} queued again")


def _list(jobs: Sequence[FailedJob]) -> None:
    """By kind, then by message, so that a cause is said once however many jobs it failed."""
    groups: dict[str, dict[str, list[FailedJob]]] = {}
    for job in jobs:
        groups.setdefault(_kind(job), {}).setdefault(job.failure.message, []).append(job)
    for kind, by_message in sorted(groups.items(), key=lambda group: -sum(map(len, group[1].values()))):
        told = " (no jobs of ours)" if kind == _REFUSED else ""
        print(f"{kind}{told}: {count(sum(map(len, by_message.values())), 'job')}")
        for message, members in by_message.items():
            print(f"  {message}")
            for job in members:
                print(f"    {'  '.join(_about(job))}")


def _kind(job: FailedJob) -> str:
    return _REFUSED if job.is_refused else job.failure.kind


def _about(job: FailedJob) -> list[str]:
    parts = [job.id]
    if job.worker:
        parts.append(f"on {job.worker}")
    if job.attempts:
        parts.append(count(job.attempts, "attempt"))
    if job.failed_at is not None:
        parts.append(f"{duration(max(0.0, time.time() - job.failed_at))} ago")
    if job.batch:
        parts.append(f"batch {job.batch}")
    return [*parts, job.about]


def _row(job: FailedJob) -> dict[str, Any]:
    return {
        "job": job.id,
        "batch": job.batch,
        "kind": job.failure.kind,
        "message": job.failure.message,
        "worker": job.worker,
        "attempts": job.attempts,
        "failed_at": job.failed_at,
        "about": job.about,
        "refused": job.is_refused,
    }


def _show(found: Story) -> None:
    print(f"job {found.id}: {found.status.value}{f', batch {found.batch}' if found.batch else ''}")
    if found.due is not None:
        print(f"tried again in {duration(max(0.0, found.due - time.time()))}")
    if found.job is not None:
        shown = found.job.spec.model_dump(mode="json", exclude_defaults=True)
        for name, value in shown.items():
            print(f"{name:>20}  {in_words(value)}")
    if found.failure is not None:
        print(f"{found.failure.kind}: {found.failure.message}")
    for attempt in found.attempts:
        print(f"attempt {attempt.number} {_when(attempt)}: {_what(attempt)}")
        if attempt.peak_bytes:
            print(f"    memory: {_memory(attempt)}")
        for line in attempt.log.splitlines():
            print(f"    {line}")
        if attempt.outcome == "failed" and not attempt.log:
            print("    (nothing was logged meanwhile)")
    if found.job is not None and found.failure is not None:
        print(f"queue it again: renderkiln failed --requeue {found.id}")


def _when(attempt: Attempt) -> str:
    began = attempt.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if attempt.ended_at is None:
        return f"on {attempt.worker}, {began}"
    seconds = (attempt.ended_at - attempt.started_at).total_seconds()
    return f"on {attempt.worker}, {began}, {duration(max(0.0, seconds))}"


def _what(attempt: Attempt) -> str:
    if attempt.failure is not None:
        return f"{attempt.failure.kind}: {attempt.failure.message}"
    return attempt.outcome or "running, or its worker died"


def _memory(attempt: Attempt) -> str:
    said = [f"{(attempt.peak_bytes or 0) / 1e6:,.0f} MB at most"]
    if attempt.loads:
        took = f" in {attempt.load_seconds:.1f} s" if attempt.load_seconds else ""
        said.append(f"{count(attempt.loads, 'stage')} loaded{took}")
    if attempt.evictions:
        said.append(f"{attempt.evictions:,} dropped to make room")
    return ", ".join(said)


def _story_row(found: Story) -> dict[str, Any]:
    return {
        "job": found.id,
        "batch": found.batch,
        "status": found.status.value,
        "failure": found.failure and found.failure.model_dump(mode="json"),
        "tried_again_at": found.due,
        "spec": found.job and found.job.spec.model_dump(mode="json", exclude_defaults=True),
        "attempts": [attempt.model_dump(mode="json", exclude={"job_id"}) for attempt in found.attempts],
    }
