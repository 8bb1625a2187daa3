"""What a running attempt tells whoever watches: each picture, and steps as they come. All of it may be lost."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import redis

from renderkiln.home.left_pictures import leave
from renderkiln.schema import names
from renderkiln.schema.events import ImageDone, Progress
from renderkiln.schema.jobs import ImageResult, Job
from renderkiln.worker.protocol import Step

from .endings import publish

#: Steps are published at most this often, seconds: enough for a moving bar, few enough not to matter.
PROGRESS_EVERY = 0.2


class News:
    """Publishes for one worker; says nothing while Redis is away."""

    def __init__(self, connection: Any, worker: str) -> None:
        self._connection, self._worker = connection, worker
        self._next_progress = 0.0

    def step(self, job: Job, step: Step) -> None:
        """Tells of a step; drops most of a fast model's."""
        now = time.monotonic()
        if now < self._next_progress and step.step != step.num_steps:
            return
        self._next_progress = now + PROGRESS_EVERY
        progress = Progress(
            time=time.time(),
            job_id=job.id,
            batch=job.batch,
            worker=self._worker,
            k=step.k,
            num_images=job.num_images,
            step=step.step,
            num_steps=step.num_steps,
        )
        with contextlib.suppress(redis.RedisError):
            self._connection.publish(names.PROGRESS, progress.model_dump_json())

    def image(self, job: Job, image: ImageResult) -> None:
        """Tells of a picture, and leaves a note of it to whoever may have to go on with the job; the ledger has it."""
        event = ImageDone(time=time.time(), job_id=job.id, batch=job.batch, worker=self._worker, image=image)
        with contextlib.suppress(redis.RedisError), self._connection.pipeline() as pipe:
            publish(pipe, event)
            leave(pipe, job.id, image)
            pipe.execute()
