"""A worker of a benchmark's own, with the demo model: data folder, embedded server, queue and the real command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import AttemptMemory, MemoryRecords, MemorySample
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.producer import RenderQueue

NAME = "benchmark"


@dataclass(frozen=True)
class Place:
    """Where a worker works, and its queue."""

    settings: Settings
    queue: RenderQueue

    @property
    def folder(self) -> DataFolder:
        return DataFolder(self.settings.data_dir)

    def start_worker(self, *flags: str) -> subprocess.Popen[bytes]:
        """`renderkiln worker`, in a process of its own; its log is in the data folder."""
        command = [sys.executable, "-m", "renderkiln.producer", "worker", "--device", "cpu", "--name", NAME, *flags]
        command += ["--data-dir", str(self.settings.data_dir), "--out", self.settings.out]
        with self._log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def said(self) -> str:
        """The end of what the worker logged."""
        return self._log.read_text(errors="replace")[-2000:]

    def recorded(self) -> tuple[list[AttemptMemory], list[MemorySample]]:
        """What the ledger has of the worker: its attempts, and what was in memory; the earliest first."""
        ledger = Ledger(self.folder.ledger)
        try:
            records = MemoryRecords(ledger)
            return records.attempts(NAME, 0.0, 4e9), records.samples(NAME)
        finally:
            ledger.close()

    @property
    def _log(self) -> Path:
        return self.settings.data_dir / "worker.log"


@contextmanager
def place() -> Iterator[Place]:
    """A place that is gone when the block ends. Whoever started a worker there ends it before."""
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(data_dir=Path(name) / "data", out=str(Path(name) / "out"), device="cpu")
        server = EmbeddedServer(DataFolder(settings.data_dir))
        queue = RenderQueue(settings=settings)
        try:
            yield Place(settings, queue)
        finally:
            queue.close()
            server.stop()


def renderer_of(worker: subprocess.Popen[bytes]) -> int:
    """The process id of a worker's renderer. Raises AssertionError if it has none."""
    for child in psutil.Process(worker.pid).children(recursive=True):
        if "renderkiln.worker.renderer" in child.cmdline():
            return int(child.pid)
    raise AssertionError("the worker has no renderer")
