"""Saying in Redis that a worker lives, and what it has; and taking that back."""

from __future__ import annotations

import time
from typing import Any

from renderkiln.schema import names
from renderkiln.schema.workers import WorkerInfo


def announce(connection: Any, info: WorkerInfo, lease: float) -> None:
    """Announces a worker for as long as its lease, seconds; forgets those that died without a word."""
    now = time.time()
    with connection.pipeline(transaction=False) as pipe:
        pipe.set(names.worker(info.name), info.model_dump_json(), px=int(lease * 1000))
        pipe.zadd(names.WORKERS, {info.name: now})
        pipe.zremrangebyscore(names.WORKERS, 0, now - lease)
        pipe.execute()


def withdraw(connection: Any, name: str) -> None:
    """Takes an announcement back. Without, it would expire by itself."""
    connection.delete(names.worker(name))
    connection.zrem(names.WORKERS, name)
