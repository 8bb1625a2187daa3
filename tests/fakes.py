"""A worker that renders nothing: it takes jobs and ends them in Redis in the way that the real one does.

And what else the tests of several folders do to Redis and to servers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import redis
from rq.job import Job as RqJob

from renderkiln.home.server import EmbeddedServer
from renderkiln.schema import names
from renderkiln.schema.events import Ended, Event, ImageDone, Progress, Returned, Started
from renderkiln.schema.jobs import Failure, ImageResult, Job, JobResult, JobStatus
from renderkiln.schema.payload import read_payload
from renderkiln.schema.workers import WorkerInfo


class FakeWorker:
    """Plain Redis commands alone: status and result in the job's hash, registries, events."""

    def __init__(self, connection: redis.Redis, pictures: Path | None = None, host: str = "elsewhere") -> None:
        self.connection, self.pictures, self.host = connection, pictures, host
        self.taken: list[str] = []

    def take(self) -> Job | None:
        """The next job of any queue, now started."""
        known = self.connection.smembers("rq:queues")
        keys = sorted((key for key in known if key.startswith(b"rq:queue:renderkiln:")), key=_rank)
        for key in keys:
            while (job_id := self.connection.lpop(key)) is not None:
                if self.connection.hget(RqJob.key_for(job_id.decode()), "status") != b"queued":
                    continue  # canceled while it waited
                return self.start(job_id.decode())
        return None

    def start(self, job_id: str) -> Job:
        key = RqJob.key_for(job_id)
        self.connection.hset(key, "status", "started")
        job = read_payload(stored(self.connection, job_id).data)
        self.taken.append(job_id)
        self.say(Started(time=time.time(), job_id=job_id, batch=job.batch, worker="fake", attempt=1, execution_id="e1"))
        return job

    def finish(self, job: Job) -> JobResult:
        images = tuple(self.image(job, k) for k in range(job.num_images))
        for image in images:
            self.say(ImageDone(time=time.time(), job_id=job.id, batch=job.batch, worker="fake", image=image))
        return self.end(job, JobStatus.FINISHED, images=images)

    def fail(self, job: Job, kind: str = "bad_image", message: str = "the picture is all black") -> JobResult:
        return self.end(job, JobStatus.FAILED, failure=Failure(kind=kind, message=message))

    def end(self, job: Job, status: JobStatus, *, tell: bool = True, **fields: Any) -> JobResult:
        result = JobResult(
            job_id=job.id, batch=job.batch, status=status, worker="fake", host=self.host, attempt=1, **fields
        )
        queue = names.queue(job.priority, job.spec.model)
        before: Any = self.connection.hget(RqJob.key_for(job.id), "meta")
        meta = json.dumps(json.loads(before or "{}") | {"result": result.model_dump(mode="json")})
        with self.connection.pipeline() as pipe:
            pipe.hset(RqJob.key_for(job.id), mapping={"status": status.value, "meta": meta})
            pipe.zadd(f"rq:{status.value}:{queue}", {job.id: time.time() + names.RESULT_TTL})
            if status is not JobStatus.FAILED:
                pipe.expire(RqJob.key_for(job.id), names.RESULT_TTL)
            if tell:
                pipe.xadd(names.EVENTS, {"event": Ended(time=time.time(), result=result).model_dump_json()})
            pipe.execute()
        return result

    def step(self, job: Job, step: int, k: int = 0) -> None:
        """Tells of a step, as it goes: to whoever listens."""
        progress = Progress(
            time=time.time(),
            job_id=job.id,
            batch=job.batch,
            worker="fake",
            k=k,
            num_images=job.num_images,
            step=step,
            num_steps=job.spec.num_inference_steps,
        )
        self.connection.publish(names.PROGRESS, progress.model_dump_json())

    def give_back(self, job: Job) -> None:
        self.connection.hset(RqJob.key_for(job.id), "status", "queued")
        self.connection.lpush(f"rq:queue:{names.queue(job.priority, job.spec.model)}", job.id)
        self.say(Returned(time=time.time(), job_id=job.id, batch=job.batch, worker="fake"))

    def finish_all(self) -> int:
        """Takes and finishes until the queues are empty; how many."""
        count = 0
        while (job := self.take()) is not None:
            self.finish(job)
            count += 1
        return count

    def image(self, job: Job, k: int) -> ImageResult:
        return image_of(job, k, self.pictures)

    def say(self, event: Event) -> None:
        self.connection.xadd(names.EVENTS, {"event": event.model_dump_json()})


def image_of(job: Job, k: int = 0, folder: Path | None = None, text: str = "picture") -> ImageResult:
    """A picture of a job; its file, which shows nothing, is written where the folder is there."""
    data = f"{text} {job.id} {k}".encode()
    path = (folder or Path("/nowhere")) / f"{job.id}-{k}.png"
    if folder is not None and folder.is_dir():
        path.write_bytes(data)
    spec = job.image_spec(k)
    return ImageResult(
        k=k,
        index=job.index + k,
        seed=spec.seed,
        digest=spec.digest,
        url=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        width=64,
        height=64,
        seconds=0.5,
    )


def announce_worker(
    connection: redis.Redis, *models: str, name: str = "mini-1", state: str = "idle", **more: Any
) -> WorkerInfo:
    """Puts up the sign that a live worker keeps up."""
    about = {"host": "mini", "pid": 1, "engine": "torch", "device": "mps", "store": "/renders", "state": state}
    info = WorkerInfo(**{"name": name, "models": models, "started_at": time.time(), **about, **more})
    connection.set(names.worker(name), info.model_dump_json(), ex=60)
    connection.zadd(names.WORKERS, {name: time.time()})
    return info


def stored(connection: redis.Redis, job_id: str) -> RqJob:
    """The job as RQ's own client reads it."""
    from rq.serializers import JSONSerializer

    return RqJob.fetch(job_id, connection=connection, serializer=JSONSerializer)


def job_keys(connection: redis.Redis) -> list[bytes]:
    """The jobs that are in Redis, wherever they stand."""
    return sorted(connection.scan_iter("rq:job:*"))


def reap(pid: int) -> None:
    """Waits for a child that `Popen` was told to forget."""
    with contextlib.suppress(ChildProcessError):  # another process may have started it
        os.waitpid(pid, 0)


def kill_server(server: EmbeddedServer) -> None:
    """The power cut: SIGKILL, and nothing tidied up."""
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    reap(pid)


def _rank(key: bytes) -> tuple[int, bytes]:
    return ([b"high", b"normal", b"low"].index(key.split(b":")[3]), key)
