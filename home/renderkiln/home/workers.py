"""The workers that are alive, as they announce themselves in Redis."""

from __future__ import annotations

from typing import Any

import redis
from pydantic import ValidationError

from renderkiln.schema import names
from renderkiln.schema.limits import MAX_ANNOUNCEMENT, MAX_MEMBERS
from renderkiln.schema.workers import WorkerInfo

from .reading import is_wrong_type, read_strings
from .replies import ReplyTooLargeError


def live_workers(connection: redis.Redis) -> list[WorkerInfo]:
    """The workers that have given a sign of life within their lease, by name."""
    try:
        listed: Any = connection.zrevrange(names.WORKERS, 0, MAX_MEMBERS - 1)
    except (redis.ResponseError, ReplyTooLargeError) as error:
        if not is_wrong_type(error) and not isinstance(error, ReplyTooLargeError):
            raise
        return []  # somebody wrote something else there; the next worker to start puts it right
    keys = [names.worker(name.decode(errors="replace")) for name in sorted(listed)]
    found = []
    for text in read_strings(connection, keys, MAX_ANNOUNCEMENT):
        try:
            if text is not None:
                found.append(WorkerInfo.model_validate_json(text))
        except ValidationError:
            continue  # announced by a later version: it still works, we just cannot say what it has
    return found
