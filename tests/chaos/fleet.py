"""A fleet on one machine: a server, workers under names and hosts of their own, their ledgers, and one store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis
from tests.fakes import reap

from renderkiln.home.folder import DataFolder
from renderkiln.home.server import EmbeddedServer
from renderkiln.schema.jobs import Job

from .control import Control
from .engine import FOLDER, HAND, LIFE, STEP
from .proxy import Line, Lines

MODEL = "fake"
REPOSITORY = Path(__file__).parents[2]
#: Seconds in which a process must do what cannot take as long.
PATIENCE = 60.0


class HarnessError(Exception):
    """The harness itself could not go on."""


@dataclass
class Life:
    """One process of a worker, from its start to its end."""

    name: str
    #: Of its own, as are those of all lives.
    log: Path
    born_at: float = field(default_factory=time.monotonic)
    pid: int = 0
    code: int | None = None
    ended_at: float = 0.0
    born: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_up(self) -> bool:
        return self.born.is_set() and not self.ended.is_set()

    def signal(self, number: int) -> None:
        """Signals it; nothing where it has ended."""
        if self.is_up:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> bool:
        return self.ended.wait(timeout)


@dataclass
class Seat:
    """A worker's place in the fleet, which lives fill one after another."""

    name: str
    host: str
    data: Path
    control: Control
    line: Line
    life: Life | None = None
    lives: int = 0

    def kill_renderer(self) -> bool:
        """Kills its renderer; whether there was one."""
        pid = self.control.get("renderer")
        try:
            if pid is None or "tests.chaos.engine" not in psutil.Process(pid).cmdline():
                return False  # its number is another's by now
            os.kill(pid, signal.SIGKILL)
        except (psutil.Error, ProcessLookupError):
            return False
        return True


class Fleet:
    """Starts and ends what a fleet is made of. Two workers share a host and its ledger; each of the others has its own.

    Args:
        root: an empty folder.
        lease: seconds, of all workers.
        step_seconds: how long the fake engine takes for a step.
        unlike: each host draws differently.
    """

    def __init__(self, root: Path, *, workers: int, lease: float, step_seconds: float, unlike: bool, seed: int) -> None:
        self.root, self.lease, self._step_seconds, self._unlike = root, lease, step_seconds, unlike
        self.store = root / "store"
        self.hub: Life | None = None
        self._hubs = 0
        self._server = EmbeddedServer(DataFolder(root / "hub"))
        self._server.ensure_running()
        self.lines = Lines(self.socket)
        self._clients: list[redis.Redis] = []
        self._orders = _Nursery(root)
        self.seats: list[Seat] = []
        for number in range(workers):
            machine = number if number < 2 or number != workers - 1 else number - 1
            data = root / f"mac-{machine}"
            model = DataFolder(data).ensure().models / MODEL
            model.mkdir(parents=True, exist_ok=True)
            (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
            name = f"worker-{number}"
            line = self.lines.open(seed + number)
            self.seats.append(Seat(name, f"mac-{machine}", data, Control(root / name), line))

    @property
    def socket(self) -> str:
        return str(DataFolder(self.root / "hub").socket)

    @property
    def ledgers(self) -> list[Path]:
        return sorted({DataFolder(seat.data).ledger for seat in self.seats})

    def client(self) -> redis.Redis:
        """The harness's own line, which nothing harms but the server's death; closed with the fleet."""
        self._clients.append(self._server.client())
        return self._clients[-1]

    # Workers.

    def start(self, seat: Seat, host: str | None = None) -> Life:
        """Starts a worker under a seat's name: in the seat, or on another host beside it, where one is named."""
        seat.lives += 1
        name = f"{seat.name}.{seat.lives}"
        control = seat.control if host is None else Control(self.root / f"{seat.name}-twin")
        life = Life(name, control.folder / f"{name}.log")
        control.take_back("renderer")
        self._orders.give(
            life,
            {
                "does": "work",
                "host": host or seat.host,
                "renderer": "tests.chaos.engine",
                "folder": str(control.folder),
                "log": str(life.log),
                "arguments": [
                    *("worker", "--model", MODEL, "--name", seat.name),
                    *("--data-dir", str(seat.data), "--out", str(self.store)),
                ],
                "environment": {
                    FOLDER: str(control.folder),
                    LIFE: life.name,
                    HAND: seat.host if self._unlike else "",
                    STEP: str(self._step_seconds * 1000),
                    "RENDERKILN_LEASE": str(self.lease),
                    "RENDERKILN_REDIS_URL": f"redis://127.0.0.1:{seat.line.port}/0",
                    "RENDERKILN_MODEL": MODEL,
                    "RENDERKILN_MEMORY": "resident",
                    "RENDERKILN_LOG_FORMAT": "json",
                },
            },
        )
        return life

    # The hub.

    @property
    def hub_ledger(self) -> Path:
        return DataFolder(self.root / "hub").hub_ledger

    def start_hub(self) -> None:
        """Starts the hub where it is not up, as often as every other second; it repairs as often."""
        if self.hub is not None and (self.hub.is_up or time.monotonic() < self.hub.born_at + 2):
            return
        self._hubs += 1
        self.hub = Life(f"hub.{self._hubs}", self.root / f"hub.{self._hubs}.log")
        self._orders.give(
            self.hub,
            {
                "does": "hub",
                "log": str(self.hub.log),
                "arguments": ["hub", "--repair-every", "2", "--data-dir", str(self.root / "hub")],
                "environment": {"RENDERKILN_REDIS_URL": f"unix://{self.socket}"},
            },
        )

    def submit_from_elsewhere(self, jobs: Sequence[Job], moment: float, number: int) -> tuple[Life, Path]:
        """Has another process queue jobs at a moment (of the monotonic clock); the file will hold what came of it."""
        result = self.root / f"submitted-{number}-{time.monotonic_ns()}.json"
        life = Life(result.stem, self.root / "submit.log")
        order = {"does": "submit", "server": self.socket, "moment": moment, "result": str(result)}
        order |= {"jobs": [job.to_json() for job in jobs], "log": str(life.log), "environment": {}}
        self._orders.give(life, order)
        return life, result

    # The server.

    def kill_server(self) -> None:
        pid = self._server.status().pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            reap(pid)

    def start_server(self) -> None:
        self._server.ensure_running()

    # The end.

    def close(self) -> None:
        for life in [self.hub, *(seat.life for seat in self.seats)]:
            if life is not None:
                life.signal(signal.SIGCONT)
                life.signal(signal.SIGKILL)
                life.wait(10)
        self._orders.close()
        self.lines.close()
        for client in self._clients:
            client.close()
        pid = self._server.status().pid
        self._server.stop()
        if pid is not None:
            reap(pid)


class _Nursery:
    """The process that forks workers, and the thread that hears of their ends."""

    def __init__(self, root: Path) -> None:
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RENDERKILN_")}
        paths = [str(REPOSITORY), *(str(REPOSITORY / part) for part in ("schema", "home", "producer", "worker"))]
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HOME": str(root)}
        with theirs, (root / "nursery.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.nursery", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=environment,
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._line, self._reader = ours, ours.makefile("rb")
        self._lives: dict[str, Life] = {}
        self._lock = threading.Lock()
        if not self._reader.readline():
            raise HarnessError(f"the nursery did not start: {(root / 'nursery.log').read_text()[-2000:]}")
        self._thread = threading.Thread(target=self._hear, name="nursery", daemon=True)
        self._thread.start()

    def give(self, life: Life, order: dict[str, Any]) -> None:
        with self._lock:
            self._lives[life.name] = life
            self._line.sendall(json.dumps(order | {"life": life.name}).encode() + b"\n")
        if not life.born.wait(PATIENCE):
            raise HarnessError("the nursery does not answer; see nursery.log")

    def _hear(self) -> None:
        for line in self._reader:
            said = json.loads(line)
            life = self._lives[said["life"]]
            if "pid" in said:
                life.pid = said["pid"]
                life.born.set()
            else:
                life.code, life.ended_at = said["code"], time.monotonic()
                life.ended.set()

    def close(self) -> None:
        self._line.shutdown(socket.SHUT_RDWR)
        self._process.wait(PATIENCE)
        self._thread.join()
        self._reader.close()
        self._line.close()
