"""A process that has imported a worker's modules, and forks one whenever it is told to.

A worker's start would else cost a second of processor time, most of it imports, a thousand times over. What is forked
has no threads and no connections; it runs the real command. Talks JSON lines over a socket; reaps what ends, orphaned
renderers included, and says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.pretend.worker import run_command

import renderkiln.producer.cli.app
import renderkiln.worker.cli
import renderkiln.worker.supervisor.service  # noqa: F401
from renderkiln.schema.jobs import parse_job

from . import inside
from .control import Control

_BECOME_SUBREAPER = 36


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(OSError, AttributeError):  # Linux: renderers whose supervisor died come to us
        ctypes.CDLL(None).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()
    lives: dict[int, str] = {}
    said = b""
    _say(line, {"ready": True})
    while True:
        ready, _, _ = select.select([line, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
            _reap(line, lives)
        if line in ready:
            data = line.recv(1 << 16)
            if not data:
                return
            *orders, said = (said + data).split(b"\n")
            for order in map(json.loads, orders):
                pid = os.fork()
                if pid == 0:
                    line.close()
                    signal.set_wakeup_fd(-1)
                    for number in (signal.SIGINT, signal.SIGCHLD):
                        signal.signal(number, signal.SIG_DFL)
                    _live(order)
                lives[pid] = order["life"]
                _say(line, {"life": order["life"], "pid": pid})


def _reap(line: socket.socket, lives: dict[int, str]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        life = lives.pop(pid, None)
        if life is not None:
            _say(line, {"life": life, "code": os.waitstatus_to_exitcode(status)})


def _say(line: socket.socket, message: dict[str, Any]) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def _live(order: dict[str, Any]) -> None:
    """The rest of a forked process's life."""
    code = 1
    try:
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order["environment"])
        random.seed()
        if order["does"] == "submit":
            _submit(order)
        elif order["does"] == "hub":
            run_command(order["arguments"])
        else:
            inside.prepare(Control(Path(order["folder"])), order["host"], order["renderer"])
            run_command(order["arguments"])
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _submit(order: dict[str, Any]) -> None:
    """Queues a list at a given moment, and leaves what came of it in a file."""
    import redis

    from renderkiln.producer.enqueue import enqueue

    jobs = [parse_job(each) for each in order["jobs"]]
    with redis.Redis(unix_socket_path=order["server"]) as connection:
        time.sleep(max(0.0, order["moment"] - time.monotonic()))
        tally = enqueue(connection, jobs, jobs[0].batch, "twice")
    Path(order["result"]).write_text(json.dumps({"queued": tally.queued, "joined": tally.joined, "done": tally.done}))


if __name__ == "__main__":
    main()
