"""Telling the hub what changed in this machine's ledger: the outbox, emptied by a thread.

What is told is what the ledger has already, so nothing is told that a crash could take back. The hub says up to where
it has read (`names.RECORDS_READ`); a start, a stream made anew, and a hub that stands still all begin from there
again. So each change comes at least once, whatever happens to Redis in between. Where no hub ever was, nothing is sent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from renderkiln.home.ledger import Ledger
from renderkiln.home.outbox import read_changes, source_of
from renderkiln.schema import names
from renderkiln.schema.errors import LedgerError

log = logging.getLogger("renderkiln.supervisor")

#: Seconds between two looks where nobody said that something changed.
_EVERY = 5.0
#: Seconds that a hub may take to read what was sent before it is sent again.
_RESEND_AFTER = 60.0


class Publisher:
    """The thread. `wake` it when the ledger changed; it never holds up who calls.

    Args:
        ledger: its file; the thread opens it for itself.
    """

    def __init__(self, connection: Any, ledger: Path) -> None:
        self._redis, self._path = connection, ledger
        self._changed, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._changed.set()

    def stop(self, grace: float = 5.0) -> None:
        """Ends the thread after one more look, which may take as long as `grace` seconds."""
        self._ending.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(grace)

    def _run(self) -> None:
        try:
            ledger = Ledger(self._path)
        except LedgerError as error:
            log.warning("the hub will not hear from this worker: %s", error)
            return
        outbox = Outbox(self._redis, ledger)
        is_last = False
        while not is_last:
            self._changed.wait(_EVERY)
            self._changed.clear()
            is_last = self._ending.is_set()
            try:
                outbox.send()
            except (redis.RedisError, LedgerError) as error:
                log.debug("the hub is told later: %s", error)
        ledger.close()


class Outbox:
    """Sends what a hub has not read yet.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, connection: Any, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis, self._ledger, self._clock = connection, ledger, clock
        self._source = source_of(ledger)
        self._epoch: bytes | None = None
        #: Up to which revision was sent, and was read when last looked at; since when the latter has not moved.
        self._sent = self._read = 0
        self._moved_at = 0.0

    def send(self) -> int:
        """Sends all that is new; how many shipments that were. Raises RedisError, LedgerError."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(names.RECORDS_EPOCH)
            pipe.hget(names.RECORDS_READ, self._source)
            epoch, told = pipe.execute()
        if epoch is None:
            return 0
        read, now = _number(told), self._clock()
        if epoch != self._epoch or (read < self._sent and read == self._read and now - self._moved_at > _RESEND_AFTER):
            self._epoch, self._sent, self._moved_at = epoch, read, now
        if read != self._read:
            self._read, self._moved_at = read, now
        count = 0
        while (shipment := read_changes(self._ledger, self._sent)) is not None:
            # Not a stream made by us: who reads it must be there to cut it off.
            if self._redis.xadd(names.RECORDS, {"shipment": shipment.model_dump_json()}, nomkstream=True) is None:
                self._epoch = None
                break
            if self._sent == self._read:
                self._moved_at = now  # until now there was nothing to wait for
            self._sent = shipment.upto
            count += 1
        return count


def _number(text: bytes | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0
