"""The renderer as its supervisor sees it: started, talked to over a pipe, asked to stop, and ended when it must be."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from renderkiln.schema.errors import RendererDiedError
from renderkiln.worker.protocol import (
    FULL_PRECISION,
    Cancel,
    Done,
    Failed,
    FormName,
    FromRenderer,
    NotReady,
    Ready,
    Render,
    RendererConfig,
    ToRenderer,
    WarmUp,
)

from .attempt_log import Echo
from .grace import Silences

log = logging.getLogger("renderkiln.supervisor")

#: Seconds for which the renderer may stand still in the middle of a message.
_MESSAGE_TIMEOUT = 10
#: Seconds that a process has to end after its pipe was closed.
_LAST_GRACE = 5.0


class Renderer:
    """One renderer process at a time: a new interpreter, never a fork, in which Apple's frameworks crash.

    Args:
        on_started: told a new process's id and our end of the pipe about memory, which is then the hearer's to close.
        said: told, in a thread, what it writes to its standard error, which goes to ours as well.
    """

    def __init__(
        self,
        config: RendererConfig,
        on_started: Callable[[int, socket.socket], None] = lambda pid, memory_pipe: memory_pipe.close(),
        said: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._config, self._on_started, self._said = config, on_started, said
        self._echo: Echo | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_busy = False
        self._silences = Silences()
        #: In which form the running process has been asked for each model.
        self._forms: dict[str, FormName | None] = {}
        self._connection: Any = None  # a multiprocessing Connection, or None while no renderer runs

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def ensure_running(self) -> None:
        """Starts the process if there is none."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        self._forms.clear()
        self._silences.restarted()
        ours, theirs = socket.socketpair()
        ours_memory, theirs_memory = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs, theirs_memory:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "renderkiln.worker.renderer",
                    str(theirs.fileno()),
                    str(theirs_memory.fileno()),
                    json.dumps(dataclasses.asdict(self._config)),
                ],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(theirs.fileno(), theirs_memory.fileno()),
                start_new_session=True,  # signals of the terminal are for the supervisor
            )
        assert self._process.stderr is not None
        self._echo = Echo(self._process.stderr, self._said)
        for limit in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            # Of a message once begun: a renderer that stands still in mid-message must not stop its supervisor.
            ours.setsockopt(socket.SOL_SOCKET, limit, struct.pack("ll", _MESSAGE_TIMEOUT, 0))
        self._connection = Connection(ours.detach())
        self._on_started(self._process.pid, ours_memory)
        log.info("renderer started with pid %d", self._process.pid)

    @property
    def is_busy(self) -> bool:
        """Whether an order was sent whose last answer has not been received."""
        return self._is_busy

    @property
    def grace(self) -> float:
        """Seconds that it may take to hear of a cancel, before it counts as hanging."""
        return self._silences.grace

    def make_ready_for(self, model: str, form: FormName | None) -> None:
        """Starts the process if there is none; anew if it has done what does not go together with a model's form.

        Core ML has made broken pictures after a change of compute units inside one process; and what was loaded in one
        form of a model stays in memory. A new process has neither.
        """
        if form is not None:
            before = self._forms.get(model, form)
            if before != form or (form != FULL_PRECISION and self._units() - {form[1]}):
                log.info("%s is to be rendered as %s on %s: starting a new renderer", model, *form)
                self.close()
                self._forms.clear()
        self.ensure_running()
        self._forms[model] = form

    def _units(self) -> set[str]:
        """The compute units that the process has been asked for."""
        return {form[1] for form in self._forms.values() if form not in (None, FULL_PRECISION)}

    def send(self, order: ToRenderer) -> None:
        """Sends an order; a `WarmUp` or `Render` only when not busy. Raises RendererDiedError."""
        if isinstance(order, (WarmUp, Render)):
            assert not self._is_busy, "one order at a time"
            self._is_busy = True
        if not isinstance(order, Cancel):
            self._silences.asked()
        try:
            self._pipe().send(order)
        except OSError:
            raise self._died() from None

    def receive_or(self, other: int, timeout: float) -> FromRenderer | None:
        """The next message, or None if none came within `timeout` seconds or before `other` can be read.

        Args:
            other: a file descriptor.

        Raises:
            RendererDiedError: the process has ended, or stopped in the middle of a message.
        """
        began = time.monotonic()
        try:
            pipe = self._pipe()
            if pipe not in wait([pipe, other], timeout):
                self._silences.waited(time.monotonic() - began)
                return None
            message: FromRenderer = pipe.recv()
            self._silences.heard(time.monotonic() - began)
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(message, (Ready, NotReady, Done, Failed)):
            self._is_busy = False
        return message

    def kill(self) -> None:
        """Ends the process at once, and with it gives back all its memory."""
        self._is_busy = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._ended()

    def close(self, grace: float = 5.0) -> None:
        """Ends the process: it leaves by itself when its pipe is closed, or is killed after the grace."""
        if self._process is None:
            return
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        try:
            self._process.wait(grace)
            self._ended()
        except subprocess.TimeoutExpired:
            self.kill()

    def _ended(self) -> None:
        self._process = None
        if self._echo is not None:
            self._echo.finish()
            self._echo = None

    def _pipe(self) -> Any:
        if self._connection is None:
            raise RendererDiedError("the renderer is not running.")
        return self._connection

    def _died(self) -> RendererDiedError:
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its pipe is closed; the rest of it may hang
                code = self._process.wait(_LAST_GRACE)
        self.kill()
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            why = " (the system's memory killer does that)" if name == "SIGKILL" else ""
            return RendererDiedError(f"the renderer was ended by {name}{why}.", signal=-code)
        if code is None:
            return RendererDiedError("the renderer did not answer any more and was killed.")
        return RendererDiedError(f"the renderer ended with exit code {code} in mid-job; its log says why.")
