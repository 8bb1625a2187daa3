"""Pictures on their way to the store: encoded and written beside the attempt's loop, which must not stand still.

A store can be slow, full or away, longer than a lease lasts, and the loop has heartbeats to send and signals to hear.
So a thread does the writing, and keeps a picture that the store does not take: rendering it again would cost more.

- Full: it is kept in memory until there is room, however long that takes.
- Away: it is offered again for as long as patience lasts, and then put into the spool.
- Not this picture, though the store takes others: after as long, that is the job's failure.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from renderkiln.home.pictures.encode import encode
from renderkiln.home.pictures.metadata import PictureMetadata
from renderkiln.home.pictures.naming import picture_name
from renderkiln.home.store import Store
from renderkiln.schema.errors import StoreError
from renderkiln.schema.jobs import ImageResult, Job
from renderkiln.schema.limits import MAX_REMARK, MAX_REMARKS
from renderkiln.worker.protocol import Picture

from .away import Away
from .spool import Parcel, Spool

log = logging.getLogger("renderkiln.supervisor")

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
#: Seconds between looks for room; a local disk, mostly.
_LOOK_FOR_ROOM = 1.0


@dataclass(frozen=True)
class Delivered:
    """A picture that is in the store, or in the spool."""

    parcel: Parcel
    picture: Picture
    #: Encoding and writing, with what the store made us wait.
    seconds: float
    #: Why it is in the spool; None: it is in the store.
    spooled: str | None = None


@dataclass(frozen=True)
class Places:
    """Where pictures go, and where they wait.

    Attributes:
        patience: seconds for which a store that is away is tried again.
    """

    spool: Spool
    away: Away
    patience: float


class Delivery:
    """The deliveries of one attempt, in order.

    Args:
        is_own: the store is the worker's own. Where neither it nor the spool takes a picture, it is kept in memory.
        wake: called, from the thread, whenever there is something to collect.
    """

    def __init__(
        self, job: Job, execution_id: str, store: Store, places: Places, wake: Callable[[], None], *, is_own: bool
    ) -> None:
        self._job, self._execution_id, self._store, self._places = job, execution_id, store, places
        self._wake, self._is_own = wake, is_own
        self._waiting: SimpleQueue[Picture | None] = SimpleQueue()
        self._ended: SimpleQueue[Delivered | Exception] = SimpleQueue()
        self._hurried, self._given_up = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        #: Pictures handed over and not yet collected.
        self.pending = 0
        #: When the last of them was collected, or the first was handed over.
        self.moved_at = 0.0
        #: What a picture waits for, as a sentence, while it is kept in memory without an end in sight.
        self.standstill: str | None = None

    def hand_over(self, picture: Picture) -> None:
        """Takes a picture and returns at once."""
        if self._thread is None:
            # A daemon: a write that hangs for good must not keep an ending worker.
            self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
            self._thread.start()
        if not self.pending:
            self.moved_at = time.monotonic()
        self.pending += 1
        self._waiting.put(picture)

    def collect(self) -> Delivered | None:
        """The next picture that is in store or spool, or None while there is none.

        Raises:
            StoreError: neither took it for as long as there is patience. Or whatever encoding raised.
        """
        try:
            ended = self._ended.get_nowait()
        except Empty:
            return None
        self.pending -= 1
        self.moved_at = time.monotonic()
        if isinstance(ended, Exception):
            raise ended
        return ended

    def hurry(self) -> None:
        """Has pictures that the store does not take at once put into the spool: the worker is to end."""
        self._hurried.set()

    def close(self) -> None:
        """Ends the thread when it is done with the picture at hand; those that wait are given up."""
        self._given_up.set()
        self._hurried.set()
        self._waiting.put(None)

    def _run(self) -> None:
        while (picture := self._waiting.get()) is not None and not self._given_up.is_set():
            try:
                self._ended.put(self._deliver(picture))
            except Exception as error:  # the attempt's loop has to hear of it, whatever it is
                self._ended.put(error)
            self._wake()

    def _deliver(self, picture: Picture) -> Delivered:
        began = time.perf_counter()
        job, spec = self._job, self._job.image_spec(picture.k)
        digest, index = spec.digest, job.index + picture.k
        metadata = PictureMetadata(spec=spec, digest=digest)
        data = encode(picture.rgb, picture.width, picture.height, job.image_format, metadata)
        name = picture_name(job, picture.k)
        image = ImageResult(
            k=picture.k,
            index=index,
            seed=picture.seed,
            digest=digest,
            url=self._store.url_of(name),
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            width=picture.width,
            height=picture.height,
            seconds=picture.seconds,
            notes=tuple(note[:MAX_REMARK] for note in picture.notes[:MAX_REMARKS]),
        )
        parcel = Parcel(job_id=job.id, execution_id=self._execution_id, store=job.store, name=name, image=image)
        spooled = self._bring(parcel, data)
        self.standstill = None
        return Delivered(parcel, picture, time.perf_counter() - began, spooled)

    def _bring(self, parcel: Parcel, data: bytes) -> str | None:
        """To the store, or where that is away to the spool: then, why."""
        store, away, wait = self._store, self._places.away, _FIRST_WAIT
        began = time.monotonic()
        while True:
            try:
                store.put(parcel.name, data)
            except StoreError as error:
                if self._given_up.is_set():
                    raise
                if error.is_full:
                    if self._hurried.is_set():
                        return self._spool(parcel, data, error)
                    self._stand_still(f"{error}; {len(data):,} bytes of a picture of job {self._job.id} are kept")
                    self._hurried.wait(_LOOK_FOR_ROOM)
                    continue
                away.failed(store.url, error)
                if self._patience_is_over(began, wait):
                    spooled = self._give_way(parcel, data, error)
                    if spooled is not None:
                        return spooled
                else:
                    log.warning("keeping a picture of job %s: %s; trying again in %.1f s", self._job.id, error, wait)
            else:
                away.answered(store.url)
                return None
            self._hurried.wait(wait)
            wait = min(wait * 2, _LONGEST_WAIT)

    def _patience_is_over(self, began: float, wait: float) -> bool:
        """Patience is had with a store, from when it first failed; and with a picture, where others were taken."""
        away = self._places.away.seconds(self._store.url)
        waited = max(time.monotonic() - began, away or 0.0)
        return self._hurried.is_set() or waited + wait > self._places.patience

    def _give_way(self, parcel: Parcel, data: bytes, error: StoreError) -> str | None:
        """To the spool, if the store is away; None where it is, and the spool has no room for now.

        Raises:
            StoreError: the store takes other files; or a store that the job named is away, and the spool has no room.
        """
        if self._places.away.asked(self._store):
            raise error
        try:
            return self._spool(parcel, data, error)
        except StoreError as both:
            if not self._is_own or self._hurried.is_set():
                raise
            self._stand_still(str(both))  # the next jobs would fare no better
            return None

    def _spool(self, parcel: Parcel, data: bytes, error: StoreError) -> str:
        try:
            self._places.spool.add(parcel, data)
        except StoreError as another:
            raise StoreError(f"{error}; and {another}", is_full=error.is_full) from error
        log.warning("a picture of job %s waits in the spool: %s", self._job.id, error)
        return str(error)

    def _stand_still(self, why: str) -> None:
        if self.standstill is None:
            self.standstill = why
            self._wake()
