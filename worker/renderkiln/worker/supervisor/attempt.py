"""One attempt at a job: drive the renderer, write and record each picture while the next renders, keep the deadline.

The order for each picture is file first, row second: a crash between the two leaves a file that the next attempt writes
again with the same bytes, never a row without a file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from renderkiln.home.ledger import Ledger
from renderkiln.home.pictures.encode import encode
from renderkiln.home.pictures.metadata import PictureMetadata
from renderkiln.home.pictures.naming import batch_folder, file_name
from renderkiln.home.store import Store
from renderkiln.schema import errors
from renderkiln.schema.jobs import Failure, ImageResult, Job
from renderkiln.worker.protocol import Cancel, Done, Failed, Picture, Ready, Render, Step

from .child import Renderer

log = logging.getLogger("renderkiln.supervisor")

#: Seconds that the renderer is given to stop between two steps before it is killed.
GRACE = 15.0


class Signals:
    """What may interrupt an attempt: set by signal handlers and RQ's command thread, read by the attempt.

    Setting one wakes the attempt through a pipe at once.
    """

    def __init__(self) -> None:
        self.cancel = False
        self.stop_after_image = False
        self.stop_now = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    @property
    def descriptor(self) -> int:
        """Readable when something was set."""
        return self._read

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will be woken anyway
            os.write(self._write, b"!")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                continue

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@dataclass
class Outcome:
    """How an attempt ended. With neither failure, cancel nor give-back, the job is done."""

    images: dict[int, ImageResult] = field(default_factory=dict)
    failure: Failure | None = None
    canceled: bool = False
    given_back: bool = False
    load_seconds: float = 0.0
    render_seconds: float = 0.0
    write_seconds: float = 0.0

    @property
    def timings(self) -> dict[str, float]:
        names = ("load_seconds", "render_seconds", "write_seconds")
        return {name: round(getattr(self, name), 6) for name in names}


@dataclass(frozen=True)
class Surroundings:
    """What attempts need besides the job: made once per worker."""

    ledger: Ledger
    renderer: Renderer
    signals: Signals
    store: str
    may_name_store: bool
    job_timeout: float
    inputs: Callable[[Job], Mapping[str, bytes]]
    on_ready: Callable[[Ready], None]
    on_step: Callable[[Job, Step], None]
    on_image: Callable[[Job, ImageResult], None]
    #: Called about every second; says whether a cancel was asked for.
    heartbeat: Callable[[], bool]


def run_attempt(job: Job, execution_id: str, around: Surroundings) -> Outcome:
    """Makes the pictures of a job that are not there yet. Does not raise for what a job can suffer."""
    outcome = Outcome()
    try:
        store = _store(job, around)
        _find_pictures(job, store, around.ledger, outcome)
        missing = [k for k in range(job.num_images) if k not in outcome.images]
        if missing:
            _Rendering(job, execution_id, store, around, outcome).run(missing)
    except errors.CanceledError:
        outcome.canceled = True
    except _GivenBackError:
        outcome.given_back = True
    except errors.RenderkilnError as error:
        outcome.failure = Failure(kind=error.kind, message=str(error))
    return outcome


def _store(job: Job, around: Surroundings) -> Store:
    if job.store is None or job.store == around.store:
        return Store(around.store)
    if not around.may_name_store:
        raise errors.InvalidSpecError(
            f"this worker writes to its own store only, not to {job.store!r} (its setting store_policy is 'own')."
        )
    return Store(job.store)


def _find_pictures(job: Job, store: Store, ledger: Ledger, outcome: Outcome) -> None:
    """Takes over what was recorded before and is still there: of this job, or of another one with the same pixels."""
    for image in ledger.images_of(job.id):
        if _is_there(store, image):
            outcome.images[image.k] = image
    if job.again or len(outcome.images) == job.num_images:
        return
    digests = {job.image_spec(k).digest: k for k in range(job.num_images) if k not in outcome.images}
    suffix = Path(file_name(0, 0, "0" * 64, "", job.image_format)).suffix
    for digest, candidates in ledger.images_by_digest(list(digests)).items():
        for image in candidates:
            if image.url.endswith(suffix) and _is_there(store, image):
                k = digests[digest]
                found = image.model_copy(update={"k": k, "index": job.index + k})
                ledger.image_recorded(job.id, found, None)
                outcome.images[k] = found
                break


def _is_there(store: Store, image: ImageResult) -> bool:
    try:
        return store.matches(image.url, size=image.size_bytes)
    except errors.StoreError:
        return False  # of another store than this job's, or not to be seen: render it


class _GivenBackError(Exception):
    """The attempt ends because the worker does; the job goes back as it came."""


class _Rendering:
    """The conversation with the renderer over one job."""

    def __init__(self, job: Job, execution_id: str, store: Store, around: Surroundings, outcome: Outcome) -> None:
        self._job, self._execution_id, self._store = job, execution_id, store
        self._around, self._outcome = around, outcome
        self._renderer = around.renderer
        self._timeout = job.timeout or around.job_timeout
        self._deadline = time.monotonic() + self._timeout
        #: Why the renderer was told to stop, and until when it may take to do so.
        self._stopping: type[Exception] | None = None
        self._kill_at = float("inf")
        self._after_image = False
        self._next_heartbeat = 0.0

    def run(self, missing: list[int]) -> None:
        job, around = self._job, self._around
        skip = tuple(sorted(self._outcome.images))
        if job.num_images - len(skip) != len(missing):
            raise AssertionError("every image is either there or missing")
        inputs = around.inputs(job)
        self._renderer.ensure_running()
        self._renderer.send(Render(job.to_json(), inputs, skip))
        while True:
            self._look_around()
            message = self._renderer.receive_or(around.signals.descriptor, timeout=self._patience())
            if message is None:
                around.signals.drain()
            elif isinstance(message, Done):
                return
            elif isinstance(message, Picture):
                self._write(message)
            elif isinstance(message, Step):
                around.on_step(job, message)
            elif isinstance(message, Failed):
                self._fail(message)
            else:
                around.on_ready(message)  # of the warm-up that came before

    def _patience(self) -> float:
        return max(0.0, min(1.0, self._kill_at - time.monotonic(), self._deadline - time.monotonic()))

    def _look_around(self) -> None:
        """Acts on the clock, on signals and on cancels; cheap enough to be called for every message."""
        now = time.monotonic()
        signals = self._around.signals
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + 1.0
            if self._around.heartbeat():
                signals.cancel = True
        if signals.cancel:
            self._stop(errors.CanceledError)
        elif now >= self._deadline:
            self._stop(errors.DeadlinePassedError)
        elif signals.stop_now:
            self._stop(_GivenBackError)
        elif signals.stop_after_image and not self._after_image:
            self._after_image = True
            self._renderer.send(Cancel(after_image=True))
        if now >= self._kill_at:
            log.warning("renderer %s did not stop within %.0f s: killing it", self._renderer.pid, GRACE)
            self._renderer.kill()
            self._give_reason()

    def _stop(self, reason: type[Exception]) -> None:
        if self._stopping is None:
            self._stopping = reason
            self._kill_at = time.monotonic() + GRACE
            self._deadline = float("inf")
            self._renderer.send(Cancel())

    def _fail(self, message: Failed) -> None:
        if message.kind == errors.CanceledError.kind:
            self._give_reason()
        if message.details:
            log.debug("the renderer's account of the failure:\n%s", message.details)
        failures = {cls.kind: cls for cls in _subclasses(errors.RenderkilnError)}
        error = failures.get(message.kind, errors.RenderFailedError)
        if error in (errors.PromptListError, errors.JobFailedError):
            error = errors.RenderFailedError
        raise error(message.message)

    def _give_reason(self) -> None:
        if self._stopping is errors.DeadlinePassedError:
            raise errors.DeadlinePassedError(f"the job was not done within its timeout of {self._timeout:g} s.")
        if self._stopping is errors.CanceledError:
            raise errors.CanceledError("canceled")
        raise _GivenBackError

    def _write(self, picture: Picture) -> None:
        job, spec = self._job, self._job.image_spec(picture.k)
        began = time.perf_counter()
        digest = spec.digest
        data = encode(
            picture.rgb, picture.width, picture.height, job.image_format, PictureMetadata(spec=spec, digest=digest)
        )
        index = job.index + picture.k
        name = file_name(index, picture.seed, digest, spec.prompt, job.image_format)
        stored = self._store.put(f"{batch_folder(job.batch)}/{name}", data)
        image = ImageResult(
            k=picture.k,
            index=index,
            seed=picture.seed,
            digest=digest,
            url=stored.url,
            sha256=stored.sha256,
            size_bytes=stored.size,
            width=picture.width,
            height=picture.height,
            seconds=picture.seconds,
        )
        self._around.ledger.image_recorded(job.id, image, self._execution_id)
        self._outcome.images[picture.k] = image
        self._outcome.render_seconds += picture.seconds - picture.load_seconds
        self._outcome.load_seconds += picture.load_seconds
        self._outcome.write_seconds += time.perf_counter() - began
        for note in picture.notes:
            log.warning("job %s, image %d: %s", job.id, picture.k, note)
        self._around.on_image(job, image)


def _subclasses(cls: type[errors.RenderkilnError]) -> list[type[errors.RenderkilnError]]:
    return [cls, *(deeper for child in cls.__subclasses__() for deeper in _subclasses(child))]
