"""How a batch is coming along, kept up to date from events: what `watch` and `render` show."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis
from pydantic import ValidationError
from rq.job import Job as RqJob

from renderkiln.home.reading import read_hashes
from renderkiln.home.replies import ReplyTooLargeError
from renderkiln.home.workers import live_workers
from renderkiln.schema import names
from renderkiln.schema.events import Ended, ImageDone, Progress, Returned, Started, parse_event
from renderkiln.schema.jobs import JobResult, JobStatus
from renderkiln.schema.limits import MAX_EVENT, MAX_FIELD, MAX_MESSAGE

from .endings import Endings, Recorded
from .patience import AWAY, Patience
from .results import JobState, read_batch
from .waiting import last_event


@dataclass
class Running:
    """A job that a worker is at."""

    worker: str
    about: str
    k: int = 0
    num_images: int = 1
    step: int = 0
    num_steps: int = 0


@dataclass
class BatchView:
    """The state of one batch as far as events have told it."""

    batch: str
    num_images: int
    num_jobs: int
    images_done: int = 0
    jobs_ended: int = 0
    failed: list[JobResult] = field(default_factory=list)
    #: Attempts that failed, of jobs that are tried again: what happened, in the order in which it did.
    setbacks: list[str] = field(default_factory=list)
    canceled: int = 0
    #: By name: workers that something stands in the way of, and what.
    hindered: dict[str, str] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    #: Redis does not answer just now: all this is as it was before.
    is_cut_off: bool = False
    started_at: float = field(default_factory=time.monotonic)
    images_at_start: int = 0

    @property
    def is_final(self) -> bool:
        return self.jobs_ended >= self.num_jobs

    @property
    def images_per_minute(self) -> float | None:
        """Over the time watched; None until there is something to go by."""
        done, seconds = self.images_done - self.images_at_start, time.monotonic() - self.started_at
        return 60 * done / seconds if done and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        rate = self.images_per_minute
        return None if rate is None else 60 * max(0, self.num_images - self.images_done) / rate


class Watcher:
    """Follows one batch. `updates` yields the view again and again, about ten times a second at most."""

    #: Seconds between full looks at Redis, for what events did not tell.
    RECHECK = 10.0

    def __init__(
        self,
        connection: redis.Redis,
        batch: str,
        num_images: int,
        num_jobs: int,
        recorded: Recorded = lambda job_ids: {},
    ) -> None:
        """`recorded` is asked of jobs that Redis has forgotten."""
        self._connection, self._endings = connection, Endings(recorded)
        self._pubsub = connection.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(names.PROGRESS)
        self._last = last_event(connection)
        self._counted: dict[str, set[int]] = {}
        self._ended: set[str] = set()
        self._jobs: set[str] = set()
        self.view = BatchView(batch, num_images, num_jobs)
        self._look()
        self.view.images_at_start = self.view.images_done

    def updates(self, every: float = 0.1) -> Iterator[BatchView]:
        """Yields until the batch is final, and the last time when it is; also while Redis is away.

        Raises:
            ServerUnavailableError: it was away for too long.
        """
        patience = Patience()
        next_look = time.monotonic() + self.RECHECK
        while not self.view.is_final:
            yield self.view
            try:
                self._hear(every)
                if self.view.is_cut_off or time.monotonic() > next_look:  # what was told meanwhile may be lost
                    self._look()
                    next_look = time.monotonic() + self.RECHECK
            except AWAY as error:
                self.view.is_cut_off = True
                patience.missed(error)
                time.sleep(every)
            else:
                self.view.is_cut_off = False
                patience.answered()
        yield self.view

    def close(self) -> None:
        self._pubsub.close()

    def _look(self) -> None:
        for result in self._endings.of(self.view.batch, self._states()):
            self._end(result)
        self.view.hindered = {each.name: each.reason for each in live_workers(self._connection) if each.reason}

    def _states(self) -> Iterator[tuple[str, JobState | None]]:
        """Of all jobs of the batch; also of those that an emptied Redis has not in it any more."""
        gone = self._jobs - self._ended
        for job_id, state in read_batch(self._connection, self.view.batch):
            self._jobs.add(job_id)
            gone.discard(job_id)
            yield job_id, state
        for job_id in gone:
            yield job_id, None

    def _hear(self, wait: float) -> None:
        reply: Any = None
        try:
            reply = self._connection.xread({names.EVENTS: self._last}, count=1000, block=max(1, int(wait * 1000)))
        except ReplyTooLargeError:  # the jobs' own records will tell
            self._last = "$"
            time.sleep(wait)
        # Steps first: those that were told before an end would otherwise bring the job back after it.
        with contextlib.suppress(ReplyTooLargeError):
            while (message := self._pubsub.get_message(timeout=0)) is not None:
                if len(message["data"]) <= MAX_MESSAGE:
                    self._apply(message["data"])
        for _, entries in reply or []:
            self._last = entries[-1][0].decode()
            for _, fields in entries:
                self._apply(fields.get(b"event", b""))

    def _apply(self, text: bytes) -> None:
        if len(text) > MAX_EVENT:
            return
        try:
            event = parse_event(text)
        except ValidationError:
            return
        view = self.view
        if isinstance(event, Ended) and event.result.job_id in self._jobs:
            self._end(event.result)
        elif isinstance(event, ImageDone) and event.job_id in self._jobs:
            self._count(event.job_id, event.image.k)
        elif isinstance(event, Started) and event.job_id in self._jobs:
            running = view.running.get(event.job_id)
            if running is None or running.worker != event.worker:  # its first steps may have been heard of already
                view.running[event.job_id] = self._running(event.job_id, event.worker)
        elif isinstance(event, Returned) and event.job_id in self._jobs:
            view.running.pop(event.job_id, None)
            if event.failure is not None:
                view.setbacks.append(f"job {event.job_id}: {event.failure.kind}: {event.failure.message}")
        elif isinstance(event, Progress) and self._is_open(event.job_id):
            running = view.running.get(event.job_id)
            if running is None:
                running = view.running[event.job_id] = self._running(event.job_id, event.worker)
            running.k, running.num_images = event.k, event.num_images
            running.step, running.num_steps = event.step, event.num_steps

    def _is_open(self, job_id: str) -> bool:
        return job_id in self._jobs and job_id not in self._ended

    def _running(self, job_id: str, worker: str) -> Running:
        (found,) = read_hashes(self._connection, [RqJob.key_for(job_id)], "description")
        about = (found[0] if found else None) or b""
        return Running(worker, about[:MAX_FIELD].decode(errors="replace"))

    def _count(self, job_id: str, k: int) -> None:
        counted = self._counted.setdefault(job_id, set())
        if k not in counted and job_id not in self._ended:
            counted.add(k)
            self.view.images_done += 1

    def _end(self, result: JobResult) -> None:
        view = self.view
        view.running.pop(result.job_id, None)
        if result.job_id in self._ended:
            return
        for image in result.images:
            self._count(result.job_id, image.k)
        self._ended.add(result.job_id)
        self._counted.pop(result.job_id, None)
        view.jobs_ended += 1
        if result.status is JobStatus.FAILED:
            view.failed.append(result)
        elif result.status is JobStatus.CANCELED:
            view.canceled += 1
