"""Attempts in this process: real store, spool, ledger and signals; of the renderer, only what it would say."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.store import Store
from renderkiln.schema.jobs import ImageResult, Job, JobOptions, make_job
from renderkiln.schema.spec import RenderSpec
from renderkiln.worker.protocol import Cancel, Done, Failed, GoOn, MemoryOrder, Picture, Render
from renderkiln.worker.supervisor.attempt import run_attempt
from renderkiln.worker.supervisor.away import Away
from renderkiln.worker.supervisor.delivery import Places
from renderkiln.worker.supervisor.outcomes import Beat, Outcome
from renderkiln.worker.supervisor.pausing import Pause
from renderkiln.worker.supervisor.redelivery import Redelivery
from renderkiln.worker.supervisor.signals import Signals
from renderkiln.worker.supervisor.spool import Spool
from renderkiln.worker.supervisor.surroundings import Surroundings

SIDE = 48


class SpokenRenderer:
    """Says at once what a renderer would: noise, the same for the same image."""

    pid, is_busy, grace = 1, False, 0.2

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._says: deque[Any] = deque()
        self._is_held = False
        self.orders: list[Render] = []
        #: What it has to say of each picture.
        self.notes: tuple[str, ...] = ()
        #: Called when an order comes, and when it may go on after a picture.
        self.on_order: Callable[[], object] = lambda: None
        self.on_go_on: Callable[[], object] = lambda: None

    def ensure_running(self) -> None:
        pass

    def make_ready_for(self, model: str, form: object) -> None:
        pass

    def kill(self) -> None:
        self.is_busy = self._is_held = False
        self._says.clear()

    def send(self, order: Any) -> None:
        was_held, self._is_held = self._is_held, False
        if isinstance(order, GoOn):
            self.on_go_on()
            return
        if isinstance(order, Cancel):
            kept = 1 if order.after_image and not was_held else 0
            while len(self._says) > kept:
                self._says.pop()
            self._says.append(Failed("canceled", "stopped"))
            return
        self.is_busy = True
        self.orders.append(order)
        self.on_order()
        job = Job.model_validate_json(order.job_json)
        for k in sorted(set(range(job.num_images)) - set(order.skip)):
            rgb = random.Random(k).randbytes(SIDE * SIDE * 3)
            self._says.append(Picture(k, job.spec.seed + k, SIDE, SIDE, rgb, 0.1, 0.0, self.notes))
        self._says.append(Done())

    def receive_or(self, other: int, timeout: float) -> Any:
        if not self._says or self._is_held:
            self._signals.sleep(timeout)
            return None
        message = self._says.popleft()
        self._is_held = isinstance(message, Picture) and isinstance(self._says[0], Picture)
        self.is_busy = not isinstance(message, (Done, Failed))
        return message

    @property
    def rendered(self) -> list[int]:
        """The images that each order asked for."""
        return [Job.model_validate_json(order.job_json).num_images - len(order.skip) for order in self.orders]


class AttemptBench:
    """One worker's attempts, one after another, in this thread.

    `beats` says what each look at the lease finds out, about every second; `on_pause` is called whenever the worker
    pauses or goes on.
    """

    def __init__(self, root: Path, *, pictures: Path | None = None, data: Path | None = None) -> None:
        self.folder = DataFolder(data or root / "data").ensure()
        self.pictures = pictures or root / "pictures"
        self.signals, self.pause, self.away = Signals(), Pause(), Away()
        self.ledger = Ledger(self.folder.ledger)
        self.ledger.worker_started("bench", "here", 1, {})
        self.ledger.wait_at_most(0.05)
        self.renderer = SpokenRenderer(self.signals)
        self.beats: Callable[[], Beat] = lambda: Beat.GOING_ON
        self.paused: list[str] = []
        self.on_pause: Callable[[str], object] = lambda reason: None
        self.pause.on_change = self._changed
        self.patience, self.spool = 300.0, Spool(self.folder.spool, 1_000_000)
        self.recorded: list[ImageResult] = []
        self.attempts = 0

    def around(self) -> Surroundings:
        return Surroundings(
            ledger=self.ledger,
            renderer=self.renderer,  # type: ignore[arg-type]
            signals=self.signals,
            store=str(self.pictures),
            may_name_store=True,
            job_timeout=60.0,
            places=Places(self.spool, self.away, self.patience),
            pause=self.pause,
            urge=self.deliver_all,
            inputs=lambda job: {},
            left_by_others=lambda resumes, job, store, missing: (),
            form_of=lambda model: None,
            give_up_form=lambda model, why: False,
            memory_of=lambda model, form: MemoryOrder(),
            ahead_of=lambda job: (),
            warm_up_ran_out=lambda why: None,
            on_ready=lambda ready: None,
            on_step=lambda job, step: None,
            on_image=lambda job, image: self.recorded.append(image),
            heartbeat=lambda: self.beats(),
        )

    def attempt(self, job: Job) -> Outcome:
        self.attempts += 1
        execution_id = f"execution-{self.attempts}"
        begin = lambda: self.ledger.attempt_started(job, execution_id, self.attempts, "bench", self.attempts)  # noqa: E731
        return run_attempt(job, execution_id, self.around(), begin)

    def deliver_all(self) -> bool:
        """One round of what the thread does."""
        store = Store(self.pictures)
        redelivery = Redelivery(
            self.spool, lambda name: Store(name or self.pictures), store, self.ledger.path, self.away, lambda: None
        )
        try:
            return redelivery.deliver_all()
        finally:
            redelivery.close()

    def files(self) -> list[Path]:
        return sorted(path for path in self.pictures.rglob("*") if path.is_file())

    def rows(self, job: Job) -> list[ImageResult]:
        return self.ledger.images_of(job.id)

    def check(self, job: Job) -> None:
        """All pictures are there, once, as their rows say; and nothing else is anywhere."""
        rows = self.rows(job)
        store = Store(self.pictures)
        assert [row.k for row in rows] == list(range(job.num_images))
        assert all(store.matches(row.url, size=row.size_bytes, sha256=row.sha256) for row in rows)
        assert self.files() == sorted(Path(row.url) for row in rows)
        assert self.spool.pictures() == []

    def close(self) -> None:
        self.ledger.close()
        self.signals.close()

    def _changed(self) -> None:
        self.paused.append(self.pause.reason)
        self.on_pause(self.pause.reason)


def a_job(num_images: int = 3, **options: Any) -> Job:
    spec = RenderSpec(model="tiny", prompt="a red circle", seed=7, num_inference_steps=1)
    return make_job(spec, JobOptions(num_images=num_images, **options), batch="bench", index=0)


def is_done(outcome: Outcome, job: Job) -> bool:
    flags = (outcome.failure, outcome.canceled, outcome.given_back, outcome.lost, outcome.held_up)
    return not any(flags) and sorted(outcome.images) == list(range(job.num_images))
