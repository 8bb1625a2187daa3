"""What is refused of all that stands in Redis: counted, said in the log, and moved out of the way where need be."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import redis

from renderkiln.schema import names
from renderkiln.schema.workers import Refused

log = logging.getLogger("renderkiln.supervisor")

#: Seconds between two lines in the log about messages that are no command: they cost their sender nothing.
_SAID_EVERY = 60.0


class Refusals:
    """Counts for one worker; its thread that hears commands counts, too."""

    def __init__(self) -> None:
        self._jobs = self._keys = self._messages = 0
        self._say_next = 0.0

    @property
    def counts(self) -> Refused:
        return Refused(jobs=self._jobs, keys=self._keys, messages=self._messages)

    def job(self, job_id: str, queue: str, why: str) -> None:
        """A job, or the id of one, was refused."""
        self._jobs += 1
        log.warning("job %s in %s is refused (%d so far): %s", job_id, queue, self._jobs, why)

    def message(self, why: str) -> None:
        """A message on the worker's channel was no command."""
        self._messages += 1
        if time.monotonic() >= self._say_next:
            self._say_next = time.monotonic() + _SAID_EVERY
            log.warning("a message to this worker is refused (%d so far): %s", self._messages, why)

    def make_way(self, connection: Any, wanted: Mapping[str, str]) -> bool:
        """Moves keys out of the way that are of another type than what is to stand there; whether there were any.

        They are kept for a week, under `names.set_aside`.

        Args:
            wanted: types by key, as TYPE names them.
        """
        moved = False
        for key, kind in wanted.items():
            found = connection.type(key).decode()
            if found in (kind, "none"):
                continue
            aside = names.set_aside(key)
            try:
                with connection.pipeline() as pipe:
                    pipe.rename(key, aside)
                    pipe.expire(aside, names.RESULT_TTL)
                    pipe.execute()
            except redis.ResponseError as error:  # it is gone by now, or we may not
                log.warning("the key %s is a %s and no %s, and cannot be moved: %s", key, found, kind, error)
                continue
            moved = True
            self._keys += 1
            log.warning("the key %s was a %s and no %s: it was moved to %s", key, found, kind, aside)
        return moved
