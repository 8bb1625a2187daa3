"""What the tests share: a real embedded server per test process, emptied for every test that uses it.

Where a test is about the server itself, it makes its own in its own folder; `own_server` sees that it ends.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings as hypothesis_settings
from tests.fakes import reap

from renderkiln.home.folder import DataFolder
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings, load
from renderkiln.producer import RenderQueue
from renderkiln.worker.runtimes.coreai.system import why_no_wheel_here

# Tests run in parallel, and threads that wait for a core that another test has make both slow many times over. Set
# before anything imports torch, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is slow now and then: how long an example takes says nothing about the code.
hypothesis_settings.register_profile("renderkiln", deadline=None)
hypothesis_settings.load_profile("renderkiln")

#: Where Core AI has no wheels, its own tests have nothing to run. Where it has some, its absence fails them.
collect_ignore = ["core_ai"] if why_no_wheel_here() else []


# Until all is imported.
gc.disable()


def pytest_collection_finish() -> None:
    """Has Python's search for cycles pass over the libraries and tests that have been imported.

    They stay to the end, and there are so many of them that looking through them was a third of the time of converting
    a tiny model. What tests make is searched as ever.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without a setting of ours, in an empty folder: what a stranger's machine is like."""
    for name in list(os.environ):
        if name.startswith("RENDERKILN_"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "share"))
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return empty


@pytest.fixture(scope="session")
def shared_server() -> Iterator[EmbeddedServer]:
    """One running server for all tests of this process; `server` gives it emptied."""
    root = Path(tempfile.mkdtemp(prefix="renderkiln-tests-"))
    running = EmbeddedServer(DataFolder(root))
    running.ensure_running()
    yield running
    running.stop()
    shutil.rmtree(root)


@pytest.fixture
def server(shared_server: EmbeddedServer) -> EmbeddedServer:
    """A running server that holds nothing."""
    with shared_server.client() as client:
        client.flushall()
    return shared_server


@pytest.fixture
def connection(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client of the empty server."""
    with server.client() as client:
        yield client


@pytest.fixture
def settings(server: EmbeddedServer, no_settings: Path, tmp_path: Path) -> Settings:
    """A fleet's machine: its Redis is the empty server, its data folder its own."""
    return load(data_dir=tmp_path / "data", redis_url=f"unix://{server.status().socket}")


@pytest.fixture
def queue(settings: Settings) -> Iterator[RenderQueue]:
    """A client of the empty server."""
    client = RenderQueue(settings=settings)
    yield client
    client.close()


@pytest.fixture
def own_server() -> Iterator[Callable[[Path], EmbeddedServer]]:
    """Makes servers for data folders, none of them started yet; whatever runs at the end is stopped."""
    made: list[EmbeddedServer] = []

    def make(root: Path) -> EmbeddedServer:
        made.append(EmbeddedServer(DataFolder(root)))
        return made[-1]

    yield make
    for each in made:
        status = each.status()
        each.stop()
        if status.pid is not None:
            reap(status.pid)
