"""Has a form measured in a process of its own, and takes whatever becomes of that process for a result."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import IO

from renderkiln.schema.errors import DeadlinePassedError, RendererDiedError

from ..runtimes.apple.ahead import REFUSED
from .records import Answer, Compiled, Failure, Measurement, Order, Progress

#: Seconds without any progress after which a form is given up. Nothing is heard while Core ML loads, and for the Neural
#: Engine that has taken six minutes.
PATIENCE = 1200.0
#: Seconds that a process whose pipe is closed has to end.
_GRACE = 10.0
_LOG_LINES, _LOG_BYTES = 3, 20_000


def measure(
    order: Order, tell: Callable[[Progress], None] = lambda _progress: None, patience: float = PATIENCE
) -> Measurement:
    """Measures one form. A form that cannot be rendered, or whose process crashes or hangs, is a result like any other.

    Where Core ML had to compile the model, a second process measures it as it will be from then on.

    Args:
        tell: hears of progress.
        patience: seconds without any progress after which the form is given up.
    """
    answer, refused = _ask(order, tell, patience)
    cold = None
    if isinstance(answer, Compiled):
        cold = answer.load_seconds
        answer, refused_again = _ask(order, tell, patience)
        refused = refused or refused_again
    if isinstance(answer, Compiled):
        answer = Failure(
            RendererDiedError.kind, "Core ML compiled the model twice: the compile cache does not keep it; is it full?"
        )
    if isinstance(answer, Failure):
        return Measurement(order.candidate, failure=answer, cold_load_seconds=cold, refused=refused)
    return Measurement(order.candidate, numbers=answer, cold_load_seconds=cold, refused=refused)


def _ask(order: Order, tell: Callable[[Progress], None], patience: float) -> tuple[Answer, bool]:
    """What a new process answers, and whether the Neural Engine's compiler refused something."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as log, Connection(ours.detach()) as pipe:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "renderkiln.worker.measuring.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is the command's to hear
            )
        try:
            answer = _listen(pipe, order, tell, patience, process, log)
        finally:
            process.kill()
            process.wait()
        return answer, REFUSED in _tail(log)


def _listen(
    pipe: Connection,
    order: Order,
    tell: Callable[[Progress], None],
    patience: float,
    process: subprocess.Popen[bytes],
    log: IO[bytes],
) -> Answer:
    doing = "starting"
    try:
        pipe.send(order)
        while pipe.poll(patience):
            said: Progress | Answer = pipe.recv()
            if not isinstance(said, Progress):
                return said
            doing = said.what
            tell(said)
    except (EOFError, OSError):
        return _death(process, doing, log)
    return Failure(DeadlinePassedError.kind, f"no progress for {patience:g} s ({doing}); given up")


def _death(process: subprocess.Popen[bytes], doing: str, log: IO[bytes]) -> Failure:
    code = None
    with suppress(subprocess.TimeoutExpired):  # its pipe is closed; the rest of it may hang
        code = process.wait(_GRACE)
    if code == -signal.SIGKILL:
        return Failure(RendererDiedError.kind, f"its process was killed ({doing}); it is likely that memory ran out")
    ended = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    last = " | ".join(_tail(log).strip().splitlines()[-_LOG_LINES:])
    return Failure(RendererDiedError.kind, f"its process ended {ended} ({doing}){f': {last}' if last else ''}")


def _tail(log: IO[bytes]) -> str:
    end = log.seek(0, 2)
    log.seek(max(0, end - _LOG_BYTES))
    return log.read().decode(errors="replace")
