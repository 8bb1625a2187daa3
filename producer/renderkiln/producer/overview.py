"""What there is: the batches that Redis knows, and what the ledger still knows of older ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import redis

from renderkiln.home.folder import DataFolder
from renderkiln.schema import names
from renderkiln.schema.errors import NotFoundError
from renderkiln.schema.jobs import JobResult


@dataclass(frozen=True)
class BatchRow:
    """A batch as it was submitted. `created_at` is in seconds since 1970."""

    id: str
    name: str
    created_at: float
    num_jobs: int
    num_images: int


def recent_batches(connection: redis.Redis, limit: int = 20) -> list[BatchRow]:
    """The newest batches, newest first."""
    found: Any = connection.zrevrange(names.BATCHES, 0, limit - 1, withscores=True)
    return _rows(connection, found)


def find_batch(connection: redis.Redis, batch: str) -> BatchRow | None:
    """The batch of that name, or None."""
    created_at: Any = connection.zscore(names.BATCHES, batch)
    return None if created_at is None else _rows(connection, [(batch.encode(), created_at)])[0]


def _rows(connection: redis.Redis, found: list[tuple[bytes, float]]) -> list[BatchRow]:
    with connection.pipeline(transaction=False) as pipe:
        for batch, _ in found:
            pipe.hmget(names.batch(batch.decode()), "name", "num_images")
            pipe.zcard(names.batch_jobs(batch.decode()))
        replies = pipe.execute()
    rows = []
    for (batch, created_at), (name, num_images), num_jobs in zip(found, replies[::2], replies[1::2], strict=True):
        text = name.decode(errors="replace") if name else batch.decode()
        rows.append(BatchRow(batch.decode(), text, created_at, num_jobs, int(num_images or 0)))
    return rows


def completed(folder: DataFolder, results: Iterable[JobResult]) -> Iterator[JobResult]:
    """The results, where the ledger speaks for those that Redis has forgotten."""
    for result in results:
        if result.failure is not None and result.failure.kind == NotFoundError.kind:
            yield next(iter(ledger_results(folder, result.job_id)), result)
        else:
            yield result


def ledger_results(folder: DataFolder, what: str) -> list[JobResult]:
    """What this machine's ledger has of a batch or a job; empty where it has none, or there is no ledger."""
    if not folder.ledger.is_file():
        return []
    from renderkiln.home.ledger import Ledger

    ledger = Ledger(folder.ledger)
    try:
        one = ledger.result(what)
        return [one] if one else list(ledger.batch_results(what))
    finally:
        ledger.close()
