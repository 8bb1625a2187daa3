"""Waiting until anything happens in the fleet, instead of asking every queue again and again."""

from __future__ import annotations

from typing import Any

from renderkiln.schema import names


class Listener:
    """Hears the durable events. Submitting writes one in the same MULTI as its jobs."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._last = "$"

    def wait(self, seconds: float) -> None:
        """Returns when something has happened since the last call, or so many seconds have passed."""
        reply = self._connection.xread({names.EVENTS: self._last}, count=100, block=int(seconds * 1000))
        if reply:
            self._last = reply[0][1][-1][0].decode()
        elif self._last == "$":
            # From here on by id: an event between two waits on "$" would go unheard.
            newest = self._connection.xrevrange(names.EVENTS, count=1)
            self._last = newest[0][0].decode() if newest else "0-0"
