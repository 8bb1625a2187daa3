"""Submitting: what gets into Redis, once each, and what does not."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer
from tests.fakes import FakeWorker, announce_worker, job_keys, stored

from renderkiln.home.settings import Settings, load
from renderkiln.producer import RenderQueue
from renderkiln.producer.queue import SubmittedJob
from renderkiln.schema import JobStatus, names
from renderkiln.schema.errors import InvalidSpecError, ModelNotFoundError, NotFoundError, ServerUnavailableError
from renderkiln.schema.events import Submitted, parse_event
from renderkiln.schema.payload import read_payload


def events(connection: redis.Redis) -> list[Any]:
    found: Any = connection.xrange(names.EVENTS)
    return [parse_event(fields[b"event"]) for _, fields in found]


def test_a_job_is_queued_as_json_that_reads_back_to_what_was_asked(queue: RenderQueue) -> None:
    job = queue.submit(prompt="a cat", seed=7, num_images=2, priority="high", labels={"for": "me"})
    assert job.outcome == "queued"
    assert queue.status(job) is JobStatus.QUEUED
    rq_job = stored(queue.connection, job.id)
    asked = read_payload(rq_job.data)
    assert (asked.id, asked.batch, asked.spec.prompt, asked.spec.seed) == (job.id, job.batch, "a cat", 7)
    assert (asked.num_images, asked.priority, asked.labels) == (2, "high", {"for": "me"})
    assert (rq_job.func_name, rq_job.origin) == (names.RENDER_FUNCTION, "renderkiln:high:shapes")
    assert rq_job.description == "shapes: a cat"


def test_rqs_own_tools_see_the_jobs(queue: RenderQueue) -> None:
    jobs = [queue.submit(prompt=f"cat {number}") for number in range(3)]
    (found,) = Queue.all(connection=queue.connection, serializer=JSONSerializer)
    assert found.name == "renderkiln:normal:shapes"
    assert found.get_job_ids() == [job.id for job in jobs]
    assert {job.get_status() for job in found.jobs} == {"queued"}


def test_priorities_and_models_have_queues_of_their_own(queue: RenderQueue) -> None:
    queue.submit_many([{"prompt": "a", "priority": "low"}, {"prompt": "b"}, {"prompt": "c", "model": "owner/sdxl"}])
    found = {each.name for each in Queue.all(connection=queue.connection, serializer=JSONSerializer)}
    assert found == {"renderkiln:low:shapes", "renderkiln:normal:shapes", "renderkiln:normal:owner/sdxl"}


def test_the_same_job_twice_is_one_job_however_urgent(queue: RenderQueue) -> None:
    first = queue.submit(prompt="a cat", seed=7)
    second = queue.submit(prompt="a cat", seed=7, priority="high", labels={"again": "yes"})
    assert (second.id, second.outcome) == (first.id, "joined")
    assert len(job_keys(queue.connection)) == 1


def test_again_makes_it_another_job(queue: RenderQueue) -> None:
    jobs = {queue.submit(prompt="a cat", seed=7, again=again).id for again in (False, True, True)}
    assert len(jobs) == 3


def test_without_a_seed_each_submission_draws_its_own(queue: RenderQueue) -> None:
    assert queue.submit(prompt="a cat").id != queue.submit(prompt="a cat").id


def test_a_finished_job_is_done_while_its_pictures_are_there_and_queued_anew_when_not(
    queue: RenderQueue, tmp_path: Path
) -> None:
    import socket

    worker = FakeWorker(queue.connection, tmp_path, host=socket.gethostname())
    job = queue.submit(prompt="a cat", seed=7)
    assert worker.finish_all() == 1
    assert queue.submit(prompt="a cat", seed=7).outcome == "done"
    next(tmp_path.glob("*.png")).unlink()
    assert queue.submit(prompt="a cat", seed=7, priority="low").outcome == "queued"
    assert queue.status(job) is JobStatus.QUEUED
    registries = list(queue.connection.scan_iter("rq:finished:*"))
    assert registries == []  # it is not listed as finished any more, in the queue where it was


def test_a_failed_job_is_queued_anew(queue: RenderQueue) -> None:
    worker = FakeWorker(queue.connection)
    queue.submit(prompt="a cat", seed=7)
    job = worker.take()
    assert job is not None
    worker.fail(job)
    assert queue.submit(prompt="a cat", seed=7).outcome == "queued"
    assert list(queue.connection.scan_iter("rq:failed:*")) == []


def test_a_batch_keeps_its_order_name_and_counts(queue: RenderQueue) -> None:
    batch = queue.submit_many(({"prompt": f"cat {n}", "num_images": 2} for n in range(3)), name="My Cats!")
    assert batch.id.startswith("my-cats-")
    assert (batch.num_jobs, batch.num_images, batch.num_queued) == (3, 6, 3)
    ids: Any = queue.connection.zrange(names.batch_jobs(batch.id), 0, -1, withscores=True)
    assert [score for _, score in ids] == [0, 2, 4]
    assert queue.connection.hget(names.batch(batch.id), "num_images") == b"6"
    assert queue.connection.hget(names.batch(batch.id), "name") == b"My Cats!"
    (event,) = events(queue.connection)
    assert isinstance(event, Submitted)
    assert event.jobs == tuple(job_id.decode() for job_id, _ in ids)


@pytest.mark.parametrize("text", ["", "日本語", "???", "-", "a" * 10_000, "../../etc/passwd", "-rf /"])
def test_any_prompt_gives_a_batch_id_that_a_worker_accepts(queue: RenderQueue, text: str) -> None:
    job = queue.submit(prompt=text, seed=1)
    batch = queue.submit_many([{"prompt": "x"}], name=text or None)
    worker = FakeWorker(queue.connection)
    assert worker.finish_all() == 2  # read_payload checks the ids
    assert queue.results(job) is not None
    assert queue.status(batch.id).is_final  # type: ignore[union-attr]


def test_the_same_request_twice_in_a_list_is_joined(queue: RenderQueue) -> None:
    batch = queue.submit_many([{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 1}, {"prompt": "b", "seed": 1}])
    assert (batch.num_jobs, batch.num_queued, batch.num_joined) == (3, 2, 1)


def test_a_wrong_request_is_named_by_its_number_and_its_piece_is_not_queued(queue: RenderQueue) -> None:
    requests = [{"prompt": "a", "seed": 1}] * 6 + [{"prompt": "a", "seed": -1}]
    with pytest.raises(InvalidSpecError, match="request 7: seed = -1"):
        queue.submit_many(requests)
    with pytest.raises(InvalidSpecError, match=r"request 1: .*unknown field 'promt'.*'prompt'"):
        queue.submit_many([{"promt": "a"}])
    assert job_keys(queue.connection) == []


def test_an_empty_list_is_a_batch_without_jobs(queue: RenderQueue) -> None:
    batch = queue.submit_many([])
    assert (batch.num_jobs, list(queue.as_completed(batch))) == (0, [])


def test_a_model_that_no_live_worker_has_is_refused(queue: RenderQueue) -> None:
    queue.submit(prompt="a cat", model="anything")  # nobody is up yet: one may come
    announce_worker(queue.connection, "shapes", "dreamshaper-8")
    queue.submit(prompt="a cat", model="shapes")
    with pytest.raises(ModelNotFoundError, match=r"none of the 1 workers.*Did you mean 'dreamshaper-8'"):
        queue.submit(prompt="a cat", model="dreamshaper8")
    assert len(job_keys(queue.connection)) == 2


def test_two_clients_that_submit_the_same_list_at_once_queue_each_job_once(
    queue: RenderQueue, settings: Settings
) -> None:
    outcomes: list[tuple[int, int]] = []

    def submit() -> None:
        client = RenderQueue(settings=settings)
        batch = client.submit_many({"prompt": f"cat {number}", "seed": 1} for number in range(2000))
        outcomes.append((batch.num_queued, batch.num_joined))
        client.close()

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(queued for queued, _ in outcomes) == 2000
    assert sum(joined for _, joined in outcomes) == 2000
    ids = Queue("renderkiln:normal:shapes", connection=queue.connection).get_job_ids()
    assert len(ids) == len(set(ids)) == 2000


PRODUCER = """
from renderkiln.producer import RenderQueue
queue = RenderQueue()
print(queue.submit_many({"prompt": f"cat {n}", "seed": 1} for n in range(2000)).num_queued)
"""


def test_two_processes_that_submit_the_same_list_at_once_queue_each_job_once(
    queue: RenderQueue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.redis_url is not None
    monkeypatch.setenv("RENDERKILN_REDIS_URL", settings.redis_url.get_secret_value())
    both = [subprocess.Popen([sys.executable, "-c", PRODUCER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sum(int(each.communicate()[0]) for each in both) == 2000
    assert queue.connection.llen("rq:queue:renderkiln:normal:shapes") == 2000


def test_memory_does_not_grow_with_the_list(queue: RenderQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("renderkiln.producer.enqueue.CHUNK", 50)

    def requests(count: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            yield {"prompt": f"cat {number}", "seed": 1}

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            assert queue.submit_many(requests(count)).num_queued == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            queue.connection.flushall()

    peak(10)  # what is loaded once
    assert peak(1000) < 1.3 * peak(200)


def test_where_redis_goes_away_in_mid_list_the_error_says_how_far_it_came(queue: RenderQueue) -> None:
    def requests() -> Iterator[dict[str, Any]]:
        for number in range(1500):
            if number == 1000:
                # Redis refuses from here on, as a full one does.
                queue.connection.config_set("maxmemory", "1")
            yield {"prompt": f"cat {number}", "seed": 1}

    try:
        with pytest.raises(ServerUnavailableError, match=r"after 1,000 were queued.*Submit the same again"):
            queue.submit_many(requests())
    finally:
        queue.connection.config_set("maxmemory", "0")


def test_a_job_and_a_batch_that_nobody_knows_are_errors(queue: RenderQueue) -> None:
    for ask in (queue.status, queue.results, queue.cancel, queue.retry, queue.wait, queue.as_completed):
        with pytest.raises(NotFoundError, match="'nothing'"):
            ask("nothing")
    with pytest.raises(NotFoundError):
        queue.status(SubmittedJob("0" * 32, "gone", "queued"))


def test_a_client_without_arguments_uses_the_machines_settings(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.redis_url is not None
    monkeypatch.setenv("RENDERKILN_REDIS_URL", settings.redis_url.get_secret_value())
    monkeypatch.setenv("RENDERKILN_MODEL", "mine")
    client = RenderQueue()
    job = client.submit(prompt="a cat")
    assert read_payload(stored(client.connection, job.id).data).spec.model == "mine"
    client.close()
    handed = RenderQueue(settings=load(), connection=client.connection)
    assert handed.status(job) is JobStatus.QUEUED
    handed.close()
