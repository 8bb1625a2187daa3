"""Moving jobs that wait to a more urgent queue, when they are asked for again with more urgency."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import redis
from rq import Queue
from rq.job import Job as RqJob
from rq.registry import ScheduledJobRegistry
from rq.serializers import JSONSerializer

from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import PRIORITIES, Priority
from renderkiln.schema.payload import read_payload

#: A worker takes an id out of the list before it touches the job, so only the list can say whether the job still
#: waits there; or, where it waits for its time after a failure, the sorted set of such jobs. Where neither has it, all
#: is left as it is. A script, since a MULTI cannot look before it writes.
_MOVE = """
local due = redis.call('ZSCORE', KEYS[5], ARGV[1])
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
    redis.call('RPUSH', KEYS[2], ARGV[1])
elseif due then
    redis.call('ZREM', KEYS[5], ARGV[1])
    redis.call('ZADD', KEYS[6], due, ARGV[1])
else
    return 0
end
redis.call('SADD', KEYS[3], KEYS[2])
redis.call('HSET', KEYS[4], 'origin', ARGV[2], 'data', ARGV[3])
return 1
"""


@dataclass(frozen=True)
class Move:
    """A job's way from the queue in which it waits to a more urgent one, and what it then holds."""

    job_id: str
    source: str
    target: str
    data: bytes

    def write(self, pipe: redis.client.Pipeline) -> None:
        """Adds the move to a MULTI that watches the job; it answers 1, or 0 where a worker was quicker."""
        keys = (
            f"{Queue.redis_queue_namespace_prefix}{self.source}",
            f"{Queue.redis_queue_namespace_prefix}{self.target}",
            Queue.redis_queues_keys,
            RqJob.key_for(self.job_id),
            ScheduledJobRegistry.key_template.format(self.source),
            ScheduledJobRegistry.key_template.format(self.target),
        )
        pipe.eval(_MOVE, len(keys), *keys, self.job_id, self.target, self.data)


def is_more_urgent(priority: Priority, queue_name: str) -> bool:
    """Whether a job of this priority would come before those in a queue of ours."""
    return priority in PRIORITIES[: _rank(queue_name)]


def most_urgent(first: Priority, second: Priority) -> Priority:
    """The one that workers empty first."""
    return min(first, second, key=PRIORITIES.index)


def moves(connection: redis.Redis, wanted: Sequence[tuple[str, Priority]]) -> list[Move]:
    """How waiting jobs, given with the priority that is wanted for each, get there.

    What was asked for first stays as it was asked for, but for the priority. Jobs that are not ours are left out.
    """
    found = RqJob.fetch_many([job_id for job_id, _ in wanted], connection=connection, serializer=JSONSerializer)
    made = []
    for (job_id, priority), stored in zip(wanted, found, strict=True):
        if stored is None:
            continue
        try:
            job = read_payload(stored.data)
        except InvalidSpecError:
            continue
        moved = job.model_copy(update={"priority": priority})
        # As RQ stores a call: function, instance, arguments, keywords.
        data = zlib.compress(JSONSerializer.dumps((names.RENDER_FUNCTION, None, (moved.to_json(),), {})))
        made.append(Move(job_id, stored.origin, names.queue(priority, job.spec.model), data))
    return made


def _rank(queue_name: str) -> int:
    """The place of a queue's priority among all; 0, before which nothing comes, for a queue that is not ours."""
    return next((rank for rank, each in enumerate(PRIORITIES) if queue_name.startswith(names.queue(each, ""))), 0)
