"""Memory in a real worker: what is learned, recorded and tightened, and who looks ahead."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

from rq.job import Job as RqJob

from renderkiln.home.folder import DataFolder
from renderkiln.home.memory_records import MemoryRecords
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.workers import live_workers
from renderkiln.schema.jobs import JobStatus
from renderkiln.schema.payload import MAX_PAYLOAD
from renderkiln.worker.supervisor.ahead import LookAhead, peek

from .conftest import LONG, House


def attempts(house: House) -> list[dict[str, Any]]:
    with sqlite3.connect(house.folder.ledger) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM attempts ORDER BY started_at")]


def test_after_a_kill_a_job_is_tried_again_with_less_memory(house: House) -> None:
    worker = house.start_worker()
    job = house.submit(steps=LONG // 3, max_attempts=1)
    house.wait_for_step(job.id)
    (renderer,) = house.children(worker)
    os.kill(renderer, signal.SIGKILL)
    returned = house.wait_for("returned", job.id)
    said = "a quarter less is kept in memory for tiny on this machine"
    assert said in str(getattr(returned, "failure", None))
    result = house.queue.wait(job, timeout=90)
    assert (result.status, result.attempt) == (JobStatus.FINISHED, 2), "memory that ran out uses up none of the tries"
    first, second = attempts(house)
    assert (first["outcome"], first["failure_kind"]) == ("failed", "renderer_died")
    assert said in first["failure_message"]
    assert first["peak_bytes"] > 100_000_000, "seen from outside, since the renderer could not tell"
    assert second["outcome"] == "finished"
    house.queue.wait(house.submit("a blue circle"), timeout=90)
    (announced,) = live_workers(house.queue.connection)  # when it took that one, at the latest
    assert announced.memory is not None
    assert announced.memory.policy == "auto"
    assert announced.memory.held_bytes > 100_000_000
    assert "unet" in {stage.stage for stage in announced.memory.stages}
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    records = MemoryRecords(house.ledger())
    (sampled,) = records.sampled_workers()
    events = [sample.event for sample in records.samples(sampled[0]) if sample.event]
    assert any(said in event for event in events)


def test_just_in_time_with_a_look_ahead(house: House) -> None:
    jobs = [house.submit(f"a red circle, {number}", negative_prompt="blurry") for number in range(5)]
    house.start_worker("--memory", "jit", "--burst")
    for job in jobs:
        assert house.queue.wait(job, timeout=90).status is JobStatus.FINISHED
    assert house.workers[0].wait(60) == 0
    rows = attempts(house)
    assert len(rows) == 5
    first, *others = [row["loads"] for row in rows]
    # text encoder (the warm-up's is gone), UNet, decoder, safety checker; then the same without the text encoder
    assert others == [first - 1] * 4
    assert all(row["evictions"] >= 2 and row["peak_bytes"] > 100_000_000 for row in rows)
    records = MemoryRecords(house.ledger())
    costs = records.stage_costs("tiny", "torch auto cpu")
    assert costs.pop("renderer").size_bytes > 100_000_000
    assert {"text_encoder", "unet", "vae_decoder"} <= set(costs)
    assert all(cost.size_bytes > 0 and cost.load_seconds > 0 for cost in costs.values())
    samples = records.samples()
    most = max(len(sample.stages) for sample in samples)
    assert most == 1, "never two stages at once"
    assert {sample.stages[0][1] for sample in samples if sample.stages} >= {"unet", "text_encoder"}


def test_what_cannot_fit_is_not_started(house: House) -> None:
    worker = house.start_worker("--memory-budget", "300MB")
    assert worker.wait(60) == 2
    log = house.log.read_text()
    assert "tiny does not fit" in log
    assert "there are 300 MB" in log


def test_who_is_refused_leaves_no_server_behind(tiny_model: Path, tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data").ensure()
    folder.models.mkdir()
    (folder.models / "tiny").symlink_to(tiny_model)
    command = [sys.executable, "-m", "renderkiln.producer", "worker", "--memory-budget", "300MB"]
    said = subprocess.run([*command, "--data-dir", str(folder.root)], capture_output=True, text=True, timeout=90)
    assert said.returncode == 2
    assert "does not fit" in said.stderr
    assert EmbeddedServer(folder).status().pid is None


def test_a_budget_that_is_exceeded_and_what_it_did_to_a_picture_are_said(house: House) -> None:
    # Where it cannot be kept, as the renderer itself takes more: the check at the start goes by an estimate.
    house.start_worker("--memory-budget", "470MB", "--burst")
    job = house.submit(width=128, height=128, num_images=2)
    result = house.queue.wait(job, timeout=90)
    assert result.status is JobStatus.FINISHED
    assert house.workers[0].wait(60) == 0
    log = house.log.read_text()
    # The picture.
    ledger = house.ledger()
    recorded = ledger.result(job.id)
    assert recorded is not None
    assert recorded.images == result.images
    notes = [note for image in result.images for note in image.notes]
    assert len(notes) == 2
    assert "Decoded in tiles" in notes[0]
    assert log.count("Decoded in tiles") == 1, "once for a job"
    command = [sys.executable, "-m", "renderkiln.producer", "results", job.id, "--data-dir", str(house.folder.root)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.splitlines() == [image.url for image in result.images]
    assert told.stderr.splitlines() == [f"{image.url}: {notes[0]}" for image in result.images]
    # The budget.
    records = MemoryRecords(ledger)
    peak = max(row["peak_bytes"] for row in attempts(house))
    said = "over the budget. `renderkiln models plan tiny` shows what takes it."
    samples = records.samples()
    assert {sample.budget_bytes for sample in samples} == {470 * 10**6}
    assert peak > 1.02 * 470e6
    assert said in log
    assert any(said in (sample.event or "") for sample in samples)
    ((worker, first_at, last_at),) = records.sampled_workers()
    assert len(records.attempts(worker, first_at, last_at)) == 1, "short ones are counted, too"


def test_a_budget_that_is_none_is_a_setting_gone_wrong(house: House) -> None:
    worker = house.start_worker("--memory-budget", "much")
    assert worker.wait(60) == 2
    assert "memory_budget = 'much'" in house.log.read_text()


class TestPeeking:
    def test_sees_the_next_jobs_of_the_model_and_takes_none(self, house: House) -> None:
        current = house.submit("at work")
        for number in range(3):
            house.submit(f"number {number}")
        house.submit("urgent", priority="high")
        house.submit("number 0", seed=5)  # the same prompts once more
        before = house.queue.connection.llen("rq:queue:renderkiln:normal:tiny")
        seen = peek(house.queue.connection, _job(house, current.id), 48)
        assert [spec.prompt for spec in seen] == ["urgent", "at work", "number 0", "number 1", "number 2"]
        assert house.queue.connection.llen("rq:queue:renderkiln:normal:tiny") == before
        assert [spec.prompt for spec in peek(house.queue.connection, _job(house, current.id), 2)] == [
            "urgent",
            "at work",
        ]
        assert peek(house.queue.connection, _job(house, current.id), 0) == ()

    def test_who_was_told_once_is_not_told_again(self, house: House) -> None:
        jobs = [_job(house, house.submit(f"number {number}").id) for number in range(5)]
        ahead = LookAhead(house.queue.connection, 3)
        assert [json.loads(spec)["prompt"] for spec in ahead.of(jobs[0])] == ["number 0", "number 1", "number 2"]
        assert ahead.of(jobs[1]) == ahead.of(jobs[2]) == ()
        assert len(ahead.of(jobs[3])) == 3
        assert ahead.of(jobs[2]) == ()
        ahead.forget()
        assert len(ahead.of(jobs[2])) == 3, "a new renderer has heard of nothing"
        assert LookAhead(house.queue.connection, 0).of(jobs[0]) == ()

    def test_what_cannot_be_read_is_left_alone(self, house: House) -> None:
        job = house.submit("at work")
        connection = house.queue.connection
        bomb = zlib.compress(b"[" * (64 * MAX_PAYLOAD))
        for number, data in enumerate((b"", b"\x80\x04pickle", zlib.compress(b"{}"), bomb, zlib.compress(b'"x"'))):
            connection.hset(RqJob.key_for(f"bad-{number}"), "data", data)
            connection.rpush("rq:queue:renderkiln:normal:tiny", f"bad-{number}")
        connection.rpush("rq:queue:renderkiln:normal:tiny", b"\xff\xfe", "gone")
        house.submit("after them")
        assert [spec.prompt for spec in peek(connection, _job(house, job.id), 48)] == ["at work", "after them"]


def _job(house: House, job_id: str) -> Any:
    from renderkiln.schema.payload import read_payload

    return read_payload(RqJob.fetch(job_id, connection=house.queue.connection, serializer=_Serializer).data)


class _Serializer:
    """Leaves RQ's data as it is."""

    dumps = staticmethod(lambda value: value)
    loads = staticmethod(lambda value: value)
