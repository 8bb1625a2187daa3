"""A worker, put together: settings in, a supervisor with its renderer, ledger and queues out."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import redis

from renderkiln.home.connect import Connection
from renderkiln.home.controlnets import installed_controlnets
from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import MemoryRecords
from renderkiln.home.models import find_model
from renderkiln.home.settings import Settings
from renderkiln.home.store import Store
from renderkiln.schema import names
from renderkiln.schema.errors import (
    LedgerError,
    RendererDiedError,
    WorkerUnavailableError,
)
from renderkiln.schema.jobs import PRIORITIES, JobStatus
from renderkiln.schema.workers import WorkerInfo
from renderkiln.worker.memory.pressure import Probe
from renderkiln.worker.protocol import MemoryUse, Ready, RendererConfig, WarmUp

from .ahead import LookAhead
from .announcing import announce, withdraw
from .attempt import run_attempt
from .attempt_log import AttemptLog
from .away import Away
from .child import Renderer
from .delivery import Places
from .forms import Forms
from .gate import Gate
from .handover import left_by_others
from .health import Health
from .inputs import read_inputs
from .memory.keeper import MemoryKeeper, View
from .memory.leaks import Holding, LeakWatch
from .memory.rules import MemoryRules, thresholds
from .news import News
from .offering import models_to_offer
from .outcomes import Current, Outcome
from .pausing import Pause
from .publisher import Publisher
from .redelivery import Redelivery
from .refusals import Refusals
from .room import Disks
from .rq_worker import RenderWorker
from .signals import Signals
from .spool import Spool
from .surroundings import Surroundings
from .vigil import insist_on_ending

log = logging.getLogger("renderkiln.supervisor")


@dataclass(frozen=True)
class WorkerOptions:
    """What one worker is told besides the settings."""

    name: str | None = None
    #: Models to listen for; empty: all that are on this machine.
    models: tuple[str, ...] = ()
    #: End when the queues are empty.
    burst: bool = False
    #: Model to load at start; None: the default model if this worker has it.
    warm: str | None = None
    #: A process for which this worker was started; it ends, when idle, once that is gone.
    owner: int | None = None


def run_worker(
    settings: Settings,
    connect: Callable[[], Connection],
    options: WorkerOptions,
    on_view: Callable[[View], None] = lambda view: None,
) -> bool:
    """Runs a worker until it is told to stop; whether it took any job.

    Args:
        connect: to Redis; called when there is something to work with, as it may start the embedded server.
        on_view: told about every second, in another thread, what is in memory.

    Raises:
        ModelNotFoundError: a model it was told to listen for is not here, or none is.
        ModelTooLargeError: it could not be rendered in the memory that there is, or none could.
        StoreError, LedgerError: they cannot be written.
        WorkerUnavailableError: job after job failed, and it was to end when the queues are empty, or with its owner.
    """
    return _Service(settings, connect, options, on_view).run()


class _Service:
    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], Connection],
        options: WorkerOptions,
        on_view: Callable[[View], None],
    ) -> None:
        self._settings = settings
        self._options = options
        self._folder = DataFolder(settings.data_dir).ensure()
        probe = Probe()
        total = probe.read().total_bytes
        limit = int(settings.memory_budget) if settings.memory_budget else total
        self._models = models_to_offer(self._folder, options.models, options.warm, settings, limit)
        self._store = Store(settings.out)
        self._store.check()
        self._store.clean(older_than=3600)  # what a killed writer left half-written
        connection = connect()
        log.info("connected to %s", connection.where)
        self._redis: Any = connection.redis
        self._spool = Spool(self._folder.spool, int(settings.spool))
        self._spool.clean()
        self._ledger = Ledger(self._folder.ledger)
        self._name = options.name or f"{socket.gethostname().split('.')[0]}-{os.getpid()}"
        self._started_at = time.time()
        self._device: str = settings.device
        self._signals = Signals()
        self._refusals = Refusals()
        self._health = Health(settings.unwell_pause)
        self._log = AttemptLog()
        self._engine: str = settings.engine
        config = RendererConfig(
            str(settings.data_dir),
            settings.engine,
            settings.device,
            settings.dtype,
            settings.compute_unit,
            settings.variant,
            settings.denoise_ahead,
            int(settings.embeddings_memory),
            int(settings.embeddings_disk),
        )
        self._memory = MemoryRules(settings, MemoryRecords(self._ledger), total)
        self._keeper = MemoryKeeper(
            self._name,
            self._folder.ledger,
            thresholds(settings),
            heeds_pressure=settings.memory == "auto",
            budget_bytes=self._memory.budget_bytes,
            on_view=on_view,
            probe=probe,
        )
        self._publisher = Publisher(self._redis, self._folder.ledger)
        self._pause, self._away = Pause(), Away()
        self._gate = Gate(
            self._redis,
            store=self._store,
            ledger=self._ledger,
            disks=Disks(int(settings.disk_reserve)),
            spool=self._spool,
            away=self._away,
            pause=self._pause,
        )
        self._leaks = LeakWatch()
        # What is resident needs no look ahead.
        self._ahead = LookAhead(self._redis, 0 if settings.memory == "resident" else settings.look_ahead)
        self._warm_model = options.warm or settings.model
        self._renderer = Renderer(config, self._renderer_started, self._log.add)
        self._forms = Forms(settings, partial(find_model, self._folder), self._ledger.tuned_form)
        self._limits = self._forms.limits(self._models, installed_controlnets(self._folder))
        self._worker = RenderWorker(
            [names.queue(priority, model) for priority in PRIORITIES for model in self._models],
            connection=self._redis,
            name=self._name,
            attempt=self._attempt,
            on_ended=self._record_end,
            signals=self._signals,
            announce=self._announce,
            health=self._health,
            lease=settings.lease,
            gate=self._gate,
            owner=options.owner,
            refusals=self._refusals,
        )
        news = News(self._redis, self._name)
        self._around = Surroundings(
            ledger=self._ledger,
            renderer=self._renderer,
            signals=self._signals,
            store=settings.out,
            may_name_store=settings.store_policy == "any",
            job_timeout=settings.job_timeout,
            places=Places(self._spool, self._away, settings.patience),
            pause=self._pause,
            urge=lambda: self._redelivery.wake(),
            inputs=partial(read_inputs, self._redis),
            left_by_others=partial(left_by_others, self._redis),
            form_of=self._forms.of,
            give_up_form=self._forms.give_up,
            memory_of=self._memory.order,
            ahead_of=self._ahead.of,
            warm_up_ran_out=self._warm_up_ran_out,
            on_ready=self._on_ready,
            on_step=news.step,
            on_image=news.image,
            heartbeat=self._worker.beat_while_rendering,
        )
        self._redelivery = Redelivery(
            self._spool, self._around.open_store, self._store, self._folder.ledger, self._away, self._arrived_late
        )
        self._pause.on_change = self._announce_pause

    def run(self) -> bool:
        log.info("worker %s has %s and writes to %s", self._name, ", ".join(self._models), self._settings.out)
        self._ledger.worker_started(
            self._name, socket.gethostname(), os.getpid(), {"engine": self._engine, "models": list(self._models)}
        )
        # From here on there are leases to keep: whatever waits for the ledger does so between heartbeats.
        self._ledger.wait_at_most(min(2.0, self._settings.lease / 4))
        self._keeper.start()
        self._publisher.start()
        self._redelivery.start()
        self._log.open()
        has_name = True
        try:
            with contextlib.suppress(redis.RedisError):
                self._announce("starting")
            self._warm_up()
            return self._work()
        except WorkerUnavailableError:
            # Where it was refused before any work, what is said under its name is another worker's, who goes on.
            has_name = self._worker.is_done
            raise
        finally:
            self._renderer.close()
            self._log.close()
            self._keeper.stop()
            self._redelivery.stop()
            if has_name:
                self._say_goodbye()
            self._publisher.stop()
            self._ledger.close()
            self._signals.close()

    def _say_goodbye(self) -> None:
        with contextlib.suppress(redis.RedisError):  # it would expire by itself
            withdraw(self._redis, self._name)
        with contextlib.suppress(LedgerError):  # full or locked: that must not keep anybody from ending
            self._ledger.worker_ended(self._name)

    def _work(self) -> bool:
        """RQ's loop ends when Redis goes away at the wrong moment; ours begins anew until it is told to stop."""
        worked, wait = False, 0.5
        while True:
            began = time.monotonic()
            try:
                worked |= bool(self._worker.work(burst=self._options.burst, logging_level="WARNING"))
            except redis.RedisError as error:
                log.warning("Redis does not answer: %s", error)
            if self._worker.is_done:
                if self._health.reason is not None and (self._options.burst or self._options.owner is not None):
                    raise WorkerUnavailableError(f"this worker takes no more jobs: {self._health.reason}")
                return worked
            wait = 0.5 if time.monotonic() - began > 60 else min(wait * 2, 10.0)
            log.warning("the worker's loop ended early; beginning anew in %.1f s", wait)
            self._signals.sleep(wait * random.uniform(0.5, 1.0))

    def _warm_up(self) -> None:
        """Once, at the start. A renderer started anew has a job to do, and loads what that needs."""
        model = self._warm_model
        if model not in self._models:
            self._renderer.ensure_running()
            return
        form = self._forms.of(model)
        self._renderer.make_ready_for(model, form)
        with contextlib.suppress(RendererDiedError):  # the first job will meet it too, and say so
            self._renderer.send(WarmUp(model, form, self._memory.order(model, form)))

    def _on_ready(self, ready: Ready) -> None:
        self._device = ready.about.get("device", self._device)
        self._engine = ready.about.get("engine", self._engine)
        about = ", ".join(f"{name} {value}" for name, value in ready.about.items())
        log.info("%s is warm after %.1f s (%s)", ready.model, ready.seconds, about)

    def _renderer_started(self, pid: int, memory_pipe: socket.socket) -> None:
        self._leaks.restarted()
        self._ahead.forget()
        self._keeper.renderer_started(pid, memory_pipe)

    def _announce(self, state: str) -> None:
        info = WorkerInfo(
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            models=self._models,
            sizes=dict(self._limits.sizes),
            controlnets=dict(self._limits.controlnets),
            text_encoders=dict(self._limits.text_encoders),
            engine=self._engine,
            device=self._device,
            store=self._settings.out,
            state="paused" if self._pause.reason else state,
            reason=self._pause.reason or self._health.reason or self._away.why(self._store.url),
            started_at=self._started_at,
            refused=self._refusals.counts,
            memory=self._keeper.announcement(),
        )
        announce(self._redis, info, self._settings.lease)

    def _announce_pause(self) -> None:
        self._worker.show_state()

    def _arrived_late(self) -> None:
        self._publisher.wake()
        self._signals.wake()

    def _attempt(self, current: Current) -> Outcome:
        begin = partial(
            self._ledger.attempt_started,
            current.job,
            current.execution.id,
            current.number,
            self._name,
            current.fence,
        )
        self._keeper.take_peak()
        self._log.begin()
        outcome = run_attempt(current.job, current.execution.id, self._around, begin, resumes=current.resumes)
        self._after(current.job.spec.model, outcome)
        self._gate.learn(current.job.spec.model, outcome)
        outcome.log = self._log.text if outcome.failure is not None else ""
        return outcome

    def _warm_up_ran_out(self, why: str) -> None:
        log.warning("memory ran out while warming up: %s", self._ran_out(self._warm_model, why)[1])

    def _ran_out(self, model: str, why: str) -> tuple[str | None, str]:
        """What was tightened, if anything; and that, or why nothing was, as a sentence."""
        tightened = self._memory.ran_out(model, why)
        said = tightened or self._memory.why_no_tighter(model)
        self._keeper.event(f"memory ran out with {model}: {said}")
        return tightened, said

    def _after(self, model: str, outcome: Outcome) -> None:
        """Learns from an attempt what memory it took, and sees that the renderer gave back what it should have."""
        seen = self._keeper.take_peak()
        if outcome.ran_out and outcome.failure is not None:
            outcome.tightened, effect = self._ran_out(model, outcome.failure.message)
            said = f"{outcome.failure.message.rstrip('.')}; {effect}"
            outcome.failure = outcome.failure.model_copy(update={"message": said})
        use = outcome.memory or MemoryUse(seen, 0, 0.0, 0)
        outcome.memory = replace(use, peak_bytes=max(seen, use.peak_bytes))
        if (excess := self._memory.exceeded(model, outcome.memory.peak_bytes)) is not None:
            log.warning("%s", excess)
            self._keeper.event(excess)
        if not use.measured or self._renderer.pid is None:
            return
        self._memory.learn(model, self._forms.of(model), use)
        process, stages, empty = self._keeper.holding()
        if not empty:  # it has not said what it held before it loaded anything
            return
        working = max(each.working_bytes for each in use.measured.values())
        reason = self._leaks.judge(Holding(process, stages, empty, working))
        if reason is not None:
            log.warning("memory leak: the renderer is started anew, as %s", reason)
            self._keeper.event("renderer started anew: it did not give memory back")
            self._renderer.close()

    def _record_end(self, current: Current, outcome: Outcome, status: JobStatus) -> None:
        ended = "canceled" if outcome.canceled else "returned" if outcome.given_back or outcome.held_up else None
        ended = ended or ("abandoned" if outcome.lost else "failed" if outcome.failure else "finished")
        record = partial(
            self._ledger.attempt_ended,
            current.job.id,
            current.execution.id,
            ended,
            status=status,
            failure=outcome.failure,
            timings=outcome.timings,
            memory=outcome.memory_taken,
            log=outcome.log,
        )
        insist_on_ending(record, self._around)
        self._publisher.wake()
