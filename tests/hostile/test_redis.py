"""What stands in Redis is of any size, any type, and anybody's: a worker and its clients read it and go on."""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer
from tests.fakes import FakeWorker, announce_worker

from renderkiln.home.reading import members_of_list, members_of_sorted_set, read_hashes, read_strings
from renderkiln.home.replies import ReplyTooLargeError
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.workers import live_workers
from renderkiln.producer import RenderQueue
from renderkiln.producer.live import Watcher
from renderkiln.producer.overview import recent_batches
from renderkiln.schema import JobStatus, names
from renderkiln.schema.limits import MAX_PAYLOAD
from renderkiln.worker.supervisor.refusals import Refusals
from renderkiln.worker.supervisor.taking import read_job, take

from .conftest import Loop

TINY = names.queue("normal", "tiny")
#: What no reply may hold here, where replies may have a MiB.
BIG = 2 << 20


@pytest.fixture(autouse=True)
def small_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that is cheap to go beyond."""
    monkeypatch.setattr("renderkiln.home.replies.MAX_REPLY", 1 << 20)


@pytest.fixture
def tiny(connection: Any) -> Queue:
    return Queue(TINY, connection=connection, serializer=JSONSerializer)


def queue_job(connection: Any, job_id: str = "a" * 32, **fields: Any) -> str:
    values = {"status": "queued", "origin": TINY, "data": b"[]", "created_at": "2026-01-01T00:00:00.000000Z"} | fields
    connection.hset(RqJob.key_for(job_id), mapping=values)
    connection.rpush(f"rq:queue:{TINY}", job_id)
    return job_id


def big(connection: Any, key: str) -> None:
    """A string that no reply may hold, made where it is to stand."""
    connection.setrange(key, BIG, b"x")


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_reply_over_the_limit_is_not_read_to_its_end(server: EmbeddedServer, protocol: int) -> None:
    from renderkiln.home.replies import bounded

    client = bounded(redis.Redis(unix_socket_path=str(server.status().socket), protocol=protocol))
    big(client, "big")
    for _ in range(2):
        with pytest.raises(ReplyTooLargeError):
            client.get("big")
        assert client.ping() is True
    with client.pipeline() as pipe:
        for _ in range(5):
            pipe.getrange("big", 0, BIG // 8)
        with pytest.raises(ReplyTooLargeError):
            pipe.execute()
    assert client.get("small") is None
    with client.pubsub() as channel:
        channel.subscribe("news")
        server.client().execute_command("EVAL", "redis.call('PUBLISH', 'news', redis.call('GET', 'big'))", 0)
        server.client().publish("news", "small")
        assert channel.get_message(timeout=5) is not None  # that it has subscribed
        with pytest.raises(ReplyTooLargeError):
            channel.get_message(timeout=5)
        channel.get_message(timeout=5)  # subscribes anew
        server.client().publish("news", "again")
        assert any((channel.get_message(timeout=5) or {}).get("data") == b"again" for _ in range(3))
    client.close()


def test_many_are_read_where_some_are_too_large_or_of_another_type(connection: Any) -> None:
    connection.hset("good", "a", "1")
    connection.set("string", "x")
    connection.execute_command("EVAL", f"redis.call('HSET', 'large', 'a', string.rep('x', {BIG}))", 0)
    keys = ["good", "string", "none", "large", "good"]
    assert read_hashes(connection, keys, "a", "b") == [[b"1", None], None, [None, None], None, [b"1", None]]
    connection.set("long", "x" * 200)
    assert read_strings(connection, ["string", "good", "none", "long"], 100) == [b"x", None, None, None]


def test_members_that_are_too_large_are_removed(connection: Any) -> None:
    for where in ("RPUSH", "ZADD"):
        more = "1, " if where == "ZADD" else ""
        script = f"redis.call('{where}', 'x{where}', {more}string.rep('x', {BIG}))"
        for member in ("a", "b"):
            connection.execute_command("EVAL", f"redis.call('{where}', 'x{where}', {more}'{member}')", 0)
            connection.execute_command("EVAL", script, 0)
    assert members_of_list(connection, "xRPUSH") == [b"a", b"b"]
    assert connection.llen("xRPUSH") == 2
    assert members_of_sorted_set(connection, "xZADD") == [(b"a", 1.0), (b"b", 1.0)]
    assert connection.zcard("xZADD") == 2


@given(
    fields=st.dictionaries(
        st.sampled_from(["meta", "timeout", "created_at", "started_at", "worker_name", "description", "ttl", "status"]),
        st.binary(max_size=30) | st.integers().map(lambda n: str(n).encode()) | st.just(b"{}"),
    ),
    data=st.binary(max_size=60) | st.binary(max_size=60).map(zlib.compress),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_fields_are_a_job_or_set_aside(connection: Any, tiny: Queue, fields: dict[str, bytes], data: bytes) -> None:
    refusals = Refusals()
    job_id = queue_job(connection, data=data, **fields)
    job = read_job(connection, job_id, tiny, refusals)
    failed = connection.zscore(tiny.failed_job_registry.key, job_id) is not None
    assert (job is None) == failed == (refusals.counts.jobs == 1)
    connection.flushdb()


@pytest.mark.parametrize("data", [zlib.compress(b" " * (300 << 20)), b" " * (MAX_PAYLOAD + 1)])
def test_a_bomb_is_not_decompressed(connection: Any, tiny: Queue, data: bytes) -> None:
    refusals = Refusals()
    job = read_job(connection, queue_job(connection, data=data, exc_info=data), tiny, refusals)
    assert refusals.counts.jobs == (1 if job is None else 0)
    assert job is None or len(job.data) == MAX_PAYLOAD + 1


def test_keys_of_the_wrong_type_are_moved_aside_and_other_queues_go_on(
    queue: RenderQueue, make_loop: Callable[..., Loop]
) -> None:
    loop = make_loop(queue.connection, "tiny", "other")
    first = queue.submit(prompt="a", model="other")
    for key in loop.worker.types_by_key():
        if key != f"rq:queue:{names.queue('normal', 'other')}":
            queue.connection.rename(key, f"old:{key}") if queue.connection.exists(key) else None
            queue.connection.set(key, "hostile")
    loop.run()
    assert loop.done == [first.id]
    assert loop.refusals.counts.keys == len(loop.worker.types_by_key()) - 1
    aside = names.set_aside(names.EVENTS)
    assert queue.connection.get(aside) == b"hostile"
    assert 0 < queue.connection.ttl(aside) <= names.RESULT_TTL
    again = queue.submit(prompt="a", model="tiny")
    loop.worker._found_empty = False
    loop.run()
    assert queue.status(again) is JobStatus.FINISHED


@pytest.mark.parametrize("when", ["attempt", "claim"])
def test_a_key_that_changes_its_type_under_way_loses_no_job(
    queue: RenderQueue, make_loop: Callable[..., Loop], when: str
) -> None:
    loop = make_loop(queue.connection)
    job = queue.submit(prompt="a", model="tiny")

    own = loop.worker.queues[0]
    keys = [names.EVENTS, own.finished_job_registry.key, f"rq:executions:{job.id}", loop.worker.key]
    keys += [own.started_job_registry.key] if when == "claim" else []

    def break_all() -> None:
        for key in keys:
            queue.connection.delete(key)
            queue.connection.set(key, "hostile")

    def work(current: Any) -> Any:
        from renderkiln.worker.supervisor.outcomes import Outcome

        break_all()
        return Outcome()

    if when == "attempt":
        loop.does = work
        loop.run()
    else:
        taken = take(queue.connection, loop.worker.queues)
        assert taken is not None
        break_all()
        loop.worker.execute_job(*taken)
    assert loop.done == [job.id]
    assert queue.status(job) is JobStatus.FINISHED


def test_upkeep_goes_on_over_garbage(connection: Any, make_loop: Callable[..., Loop]) -> None:
    loop = make_loop(connection)
    (own,) = loop.worker.queues
    connection.sadd(f"rq:workers:{TINY}", b"\xff\xfe", "rq:worker:gone")
    connection.sadd("rq:groups", b"\xff")
    connection.zadd(own.started_job_registry.key, {b"\xff:\xff": 1.0, b"": 1.0, b"gone:x": 1.0, b"b" * 32: 1e12})
    connection.rpush(own.intermediate_queue_key, b"\xff", b"a:b", b"c" * 32)
    connection.set(own.intermediate_queue.get_first_seen_key("c" * 32), "yesterday")
    queue_job(connection, "b" * 32, status="started", worker_name="ghost")
    connection.hset(f"rq:execution:{'b' * 32}", "x", "a lease that runs")
    connection.delete(own.key)
    for pid in ("x", "9" * 30, "-1", "0"):
        connection.hset("rq:worker:ghost", mapping={"hostname": loop.worker.hostname, "pid": pid})
        loop.worker.clean_registries()
    assert connection.smembers(f"rq:workers:{TINY}") == set()
    assert connection.zrange(own.started_job_registry.key, 0, -1) == [b"b" * 32]
    assert connection.lrange(own.intermediate_queue_key, 0, -1) == [b"c" * 32]
    assert loop.refusals.counts.jobs == 4
    connection.hset(loop.worker.key, mapping={"hostname": b"\xff", "pid": b"\xff", "death": "x"})
    loop.run()


@pytest.mark.parametrize(
    "said",
    [
        *(b"\xff", b"{", b"[" * 50_000, b"[]", b"null", b'{"command": "shutdown"}', b'{"command": "kill-horse"}'),
        *(
            b"x" * 70_000,
            b'{"command": ["stop-job"]}',
            b'{"command": "stop-job"}',
            b'{"command": "stop-job", "job_id": {}}',
        ),
    ],
)
def test_a_message_that_is_no_command_is_counted_and_does_nothing(
    connection: Any, make_loop: Callable[..., Loop], said: bytes
) -> None:
    loop = make_loop(connection)
    loop.worker.handle_payload({"data": said})
    assert loop.refusals.counts.messages == 1
    assert loop.signals.canceled_job is None
    assert not loop.signals.stop_after_image


def test_commands_are_heard_after_messages_that_are_none(
    connection: Any, server: EmbeddedServer, make_loop: Callable[..., Loop]
) -> None:
    loop = make_loop(connection)
    loop.worker.subscribe()
    for said in (b"\xff", json.dumps({"command": "stop-job", "job_id": "x"}).encode()):
        while not server.client().publish("rq:pubsub:loop", said):
            time.sleep(0.01)
    loop.signals.sleep(10)
    assert loop.signals.canceled_job == "x"
    assert loop.refusals.counts.messages == 1
    loop.worker.unsubscribe()


def test_the_log_says_each_refusal_and_the_count(
    connection: Any, tiny: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = Refusals()
    with caplog.at_level(logging.WARNING, "renderkiln.supervisor"):
        for job_id in ("a" * 32, "b" * 32):
            queue_job(connection, job_id, meta=b"\xff")
        assert take(connection, [tiny], refusals) is None
    assert "(2 so far)" in caplog.text


def test_clients_read_what_others_wrote(queue: RenderQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watcher, "RECHECK", 0.1)
    connection: Any = queue.connection
    batch = queue.submit_many([{"prompt": "a", "model": "tiny"}, {"prompt": "b", "model": "tiny"}])
    watcher = Watcher(connection, batch.id, 2, 2)
    announce_worker(connection, "tiny")
    connection.zadd(names.WORKERS, {b"\xff": 1.0, "string": 2.0, "hash": 3.0, "large": 4.0})
    connection.set(names.worker("string"), b"[" * 10_000)
    connection.hset(names.worker("hash"), "a", "b")
    big(connection, names.worker("large"))
    assert [worker.name for worker in live_workers(connection)] == ["mini-1"]
    connection.zadd(names.BATCHES, {b"\xff": 1.0, "\x1b[2J": 2.0, "later": 1e300, "never": "inf", "odd": 3.0})  # type: ignore[dict-item]
    connection.set(names.batch("odd"), "x")
    connection.set(names.batch_jobs("odd"), "x")
    assert {row.id for row in recent_batches(connection)} == {batch.id, "odd"}
    assert queue.status("odd") == queue.status("odd")
    connection.xadd(names.EVENTS, {"event": b"\xff", b"\xff": b"x"})
    connection.xadd(names.EVENTS, {"event": '{"type":"ended"' + "[" * 10_000})
    connection.publish(names.PROGRESS, b"[" * 50_000)
    connection.execute_command("EVAL", f"redis.call('XADD', '{names.EVENTS}', '*', 'event', string.rep('x', {BIG}))", 0)
    worker = FakeWorker(connection)
    assert worker.finish_all() == 2
    connection.hset(f"rq:job:{next(iter(worker.taken))}", "meta", b'{"result": ' + b"[" * 100_000)
    assert len(list(queue.as_completed(batch, timeout=20))) == 2
    list(watcher.updates(every=0.01))
    assert watcher.view.is_final
    watcher.close()
    connection.delete(names.BATCHES, names.WORKERS)
    connection.set(names.BATCHES, "x")
    connection.set(names.WORKERS, "x")
    assert (recent_batches(connection), live_workers(connection)) == ([], [])


def test_a_key_that_is_no_job_is_unknown_to_clients_and_stops_none(queue: RenderQueue) -> None:
    jobs = [queue.submit(prompt=prompt, model="tiny", priority="low") for prompt in "ab"]
    queue.connection.delete(f"rq:job:{jobs[0].id}")
    queue.connection.set(f"rq:job:{jobs[0].id}", "x")
    queue.connection.hset(f"rq:job:{jobs[1].id}", "worker_name", b"\xff")
    queue.connection.hset(f"rq:job:{jobs[1].id}", "status", "started")
    assert queue.cancel(jobs[0]) == 0
    assert queue.cancel(jobs[1]) == 1
    assert queue.retry(jobs[0]) == 0
