"""The renderer's process: the real loop, with an engine in it that only pretends.

Each step sleeps for some milliseconds and is written down, so that what was rendered for nothing can be counted.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import signal
import struct
import sys
import time
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from renderkiln.schema.jobs import Job
from renderkiln.schema.spec import RenderSpec
from renderkiln.worker.engine.base import Ahead, EngineInfo, OnStep, RenderedImage, WarmUp
from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.protocol import Picture
from renderkiln.worker.renderer import loop

from .control import Control

#: Large enough that one picture fills the pipe, as real ones do: a renderer that nobody reads must not run ahead.
SIDE = 256
#: Environment of a worker and of its renderer.
FOLDER, LIFE, STEP, HAND = "CHAOS_FOLDER", "CHAOS_LIFE", "CHAOS_STEP", "CHAOS_HAND"


class FakeEngine:
    """Draws noise that a spec decides, and the hand that draws: Macs with different chips draw a little differently.

    Args:
        life: of its worker.
    """

    def __init__(self, control: Control, life: str, hand: str, step_seconds: float) -> None:
        self.residency = Residency()
        self.known_costs: dict[str, Any] = {}
        self._step_seconds = step_seconds
        self._log = os.open(control.folder / "steps.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._life, self._hand, self._numbers = life, hand, itertools.count()

    def render(
        self,
        job: Job,
        inputs: Mapping[str, bytes],
        *,
        skip: Collection[int] = (),
        on_step: OnStep,
        ahead: Ahead | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[RenderedImage]:
        for k in range(job.num_images):
            if k in skip:
                continue
            spec, began = job.image_spec(k), time.perf_counter()
            rendering, num_steps = f"{os.getpid()}-{next(self._numbers)}", spec.num_inference_steps
            for step in range(1, num_steps + 1):
                time.sleep(self._step_seconds)
                line = f"{rendering} {self._life} {job.id} {k} {step} {num_steps} {time.monotonic():.3f}\n"
                os.write(self._log, line.encode())
                on_step(k, step, num_steps)
            yield RenderedImage(k, spec.seed, SIDE, SIDE, _pixels(spec, self._hand), time.perf_counter() - began)
            if enough():
                return

    def warm_up(self, model: str, revision: str | None = None) -> WarmUp:
        return WarmUp(model, 0.0, "cpu", "float32", ())

    def describe(self) -> EngineInfo:
        return EngineInfo("fake", "cpu", "float32", attention_slicing=False)

    def close(self) -> None:
        pass


def _pixels(spec: RenderSpec, hand: str) -> bytes:
    row = hashlib.shake_256(f"{hand}{spec.digest}".encode()).digest(SIDE * 3)
    return row * SIDE


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
    # The real one brings torch. The loop asks its module for one function.
    stand_in: Any = types.ModuleType("renderkiln.worker.engine.diffusers_engine")
    stand_in.stages_name = lambda model, revision: model
    sys.modules[stand_in.__name__] = stand_in
    patched: Any = loop
    patched._make_engine = lambda config, forms: FakeEngine(
        control, os.environ[LIFE], os.environ[HAND], float(os.environ[STEP]) / 1000
    )
    Connection.send = _dying_in_mid_message(control, Connection.send)  # type: ignore[method-assign]

    from renderkiln.worker.renderer.__main__ import main as real_main

    real_main()


if __name__ == "__main__":
    main()
