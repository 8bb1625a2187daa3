"""A look at the jobs that wait for the model at hand, without taking them."""

from __future__ import annotations

import zlib
from typing import Any

import redis
from rq.job import Job as RqJob

from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import PRIORITIES, Job
from renderkiln.schema.payload import MAX_PAYLOAD, read_payload
from renderkiln.schema.spec import RenderSpec


def peek(connection: Any, job: Job, count: int) -> tuple[RenderSpec, ...]:
    """The specs of the next jobs for a job's model, at most so many; of several with the same prompts, one.

    What cannot be read is left for whoever takes it. An absent Redis gives none.
    """
    found: dict[tuple[str, str, int | None, bool], RenderSpec] = {}
    try:
        for priority in PRIORITIES:
            if count <= 0:
                break
            ids = connection.lrange(f"rq:queue:{names.queue(priority, job.spec.model)}", 0, count - 1)
            with connection.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hget(RqJob.key_for(job_id.decode(errors="replace")), "data")
                payloads = pipe.execute()
            count -= len(payloads)
            for spec in filter(None, map(_spec, payloads)):
                if (spec.model, spec.revision, spec.text_encoder) == (job.spec.model, job.spec.revision, "model"):
                    guided = spec.guidance_scale > 1
                    found.setdefault((spec.prompt, spec.negative_prompt, spec.clip_skip, guided), spec)
    except redis.RedisError:
        pass
    return tuple(found.values())


def _spec(packed: bytes | None) -> RenderSpec | None:
    if packed is None:
        return None
    try:
        return read_payload(zlib.decompressobj().decompress(packed, MAX_PAYLOAD + 1)).spec
    except (zlib.error, InvalidSpecError):
        return None
