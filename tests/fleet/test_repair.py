"""Repair: what differs is found, mended once, and nothing that is well is touched."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from rq.job import Job as RqJob
from tests.fakes import FakeWorker, image_of
from typer.testing import CliRunner

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.outbox import read_changes
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.home.store.folder import part_name
from renderkiln.producer import RenderQueue
from renderkiln.producer.cli.app import app
from renderkiln.producer.hub.projection import project
from renderkiln.producer.hub.repair import gone_files, look, mend, queue_gone, take_from_redis
from renderkiln.schema import names
from renderkiln.schema.jobs import ImageResult, JobStatus

from .conftest import a_job, do

QUEUE = "rq:queue:renderkiln:normal:shapes"


@pytest.fixture
def known(open_ledger: Callable[..., Ledger]) -> Ledger:
    """The hub's."""
    return open_ledger("hub", strict=False)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "hub").ensure()


def submit(queue: RenderQueue, count: int) -> list[str]:
    return [queue.submit(prompt=f"a dog, number {number}", seed=number).id for number in range(count)]


def test_all_is_well_in_every_place_where_a_job_can_stand(
    known: Ledger, queue: RenderQueue, connection: Any, folder: DataFolder
) -> None:
    waiting, taken, started, delayed, done = submit(queue, 5)
    take_from_redis(known, connection, [waiting, taken, started, delayed, done])
    worker = FakeWorker(connection)
    connection.lrem(QUEUE, 1, taken)
    connection.rpush(f"{QUEUE}:intermediate", taken)
    connection.lrem(QUEUE, 1, delayed)
    connection.zadd("rq:scheduled:renderkiln:normal:shapes", {delayed: time.time() + 60})
    connection.hset(RqJob.key_for(delayed), "status", "scheduled")
    connection.lrem(QUEUE, 1, started)
    worker.start(started)
    connection.zadd("rq:wip:renderkiln:normal:shapes", {f"{started}:e1": time.time() + 60})
    connection.lrem(QUEUE, 1, done)
    worker.finish(worker.start(done))
    found = look(known, connection)
    assert found.behind == [done]
    assert (found.lost, found.stuck, found.unknown) == ([], [], [])
    mend(known, connection, folder, found)
    assert look(known, connection).count == 0


def test_jobs_that_stand_nowhere_are_put_back_once(
    known: Ledger, queue: RenderQueue, connection: Any, folder: DataFolder
) -> None:
    ids = submit(queue, 3)
    take_from_redis(known, connection, ids)
    connection.lrem(QUEUE, 1, ids[0])  # as by a worker that RQ's own dequeue lost it to
    connection.lrem(QUEUE, 1, ids[1])
    FakeWorker(connection).start(ids[1])  # started, and in no registry
    found = look(known, connection)
    assert sorted(found.stuck) == sorted(ids[:2])
    assert mend(known, connection, folder, found).put_back == 2
    assert mend(known, connection, folder, found).put_back == 0
    assert sorted(each.decode() for each in connection.lrange(QUEUE, 0, -1)) == sorted(ids)
    assert {queue.status(each) for each in ids} == {JobStatus.QUEUED}
    assert look(known, connection).count == 0


def test_a_job_that_a_worker_takes_just_now_is_its(
    known: Ledger, queue: RenderQueue, connection: Any, folder: DataFolder
) -> None:
    (job,) = submit(queue, 1)
    take_from_redis(known, connection, [job])
    connection.lrem(QUEUE, 1, job)
    found = look(known, connection)
    assert found.stuck == [job]
    connection.rpush(f"{QUEUE}:intermediate", job)
    assert mend(known, connection, folder, found).put_back == 0
    assert connection.llen(QUEUE) == 0


def test_what_the_ledger_does_not_know_is_taken_over_but_nothing_foreign(
    known: Ledger, queue: RenderQueue, connection: Any, folder: DataFolder
) -> None:
    ids = submit(queue, 2)
    for key in connection.scan_iter("renderkiln:batch*"):
        connection.delete(key)  # in no batch, and yet queued
    connection.rpush(QUEUE, "foreign", b"\xff\xfe")
    connection.hset("rq:job:foreign", mapping={"status": "queued", "data": b"x", "created_at": "never"})
    found = look(known, connection)
    assert set(ids) < {*found.unknown, ""} | set(ids)
    assert mend(known, connection, folder, found).taken_over == 2
    assert [known.result(each) is not None for each in ids] == [True, True]
    assert known.counts()["jobs"] == 2


def test_a_lost_job_keeps_its_batch_and_its_place(
    known: Ledger, queue: RenderQueue, connection: redis.Redis, folder: DataFolder
) -> None:
    batch = queue.submit_many([{"prompt": f"a cat {number}", "seed": 1} for number in range(4)], name="cats")
    ids = queue._ids(batch.id)
    take_from_redis(known, connection, ids)
    connection.flushall()
    found = look(known, connection)
    assert found.lost == ids
    assert mend(known, connection, folder, found).queued_again == 4
    assert [each.decode() for each in connection.lrange(QUEUE, 0, -1)] == ids  # type: ignore[union-attr]
    assert queue._ids(batch.id) == ids
    assert queue.status(batch).queued == 4


def test_a_lost_job_comes_back_with_the_notes_of_its_pictures(
    known: Ledger, queue: RenderQueue, connection: redis.Redis, folder: DataFolder
) -> None:
    ids = [queue.submit(prompt="a cat", num_images=3).id, queue.submit(prompt="a dog").id]
    take_from_redis(known, connection, ids)
    begun, waiting = FakeWorker(connection).take(), ids[1]
    assert begun is not None
    images = [image_of(begun, k) for k in range(2)]
    for image in images:
        known.image_recorded(begun.id, image, None)
    connection.flushall()
    mend(known, connection, folder, look(known, connection))
    notes = connection.hgetall(names.images(begun.id))
    assert [ImageResult.model_validate_json(note) for note in notes.values()] == images  # type: ignore[union-attr]
    assert not connection.exists(names.images(waiting))


def test_files_that_are_gone_are_listed_and_rendered_again(
    known: Ledger, ledger: Ledger, tmp_path: Path, queue: RenderQueue, connection: redis.Redis
) -> None:
    store = tmp_path / "renders"
    store.mkdir()
    jobs = [a_job(number) for number in range(4)]
    for number, job in enumerate(jobs):
        do(ledger, job, f"e{number}", "mini-1", number + 1, image_of(job, folder=store))
    elsewhere = a_job(9)
    do(ledger, elsewhere, "e9", "mini-1", 9, image_of(elsewhere, folder=tmp_path / "another-macs"))
    shipment = read_changes(ledger, 0)
    assert shipment is not None
    project(known, [shipment])
    (store / f"{jobs[1].id}-0.png").unlink()
    (store / f"{jobs[2].id}-0.png").write_bytes(b"cut")
    gone = list(gone_files(known))
    assert {each.job_id for each in gone} == {jobs[1].id, jobs[2].id}
    assert queue_gone(connection, known, gone) == 2
    assert queue.status(jobs[1].id) is JobStatus.QUEUED
    assert list(gone_files(known)) == [], "they are not finished any more"


class TestCommand:
    @pytest.fixture
    def machine(self, own_server: Callable[[Path], EmbeddedServer], no_settings: Path, tmp_path: Path) -> RenderQueue:
        """One machine with an embedded server and no hub."""
        root = tmp_path / "data"
        own_server(root).ensure_running()
        return RenderQueue(settings=Settings(data_dir=root, out=str(tmp_path / "out")))

    def run(self, queue: RenderQueue, *flags: str) -> Any:
        command = ["repair", "--data-dir", str(queue.settings.data_dir), *flags]
        return CliRunner().invoke(app, command, env={"RENDERKILN_OUT": queue.settings.out}, catch_exceptions=False)

    def test_dry_run_changes_nothing_and_then_it_mends(self, machine: RenderQueue) -> None:
        Ledger(machine.folder.ledger).close()
        job = machine.submit(prompt="a red circle")
        machine.connection.lrem("rq:queue:renderkiln:normal:shapes", 1, job.id)
        out = Path(machine.settings.out)
        out.mkdir()
        stale, fresh = out / part_name("a.png"), out / part_name("b.png")
        stale.write_bytes(b"half")
        fresh.write_bytes(b"half")
        os.utime(stale, (1, 1))

        said = json.loads(self.run(machine, "--dry-run", "--json").output)
        assert said["unknown"] == [job.id]
        assert said["half_written_files"] == 1
        assert stale.exists()
        assert machine.connection.llen("rq:queue:renderkiln:normal:shapes") == 0

        assert "1 job not in the ledger: taken over" in self.run(machine).output
        assert not stale.exists()
        assert fresh.exists()
        assert "1 job in no list that a worker looks at: put back" in self.run(machine).output
        assert machine.connection.llen("rq:queue:renderkiln:normal:shapes") == 1
        assert "nothing to mend" in self.run(machine).output

    def test_another_ledger_is_taken_over_and_its_open_jobs_come_back(
        self, machine: RenderQueue, ledger: Ledger
    ) -> None:
        Ledger(machine.folder.ledger).close()
        ledger.attempt_started(a_job(1), "e1", 1, "mini-1", 1)
        ledger.close()
        assert "1 job not in Redis any more: queued again" in self.run(machine, "--ledger", str(ledger.path)).output
        assert machine.status(a_job(1).id) is JobStatus.QUEUED
