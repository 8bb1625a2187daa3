"""What there is: the batches that Redis knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import redis

from renderkiln.home.reading import is_wrong_type, read_hashes
from renderkiln.home.replies import ReplyTooLargeError
from renderkiln.schema import names
from renderkiln.schema.limits import MAX_FIELD

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
#: Seconds since 1970: the end of the year 9998, the last that every calendar here has.
_LAST = 253_370_764_800.0


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
    try:
        found: Any = connection.zrevrange(names.BATCHES, 0, limit - 1, withscores=True)
    except (redis.ResponseError, ReplyTooLargeError) as error:
        if not is_wrong_type(error) and not isinstance(error, ReplyTooLargeError):
            raise
        return []  # somebody wrote something else there
    return _rows(connection, [(name.decode(errors="replace"), created_at) for name, created_at in found])


def find_batch(connection: redis.Redis, batch: str) -> BatchRow | None:
    """The batch of that name, or None."""
    created_at: Any = connection.zscore(names.BATCHES, batch)
    return None if created_at is None else next(iter(_rows(connection, [(batch, created_at)])), None)


def _rows(connection: redis.Redis, found: list[tuple[str, float]]) -> list[BatchRow]:
    """The batches among these; what is no batch's name, or was made at no time, nobody here has submitted."""
    found = [(batch, at) for batch, at in found if _NAME.fullmatch(batch) and 0 <= at <= _LAST]
    hashes = read_hashes(connection, [names.batch(batch) for batch, _ in found], "name", "num_images")
    with connection.pipeline(transaction=False) as pipe:
        for batch, _ in found:
            pipe.zcard(names.batch_jobs(batch))
        counts = pipe.execute(raise_on_error=False)
    rows = []
    for (batch, created_at), fields, num_jobs in zip(found, hashes, counts, strict=True):
        name, num_images = fields or (None, None)
        text = name[:MAX_FIELD].decode(errors="replace") if name else batch
        images = int(num_images) if num_images and num_images.isdigit() and len(num_images) < 10 else 0
        rows.append(BatchRow(batch, text, created_at, num_jobs if isinstance(num_jobs, int) else 0, images))
    return rows
