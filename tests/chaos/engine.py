"""The renderer's process, with an engine that writes down its steps, so that what was for nothing can be counted."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.pretend.engine import PretendEngine, serve

from renderkiln.schema.jobs import Job
from renderkiln.worker.protocol import Picture

from .control import Control

#: Environment of a worker and of its renderer.
FOLDER, LIFE, STEP, HAND = "CHAOS_FOLDER", "CHAOS_LIFE", "CHAOS_STEP", "CHAOS_HAND"


class CountedEngine(PretendEngine):
    """Writes down each step.

    Args:
        life: of its worker.
    """

    def __init__(self, control: Control, life: str, hand: str, step_seconds: float) -> None:
        super().__init__(step_seconds, hand)
        self._control, self._life, self._numbers, self._image = control, life, itertools.count(), ""

    def image_begins(self, job: Job, k: int) -> None:
        self._image = f"{os.getpid()}-{next(self._numbers)} {self._life} {job.id} {k}"

    def step_done(self, step: int, num_steps: int) -> None:
        self._control.write("steps.log", f"{self._image} {step} {num_steps} {time.monotonic():.3f}")


def _dying_in_mid_message(
    control: Control, send: Callable[[Connection, Any], None]
) -> Callable[[Connection, Any], None]:
    """`Connection.send`, but where it is asked for the process dies with half of a picture written."""

    def sending(connection: Connection, message: Any) -> None:
        if isinstance(message, Picture) and control.take_back("kill-renderer"):
            data = pickle.dumps(message)
            os.write(connection.fileno(), struct.pack("!i", len(data)) + data[: len(data) // 2])
            control.note("died", boundary="renderer in mid-message", life=os.environ[LIFE])
            os.kill(os.getpid(), signal.SIGKILL)
        send(connection, message)

    return sending


def main() -> None:
    control = Control(Path(os.environ[FOLDER]))
    control.set("renderer", os.getpid())
    Connection.send = _dying_in_mid_message(control, Connection.send)  # type: ignore[method-assign]
    serve(lambda: CountedEngine(control, os.environ[LIFE], os.environ[HAND], float(os.environ[STEP]) / 1000))


if __name__ == "__main__":
    main()
