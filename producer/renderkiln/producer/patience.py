"""How long whoever waits for jobs puts up with a Redis that is away: a restart, a reboot, a Mac that sleeps."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import redis

from renderkiln.schema.errors import ServerUnavailableError, WaitTimeoutError

Answer = TypeVar("Answer")

#: Seconds without an answer after which waiting ends in an error. A machine that reboots is back by then.
PATIENCE = 120.0
#: What redis-py raises, its own few retries used up, for a server that is away or still reads its data.
AWAY = (redis.ConnectionError, redis.TimeoutError)
#: Of these, what no patience helps against.
_REFUSED = (redis.AuthenticationError, redis.exceptions.AuthorizationError)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class Patience:
    """Knows since when Redis has been away.

    Args:
        deadline: of time.monotonic; when it has passed, patience ends earlier.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self._since: float | None = None

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer, however often Redis has to be asked for it.

        Raises:
            ServerUnavailableError: Redis refuses us, or did not answer for PATIENCE seconds.
            WaitTimeoutError: the deadline passed while it was away.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                answer = question()
            except AWAY as error:
                self.missed(error)
                time.sleep(self._at_most(pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                self.answered()
                return answer

    def missed(self, error: redis.RedisError) -> None:
        """Notes that Redis did not answer. Raises like `ask` once that is too much."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if isinstance(error, _REFUSED):
            raise ServerUnavailableError(f"Redis refuses us: {error}. Check user and password.") from error
        if self._deadline is not None and now >= self._deadline:
            raise WaitTimeoutError(f"Redis was away when the time to wait was up: {error}") from error
        if now - self._since >= PATIENCE:
            raise ServerUnavailableError(
                f"Redis has not answered for {now - self._since:.0f} s: {error}. Is it up? (The embedded one: "
                "`renderkiln server start`.) What is queued stays queued; the same again goes on when it is back."
            ) from error

    def answered(self) -> None:
        """Notes that it did."""
        self._since = None

    def _at_most(self, pause: float) -> float:
        return pause if self._deadline is None else max(0.0, min(pause, self._deadline - time.monotonic()))
