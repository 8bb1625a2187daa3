"""Looking for room before a job is taken, on a real queue; the disk's free bytes are what the test says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderkiln.home.ledger import Ledger
from renderkiln.home.store import Store
from renderkiln.schema.errors import LedgerError
from renderkiln.schema.jobs import Failure
from renderkiln.worker.supervisor.away import Away
from renderkiln.worker.supervisor.gate import Gate
from renderkiln.worker.supervisor.outcomes import Outcome
from renderkiln.worker.supervisor.pausing import Pause
from renderkiln.worker.supervisor.room import Disks, estimate
from renderkiln.worker.supervisor.spool import Spool
from renderkiln.worker.supervisor.taking import put_back, take

from .attempts import a_job
from .conftest import House
from .test_taking import Bench

RESERVE = 1_000_000


class Gated(Bench):
    """The loop with a gate before it; the clock moves when the test says."""

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self.now, self.free, self.looks = 1000.0, 10 * RESERVE, 0
        self.pause, self.away = Pause(), Away(lambda: self.now)
        self.ledger = Ledger(house.folder.ledger)
        self.spool = Spool(house.folder.spool, 1000)
        self.gate = Gate(
            self.connection,
            store=Store(house.pictures),
            ledger=self.ledger,
            disks=Disks(RESERVE, self._look, lambda: self.now),
            spool=self.spool,
            away=self.away,
            pause=self.pause,
            clock=lambda: self.now,
        )
        self.worker._gate = self.gate

    def _look(self, folder: Path) -> int:
        self.looks += 1
        return self.free

    def is_open(self) -> bool:
        self.now += 1.5
        return self.gate.is_open()


@pytest.fixture
def gated(house: House) -> Iterator[Gated]:
    made = Gated(house)
    yield made
    made.ledger.close()
    made.signals.close()
    made.connection.close()


def test_a_worker_without_room_takes_nothing_says_so_once_and_goes_on(
    gated: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    job = gated.house.submit()
    gated.free = RESERVE - 1
    announced: list[str] = []
    gated.pause.on_change = lambda: announced.append(gated.pause.reason)
    assert not any(gated.is_open() for _ in range(5))
    gated.worker._found_empty = False
    # The loop itself: it would take the job, or find the queue empty and end.
    gated.gate.is_open = lambda: setattr(gated.worker, "_stop_requested", True)  # type: ignore[method-assign]
    assert gated.worker.dequeue_job_and_maintain_ttl(None) is None
    del gated.gate.is_open
    assert gated.lists() == (1, 0, 0)
    assert not gated.worker._found_empty
    gated.worker._stop_requested = False
    assert take(gated.house.server.client(), [gated.queue]) is not None, "another worker can have it"
    gated.connection.lmove(gated.queue.intermediate_queue_key, gated.queue.key, "LEFT", "LEFT")

    gated.free = RESERVE
    assert gated.is_open()
    taken = gated.worker.dequeue_job_and_maintain_ttl(None)
    assert taken is not None
    assert taken[0].id == job.id
    (reason, over) = announced
    assert over == ""
    assert "the disk of the ledger" in reason
    assert "1 MB free, and 1 MB are needed" in reason
    assert len([record for record in caplog.records if "paused" in record.getMessage()]) == 1
    assert "going on" in caplog.text


def test_each_disk_is_looked_at_once_a_second_at_most(gated: Gated) -> None:
    for _ in range(1000):
        assert gated.gate.is_open()
    assert gated.looks == 2, "the store's and the ledger's"


def test_a_job_that_does_not_fit_goes_back_and_is_waited_for(gated: Gated) -> None:
    large = gated.house.submit(num_images=100, width=256, height=256)
    small = gated.house.submit("a small one", width=64, height=64)
    gated.run_one()
    assert gated.attempts == [], "it needs 12 MB"
    assert gated.lists() == (2, 0, 0)
    assert gated.connection.lindex(gated.queue.key, 0) == large.id.encode()
    assert not gated.is_open()
    assert "the disk of the store" in gated.pause.reason
    gated.free = 100 * RESERVE
    assert gated.is_open()
    gated.run_one()
    gated.free = 10 * RESERVE
    gated.run_one()
    assert [current.job.id for current in gated.attempts] == [large.id, small.id]


def test_a_job_that_somebody_else_took_is_not_waited_for(gated: Gated) -> None:
    gated.house.submit(num_images=100, width=256, height=256)
    gated.run_one()
    assert not gated.is_open()
    gated.connection.lpop(gated.queue.key)
    assert gated.is_open()
    assert gated.pause.reason == ""


def test_what_is_taken_and_put_back_is_nowhere_else(gated: Gated) -> None:
    gated.house.submit()
    taken = take(gated.connection, [gated.queue])
    assert taken is not None
    put_back(gated.connection, *taken)
    assert gated.lists() == (1, 0, 0)


def test_a_ledger_that_failed_is_tried_before_the_next_job(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure(kind=LedgerError.kind, message="locked")
    gated.gate.learn("tiny", Outcome(failure=failure, held_up=True))
    assert not gated.gate.is_open(), "a job that goes back is not taken again at once"

    def fail() -> None:
        raise LedgerError("it is read-only")

    with monkeypatch.context() as patch:
        patch.setattr(gated.ledger, "check", fail)
        assert not gated.is_open()
        assert gated.pause.reason == "it is read-only"
    assert gated.is_open()


def test_a_store_that_is_away_stops_a_worker_only_when_its_spool_is_full(gated: Gated) -> None:
    gated.away.failed(str(gated.house.pictures), "no route to host")
    assert gated.is_open()
    gated.house.folder.spool.mkdir()
    (gated.house.folder.spool / "something").write_bytes(bytes(950))
    assert not gated.is_open()
    assert "no route to host" in gated.pause.reason
    gated.away.answered(str(gated.house.pictures))
    assert gated.is_open()


def test_what_a_jobs_pictures_take_is_guessed_from_their_size_or_from_those_before() -> None:
    job = a_job(10)
    assert estimate(job) == 0
    assert estimate(job, largest_seen=5000) == 50_000
    sized = job.model_copy(update={"spec": job.spec.model_copy(update={"width": 100, "height": 100})})
    assert estimate(sized, largest_seen=5000) == 180_000
