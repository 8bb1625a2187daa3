"""One attempt at a job: drive the renderer, have each picture written while the next renders, keep lease and deadline.

The order for each picture is file first, row second: a crash between the two leaves a file that the next attempt writes
again with the same bytes, never a row without a file. Nothing here blocks for long, so that heartbeats go on and
signals are heard while a store is slow, a renderer is stuck, or the ledger is locked.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TypeVar

from renderkiln.home.ledger import Ledger
from renderkiln.home.pictures.naming import file_name
from renderkiln.home.store import Store
from renderkiln.schema import errors
from renderkiln.schema.jobs import Failure, ImageResult, Job
from renderkiln.worker.protocol import (
    Cancel,
    Done,
    Failed,
    FormName,
    MemoryOrder,
    NotReady,
    Picture,
    Ready,
    Render,
    Step,
)

from .child import Renderer
from .delivery import Delivery
from .handover import is_there
from .outage import Backoff
from .outcomes import Beat, Outcome
from .signals import Signals

log = logging.getLogger("renderkiln.supervisor")

#: Seconds that the renderer is given to stop between two steps before it is killed.
GRACE = 15.0
#: Seconds that pictures on their way to the store are given when the attempt must end.
_BRIEFLY = 5.0
#: Pictures on their way at which the renderer is made to wait: it must not fill the memory when the store is away.
_MOST_PENDING = 4
#: Failures of what an attempt needs that may be over in a moment.
_PASSING = (errors.LedgerError, errors.StoreError, errors.ServerUnavailableError)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Surroundings:
    """What attempts need besides the job: made once per worker."""

    ledger: Ledger
    renderer: Renderer
    signals: Signals
    store: str
    may_name_store: bool
    job_timeout: float
    #: Seconds for which store, ledger and Redis are tried again before the attempt fails.
    patience: float
    inputs: Callable[[Job], Mapping[str, bytes]]
    #: Which of these images of a job another worker says to have recorded.
    left_by_others: Callable[[Job, Sequence[int]], Iterable[ImageResult]]
    #: In which form a model is to be rendered now; None where that is for the renderer to say.
    form_of: Callable[[str], FormName | None]
    #: Told that a model's pictures came out broken; whether there is another form to try.
    give_up_form: Callable[[str, str], bool]
    #: How much memory a model may take, in a form.
    memory_of: Callable[[str, FormName | None], MemoryOrder]
    #: The specs, as JSON, of jobs that wait for the same model.
    ahead_of: Callable[[Job], tuple[str, ...]]
    #: Told that memory ran out while a model was loaded before there was a job for it, and how that showed.
    warm_up_ran_out: Callable[[str], None]
    on_ready: Callable[[Ready], None]
    on_step: Callable[[Job, Step], None]
    on_image: Callable[[Job, ImageResult], None]
    #: Called about every second.
    heartbeat: Callable[[], Beat]


def run_attempt(job: Job, execution_id: str, around: Surroundings, begin: Callable[[], None]) -> Outcome:
    """Makes the pictures of a job that are not there yet. Does not raise for what a job can suffer.

    Args:
        begin: records that the attempt has begun.
    """
    outcome = Outcome()
    try:
        _Attempt(job, execution_id, around, outcome).run(begin)
    except errors.CanceledError:
        outcome.canceled = True
    except _GivenBackError:
        outcome.given_back = True
    except _LostError:
        outcome.lost = True
    except errors.RenderkilnError as error:
        outcome.failure = Failure(kind=error.kind, message=str(error))
        killed = isinstance(error, errors.RendererDiedError) and error.signal == signal.SIGKILL
        outcome.ran_out = killed or type(error) is errors.OutOfMemoryError
    except Exception as error:  # a fault of ours must fail the job, not the worker and then every rescuer
        log.exception("job %s: the supervisor failed in a way that it has no name for", job.id)
        outcome.failure = Failure(kind=errors.RenderFailedError.kind, message=f"{type(error).__name__}: {error}")
    return outcome


class _GivenBackError(Exception):
    """The attempt ends because the worker does; the job goes back as it came."""


class _LostError(Exception):
    """The attempt ends because its lease did."""


class _Stage(Enum):
    BEFORE, RENDERING, AFTER = range(3)


class _Attempt:
    def __init__(self, job: Job, execution_id: str, around: Surroundings, outcome: Outcome) -> None:
        self._job, self._execution_id, self._around, self._outcome = job, execution_id, around, outcome
        self._renderer, self._signals = around.renderer, around.signals
        self._stage = _Stage.BEFORE
        self._timeout = job.timeout or around.job_timeout
        self._deadline = time.monotonic() + self._timeout
        self._next_beat = 0.0
        self._beat_said = Beat.GOING_ON
        #: Why the attempt must end early, and until when the renderer may take to hear of it.
        self._stopping: type[Exception] | None = None
        self._kill_at = float("inf")
        self._after_image = False

    def run(self, begin: Callable[[], None]) -> None:
        job, outcome = self._job, self._outcome
        self._insist(begin)
        store = self._open_store()
        self._insist(lambda: self._find_pictures(store))
        missing = job.num_images - len(outcome.images)
        if not missing:
            return
        inputs = self._insist(lambda: self._around.inputs(job))
        self._delivery = Delivery(job, store, self._around.patience, self._signals.wake)
        try:
            self._wait_until_idle()
            self._stage = _Stage.RENDERING
            while not self._render(inputs):
                pass
            self._stage = _Stage.AFTER
            self._settle()
        except Exception as reason:
            self._quieten_renderer()
            self._stage = _Stage.AFTER
            # A failed rendering is no reason to lose the pictures before it.
            self._settle(briefly=not isinstance(reason, errors.RenderFailedError))
            raise
        finally:
            self._delivery.close()

    def _render(self, inputs: Mapping[str, bytes]) -> bool:
        """Has what is missing rendered; False where pictures came out broken, and there is another form to try."""
        job, model = self._job, self._job.spec.model
        form = self._around.form_of(model)
        self._renderer.make_ready_for(model, form)
        memory, ahead = self._around.memory_of(model, form), self._around.ahead_of(job)
        self._renderer.send(Render(job.to_json(), inputs, tuple(sorted(self._outcome.images)), form, memory, ahead))
        try:
            self._until_answered()
        except errors.BadImageError as error:
            self._settle()
            if not self._around.give_up_form(model, str(error)):
                raise
            return False
        return True

    # Before rendering.

    def _open_store(self) -> Store:
        job, around = self._job, self._around
        if job.store is None or job.store == around.store:
            return Store(around.store)
        if not around.may_name_store:
            raise errors.InvalidSpecError(
                f"this worker writes to its own store only, not to {job.store!r} (its setting store_policy is 'own')."
            )
        store = Store(job.store)
        store.check()  # its own was looked at when the worker started; this one may never have been there
        return store

    def _find_pictures(self, store: Store) -> None:
        """Takes over what is recorded and still there: of this job, by whomever, or of one with the same pixels."""
        job, ledger, images = self._job, self._around.ledger, self._outcome.images
        for image in ledger.images_of(job.id):
            if is_there(store, image):
                images[image.k] = image
        for image in self._around.left_by_others(job, [k for k in range(job.num_images) if k not in images]):
            if is_there(store, image, whole=True):
                ledger.image_recorded(job.id, image, None)
                images[image.k] = image
        if job.again or len(images) == job.num_images:
            return
        digests = {job.image_spec(k).digest: k for k in range(job.num_images) if k not in images}
        suffix = Path(file_name(0, 0, "0" * 64, "", job.image_format)).suffix
        for digest, candidates in ledger.images_by_digest(list(digests)).items():
            for image in candidates:
                if image.url.endswith(suffix) and is_there(store, image):
                    k = digests[digest]
                    found = image.model_copy(update={"k": k, "index": job.index + k})
                    ledger.image_recorded(job.id, found, None)
                    images[k] = found
                    break

    def _wait_until_idle(self) -> None:
        """Returns when the renderer can take the job: a warm-up may be on its way."""
        while True:
            self._look_around()
            self._renderer.ensure_running()
            if not self._renderer.is_busy:
                return
            try:
                message = self._renderer.receive_or(self._signals.descriptor, self._nap())
            except errors.RendererDiedError as error:
                log.warning("while warming up: %s", error)  # not this job's doing
                if error.signal == signal.SIGKILL:
                    self._around.warm_up_ran_out(str(error))
                continue
            if message is None:
                self._signals.drain()
            elif isinstance(message, Ready):
                self._around.on_ready(message)
            elif isinstance(message, NotReady):
                log.warning("%s could not be warmed up: %s", message.model, message.message)
                if message.kind == errors.BadImageError.kind:
                    self._around.give_up_form(message.model, message.message)
                elif message.kind == errors.OutOfMemoryError.kind:
                    self._renderer.kill()  # as after a job
                    self._around.warm_up_ran_out(message.message)

    def _insist(self, action: Callable[[], _T]) -> _T:
        """Does what may have to wait for store, ledger or Redis, for as long as patience lasts."""
        until, backoff = time.monotonic() + self._around.patience, Backoff(self._signals)
        while True:
            try:
                return action()
            except _PASSING as error:
                if time.monotonic() >= until or self._stopping is not None:
                    raise
                backoff.wait(f"job {self._job.id} waits", error)
            self._look_around()

    # Rendering.

    def _until_answered(self) -> None:
        while True:
            self._look_around()
            self._collect()
            if self._delivery.pending >= _MOST_PENDING and self._stopping is None:
                self._signals.sleep(self._nap())
                continue
            message = self._renderer.receive_or(self._signals.descriptor, self._nap())
            if message is None:
                self._signals.drain()
            elif isinstance(message, Done):
                self._outcome.memory = message.memory
                return
            elif isinstance(message, Picture):
                self._delivery.hand_over(message)
            elif isinstance(message, Step):
                self._around.on_step(self._job, message)
            elif isinstance(message, Failed):
                self._outcome.memory = message.memory
                self._fail(message)

    def _nap(self) -> float:
        now = time.monotonic()
        return max(0.0, min(1.0, self._kill_at - now, self._deadline - now))

    def _beat(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + 1.0
            said = self._around.heartbeat()
            if self._beat_said is Beat.GOING_ON:
                self._beat_said = said

    def _look_around(self) -> None:
        """Acts on the clock, on signals and on cancels; cheap enough to be called for every message.

        Raises:
            CanceledError, DeadlinePassedError, _GivenBackError, _LostError: there is nothing to wait for.
        """
        self._beat()
        now = time.monotonic()
        if self._stopping is None:
            self._stopping = self._reason_to_stop(now)
            if self._stopping is not None:
                self._stop()
            elif self._signals.stop_after_image and not self._after_image and self._stage is _Stage.RENDERING:
                self._after_image = True
                self._renderer.send(Cancel(after_image=True))
        if now >= self._kill_at and self._stage is _Stage.RENDERING:
            log.warning("renderer %s did not stop within %.0f s: killing it", self._renderer.pid, GRACE)
            self._renderer.kill()
            raise self._reason()

    def _reason_to_stop(self, now: float) -> type[Exception] | None:
        if self._beat_said is Beat.LOST:
            return _LostError
        if self._beat_said is Beat.CANCEL or self._signals.canceled_job == self._job.id:
            return errors.CanceledError
        if self._signals.stop_now or (self._signals.stop_after_image and self._stage is _Stage.BEFORE):
            return _GivenBackError
        if now >= self._deadline and self._stage is not _Stage.AFTER:  # what is rendered is worth delivering
            return errors.DeadlinePassedError
        return None

    def _stop(self) -> None:
        self._deadline = float("inf")
        if self._stage is _Stage.RENDERING:
            self._kill_at = time.monotonic() + GRACE
            self._renderer.send(Cancel())
            return
        if self._stopping is errors.DeadlinePassedError and self._renderer.is_busy:
            self._renderer.kill()  # a warm-up that takes as long as this has no end
        raise self._reason()

    def _fail(self, message: Failed) -> None:
        if message.kind == errors.CanceledError.kind:
            raise self._reason()
        if message.details:
            log.debug("the renderer's account of the failure:\n%s", message.details)
        error = errors.error_of(message.kind, errors.RenderFailedError)
        if error is errors.OutOfMemoryError:
            self._renderer.kill()  # nothing else gives all memory back: the next try begins with an empty one
        raise error(message.message)

    def _reason(self) -> Exception:
        if self._stopping is errors.DeadlinePassedError:
            return errors.DeadlinePassedError(f"the job was not done within its timeout of {self._timeout:g} s.")
        return (self._stopping or _GivenBackError)("stopped")

    # After rendering.

    def _quieten_renderer(self) -> None:
        """Has the renderer drop the job, if it is still at it: what it says of this job must not reach the next."""
        if self._stage is not _Stage.RENDERING or not self._renderer.is_busy:
            return
        kill_at = time.monotonic() + GRACE
        try:
            self._renderer.send(Cancel())
            while self._renderer.is_busy:
                if time.monotonic() >= kill_at or self._signals.stop_now:
                    self._renderer.kill()
                    return
                self._beat()
                if self._renderer.receive_or(self._signals.descriptor, timeout=1.0) is None:
                    self._signals.drain()
        except errors.RendererDiedError as error:
            log.warning("%s", error)

    def _settle(self, briefly: bool = False) -> None:
        """Waits for the pictures that are on their way to the store."""
        until = time.monotonic() + _BRIEFLY
        while self._delivery.pending:
            if briefly:
                if time.monotonic() >= until:
                    return
                self._beat()
            else:
                self._look_around()
            try:
                self._collect()
            except errors.StoreError as error:
                if not briefly:
                    raise
                log.warning("job %s: %s", self._job.id, error)
            if self._delivery.pending:
                self._signals.sleep(self._nap() if not briefly else 0.2)

    def _collect(self) -> None:
        """Records what has arrived in the store. Raises StoreError for what has not."""
        job, outcome = self._job, self._outcome
        while (delivered := self._delivery.collect()) is not None:
            image, picture = delivered.image, delivered.picture
            self._insist(partial(self._around.ledger.image_recorded, job.id, image, self._execution_id))
            outcome.images[image.k] = image
            outcome.render_seconds += picture.seconds - picture.load_seconds
            outcome.load_seconds += picture.load_seconds
            outcome.write_seconds += delivered.seconds
            for note in picture.notes:
                log.warning("job %s, image %d: %s", job.id, image.k, note)
            self._around.on_image(job, image)
