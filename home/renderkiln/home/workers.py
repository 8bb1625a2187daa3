"""The workers that are alive, as they announce themselves in Redis."""

from __future__ import annotations

from typing import Any

import redis
from pydantic import ValidationError

from renderkiln.schema import names
from renderkiln.schema.workers import WorkerInfo


def live_workers(connection: redis.Redis) -> list[WorkerInfo]:
    """The workers that have given a sign of life within their lease, by name."""
    listed: Any = connection.zrange(names.WORKERS, 0, -1)
    if not listed:
        return []
    found = []
    for text in connection.mget([names.worker(name.decode(errors="replace")) for name in sorted(listed)]):
        try:
            if text is not None:
                found.append(WorkerInfo.model_validate_json(text))
        except ValidationError:
            continue  # announced by a later version: it still works, we just cannot say what it has
    return found
