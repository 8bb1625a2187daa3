"""A Redis that is away for a while: who waits goes on when it is back, and fails with a type of ours when it is not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.fakes import FakeWorker, kill_server

from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import load
from renderkiln.producer import RenderQueue, patience
from renderkiln.producer.live import Watcher
from renderkiln.schema import JobStatus
from renderkiln.schema.errors import ServerUnavailableError, WaitTimeoutError


@pytest.fixture
def mortal(own_server: Callable[[Path], EmbeddedServer], no_settings: Path, tmp_path: Path) -> EmbeddedServer:
    """A server that a test may kill."""
    server = own_server(tmp_path / "data")
    server.ensure_running()
    return server


@pytest.fixture
def queue(mortal: EmbeddedServer) -> Iterator[RenderQueue]:
    """A client without redis-py's own retries: each time that the server is away is ours to bear."""
    path = str(mortal.status().socket)
    bare = redis.Redis(unix_socket_path=path, socket_timeout=30, retry=Retry(NoBackoff(), 0))
    client = RenderQueue(settings=load(data_dir=mortal.status().socket.parent), connection=bare)
    yield client
    client.close()


def when_someone_waits(server: EmbeddedServer, then: Callable[[], object]) -> threading.Thread:
    """Does something once a client blocks in a read of the event stream."""

    def run() -> None:
        deadline = time.monotonic() + 60
        with server.client() as client:
            while not any("b" in row["flags"] for row in client.client_list()):
                assert time.monotonic() < deadline, "nobody came to wait"
        then()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_waiting_outlives_a_server_that_is_killed_and_started_again(mortal: EmbeddedServer, queue: RenderQueue) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}", "seed": 1} for number in range(3))

    def kill_and_go_on() -> None:
        kill_server(mortal)
        mortal.ensure_running()
        with mortal.client() as connection:
            assert FakeWorker(connection).finish_all() == 3

    meanwhile = when_someone_waits(mortal, kill_and_go_on)
    results = list(queue.as_completed(batch, timeout=120))
    meanwhile.join()
    assert [result.status for result in results] == [JobStatus.FINISHED] * 3


def test_watching_outlives_it_and_says_so_meanwhile(mortal: EmbeddedServer, queue: RenderQueue) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}", "seed": 1} for number in range(2))
    watcher = Watcher(queue.connection, batch.id, batch.num_images, batch.num_jobs)
    views = watcher.updates(every=0.01)
    assert not next(views).is_cut_off
    kill_server(mortal)
    assert next(view for view in views if view.is_cut_off).images_done == 0
    mortal.ensure_running()
    with mortal.client() as connection:
        FakeWorker(connection).finish_all()
    *_, last = views
    assert (last.images_done, last.is_cut_off) == (2, False)
    watcher.close()


def test_a_server_that_stays_away_ends_the_waiting_with_an_error_of_ours(
    mortal: EmbeddedServer, queue: RenderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0.3)
    batch = queue.submit_many([{"prompt": "a cat"}])
    watcher = Watcher(queue.connection, batch.id, 1, 1)
    results = queue.as_completed(batch)
    kill_server(mortal)
    with pytest.raises(ServerUnavailableError, match=r"has not answered for .*What is queued stays queued"):
        next(results)
    with pytest.raises(ServerUnavailableError, match="has not answered for"):
        list(watcher.updates(every=0.01))
    watcher.close()


def test_the_time_to_wait_is_kept_while_the_server_is_away(mortal: EmbeddedServer, queue: RenderQueue) -> None:
    results = queue.as_completed(queue.submit_many([{"prompt": "a cat"}]), timeout=0.5)
    kill_server(mortal)
    with pytest.raises(WaitTimeoutError, match="Redis was away"):
        next(results)


def test_a_server_that_refuses_us_is_not_waited_for(mortal: EmbeddedServer, queue: RenderQueue) -> None:
    results = queue.as_completed(queue.submit_many([{"prompt": "a cat"}]), timeout=60)
    with mortal.client() as connection:
        connection.config_set("requirepass", "secret")
        queue.connection.connection_pool.disconnect()
        with pytest.raises(ServerUnavailableError, match="refuses us"):
            next(results)
        connection.config_set("requirepass", "")


def test_the_command_that_watches_says_that_it_waits_and_goes_on(mortal: EmbeddedServer, queue: RenderQueue) -> None:
    batch = queue.submit_many({"prompt": f"cat {number}", "seed": 1} for number in range(2))
    folder = mortal.status().socket.parent.parent
    command = [sys.executable, "-m", "renderkiln.producer", "watch", batch.id, "--data-dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        when_someone_waits(mortal, lambda: kill_server(mortal)).join()
        assert watching.stdout is not None
        for line in watching.stdout:
            if "Redis does not answer; waiting for it" in line:
                break
        mortal.ensure_running()
        with mortal.client() as connection:
            assert FakeWorker(connection).finish_all() == 2
        out, err = watching.communicate(timeout=120)
    assert (watching.returncode, err) == (0, "")
    assert out.splitlines()[-1] == f"{batch.id}: 2 of 2 images, 0 failed, 0 canceled"


def test_what_does_not_wait_fails_with_an_error_of_ours(mortal: EmbeddedServer, queue: RenderQueue) -> None:
    job = queue.submit(prompt="a cat", seed=7)
    results = queue.results(job)
    kill_server(mortal)
    for ask in (queue.status, queue.cancel, queue.retry):
        with pytest.raises(ServerUnavailableError, match=r"Redis failed|Redis stopped taking jobs"):
            ask(job)
    with pytest.raises(ServerUnavailableError, match="Redis failed"):
        next(results)
    with pytest.raises(ServerUnavailableError):
        queue.submit(prompt="a dog")
