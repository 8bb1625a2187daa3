"""Stores that do not answer: since when, so that patience with one is had once, and not again for each picture."""

from __future__ import annotations

import time
from collections.abc import Callable

from renderkiln.home.store import Store
from renderkiln.schema.errors import StoreError


class Away:
    """Which stores are away. Told by whoever uses a store, in whichever thread.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By their URLs: when it first failed, since it last answered; and how.
        self._failing: dict[str, tuple[float, str]] = {}

    def failed(self, url: str, why: object) -> None:
        self._failing.setdefault(url, (self._clock(), str(why)))

    def answered(self, url: str) -> None:
        self._failing.pop(url, None)

    def asked(self, store: Store) -> bool:
        """Writes something small to a store that failed; whether that works, so that it is there after all."""
        try:
            store.check()
        except StoreError as error:
            if not error.is_full:
                self.failed(store.url, error)
            return False
        self.answered(store.url)
        return True

    def seconds(self, url: str) -> float | None:
        """For how long a store has been away; None: it is not known to be."""
        failing = self._failing.get(url)
        return None if failing is None else self._clock() - failing[0]

    def why(self, url: str) -> str:
        """What it said when it first failed; empty where it did not."""
        return self._failing.get(url, (0.0, ""))[1]
