"""The hub: takes over what workers' ledgers tell, hears of what is queued, and repairs, in one loop.

Everything that it writes is written before it is acknowledged, so a hub that is killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
from pydantic import ValidationError

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.processes import is_no_more
from renderkiln.home.replies import ReplyTooLargeError
from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError, LedgerError, ServerUnavailableError, WorkerUnavailableError
from renderkiln.schema.events import Ended, Submitted, parse_event
from renderkiln.schema.records import Shipment, parse_shipment

from .pictures import keep_pictures
from .projection import position_of, positions, project, set_position
from .repair import look, mend, take_from_redis

log = logging.getLogger("renderkiln.hub")

#: Seconds without a sign of life after which another hub may take this one's place.
_LEASE = 30.0
#: Milliseconds that one look at the streams waits for news.
_BLOCK = 1000
#: A repair may take this part of the hub's time at most.
_SHARE = 0.05
_LONGEST_WAIT = 5.0
#: Entries of either stream that are read at once, where they fit one reply.
_SHIPMENTS, _EVENTS = 50, 1000


@dataclass
class Counts:
    """What a hub has done since it was started."""

    shipments: int = 0
    unreadable: int = 0
    queued_again: int = 0
    put_back: int = 0
    taken_over: int = 0


class Hub:
    """One hub. `run` it, or `step` by hand.

    Args:
        repair_every: seconds between two repairs.
        settling: seconds in which workers notice a new stream, and tell what no hub has read yet.
    """

    def __init__(
        self, connection: redis.Redis, folder: DataFolder, *, repair_every: float = 60.0, settling: float = 10.0
    ) -> None:
        self._redis: Any = connection
        self._folder = folder
        self._repair_every, self._settling = repair_every, settling
        self._repair_at = 0.0
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._seen_at = 0.0
        #: Whether entries may be left that an earlier hub was handed and did not finish.
        self._has_left_overs = True
        self.counts = Counts()
        self._ledger = Ledger(folder.ensure().hub_ledger, strict=False)

    def run(self, stop: threading.Event) -> None:
        """Works until told to stop; waits for a Redis that is away, and for a ledger that cannot be written.

        Raises:
            WorkerUnavailableError: another hub is up.
        """
        wait = 0.1
        while not stop.is_set():
            try:
                self.step()
                wait = 0.1
            except (redis.RedisError, ServerUnavailableError, LedgerError) as error:
                log.warning("%s; trying again in %.1f s", error, wait)
                stop.wait(wait * random.uniform(0.5, 1.0))
                wait = min(wait * 2, _LONGEST_WAIT)

    def close(self) -> None:
        with contextlib.suppress(redis.RedisError):  # it would expire by itself
            if self._redis.get(names.HUB) == self._name.encode():
                self._redis.delete(names.HUB)
        self._ledger.close()

    def step(self, block: int = _BLOCK) -> None:
        """One round: a sign of life, what is new in both streams, and a repair where one is due.

        Args:
            block: milliseconds to wait for news.
        """
        self._announce()
        self._begin()
        took = self._take_shipments(0 if self._repair_due() else block)
        heard = self._hear_events()
        if self._repair_due() and not took and not heard:
            began = time.monotonic()
            self.repair()
            self._repair_at = time.monotonic() + max(self._repair_every, (time.monotonic() - began) / _SHARE)

    def repair(self) -> None:
        """Compares the ledger with Redis and mends the difference; see `repair`."""
        found = look(self._ledger, self._redis)
        if not found.count:
            return
        mended = mend(self._ledger, self._redis, self._folder, found)
        self.counts.queued_again += mended.queued_again
        self.counts.put_back += mended.put_back
        self.counts.taken_over += mended.taken_over
        log.warning(
            "repaired: %d lost jobs queued again, %d stuck jobs put back, %d jobs taken over from Redis",
            mended.queued_again,
            mended.put_back,
            mended.taken_over,
        )
        for job_id, why in mended.failed:
            log.warning("job %s cannot be queued again: %s", job_id, why)

    def _repair_due(self) -> bool:
        return time.monotonic() >= self._repair_at

    def _announce(self) -> None:
        now = time.monotonic()
        if now < self._seen_at + _LEASE / 3:
            return
        lease = int(_LEASE * 1000)
        if not self._redis.set(names.HUB, self._name, nx=True, px=lease):
            other = (self._redis.get(names.HUB) or b"").decode(errors="replace")
            if other != self._name and _is_gone(other):
                self._redis.set(names.HUB, self._name, px=lease)
            elif other != self._name:
                raise WorkerUnavailableError(
                    f"a hub is up already ({other}), or died less than {_LEASE:.0f} s ago. One is enough for a fleet."
                )
            self._redis.pexpire(names.HUB, lease)
        self._seen_at = now

    def _begin(self) -> None:
        """Makes the stream where there is none: at the first start, and after Redis was emptied."""
        if self._redis.exists(names.RECORDS_EPOCH, names.RECORDS) == 2:
            return
        with contextlib.suppress(redis.ResponseError):  # BUSYGROUP: it is there
            self._redis.xgroup_create(names.RECORDS, names.RECORDS_GROUP, id="0", mkstream=True)
        with self._ledger.reading() as session:
            read = {source: position for source, position in positions(session) if source != names.EVENTS}
        with self._redis.pipeline() as pipe:
            pipe.delete(names.RECORDS_READ)
            if read:
                pipe.hset(names.RECORDS_READ, mapping=read)
            pipe.set(names.RECORDS_EPOCH, secrets.token_hex(16))
            pipe.execute()
        # Not at once: what workers ended and could not tell yet would be queued again.
        self._repair_at = time.monotonic() + self._settling

    # What workers' ledgers tell.

    def _take_shipments(self, block: int) -> bool:
        """Takes over what is there; whether there was anything."""
        try:
            entries = self._shipments_at_hand(block)
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._redis.delete(names.RECORDS_EPOCH)  # somebody removed the group: begin anew
            return False
        except ReplyTooLargeError:
            self._drop_first_shipment()
            return True
        if not entries:
            was_old, self._has_left_overs = self._has_left_overs, False
            return was_old
        shipments = [each for each in (self._shipment(fields or {}) for _, fields in entries) if each is not None]
        read = project(self._ledger, shipments)
        ids = [identity for identity, _ in entries]
        with self._redis.pipeline() as pipe:
            if read:
                pipe.hset(names.RECORDS_READ, mapping={source: str(revision) for source, revision in read.items()})
            pipe.xack(names.RECORDS, names.RECORDS_GROUP, *ids)
            pipe.xdel(names.RECORDS, *ids)
            pipe.execute()
        self.counts.shipments += len(shipments)
        return True

    def _shipments_at_hand(self, block: int) -> list[Any]:
        """Entries that were handed to this hub, or one before it, and are not acknowledged.

        Raises:
            ReplyTooLargeError: the first alone is more than one reply may hold.
        """

        def read(last: str, count: int, wait: int | None) -> list[Any]:
            streams = {names.RECORDS: last}
            reply = self._redis.xreadgroup(names.RECORDS_GROUP, "hub", streams, count=count, block=wait)
            return reply[0][1] if reply else []

        if not self._has_left_overs:
            try:
                return read(">", _SHIPMENTS, block or None)
            except ReplyTooLargeError:
                self._has_left_overs = True  # Redis has handed them over, though they were not seen
        return _as_many_as_fit(lambda count: read("0", count, None), _SHIPMENTS)

    def _drop_first_shipment(self) -> None:
        """Without a look at it: it is larger than any that a worker sends."""
        for entry in self._redis.xpending_range(names.RECORDS, names.RECORDS_GROUP, "-", "+", 1, "hub"):
            identity = entry["message_id"]
            with self._redis.pipeline() as pipe:
                pipe.xack(names.RECORDS, names.RECORDS_GROUP, identity)
                pipe.xdel(names.RECORDS, identity)
                pipe.execute()
            self.counts.unreadable += 1
            log.warning("entry %s of %s is dropped: it is too large", identity.decode(), names.RECORDS)

    def _shipment(self, fields: dict[bytes, bytes]) -> Shipment | None:
        try:
            return parse_shipment(fields.get(b"shipment", b""))
        except InvalidSpecError as error:
            # Its ledger still has what it says, and will send it again.
            self.counts.unreadable += 1
            log.warning("an entry of %s is dropped: %s", names.RECORDS, error)
            return None

    # What is queued, and what ends without a worker.

    def _hear_events(self) -> bool:
        """Takes over jobs that events tell of; whether there were any events."""
        with self._ledger.reading() as session:
            last = position_of(session, names.EVENTS) or "0-0"
        try:
            reply = _as_many_as_fit(lambda count: self._redis.xread({names.EVENTS: last}, count=count), _EVENTS)
        except ReplyTooLargeError:
            self._pass_over_events()
            return True
        if not reply:
            return False
        entries = reply[0][1]
        told: dict[str, None] = {}
        for _, fields in entries:
            told.update(dict.fromkeys(_jobs_of((fields or {}).get(b"event", b""))))
        if told:
            take_from_redis(self._ledger, self._redis, list(told))
            keep_pictures(self._ledger, self._redis, self._folder, list(told))
        with self._ledger.writing() as session:
            set_position(session, names.EVENTS, entries[-1][0].decode())
        return True

    def _pass_over_events(self) -> None:
        """Goes on behind all that are there, of which the first is too large; a repair finds what they told of."""
        end = self._redis.xadd(names.EVENTS, {"event": ""})  # nobody reads it: it tells where the stream ends
        with self._ledger.writing() as session:
            set_position(session, names.EVENTS, end.decode())
        self._repair_at = 0.0
        self.counts.unreadable += 1
        log.warning("entries of %s before %s are passed over: one is too large", names.EVENTS, end.decode())


def _as_many_as_fit(read: Callable[[int], list[Any]], most: int) -> list[Any]:
    """What `read` gives when asked for the most entries that one reply can hold.

    Raises:
        ReplyTooLargeError: one alone is too large.
    """
    while True:
        try:
            return read(most)
        except ReplyTooLargeError:
            if most == 1:
                raise
            most = max(1, most // 8)


def _is_gone(hub: str) -> bool:
    """Whether a hub of this name was a process of this machine that is no more, such as one before a restart."""
    host, _, rest = hub.rpartition("-")[0].rpartition("-")
    if host != socket.gethostname() or not rest.isdigit():
        return False
    return int(rest) == os.getpid() or is_no_more(int(rest))  # in a container each is process 1


def _jobs_of(event: bytes) -> tuple[str, ...]:
    """The jobs that an event tells of and no worker's ledger does: those queued, and those ended while they waited."""
    try:
        found = parse_event(event)
    except ValidationError:
        return ()
    if isinstance(found, Submitted):
        return found.jobs
    if isinstance(found, Ended) and not found.result.worker:
        return (found.result.job_id,)
    return ()
