"""`RenderQueue`: the client. Submit jobs, wait for them, look at them, cancel them.

queue = RenderQueue()                                   # RENDERKILN_REDIS_URL, or the embedded server
batch = queue.submit_many({"prompt": line.strip()} for line in open("prompts.txt") if line.strip())
for result in queue.as_completed(batch):
    print(result.status, [image.url for image in result.images])
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import redis

from renderkiln.home.connect import answering, connect
from renderkiln.home.folder import DataFolder
from renderkiln.home.pictures.naming import batch_name
from renderkiln.home.settings import Settings, load
from renderkiln.home.workers import live_workers
from renderkiln.schema import names
from renderkiln.schema.errors import BadInputError, JobFailedError, NotFoundError
from renderkiln.schema.jobs import Failure, Job, JobOptions, JobResult, JobStatus, make_job, parse_request
from renderkiln.schema.spec import MAX_SEED, RenderSpec

from . import cancel as canceling
from .endings import Endings
from .enqueue import Tally, enqueue, requeue
from .fleet import Need, check_needs
from .inputs import PICTURE_FIELDS, InputCarrier
from .results import job_ids_of, read_batch, read_states
from .stores import store_for_jobs
from .waiting import as_completed


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was handed in: its id, and what became of it at once."""

    id: str
    batch: str
    #: "queued", "joined" (the same job waits or runs already) or "done" (its pictures are there already).
    outcome: str


@dataclass(frozen=True)
class SubmittedBatch:
    """A submission of many jobs."""

    id: str
    num_jobs: int
    num_images: int
    num_queued: int
    #: Waiting or running already. Those that waited less urgently were moved up.
    num_joined: int
    num_done: int


@dataclass(frozen=True)
class BatchStatus:
    """How many jobs of a batch stand where."""

    id: str
    queued: int = 0
    started: int = 0
    finished: int = 0
    failed: int = 0
    canceled: int = 0

    @property
    def total(self) -> int:
        return self.queued + self.started + self.finished + self.failed + self.canceled

    @property
    def is_final(self) -> bool:
        return self.queued == self.started == 0


class RenderQueue:
    """A client of the render queue. Every method may raise ServerUnavailableError, where Redis fails.

    Args:
        url: a Redis URL; where None, RENDERKILN_REDIS_URL or the embedded server of the data folder.
        settings: all settings at once, instead of the environment's.
        connection: a redis-py client to use as it is.
        inputs: pictures that were added already, to be sent with the jobs that start from them.

    Raises:
        ServerUnavailableError: no server answers. SettingsError: a setting is wrong.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        settings: Settings | None = None,
        connection: redis.Redis | None = None,
        inputs: InputCarrier | None = None,
    ) -> None:
        self.settings = settings or load(redis_url=url)
        self.folder = DataFolder(self.settings.data_dir)
        #: How the server was reached; None where a connection was handed in.
        self.server = None if connection else connect(self.settings)
        self.connection: redis.Redis = self.server.redis if self.server else connection  # type: ignore[assignment]
        self._inputs = inputs or InputCarrier(self.folder)
        self._local = self.server is not None and self.server.embedded is not None

    # Submitting.

    def submit(self, *, again: bool = False, **fields: Any) -> SubmittedJob:
        """Queues one job; `fields` are those of `RenderSpec` and `JobOptions`.

        `init_image`, `mask_image` and the `image` of each of the `controlnets` (mappings, or `ControlNet`s) may be
        paths, bytes of files or PIL images; a relative `store` begins at the working folder. Without a `seed`, a random
        one is drawn. The same job handed in twice is one job, at the more urgent of the two priorities; `again=True`
        renders it anew.

        Raises:
            InvalidSpecError, ImageInputError, ModelNotFoundError: and nothing was queued.
        """
        spec, options = self._request(fields)
        self.check({Need.of(spec): ""})
        nonce = secrets.token_hex(4) if again else ""
        job = make_job(spec, options, batch="single", index=0, again=nonce)
        job = job.model_copy(update={"batch": f"{batch_name(spec.prompt)}-{job.id[:8]}"})
        tally = self.enqueue([job], batch=job.batch, name=spec.prompt[:80])
        return SubmittedJob(job.id, job.batch, "queued" if tally.queued else "joined" if tally.joined else "done")

    def submit_many(
        self, requests: Iterable[Mapping[str, Any]], *, name: str | None = None, again: bool = False
    ) -> SubmittedBatch:
        """Queues a job for each mapping of fields, as `submit` does for one.

        The iterable is read as it is queued, 500 at a time: memory does not grow with its length, and where a mapping
        is not valid, those of the pieces before it are queued already. Check a list first (as the command line does)
        where that matters.

        Raises:
            InvalidSpecError, ImageInputError, ModelNotFoundError: names the request by its number, from 1.
        """
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        batch = f"{batch_name(name or 'batch')}-{stamp}-{secrets.token_hex(2)}"
        nonce = secrets.token_hex(4) if again else ""
        tally = self.enqueue(self._jobs(requests, batch, nonce), batch=batch, name=name or batch)
        return SubmittedBatch(batch, tally.jobs, tally.images, tally.queued, tally.joined, tally.done)

    def enqueue(self, jobs: Iterable[Job], *, batch: str, name: str) -> Tally:
        """Queues jobs that are made already, after the pictures that they start from."""
        return enqueue(self.connection, self._sending_inputs(jobs), batch, name)

    @answering()
    def check(self, needs: Mapping[Need, str], *, local: bool = False) -> None:
        """Refuses what is known to be rendered by nobody.

        Args:
            needs: as those of `fleet.check_needs`, and so the errors.
            local: a worker will be started on this machine. With the embedded server that is always so.
        """
        workers, engine = live_workers(self.connection), self.settings.engine
        check_needs(workers, self.folder, needs, local=self._local or local, engine=engine)

    @property
    def inputs(self) -> InputCarrier:
        """Where pictures are added before the jobs that start from them."""
        return self._inputs

    # Looking.

    @answering()
    def status(self, what: str | SubmittedJob | SubmittedBatch) -> JobStatus | BatchStatus:
        """Where a job, or the jobs of a batch, stand. Raises NotFoundError."""
        target = self._target(what)
        if target.job_id is not None:
            (state,) = read_states(self.connection, [target.job_id])
            if state is None:
                raise NotFoundError(f"job {target.job_id} is not known to Redis (results are kept for a week).")
            return state.status
        counts = dict.fromkeys(JobStatus, 0)
        for _, state in read_batch(self.connection, target.batch):
            if state is not None:
                counts[state.status] += 1
        return BatchStatus(target.batch, **{status.value: count for status, count in counts.items()})

    def results(self, what: str | SubmittedJob | SubmittedBatch) -> Iterator[JobResult]:
        """The results of what has ended so far, in the order of the batch. Raises NotFoundError."""
        return self._results(self._target(what))

    def _results(self, target: _Target) -> Iterator[JobResult]:
        with answering():
            rows = (
                read_batch(self.connection, target.batch)
                if target.job_id is None
                else zip([target.job_id], read_states(self.connection, [target.job_id]), strict=True)
            )
            yield from Endings(self.recorded, waits=False).of(target.batch, rows)

    def recorded(self, job_ids: Sequence[str]) -> dict[str, JobResult]:
        """What the ledgers of this machine have of these jobs, for what Redis has forgotten."""
        from .recorded import recorded_of

        return recorded_of(DataFolder(self.settings.data_dir), job_ids)

    def wait(self, job: str | SubmittedJob, timeout: float | None = None) -> JobResult:
        """Waits for one job and returns its result.

        Raises:
            WaitTimeoutError: `timeout` seconds passed. JobFailedError: the job failed or was canceled.
            ServerUnavailableError: Redis was away for more than two minutes.
        """
        result = next(self.as_completed(job, timeout=timeout))
        if result.status is JobStatus.FINISHED:
            return result
        failure = result.failure or Failure(kind="canceled", message="it was canceled")
        raise JobFailedError(f"job {result.job_id} {result.status.value}: {failure.message}", failure.kind)

    def as_completed(
        self, what: str | SubmittedJob | SubmittedBatch | Iterable[SubmittedJob], timeout: float | None = None
    ) -> Iterator[JobResult]:
        """Yields results as jobs end, each once. Raises WaitTimeoutError, NotFoundError, ServerUnavailableError."""
        if isinstance(what, (str, SubmittedJob, SubmittedBatch)):
            target = self._target(what)
            job_ids = [target.job_id] if target.job_id is not None else self._ids(target.batch)
            return as_completed(self.connection, job_ids, target.batch, timeout, self.recorded)
        return as_completed(self.connection, [job.id for job in what], "", timeout, self.recorded)

    # Changing one's mind.

    @answering()
    def cancel(self, what: str | SubmittedJob | SubmittedBatch) -> int:
        """Cancels a job or all open jobs of a batch; how many were open. Raises NotFoundError."""
        target = self._target(what)
        return canceling.cancel(
            self.connection, [target.job_id] if target.job_id is not None else self._ids(target.batch)
        )

    @answering()
    def cancel_all(self) -> int:
        """Cancels everything that waits or runs, whoever submitted it; how many jobs that were."""
        return canceling.cancel_all(self.connection)

    @answering()
    def retry(self, what: str | SubmittedJob | SubmittedBatch | Sequence[str]) -> int:
        """Queues failed and canceled jobs (or all such of a batch) again; how many. Raises NotFoundError."""
        ids: Iterable[str]
        if isinstance(what, (str, SubmittedJob, SubmittedBatch)):
            target = self._target(what)
            ids = [target.job_id] if target.job_id is not None else self._ids(target.batch)
        else:
            ids = what
        return requeue(self.connection, canceling.ended_jobs(self.connection, ids))

    def close(self) -> None:
        self.connection.close()

    # Inside.

    def _request(self, fields: Mapping[str, Any]) -> tuple[RenderSpec, JobOptions]:
        given = dict(fields)
        given.setdefault("model", self.settings.model)
        if given.get("seed") is None:
            given["seed"] = secrets.randbelow(MAX_SEED + 1)
        if any(name in given for name in PICTURE_FIELDS):
            self._inputs.resolve(given)
        if "store" in given:
            given["store"] = store_for_jobs(given["store"])
        return parse_request(given)

    def _jobs(self, requests: Iterable[Mapping[str, Any]], batch: str, again: str) -> Iterator[Job]:
        index = 0
        checked: set[Need] = set()
        for number, fields in enumerate(requests, start=1):
            try:
                spec, options = self._request(fields)
                need = Need.of(spec)
                if need not in checked:
                    self.check({need: ""})
                    checked.add(need)
            except BadInputError as error:
                raise type(error)(f"request {number}: {error}") from None
            yield make_job(spec, options, batch=batch, index=index, again=again)
            index += options.num_images

    def _sending_inputs(self, jobs: Iterable[Job]) -> Iterator[Job]:
        for job in jobs:
            self._inputs.send(self.connection)
            yield job

    @answering()
    def _target(self, what: str | SubmittedJob | SubmittedBatch) -> _Target:
        if isinstance(what, SubmittedJob):
            return _Target(what.batch, what.id)
        if isinstance(what, SubmittedBatch):
            return _Target(what.id, None)
        if self.connection.zscore(names.BATCHES, what) is not None:
            return _Target(what, None)
        (state,) = read_states(self.connection, [what])
        if state is not None:
            return _Target(state.result.batch if state.result else "", what)
        raise NotFoundError(f"no batch and no job {what!r} in Redis. `renderkiln status` lists batches.")

    @answering()
    def _ids(self, batch: str) -> list[str]:
        return job_ids_of(self.connection, batch)


@dataclass(frozen=True)
class _Target:
    batch: str
    job_id: str | None
