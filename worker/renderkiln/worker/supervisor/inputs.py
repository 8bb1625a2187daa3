"""The pictures that a job starts from, out of Redis, where anybody could have put them: looked at again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from renderkiln.home.pictures.inputs import MAX_BYTES, check_input_bytes
from renderkiln.home.reading import read_strings
from renderkiln.schema import names
from renderkiln.schema.errors import ImageInputError, ServerUnavailableError
from renderkiln.schema.jobs import Job


def read_inputs(connection: Any, job: Job) -> Mapping[str, bytes]:
    """The bytes of a job's pictures, by their references.

    Raises:
        ServerUnavailableError: Redis does not answer.
        ImageInputError: one is not there any more, is no picture, or is not the one that was asked for.
    """
    found = {}
    for reference in job.spec.pictures:
        try:
            (data,) = read_strings(connection, [names.blob(reference.removeprefix("sha256:"))], MAX_BYTES)
        except redis.RedisError as error:
            raise ServerUnavailableError(f"Redis does not give the picture {reference[:23]}…: {error}") from error
        if data is None:
            raise ImageInputError(
                f"the picture {reference[:23]}… is no longer in Redis (kept for {names.BLOB_TTL // 86400} days). "
                "Submit the job again with its file."
            )
        if check_input_bytes(data, reference[:23]).ref != reference:
            raise ImageInputError(f"the picture in Redis is not {reference[:23]}…: somebody changed it.")
        found[reference] = data
    return found
