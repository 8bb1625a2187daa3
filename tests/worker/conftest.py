"""A machine of one's own for each test: data folder with a tiny model, embedded server, client, and real workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rq.job import Job as RqJob
from tests.engine import models

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.producer import RenderQueue
from renderkiln.schema import names
from renderkiln.schema.events import Event, parse_event

from .bench import Bench

ROOT = Path(__file__).parents[2]
#: A step of the tiny model takes some milliseconds, so this many take seconds: long enough to be interrupted.
LONG = 900


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    models.save_sd(path)
    return path


@dataclass
class House:
    """One machine."""

    settings: Settings
    server: EmbeddedServer
    queue: RenderQueue
    pictures: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def folder(self) -> DataFolder:
        return DataFolder(self.settings.data_dir)

    @property
    def log(self) -> Path:
        return self.settings.data_dir / "worker.log"

    def start_worker(
        self, *flags: str, out: str | None = None, pretends: bool = False, **environ: str
    ) -> subprocess.Popen[bytes]:
        """`renderkiln worker`, in the background.

        Args:
            pretends: its renderer draws noise and starts at once, see `tests.pretend`: where the picture is not the
                point.
        """
        module = "tests.pretend" if pretends else "renderkiln.producer"
        command = [sys.executable, "-m", module, "worker", "--model", "tiny", "--device", "cpu"]
        command += ["--data-dir", str(self.settings.data_dir), "--out", out or str(self.pictures), *flags]
        environment = os.environ | {"RENDERKILN_LEASE": str(self.settings.lease), "OMP_NUM_THREADS": "1"} | environ
        if pretends:
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
        with self.log.open("ab") as log:
            worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.workers.append(worker)
        return worker

    def submit(self, prompt: str = "a red circle", *, steps: int = 2, **fields: Any) -> Any:
        return self.queue.submit(prompt=prompt, model="tiny", num_inference_steps=steps, **fields)

    def events(self, since: str = "0-0", timeout: float = 90.0) -> Iterator[Event]:
        """All durable events from the beginning, waiting for those to come."""
        deadline, last = time.monotonic() + timeout, since
        while time.monotonic() < deadline:
            reply = self.queue.connection.xread({names.EVENTS: last}, count=100, block=500)
            for _, entries in reply or []:
                for identity, fields in entries:
                    last = identity.decode()
                    yield parse_event(fields[b"event"])
        raise AssertionError(f"what was waited for did not happen; the worker's log:\n{self.log.read_text()[-4000:]}")

    def wait_for(self, kind: str, job_id: str | None = None, count: int = 1) -> Event:
        """The `count`th event of a kind, of one job where told."""
        for event in self.events():
            result = getattr(event, "result", None)
            of = result.job_id if result is not None else getattr(event, "job_id", None)
            if event.type == kind and job_id in (None, of):
                count -= 1
                if count == 0:
                    return event
        raise AssertionError("unreachable")

    def wait_for_step(self, job_id: str) -> None:
        """Returns when the renderer is at work on a job."""
        with self.queue.connection.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(names.PROGRESS)
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline:
                message = channel.get_message(timeout=1.0)
                if message and job_id.encode() in message["data"]:
                    return
        raise AssertionError(f"no step of {job_id}; the worker's log:\n{self.log.read_text()[-4000:]}")

    def ledger(self) -> Ledger:
        return Ledger(self.folder.ledger)

    def children(self, worker: subprocess.Popen[bytes]) -> list[int]:
        import psutil

        return [child.pid for child in psutil.Process(worker.pid).children()]

    def meta(self, job_id: str) -> dict[str, Any]:
        return dict(
            RqJob.fetch(job_id, connection=self.queue.connection, serializer="rq.serializers.JSONSerializer").meta
        )

    def close(self) -> None:
        for worker in self.workers:
            for pid in [] if worker.poll() is not None else [*self.children(worker), worker.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            worker.wait()
        self.queue.close()
        self.server.stop()


@pytest.fixture
def make_house(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(lease: float = 30.0) -> House:
        root = tmp_path_factory.mktemp("house")
        settings = Settings(data_dir=root / "data", out=str(root / "pictures"), lease=lease, device="cpu")
        folder = DataFolder(settings.data_dir).ensure()
        folder.models.mkdir()
        (folder.models / "tiny").symlink_to(tiny_model)
        queue = RenderQueue(settings=settings)
        house = House(settings, EmbeddedServer(folder), queue, root / "pictures")
        made.append(house)
        return house

    yield make
    for house in made:
        house.close()


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


@pytest.fixture
def make_bench(house: House) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(name: str = "bench") -> Bench:
        made.append(Bench(house, name))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
