"""What an attempt keeps an eye on, whatever it waits for: lease, deadline, cancels, signals, and its own patience."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from renderkiln.schema import errors
from renderkiln.schema.jobs import Job
from renderkiln.worker.protocol import Cancel

from .delivery import Delivery
from .outage import Backoff
from .outcomes import Beat
from .surroundings import Surroundings

log = logging.getLogger("renderkiln.supervisor")

#: Failures of what an attempt needs that may be over in a moment.
_PASSING = (errors.LedgerError, errors.StoreError, errors.ServerUnavailableError)
#: Seconds for which a job waits for a store that has been away for long, before the next job has its turn.
RECHECK = 30.0
#: Seconds between looks for room.
_LOOK_FOR_ROOM = 1.0
#: What a pause is for.
_WRITING, _RECORDING = "writing", "recording"
_T = TypeVar("_T")


class GivenBackError(Exception):
    """The attempt ends because the worker does; the job goes back as it came."""


class LostError(Exception):
    """The attempt ends because its lease did."""


class Stage(Enum):
    """Where an attempt stands: before, at, and after its rendering."""

    BEFORE, RENDERING, AFTER = range(3)


class Vigil:
    """Of one attempt. Nothing in it waits for long, but for what it is handed to be done again."""

    def __init__(self, job: Job, around: Surroundings) -> None:
        self._job, self._around = job, around
        self._renderer, self._signals = around.renderer, around.signals
        self.stage = Stage.BEFORE
        #: The pictures that are on their way.
        self.delivery: Delivery | None = None
        #: The URL of the job's store, once that is open.
        self.store_url = ""
        #: The attempt ends, and nothing is worth waiting for any more.
        self.is_ending = False
        self._timeout = job.timeout or around.job_timeout
        self._deadline = time.monotonic() + self._timeout
        self._next_beat = 0.0
        self._beat_said = Beat.GOING_ON
        #: Why the attempt must end early, and until when the renderer may take to hear of it.
        self._stopping: type[Exception] | None = None
        self._kill_at = float("inf")
        self._after_image = False

    @property
    def is_stopping(self) -> bool:
        """Whether the attempt is to end early, and the renderer was told so."""
        return self._stopping is not None

    def look_around(self) -> None:
        """Acts on the clock, on signals and on cancels; cheap enough to be called for every message.

        Raises:
            CanceledError, DeadlinePassedError, GivenBackError, LostError: there is nothing to wait for.
        """
        self.beat()
        self._see_to_delivery()
        now = time.monotonic()
        if self._stopping is None:
            self._stopping = self._reason_to_stop(now)
            if self._stopping is not None:
                self._stop()
            elif self._signals.stop_after_image and not self._after_image and self.stage is Stage.RENDERING:
                self._after_image = True
                self._renderer.send(Cancel(after_image=True))
        if now >= self._kill_at and self.stage is Stage.RENDERING:
            log.warning("renderer %s did not stop in time: killing it", self._renderer.pid)
            self._renderer.kill()
            raise self.reason()

    def beat(self) -> None:
        """Keeps the lease, about once a second."""
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + 1.0
            said = self._around.heartbeat()
            if self._beat_said is Beat.GOING_ON:
                self._beat_said = said

    def nap(self) -> float:
        """Seconds that may be slept before the next look around."""
        now = time.monotonic()
        return max(0.0, min(1.0, self._kill_at - now, self._deadline - now))

    def sleep(self, seconds: float) -> None:
        """Waits for store, spool or ledger, which does not count as time that the job took."""
        before = time.monotonic()
        self._signals.sleep(seconds)
        self._deadline += time.monotonic() - before

    def insist(self, action: Callable[[], _T], passing: Callable[[Any], bool] = lambda error: True) -> _T:
        """Does what may have to wait for store, ledger or Redis, for as long as patience lasts.

        For room it waits without an end, once there is a picture to lose. The deadline does not count meanwhile.

        Args:
            passing: whether a failure may be over in a moment.
        """
        began, backoff, pause = time.monotonic(), Backoff(self._signals), self._around.pause
        try:
            while True:
                try:
                    return action()
                except _PASSING as error:
                    is_for_room = getattr(error, "is_full", False) and self.stage is not Stage.BEFORE
                    is_over = not is_for_room and time.monotonic() >= began + self._patience(error)
                    if is_over or self._must_end() or not passing(error):
                        raise
                    before = time.monotonic()
                    if is_for_room:
                        pause.because(_RECORDING, str(error))
                        self._signals.sleep(_LOOK_FOR_ROOM)
                    else:
                        backoff.wait(f"job {self._job.id} waits", error)
                    self._deadline += time.monotonic() - before
                self.look_around()
        finally:
            pause.over(_RECORDING)

    def forgive(self) -> None:
        """Forgets why the rendering had to end: what happens to its pictures is another matter."""
        self._stopping = None

    def reason(self) -> Exception:
        """Why the attempt ends, to be raised."""
        if self._stopping is errors.DeadlinePassedError:
            return errors.DeadlinePassedError(f"the job was not done within its timeout of {self._timeout:g} s.")
        return (self._stopping or GivenBackError)("stopped")

    def show_standstill(self, why: str | None) -> None:
        """Says that pictures wait in memory, and for what; None: none does."""
        if why is None:
            self._around.pause.over(_WRITING)
        else:
            self._around.pause.because(_WRITING, why)

    def _see_to_delivery(self) -> None:
        if self.delivery is not None:
            self.show_standstill(self.delivery.standstill)
            if self._signals.stop_after_image:
                self.delivery.hurry()

    def _patience(self, error: Exception) -> float:
        """Seconds to try again after a failure: few where the store was given all of it before."""
        places, patience = self._around.places, self._around.places.patience
        if not isinstance(error, errors.StoreError) or error.is_full:
            return patience
        places.away.failed(self.store_url, error)
        is_known = (places.away.seconds(self.store_url) or 0.0) >= patience
        return min(patience, RECHECK) if is_known else patience

    def _must_end(self) -> bool:
        is_told = self._signals.stop_after_image and self.stage is not Stage.BEFORE
        return is_told or self.is_ending or self._stopping is not None

    def _reason_to_stop(self, now: float) -> type[Exception] | None:
        if self._beat_said is Beat.LOST:
            return LostError
        if self._beat_said is Beat.CANCEL or self._signals.canceled_job == self._job.id:
            return errors.CanceledError
        if self._signals.stop_now or (self._signals.stop_after_image and self.stage is Stage.BEFORE):
            return GivenBackError
        if now >= self._deadline and self.stage is not Stage.AFTER:  # what is rendered is worth delivering
            return errors.DeadlinePassedError
        return None

    def _stop(self) -> None:
        self._deadline = float("inf")
        if self.stage is Stage.RENDERING and self._renderer.is_busy:
            self._kill_at = time.monotonic() + self._renderer.grace
            self._renderer.send(Cancel())
            return
        if self._stopping is errors.DeadlinePassedError and self._renderer.is_busy:
            self._renderer.kill()  # a warm-up that takes as long as this has no end
        raise self.reason()


def insist_on_ending(record: Callable[[], None], around: Surroundings) -> None:
    """Has the ledger take how an attempt ended. A lease is kept meanwhile, and a stop signal ends the waiting.

    Raises:
        LedgerError: it did not, for as long as patience lasts, or until the worker was told to stop.
    """
    began, backoff = time.monotonic(), Backoff(around.signals)
    try:
        while True:
            try:
                record()
                return
            except errors.LedgerError as error:
                is_over = not error.is_full and time.monotonic() >= began + around.places.patience
                if is_over or around.signals.stop_after_image or around.heartbeat() is Beat.LOST:
                    raise
                if error.is_full:
                    around.pause.because(_RECORDING, str(error))
                    around.signals.sleep(_LOOK_FOR_ROOM)
                else:
                    backoff.wait("the end of a job waits", error)
    finally:
        around.pause.over(_RECORDING)
