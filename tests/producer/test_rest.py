"""Workers that are up, what there is, contact sheets, and a worker of one's own."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tests.fakes import FakeWorker, stored

from renderkiln.home.folder import DataFolder
from renderkiln.home.pictures.encode import encode
from renderkiln.home.pictures.metadata import describe
from renderkiln.home.settings import Settings
from renderkiln.producer import RenderQueue
from renderkiln.producer.local_worker import LocalWorker
from renderkiln.producer.overview import recent_batches
from renderkiln.producer.recorded import recorded_results
from renderkiln.producer.results import read_states
from renderkiln.producer.sheets import write_contact_sheets
from renderkiln.schema import ImageResult, JobStatus, names
from renderkiln.schema.errors import WorkerUnavailableError


def test_batches_are_listed_newest_first_and_as_many_as_asked(queue: RenderQueue) -> None:
    ids, now = [], float(int(time.time()))
    for number in range(3):
        ids.append(queue.submit_many([{"prompt": f"cat {number}"}] * 2, name=f"list {number}").id)
        queue.connection.zadd(names.BATCHES, {ids[-1]: now + number})  # a second apart
    found = recent_batches(queue.connection)
    assert [row.id for row in found] == ids[::-1]
    assert [row.id for row in recent_batches(queue.connection, limit=1)] == ids[-1:]
    assert (found[0].name, found[0].created_at, found[0].num_jobs, found[0].num_images) == ("list 2", now + 2, 2, 2)


def test_without_a_ledger_nothing_is_known_of_old_batches_and_none_is_made(tmp_path: Path) -> None:
    assert recorded_results(DataFolder(tmp_path), "cats-1") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("meta", ["", "{", "[]", '{"result": 5}', '{"result": {"status": "x"}}', '{"other": 1}'])
def test_a_result_that_cannot_be_read_leaves_the_status_standing(queue: RenderQueue, meta: str) -> None:
    job = queue.submit(prompt="a cat")
    queue.connection.hset(f"rq:job:{job.id}", mapping={"status": "finished", "meta": meta})
    (state,) = read_states(queue.connection, [job.id])
    assert state is not None
    assert (state.status, state.result) == (JobStatus.FINISHED, None)
    assert queue.wait(job).status is JobStatus.FINISHED


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("queued", "queued"), ("scheduled", "queued"), ("stopped", "canceled"), ("deferred", "queued"), ("new", "queued")],
)
def test_rqs_statuses_are_told_in_our_words(queue: RenderQueue, theirs: str, ours: str) -> None:
    job = queue.submit(prompt="a cat")
    stored(queue.connection, job.id).connection.hset(f"rq:job:{job.id}", "status", theirs)
    assert queue.status(job) is JobStatus(ours)


class PaintingWorker(FakeWorker):
    """Also writes real pictures, one colour each."""

    def image(self, job: object, k: int) -> ImageResult:
        found = super().image(job, k)  # type: ignore[arg-type]
        data = encode(bytes([200, k, 0]) * 64 * 64, 64, 64, "png", describe(job.image_spec(k)))  # type: ignore[attr-defined]
        Path(found.url).write_bytes(data)
        return found.model_copy(update={"size_bytes": len(data)})


def test_a_contact_sheet_shows_the_pictures_of_a_batch_and_what_failed(queue: RenderQueue, tmp_path: Path) -> None:
    batch = queue.submit_many([{"prompt": "a cat", "num_images": 3}, {"prompt": "a dog"}])
    (tmp_path / "pictures").mkdir()
    worker = PaintingWorker(queue.connection, tmp_path / "pictures")
    job, other = worker.take(), worker.take()
    assert job is not None
    assert other is not None
    lost = worker.finish(job).images[2]
    worker.fail(other)
    Path(lost.url).unlink()
    (url,) = write_contact_sheets(queue, batch.id, str(tmp_path / "sheets"))
    assert Path(url).name == "contact-sheet.png"
    sheet = Image.open(io.BytesIO(Path(url).read_bytes())).convert("RGB")
    colours = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert {(200, 0, 0), (200, 1, 0)} <= colours
    assert (200, 2, 0) not in colours


def test_a_batch_of_which_nothing_has_ended_gets_no_sheet(queue: RenderQueue, tmp_path: Path) -> None:
    batch = queue.submit_many([{"prompt": "a cat"}])
    assert write_contact_sheets(queue, batch.id, str(tmp_path / "sheets")) == []


def test_a_worker_of_ones_own_that_cannot_run_is_not_started_for_ever(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho cannot render today\nexit 2\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    worker = LocalWorker(settings, "/renders", "shapes")
    worker.ensure_running()
    assert worker.wait(30)
    with pytest.raises(WorkerUnavailableError, match=r"exit code 2: cannot render today \(log: .*worker\.log\)"):
        worker.ensure_running()
    worker.stop()


def test_a_worker_of_ones_own_is_started_again_and_stopped(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = tmp_path / "python"
    patient.write_text("#!/bin/sh\nexec sleep 600\n")
    patient.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(patient))
    worker = LocalWorker(settings, "/renders", "shapes")
    assert (worker.pid, worker.wait(0)) == (None, True)
    worker.ensure_running()
    first = worker.pid
    worker.ensure_running()
    assert worker.pid == first
    assert worker.wait(0) is False
    worker.ask_to_stop()
    assert worker.wait(30)
    worker.ensure_running()
    assert worker.pid != first
    began = time.monotonic()
    worker.stop()
    assert worker.wait(0)
    assert time.monotonic() - began < 25


def test_a_batch_nobody_submitted_for_a_quarter_of_a_year_is_no_longer_listed(queue: RenderQueue) -> None:
    old = queue.submit_many([{"prompt": "cat"}], name="old").id
    queue.connection.zadd(names.BATCHES, {old: time.time() - names.BATCH_TTL - 1})
    new = queue.submit_many([{"prompt": "dog"}], name="new").id
    assert [row.id for row in recent_batches(queue.connection)] == [new]
    for key in (names.batch(new), names.batch_jobs(new)):
        assert 0 < queue.connection.ttl(key) <= names.BATCH_TTL
