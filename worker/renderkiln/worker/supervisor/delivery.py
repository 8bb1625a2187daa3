"""Pictures on their way to the store: encoded and written beside the attempt's loop, which must not stand still.

A store can be slow or away, longer than a lease lasts, and the loop has heartbeats to send and signals to hear. So a
thread does the writing, and keeps a picture that the store does not take: rendering it again would cost more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from renderkiln.home.pictures.encode import encode
from renderkiln.home.pictures.metadata import PictureMetadata
from renderkiln.home.pictures.naming import batch_folder, file_name
from renderkiln.home.store import Store, StoredFile
from renderkiln.schema.errors import StoreError
from renderkiln.schema.jobs import ImageResult, Job
from renderkiln.worker.protocol import Picture

log = logging.getLogger("renderkiln.supervisor")

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


@dataclass(frozen=True)
class Delivered:
    """A picture that is in the store."""

    image: ImageResult
    picture: Picture
    #: Encoding and writing, with what the store made us wait.
    seconds: float


class Delivery:
    """The deliveries of one attempt, in order.

    Args:
        patience: seconds for which a picture is kept and offered again to a store that does not take it.
        wake: called, from the thread, whenever there is something to collect.
    """

    def __init__(self, job: Job, store: Store, patience: float, wake: Callable[[], None]) -> None:
        self._job, self._store, self._patience, self._wake = job, store, patience, wake
        self._waiting: SimpleQueue[Picture | None] = SimpleQueue()
        self._ended: SimpleQueue[Delivered | Exception] = SimpleQueue()
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None
        #: Pictures handed over and not yet collected.
        self.pending = 0

    def hand_over(self, picture: Picture) -> None:
        """Takes a picture and returns at once."""
        if self._thread is None:
            # A daemon: a write that hangs for good must not keep an ending worker.
            self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
            self._thread.start()
        self.pending += 1
        self._waiting.put(picture)

    def collect(self) -> Delivered | None:
        """The next delivered picture, or None while there is none.

        Raises:
            StoreError: the store did not take it for as long as patience lasts. Or whatever encoding raised.
        """
        try:
            ended = self._ended.get_nowait()
        except Empty:
            return None
        self.pending -= 1
        if isinstance(ended, Exception):
            raise ended
        return ended

    def close(self) -> None:
        """Ends the thread when it is done with the picture at hand; those that wait are given up."""
        self._given_up.set()
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
        name = file_name(index, picture.seed, digest, spec.prompt, job.image_format)
        stored = self._put(f"{batch_folder(job.batch)}/{name}", data)
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
        return Delivered(image, picture, time.perf_counter() - began)

    def _put(self, name: str, data: bytes) -> StoredFile:
        until, wait = time.monotonic() + self._patience, _FIRST_WAIT
        while True:
            try:
                return self._store.put(name, data)
            except StoreError as error:
                if time.monotonic() + wait > until or self._given_up.is_set():
                    raise
                log.warning("keeping a picture of job %s: %s; trying again in %.1f s", self._job.id, error, wait)
            self._given_up.wait(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
