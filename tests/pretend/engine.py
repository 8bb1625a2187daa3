"""The renderer's process: the real loop, with an engine in it that only pretends."""

from __future__ import annotations

import hashlib
import sys
import time
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from renderkiln.schema.jobs import Job
from renderkiln.schema.spec import RenderSpec
from renderkiln.worker.engine.base import Ahead, EngineInfo, OnStep, RenderedImage, WarmUp
from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.renderer import loop

#: Large enough that one picture fills the pipe, as real ones do: a renderer that nobody reads must not run ahead.
SIDE = 256


class PretendEngine:
    """Draws noise that a spec decides, and the hand that draws: Macs with different chips draw a little differently."""

    def __init__(self, step_seconds: float, hand: str = "") -> None:
        self.residency = Residency()
        self.known_costs: dict[str, Any] = {}
        self._step_seconds, self._hand = step_seconds, hand

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
            self.image_begins(job, k)
            for step in range(1, spec.num_inference_steps + 1):
                time.sleep(self._step_seconds)
                self.step_done(step, spec.num_inference_steps)
                on_step(k, step, spec.num_inference_steps)
            yield RenderedImage(k, spec.seed, SIDE, SIDE, _pixels(spec, self._hand), time.perf_counter() - began)
            if enough():
                return

    def image_begins(self, job: Job, k: int) -> None:
        """Called before the first step of each image."""

    def step_done(self, step: int, num_steps: int) -> None:
        """Called after each step, before the supervisor hears of it."""

    def warm_up(self, model: str, revision: str | None = None) -> WarmUp:
        return WarmUp(model, 0.0, "cpu", "float32", ())

    def describe(self) -> EngineInfo:
        return EngineInfo("fake", "cpu", "float32", attention_slicing=False)

    def close(self) -> None:
        pass


def _pixels(spec: RenderSpec, hand: str) -> bytes:
    row = hashlib.shake_256(f"{hand}{spec.digest}".encode()).digest(SIDE * 3)
    return row * SIDE


def serve(make_engine: Callable[[], PretendEngine]) -> None:
    """Runs the real renderer with this engine, until its supervisor is gone."""
    # The real one brings torch. The loop asks its module for one function.
    stand_in: Any = types.ModuleType("renderkiln.worker.engine.diffusers_engine")
    stand_in.stages_name = lambda model, revision: model
    sys.modules[stand_in.__name__] = stand_in
    patched: Any = loop
    patched._make_engine = lambda config, forms: make_engine()

    from renderkiln.worker.renderer.__main__ import main as real_main

    real_main()


if __name__ == "__main__":
    serve(lambda: PretendEngine(0.005))
