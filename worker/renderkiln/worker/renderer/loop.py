"""What the renderer does: take an order, render, answer; stop between steps when told to; end when nobody listens."""

from __future__ import annotations

import dataclasses
import logging
import socket
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model
from renderkiln.schema.errors import CanceledError, OutOfMemoryError, RenderFailedError, RenderkilnError
from renderkiln.schema.jobs import parse_job
from renderkiln.schema.spec import RenderSpec
from renderkiln.worker.engine.base import Ahead
from renderkiln.worker.importing import imports_that_stay
from renderkiln.worker.memory.planning import Rule
from renderkiln.worker.memory.sizes import RENDERER
from renderkiln.worker.memory.stages import Measured
from renderkiln.worker.protocol import (
    Cancel,
    Done,
    Failed,
    FormName,
    GoOn,
    MemoryOrder,
    MemoryUse,
    NotReady,
    Picture,
    Ready,
    Render,
    RendererConfig,
    StageMeasured,
    Step,
    ToRenderer,
    WarmUp,
)

from .memory_link import MemoryLink

if TYPE_CHECKING:
    from renderkiln.worker.engine.diffusers_engine import DiffusersEngine

log = logging.getLogger("renderkiln.renderer")


def serve(connection: Connection, memory_pipe: socket.socket, config: RendererConfig) -> None:
    """Serves orders until the other end of the pipe is closed, which is how a dead supervisor shows."""
    forms: dict[str, FormName] = {}
    try:
        engine = _make_engine(config, forms)
        link = MemoryLink(memory_pipe, engine.residency)
        orders = Orders(connection, link)
        link.tell("the renderer is up")
        while True:
            order = orders.next()
            if isinstance(order, WarmUp):
                _note_form(forms, order.model, order.form)
                _warm_up(engine, order, connection)
            elif isinstance(order, Render):
                _render(engine, order, orders, connection, forms)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class Orders:
    """The supervisor's orders, with those that a running job must hear of picked out."""

    def __init__(self, connection: Connection, link: MemoryLink) -> None:
        self._connection, self._link = connection, link
        self._waiting: deque[ToRenderer] = deque()

    def next(self) -> ToRenderer:
        """The next order; waits for it. Raises EOFError when the supervisor is gone."""
        return self._waiting.popleft() if self._waiting else self._receive()

    def cancel(self) -> Cancel | None:
        """A cancel that has come since the last look; other orders are kept for later."""
        found = None
        while self._connection.poll():
            order = self._connection.recv()
            if isinstance(order, Cancel):
                found = order
            elif not isinstance(order, GoOn):  # of a job that was canceled meanwhile
                self._waiting.append(order)
        return found

    def go_on(self) -> Cancel | None:
        """Waits for leave to begin the next image; the cancel, if one came instead. Raises EOFError like `next`."""
        while not isinstance(order := self._receive(), (GoOn, Cancel)):
            self._waiting.append(order)
        return order if isinstance(order, Cancel) else None

    def _receive(self) -> ToRenderer:
        """What comes next. A renderer that waits gives memory back, too, when another program wants it."""
        while self._connection not in wait([self._connection, self._link.fileno()]):
            self._link.listen()
        order: ToRenderer = self._connection.recv()
        return order


def _note_form(forms: dict[str, FormName], model: str, form: FormName | None) -> None:
    if form is not None:
        forms[model] = form


def _make_engine(config: RendererConfig, forms: Mapping[str, FormName]) -> DiffusersEngine:
    """The engine; `forms` are looked up when a model is opened."""
    with imports_that_stay():
        from renderkiln.worker.engine.embeddings import CacheLimits, EmbeddingCache
        from renderkiln.worker.engine.making import EngineChoice, make_engine
        from renderkiln.worker.models.choosing import Wishes

    folder = DataFolder(Path(config.data_dir))
    wishes = Wishes(config.engine, config.compute_unit, config.variant)
    choice = EngineChoice(wishes, config.device, config.dtype)
    cache = EmbeddingCache(CacheLimits(config.embeddings_memory, config.embeddings_disk), folder.embeddings)
    return make_engine(
        choice,
        lambda name, revision: find_model(folder, name, revision),
        folder,
        forms.get,
        cache=cache,
        denoise_ahead=config.denoise_ahead,
    )


def _warm_up(engine: DiffusersEngine, order: WarmUp, connection: Connection) -> None:
    _begin_use(engine, order.model, order.memory)
    try:
        warm = engine.warm_up(order.model)
    except Exception as error:  # whatever it is, the supervisor has to hear of it
        failed = _failed(error)
        connection.send(NotReady(order.model, failed.kind, failed.message, failed.details))
        return
    info = engine.describe()
    about = {"engine": info.engine, "variant": info.variant, "device": info.device, "dtype": info.dtype}
    if warm.likeness is not None:
        about["self-test"] = f"{warm.likeness:.0f} dB"
    about["memory"] = f"{psutil.Process().memory_info().rss / 1e9:.2f} GB"
    about |= info.versions
    said = {name: value for name, value in about.items() if value}
    connection.send(Ready(order.model, warm.seconds, said))


def _begin_use(engine: DiffusersEngine, model: str, order: MemoryOrder) -> Callable[[], MemoryUse]:
    """Sets the rule that an order comes with; gives what will tell what the order took.

    Args:
        model: by the name of its stages.
    """
    residency = engine.residency
    residency.set_rule(Rule(order.policy, order.budget_bytes), order.step)
    engine.known_costs[model] = {
        stage: Measured(each.load_seconds, each.working_bytes, each.pixels) for stage, each in order.known.items()
    }
    counts, before = residency.counts, residency.counts.copy()
    residency.take_peak()

    def use() -> MemoryUse:
        measured = {
            stage: StageMeasured(size, each.load_seconds, each.working_bytes, each.pixels)
            for stage, (size, each) in residency.measured(model).items()
        }
        if measured:
            measured[RENDERER] = StageMeasured(residency.other_bytes, 0.0, 0, 0)
        took = counts.since(before)
        return MemoryUse(residency.take_peak(), took.loads, took.load_seconds, took.evictions, measured)

    return use


def _render(
    engine: DiffusersEngine, order: Render, orders: Orders, connection: Connection, forms: dict[str, FormName]
) -> None:
    stop_after_image = False

    def heed(cancel: Cancel | None, where: str) -> None:
        nonlocal stop_after_image
        if cancel is not None and not cancel.after_image:
            raise CanceledError(f"stopped {where}")
        stop_after_image = stop_after_image or cancel is not None

    def on_step(k: int, step: int, num_steps: int) -> None:
        heed(orders.cancel(), f"after step {step} of {num_steps} of image {k}")
        connection.send(Step(k, step, num_steps))

    from renderkiln.worker.engine.diffusers_engine import stages_name

    failed: Failed | None = None
    use: Callable[[], MemoryUse] | None = None
    try:
        job = parse_job(order.job_json)
        _note_form(forms, job.spec.model, order.form)
        use = _begin_use(engine, stages_name(job.spec.model, job.spec.revision), order.memory)
        wanted = {k for k in range(job.num_images) if k not in order.skip}
        specs = [RenderSpec.model_validate_json(each) for each in order.ahead]
        ahead = Ahead(specs, lambda: heed(orders.cancel(), "while encoding prompts"))
        images = engine.render(
            job,
            order.inputs,
            skip=frozenset(order.skip),
            on_step=on_step,
            ahead=ahead,
            enough=lambda: stop_after_image,
        )
        for image in images:
            connection.send(
                Picture(
                    image.k,
                    image.seed,
                    image.width,
                    image.height,
                    image.rgb,
                    image.seconds,
                    image.load_seconds,
                    image.notes,
                )
            )
            wanted.discard(image.k)
            if wanted:
                heed(orders.go_on(), f"after image {image.k}")
        if wanted:
            raise CanceledError(f"stopped before image {min(wanted)}")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        failed = _failed(error)
    took = use() if use is not None else None
    connection.send(Done(took) if failed is None else dataclasses.replace(failed, memory=took))


def _failed(error: Exception) -> Failed:
    details = "".join(traceback.format_exception(error))
    if isinstance(error, RenderkilnError):
        return Failed(error.kind, str(error), details)
    if isinstance(error, MemoryError):
        return Failed(OutOfMemoryError.kind, "memory ran out while rendering.", details)
    log.error("the engine failed in a way that it has no name for", exc_info=error)
    return Failed(RenderFailedError.kind, f"{type(error).__name__}: {error}", details)
