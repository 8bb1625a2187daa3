"""Notes in Redis of an unfinished job's pictures: whoever takes it next, on whichever Mac, renders only the rest."""

from __future__ import annotations

from typing import Any

from renderkiln.schema import names
from renderkiln.schema.jobs import ImageResult


def leave(pipe: Any, job_id: str, image: ImageResult) -> None:
    """Adds to a pipeline the note that a picture of a job is recorded."""
    pipe.hset(names.images(job_id), str(image.k), image.model_dump_json())
    pipe.expire(names.images(job_id), names.RESULT_TTL)
