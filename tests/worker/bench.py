"""A supervisor's loop without a renderer: it takes, starts and ends jobs in a real server, and attempts do as told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rq import Queue
from rq.serializers import JSONSerializer
from tests.fakes import announce_worker

from renderkiln.schema import names
from renderkiln.schema.jobs import Failure
from renderkiln.worker.supervisor.health import Health
from renderkiln.worker.supervisor.outcomes import Current, Outcome
from renderkiln.worker.supervisor.rescue import rescue
from renderkiln.worker.supervisor.rq_worker import RenderWorker
from renderkiln.worker.supervisor.signals import Signals
from renderkiln.worker.supervisor.taking import take

if TYPE_CHECKING:
    from .conftest import House


class Bench:
    """A supervisor's loop in this process; each attempt at a job is what the test says."""

    def __init__(self, house: House, name: str = "bench") -> None:
        self.house, self.name, self.signals = house, name, Signals()
        self.connection: Any = house.server.client()
        self.does: Callable[[Current], Outcome] = lambda current: Outcome()
        self.attempts: list[Current] = []
        self.health = Health(pause=300.0)
        self.worker = RenderWorker(
            [names.queue("normal", "tiny")],
            connection=self.connection,
            name=name,
            attempt=self._attempt,
            on_ended=lambda current, outcome, status: None,
            signals=self.signals,
            announce=lambda state: None,
            health=self.health,
            lease=30.0,
        )

    @property
    def queue(self) -> Queue:
        return Queue(names.queue("normal", "tiny"), connection=self.connection, serializer=JSONSerializer)

    def _attempt(self, current: Current) -> Outcome:
        self.attempts.append(current)
        return self.does(current)

    def run_one(self) -> None:
        taken = take(self.connection, [self.queue])
        assert taken is not None
        self.worker.execute_job(*taken)

    def rescue(self) -> int:
        return rescue(self.connection, [self.queue], lambda name: f"rq:worker:{name}", patience=0.0)

    def let_lease_end(self) -> None:
        registry = self.queue.started_job_registry.key
        for member in self.connection.zrange(registry, 0, -1):
            self.connection.delete(b"rq:execution:" + member)

    def fail(self, kind: str, message: str = "as the test says") -> None:
        """From now on attempts fail."""
        self.does = lambda current: Outcome(failure=Failure(kind=kind, message=message), log=f"log of {self.name}")

    def announce(self, state: str = "idle") -> None:
        """Tells the fleet that this worker is up."""
        announce_worker(self.connection, "tiny", name=self.name, state=state)

    def look(self) -> bool:
        """One look for work, as an idle worker does it; whether an attempt was made of what it found."""
        self.worker._postponed._next_look = 0.0
        self.worker._postponed.bring_back([self.queue])
        taken = take(self.connection, [self.queue])
        if taken is None or self.worker._postponed.leave_to_others(*taken):
            return False
        self.worker.execute_job(*taken)
        return True

    @property
    def waiting(self) -> dict[str, float]:
        """Seconds until jobs that wait for their time are due."""
        found = self.connection.zrange(self.queue.scheduled_job_registry.key, 0, -1, withscores=True)
        return {job_id.decode(): due - time.time() for job_id, due in found}

    def let_waits_end(self) -> None:
        for job_id in self.waiting:
            self.connection.zadd(self.queue.scheduled_job_registry.key, {job_id: time.time() - 1})

    def lists(self) -> tuple[int, int, int]:
        """How many ids the queue, its intermediate list and the registry of started jobs hold."""
        queue = self.queue
        return (
            self.connection.llen(queue.key),
            self.connection.llen(queue.intermediate_queue_key),
            self.connection.zcard(queue.started_job_registry.key),
        )

    def close(self) -> None:
        self.signals.close()
        self.connection.close()
