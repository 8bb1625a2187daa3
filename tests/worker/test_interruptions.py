"""What happens to work when something is killed, stopped, canceled or too late: never lost, never done twice."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from renderkiln.producer.failures import story
from renderkiln.schema.errors import JobFailedError
from renderkiln.schema.jobs import JobStatus

from .conftest import LONG, House


def _attempts(house: House, job_id: str) -> list[tuple[int, str | None, str | None]]:
    """Number, outcome and failure of each attempt at a job, in order."""
    import sqlite3

    with sqlite3.connect(house.folder.ledger) as connection:
        rows = connection.execute(
            "SELECT number, outcome, failure_kind FROM attempts WHERE job_id = ? ORDER BY started_at", (job_id,)
        )
        found = [tuple(row) for row in rows]
    connection.close()
    return found


def _renderings(house: House, job_id: str) -> list[str]:
    """Which attempt rendered each image of a job, by k."""
    import sqlite3

    with sqlite3.connect(house.folder.ledger) as connection:
        rows = connection.execute("SELECT execution_id FROM images WHERE job_id = ? ORDER BY k", (job_id,))
        found = [row[0] for row in rows]
    connection.close()
    return found


def test_cancel_stops_between_steps_and_the_worker_goes_on(house: House) -> None:
    job = house.submit(steps=LONG)
    waiting = house.submit("another", steps=LONG)
    after = house.submit("a third")
    house.start_worker()
    house.wait_for_step(job.id)
    assert house.queue.cancel(job) == 1
    assert house.queue.cancel(waiting) == 1
    with pytest.raises(JobFailedError) as raised:
        house.queue.wait(job, timeout=30)
    assert raised.value.failure_kind == "canceled"
    assert house.queue.wait(after, timeout=60).status is JobStatus.FINISHED
    assert house.queue.status(job) is JobStatus.CANCELED
    assert house.queue.status(waiting) is JobStatus.CANCELED
    assert [outcome for _, outcome, _ in _attempts(house, job.id)] == ["canceled"]
    assert _attempts(house, waiting.id) == []
    # A canceled job can be asked for again.
    assert house.queue.retry(waiting) == 1
    assert house.queue.status(waiting) in (JobStatus.QUEUED, JobStatus.STARTED)
    house.queue.cancel(waiting)


def test_a_renderer_that_crashes_in_mid_job_costs_one_image_at_most_and_leaves_its_log(house: House) -> None:
    job = house.submit(steps=150, num_images=3)
    worker = house.start_worker(pretends=True)
    house.wait_for("image", job.id)
    house.wait_for_step(job.id)
    (renderer,) = house.children(worker)
    os.kill(renderer, signal.SIGSEGV)
    result = house.queue.wait(job, timeout=90)
    assert [image.k for image in result.images] == [0, 1, 2]
    (first, second) = _attempts(house, job.id)
    assert first == (1, "failed", "renderer_died")
    assert second[:2] == (2, "finished")
    by = _renderings(house, job.id)
    assert by[0] != by[2], "what was recorded before the crash is not rendered again"
    assert worker.poll() is None
    crashed, finished = story(house.queue.connection, house.folder, job.id).attempts
    assert "Fatal Python error: Segmentation fault" in crashed.log
    assert (crashed.outcome, finished.outcome, finished.log) == ("failed", "finished", "")


def test_everything_killed_in_mid_list_goes_on_where_it_was(house: House) -> None:
    first, second = house.submit(steps=150, num_images=3), house.submit("another")
    worker = house.start_worker(pretends=True)
    house.wait_for("image", first.id)
    house.wait_for_step(first.id)
    pid = house.server.status().pid
    assert pid is not None
    for victim in [*house.children(worker), worker.pid, pid]:
        os.kill(victim, signal.SIGKILL)
    worker.wait()
    before = _renderings(house, first.id)

    assert house.server.ensure_running()
    assert house.submit(steps=150, num_images=3, seed=None).outcome == "queued"  # another seed: another job
    house.start_worker(pretends=True)
    results = {result.job_id: result for result in house.queue.as_completed([first, second], timeout=90)}
    assert results[first.id].status is results[second.id].status is JobStatus.FINISHED
    assert _renderings(house, first.id)[: len(before)] == before
    assert [outcome for _, outcome, _ in _attempts(house, first.id)] == ["abandoned", "finished"]


def test_the_first_signal_finishes_the_image_and_gives_the_rest_back(house: House) -> None:
    job = house.submit(steps=200, num_images=50)
    worker = house.start_worker(pretends=True)
    house.wait_for("started", job.id)
    house.wait_for_step(job.id)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    returned = house.wait_for("returned", job.id)
    assert getattr(returned, "failure", 0) is None
    assert house.queue.status(job) is JobStatus.QUEUED
    done = len(_renderings(house, job.id))
    assert 1 <= done < 50
    assert house.meta(job.id).get("attempts") == 0, "a shutdown uses up no attempt"
    assert house.queue.connection.llen("rq:queue:renderkiln:normal:tiny") == 1


def test_the_second_signal_stops_at_once(house: House) -> None:
    job = house.submit(steps=LONG)
    worker = house.start_worker(pretends=True)
    house.wait_for_step(job.id)
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(60) == 0
    assert _renderings(house, job.id) == []
    assert house.queue.status(job) is JobStatus.QUEUED


def test_a_job_over_its_timeout_fails_with_that_reason(house: House) -> None:
    job = house.submit(steps=LONG, num_images=20, timeout=1.0)
    after = house.submit("another")
    house.start_worker(pretends=True)
    with pytest.raises(JobFailedError, match="timeout of 1 s") as raised:
        house.queue.wait(job, timeout=90)
    assert raised.value.failure_kind == "deadline_passed"
    assert house.queue.wait(after, timeout=60).status is JobStatus.FINISHED


def test_a_server_restarted_in_mid_job_loses_nothing(house: House) -> None:
    job, after = house.submit(steps=400), house.submit("another")
    worker = house.start_worker(pretends=True)
    house.wait_for_step(job.id)
    pid = house.server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    house.server.ensure_running()
    for result in house.queue.as_completed([job, after], timeout=90):
        assert result.status is JobStatus.FINISHED
    assert worker.poll() is None
    assert [outcome for _, outcome, _ in _attempts(house, job.id)] == ["finished"]


def test_a_worker_ends_when_whom_it_was_started_for_is_gone_and_its_work_is_done(house: House) -> None:
    owner = subprocess.Popen(["sleep", "600"])
    job = house.submit(steps=100)
    worker = house.start_worker("--owner", str(owner.pid), pretends=True)
    house.wait_for_step(job.id)
    owner.kill()
    owner.wait()
    assert worker.wait(60) == 0
    assert house.queue.status(job) is JobStatus.FINISHED


def test_an_idle_worker_outlives_its_server(house: House) -> None:
    first = house.submit()
    worker = house.start_worker(pretends=True)
    house.queue.wait(first, timeout=90)
    pid = house.server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    house.server.ensure_running()
    assert house.queue.wait(house.submit("after"), timeout=90).status is JobStatus.FINISHED
    assert worker.poll() is None


def test_a_dead_worker_elsewhere_is_noticed_when_its_lease_ends(make_house: Callable[..., House]) -> None:
    house = make_house(lease=3.0)
    job = house.submit(steps=LONG)
    worker = house.start_worker("--name", "gone", pretends=True)
    house.wait_for_step(job.id)
    for victim in [*house.children(worker), worker.pid]:
        os.kill(victim, signal.SIGKILL)
    worker.wait()
    # As if it had been another machine: only its lease can tell that it is dead.
    house.queue.connection.hset("rq:worker:gone", "hostname", "elsewhere")
    house.start_worker(pretends=True)
    started = house.wait_for("started", job.id, count=2)
    assert getattr(started, "attempt", None) == 2
    assert house.meta(job.id)["rescues"] == 1
    house.queue.cancel(job)


def test_a_job_taken_by_a_worker_that_died_before_registering_it_comes_back(make_house: Callable[..., House]) -> None:
    house = make_house(lease=3.0)
    job = house.submit()
    connection = house.queue.connection
    queue = "rq:queue:renderkiln:normal:tiny"
    assert connection.lmove(queue, f"{queue}:intermediate", "LEFT", "RIGHT") == job.id.encode()
    house.start_worker(pretends=True)
    assert house.queue.wait(job, timeout=90).status is JobStatus.FINISHED
