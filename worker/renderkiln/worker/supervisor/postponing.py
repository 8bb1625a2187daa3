"""Jobs that wait for their time: in RQ's own registry of scheduled jobs, so that RQ's tools see them for what they are.

RQ would need a scheduler, another process, to bring them back; here every worker does, whenever it looks for work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis
from rq import Queue
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus

from renderkiln.home.workers import live_workers

from .endings import postpone
from .fates import NO_WAIT_IS_LONGER
from .placing import better_placed, is_placed
from .taking import claim

log = logging.getLogger("renderkiln.supervisor")

#: Seconds between two looks at what is due, at least.
_LOOK_EVERY = 0.5
#: Seconds for which a worker leaves alone a job that others should have, before it looks whether they are still there.
_LEFT_FOR = 10.0
#: Jobs of one queue that are brought back at a time.
_AT_ONCE = 100


class Postponed:
    """The scheduled jobs as one worker sees them.

    Args:
        name: the worker's.
        clock: in seconds.
    """

    def __init__(self, connection: Any, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection, self._name, self._clock = connection, name, clock
        self._next_look = 0.0
        #: Jobs that others are to have, and until when they are left to them.
        self._left: dict[str, float] = {}

    def bring_back(self, queues: Sequence[Queue]) -> int:
        """Puts what is due to the front of its queue, the longest due first; how many. At most every half second."""
        now = self._clock()
        if now < self._next_look:
            return 0
        self._next_look = now + _LOOK_EVERY
        today = time.time()
        with self._connection.pipeline(transaction=False) as pipe:
            for queue in queues:
                key = queue.scheduled_job_registry.key
                pipe.zrangebyscore(key, "-inf", today, start=0, num=_AT_ONCE)
                pipe.zrangebyscore(key, today + NO_WAIT_IS_LONGER, "+inf", start=0, num=_AT_ONCE)
            found = pipe.execute()
        return sum(
            self._bring(member, queue)
            for queue, due, astray in zip(queues, found[::2], found[1::2], strict=True)
            for member in reversed(due + astray)
            if self._left.get(member.decode(errors="replace"), 0.0) <= now
        )

    def _bring(self, member: bytes, queue: Queue) -> bool:
        """Moves one job from the registry to its queue, in one step: it comes back once and is never lost.

        What was canceled, or brought back by RQ's own scheduler, is only tidied up.
        """
        key, registry = RqJob.key_for(member.decode(errors="replace")), queue.scheduled_job_registry.key
        with self._connection.pipeline() as pipe:
            pipe.watch(key, registry)
            if pipe.zscore(registry, member) is None:
                return False
            waits: bool = pipe.hget(key, "status") == RqStatus.SCHEDULED.value.encode()
            pipe.multi()
            pipe.zrem(registry, member)
            if waits:
                pipe.hset(key, "status", RqStatus.QUEUED.value)
                pipe.lpush(queue.key, member)
            try:
                pipe.execute()
            except redis.WatchError:
                return False  # another worker was first, or will be
        return waits

    def is_any(self, queues: Iterable[Queue]) -> bool:
        """Whether jobs of these queues wait for their time."""
        with self._connection.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zcard(queue.scheduled_job_registry.key)
            return any(pipe.execute())

    def leave_to_others(self, rq_job: RqJob, queue: Queue) -> bool:
        """Leaves a job that was taken to those who should have it rather than this worker; False where nobody should.

        It is due at once, and for some seconds this worker lets it lie, so that the others find it when they look.
        """
        job_id, now = rq_job.id, time.time()
        if not is_placed(rq_job.meta, self._name, now):
            return False
        model = queue.name.split(":", 2)[-1]
        others = better_placed(rq_job.meta, self._name, model, live_workers(self._connection), now)
        if not others:
            self._left.pop(job_id, None)
            return False
        if job_id not in self._left:
            log.info("job %s is left to %s, by what became of it before", job_id, " or ".join(others))
        self._left = {job: until for job, until in self._left.items() if until > self._clock() - _LEFT_FOR}
        self._left[job_id] = self._clock() + _LEFT_FOR
        while True:
            try:
                claim(self._connection, rq_job, queue, lambda pipe: postpone(pipe, job_id, queue, now))
            except redis.WatchError:
                continue
            return True
