"""What stands in a worker's way, said once in the log when it begins and when it is over, and announced meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("renderkiln.supervisor")


class Pause:
    """A worker's pause, if it makes one. Not shared between threads."""

    def __init__(self) -> None:
        #: Why the worker pauses, as a sentence; empty: it does not.
        self.reason = ""
        self._what = ""
        #: Called when it begins, and when it is over.
        self.on_change: Callable[[], None] = lambda: None

    def because(self, what: str, reason: str) -> None:
        """Begins, or goes on.

        Args:
            what: is in the way. For as long as that is the same, nothing is said anew.
        """
        if what == self._what:
            return
        self._what, self.reason = what, reason
        log.warning("paused: %s", reason)
        self.on_change()

    def over(self, what: str) -> None:
        """Ends, if this is what was in the way."""
        if what != self._what:
            return
        log.info("going on; it is over that %s", self.reason)
        self._what = self.reason = ""
        self.on_change()
