"""What the renderer does: take an order, render, answer; stop between steps when told to; end when nobody listens."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model
from renderkiln.schema.errors import CanceledError, OutOfMemoryError, RenderFailedError, RenderkilnError
from renderkiln.schema.jobs import parse_job
from renderkiln.worker.engine.base import Engine
from renderkiln.worker.protocol import (
    Cancel,
    Done,
    Failed,
    FormName,
    FromRenderer,
    NotReady,
    Picture,
    Ready,
    Render,
    RendererConfig,
    Step,
    ToRenderer,
    WarmUp,
)

log = logging.getLogger("renderkiln.renderer")


def serve(connection: Connection, config: RendererConfig) -> None:
    """Serves orders until the other end of the pipe is closed, which is how a dead supervisor shows."""
    orders = Orders(connection)
    forms: dict[str, FormName] = {}
    try:
        engine = _make_engine(config, forms)
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

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[ToRenderer] = deque()

    def next(self) -> ToRenderer:
        """The next order; waits for it. Raises EOFError when the supervisor is gone."""
        return self._waiting.popleft() if self._waiting else self._connection.recv()

    def cancel(self) -> Cancel | None:
        """A cancel that has come since the last look; other orders are kept for later."""
        found = None
        while self._connection.poll():
            order = self._connection.recv()
            if isinstance(order, Cancel):
                found = order
            else:
                self._waiting.append(order)
        return found


def _note_form(forms: dict[str, FormName], model: str, form: FormName | None) -> None:
    if form is not None:
        forms[model] = form


def _make_engine(config: RendererConfig, forms: Mapping[str, FormName]) -> Engine:
    """The engine; `forms` are looked up when a model is opened."""
    from renderkiln.worker.engine.making import EngineChoice, make_engine
    from renderkiln.worker.models.choosing import Wishes

    folder = DataFolder(Path(config.data_dir))
    wishes = Wishes(config.engine, config.compute_unit, config.variant)
    choice = EngineChoice(wishes, config.device, config.dtype)
    return make_engine(choice, lambda name, revision: find_model(folder, name, revision), folder, forms.get)


def _warm_up(engine: Engine, order: WarmUp, connection: Connection) -> None:
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
    connection.send(Ready(order.model, warm.seconds, {name: value for name, value in about.items() if value}))


def _render(engine: Engine, order: Render, orders: Orders, connection: Connection, forms: dict[str, FormName]) -> None:
    stop_after_image = False

    def on_step(k: int, step: int, num_steps: int) -> None:
        nonlocal stop_after_image
        cancel = orders.cancel()
        if cancel is not None and not cancel.after_image:
            raise CanceledError(f"stopped after step {step} of {num_steps} of image {k}")
        stop_after_image = stop_after_image or cancel is not None
        connection.send(Step(k, step, num_steps))

    answer: FromRenderer = Done()
    try:
        job = parse_job(order.job_json)
        _note_form(forms, job.spec.model, order.form)
        last = max(k for k in range(job.num_images) if k not in order.skip)
        for image in engine.render(job, order.inputs, skip=frozenset(order.skip), on_step=on_step):
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
            if stop_after_image and image.k != last:
                raise CanceledError(f"stopped after image {image.k}")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        answer = _failed(error)
    connection.send(answer)


def _failed(error: Exception) -> Failed:
    details = "".join(traceback.format_exception(error))
    if isinstance(error, RenderkilnError):
        return Failed(error.kind, str(error), details)
    if isinstance(error, MemoryError):
        return Failed(OutOfMemoryError.kind, "memory ran out while rendering.", details)
    log.error("the engine failed in a way that it has no name for", exc_info=error)
    return Failed(RenderFailedError.kind, f"{type(error).__name__}: {error}", details)
