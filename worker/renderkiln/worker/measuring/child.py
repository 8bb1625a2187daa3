"""Measures one form of a model: `python -m renderkiln.worker.measuring.child FD`, started by `process.py` alone.

A process for each form, because changing compute units inside one has broken pictures, and because only a new process
tells how much memory a form takes. It takes one `Order` and says any number of `Progress` and then one `Answer`.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model
from renderkiln.schema.errors import OutOfMemoryError, RenderFailedError, RenderkilnError
from renderkiln.schema.jobs import JobOptions, make_job
from renderkiln.schema.spec import RenderSpec, TextEncoder

from ..importing import imports_that_stay
from ..models.choosing import Wishes
from ..models.layout import variants
from ..runtimes import manifest
from ..runtimes.apple.cache import FOLDER, CompileCache
from ..runtimes.apple.system import on_macos
from ..runtimes.naming import PROJECTION
from .records import Answer, Compiled, Failure, Numbers, Order, Progress
from .shares import shares_of_form

#: The same for all forms and runs: what is compared is the machine. Models of any kind make something of it.
_PROMPT, _SEED = "a small red circle on a white background", 1
Tell = Callable[[Progress], None]


def measure(order: Order, tell: Tell) -> Answer:
    """Loads a model in one form, renders, and says what it took; ends after loading where that had to compile.

    Raises:
        RenderkilnError: it cannot be loaded or rendered, or what it renders is not right.
    """
    with imports_that_stay():
        from ..engine.making import EngineChoice, make_engine

    data, candidate = DataFolder(order.data_dir), order.candidate
    wishes = Wishes(candidate.engine, candidate.unit or "auto", candidate.variant or "auto")
    choice = EngineChoice(wishes, order.device, order.dtype)
    engine = make_engine(choice, lambda name, revision: find_model(data, name, revision), data)
    before = _compiled(data)
    tell(Progress("loading", 0))
    warm = engine.warm_up(order.model)  # also renders the self-test, and raises where it is not what it should be
    load_seconds = sum(stage.load_seconds for stage in warm.stages)
    if _compiled(data) - before:
        return Compiled(load_seconds)
    reader = _reader(order, data)
    runs = [_render(engine, order, number, reader, tell) for number in range(order.runs + 1)]
    # Looked at before Core ML's plans are loaded, which take memory of their own.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    shares, no_shares = shares_of_form(order, data)
    about = engine.describe()
    latencies = tuple(run.seconds for run in runs[1:])
    return Numbers(
        device=about.device,
        dtype=about.dtype,
        width=runs[0].width,
        height=runs[0].height,
        steps=len(runs[0].steps),
        load_seconds=load_seconds,
        first_seconds=runs[0].seconds,
        latencies=latencies,
        latency_seconds=statistics.median(latencies),
        iterations_per_second=statistics.median(run.rate for run in runs[1:]),
        peak_bytes=peak,
        likeness=warm.likeness,
        shares=shares,
        no_shares=no_shares,
        versions=dict(about.versions),
    )


class _Run:
    """One picture: when its steps ended, what it took, and its size."""

    def __init__(self, number: int, tell: Tell) -> None:
        self._number, self._tell = number, tell
        self.steps: list[float] = []
        self.seconds, self.width, self.height = 0.0, 0, 0

    @property
    def rate(self) -> float:
        """Steps a second; see `Numbers.iterations_per_second`."""
        return (len(self.steps) - 1) / sum(after - before for before, after in pairwise(self.steps))

    def on_step(self, _k: int, step: int, num_steps: int) -> None:
        self.steps.append(time.perf_counter())
        name = f"picture {self._number}" if self._number else "first picture"
        self._tell(Progress(name, 1 + self._number + step / num_steps))


def _reader(order: Order, data: DataFolder) -> TextEncoder:
    """Who reads the prompts: macOS, for models that were converted for that."""
    if order.candidate.engine == "torch":
        return "model"
    folder = variants(find_model(data, order.model))[order.candidate.variant]
    return "system-multilingual" if PROJECTION in manifest.read(folder).stages else "model"


def _render(engine: Any, order: Order, number: int, reader: TextEncoder, tell: Tell) -> _Run:
    # Without the safety checker: Apple's table is of the rest, and a model that it hides says nothing of the machine.
    spec = RenderSpec(
        model=order.model,
        prompt=_PROMPT,
        seed=_SEED,
        num_inference_steps=order.steps,
        text_encoder=reader,
        safety_checker=False,
    )
    job = make_job(spec, JobOptions(), batch="measuring", index=number)  # a new one each time: it encodes its prompt
    run = _Run(number, tell)
    began = time.perf_counter()
    [image] = engine.render(job, {}, on_step=run.on_step)
    run.seconds, run.width, run.height = time.perf_counter() - began, image.width, image.height
    if len(run.steps) < 2:
        raise RenderFailedError(f"{order.model} made {len(run.steps)} step of {order.steps}; a speed takes two")
    return run


def _compiled(data: DataFolder) -> set[str]:
    """What Core ML has compiled so far; nothing is ever there elsewhere than on macOS."""
    return {entry.name for entry in CompileCache(data.root / FOLDER).entries()} if on_macos() else set()


def _answer(order: Order, tell: Tell) -> Answer:
    try:
        return measure(order, tell)
    except RenderkilnError as error:
        return Failure(error.kind, str(error))
    except MemoryError:
        return Failure(OutOfMemoryError.kind, "memory ran out")
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # whatever it is, the parent has to hear of it
        return Failure(RenderFailedError.kind, f"{type(error).__name__}: {error}")


def main() -> None:
    with Connection(int(sys.argv[1])) as connection:
        try:
            connection.send(_answer(connection.recv(), connection.send))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # nobody listens any more


if __name__ == "__main__":
    main()
