"""What came of jobs: as Redis has it, and as this machine's ledgers have it where Redis has forgotten them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from renderkiln.schema.errors import NotFoundError
from renderkiln.schema.jobs import Failure, JobResult, JobStatus

from .results import JobState

#: Of some jobs, those that are recorded on this machine.
Recorded = Callable[[Sequence[str]], Mapping[str, JobResult]]
#: Seconds for which a job that Redis knew a moment ago may come back: a hub has it queued again after some ten.
MAY_COME_BACK = 30.0
_CHUNK = 1000


class Endings:
    """Remembers which jobs Redis knew, so that who waits does not give those up at once when it is emptied.

    Args:
        recorded: asked of jobs that Redis has forgotten.
        waits: for the end of jobs that are open in a ledger; else what that has of them now is what came of them.
    """

    def __init__(self, recorded: Recorded = lambda job_ids: {}, *, waits: bool = True) -> None:
        self._recorded, self._waits = recorded, waits
        self._known_at: dict[str, float] = {}

    def of(self, batch: str, states: Iterable[tuple[str, JobState | None]]) -> Iterator[JobResult]:
        """The results of jobs that have ended, in order. One that nobody knows (any more) has failed, as not found."""
        rows = iter(states)
        while piece := list(islice(rows, _CHUNK)):
            forgotten = [job_id for job_id, state in piece if state is None]
            recorded = self._recorded(forgotten) if forgotten else {}
            for job_id, state in piece:
                result = self._known(job_id, batch, state) if state else self._forgotten(job_id, batch, recorded)
                if result is not None:
                    yield result

    def _known(self, job_id: str, batch: str, state: JobState) -> JobResult | None:
        if state.status.is_final:
            return state.result or JobResult(job_id=job_id, batch=batch, status=state.status)
        self._known_at[job_id] = time.monotonic()
        return None

    def _forgotten(self, job_id: str, batch: str, recorded: Mapping[str, JobResult]) -> JobResult | None:
        found = recorded.get(job_id)
        if found is not None and (found.status.is_final or not self._waits):
            return found
        if found is not None:  # a ledger has it open, and may bring it back
            self._known_at.setdefault(job_id, time.monotonic())
        known_at = self._known_at.get(job_id)
        if known_at is not None and time.monotonic() < known_at + MAY_COME_BACK:
            return None
        lost = Failure(kind=NotFoundError.kind, message="Redis does not know the job (any more).")
        return JobResult(job_id=job_id, batch=batch, status=JobStatus.FAILED, failure=lost)
