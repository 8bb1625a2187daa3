"""`renderkiln failed`: what it lists, shows and queues again, of jobs as workers leave them."""

from __future__ import annotations

import io
import json
import sys
import time
from datetime import datetime, timezone
from typing import Any

import pytest
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer
from rq.utils import utcformat
from tests.fakes import FakeWorker

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.producer import RenderQueue
from renderkiln.schema import Failure, JobStatus, names
from renderkiln.schema.jobs import Job
from renderkiln.worker.supervisor.endings import refuse

from .conftest import Run

NORMAL = names.queue("normal", "shapes")


@pytest.fixture
def worker(fleet: Settings, server: EmbeddedServer) -> FakeWorker:
    return FakeWorker(server.client())


def take(worker: FakeWorker) -> Job:
    job = worker.take()
    assert job is not None
    return job


class Typed(io.StringIO):
    """What a person types at a terminal."""

    def isatty(self) -> bool:
        return True


def remember(worker: FakeWorker, job: Job, *attempts: dict[str, Any], log: str = "") -> None:
    """Leaves the notes of failed attempts in a job, beside what is there."""
    key = RqJob.key_for(job.id)
    meta = json.loads(worker.connection.hget(key, "meta") or "{}")  # type: ignore[arg-type]
    history = [
        {"execution_id": f"e{number}", "job_id": job.id, "number": number, "worker": "mini-1"}
        | {"started_at": f"2026-01-02T03:0{number}:00Z", "ended_at": f"2026-01-02T03:0{number}:30Z"}
        | {"outcome": "failed"}
        | attempt
        for number, attempt in enumerate(attempts, start=1)
    ]
    meta["history"] = history
    worker.connection.hset(key, mapping={"meta": json.dumps(meta), names.LOG_FIELD: log})


def refused(worker: FakeWorker) -> str:
    """Something in our queue that is no job of ours, as a worker sets it aside."""
    queue = Queue(NORMAL, connection=worker.connection, serializer=JSONSerializer)
    job = queue.enqueue("os.system", "rm -rf /")
    refuse(worker.connection, job.id, queue, Failure(kind="invalid_spec", message="function 'os.system' is not run"))
    worker.connection.lrem(queue.key, 1, job.id)
    return str(job.id)


def test_nothing_has_failed(run: Run, worker: FakeWorker) -> None:
    assert run("failed").out == "no job has failed\n"
    assert run("failed", "--json").out == ""


def test_failed_jobs_are_listed_by_kind_and_message(run: Run, worker: FakeWorker, queue: RenderQueue) -> None:
    for prompt in ("a cat", "a dog", "a cow"):
        queue.submit(prompt=prompt, priority="high" if prompt == "a cow" else "normal")
    cow, cat, dog = (take(worker) for _ in range(3))
    for job, message in ((cat, "it crashed"), (dog, "it crashed"), (cow, "it was killed")):
        worker.fail(job, "renderer_died", message)
    foreign = refused(worker)
    hour_ago = datetime.fromtimestamp(time.time() - 3605, timezone.utc)
    worker.connection.hset(RqJob.key_for(cat.id), "ended_at", utcformat(hour_ago))
    lines = run("failed").out.splitlines()
    assert lines[0] == "renderer_died: 3 jobs"
    assert lines.count("  it crashed") == 1
    (line,) = (line for line in lines if cat.id in line)
    assert line == f"    {cat.id}  on fake  1 attempt  1 h 0 min ago  batch {cat.batch}  shapes: a cat"
    assert lines.index("  it was killed") < lines.index("refused (no jobs of ours): 1 job")
    assert any(foreign in line for line in lines)
    rows = [json.loads(line) for line in run("failed", "--json").out.splitlines()]
    assert {row["job"]: (row["kind"], row["refused"]) for row in rows} == {
        **{job.id: ("renderer_died", False) for job in (cow, cat, dog)},
        foreign: ("invalid_spec", True),
    }
    assert rows[0]["failed_at"] > time.time() - 60, "what failed last comes first"


def test_what_is_listed_can_be_chosen_and_bounded(run: Run, worker: FakeWorker, queue: RenderQueue) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}"} for number in range(3))
    queue.submit(prompt="a dog")
    for kind in ("store", "bad_image", "store", "store"):
        worker.fail(take(worker), kind)

    def listed(*options: str) -> int:
        return len(run("failed", "--json", *options).out.splitlines())

    assert [listed(), listed("--batch", batch.id), listed("--kind", "store")] == [4, 3, 3]
    assert [listed("--limit", "2"), listed("--batch", batch.id, "--kind", "bad_image")] == [2, 1]
    assert "and 2 more: --limit 0 lists all" in run("failed", "--limit", "2").out
    assert run("failed", "--batch", "another").code == 2


def test_one_job_is_shown_with_its_attempts_and_log(run: Run, worker: FakeWorker, queue: RenderQueue) -> None:
    queue.submit(prompt="a cat", seed=7, width=64, height=64)
    job = take(worker)
    worker.fail(job, "renderer_died", "it crashed")
    crash = {"failure": {"kind": "renderer_died", "message": "it crashed"}}
    remember(worker, job, crash, crash | {"worker": "mini-2"}, log="12:00:00 WARNING …\nFatal Python error")
    said = run("failed", job.id)
    assert said.out.startswith(f"job {job.id}: failed, batch {job.batch}\n")
    assert "              prompt  a cat\n" in said.out
    assert "renderer_died: it crashed\nattempt 1 on mini-1, 20" in said.out
    last = said.out.partition("attempt 2 on mini-2, ")[2].splitlines()
    assert last[0].endswith(", 30 s: renderer_died: it crashed")
    assert last[1:3] == ["    12:00:00 WARNING …", "    Fatal Python error"]
    assert last[-1] == f"queue it again: renderkiln failed --requeue {job.id}"
    row = run("failed", job.id, "--json").json
    assert (row["status"], row["failure"]["kind"], row["spec"]["seed"]) == ("failed", "renderer_died", 7)
    assert [attempt["log"][-6:] for attempt in row["attempts"]] == ["", " error"]


def test_the_ledger_of_this_machine_knows_more(
    run: Run, worker: FakeWorker, queue: RenderQueue, fleet: Settings
) -> None:
    queue.submit(prompt="a cat")
    job = take(worker)
    ledger = Ledger(DataFolder(fleet.data_dir).ensure().ledger)
    ledger.worker_started("mini-1", "mini", 1, {})
    ledger.attempt_started(job, "e1", 1, "mini-1")
    failure = Failure(kind="renderer_died", message="it crashed")
    ledger.attempt_ended(
        job.id,
        "e1",
        "failed",
        status=JobStatus.FAILED,
        failure=failure,
        timings={"load_seconds": 1.25},
        memory={"peak_bytes": 2_400_000_000, "loads": 3, "evictions": 2},
        log="all of it",
    )
    ledger.close()
    remember(worker, job, {"failure": {"kind": "renderer_died", "message": "it cra"}}, {"worker": "mini-2"}, log="end")
    attempts = {attempt["worker"]: attempt for attempt in run("failed", job.id, "--json").json["attempts"]}
    first, second = attempts["mini-1"], attempts["mini-2"]
    assert (first["failure"]["message"], first["log"]) == ("it crashed", "all of it")
    assert (first["peak_bytes"], first["loads"], first["evictions"]) == (2_400_000_000, 3, 2)
    took = "    memory: 2,400 MB at most, 3 stages loaded in 1.2 s, 2 dropped to make room\n"
    assert took in run("failed", job.id).out
    assert (second["number"], second["log"], second["peak_bytes"]) == (2, "end", None)
    worker.connection.flushall()
    row = run("failed", job.id, "--json").json
    assert (row["status"], len(row["attempts"])) == ("failed", 1)


def test_a_job_that_waits_for_its_next_try_says_when(run: Run, worker: FakeWorker, queue: RenderQueue) -> None:
    queue.submit(prompt="a cat")
    job = take(worker)
    remember(worker, job, {"failure": {"kind": "store", "message": "away"}})
    worker.connection.hset(RqJob.key_for(job.id), "status", "scheduled")
    worker.connection.zadd(f"rq:scheduled:{NORMAL}", {job.id: time.time() + 100.4})
    said = run("failed", job.id).out
    assert f"job {job.id}: queued" in said
    assert "tried again in 1 min 40 s" in said
    assert run("failed").out == "no job has failed\n"


@pytest.mark.parametrize(
    ("choice", "expected"), [(["--all"], 3), (["--batch", "BATCH"], 2), (["--kind", "store"], 1), (["JOB"], 1)]
)
def test_failed_jobs_are_queued_again(
    run: Run, worker: FakeWorker, queue: RenderQueue, choice: list[str], expected: int
) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}"} for number in range(2))
    queue.submit(prompt="a dog")
    canceled = queue.submit(prompt="a cow")
    failed = [worker.fail(take(worker), kind).job_id for kind in ("store", "bad_image", "render_failed")]
    queue.cancel(canceled)
    foreign = refused(worker)
    chosen = [{"BATCH": batch.id, "JOB": failed[2]}.get(word, word) for word in choice]
    said = run("failed", "--requeue", "--yes", "--json", *chosen)
    assert (said.code, said.json) == (0, {"queued": expected})
    assert sum(1 for job in failed if queue.status(job) is JobStatus.QUEUED) == expected
    assert queue.status(canceled) is JobStatus.CANCELED
    assert queue.status(foreign) is JobStatus.FAILED
    assert foreign in run("failed").out
    assert run("failed", "--requeue", "--yes", foreign).out == "0 jobs queued again\n"


def test_queueing_again_is_asked_for_and_says_what_it_is_for(
    run: Run, worker: FakeWorker, queue: RenderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.submit(prompt="a cat")
    job = worker.fail(take(worker))
    assert "say --yes" in run("failed", "--requeue", "--all").err
    assert "say which" in run("failed", "--requeue").err
    assert "name jobs, or choose" in run("failed", job.job_id, "--all").err
    assert run("failed", "0" * 32).code == run("failed", "--requeue", "--yes", "0" * 32).code == 2
    assert queue.status(job.job_id) is JobStatus.FAILED
    monkeypatch.setattr(sys, "stdin", Typed("n\ny\n"))
    assert run("failed", "--requeue", "--all").code == 1
    assert queue.status(job.job_id) is JobStatus.FAILED
    assert run("failed", "--requeue", "--all").out.strip() == "1 job queued again"
    assert queue.status(job.job_id) is JobStatus.QUEUED


@pytest.mark.parametrize(
    "fields",
    [
        {"meta": b"\xff"},
        {"meta": b"[1]"},
        {"meta": b'{"history": [{"number": "odd"}], "result": 5}'},
        {"ended_at": b"yesterday"},
        {"data": b"\xff" * 50},
        {"exc_info": b"\xff"},
        {"description": b"\xff"},
    ],
)
def test_fields_that_cannot_be_read_are_passed_over(
    run: Run, worker: FakeWorker, queue: RenderQueue, fields: dict[bytes, bytes]
) -> None:
    queue.submit(prompt="a cat")
    job = worker.fail(take(worker))
    worker.connection.hset(RqJob.key_for(job.job_id), mapping=fields)  # type: ignore[arg-type]
    assert job.job_id in run("failed").out
    assert run("failed", job.job_id).code == 0
