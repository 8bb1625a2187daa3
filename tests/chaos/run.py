"""A whole run: a fleet, work for it, harm by a plan, then peace, and a verdict."""

from __future__ import annotations

import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from renderkiln.producer.enqueue import requeue
from renderkiln.schema.jobs import JobStatus

from .fleet import Fleet, HarnessError
from .harm import Harm, Record
from .plan import Fault
from .verdict import Verdict, judge
from .watch import Watch
from .work import Work, known_jobs

#: Jobs that wait or run while harm is done: enough that every worker has some.
_OPEN = 30


@dataclass(frozen=True)
class Order:
    """What a run is to be."""

    seed: int
    jobs: int
    workers: int = 4
    lease: float = 4.0
    step_seconds: float = 0.03
    #: Whether each host draws differently.
    unlike: bool = False
    #: Seconds after which what is left of the plan is left undone.
    limit: float = 1500.0


@dataclass
class Outcome:
    """What a run came to."""

    order: Order
    records: list[Record]
    verdict: Verdict
    #: Ends as failed, by kind and message: set aside, and asked for again by the harness.
    failures: list[tuple[str, str, str]]
    #: See `Harm`.
    refusals: list[str]
    crashes: list[str]
    seconds: float
    root: Path

    @property
    def wrong(self) -> list[str]:
        """What faults found that should not have happened."""
        return [f"{each.fault.id} ({each.fault.kind}): {each.wrong}" for each in self.records if each.wrong]


def run(order: Order, plan: Sequence[Fault], tell: Callable[[str], None] = lambda said: None) -> Outcome:
    """Does all of it. The folder is left for whoever wants to look; `forget` removes it.

    Raises:
        HarnessError: the harness itself failed.
    """
    root = Path(tempfile.mkdtemp(prefix="renderkiln-chaos-"))
    began = time.monotonic()
    fleet = Fleet(
        root,
        workers=order.workers,
        lease=order.lease,
        step_seconds=order.step_seconds,
        unlike=order.unlike,
        seed=order.seed,
    )
    watch = Watch(fleet.client())
    try:
        fleet.start_hub()
        work = Work(fleet, watch, order.seed)
        harm = Harm(fleet, watch, work)
        records = _Chaos(order, fleet, watch, work, harm, tell).run(plan)
        _make_peace(order, fleet, watch, work, harm, tell)
        verdict = judge(fleet, watch, work.jobs, records)
    finally:
        watch.close()
        fleet.close()
    return Outcome(order, records, verdict, watch.failures, harm.refusals, harm.crashes, time.monotonic() - began, root)


def forget(outcome: Outcome) -> None:
    shutil.rmtree(outcome.root)


class _Chaos:
    """A thread for each worker and one for what strikes all, each going through its faults one by one."""

    def __init__(
        self, order: Order, fleet: Fleet, watch: Watch, work: Work, harm: Harm, tell: Callable[[str], None]
    ) -> None:
        self._order, self._fleet, self._watch, self._work = order, fleet, watch, work
        self._harm, self._tell = harm, tell
        self._done: queue.SimpleQueue[Record | BaseException] = queue.SimpleQueue()
        self._over = threading.Event()

    def run(self, plan: Sequence[Fault]) -> list[Record]:
        self._fill(0, len(plan))
        threads = [
            threading.Thread(target=self._go_through, args=([each for each in plan if each.worker == worker],))
            for worker in (None, *range(len(self._fleet.seats)))
        ]
        keeper = threading.Thread(target=self._keep_hub)
        for thread in (*threads, keeper):
            thread.start()
        records: list[Record] = []
        deadline, next_word = time.monotonic() + self._order.limit, 0.0
        try:
            while any(thread.is_alive() for thread in threads) or not self._done.empty():
                try:
                    each = self._done.get(timeout=0.1)
                except queue.Empty:
                    each = None
                if isinstance(each, BaseException):
                    raise HarnessError(f"while doing harm: {each!r}") from each
                if each is not None:
                    records.append(each)
                self._fill(len(records), len(plan))
                now = time.monotonic()
                if now >= deadline:
                    self._over.set()
                if now >= next_word:
                    next_word = now + 15
                    self._tell(f"{len(records)} of {len(plan)} faults, {self._watch.count_ended()} jobs ended")
        finally:
            self._over.set()
            for thread in (*threads, keeper):
                thread.join()
        return records

    def _keep_hub(self) -> None:
        """Starts the hub again whenever it ended, as launchd or Docker would."""
        while not self._over.wait(0.5):
            self._fleet.start_hub()

    def _go_through(self, faults: list[Fault]) -> None:
        try:
            for number, fault in enumerate(faults):
                if self._over.is_set():
                    return
                if fault.worker is None:  # what strikes all is spread over the whole run
                    self._wait_for_turn(number, len(faults))
                self._done.put(self._harm.do(fault))
        except BaseException as error:
            self._done.put(error)

    def _wait_for_turn(self, number: int, count: int) -> None:
        self._turn = number / count
        while not self._over.is_set() and self._share < self._turn:
            time.sleep(0.1)

    _share = 0.0

    def _fill(self, done: int, planned: int) -> None:
        self._share = done / max(1, planned)
        target = int(self._order.jobs * self._share)
        while self._work.count_open() < _OPEN or len(self._work.jobs) < min(target, self._order.jobs):
            self._work.queue(self._work.next_list())


def _make_peace(order: Order, fleet: Fleet, watch: Watch, work: Work, harm: Harm, tell: Callable[[str], None]) -> None:
    """No more harm: the rest of the jobs, and then an end in good order."""
    while len(work.jobs) < order.jobs:
        work.queue(work.next_list())
    client, asked_again = fleet.client(), 0
    last_change, before = time.monotonic(), -1
    quiet = 6 * order.lease + 20  # in which every lease has ended, and been noticed
    while time.monotonic() - last_change < quiet:
        for seat in fleet.seats:
            harm.ensure_up(seat)
        fleet.start_hub()
        ends = {job_id: watch.status_of(job_id) for job_id in list(work.jobs)}
        failed = [work.jobs[job_id] for job_id, status in ends.items() if status is JobStatus.FAILED]
        if failed and asked_again < 5:
            asked_again += 1
            requeue(client, failed)
            last_change = time.monotonic()
        merged = known_jobs(fleet.hub_ledger)
        finished = sum(status is JobStatus.FINISHED or merged.get(job) == "finished" for job, status in ends.items())
        if finished != before:
            before, last_change = finished, time.monotonic()
        if finished == len(work.jobs):
            break
        time.sleep(0.1)
    tell(f"{before} of {len(work.jobs)} jobs finished; ending the workers")
    for seat in fleet.seats:
        if seat.life is not None:
            seat.life.signal(signal.SIGTERM)
    for seat in fleet.seats:
        if seat.life is not None and not seat.life.wait():
            harm.crashes.append(f"{seat.life.name} did not end")
        elif seat.life is not None:
            harm.judge_end(seat.life)
    _wait_for_hub(fleet, work)


def _wait_for_hub(fleet: Fleet, work: Work) -> None:
    """Until it has heard of every end, or has had time enough."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        fleet.start_hub()
        said = known_jobs(fleet.hub_ledger)
        if all(said.get(job_id) == "finished" for job_id in work.jobs):
            break
        time.sleep(0.1)
    time.sleep(0.5)  # the last events, and renderers that are ending
