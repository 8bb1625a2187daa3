"""The renderer's end of the pipe about memory: hears of pressure, and tells what is resident."""

from __future__ import annotations

import contextlib
import socket

from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.protocol import Pressure, Resident, read_pressure, write_datagram

_LARGEST = 4096


class MemoryLink:
    """Joins a residency to the supervisor. Never waits: what cannot be sent now is overtaken by the next message."""

    def __init__(self, pipe: socket.socket, residency: Residency) -> None:
        pipe.setblocking(False)
        self._pipe, self._residency = pipe, residency
        self._before = Pressure(0)
        residency.listen = self.listen
        residency.on_change = self.tell

    def fileno(self) -> int:
        return self._pipe.fileno()

    def listen(self) -> None:
        """Heeds what was heard since the last time."""
        with contextlib.suppress(OSError):
            while True:
                said = read_pressure(self._pipe.recv(_LARGEST))
                if said != self._before:
                    self._before = said
                    self._residency.press(said.level)

    def tell(self, why: str) -> None:
        """Says what is in memory now."""
        residency = self._residency
        message = Resident(
            stages=tuple((each.model, each.stage, each.size_bytes) for each in residency.loaded()),
            other_bytes=residency.other_bytes,
            loads=residency.counts.by_stage,
            drops=residency.counts.drops_by_stage,
            policy=residency.rule.policy,
            why=why,
        )
        with contextlib.suppress(OSError):
            self._pipe.send(write_datagram(message))
