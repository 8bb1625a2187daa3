"""What one worker leaves of an unfinished job for the next: which pictures of it are recorded already.

Each Mac has a ledger of its own. When a worker dies, or gives a job back, whoever takes it next may be another Mac,
which would render again what lies in the store that both write to. So each recorded picture is noted in Redis, too,
until its job is finished. A note may be lost: then the picture is rendered again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import redis
from pydantic import ValidationError

from renderkiln.schema import names
from renderkiln.schema.jobs import ImageResult, Job

#: Bytes of a note that are looked at; one of the longest addresses stays far below.
_MAX_NOTE = 1 << 14
#: Notes that are asked for at once.
_CHUNK = 500


def leave(pipe: Any, job: Job, image: ImageResult) -> None:
    """Adds to a pipeline the note that a picture of a job is recorded."""
    pipe.hset(names.images(job.id), str(image.k), image.model_dump_json())
    pipe.expire(names.images(job.id), names.RESULT_TTL)


def left_by_others(connection: Any, job: Job, missing: Sequence[int]) -> Iterator[ImageResult]:
    """What is noted of these images of a job; nothing where Redis is away, or what it has is not a note of this job.

    Whether the files are there is not looked at.
    """
    for start in range(0, len(missing), _CHUNK):
        asked = missing[start : start + _CHUNK]
        try:
            notes = connection.hmget(names.images(job.id), [str(k) for k in asked])
        except redis.RedisError:
            return
        for k, note in zip(asked, notes, strict=True):
            if note is None or len(note) > _MAX_NOTE:
                continue
            try:
                image = ImageResult.model_validate_json(note)
            except ValidationError:
                continue
            spec = job.image_spec(k)
            if (image.k, image.digest, image.seed) == (k, spec.digest, spec.seed):
                yield image.model_copy(update={"index": job.index + k})
