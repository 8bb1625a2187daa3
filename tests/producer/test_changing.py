"""Canceling and queueing again."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from tests.fakes import FakeWorker, job_keys

from renderkiln.producer import RenderQueue
from renderkiln.producer.queue import BatchStatus
from renderkiln.schema import JobStatus, names
from renderkiln.schema.events import Ended, Submitted, parse_event


@pytest.fixture
def worker(queue: RenderQueue) -> FakeWorker:
    return FakeWorker(queue.connection)


def last_event(connection: redis.Redis) -> Any:
    ((_, fields),) = connection.xrevrange(names.EVENTS, count=1)  # type: ignore[misc,str-unpack]
    return parse_event(fields[b"event"])


def test_a_waiting_job_that_is_canceled_ends_at_once_and_no_worker_takes_it(
    queue: RenderQueue, worker: FakeWorker
) -> None:
    job = queue.submit(prompt="a cat")
    assert queue.cancel(job) == 1
    assert queue.status(job) is JobStatus.CANCELED
    event = last_event(queue.connection)
    assert isinstance(event, Ended)
    assert (event.result.job_id, event.result.batch, event.result.status) == (job.id, job.batch, JobStatus.CANCELED)
    assert worker.take() is None


def test_a_running_job_that_is_canceled_is_marked_for_its_worker(queue: RenderQueue, worker: FakeWorker) -> None:
    submitted = queue.submit(prompt="a cat")
    job = worker.take()
    assert job is not None
    assert queue.cancel(submitted) == 1
    assert queue.status(submitted) is JobStatus.STARTED  # until its worker has stopped
    assert queue.connection.hget(f"rq:job:{job.id}", names.CANCEL_FIELD) == b"1"


def test_a_long_list_is_canceled_and_queued_again_in_pieces(queue: RenderQueue, worker: FakeWorker) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}", "seed": 1} for number in range(1203))
    running = [worker.take() for _ in range(3)]
    before = queue.connection.info("stats")["total_reads_processed"]
    assert queue.cancel(batch) == 1203
    # Each way to the server and back counts: a few for each piece of 500, not for each job.
    assert queue.connection.info("stats")["total_reads_processed"] - before < 1000
    assert queue.status(batch) == BatchStatus(batch.id, started=3, canceled=1200)
    assert all(queue.connection.hget(f"rq:job:{job.id}", names.CANCEL_FIELD) for job in running if job)
    assert queue.retry(batch) == 1200
    assert worker.finish_all() == 1200


def test_what_has_ended_cannot_be_canceled(queue: RenderQueue, worker: FakeWorker) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}"} for number in range(3))
    job = worker.take()
    assert job is not None
    worker.finish(job)
    assert queue.cancel(batch) == 2
    assert queue.cancel(batch) == 0
    assert queue.status(batch) == BatchStatus(batch.id, finished=1, canceled=2)


def test_retry_queues_failed_and_canceled_jobs_and_leaves_the_rest(queue: RenderQueue, worker: FakeWorker) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}", "num_images": 2} for number in range(4))
    for end in (worker.finish, worker.fail):
        job = worker.take()
        assert job is not None
        end(job)
    running = worker.take()
    assert running is not None
    queue.cancel(batch.id)
    assert queue.status(batch) == BatchStatus(batch.id, started=1, finished=1, failed=1, canceled=1)
    assert queue.retry(batch) == 2
    assert queue.status(batch) == BatchStatus(batch.id, queued=2, started=1, finished=1)
    event = last_event(queue.connection)
    assert isinstance(event, Submitted)
    assert (event.batch, len(event.jobs)) == (batch.id, 2)
    assert list(queue.connection.scan_iter("rq:failed:*")) == []
    assert list(queue.connection.scan_iter("rq:canceled:*")) == []
    # The batch is as large as it was: `watch` counts by it.
    assert queue.connection.hget(names.batch(batch.id), "num_images") == b"8"
    assert worker.finish_all() == 2


def test_retry_of_one_job_makes_no_batch_of_its_own(queue: RenderQueue, worker: FakeWorker) -> None:
    submitted = queue.submit(prompt="a cat")
    job = worker.take()
    assert job is not None
    # As RQ's own clean-up of abandoned jobs leaves it: failed, with no result of ours.
    queue.connection.hset(f"rq:job:{job.id}", "status", "failed")
    assert queue.retry(job.id) == 1
    assert queue.status(submitted) is JobStatus.QUEUED
    assert queue.connection.zrange(names.BATCHES, 0, -1) == [submitted.batch.encode()]
    again = worker.take()
    assert again == job


def test_what_is_no_job_of_ours_is_neither_queued_again_nor_in_the_way(queue: RenderQueue, worker: FakeWorker) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}"} for number in range(2))
    while (job := worker.take()) is not None:
        worker.fail(job)
    queue.connection.hset(f"rq:job:{worker.taken[0]}", "data", b"somebody else's")
    assert queue.retry(batch) == 1
    assert queue.status(batch) == BatchStatus(batch.id, queued=1, failed=1)


def test_a_retried_job_of_two_batches_is_heard_of_in_both(queue: RenderQueue, worker: FakeWorker) -> None:
    first = queue.submit_many([{"prompt": "a cat", "seed": 1}])
    second = queue.submit_many([{"prompt": "a cat", "seed": 1}])
    job = worker.take()
    assert job is not None
    worker.fail(job)
    assert queue.retry(second) == 1
    assert queue.retry(first) == 0
    worker.finish_all()
    for batch in (first, second):
        assert [result.status for result in queue.as_completed(batch)] == [JobStatus.FINISHED]
    assert len(job_keys(queue.connection)) == 1


def test_everything_is_canceled_and_what_waits_for_its_time_too(queue: RenderQueue, worker: FakeWorker) -> None:
    waiting, postponed = queue.submit(prompt="a cat", seed=1), queue.submit(prompt="a dog", seed=1)
    name = names.queue("normal", queue.settings.model)
    queue.connection.lrem(f"rq:queue:{name}", 1, postponed.id)
    queue.connection.hset(f"rq:job:{postponed.id}", "status", "scheduled")
    queue.connection.zadd(f"rq:scheduled:{name}", {postponed.id: 4e9})
    queue.connection.lpush("rq:queue:somebody-elses", "other")
    queue.connection.sadd("rq:queues", "rq:queue:somebody-elses")
    assert queue.cancel_all() == 2
    assert [queue.status(job) for job in (waiting, postponed)] == [JobStatus.CANCELED] * 2
    assert queue.cancel_all() == 0
