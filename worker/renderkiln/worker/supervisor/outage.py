"""Redis away: which errors mean that, and waiting until it is back."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import redis
from redis import exceptions as redis_errors

from .signals import Signals

log = logging.getLogger("renderkiln.supervisor")

#: How a server that is there says that it cannot write just now: by error class, and by word where there is none.
_NOT_NOW = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
)
_NOT_NOW_WORDS = ("MISCONF", "NOREPLICAS", "BUSY ")
_LONGEST_WAIT = 5.0


def is_outage(error: redis.RedisError) -> bool:
    """Whether the same call may well work later: nobody answers, or a server that cannot write for now."""
    if isinstance(error, _NOT_NOW):
        return True
    return isinstance(error, redis.ResponseError) and any(word in str(error) for word in _NOT_NOW_WORDS)


class Backoff:
    """Waits that grow, with some chance in them so that a fleet does not come back all at once."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._next = 0.1

    def reset(self) -> None:
        self._next = 0.1

    def wait(self, what: str, error: Exception) -> None:
        """Says what failed and waits; returns early when a signal comes."""
        log.warning("%s: %s; trying again in %.1f s", what, error, self._next)
        self._signals.sleep(self._next * random.uniform(0.5, 1.0))
        self._next = min(self._next * 2, _LONGEST_WAIT)


def ride_out(
    write: Callable[[], None],
    signals: Signals,
    what: str,
    give_up: Callable[[], bool],
    mend: Callable[[redis.RedisError], bool],
) -> bool:
    """Calls `write` until Redis takes it; False where `give_up` said so first.

    `write` must do no harm when it is called again after an answer was lost.

    Args:
        mend: puts right what stood in the way; whether it did.
    """
    backoff = Backoff(signals)
    while True:
        try:
            write()
            return True
        except redis.WatchError:
            continue  # somebody else was at it just now: look again
        except redis.RedisError as error:
            if mend(error):
                continue
            if not is_outage(error):
                raise
            if give_up():
                log.warning("stopping while Redis is away: %s", what)
                return False
            backoff.wait(f"Redis is away ({what})", error)
