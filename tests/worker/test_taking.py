"""Taking, starting, ending and rescuing jobs, against a real server that goes away in between."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil
import pytest
from rq.job import Job as RqJob

from renderkiln.home.processes import is_no_more
from renderkiln.schema import names
from renderkiln.schema.errors import LedgerError
from renderkiln.schema.jobs import Failure, JobStatus
from renderkiln.worker.supervisor.outcomes import Beat, Current, Outcome
from renderkiln.worker.supervisor.taking import claim, take

from .bench import Bench
from .conftest import House


class OnWarning(logging.Handler):
    """Calls something, once, in the middle of whoever logs a warning with these words."""

    def __init__(self, words: str, then: Callable[[], object]) -> None:
        super().__init__()
        self._words, self._then = words, then
        self.happened = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage() and not self.happened:
            self.happened = True
            self._then()

    def __enter__(self) -> OnWarning:
        logging.getLogger("renderkiln.supervisor").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("renderkiln.supervisor").removeHandler(self)


def _kill_server(house: House) -> None:
    pid = house.server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_redis_away_between_taking_and_starting_a_job(bench: Bench) -> None:
    job = bench.house.submit()
    taken = take(bench.connection, [bench.queue])
    assert taken is not None
    _kill_server(bench.house)
    with OnWarning(f"starting job {job.id}", bench.house.server.ensure_running) as away:
        bench.worker.execute_job(*taken)
    assert away.happened
    assert [current.number for current in bench.attempts] == [1]
    assert bench.house.queue.status(job) is JobStatus.FINISHED
    assert bench.lists() == (0, 0, 0)


def test_a_server_that_cannot_write_at_a_jobs_end_is_waited_for(bench: Bench) -> None:
    job = bench.house.submit()
    set_memory = bench.house.server.client().config_set

    def fill(current: Current) -> Outcome:
        set_memory("maxmemory", "1")
        return Outcome()

    bench.does = fill
    with OnWarning(f"the end of job {job.id}", lambda: set_memory("maxmemory", "0")) as away:
        bench.run_one()
    assert away.happened
    assert bench.house.queue.status(job) is JobStatus.FINISHED
    assert bench.lists() == (0, 0, 0)


@pytest.mark.parametrize("outcome", [Outcome(), Outcome(lost=True), Outcome(given_back=True)])
def test_an_attempt_that_lost_its_lease_notices_and_writes_nothing(bench: Bench, outcome: Outcome) -> None:
    job = bench.house.submit()
    beats = []

    def lose(current: Current) -> Outcome:
        beats.append(bench.worker.beat_while_rendering())
        bench.let_lease_end()
        assert bench.rescue() == 1
        beats.append(bench.worker.beat_while_rendering())
        return outcome

    bench.does = lose
    bench.run_one()
    assert beats == [Beat.GOING_ON, Beat.LOST]
    assert bench.house.queue.status(job) is JobStatus.QUEUED
    assert bench.lists() == (1, 0, 0)


def test_a_job_that_is_rescued_too_often_ends_as_failed_and_in_no_list(bench: Bench) -> None:
    job = bench.house.submit()

    def die(current: Current) -> Outcome:
        bench.let_lease_end()
        bench.rescue()
        return Outcome(lost=True)

    bench.does = die
    for _ in range(3):
        bench.run_one()
    (result,) = bench.house.queue.results(job)
    assert result.failure is not None
    assert result.failure.kind == "renderer_died"
    assert bench.lists() == (0, 0, 0)


def test_an_id_that_stands_twice_in_a_queue_is_started_once(bench: Bench) -> None:
    job = bench.house.submit()
    bench.connection.rpush(bench.queue.key, job.id)
    first, second = take(bench.connection, [bench.queue]), take(bench.connection, [bench.queue])
    assert first is not None
    assert second is not None, "both saw it waiting"
    claimed: list[bool] = []

    def come_second(current: Current) -> Outcome:
        claimed.append(claim(bench.connection, *second, lambda pipe: pytest.fail("it is started already")))
        return Outcome()

    bench.does = come_second
    bench.worker.execute_job(*first)
    assert claimed == [False]
    assert bench.lists() == (0, 0, 0)


def test_claiming_a_job_that_was_canceled_meanwhile(bench: Bench) -> None:
    job = bench.house.submit()
    taken = take(bench.connection, [bench.queue])
    assert taken is not None
    assert bench.house.queue.cancel(job) == 1
    added: list[object] = []
    assert not claim(bench.connection, *taken, added.append)
    assert added == []
    assert bench.lists() == (0, 0, 0)


def test_a_command_to_stop_another_job_does_not_cancel_this_one(bench: Bench) -> None:
    bench.house.submit()

    def hear(current: Current) -> Outcome:
        bench.worker._stopped_job_id = "0" * 32  # what RQ's command thread does, for a job that has just ended
        bench.worker.kill_horse()
        assert bench.signals.canceled_job != current.job.id
        return Outcome()

    bench.does = hear
    bench.run_one()
    assert len(bench.attempts) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("meta", b"\xff"), ("meta", b"[1]"), ("timeout", b"soon"), ("created_at", b"yesterday"), ("status", b"odd")],
)
def test_fields_that_cannot_be_read_do_not_stop_the_queue(bench: Bench, field: str, value: bytes) -> None:
    broken, good = bench.house.submit("broken"), bench.house.submit("good")
    bench.connection.hset(RqJob.key_for(broken.id), field, value)
    bench.run_one()
    assert [current.job.id for current in bench.attempts] == [good.id]
    assert bench.connection.hget(RqJob.key_for(broken.id), "status") == b"failed"
    assert bench.connection.zscore(bench.queue.failed_job_registry.key, broken.id) == -1
    assert bench.lists() == (0, 0, 0)


def test_counts_that_are_no_counts_are_taken_for_none(bench: Bench) -> None:
    job = bench.house.submit()
    bench.connection.hset(RqJob.key_for(job.id), "meta", b'{"attempts": "many", "failures": -3}')
    bench.run_one()
    assert [current.number for current in bench.attempts] == [1]
    assert bench.house.queue.status(job) is JobStatus.FINISHED


def test_a_cancel_that_comes_before_the_end_is_written_holds(bench: Bench) -> None:
    job = bench.house.submit()
    recorded: list[JobStatus] = []
    bench.worker._on_ended = lambda current, outcome, status: recorded.append(status)

    def cancel_late(current: Current) -> Outcome:
        assert bench.house.queue.cancel(job) == 1  # after the attempt looked for the last time
        return Outcome()

    bench.does = cancel_late
    bench.run_one()
    assert recorded == [JobStatus.CANCELED], "the ledger never heard that it was finished"
    assert bench.house.queue.status(job) is JobStatus.CANCELED
    assert bench.lists() == (0, 0, 0)


@pytest.mark.parametrize("kind", ["bad_image", None])
def test_an_end_that_is_being_written_holds_and_the_cancel_is_told(bench: Bench, kind: str | None) -> None:
    job = bench.house.submit()
    canceled: list[int] = []
    bench.worker._on_ended = lambda current, outcome, status: canceled.append(bench.house.queue.cancel(job))
    failure = None if kind is None else Failure(kind=kind, message="all black")
    bench.does = lambda current: Outcome(failure=failure)
    bench.run_one()
    assert canceled == [0]
    assert bench.house.queue.status(job) is (JobStatus.FINISHED if kind is None else JobStatus.FAILED)
    # What ended can be asked for again, and canceled.
    again = bench.house.submit(again=True)
    assert bench.house.queue.cancel(again) == 1


def test_a_job_on_its_way_back_to_its_queue_can_be_canceled(bench: Bench) -> None:
    job = bench.house.submit()
    canceled: list[int] = []
    bench.worker._on_ended = lambda current, outcome, status: canceled.append(bench.house.queue.cancel(job))
    bench.does = lambda current: Outcome(given_back=True)
    bench.run_one()
    assert canceled == [1]
    assert bench.house.queue.status(job) is JobStatus.CANCELED
    assert bench.lists() == (0, 0, 0)


def test_who_died_while_it_wrote_an_end_does_not_keep_the_job_from_being_canceled(bench: Bench) -> None:
    job = bench.house.submit()

    def die(current: Current) -> Outcome:
        bench.connection.hset(RqJob.key_for(job.id), names.ENDING_FIELD, "1")
        bench.let_lease_end()
        bench.rescue()
        return Outcome(lost=True)

    bench.does = die
    bench.run_one()

    def cancel(current: Current) -> Outcome:
        assert bench.house.queue.cancel(job) == 1
        return Outcome(canceled=True)

    bench.does = cancel
    bench.run_one()
    assert bench.house.queue.status(job) is JobStatus.CANCELED


def test_what_is_held_up_waits_behind_the_others_and_uses_up_no_attempt(bench: Bench) -> None:
    first, second = bench.house.submit("first"), bench.house.submit("second")
    failure = Failure(kind="store", message="no route to host")
    bench.does = lambda current: Outcome(failure=failure, held_up=True)
    for _ in range(8):
        bench.run_one()
    assert [current.job.id for current in bench.attempts] == [first.id, second.id] * 4
    assert {current.number for current in bench.attempts} == {1}
    assert bench.house.queue.status(first) is JobStatus.QUEUED
    bench.does = lambda current: Outcome()
    bench.run_one()
    assert bench.house.queue.status(first) is JobStatus.FINISHED


def test_an_end_that_the_ledger_does_not_take_is_not_acknowledged(bench: Bench) -> None:
    job = bench.house.submit()

    def refuse(current: Current, outcome: Outcome, status: JobStatus) -> None:
        raise LedgerError("it is read-only")

    bench.worker._on_ended = refuse
    bench.run_one()
    assert bench.house.queue.status(job) is JobStatus.QUEUED
    bench.worker._on_ended = lambda current, outcome, status: None
    bench.run_one()
    assert bench.house.queue.status(job) is JobStatus.FINISHED


def test_a_machine_with_a_wrong_clock_takes_no_jobs_away_and_loses_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.house.submit()

    def jump(current: Current) -> Outcome:
        real = time.time
        for days in (1, -1):  # the rescuer's clock is ahead, and then behind as the lease is written
            monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86400)
            bench.connection.zadd(bench.queue.started_job_registry.key, {current.execution.composite_key: time.time()})
            assert bench.rescue() == 0
        monkeypatch.undo()
        assert bench.worker.beat_while_rendering() is Beat.GOING_ON
        return Outcome()

    bench.does = jump
    bench.run_one()
    assert len(bench.attempts) == 1


def test_a_job_that_a_wrong_clock_saw_first_is_put_back_in_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.house.submit()
    assert take(bench.connection, [bench.queue]) is not None
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: 4e9)
        assert bench.rescue() == 0, "seen for the first time"
    assert bench.rescue() == 1
    assert bench.lists() == (1, 0, 0)


def test_a_worker_whose_redis_was_emptied_keeps_its_name(bench: Bench) -> None:
    bench.worker.register_birth()
    bench.connection.flushall()
    bench.worker.heartbeat()
    host, pid = bench.connection.hmget(bench.worker.key, "hostname", "pid")
    assert (host.decode(), int(pid)) == (bench.worker.hostname, os.getpid())
    assert bench.connection.sismember("rq:workers", bench.worker.key)


def test_a_name_is_free_that_a_dead_worker_left_in_an_emptied_redis(bench: Bench) -> None:
    bench.connection.hset(bench.worker.key, mapping={"state": "busy"})
    bench.worker.register_birth()
    assert bench.connection.hget(bench.worker.key, "pid") == str(os.getpid()).encode()
    assert bench.connection.ttl(bench.worker.key) > 0


def test_a_process_that_has_ended_is_no_more_whether_or_not_anybody_has_asked_how() -> None:
    ended = subprocess.Popen(["true"])
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert is_no_more(ended.pid)
    ended.wait()
    assert is_no_more(ended.pid)
    assert not is_no_more(os.getpid())


def test_a_worker_shows_that_it_is_busy_as_soon_as_it_begins(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []
    monkeypatch.setattr(bench.worker, "_announce", states.append)
    shown: list[list[str]] = []

    def does(current: Current) -> Outcome:
        shown.append(states.copy())
        return Outcome()

    bench.does = does
    bench.house.submit()
    bench.run_one()
    assert shown == [["busy"]]
