"""Asking again with more urgency: jobs that wait are moved up, whole and once, whatever workers do meanwhile."""

from __future__ import annotations

import threading

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer
from tests.fakes import FakeWorker, job_keys, stored

from renderkiln.producer import RenderQueue
from renderkiln.producer.enqueue import enqueue
from renderkiln.schema import JobStatus, names
from renderkiln.schema.jobs import PRIORITIES, Job, JobOptions, Priority, make_job
from renderkiln.schema.payload import read_payload
from renderkiln.schema.spec import RenderSpec
from renderkiln.worker.supervisor.taking import claim, take

LISTS: dict[Priority, str] = {each: f"rq:queue:{names.queue(each, 'shapes')}" for each in PRIORITIES}


def waiting(queue: RenderQueue) -> dict[Priority, list[str]]:
    """The ids in each priority's queue."""
    return {each: [job.decode() for job in queue.connection.lrange(key, 0, -1)] for each, key in LISTS.items()}


def cats(count: int, priority: Priority, batch: str = "cats") -> list[Job]:
    options = JobOptions(priority=priority)
    return [make_job(RenderSpec(prompt=f"cat {n}", seed=1), options, batch=batch, index=n) for n in range(count)]


def test_a_job_that_waits_is_moved_up_and_stays_one_job(queue: RenderQueue) -> None:
    first = queue.submit(prompt="a cat", seed=7, priority="low", labels={"for": "me"})
    other = queue.submit(prompt="a dog", priority="high")
    again = queue.submit(prompt="a cat", seed=7, priority="high", labels={"for": "you"})
    assert (again.id, again.outcome) == (first.id, "joined")
    assert waiting(queue) == {"high": [other.id, first.id], "normal": [], "low": []}
    rq_job = stored(queue.connection, first.id)
    job = read_payload(rq_job.data)
    assert (rq_job.origin, job.priority, job.labels) == ("renderkiln:high:shapes", "high", {"for": "me"})
    worker = FakeWorker(queue.connection)
    assert worker.finish_all() == 2
    assert worker.taken == [other.id, first.id]
    assert queue.status(first) is JobStatus.FINISHED


@pytest.mark.parametrize("priority", ["normal", "low"])
def test_asked_for_with_no_more_urgency_it_stays_where_it_is(queue: RenderQueue, priority: str) -> None:
    first = queue.submit(prompt="a cat", seed=7)
    queue.submit(prompt="a cat", seed=7, priority=priority)
    assert waiting(queue) == {"high": [], "normal": [first.id], "low": []}


def test_a_list_is_moved_up_as_a_whole_but_for_what_runs(queue: RenderQueue) -> None:
    enqueue(queue.connection, cats(1200, "low"), "cats", "cats")
    worker = FakeWorker(queue.connection)
    running = worker.take()
    assert running is not None
    tally = enqueue(queue.connection, cats(1200, "normal", "urgent-cats"), "urgent-cats", "cats")
    assert (tally.queued, tally.joined, tally.moved_up) == (0, 1200, 1199)
    assert waiting(queue) == {"high": [], "normal": [job.id for job in cats(1200, "normal")[1:]], "low": []}
    worker.finish(running)
    assert worker.finish_all() == 1199


def queues(queue: RenderQueue) -> list[Queue]:
    """As a worker looks at them: the most urgent first."""
    return [
        Queue(key.removeprefix("rq:queue:"), connection=queue.connection, serializer=JSONSerializer)
        for key in LISTS.values()
    ]


def test_a_job_that_a_worker_is_just_taking_is_moved_and_the_worker_leaves_it(queue: RenderQueue) -> None:
    job = queue.submit(prompt="a cat", seed=7, priority="low")
    # Between the list and the first word about the job: where a real worker is for a millisecond.
    taken = take(queue.connection, queues(queue))
    assert taken is not None
    queue.submit(prompt="a cat", seed=7, priority="high")
    assert waiting(queue) == {"high": [job.id], "normal": [], "low": []}
    assert not claim(queue.connection, *taken, lambda pipe: pytest.fail("it belongs to another queue by now"))
    assert queue.connection.llen(taken[1].intermediate_queue_key) == 0
    again = take(queue.connection, queues(queue))
    assert again is not None
    assert (again[0].id, again[1].key) == (job.id, LISTS["high"])


def test_workers_that_take_jobs_meanwhile_get_each_once(queue: RenderQueue) -> None:
    jobs = cats(600, "low")
    enqueue(queue.connection, jobs, "cats", "cats")
    taken: list[str] = []
    moving = threading.Event()
    moved = threading.Event()

    def run() -> None:
        moving.wait()
        while not moved.is_set():
            take_one()

    def take_one() -> bool:
        found = take(queue.connection, queues(queue))
        if found is None:
            return False
        job, source = found
        while True:
            try:
                if claim(queue.connection, job, source, lambda pipe: pipe.hset(job.key, "status", "started")):
                    taken.append(job.id)
                return True
            except redis.WatchError:
                continue  # as a worker does

    taking = threading.Thread(target=run)
    taking.start()
    moving.set()
    enqueue(queue.connection, cats(600, "high"), "cats", "cats")
    moved.set()
    taking.join()
    while take_one():
        pass
    assert sorted(taken) == sorted(job.id for job in jobs)


@pytest.mark.parametrize("order", [("high", "low"), ("low", "high")])
def test_of_the_same_job_twice_in_a_list_the_more_urgent_counts(queue: RenderQueue, order: tuple[str, str]) -> None:
    queue.submit_many({"prompt": "a cat", "seed": 7, "priority": priority} for priority in order)
    assert [len(ids) for ids in waiting(queue).values()] == [1, 0, 0]


def test_what_is_not_a_job_of_ours_is_not_moved(queue: RenderQueue) -> None:
    job = queue.submit(prompt="a cat", seed=7, priority="low")
    queue.connection.hset(f"rq:job:{job.id}", "data", b"somebody else's")
    queue.submit(prompt="a cat", seed=7, priority="high")
    assert waiting(queue) == {"high": [], "normal": [], "low": [job.id]}
    assert len(job_keys(queue.connection)) == 1
