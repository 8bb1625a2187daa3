"""Watches memory from a thread of the supervisor: the system's, and the renderer's from outside.

Every second it looks how short of memory the system is, and tells the renderer when that has changed; it hears from
the renderer what is resident; and it writes down both, so that a night can be looked at (`renderkiln report`). It owns
its end of the pipe about memory and its own connection to the ledger: it waits for nobody, and nobody waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import MemoryRecords, MemorySample
from renderkiln.schema.errors import LedgerError
from renderkiln.schema.workers import MemoryHeld, StageHeld
from renderkiln.worker.memory.pressure import Level, Probe, Sample, Thresholds, Verdict, Watch
from renderkiln.worker.memory.process import resident_bytes
from renderkiln.worker.protocol import Pressure, Resident, read_resident, write_datagram

log = logging.getLogger("renderkiln.supervisor")

#: Seconds between two looks.
_EVERY = 1.0
#: Seconds between two writes to the ledger.
_WRITE_EVERY = 10.0
#: Seconds after which a sample is written though nothing has changed, and the part of memory that is no change.
_AT_LEAST_EVERY, _NO_CHANGE = 10.0, 0.02
#: Samples are kept for a week, and those that are older removed now and then.
_KEPT, _REMOVE_EVERY = 7 * 86400.0, 86400.0
#: A message of the renderer is shorter.
_LARGEST = 65536

_DOES = {
    Level.WARN: "what is idle is dropped, and less is kept",
    Level.CRITICAL: "only the stage at work is kept",
    Level.CALM: "as much is kept again as the settings allow",
}


@dataclass
class View:
    """What the keeper knows, for whoever shows it."""

    resident: Resident | None = None
    process_bytes: int = 0
    sample: Sample | None = None
    verdict: Verdict = field(default_factory=lambda: Verdict(Level.CALM, ""))


class MemoryKeeper:
    """Starts with `start`, ends with `stop`; the other methods are for the supervisor's main thread.

    Args:
        heeds_pressure: whether the renderer is to give way to others, and is told of pressure.
        budget_bytes: what it may take; None where it heeds no budget.
        on_view: called from the keeper's thread after each look and each change.
    """

    def __init__(
        self,
        worker: str,
        ledger: Path,
        thresholds: Thresholds,
        *,
        heeds_pressure: bool,
        budget_bytes: int | None = None,
        on_view: Callable[[View], None] = lambda view: None,
        probe: Probe | None = None,
    ) -> None:
        self._worker, self._ledger, self._heeds_pressure = worker, ledger, heeds_pressure
        self._budget = budget_bytes
        self._watch, self._probe = Watch(thresholds), probe or Probe()
        self._on_view = on_view
        self._lock = threading.Lock()
        self._view = View()
        self._pid: int | None = None
        self._pipe: socket.socket | None = None
        self._peak = 0
        self._empty = 0
        self._events: list[str] = []
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="memory-keeper", daemon=True)
        self._written: list[MemorySample] = []
        self._last: MemorySample | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, after it wrote what it has. A second time does nothing."""
        if self._stopping:
            return
        self._stopping = True
        self._rouse()
        self._thread.join(timeout=10)
        for each in (self._wake, self._woken):
            each.close()

    def renderer_started(self, pid: int, pipe: socket.socket) -> None:
        """There is a new renderer, with this end of its pipe about memory."""
        pipe.setblocking(False)
        with self._lock:
            if self._pipe is not None:
                self._pipe.close()
            self._pid, self._pipe = pid, pipe
            self._view.resident, self._empty = None, 0
            self._tell(self._view.verdict.level)
        self._rouse()

    def event(self, said: str) -> None:
        """Writes down what has happened, in plain words."""
        with self._lock:
            self._events.append(said)
        self._rouse()

    def take_peak(self) -> int:
        """The most that the renderer was seen to hold since this was asked last, in bytes; short peaks are missed."""
        with self._lock:
            self._look_at_renderer()
            peak, self._peak = self._peak, self._view.process_bytes
            return peak

    def holding(self) -> tuple[int, int, int]:
        """What the renderer holds now, of that the weights of its stages, and what it held when it was empty; bytes."""
        with self._lock:
            self._look_at_renderer()
            stages = self._view.resident.stages if self._view.resident is not None else ()
            return self._view.process_bytes, sum(size for _, _, size in stages), self._empty

    def announcement(self) -> MemoryHeld | None:
        """What others are told of it; None as long as the renderer has said nothing."""
        with self._lock:
            resident = self._view.resident
            if resident is None:
                return None
            return MemoryHeld(
                policy=resident.policy,
                held_bytes=self._view.process_bytes,
                budget_bytes=self._budget,
                stages=tuple(
                    StageHeld(model=model, stage=stage, size_bytes=size) for model, stage, size in resident.stages
                ),
                pressure=self._view.verdict.level.word,
            )

    def _rouse(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has not even seen the last ones
            self._wake.send(b"x")

    # In the thread.

    def _run(self) -> None:
        try:
            self._keep()
        except Exception:  # rendering goes on without it
            log.exception("memory is not watched any more")

    def _keep(self) -> None:
        records: MemoryRecords | None = None
        ledger: Ledger | None = None
        try:
            ledger = Ledger(self._ledger)
            records = MemoryRecords(ledger)
        except LedgerError as error:
            log.warning("memory is watched, and not written down: %s", error)
        next_look = next_write = next_removal = 0.0
        while not self._stopping:
            self._listen(max(0.0, next_look - time.monotonic()))
            now = time.monotonic()
            if now >= next_look:
                next_look = now + _EVERY
                self._look()
            with self._lock:
                self._note()
                view = self._view
            self._on_view(view)
            if now >= next_write and records is not None:
                next_write = now + _WRITE_EVERY
                self._write(records)
            if now >= next_removal and records is not None:
                next_removal = now + _REMOVE_EVERY
                with contextlib.suppress(LedgerError):  # there is another day
                    records.drop_samples(time.time() - _KEPT)
        if records is not None:
            with self._lock:
                self._note(is_last=True)
            self._write(records)
        if ledger is not None:
            ledger.close()
        if self._pipe is not None:
            self._pipe.close()

    def _listen(self, timeout: float) -> None:
        """Hears what the renderer says, for so many seconds at most."""
        with self._lock:
            pipe = self._pipe
        try:
            ready = wait([each for each in (pipe, self._woken) if each is not None], timeout)
        except (OSError, ValueError):  # closed just now: there is a new one
            return
        if self._woken in ready:
            self._woken.recv(_LARGEST)
        if pipe is None or pipe not in ready:
            return
        with self._lock:
            try:
                while pipe is self._pipe:
                    said = read_resident(pipe.recv(_LARGEST))
                    self._view.resident = said
                    self._empty = self._empty or said.other_bytes
                    self._look_at_renderer()
                    self._note()
            except OSError:  # nothing more to hear
                pass

    def _look(self) -> None:
        sample = self._probe.read()
        verdict = self._watch.feed(sample)
        with self._lock:
            before, self._view.sample, self._view.verdict = self._view.verdict, sample, verdict
            self._look_at_renderer()
            if verdict.level == before.level:
                return
            self._tell(verdict.level)
            does = f": {_DOES[verdict.level]}" if self._heeds_pressure else ""
            said = f"memory pressure is {verdict.level.word} ({verdict.why}){does}"
            self._events.append(said)
        log.log(logging.WARNING if verdict.level > before.level else logging.INFO, "%s", said)

    def _tell(self, level: Level) -> None:
        if self._pipe is None or not self._heeds_pressure:
            return
        try:
            self._pipe.send(write_datagram(Pressure(int(level))))
        except OSError as error:  # its end, or its queue is full, which it will empty and hear the next word
            log.debug("the renderer does not hear of pressure: %s", error)

    def _look_at_renderer(self) -> None:
        self._view.process_bytes = (resident_bytes(self._pid) or 0) if self._pid is not None else 0
        self._peak = max(self._peak, self._view.process_bytes)

    def _note(self, *, is_last: bool = False) -> None:
        """Puts down a sample where something has changed; and one at the end, which all attempts come before."""
        view = self._view
        if view.sample is None:
            return
        sample = MemorySample(
            at=time.time(),
            process_bytes=view.process_bytes,
            available_bytes=view.sample.available_bytes,
            level=view.verdict.level.word,
            stages=view.resident.stages if view.resident is not None else (),
            event="; ".join(self._events) or None,
            budget_bytes=self._budget,
        )
        if self._last is not None and not is_last and not _differs(self._last, sample):
            return
        self._events.clear()
        self._last = sample
        self._written.append(sample)

    def _write(self, records: MemoryRecords) -> None:
        with self._lock:
            samples, self._written = self._written, []
        if not samples:
            return
        try:
            records.add_samples(self._worker, samples)
        except LedgerError as error:
            log.debug("%d samples of memory are lost: %s", len(samples), error)


def _differs(before: MemorySample, now: MemorySample) -> bool:
    if now.event or now.level != before.level or now.stages != before.stages:
        return True
    changed = abs(now.process_bytes - before.process_bytes)
    return changed > _NO_CHANGE * max(1, before.process_bytes) or now.at - before.at >= _AT_LEAST_EVERY
