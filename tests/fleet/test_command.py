"""`renderkiln hub` as a process, beside a worker's own thread that tells it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from renderkiln.home.ledger import Ledger
from renderkiln.home.settings import Settings
from renderkiln.producer import RenderQueue
from renderkiln.schema import names
from renderkiln.schema.jobs import JobStatus
from renderkiln.worker.supervisor.publisher import Publisher

from .conftest import a_job, do


@pytest.fixture
def hub_process(settings: Settings, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    assert settings.redis_url is not None
    command = [sys.executable, "-m", "renderkiln.producer", "hub", "--data-dir", str(tmp_path / "hub")]
    environ = os.environ | {"RENDERKILN_REDIS_URL": settings.redis_url.get_secret_value()}
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def wait_until(what: str, is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_it_collects_and_ends_when_told(
    hub_process: subprocess.Popen[str],
    ledger: Ledger,
    queue: RenderQueue,
    connection: redis.Redis,
    tmp_path: Path,
) -> None:
    wait_until("the hub is up", lambda: connection.exists(names.RECORDS_EPOCH))
    queue.submit(prompt="a red dog")
    publisher = Publisher(connection, ledger.path)
    publisher.start()
    do(ledger, a_job(1), "e1", "mini-1", 1)
    publisher.wake()
    known = Ledger(tmp_path / "hub" / "hub.db", strict=False)
    try:
        wait_until("the hub knows both jobs", lambda: known.counts()["jobs"] == 2)
        result = known.result(a_job(1).id)
        assert result is not None
        assert result.status is JobStatus.FINISHED
        do(ledger, a_job(2), "e2", "mini-1", 2)
        publisher.stop()  # a worker that ends says its last word
        wait_until("the hub knows the third", lambda: known.counts()["jobs"] == 3)
    finally:
        known.close()
    hub_process.send_signal(signal.SIGTERM)
    _, said = hub_process.communicate(timeout=30)
    assert hub_process.returncode == 0
    assert "hub up" in said
    assert not connection.exists(names.HUB)
