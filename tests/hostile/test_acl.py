"""The ACL lines of docs/security.md, as they stand there, in front of a real server: enough, and no more."""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.fakes import image_of

from renderkiln.home.connect import connect
from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.reading import read_strings
from renderkiln.home.server import server_binary
from renderkiln.home.settings import Settings
from renderkiln.home.workers import live_workers
from renderkiln.producer import RenderQueue
from renderkiln.producer.failures import failed_jobs
from renderkiln.producer.hub.service import Hub
from renderkiln.producer.live import Watcher
from renderkiln.producer.overview import recent_batches
from renderkiln.schema import Job, JobStatus, names
from renderkiln.schema.jobs import Failure
from renderkiln.schema.limits import MAX_REPLY
from renderkiln.schema.tables import JobRow
from renderkiln.schema.workers import WorkerInfo
from renderkiln.worker.supervisor.ahead import peek
from renderkiln.worker.supervisor.announcing import announce, withdraw
from renderkiln.worker.supervisor.outcomes import Beat, Outcome
from renderkiln.worker.supervisor.publisher import Outbox
from renderkiln.worker.supervisor.rescue import rescue
from renderkiln.worker.supervisor.rq_worker import Current
from renderkiln.worker.supervisor.taking import take

from .conftest import Loop

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.fixture(scope="module")
def socket() -> Iterator[Path]:
    """A server with the users of the document."""
    (block,) = re.findall(r"```acl\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    with tempfile.TemporaryDirectory(prefix="acl-") as folder:
        users = Path(folder) / "users.acl"
        users.write_text(block)
        path = Path(folder) / "s"
        options = ["--port", "0", "--unixsocket", path, "--aclfile", users, "--save", "", "--dir", folder]
        options += ["--enable-debug-command", "yes"]  # so that only the lines stand in its way
        server = subprocess.Popen([str(server_binary()), *map(str, options)], stdout=subprocess.DEVNULL)
        try:
            for _ in range(1000):
                if path.exists():
                    break
                time.sleep(0.01)
            yield path
        finally:
            server.kill()
            server.wait()


Client = Callable[[str], Any]


@pytest.fixture
def client(socket: Path, tmp_path: Path, no_settings: Path) -> Iterator[Client]:
    """The connection that the settings of a user give."""
    made = []

    def connected(user: str) -> Any:
        url = f"unix://{user}:{user.upper()}-PASSWORD@{socket}"
        made.append(connect(Settings(data_dir=tmp_path / user, redis_url=url)).redis)
        return made[-1]

    yield connected
    connected("admin").flushall()
    for each in made:
        each.close()


@pytest.fixture
def queue(client: Client, tmp_path: Path) -> RenderQueue:
    return RenderQueue(settings=Settings(data_dir=tmp_path / "data"), connection=client("producer"))


def denials(client: Client) -> list[str]:
    """What the server refused to anybody, by its own log."""
    return [f"{row['username']} {row['reason']} {row['object']}" for row in client("admin").acl_log()]


def test_a_producer_and_a_worker_do_all_their_work_under_their_lines(
    client: Client, queue: RenderQueue, make_loop: Callable[..., Loop], tmp_path: Path
) -> None:
    client("admin").acl_log_reset()
    picture = tmp_path / "start.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    one = queue.submit(prompt="one", model="tiny", init_image=picture)
    low = queue.submit(prompt="two", model="tiny", priority="low")
    queue.submit(prompt="two", model="tiny", priority="normal", seed=1)
    batch = queue.submit_many({"prompt": f"cat {n}", "model": "tiny"} for n in range(3))
    assert queue.cancel(low) == 1
    assert queue.retry(low) == 1
    connection = client("worker")
    loop = make_loop(connection)
    info = WorkerInfo(
        name="loop", host="h", pid=1, models=("tiny",), engine="torch", device="cpu", store="/x", started_at=1.0
    )
    announce(connection, info, 30.0)
    assert [worker.name for worker in live_workers(queue.connection)] == ["loop"]
    watcher = Watcher(queue.connection, batch.id, 3, 3)
    beats = []

    def work(current: Current) -> Outcome:
        (reference,) = current.job.spec.pictures or ("",)
        if reference:
            key = names.blob(reference.removeprefix("sha256:"))
            assert read_strings(connection, [key], 1 << 20) == [picture.read_bytes()]
        peek(connection, current.job, 10)
        loop.worker._next_heartbeat = 0.0
        beats.append(loop.worker.beat_while_rendering())
        if current.job.spec.prompt == "cat 0":
            beats.append(Beat.CANCEL if queue.cancel(current.job.id) else Beat.LOST)
            loop.signals.sleep(5.0)  # until the command comes through RQ's channel
            assert loop.signals.canceled_job == current.job.id
            return Outcome(canceled=True)
        return Outcome()

    loop.does = work
    waited: list[Any] = []
    waiting = threading.Thread(target=lambda: waited.extend(queue.as_completed(batch, timeout=60)))
    waiting.start()
    loop.run()
    waiting.join()
    assert {result.status for result in waited} == {JobStatus.FINISHED, JobStatus.CANCELED}
    assert queue.status(one) is JobStatus.FINISHED
    list(watcher.updates())
    watcher.close()
    assert batch.id in [row.id for row in recent_batches(queue.connection)]
    # A job whose worker died in mid-job, and one that was taken and never started.
    first = queue.submit(prompt="three", model="tiny")
    connection.zadd(loop.worker.queues[0].started_job_registry.key, {f"{first.id}:{'e' * 32}": 1.0})
    connection.hset(f"rq:job:{first.id}", "status", "started")
    connection.lrem(loop.worker.queues[0].key, 1, first.id)
    second = queue.submit(prompt="four", model="tiny")
    assert take(connection, loop.worker.queues) is not None
    for _ in range(2):
        rescue(connection, loop.worker.queues, lambda name: f"rq:worker:{name}", patience=0.0)
    # Somebody broke the stream and a queue, and queued what is no job.
    admin = client("admin")
    admin.rename(names.EVENTS, "elsewhere")
    admin.set(names.EVENTS, "x")
    admin.hset("rq:job:odd", mapping={"status": "queued", "data": "x", "origin": loop.worker.queues[0].name})
    admin.rpush(loop.worker.queues[0].key, "odd")
    loop.worker._found_empty = False
    loop.run()
    assert {queue.status(first), queue.status(second)} == {JobStatus.FINISHED}
    assert (loop.refusals.counts.jobs, loop.refusals.counts.keys) == (1, 1)
    # One that failed and waits for its next try, which is then asked for with more urgency, and canceled.
    loop.does = lambda current: Outcome(failure=Failure(kind="renderer_died", message="it died"))
    later = queue.submit(prompt="five", model="tiny", seed=5)
    loop.worker._found_empty = False
    taken = take(connection, loop.worker.queues)
    assert taken is not None
    loop.worker.execute_job(*taken)
    assert queue.status(later) is JobStatus.QUEUED
    assert queue.submit(prompt="five", model="tiny", seed=5, priority="high").outcome == "joined"
    loop.worker._postponed.bring_back(loop.worker.queues)
    assert queue.cancel_all() >= 1
    assert failed_jobs(queue.connection) is not None
    connection.publish(names.PROGRESS, "{}")
    withdraw(connection, "loop")
    assert Beat.GOING_ON in beats
    assert denials(client) == []


def test_a_hub_does_all_its_work_under_its_line(client: Client, queue: RenderQueue, tmp_path: Path) -> None:
    client("admin").acl_log_reset()
    picture = tmp_path / "start.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    one = queue.submit(prompt="one", model="tiny", init_image=picture)
    hub = Hub(client("hub"), DataFolder(tmp_path / "hub"), settling=0.0)
    ledger = Ledger(tmp_path / "ledger.db")
    try:
        hub.step(block=0)
        ledger.worker_started("mini-1", "mini", 7, {})
        assert Outbox(client("worker"), ledger).send() == 1
        for _ in range(3):
            hub.step(block=0)
        client("admin").xadd(names.RECORDS, {"shipment": bytes(MAX_REPLY)})
        client("admin").xadd(names.EVENTS, {"event": bytes(MAX_REPLY)})
        for _ in range(3):
            hub.step(block=0)
        assert hub.counts.unreadable == 2
        with hub._ledger.reading() as session:
            row = session.get(JobRow, one.id)
            assert row is not None
            hub_knows = Job.model_validate(row.job)
        hub._ledger.image_recorded(one.id, image_of(hub_knows), None)
        client("admin").flushall()
        for _ in range(3):
            hub.step(block=0)
        assert queue.status(one.id) is JobStatus.QUEUED
        assert client("admin").hlen(names.images(one.id)) == 1
        client("admin").delete("rq:queue:renderkiln:normal:tiny")
        hub.repair()
        assert queue.connection.lrange("rq:queue:renderkiln:normal:tiny", 0, -1) == [one.id.encode()]
        assert hub.counts.shipments == 1
    finally:
        ledger.close()
        hub.close()
    assert denials(client) == []


@pytest.mark.parametrize("user", ["producer", "worker", "hub"])
@pytest.mark.parametrize(
    "command",
    [
        "CONFIG GET *",
        "CONFIG SET dir /tmp",
        "FLUSHALL",
        "FLUSHDB",
        "DEBUG SLEEP 0",
        "EVAL return(1) 0",
        "SCRIPT LOAD return(1)",
        "FUNCTION LIST",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "INFO",
        "CLIENT LIST",
        "CLIENT KILL ID 1",
        "MONITOR",
        "SAVE",
        "SHUTDOWN NOSAVE",
        "REPLICAOF 127.0.0.1 1",
        "MODULE LIST",
        "ACL LIST",
        "ACL SETUSER x on",
        "SWAPDB 0 1",
        "MIGRATE 127.0.0.1 1 x 0 1",
        "SORT rq:queues",
        "GETRANGE session:1 0 9",
        "SET session:1 x",
        "DEL session:1",
        "HSET rq:queue x y",
        "LREM rq:queue:other 1 x",
        "RPUSH rq:queue:other x",
        "ZADD rq:failed:other 1 x",
        "SET rq:suspended 1",
        "PUBLISH other x",
        "SUBSCRIBE other",
    ],
)
def test_neither_can_do_more(client: Client, user: str, command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        client(user).execute_command(*command.split(" "))


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("producer", "SET renderkiln:worker:mini x"),
        ("producer", "ZADD renderkiln:workers 1 mini"),
        ("producer", "HSET rq:worker:mini pid 1"),
        ("producer", "ZADD rq:wip:renderkiln:normal:tiny 1 x"),
        ("producer", "GETRANGE renderkiln:blob:x 0 9"),
        ("producer", "RENAME renderkiln:events x"),
        ("worker", "SET renderkiln:blob:x y"),
        ("worker", "ZADD renderkiln:batches 1 x"),
        ("worker", "RENAME renderkiln:events x"),
    ],
)
def test_each_writes_its_own_keys_alone(client: Client, user: str, command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        client(user).execute_command(*command.split(" "))


def test_nobody_comes_in_without_a_name(socket: Path) -> None:
    with (
        redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as nobody,
        pytest.raises(redis.AuthenticationError),
    ):
        nobody.ping()
