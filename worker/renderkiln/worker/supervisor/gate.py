"""Whether a worker may take a job now, which it is asked before it takes one, so that another worker can have it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rq import Queue

from renderkiln.home.ledger import Ledger
from renderkiln.home.store import Store
from renderkiln.schema.errors import LedgerError
from renderkiln.schema.jobs import Job

from .away import Away
from .outcomes import Outcome
from .pausing import Pause
from .room import Disks, Shortage, estimate
from .spool import Spool

#: Seconds between two tries of something that failed.
_AGAIN = 1.0


class Gate:
    """Stops a worker that has nowhere to write: no room, no ledger, or no store and no room in the spool.

    Args:
        store: the worker's own.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        connection: Any,
        *,
        store: Store,
        ledger: Ledger,
        disks: Disks,
        spool: Spool,
        away: Away,
        pause: Pause,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis, self._store, self._ledger, self._disks = connection, store, ledger, disks
        self._spool, self._away, self._pause, self._clock = spool, away, pause, clock
        self._is_ledger_failing = False
        self._rest_until = 0.0
        #: A job that was put back because its pictures do not fit, and the list that it waits in.
        self._large: tuple[Job, str] | None = None
        #: By model: bytes of the largest picture that it made.
        self._largest: dict[str, int] = {}

    def is_open(self) -> bool:
        """Whether to take a job. Cheap: disks are looked at once a second, the rest only once it has failed."""
        now = self._clock()
        if now < self._rest_until:
            return False
        if not (self._has_room() and self._has_ledger() and self._has_store()):
            self._rest_until = now + _AGAIN
            return False
        return True

    def admits(self, job: Job, queue: Queue) -> bool:
        """Whether there is room for a job that was just taken; else it is to be put back, and the gate is closed."""
        if self._shortage_of(job) is None:
            return True
        self._large = job, queue.key
        return False

    def learn(self, model: str, outcome: Outcome) -> None:
        """Hears how an attempt went."""
        sizes = [image.size_bytes for image in outcome.images.values()]
        self._largest[model] = max([self._largest.get(model, 0), *sizes])
        if outcome.held_up:
            self._rest_until = self._clock() + _AGAIN
            self._is_ledger_failing = outcome.failure is not None and outcome.failure.kind == LedgerError.kind

    def _has_room(self) -> bool:
        found = self._disks.shortage("the ledger", self._ledger.path.parent)
        if found is None and self._store.folder is not None:
            found = self._disks.shortage("the store", self._store.folder)
        if found is None and self._large is not None:
            job, waits_in = self._large
            found = self._shortage_of(job)
            # Somebody else may have taken it, or canceled it.
            if found is None or not self._is_first(job, waits_in):
                self._large = found = None
        return self._told("room", found)

    def _shortage_of(self, job: Job) -> Shortage | None:
        folder = self._store.folder
        if job.store is not None:
            folder = None if "://" in job.store else Path(job.store)
        if folder is None:
            return None
        return self._disks.shortage("the store", folder, estimate(job, self._largest.get(job.spec.model, 0)))

    def _is_first(self, job: Job, waits_in: str) -> bool:
        return bool(self._redis.lrange(waits_in, 0, 0) == [job.id.encode()])

    def _has_ledger(self) -> bool:
        found: LedgerError | None = None
        if self._is_ledger_failing:
            try:
                self._ledger.check()
                self._is_ledger_failing = False
            except LedgerError as error:
                found = error
        return self._told("ledger", found)

    def _has_store(self) -> bool:
        found = None
        if self._away.seconds(self._store.url) is not None and not self._spool.has_room():
            found = f"the store is away, and the spool has no room for more ({self._away.why(self._store.url)})"
        return self._told("store", found)

    def _told(self, what: str, reason: object | None) -> bool:
        """Pauses for this reason, or goes on where there is none any more; whether it is the latter."""
        if reason is None:
            self._pause.over(what)
            return True
        self._pause.because(what, str(reason))
        return False
