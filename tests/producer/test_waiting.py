"""Waiting: woken by events, and by a look at the jobs where an event was lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.fakes import FakeWorker

from renderkiln.producer import RenderQueue, waiting
from renderkiln.producer.queue import BatchStatus
from renderkiln.schema import JobStatus, names
from renderkiln.schema.errors import JobFailedError, WaitTimeoutError


@pytest.fixture
def worker(queue: RenderQueue) -> FakeWorker:
    return FakeWorker(queue.connection)


@pytest.fixture
def meanwhile() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Does something in another thread, which is seen to its end."""
    threads: list[threading.Thread] = []

    def do(what: Callable[[], object]) -> None:
        threads.append(threading.Thread(target=what))
        threads[-1].start()

    yield do
    for thread in threads:
        thread.join()


def someone_waits(queue: RenderQueue) -> None:
    """Returns when a client blocks in a read of the event stream."""
    deadline = time.monotonic() + 20
    while not any("b" in row["flags"] for row in queue.connection.client_list()):
        assert time.monotonic() < deadline, "nobody came to wait"


def test_wait_returns_the_result_of_a_job_that_had_ended_before(queue: RenderQueue, worker: FakeWorker) -> None:
    job = queue.submit(prompt="a cat", seed=7, num_images=2)
    worker.finish_all()
    result = queue.wait(job)
    assert (result.job_id, result.status, len(result.images)) == (job.id, JobStatus.FINISHED, 2)
    assert [image.seed for image in result.images] == [7, 8]
    assert queue.wait(job.id) == result
    assert list(queue.results(job)) == [result]


def test_wait_wakes_when_the_job_ends(
    queue: RenderQueue, worker: FakeWorker, meanwhile: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RECHECK", 600.0)  # so that nothing but the event can wake it
    job = queue.submit(prompt="a cat")
    ended_at: list[float] = []

    def render() -> None:
        someone_waits(queue)
        ended_at.append(time.monotonic())
        worker.finish_all()

    meanwhile(render)
    assert queue.wait(job, timeout=60).status is JobStatus.FINISHED
    assert ended_at
    assert time.monotonic() - ended_at[0] < 2.0


def test_wait_sees_the_end_of_a_job_whose_event_was_lost(
    queue: RenderQueue, worker: FakeWorker, meanwhile: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RECHECK", 0.3)
    submitted = queue.submit(prompt="a cat")
    job = worker.take()
    assert job is not None

    def render() -> None:
        someone_waits(queue)
        worker.end(job, JobStatus.FINISHED, tell=False)

    meanwhile(render)
    assert queue.wait(submitted, timeout=60).status is JobStatus.FINISHED


def test_a_wait_may_be_longer_than_the_clients_socket_timeout(
    queue: RenderQueue, worker: FakeWorker, meanwhile: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RECHECK", 600.0)
    monkeypatch.setattr(waiting, "_LONGEST_READ", 0.2)
    import redis

    impatient = redis.Redis(
        unix_socket_path=queue.connection.connection_pool.connection_kwargs["path"], socket_timeout=0.6
    )
    client = RenderQueue(settings=queue.settings, connection=impatient)
    job = client.submit(prompt="a cat")
    with pytest.raises(WaitTimeoutError):
        client.wait(job, timeout=1.2)
    meanwhile(worker.finish_all)
    assert client.wait(job, timeout=60).status is JobStatus.FINISHED
    client.close()


def test_wait_gives_up_when_told_to(queue: RenderQueue) -> None:
    job = queue.submit(prompt="a cat")
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=r"1 of 1 jobs were not done within 0\.2 s"):
        queue.wait(job, timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 3
    with pytest.raises(WaitTimeoutError):
        queue.wait(job, timeout=0)


def test_wait_raises_for_a_failed_and_for_a_canceled_job(queue: RenderQueue, worker: FakeWorker) -> None:
    failed = queue.submit(prompt="a cat")
    job = worker.take()
    assert job is not None
    worker.fail(job, "bad_image", "the picture is all black")
    with pytest.raises(JobFailedError, match="failed: the picture is all black") as caught:
        queue.wait(failed)
    assert caught.value.failure_kind == "bad_image"
    canceled = queue.submit(prompt="a dog")
    queue.cancel(canceled)
    with pytest.raises(JobFailedError) as caught:
        queue.wait(canceled)
    assert caught.value.failure_kind == "canceled"


def test_jobs_come_as_they_end_each_once(
    queue: RenderQueue, worker: FakeWorker, meanwhile: Callable[..., None]
) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}"} for number in range(30))
    early = worker.take()
    assert early is not None
    worker.finish(early)
    coming = queue.as_completed(batch, timeout=60)
    results = [next(coming)]
    assert results[0].job_id == early.id
    meanwhile(worker.finish_all)
    results += coming
    assert sorted(result.job_id for result in results) == sorted(worker.taken)
    assert queue.status(batch) == BatchStatus(batch.id, finished=30)


def test_jobs_of_several_submissions_can_be_waited_for_together(queue: RenderQueue, worker: FakeWorker) -> None:
    jobs = [queue.submit(prompt=f"cat {number}") for number in range(3)]
    worker.finish_all()
    assert {result.job_id for result in queue.as_completed(jobs)} == {job.id for job in jobs}


def test_a_job_that_redis_has_forgotten_has_ended_and_says_so(queue: RenderQueue) -> None:
    batch = queue.submit_many([{"prompt": "a cat"}])
    queue.connection.delete(*queue.connection.scan_iter("rq:job:*"))
    (result,) = queue.as_completed(batch)
    assert result.failure is not None
    assert (result.status, result.failure.kind) == (JobStatus.FAILED, "not_found")


def test_what_is_no_event_of_ours_in_the_stream_is_passed_over(
    queue: RenderQueue, worker: FakeWorker, meanwhile: Callable[..., None]
) -> None:
    job = queue.submit(prompt="a cat")

    def noise() -> None:
        someone_waits(queue)
        for fields in ({"event": '{"type":"ended"}'}, {"other": "x"}, {"event": b'\xff"type":"ended"'}):
            queue.connection.xadd(names.EVENTS, fields)  # type: ignore[arg-type]
        worker.finish_all()

    meanwhile(noise)
    assert queue.wait(job, timeout=60).status is JobStatus.FINISHED


def test_a_result_stays_for_a_week(queue: RenderQueue, worker: FakeWorker) -> None:
    week = 7 * 86400
    finished, canceled = queue.submit(prompt="a cat"), queue.submit(prompt="a dog")
    queue.cancel(canceled)
    assert week - 60 < queue.connection.ttl(f"rq:job:{canceled.id}") <= week
    assert queue.connection.ttl(f"rq:job:{finished.id}") == -1  # while it waits, it waits for as long as it takes
    assert queue.connection.hget(f"rq:job:{finished.id}", "result_ttl") == str(week).encode()
    assert week == names.RESULT_TTL
