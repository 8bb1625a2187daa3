"""Waiting for jobs: woken by the event stream, checked against the jobs themselves.

An event says which job to look at; the job's own record says what came of it. So a lost event costs a few seconds of
delay and never a hang, and a job that was done before the waiting began is seen at once. A Redis that is away for a
while is waited for, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import redis
from pydantic import ValidationError

from renderkiln.home.connect import answering
from renderkiln.home.replies import ReplyTooLargeError
from renderkiln.schema import names
from renderkiln.schema.errors import WaitTimeoutError
from renderkiln.schema.events import Ended, parse_event
from renderkiln.schema.jobs import JobResult
from renderkiln.schema.limits import MAX_EVENT

from .endings import Endings, Recorded
from .patience import Patience
from .results import read_states

#: Seconds between looks at all open jobs, for what no event told us of.
RECHECK = 5.0
_CHUNK = 1000
#: Seconds that one read waits for news. redis-py gives up on a socket that is silent for longer than its timeout,
#: 5 s unless told, which may not be ours: a client can be handed in.
_LONGEST_READ = 2.0


def as_completed(
    connection: redis.Redis,
    job_ids: Iterable[str],
    batch: str,
    timeout: float | None = None,
    recorded: Recorded = lambda job_ids: {},
) -> Iterator[JobResult]:
    """Yields each job's result once it is final, in the order in which they end.

    Args:
        recorded: asked of jobs that Redis has forgotten.

    Raises:
        WaitTimeoutError: `timeout` seconds passed with jobs still open.
        ServerUnavailableError: Redis was away for longer than `patience` puts up with.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    patience, endings = Patience(deadline), Endings(recorded)
    open_jobs = set(job_ids)
    total = len(open_jobs)
    with answering():
        news = patience.ask(partial(EventReader, connection))  # before the first look: what ends after it is heard of
        to_check: Iterable[str] = open_jobs
        recheck_at = 0.0
        while open_jobs:
            if time.monotonic() >= recheck_at:
                to_check, recheck_at = open_jobs, time.monotonic() + RECHECK
            for result in _ended(connection, list(to_check), batch, patience, endings):
                open_jobs.discard(result.job_id)
                yield result
            if not open_jobs:
                return
            until = recheck_at if deadline is None else min(recheck_at, deadline)
            ended = patience.ask(partial(news.ended, until))
            to_check = {job_id for job_id in ended if job_id in open_jobs}
            if not to_check and deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(f"{len(open_jobs)} of {total} jobs were not done within {timeout:g} s.")


def _ended(
    connection: redis.Redis, job_ids: list[str], batch: str, patience: Patience, endings: Endings
) -> Iterator[JobResult]:
    for start in range(0, len(job_ids), _CHUNK):
        part = job_ids[start : start + _CHUNK]
        yield from endings.of(batch, zip(part, patience.ask(partial(read_states, connection, part)), strict=True))


def last_event(connection: redis.Redis) -> str:
    """Where the stream of events ends now."""
    try:
        newest: Any = connection.xrevrange(names.EVENTS, count=1)
    except ReplyTooLargeError:
        return "$"
    return newest[0][0].decode() if newest else "0-0"


class EventReader:
    """Reads the event stream from where it ends now."""

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection
        self._last = last_event(connection)

    def ended(self, until: float) -> set[str]:
        """Ids of jobs that ended; blocks until there is one, or until `until` (of time.monotonic)."""
        found: set[str] = set()
        while not found and (left := until - time.monotonic()) > 0:
            wait = max(1, int(min(left, _LONGEST_READ) * 1000))
            try:
                reply: Any = self._connection.xread({names.EVENTS: self._last}, count=1000, block=wait)
            except ReplyTooLargeError:  # the jobs' own records will tell
                self._last = "$"
                time.sleep(min(left, 1.0))
                return found
            for _, entries in reply or []:
                self._last = entries[-1][0].decode()
                for _, fields in entries:
                    text = fields.get(b"event", b"")
                    if len(text) > MAX_EVENT or b'"type":"ended"' not in text:
                        continue
                    try:
                        event = parse_event(text)
                    except ValidationError:
                        continue
                    if isinstance(event, Ended):
                        found.add(event.result.job_id)
        return found
