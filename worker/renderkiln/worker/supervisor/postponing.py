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

from renderkiln.home.workers import live_workers

from .endings import postpone, registry_key
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

#: Whoever takes the id out of the registry puts it into the queue, in one step: it comes back once and is never lost.
#: What was canceled, or brought back by RQ's own scheduler, is only tidied up.
_BRING_BACK = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 or redis.call('HGET', KEYS[2], 'status') ~= 'scheduled' then
    return 0
end
redis.call('HSET', KEYS[2], 'status', 'queued')
redis.call('LPUSH', KEYS[3], ARGV[1])
return 1
"""


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
                key = registry_key(queue.name)
                pipe.zrangebyscore(key, "-inf", today, start=0, num=_AT_ONCE)
                pipe.zrangebyscore(key, today + NO_WAIT_IS_LONGER, "+inf", start=0, num=_AT_ONCE)
            found = pipe.execute()
        with self._connection.pipeline(transaction=False) as pipe:
            for queue, due, astray in zip(queues, found[::2], found[1::2], strict=True):
                for member in reversed(due + astray):
                    job_id = member.decode(errors="replace")
                    if self._left.get(job_id, 0.0) <= now:
                        keys = (registry_key(queue.name), RqJob.key_for(job_id), queue.key)
                        pipe.eval(_BRING_BACK, len(keys), *keys, member)
            return sum(pipe.execute()) if len(pipe) else 0

    def is_any(self, queues: Iterable[Queue]) -> bool:
        """Whether jobs of these queues wait for their time."""
        with self._connection.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zcard(registry_key(queue.name))
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
