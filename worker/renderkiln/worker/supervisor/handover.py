"""What one worker leaves of an unfinished job for the next: pictures that lie in the store already.

Each Mac has a ledger of its own. When a worker dies, or gives a job back, whoever takes it next may be another Mac,
which would render again what lies in the store that both write to. So each recorded picture is noted in Redis, too,
until its job is finished (`home/left_pictures`); and of a job that somebody had begun, the store is asked for what
comes next: a worker may have died between a file and its row, or before its note. What is not found is rendered again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from pydantic import ValidationError

from renderkiln.home.pictures.naming import picture_name
from renderkiln.home.pictures.read import read_metadata
from renderkiln.home.store import Store
from renderkiln.schema import names
from renderkiln.schema.errors import ImageInputError
from renderkiln.schema.jobs import ImageResult, Job
from renderkiln.schema.limits import MAX_NOTE

#: Notes that are asked for at once.
_CHUNK = 500


def left_by_others(
    connection: Any, resumes: bool, job: Job, store: Store, missing: Sequence[int]
) -> Iterator[ImageResult]:
    """What is left of these images of a job; nothing is noted where Redis is away, or has what is no note of the job.

    Args:
        resumes: whether somebody had begun the job before.
        missing: numbers of images, in order.

    Raises:
        StoreError: it cannot be seen what lies in the store.
    """
    left = set(missing)
    for image in _noted(connection, job, missing):
        left.discard(image.k)
        yield image
    if not resumes or job.again:  # an earlier job of the same pictures may have left files of the same names
        return
    for k in sorted(left):
        image_there = _unrecorded(job, store, k)
        if image_there is None:  # pictures are made in order
            return
        yield image_there


def _noted(connection: Any, job: Job, missing: Sequence[int]) -> Iterator[ImageResult]:
    """What the notes say. Whether the files are there is not looked at."""
    for start in range(0, len(missing), _CHUNK):
        asked = missing[start : start + _CHUNK]
        try:
            notes = connection.hmget(names.images(job.id), [str(k) for k in asked])
        except redis.RedisError:
            return
        for k, note in zip(asked, notes, strict=True):
            if note is None or len(note) > MAX_NOTE:
                continue
            try:
                image = ImageResult.model_validate_json(note)
            except ValidationError:
                continue
            spec = job.image_spec(k)
            if (image.k, image.digest, image.seed) == (k, spec.digest, spec.seed):
                yield image.model_copy(update={"index": job.index + k})


def _unrecorded(job: Job, store: Store, k: int) -> ImageResult | None:
    """A picture that lies where it belongs, and says of itself that it is this one."""
    spec, name = job.image_spec(k), picture_name(job, k)
    url = store.url_of(name)
    if not store.exists(url):
        return None
    data = store.read(url)
    try:
        shown = read_metadata(data, name)
    except ImageInputError:
        return None
    if shown.metadata is None or shown.metadata.digest != spec.digest:
        return None
    return ImageResult(
        k=k,
        index=job.index + k,
        seed=spec.seed,
        digest=spec.digest,
        url=url,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        width=shown.width,
        height=shown.height,
        seconds=0.0,  # its maker did not come to say
    )
