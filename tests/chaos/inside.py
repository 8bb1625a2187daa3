"""What is done inside a worker's process: it dies at a boundary, its clock is wrong, its disk full, its ledger closed.

All by wrapping functions before the worker starts. A name that is no longer there fails the start, loudly: then the
boundary has moved, and this table has to follow.
"""

from __future__ import annotations

import datetime
import errno
import os
import signal
import socket
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rq.utils
from tests.pretend.worker import start_renderers_as

from renderkiln.home import ledger as ledger_module
from renderkiln.home.ledger import Ledger
from renderkiln.home.store import Store
from renderkiln.home.store import folder as folder_module
from renderkiln.schema.jobs import ImageResult, Job
from renderkiln.worker.supervisor import rescue, rq_worker
from renderkiln.worker.supervisor.news import News
from renderkiln.worker.supervisor.rq_worker import RenderWorker

from .control import Control
from .engine import LIFE

#: Where a supervisor may die: what it has just done, as owner and name of a function, and whether its result says that
#: it really has.
BOUNDARIES: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "popped": (rq_worker, "take", lambda result: result is not None),
    "registered": (rq_worker, "claim", bool),
    "attempt recorded": (Ledger, "attempt_started", lambda result: True),
    "in mid-step": (News, "step", lambda result: True),
    "file written, row not": (Store, "put", lambda result: "renderkiln-probe" not in result.url),
    "row written, not published": (Ledger, "image_recorded", lambda result: True),
    "image published": (News, "image", lambda result: True),
    "end recorded, not acknowledged": (Ledger, "attempt_ended", lambda result: True),
    "end acknowledged": (RenderWorker, "_write_end", lambda result: True),
    "in mid-rescue": (rescue, "_put_back", bool),
}
#: Beside these: before a temporary file is renamed.
HALF_WRITTEN = "file half written"


class _Process:
    """This process, as its wrapped functions see it."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.job: str | None = None
        self._passed: dict[str, int] = {}
        self._offset, self._look_again = 0.0, 0.0

    def reach(self, boundary: str) -> None:
        """Dies here, if that is wished."""
        wish = self.control.get("kill")
        if wish is None or wish["at"] != boundary:
            return
        passed = self._passed[wish["id"]] = self._passed.get(wish["id"], 0) + 1
        if passed <= wish["after"] or not self.control.take_back("kill"):
            return
        self.control.note("died", boundary=boundary, fault=wish["id"], job=self.job, life=os.environ[LIFE])
        os.kill(os.getpid(), signal.SIGKILL)

    def offset(self) -> float:
        """Seconds by which the clock is wrong."""
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + 0.1
            self._offset = float(self.control.get("clock") or 0.0)
        return self._offset


def prepare(control: Control, host: str, renderer: str) -> None:
    """Makes this process one that a worker may be started in, on a machine of that name.

    Args:
        renderer: the module that is run as the renderer.
    """
    process = _Process(control)
    socket.gethostname = lambda: host
    start_renderers_as(renderer)
    _bend_clock(process)
    _fill_disk(control)
    _close_ledger(control)
    _note_pictures(control)
    for boundary, (owner, name, happened) in BOUNDARIES.items():
        setattr(owner, name, _wrapped(process, boundary, getattr(owner, name), happened))
    _die_before_renames(process)
    _say_when_up(control)


def _wrapped(
    process: _Process, boundary: str, real: Callable[..., Any], happened: Callable[[Any], bool]
) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if boundary == "popped" and result is not None:
            process.job = result[0].id
        if happened(result):
            process.reach(boundary)
        return result

    return wrapper


def _note_pictures(control: Control) -> None:
    """Writes down which pictures were recorded, and Redis told of them: they should not be rendered again."""
    real = News.image

    def image(news: News, job: Job, result: ImageResult) -> None:
        real(news, job, result)
        control.write("recorded.log", f"{os.environ[LIFE]} {job.id} {result.k} {time.monotonic():.3f}")

    News.image = image  # type: ignore[method-assign]


def _die_before_renames(process: _Process) -> None:
    real = Path.replace

    def replace(path: Path, target: Any) -> Path:
        if path.name.endswith(".part") and "renderkiln-probe" not in path.name:
            process.reach(HALF_WRITTEN)
        return real(path, target)

    Path.replace = replace  # type: ignore[assignment,method-assign]


def _say_when_up(control: Control) -> None:
    real = RenderWorker.register_birth

    def register_birth(worker: RenderWorker) -> None:
        real(worker)
        control.set("up", os.environ[LIFE])

    RenderWorker.register_birth = register_birth  # type: ignore[method-assign]


def _bend_clock(process: _Process) -> None:
    real = time.time
    time.time = lambda: real() + process.offset()

    class Bent(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=process.offset())

    rq.utils.datetime = types.SimpleNamespace(**{**vars(datetime), "datetime": Bent})
    ledger_module.datetime = Bent  # type: ignore[misc]


def _fill_disk(control: Control) -> None:
    """A full disk shows when data is flushed; what the store does then is the store's."""

    def fsync(handle: int) -> None:
        if control.is_set("full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)

    folder_module.os = types.SimpleNamespace(**{**vars(os), "fsync": fsync})  # type: ignore[assignment]


def _close_ledger(control: Control) -> None:
    """SQLite refuses writes by itself: what is seen is its own error."""
    real = ledger_module._begin_immediate

    def begin(connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA query_only={'ON' if control.is_set('readonly') else 'OFF'}")
        real(connection)

    ledger_module._begin_immediate = begin
