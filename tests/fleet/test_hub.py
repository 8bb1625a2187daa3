"""The hub against a real server: at least once, in order to lose nothing; and no more kept than is needed."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from PIL import Image
from tests.fakes import FakeWorker

from renderkiln.home.ledger import Ledger
from renderkiln.home.outbox import source_of
from renderkiln.producer import RenderQueue
from renderkiln.producer.hub.service import Hub
from renderkiln.schema import names
from renderkiln.schema.errors import ServerUnavailableError, WorkerUnavailableError
from renderkiln.schema.jobs import JobStatus
from renderkiln.worker.supervisor.publisher import Outbox

from .conftest import a_job, do


@pytest.fixture
def outbox(connection: redis.Redis, ledger: Ledger) -> Outbox:
    return Outbox(connection, ledger)


def status_of(hub: Hub, job_id: str) -> JobStatus | None:
    result = hub._ledger.result(job_id)
    return None if result is None else result.status


def settle(hub: Hub) -> None:
    """Rounds until all is read and repaired."""
    for _ in range(4):
        hub.step(block=0)


def test_what_a_worker_did_is_taken_over_and_cut_off(
    hub: Hub, outbox: Outbox, ledger: Ledger, connection: redis.Redis
) -> None:
    settle(hub)
    jobs = [a_job(number) for number in range(5)]
    for number, job in enumerate(jobs):
        do(ledger, job, f"e{number}", "mini-1", number + 1)
    assert outbox.send() == 1
    assert outbox.send() == 0
    assert connection.xlen(names.RECORDS) == 1
    settle(hub)
    assert [hub._ledger.result(job.id) for job in jobs] == [ledger.result(job.id) for job in jobs]
    assert connection.xlen(names.RECORDS) == 0, "what was taken over is cut off"
    assert outbox.send() == 0


def test_nothing_is_kept_where_there_is_no_hub_and_all_of_it_comes_when_there_is(
    make_hub: Callable[[], Hub], outbox: Outbox, ledger: Ledger, connection: redis.Redis
) -> None:
    do(ledger, a_job(1), "e1", "mini-1", 1)
    assert outbox.send() == 0
    assert not connection.exists(names.RECORDS)
    hub = make_hub()
    settle(hub)
    assert outbox.send() == 1
    settle(hub)
    assert status_of(hub, a_job(1).id) is JobStatus.FINISHED


def test_a_hub_that_died_before_acknowledging_takes_the_same_again(
    make_hub: Callable[[], Hub], outbox: Outbox, ledger: Ledger, connection: Any
) -> None:
    first = make_hub()
    settle(first)
    do(ledger, a_job(1), "e1", "mini-1", 1)
    outbox.send()
    # It was handed the entry, and died: before writing it, or after.
    assert connection.xreadgroup(names.RECORDS_GROUP, "hub", {names.RECORDS: ">"})
    first.close()
    second = make_hub()
    settle(second)
    assert status_of(second, a_job(1).id) is JobStatus.FINISHED
    assert connection.xlen(names.RECORDS) == 0
    assert connection.xpending(names.RECORDS, names.RECORDS_GROUP)["pending"] == 0


def test_entries_that_redis_lost_are_sent_again(hub: Hub, connection: redis.Redis, ledger: Ledger) -> None:
    now = 0.0
    outbox = Outbox(connection, ledger, lambda: now)
    settle(hub)
    outbox.send()
    settle(hub)
    do(ledger, a_job(1), "e1", "mini-1", 1)
    assert outbox.send() == 1
    connection.xtrim(names.RECORDS, 0)  # the last second of a server that lost power
    now = 59.0
    assert outbox.send() == 0, "the hub may still be at it"
    now = 61.0
    assert outbox.send() == 1
    settle(hub)
    assert status_of(hub, a_job(1).id) is JobStatus.FINISHED
    now = 200.0
    assert outbox.send() == 0


def test_redis_emptied_comes_back_whole_with_one_repair(
    hub: Hub, outbox: Outbox, ledger: Ledger, queue: RenderQueue, connection: redis.Redis
) -> None:
    batch = queue.submit_many({"prompt": f"dog {number}", "seed": number} for number in range(7))
    worker = FakeWorker(connection)
    settle(hub)
    first = worker.take()
    assert first is not None
    do(ledger, first, "e1", "mini-1", 2**60)
    outbox.send()
    settle(hub)
    second = worker.take()  # and this one is at work
    assert second is not None

    connection.flushall()
    settle(hub)
    assert queue.status(batch).queued == 6
    assert queue.status(second.id) is JobStatus.QUEUED
    assert len(list(hub._ledger.batch_results(batch.id))) == 7
    assert status_of(hub, first.id) is JobStatus.FINISHED
    before = connection.dbsize()
    settle(hub)
    hub.repair()
    assert connection.dbsize() == before, "a second repair has nothing to do"
    # The worker tells the new stream from where the hub had read, and its next jobs.
    again = worker.take()
    assert again is not None
    do(ledger, again, "e2", "mini-1", 2**60 + 1)
    assert outbox.send() == 1
    settle(hub)
    assert status_of(hub, again.id) is JobStatus.FINISHED


def test_a_picture_that_a_lost_job_starts_from_comes_back_with_it(
    hub: Hub, queue: RenderQueue, connection: redis.Redis
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    job = queue.submit(prompt="a red dog", init_image=picture.getvalue())
    settle(hub)
    blobs = list(connection.scan_iter(names.blob("*")))
    assert len(blobs) == 1
    connection.flushall()
    settle(hub)
    assert queue.status(job.id) is JobStatus.QUEUED
    assert connection.get(blobs[0]) == picture.getvalue()


def test_what_ends_without_a_worker_is_heard_of(hub: Hub, queue: RenderQueue, connection: redis.Redis) -> None:
    kept, canceled = queue.submit(prompt="one"), queue.submit(prompt="two")
    settle(hub)
    assert status_of(hub, canceled.id) is JobStatus.QUEUED
    assert queue.cancel(canceled) == 1
    settle(hub)
    assert status_of(hub, canceled.id) is JobStatus.CANCELED
    assert queue.retry(canceled) == 1
    settle(hub)
    assert status_of(hub, canceled.id) is JobStatus.QUEUED
    assert queue.cancel(canceled) == 1
    settle(hub)
    connection.flushall()
    settle(hub)
    assert queue.status(kept.id) is JobStatus.QUEUED
    assert not connection.exists(f"rq:job:{canceled.id}"), "what was canceled does not come back"


def test_entries_that_cannot_be_read_are_dropped_and_counted(hub: Hub, connection: redis.Redis) -> None:
    settle(hub)
    for fields in ({"shipment": "{"}, {"other": "x"}, {"shipment": b"\xff\xfe"}, {"shipment": '{"records": 7}'}):
        connection.xadd(names.RECORDS, fields)  # type: ignore[arg-type]
    connection.xadd(names.EVENTS, {"event": "{"})
    connection.xadd(names.EVENTS, {"nothing": "x"})
    settle(hub)
    assert hub.counts.unreadable == 4
    assert connection.xlen(names.RECORDS) == 0


def test_what_is_more_than_one_reply_may_hold_is_read_in_pieces(
    hub: Hub, outbox: Outbox, ledger: Ledger, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(hub)
    monkeypatch.setattr("renderkiln.home.replies.MAX_REPLY", 1 << 16)
    jobs = [a_job(number) for number in range(4)]
    for number, job in enumerate(jobs):
        connection.xadd(names.RECORDS, {"other": "x" * 30_000})
        do(ledger, job, f"e{number}", "mini-1", number + 1)
        assert outbox.send() == 1
        connection.xadd(names.EVENTS, {"other": "x" * 30_000})
    for _ in range(12):
        hub.step(block=0)
    assert [status_of(hub, job.id) for job in jobs] == [JobStatus.FINISHED] * 4
    assert hub.counts.unreadable == 4
    assert connection.xlen(names.RECORDS) == 0


def test_an_entry_that_is_too_large_for_a_reply_stops_nothing(
    hub: Hub,
    outbox: Outbox,
    ledger: Ledger,
    queue: RenderQueue,
    connection: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle(hub)
    monkeypatch.setattr("renderkiln.home.replies.MAX_REPLY", 1 << 16)
    connection.xadd(names.RECORDS, {"shipment": "x" * 100_000})
    connection.xadd(names.EVENTS, {"event": "x" * 100_000})
    do(ledger, a_job(1), "e1", "mini-1", 1)
    outbox.send()
    behind = queue.submit(prompt="a red dog")
    for _ in range(8):
        hub.step(block=0)
    assert hub.counts.unreadable == 2
    assert connection.xlen(names.RECORDS) == 0
    assert status_of(hub, a_job(1).id) is JobStatus.FINISHED
    assert status_of(hub, behind.id) is JobStatus.QUEUED, "what an event told of behind the large one is known"


@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
def test_one_hub_is_enough(make_hub: Callable[[], Hub], connection: redis.Redis, host: str) -> None:
    connection.set(names.HUB, f"{host}-{os.getppid()}-0a1b2c3d")
    with pytest.raises(WorkerUnavailableError, match="a hub is up already"):
        make_hub().step(block=0)
    connection.delete(names.HUB)
    make_hub().step(block=0)


def test_a_hub_whose_predecessor_died_here_takes_its_place(
    make_hub: Callable[[], Hub], connection: redis.Redis
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, os.getpid()):  # in a container, each is process 1
        connection.set(names.HUB, f"{socket.gethostname()}-{pid}-0a1b2c3d", px=30_000)
        make_hub().step(block=0)
        assert 20_000 < connection.pttl(names.HUB) <= 30_000


def test_a_hub_outlives_redis_that_goes_away_while_it_repairs(
    make_hub: Callable[[], Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, stop, tries = make_hub(), threading.Event(), []

    def repair() -> None:
        tries.append(1)
        if len(tries) == 2:
            stop.set()
            return
        raise ServerUnavailableError("Redis stopped taking jobs after 0 were queued")

    monkeypatch.setattr(hub, "repair", repair)
    hub.run(stop)
    assert len(tries) == 2


def test_a_group_that_somebody_removed_is_made_again(
    hub: Hub, outbox: Outbox, ledger: Ledger, connection: redis.Redis
) -> None:
    settle(hub)
    connection.xgroup_destroy(names.RECORDS, names.RECORDS_GROUP)
    settle(hub)
    do(ledger, a_job(1), "e1", "mini-1", 1)
    outbox.send()
    settle(hub)
    assert status_of(hub, a_job(1).id) is JobStatus.FINISHED
    assert hub._ledger.counts()["workers"] == 1
    read = connection.hget(names.RECORDS_READ, source_of(ledger))
    assert read is not None
    assert int(read) == 4
