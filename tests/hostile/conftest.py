"""A supervisor's real loop over a real server, whose attempts render nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from renderkiln.schema import names
from renderkiln.worker.supervisor.health import Health
from renderkiln.worker.supervisor.outcomes import Current, Outcome
from renderkiln.worker.supervisor.refusals import Refusals
from renderkiln.worker.supervisor.rq_worker import RenderWorker
from renderkiln.worker.supervisor.signals import Signals


class Loop:
    """RQ's loop with our worker, in this process; every attempt succeeds with no picture."""

    def __init__(self, connection: Any, *models: str) -> None:
        self.connection, self.signals, self.refusals = connection, Signals(), Refusals()
        self.done: list[str] = []
        self.does: Callable[[Current], Outcome] = lambda current: Outcome()
        self.worker = RenderWorker(
            [names.queue("normal", model) for model in models or ("tiny",)],
            connection=connection,
            name="loop",
            attempt=self._attempt,
            on_ended=lambda current, outcome, status: None,
            signals=self.signals,
            announce=lambda state: None,
            health=Health(300.0),
            lease=30.0,
            refusals=self.refusals,
        )

    def _attempt(self, current: Current) -> Outcome:
        self.done.append(current.job.id)
        return self.does(current)

    def run(self) -> None:
        """Until the queues are empty."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.worker.work(burst=True, logging_level="WARNING")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        assert self.worker.is_done, "the loop ended before the queues were empty"

    def close(self) -> None:
        self.signals.close()


@pytest.fixture
def make_loop() -> Iterator[Callable[..., Loop]]:
    made: list[Loop] = []

    def make(connection: Any, *models: str) -> Loop:
        made.append(Loop(connection, *models))
        return made[-1]

    yield make
    for loop in made:
        loop.close()
