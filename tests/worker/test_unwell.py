"""A worker that failed different jobs in a row, as a broken one does; against a real server."""

from __future__ import annotations

import os

import pytest
from tests.fakes import announce_worker

from renderkiln.home.workers import live_workers
from renderkiln.schema.jobs import Failure, JobStatus
from renderkiln.worker.supervisor.health import MOST_FAILED
from renderkiln.worker.supervisor.outcomes import Outcome

from .bench import Bench


def make_unwell(bench: Bench) -> None:
    for number in range(MOST_FAILED):
        bench.house.submit(f"prompt {number}")
    bench.fail("bad_image")
    for _ in range(MOST_FAILED):
        assert bench.look()


def test_jobs_that_a_store_holds_up_do_not_make_a_worker_unwell(bench: Bench) -> None:
    bench.does = lambda current: Outcome(failure=Failure(kind="store", message="no route to host"), held_up=True)
    for number in range(MOST_FAILED + 1):
        bench.house.submit(f"number {number}")
    for _ in range(MOST_FAILED + 1):
        assert bench.look()
    assert len({current.job.id for current in bench.attempts}) == MOST_FAILED + 1
    assert bench.health.reason is None


def test_an_unwell_worker_takes_nothing_until_it_may_try_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    make_unwell(bench)
    job = bench.house.submit()
    clock = [0.0]
    bench.health._clock = lambda: clock[0]
    bench.health._next_try = 3.0

    def sleep() -> None:
        clock[0] += 1.0

    monkeypatch.setattr(bench.worker._listener, "wait", lambda seconds: sleep())
    states: list[str] = []
    monkeypatch.setattr(bench.worker, "_announce", states.append)
    taken = bench.worker.dequeue_job_and_maintain_ttl(1)
    assert taken is not None
    assert (clock[0], states) == (3.0, ["unwell"])
    bench.does = lambda current: Outcome()
    bench.worker.execute_job(*taken)
    bench.worker.heartbeat()
    assert states == ["unwell", "busy", "idle"]
    assert bench.house.queue.status(job) is JobStatus.FINISHED


@pytest.mark.parametrize("owner", [None, os.getpid()], ids=["burst", "owned"])
def test_an_unwell_worker_that_somebody_waits_for_ends(bench: Bench, owner: int | None) -> None:
    make_unwell(bench)
    job = bench.house.submit()
    bench.worker._owner = owner
    assert bench.worker.dequeue_job_and_maintain_ttl(None if owner is None else 1) is None
    assert bench.worker.is_done
    assert bench.house.queue.status(job) is JobStatus.QUEUED


def test_an_unwell_worker_is_shown_as_such(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    from renderkiln.producer.cli.looking import status

    reason = "5 different jobs in a row failed here"
    announce_worker(bench.connection, "tiny", name="mini", state="unwell", reason=reason)
    assert [worker.reason for worker in live_workers(bench.connection)] == [reason]
    status(data_dir=bench.house.settings.data_dir)
    assert f"worker mini: unwell, torch on mps, models tiny\n  {reason}\n" in capsys.readouterr().out
