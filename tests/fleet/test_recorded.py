"""Looking up, on the hub's machine, what Redis has forgotten: whichever machine did it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import redis
from tests.fakes import FakeWorker, image_of

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.producer import RenderQueue, endings
from renderkiln.producer.failures import story
from renderkiln.producer.hub.service import Hub
from renderkiln.producer.live import Watcher
from renderkiln.producer.recorded import recorded_results
from renderkiln.schema.errors import NotFoundError
from renderkiln.schema.jobs import Failure, JobResult, JobStatus
from renderkiln.worker.supervisor.publisher import Outbox

from .conftest import a_job, do


def test_what_another_machine_did_is_known_where_the_hub_runs(
    hub: Hub, connection: redis.Redis, ledger: Ledger, tmp_path: Path
) -> None:
    good, bad = a_job(1), a_job(0)
    hub.step(block=0)
    do(ledger, good, "e1", "mini-1", 1)
    ledger.attempt_started(bad, "e2", 1, "mini-1", 2)
    failure = Failure(kind="bad_image", message="the picture is all black")
    ledger.attempt_ended(bad.id, "e2", "failed", status=JobStatus.FAILED, failure=failure, log="what it said")
    assert Outbox(connection, ledger).send() == 1
    hub.step(block=0)
    connection.flushall()
    folder = DataFolder(tmp_path / "hub")
    assert [result.job_id for result in recorded_results(folder, "cats-1")] == [bad.id, good.id], "by their index"
    (result,) = recorded_results(folder, good.id)
    assert result.images == (image_of(good),)
    told = story(connection, folder, bad.id)
    assert (told.status, told.failure) == (JobStatus.FAILED, failure)
    assert [attempt.log for attempt in told.attempts] == ["what it said"]
    with pytest.raises(NotFoundError, match="neither in Redis nor in a ledger"):
        story(connection, folder, a_job(7).id)


def test_of_two_ledgers_the_one_that_knows_a_jobs_end_speaks(
    open_ledger: Callable[..., Ledger], tmp_path: Path
) -> None:
    job = a_job(1)
    hub, own = open_ledger("hub", strict=False), open_ledger("ledger")
    for each in (hub, own):
        each.worker_started("mini-1", "mini", 7, {})
        each.attempt_started(job, "e1", 1, "mini-1", 1)
    assert [result.status for result in recorded_results(DataFolder(tmp_path), job.id)] == [JobStatus.STARTED]
    own.image_recorded(job.id, image_of(job), "e1")
    own.attempt_ended(job.id, "e1", "finished", status=JobStatus.FINISHED)
    (result,) = recorded_results(DataFolder(tmp_path), job.id)
    assert (result.status, len(result.images)) == (JobStatus.FINISHED, 1)


def test_who_watches_does_not_give_up_what_redis_forgets_but_what_is_recorded_has_ended(
    queue: RenderQueue, connection: redis.Redis, open_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = queue.submit_many({"prompt": f"dog {number}", "model": "shapes", "seed": number} for number in range(2))
    ledger, worker = open_ledger("ledger"), FakeWorker(connection)
    job = worker.take()
    assert job is not None
    ledger.worker_started("mini-1", "mini", 7, {})
    do(ledger, job, "e1", "mini-1", 1)
    recorded = {job.id: ledger.result(job.id)}

    def ask(job_ids: Sequence[str]) -> dict[str, JobResult]:
        return {job_id: found for job_id in job_ids if (found := recorded.get(job_id)) is not None}

    watcher = Watcher(connection, batch.id, 2, 2, ask)
    assert watcher.view.jobs_ended == 0
    connection.flushall()
    watcher._look()
    assert (watcher.view.jobs_ended, watcher.view.failed, watcher.view.images_done) == (1, [], 1)
    monkeypatch.setattr(endings, "MAY_COME_BACK", 0.0)
    watcher._look()
    assert watcher.view.is_final
    assert [failed.failure.kind for failed in watcher.view.failed if failed.failure] == ["not_found"]
    watcher.close()
