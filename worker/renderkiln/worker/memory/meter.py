"""Measures the process that it runs in: what it holds, and the most that it held."""

from __future__ import annotations

import os

from .process import peak_bytes, reset_peak, resident_bytes


class Meter:
    """What this process holds. Where the system's own peak can be reset, `end` is exact; elsewhere it is what is held
    when it is called, and misses what was given back before.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._highest = 0

    def now(self) -> int:
        """Bytes that this process holds."""
        return resident_bytes(self._pid) or 0

    def begin(self) -> int:
        """Begins to watch for a peak; gives what is held now."""
        self._fold()
        reset_peak(self._pid)
        return self.now()

    def end(self) -> int:
        """The most that was held since `begin`."""
        peak = max(peak_bytes(self._pid) or 0, self.now()) if _CAN_RESET else self.now()
        self._highest = max(self._highest, peak)
        return peak

    def take_highest(self) -> int:
        """The most that was held since this was asked last."""
        self._fold()
        highest, self._highest = self._highest, 0
        reset_peak(self._pid)
        return highest

    def _fold(self) -> None:
        self._highest = max(self._highest, peak_bytes(self._pid) or 0 if _CAN_RESET else 0, self.now())


_CAN_RESET = reset_peak(os.getpid())
