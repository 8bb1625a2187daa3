"""A look at the jobs that wait for the model at hand, without taking them."""

from __future__ import annotations

from typing import Any, NamedTuple

import redis
from rq import Queue
from rq.job import Job as RqJob

from renderkiln.home.reading import read_hashes
from renderkiln.schema import names
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import PRIORITIES, Job
from renderkiln.schema.payload import read_payload, unpack_payload
from renderkiln.schema.spec import RenderSpec


class _Texts(NamedTuple):
    """What of a spec is encoded."""

    model: str
    revision: str | None
    prompt: str
    negative_prompt: str
    clip_skip: int | None
    is_guided: bool


class LookAhead:
    """Tells with a job which prompts come next, unless the renderer heard of the job's own before: then it has them.

    Args:
        count: of jobs, at most; 0: none.
    """

    def __init__(self, connection: Any, count: int) -> None:
        self._connection, self._count = connection, count
        self._told: frozenset[_Texts] = frozenset()

    def of(self, job: Job) -> tuple[str, ...]:
        """The specs, as JSON, of the jobs that wait for a job's model."""
        if not self._count or _texts(job.spec) in self._told:
            return ()
        found = peek(self._connection, job, self._count)
        self._told = frozenset(map(_texts, (job.spec, *found)))
        return tuple(spec.model_dump_json() for spec in found)

    def forget(self) -> None:
        """There is a new renderer, which has heard of nothing."""
        self._told = frozenset()


def peek(connection: Any, job: Job, count: int) -> tuple[RenderSpec, ...]:
    """The specs of the next jobs for a job's model, at most so many; of several with the same prompts, one.

    What cannot be read is left for whoever takes it. An absent Redis gives none.
    """
    found: dict[_Texts, RenderSpec] = {}
    try:
        for priority in PRIORITIES:
            if count <= 0:
                break
            queue = names.queue(priority, job.spec.model)
            ids = connection.lrange(Queue.redis_queue_namespace_prefix + queue, 0, count - 1)
            found_jobs = read_hashes(
                connection, [RqJob.key_for(job_id.decode(errors="replace")) for job_id in ids], "data"
            )
            count -= len(ids)
            for spec in filter(None, (_spec(fields[0]) for fields in found_jobs if fields)):
                if (spec.model, spec.revision, spec.text_encoder) == (job.spec.model, job.spec.revision, "model"):
                    found.setdefault(_texts(spec), spec)
    except redis.RedisError:
        pass
    return tuple(found.values())


def _texts(spec: RenderSpec) -> _Texts:
    guided = spec.guidance_scale > 1
    return _Texts(spec.model, spec.revision, spec.prompt, spec.negative_prompt, spec.clip_skip, guided)


def _spec(packed: bytes | None) -> RenderSpec | None:
    if packed is None:
        return None
    try:
        return read_payload(unpack_payload(packed)).spec
    except InvalidSpecError:
        return None
