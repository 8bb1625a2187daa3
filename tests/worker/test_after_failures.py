"""What becomes of jobs after attempts that failed: who tries them next, and when; against a real server."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from rq.job import Job as RqJob
from rq.scheduler import RQScheduler
from tests.fakes import announce_worker

from renderkiln.schema import names
from renderkiln.schema.jobs import Failure, JobStatus
from renderkiln.worker.supervisor import postponing, rq_worker, verdicts
from renderkiln.worker.supervisor.fates import NO_WAIT_IS_LONGER
from renderkiln.worker.supervisor.outcomes import Outcome
from renderkiln.worker.supervisor.postponing import Postponed
from renderkiln.worker.supervisor.rq_worker import Current

from .bench import Bench

MakeBench = Callable[..., Bench]


@pytest.fixture(autouse=True)
def longest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance has every job wait for as long as it may."""
    monkeypatch.setattr(verdicts.random, "uniform", lambda low, high: high)


@pytest.fixture
def two(make_bench: MakeBench) -> tuple[Bench, Bench]:
    """Two workers that have the model."""
    a, b = make_bench("a"), make_bench("b")
    for each in (a, b):
        each.announce()
    return a, b


def test_what_is_held_up_is_left_to_the_worker_whose_spool_has_its_pictures(two: tuple[Bench, Bench]) -> None:
    a, b = two
    job = a.house.submit()
    a.does = lambda current: Outcome(failure=Failure(kind="store", message="no route to host"), held_up=True)
    assert a.look()
    assert not b.look()
    a.does = lambda current: Outcome()
    a.let_waits_end()
    assert a.look()
    assert a.house.queue.status(job) is JobStatus.FINISHED


def test_a_failed_job_waits_its_time_where_rq_looks_for_such_jobs(bench: Bench) -> None:
    job = bench.house.submit()
    bench.fail("renderer_died")
    assert bench.look()
    ((job_id, wait),) = bench.waiting.items()
    assert (job_id, 0.5 < wait <= 1.0) == (job.id, True)
    assert bench.connection.hget(RqJob.key_for(job.id), "status") == b"scheduled"
    assert bench.house.queue.status(job) is JobStatus.QUEUED
    assert bench.house.wait_for("returned", job.id)
    assert not bench.look()
    other = bench.house.submit("another")
    bench.let_waits_end()
    bench.does = lambda current: Outcome()
    assert bench.look()
    assert bench.look()
    assert [current.job.id for current in bench.attempts] == [job.id, job.id, other.id], "it comes to the front"
    assert bench.lists() == (0, 0, 0)
    assert bench.waiting == {}


def test_what_was_due_first_comes_first(bench: Bench) -> None:
    jobs = [bench.house.submit(prompt) for prompt in ("one", "two", "three")]
    bench.fail("renderer_died")
    for _ in jobs:
        assert bench.look()
    registry = bench.queue.scheduled_job_registry.key
    for number, job in enumerate(reversed(jobs)):
        bench.connection.zadd(registry, {job.id: time.time() - 10 + number})
    bench.does = lambda current: Outcome()
    while bench.look():
        continue
    assert [current.job.id for current in bench.attempts[3:]] == [job.id for job in reversed(jobs)]


def test_two_workers_that_look_at_once_bring_a_job_back_once(two: tuple[Bench, Bench]) -> None:
    a, _ = two
    job = a.house.submit()
    a.fail("store")
    assert a.look()
    a.let_waits_end()
    found = [Postponed(each.connection, each.name) for each in two]
    assert [each._bring(job.id.encode(), a.queue) for each in found] == [True, False]
    assert [each.bring_back([a.queue]) for each in found] == [0, 0]
    assert a.connection.lrange(a.queue.key, 0, -1) == [job.id.encode()]


def test_a_job_that_waits_can_be_canceled_and_queued_again(bench: Bench) -> None:
    job = bench.house.submit()
    bench.fail("renderer_died")
    assert bench.look()
    assert bench.house.queue.retry(job) == 0, "it is tried again anyway"
    assert bench.house.queue.cancel(job) == 1
    assert bench.waiting == {}
    assert bench.house.queue.status(job) is JobStatus.CANCELED
    assert not bench.look()
    assert bench.house.queue.retry(job) == 1
    bench.does = lambda current: Outcome()
    assert bench.look()
    assert [current.number for current in bench.attempts] == [1, 1]
    assert bench.house.queue.status(job) is JobStatus.FINISHED


def test_an_entry_that_was_left_behind_brings_nothing_back(bench: Bench) -> None:
    canceled, unknown = bench.house.submit(), "0" * 32
    assert bench.house.queue.cancel(canceled) == 1
    bench.connection.zadd(bench.queue.scheduled_job_registry.key, {canceled.id: 1.0, unknown: 1.0})
    assert not bench.look()
    assert bench.waiting == {}
    assert bench.attempts == []


def test_a_job_that_waits_is_moved_up_and_waits_on(bench: Bench) -> None:
    job = bench.house.submit(seed=7)
    bench.fail("out_of_memory")
    assert bench.look()
    due = bench.waiting[job.id]
    again = bench.house.submit(seed=7, priority="high")
    assert again.outcome == "joined"
    assert bench.waiting == {}
    high = f"rq:scheduled:{names.queue('high', 'tiny')}"
    assert bench.connection.zscore(high, job.id) - time.time() == pytest.approx(due, abs=1.0)
    assert RqJob.fetch(job.id, bench.connection, "rq.serializers.JSONSerializer").origin == names.queue("high", "tiny")


def test_rqs_own_scheduler_may_bring_it_back_as_well(bench: Bench) -> None:
    job = bench.house.submit()
    bench.fail("renderer_died")
    assert bench.look()
    bench.let_waits_end()
    scheduler = RQScheduler([bench.queue.name], connection=bench.connection, serializer=bench.queue.serializer)
    scheduler.acquire_locks()
    scheduler.enqueue_scheduled_jobs()
    scheduler.release_locks()
    assert bench.waiting == {}
    bench.connection.zadd(bench.queue.scheduled_job_registry.key, {job.id: 1.0})  # and a worker that was as quick
    bench.does = lambda current: Outcome()
    assert bench.look()
    assert not bench.look()
    assert [current.number for current in bench.attempts] == [1, 2]
    assert bench.house.queue.status(job) is JobStatus.FINISHED


def test_a_wait_that_a_wrong_clock_made_is_none(bench: Bench) -> None:
    job = bench.house.submit()
    bench.fail("renderer_died")
    assert bench.look()
    bench.connection.zadd(bench.queue.scheduled_job_registry.key, {job.id: time.time() + NO_WAIT_IS_LONGER + 10})
    assert bench.look()


def test_a_burst_worker_does_not_end_while_a_job_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.house.submit()
    bench.fail("renderer_died")
    assert bench.look()
    slept = []

    def sleep() -> None:
        slept.append(1)
        bench.let_waits_end()
        bench.worker._postponed._next_look = 0.0

    monkeypatch.setattr(bench.worker._listener, "wait", lambda seconds: sleep())
    taken = bench.worker.dequeue_job_and_maintain_ttl(None)
    assert taken is not None
    assert (taken[0].id, slept) == (job.id, [1])
    bench.does = lambda current: Outcome()
    bench.worker.execute_job(*taken)
    assert bench.worker.dequeue_job_and_maintain_ttl(None) is None
    assert bench.worker.is_done


# Where next.


def test_who_failed_a_job_leaves_it_to_another_as_long_as_there_is_one(two: tuple[Bench, Bench]) -> None:
    a, b = two
    job, other = a.house.submit(), a.house.submit("another")
    a.fail("renderer_died")
    assert a.look()
    a.let_waits_end()
    a.does = lambda current: Outcome()
    assert not a.look(), "the first in the queue is for b"
    assert a.look(), "and a goes on with the next"
    assert not a.look()
    assert [current.job.id for current in a.attempts] == [job.id, other.id]
    assert a.lists() == (0, 0, 0)
    b.fail("renderer_died")
    assert b.look()
    b.let_waits_end()
    assert a.look() is False, "a has left it to others for some seconds, and does not look who they are"
    a.worker._postponed._left.clear()
    assert a.look(), "both failed it: whoever comes"
    assert a.house.queue.status(job) is JobStatus.FINISHED


def test_it_takes_the_job_after_all_when_the_other_is_gone(two: tuple[Bench, Bench]) -> None:
    a, b = two
    a.house.submit()
    a.fail("renderer_died")
    assert a.look()
    a.let_waits_end()
    assert not a.look()
    b.announce(state="unwell")
    a.worker._postponed._left.clear()
    assert a.look()
    a.let_waits_end()
    b.announce()
    assert not a.look()
    b.connection.delete(names.worker("b"))
    a.worker._postponed._left.clear()
    assert a.look()
    assert [current.number for current in a.attempts] == [1, 2, 3]


def test_a_job_that_nobody_failed_costs_no_look_at_the_fleet(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (postponing, rq_worker):
        monkeypatch.setattr(module, "live_workers", lambda connection: pytest.fail("not for this"))
    bench.house.submit()
    taken = bench.worker.dequeue_job_and_maintain_ttl(1)
    assert taken is not None
    bench.worker.execute_job(*taken)
    assert bench.lists() == (0, 0, 0)


def test_a_model_that_is_missing_here_is_another_workers_at_no_cost(two: tuple[Bench, Bench]) -> None:
    a, b = two
    job = a.house.submit(max_attempts=1)
    a.fail("model_load")
    assert a.look()
    assert a.house.meta(job.id)["failures"] == 0
    assert not a.look()
    b.does = lambda current: Outcome()
    assert b.look()
    assert a.house.queue.status(job) is JobStatus.FINISHED


def test_a_model_that_is_missing_everywhere_fails_the_job(two: tuple[Bench, Bench]) -> None:
    a, b = two
    job = a.house.submit()
    for each in two:
        each.fail("model_not_found", f"not on {each.name}")
    assert a.look()
    assert b.look()
    (result,) = a.house.queue.results(job)
    assert result.failure == Failure(kind="model_not_found", message="not on b")
    assert a.lists() == (0, 0, 0)


@pytest.mark.parametrize("kind", ["invalid_spec", "image_input", "safety_filtered", "bad_image", "model_not_found"])
def test_what_would_fail_here_again_is_not_tried_here_again(bench: Bench, kind: str) -> None:
    bench.announce()
    announce_worker(bench.connection, "another-model", name="mini-2")
    job = bench.house.submit()
    bench.fail(kind)
    assert bench.look()
    assert bench.house.queue.status(job) is JobStatus.FAILED
    assert bench.lists() == (0, 0, 0)


@pytest.mark.parametrize(("kind", "attempts"), [("renderer_died", 3), ("render_failed", 2), ("deadline_passed", 2)])
def test_a_worker_alone_tries_as_often_as_the_table_says(bench: Bench, kind: str, attempts: int) -> None:
    bench.announce()
    job = bench.house.submit()
    bench.fail(kind)
    for _ in range(attempts):
        bench.let_waits_end()
        assert bench.look()
    (result,) = bench.house.queue.results(job)
    assert (result.status, result.attempt) == (JobStatus.FAILED, attempts)


def test_pictures_that_could_not_be_delivered_are_delivered_by_whoever_has_them(two: tuple[Bench, Bench]) -> None:
    a, b = two
    job = a.house.submit()
    a.fail("store")
    assert a.look()
    a.let_waits_end()
    assert not b.look()
    a.does = lambda current: Outcome()
    assert a.look()
    assert a.house.queue.status(job) is JobStatus.FINISHED


def test_they_are_rendered_elsewhere_when_their_worker_does_not_come(two: tuple[Bench, Bench]) -> None:
    a, b = two
    job = a.house.submit()
    a.fail("store")
    assert a.look()
    a.connection.delete(names.worker("a"))
    a.let_waits_end()
    b.does = lambda current: Outcome()
    assert b.look()
    assert a.house.queue.status(job) is JobStatus.FINISHED


# What is remembered.


def test_failed_attempts_and_the_last_log_are_kept_until_the_job_is_done(bench: Bench) -> None:
    job = bench.house.submit(max_attempts=20)
    bench.does = lambda current: Outcome(
        failure=Failure(kind="renderer_died", message=f"death {current.number}" + "!" * 1000), log="x" * 9_000 + "end"
    )
    for _ in range(8):
        bench.let_waits_end()
        assert bench.look()
    history = bench.house.meta(job.id)["history"]
    assert [attempt["number"] for attempt in history] == [4, 5, 6, 7, 8]
    assert {attempt["worker"] for attempt in history} == {"bench"}
    assert all(len(attempt["failure"]["message"]) == 500 for attempt in history)
    log = bench.connection.hget(RqJob.key_for(job.id), names.LOG_FIELD)
    assert (len(log), log[-4:]) == (4000, b"xend")
    bench.let_waits_end()
    bench.does = lambda current: Outcome()
    assert bench.look()
    assert not bench.connection.hexists(RqJob.key_for(job.id), names.LOG_FIELD)


def test_rescues_count_for_each_job_and_what_is_set_aside_says_so(bench: Bench) -> None:
    jobs = [bench.house.submit(prompt) for prompt in ("one", "two")]

    def die(current: Current) -> Outcome:
        bench.let_lease_end()
        bench.rescue()
        return Outcome(lost=True)

    bench.does = die
    for _ in range(5):
        assert bench.look()
    assert bench.house.queue.status(jobs[1]) is JobStatus.QUEUED, "its worker died twice only"
    (result,) = bench.house.queue.results(jobs[0])
    assert result.failure is not None
    assert result.failure.message.startswith("its worker died 3 times while rendering it, the last time bench;")
    assert (result.worker, result.attempt) == ("bench", 3)
