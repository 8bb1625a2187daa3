"""How long a renderer that was told to stop may take to hear of it: as long as it has been seen to be silent."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

#: Seconds: the least that it is given, and the most, which is also what one gets that has not said anything yet.
LEAST, GRACE = 2.0, 15.0
#: Silences that count. With a stage loaded for each image, a load is among so many steps.
RECENT = 64


def grace_after(silences: Iterable[float]) -> float:
    """Seconds to give a renderer between whose messages there were these; none yet: `GRACE`.

    It hears of a cancel between two steps, or after a load. So one that is silent for longer than ever hangs.
    """
    longest = max(silences, default=GRACE)
    return min(GRACE, max(LEAST, longest))


class Silences:
    """The recent silences of one renderer, as its supervisor waited through them.

    Only waiting counts: a supervisor that is busy elsewhere does not make its renderer a slow one.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._at_hand = 0.0

    @property
    def grace(self) -> float:
        return grace_after(self._recent)

    def waited(self, seconds: float) -> None:
        """So long was waited, and nothing came."""
        self._at_hand += seconds

    def heard(self, seconds: float) -> None:
        """A message came after so long."""
        self._recent.append(self._at_hand + seconds)
        self._at_hand = 0.0

    def asked(self) -> None:
        """A new order was sent: before it, there was nothing to say."""
        self._at_hand = 0.0

    def restarted(self) -> None:
        """Another process: what was seen of the one before says little."""
        self._recent.clear()
        self._at_hand = 0.0
