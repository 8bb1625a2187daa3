"""Whether a worker is fit to take jobs: one that fails job after job would only use up everybody's attempts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from renderkiln.schema.jobs import Failure

from .fates import fate_of
from .outcomes import Outcome

log = logging.getLogger("renderkiln.supervisor")

#: Different jobs that fail in a row, through no fault of their own, before a worker takes no more.
MOST_FAILED = 5
#: The longest pause, in first pauses.
_LONGEST = 12


class Health:
    """Counts failures in a row, and says when an unwell worker may try a job again.

    Args:
        pause: seconds before the first such try; each one that fails doubles it, up to twelve times this.
        clock: in seconds.
    """

    def __init__(self, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_pause = self._pause = pause
        self._clock = clock
        self._failed: set[str] = set()
        self._next_try = 0.0
        #: Why it takes no jobs; None: it is well.
        self.reason: str | None = None

    @property
    def rests(self) -> bool:
        """Whether it is to take no job just now."""
        return self.reason is not None and self._clock() < self._next_try

    def ended(self, job_id: str, outcome: Outcome) -> None:
        """An attempt ended.

        What is the job's own fault, was mended, or waits for a store or a ledger says nothing of the worker: for the
        latter it pauses by itself.
        """
        if outcome.is_done:
            self._finished()
            return
        failure = outcome.failure
        if outcome.held_up or outcome.tightened is not None:
            return
        if failure is not None and not fate_of(failure.kind).is_jobs_own:
            self._failed_with(job_id, failure)

    def _finished(self) -> None:
        if self.reason is not None:
            log.warning("a job was rendered: this worker is well again")
        self._failed.clear()
        self._pause = self._first_pause
        self.reason = None

    def _failed_with(self, job_id: str, failure: Failure) -> None:
        self._failed.add(job_id)
        if self.reason is not None:
            self._pause = min(self._pause * 2, self._first_pause * _LONGEST)
        elif len(self._failed) < MOST_FAILED:
            return
        self.reason = (
            f"{len(self._failed)} different jobs in a row failed here, the last with {failure.kind}: "
            f"{failure.message.rstrip('.')}. `renderkiln failed` lists those that are given up, `renderkiln doctor` "
            "looks over the machine."
        )
        self._next_try = self._clock() + self._pause
        log.error("taking no jobs for %.0f s, then one: %s", self._pause, self.reason)
