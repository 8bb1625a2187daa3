"""RQ's `SimpleWorker` where it meets what others wrote into Redis: none of it may end the worker or block its way."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis
from rq import Queue, SimpleWorker
from rq.job import Job as RqJob
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY

from renderkiln.home.processes import is_no_more
from renderkiln.home.reading import is_wrong_type, read_hashes
from renderkiln.schema import names
from renderkiln.schema.errors import WorkerUnavailableError
from renderkiln.schema.limits import MAX_MESSAGE

from .outage import is_outage
from .refusals import Refusals
from .rescue import process_of
from .signals import Signals

log = logging.getLogger("renderkiln.supervisor")


def types_of(rq_job: RqJob) -> Mapping[str, str]:
    """The type of each key of one job; those that jobs share are `GuardedWorker.types_by_key`."""
    return {rq_job.key: "hash", f"rq:executions:{rq_job.id}": "zset"}


class GuardedWorker(SimpleWorker):  # type: ignore[misc]  # RQ is untyped to us
    """Registers, hears commands and keeps its registries, whatever stands in them.

    Args:
        refusals: counts what is refused.
        signals: how a running attempt is told to stop.
    """

    def __init__(self, queues: list[str], *, signals: Signals, refusals: Refusals, **options: Any) -> None:
        super().__init__(queues, **options)
        self._signals = signals
        self._refusals = refusals

    def _set_ip_address(self, connection: Any) -> None:
        """Not by looking for itself among all clients, as RQ does: that takes a right that a worker need not have."""
        self.ip_address = "unknown"

    def register_birth(self) -> None:
        """Takes its name back at once from a dead process of this machine, or from itself when it lost Redis.

        RQ would refuse the name until the lease ends; and for ever where Redis was emptied and the worker then wrote
        its state and died: such an entry has no end, and no process.
        """
        self._refusals.make_way(self.connection, self.types_by_key())
        (found,) = read_hashes(self.connection, [self.key], "hostname", "pid")
        process = process_of(found, self.hostname or "")
        is_nobodys = found is None or None in found
        if is_nobodys or (process is not None and (process == self.pid or is_no_more(process))):
            self.connection.delete(self.key)
        try:
            super().register_birth()
        except ValueError:
            raise WorkerUnavailableError(
                f"a worker named {self.name!r} is up already, or died less than {self.worker_ttl + 60} s ago on "
                "another machine. Give this one another --name."
            ) from None

    def teardown(self) -> None:
        """Ends the thread that hears commands, too, where Redis is away: the next start makes another."""
        try:
            super().teardown()
        except redis.RedisError:
            if self.pubsub_thread is not None:
                self.pubsub_thread.stop()
            raise

    # Keys of the wrong type.

    def types_by_key(self) -> Mapping[str, str]:
        """The type of every key that this worker shares with others, besides those of single jobs."""
        found = {self.key: "hash", names.EVENTS: "stream", names.WORKERS: "zset", REDIS_WORKER_KEYS: "set"}
        for queue in self.queues:
            found |= {queue.key: "list", queue.intermediate_queue_key: "list"}
            found[WORKERS_BY_QUEUE_KEY % queue.name] = "set"
            for registry in (
                queue.started_job_registry,
                queue.finished_job_registry,
                queue.failed_job_registry,
                queue.canceled_job_registry,
                queue.scheduled_job_registry,
            ):
                found[registry.key] = "zset"
        return found

    def mend(self, error: redis.RedisError, more: Mapping[str, str] | None = None) -> bool:
        """Whether what failed failed for a key of the wrong type, which is now out of the way.

        Args:
            more: types of further keys that may be what failed.
        """
        return is_wrong_type(error) and self._refusals.make_way(
            self.connection, {**self.types_by_key(), **(more or {})}
        )

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        try:
            super().heartbeat(timeout, pipeline)
        except redis.RedisError as error:  # the next one is soon
            if not self.mend(error):
                raise

    def check_for_suspension(self, burst: bool) -> None:
        try:
            super().check_for_suspension(burst)
        except redis.RedisError as error:
            if not self.mend(error):
                raise

    # Commands.

    def kill_horse(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """RQ's stop-job command ends here, in the thread that hears commands."""
        self._signals.canceled_job = self._stopped_job_id
        self._signals.wake()

    def handle_payload(self, message: Mapping[str, Any]) -> None:
        """Hears `stop-job`, and nothing else: whoever may cancel a job may not therefore stop a worker."""
        data = message.get("data")
        if not isinstance(data, bytes) or len(data) > MAX_MESSAGE:
            self._refusals.message("it is too long")
            return
        try:
            said = json.loads(data)
            command, job_id = said["command"], said.get("job_id")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            self._refusals.message("it is no command")
            return
        if command != "stop-job" or not isinstance(job_id, str):
            self._refusals.message("it is no command to stop a job")
            return
        self._stopped_job_id = job_id
        self.kill_horse()

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Goes on hearing, whatever came: RQ's own gives up on all but a lost connection."""
        log.warning("the channel of commands: %s; listening again in 2 s", exc)
        time.sleep(2.0)

    # Keeping registries.

    def run_maintenance_tasks(self) -> None:
        """Without RQ's schedulers and groups, of which we have none."""
        self.clean_registries()

    def tidy(self, what: str, action: Callable[[], object]) -> None:
        """Does one part of the upkeep; what it stumbles over is said, and stops no other part.

        Raises:
            redis.RedisError: Redis is away.
        """
        try:
            action()
        except redis.RedisError as error:
            if is_outage(error):
                raise
            if not self.mend(error):
                log.warning("%s: %s", what, error)
        except Exception as error:  # whatever somebody wrote into what it reads
            log.warning("%s: %s: %s", what, type(error).__name__, error)

    def forget_dead_workers(self, queue: Queue) -> None:
        """Takes workers that are no more out of RQ's sets of them. RQ's own stumbles over what is no text."""
        key = WORKERS_BY_QUEUE_KEY % queue.name
        there = list(self.connection.smembers(key))
        with self.connection.pipeline(transaction=False) as pipe:
            for member in there:
                pipe.exists(member)
            gone = [member for member, exists in zip(there, pipe.execute(), strict=True) if not exists]
            for member in gone:
                pipe.srem(key, member)
                pipe.srem(REDIS_WORKER_KEYS, member)
            pipe.execute()
