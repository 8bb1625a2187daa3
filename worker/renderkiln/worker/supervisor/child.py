"""The renderer as its supervisor sees it: started, talked to over a pipe, asked to stop, and ended when it must be."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from renderkiln.schema.errors import RendererDiedError
from renderkiln.worker.protocol import FromRenderer, RendererConfig, ToRenderer

log = logging.getLogger("renderkiln.supervisor")


class Renderer:
    """One renderer process at a time: a new interpreter, never a fork, in which Apple's frameworks crash."""

    def __init__(self, config: RendererConfig, on_start: Callable[[Renderer], None] = lambda renderer: None) -> None:
        self._config = config
        self._on_start = on_start
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None  # a multiprocessing Connection, or None while no renderer runs

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def ensure_running(self) -> None:
        """Starts the process if there is none; `on_start` may then send it a warm-up."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "renderkiln.worker.renderer",
                    str(theirs.fileno()),
                    json.dumps(dataclasses.asdict(self._config)),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # signals of the terminal are for the supervisor
            )
        self._connection = Connection(ours.detach())
        log.info("renderer started with pid %d", self._process.pid)
        self._on_start(self)

    def send(self, order: ToRenderer) -> None:
        """Sends an order. Raises RendererDiedError."""
        try:
            self._pipe().send(order)
        except OSError:
            raise self._died() from None

    def receive(self, timeout: float) -> FromRenderer | None:
        """The next message, or None if none came within `timeout` seconds. Raises RendererDiedError."""
        try:
            if not self._pipe().poll(timeout):
                return None
            message: FromRenderer = self._pipe().recv()
            return message
        except (EOFError, OSError):
            raise self._died() from None

    def receive_or(self, other: int, timeout: float) -> FromRenderer | None:
        """Like `receive`, but returns early when the file descriptor `other` can be read."""
        try:
            pipe = self._pipe()
            if pipe not in wait([pipe, other], timeout):
                return None
            message: FromRenderer = pipe.recv()
            return message
        except (EOFError, OSError):
            raise self._died() from None

    def kill(self) -> None:
        """Ends the process at once, and with it gives back all its memory."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self, grace: float = 5.0) -> None:
        """Ends the process: it leaves by itself when its pipe is closed, or is killed after the grace."""
        if self._process is None:
            return
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        try:
            self._process.wait(grace)
            self._process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def _pipe(self) -> Any:
        if self._connection is None:
            raise RendererDiedError("the renderer is not running.")
        return self._connection

    def _died(self) -> RendererDiedError:
        code = self._process.wait() if self._process else None
        self.kill()
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            why = " (the system's memory killer does that)" if name == "SIGKILL" else ""
            return RendererDiedError(f"the renderer was ended by {name}{why}.")
        return RendererDiedError(f"the renderer ended with exit code {code} in mid-job; its log says why.")
