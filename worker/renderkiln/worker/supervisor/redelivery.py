"""Bringing what is in the spool to its store, once that is back: file first, row second, and only then the spool's.

A crash in between leaves a picture in the spool that is brought once more, to the same name and the same row.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from renderkiln.home.ledger import Ledger
from renderkiln.home.store import Store
from renderkiln.schema.errors import LedgerError, StoreError

from .away import Away
from .spool import Kept, Parcel, Spool

log = logging.getLogger("renderkiln.supervisor")

#: Seconds between tries while a store is away; and between looks at an empty spool, into which another worker of this
#: data folder may have put something before it died.
_FIRST_WAIT, _LONGEST_WAIT, _IDLE = 0.5, 15.0, 30.0


class Redelivery:
    """The thread that does it. `wake` it when something was put into the spool; it never holds up who calls.

    Args:
        open_store: the store that a parcel names; raises StoreError where this worker may not write there.
        own: the worker's own store, which is looked at while it is away, even where nothing waits for it.
        ledger: its file; the thread opens it for itself.
        on_recorded: told, in the thread, that a picture has arrived and its row is written.
    """

    def __init__(
        self,
        spool: Spool,
        open_store: Callable[[str | None], Store],
        own: Store,
        ledger: Path,
        away: Away,
        on_recorded: Callable[[], None],
    ) -> None:
        self._spool, self._open_store, self._own, self._path = spool, open_store, own, ledger
        self._away, self._on_recorded = away, on_recorded
        self._ledger: Ledger | None = None
        self._said: set[str] = set()
        self._woken, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="redelivery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self, grace: float = 2.0) -> None:
        """Ends the thread. What it is at then may be brought once more at the next start."""
        self._ending.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(grace)

    def deliver_all(self) -> bool:
        """Brings whatever can be brought now. Whether nothing waits any more."""
        failing: set[str | None] = set()
        for kept in self._spool.pictures():
            if self._ending.is_set():
                return False
            read = self._spool.read(kept)
            if read is None or read[0].store in failing:
                continue
            try:
                self._deliver(kept, *read)
            except StoreError as error:
                self._say_once(f"pictures in the spool wait: {error}")
                if not self._answers(read[0].store):  # else there is something about this picture alone
                    failing.add(read[0].store)
            except LedgerError as error:
                self._say_once(f"pictures in the spool wait: {error}")
        if None not in failing and self._away.seconds(self._own.url) is not None:
            self._answers(None)
        is_done = not self._spool.pictures()
        if is_done and self._said:
            log.info("the spool is empty: all pictures are where they belong")
            self._said.clear()
        return is_done and self._away.seconds(self._own.url) is None

    def close(self) -> None:
        """Closes the ledger, in the thread that used it."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def _run(self) -> None:
        wait = _FIRST_WAIT
        while not self._ending.is_set():
            try:
                wait = _IDLE if self.deliver_all() else min(max(wait, _FIRST_WAIT) * 2, _LONGEST_WAIT)
            except (OSError, StoreError) as error:  # of the spool's own disk
                self._say_once(f"the spool cannot be read: {error}")
            if self._woken.wait(wait):
                self._woken.clear()
                wait = 0.0
        self.close()

    def _deliver(self, kept: Kept, parcel: Parcel, data: bytes) -> None:
        store, image = self._open_store(parcel.store), parcel.image
        if not parcel.is_stored:
            image = image.model_copy(update={"url": store.put(parcel.name, data).url})
        elif not store.matches(image.url, size=image.size_bytes, sha256=image.sha256):
            log.warning("%s is no longer as it was written: it is rendered again", image.url)
            self._spool.remove(kept)
            return
        self._away.answered(store.url)
        if self._ledger is None:
            self._ledger = Ledger(self._path)
        self._ledger.image_recorded(parcel.job_id, image, parcel.execution_id)
        self._spool.remove(kept)
        log.info("a picture of job %s has arrived late: %s", parcel.job_id, image.url)
        self._on_recorded()

    def _answers(self, name: str | None) -> bool:
        try:
            store = self._open_store(name)
        except StoreError:
            return False
        return self._away.asked(store)

    def _say_once(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning("%s", what)
