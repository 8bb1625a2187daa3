"""One attempt at a job: drive the renderer, have each picture written before the next begins, keep lease and deadline.

The order for each picture is file first, row second: a crash between the two leaves a file that the next attempt writes
again with the same bytes, never a row without a file. Nothing here blocks for long, so that heartbeats go on and
signals are heard while a store is slow, a renderer is stuck, or the ledger is locked.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial

from renderkiln.home.store import Store
from renderkiln.schema import errors
from renderkiln.schema.jobs import Failure, Job
from renderkiln.worker.protocol import Cancel, Done, Failed, GoOn, NotReady, Picture, Ready, Render, Step

from .attempt_log import details
from .delivery import Delivery
from .finding import find_pictures
from .outcomes import Outcome
from .spool import Parcel
from .surroundings import Surroundings
from .vigil import RECHECK, GivenBackError, LostError, Stage, Vigil

log = logging.getLogger("renderkiln.supervisor")

#: Seconds that pictures on their way to the store are given when the attempt must end; when nobody wants them.
_BRIEFLY, _AT_ONCE = 5.0, 0.3
#: Seconds between looks whether the spool has become empty.
_LOOK_INTO_SPOOL = 0.2
#: Seconds for which the renderer waits for its last picture to be recorded before it begins the next. A folder takes
#: less; from a store that takes longer, rendering is not held up for more.
_LONGEST_HOLD = 1.0
#: Pictures on their way at which the renderer is made to wait: it must not fill the memory when the store is away.
_MOST_PENDING = 4


def run_attempt(
    job: Job, execution_id: str, around: Surroundings, begin: Callable[[], None], *, resumes: bool = False
) -> Outcome:
    """Makes the pictures of a job that are not there yet. Does not raise for what a job can suffer.

    Args:
        begin: records that the attempt has begun.
        resumes: whether somebody had begun the job before.
    """
    outcome = Outcome()
    attempt = _Attempt(job, execution_id, around, outcome, resumes)
    try:
        attempt.run(begin)
    except errors.CanceledError:
        outcome.canceled = True
        around.places.spool.forget(job.id)
    except GivenBackError:
        outcome.given_back = True
    except LostError:
        outcome.lost = True
    except errors.RenderkilnError as error:
        outcome.failure = Failure(kind=error.kind, message=str(error))
        outcome.held_up = attempt.is_held_up(error)
        killed = isinstance(error, errors.RendererDiedError) and error.signal == signal.SIGKILL
        outcome.ran_out = killed or type(error) is errors.OutOfMemoryError
    except Exception as error:  # a fault of ours must fail the job, not the worker and then every rescuer
        log.exception("job %s: the supervisor failed in a way that it has no name for", job.id)
        outcome.failure = Failure(kind=errors.RenderFailedError.kind, message=f"{type(error).__name__}: {error}")
    return outcome


class _Attempt:
    def __init__(self, job: Job, execution_id: str, around: Surroundings, outcome: Outcome, resumes: bool) -> None:
        self._job, self._execution_id, self._around, self._outcome = job, execution_id, around, outcome
        self._resumes = resumes
        self._renderer, self._signals = around.renderer, around.signals
        self._vigil = Vigil(job, around)
        #: Images that this attempt rendered and that wait in the spool.
        self._spooled: set[int] = set()
        self._has_rendered = False
        #: Images that the renderer has still to send.
        self._missing = 0
        #: What was logged of its pictures: of many images it is the same.
        self._noted: set[str] = set()
        #: Until when it waits, at most, with the next one; None: it does not.
        self._hold_until: float | None = None

    def run(self, begin: Callable[[], None]) -> None:
        self._vigil.insist(begin)
        store = self._open_store()
        while True:
            waiting = self._vigil.insist(lambda: self._find_pictures(store))
            if len(self._outcome.images) + len(waiting) < self._job.num_images:
                self._render_missing(store, waiting)
                if len(self._outcome.images) == self._job.num_images:
                    return
            elif waiting:
                self._wait_for_spool(waiting)
            else:
                return

    def is_held_up(self, error: Exception) -> bool:
        """Whether what failed is a store or a ledger that is full or away, and no fault of the job's."""
        if isinstance(error, errors.StoreError):
            return error.is_full or self._around.places.away.seconds(self._vigil.store_url) is not None
        return isinstance(error, errors.LedgerError)

    def _render_missing(self, store: Store, waiting: set[int]) -> None:
        """Has rendered what is not there, and waits until it is in the store, or in the spool."""
        job, around = self._job, self._around
        self._vigil.stage = Stage.BEFORE
        inputs = self._vigil.insist(lambda: around.inputs(job))
        delivery = self._vigil.delivery = Delivery(
            job, self._execution_id, store, around.places, self._signals.wake, is_own=around.is_own(job.store)
        )
        try:
            self._wait_until_idle()
            self._vigil.stage = Stage.RENDERING
            while not self._render(inputs, waiting):
                pass
            self._vigil.stage = Stage.AFTER
            self._has_rendered = True
            self._settle()
        except Exception as reason:
            self._quieten_renderer()
            self._vigil.stage = Stage.AFTER
            self._settle_after(reason)
            raise
        finally:
            delivery.close()
            self._vigil.show_standstill(None)

    def _render(self, inputs: Mapping[str, bytes], waiting: set[int]) -> bool:
        """Has what is missing rendered; False where pictures came out broken, and there is another form to try."""
        job, model = self._job, self._job.spec.model
        form = self._around.form_of(model)
        self._renderer.make_ready_for(model, form)
        memory, ahead = self._around.memory_of(model, form), self._around.ahead_of(job)
        skip = tuple(sorted(waiting.union(self._outcome.images, self._spooled)))
        self._missing, self._hold_until = job.num_images - len(skip), None
        self._renderer.send(Render(job.to_json(), inputs, skip, form, memory, ahead))
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
        store, away = around.open_store(job.store), around.places.away
        self._vigil.store_url = store.url
        if not around.is_own(job.store):
            # The worker's own was looked at when it started; this one may never have been there.
            was_there = away.seconds(store.url) is not None
            self._vigil.insist(store.check, lambda error: error.is_full or was_there)
        return store

    def _wait_until_idle(self) -> None:
        """Returns when the renderer can take the job: a warm-up may be on its way."""
        while True:
            self._vigil.look_around()
            self._renderer.ensure_running()
            if not self._renderer.is_busy:
                return
            try:
                message = self._renderer.receive_or(self._signals.descriptor, self._vigil.nap())
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

    def _find_pictures(self, store: Store) -> set[int]:
        around, left = self._around, partial(self._around.left_by_others, self._resumes)
        return find_pictures(self._job, store, around.ledger, around.places.spool, self._outcome.images, left)

    def _wait_for_spool(self, waiting: set[int]) -> None:
        """Waits for pictures that were rendered earlier, and are in the spool, to arrive.

        Raises:
            StoreError: they do not.
        """
        places, left = self._around.places, len(waiting)
        is_away = places.away.seconds(self._vigil.store_url) is not None
        # After rendering, patience was had already: the next job is worth more than another look.
        patience = 0.0 if self._has_rendered and is_away else min(places.patience, RECHECK)
        until = time.monotonic() + patience
        self._vigil.stage = Stage.BEFORE
        self._around.urge()
        while there := sum(kept.job_id == self._job.id for kept in places.spool.pictures()):
            self._vigil.look_around()
            if there < left:
                left, until = there, time.monotonic() + patience
            if time.monotonic() >= until:
                why = places.away.why(self._vigil.store_url) or "its store takes others, and not them"
                raise errors.StoreError(f"{left} pictures are rendered and wait in the spool: {why}")
            self._vigil.sleep(min(_LOOK_INTO_SPOOL, self._vigil.nap()))

    # Rendering.

    def _until_answered(self) -> None:
        while True:
            self._vigil.look_around()
            self._collect()
            if self._is_held() and not self._vigil.is_stopping:
                self._vigil.sleep(min(self._vigil.nap(), _LONGEST_HOLD))
                continue
            if self._hold_until is not None:
                self._hold_until = None
                self._renderer.send(GoOn())
            message = self._renderer.receive_or(self._signals.descriptor, self._vigil.nap())
            if message is None:
                self._signals.drain()
            elif isinstance(message, Done):
                self._outcome.memory = message.memory
                return
            elif isinstance(message, Picture):
                self._delivery.hand_over(message)
                self._missing -= 1
                if self._missing:
                    self._hold_until = time.monotonic() + _LONGEST_HOLD
            elif isinstance(message, Step):
                self._around.on_step(self._job, message)
            elif isinstance(message, Failed):
                self._outcome.memory = message.memory
                self._fail(message)

    def _is_held(self) -> bool:
        """Whether the renderer waits with its next image for the last one to be recorded, so that a kill costs one."""
        pending = self._delivery.pending
        if self._hold_until is None or not pending:
            return False
        if self._delivery.standstill is not None:  # a full disk: whatever came next could not be recorded either
            return True
        return pending >= _MOST_PENDING or time.monotonic() < self._hold_until

    def _fail(self, message: Failed) -> None:
        if message.kind == errors.CanceledError.kind:
            raise self._vigil.reason()
        if message.details:
            details.debug("the renderer's account of the failure:\n%s", message.details)
        error = errors.error_of(message.kind, errors.RenderFailedError)
        if error is errors.OutOfMemoryError:
            self._renderer.kill()  # nothing else gives all memory back: the next try begins with an empty one
        raise error(message.message)

    # After rendering.

    def _quieten_renderer(self) -> None:
        """Has the renderer drop the job, if it is still at it: what it says of this job must not reach the next."""
        if self._vigil.stage is not Stage.RENDERING or not self._renderer.is_busy:
            return
        kill_at = time.monotonic() + self._renderer.grace
        try:
            self._renderer.send(Cancel())
            while self._renderer.is_busy:
                if time.monotonic() >= kill_at or self._signals.stop_now:
                    self._renderer.kill()
                    return
                self._vigil.beat()
                if self._renderer.receive_or(self._signals.descriptor, timeout=0.5) is None:
                    self._signals.drain()
        except errors.RendererDiedError as error:
            log.warning("%s", error)

    def _settle_after(self, reason: Exception) -> None:
        """Brings home what the attempt has rendered, however it ended: that is no reason to lose pictures."""
        if isinstance(reason, errors.RenderFailedError):
            self._vigil.forgive()  # what happens from here on is another matter
            try:
                self._settle()
            except Exception as another:
                self._settle_after(another)
                raise
            return
        self._vigil.is_ending = True
        is_unwanted = isinstance(reason, (errors.CanceledError, LostError))
        if not is_unwanted:
            self._delivery.hurry()
        self._settle_briefly(_AT_ONCE if is_unwanted else _BRIEFLY)

    def _settle(self) -> None:
        """Waits for the pictures that are on their way."""
        while self._delivery.pending:
            self._vigil.look_around()
            self._collect()
            if self._delivery.pending:
                self._signals.sleep(self._vigil.nap())

    def _settle_briefly(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._delivery.pending and time.monotonic() < until:
            self._vigil.beat()
            try:
                self._collect()
            except (errors.StoreError, errors.LedgerError) as error:
                log.warning("job %s: %s", self._job.id, error)
            if self._delivery.pending:
                self._signals.sleep(0.1)

    def _collect(self) -> None:
        """Records what has arrived in the store. Raises StoreError for what is neither there nor in the spool."""
        job, outcome = self._job, self._outcome
        while (delivered := self._delivery.collect()) is not None:
            image, picture = delivered.parcel.image, delivered.picture
            outcome.render_seconds += picture.seconds - picture.load_seconds
            outcome.load_seconds += picture.load_seconds
            outcome.write_seconds += delivered.seconds
            for note in picture.notes:
                if note not in self._noted:
                    self._noted.add(note)
                    log.warning("job %s, image %d: %s", job.id, image.k, note)
            if delivered.spooled is not None:
                self._spooled.add(image.k)
                self._around.urge()
                continue
            self._record(delivered.parcel)
            outcome.images[image.k] = image
            self._around.on_image(job, image)

    def _record(self, parcel: Parcel) -> None:
        """Writes the row of a picture that is in the store. Where that does not go, the row waits in the spool."""
        around = self._around
        try:
            self._vigil.insist(partial(around.ledger.image_recorded, parcel.job_id, parcel.image, self._execution_id))
        except errors.LedgerError:
            with contextlib.suppress(errors.StoreError):  # else it is rendered again, to the same name
                around.places.spool.add(parcel.model_copy(update={"is_stored": True}), b"")
            raise

    @property
    def _delivery(self) -> Delivery:
        assert self._vigil.delivery is not None
        return self._vigil.delivery
