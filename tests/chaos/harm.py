"""Doing harm: what each kind of fault does to a fleet, and what was seen of it."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from renderkiln.home.folder import DataFolder

from .fleet import PATIENCE, Fleet, HarnessError, Life, Seat
from .plan import Fault
from .watch import Watch
from .work import Work

#: Seconds in which a boundary is reached by a worker that has work.
_REACHED = 15.0
_OFFSETS = (90.0, 3600.0, 86400.0, 5 * 86400.0)


@dataclass
class Record:
    """A fault as it happened. Moments are of the monotonic clock."""

    fault: Fault
    #: The process that it struck; None where it struck all.
    life: str | None = None
    struck_at: float = 0.0
    over_at: float = 0.0
    #: The job in hand just then.
    job: str | None = None
    #: Whether a supervisor died of it, or a renderer, with no word.
    killed: bool = False
    #: What it became, where that is not what was planned.
    instead: str | None = None
    #: What should not have happened.
    wrong: str | None = None

    @property
    def is_harm(self) -> bool:
        """Whether anything was done."""
        return self.instead is None or not self.instead.startswith("nothing")


class Harm:
    """Does one fault after another to a seat, or to all."""

    def __init__(self, fleet: Fleet, watch: Watch, work: Work) -> None:
        self._fleet, self._watch, self._work = fleet, watch, work
        #: Workers that ended with a reason of theirs, as on a full disk; and those that ended in another way.
        self.refusals: list[str] = []
        self.crashes: list[str] = []

    def do(self, fault: Fault) -> Record:
        """Does it, and heals it; a process that died of it is started again with the next one."""
        record, chance = Record(fault), random.Random(fault.seed)
        if fault.worker is None:
            record.struck_at = time.monotonic()
            self._to_all(record, chance)
        else:
            seat = self._fleet.seats[fault.worker]
            life = self.ensure_up(seat)
            record.life, record.struck_at = life.name, time.monotonic()
            if fault.boundary is not None:
                self._kill_at(record, seat, life, chance)
            else:
                self._kinds[fault.kind](self, record, seat, life, chance)
        record.over_at = time.monotonic()
        return record

    def ensure_up(self, seat: Seat) -> Life:
        """The worker of a seat, started where there is none, and again where it would not start for now."""
        for _ in range(100):
            life = seat.life
            if life is None or not life.is_up:
                if life is not None:
                    self.judge_end(life)
                self._watch.forget(seat.name)
                seat.life = life = self._fleet.start(seat)
            deadline = time.monotonic() + PATIENCE
            while life.is_up and time.monotonic() < deadline:
                if seat.control.get("up") == life.name:
                    return life
                time.sleep(0.02)
            time.sleep(0.5)  # as who starts it again would
        raise HarnessError(f"{seat.name} does not come up; see its logs in {seat.control.folder}")

    def judge_end(self, life: Life) -> None:
        """Notes an end that nobody asked for: with words of ours it was a refusal to go on, else a crash."""
        if life.code in (0, -signal.SIGKILL):
            return
        last = (life.log.read_text().strip().splitlines() or ["nothing was said"])[-1]
        if last.startswith("renderkiln: "):
            self.refusals.append(f"{life.code}: {last}")
        else:
            self.crashes.append(f"{life.name} ended with {life.code}: {last}")

    # To one worker.

    def _kill_at(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        boundary = record.fault.boundary
        after = chance.randrange(12 if boundary == "in mid-step" else 3)
        seat.control.set("kill", {"id": record.fault.id, "at": boundary, "after": after})
        if not life.wait(_REACHED) and seat.control.take_back("kill"):
            record.instead = "kill -9 of the supervisor: at random"
            self._kill(record, seat, life)
            return
        if not life.wait(10):
            record.wrong = "it did not die"
            return
        seat.control.take_back("kill")  # where it ended of something else meanwhile
        record.killed, record.struck_at = True, life.ended_at
        (died,) = [note for note in seat.control.notes() if note.get("fault") == record.fault.id] or [{}]
        record.job = died.get("job")

    def _kill_at_random(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        self._amid_work(seat, chance)
        self._kill(record, seat, life)

    def _kill(self, record: Record, seat: Seat, life: Life) -> None:
        life.signal(signal.SIGKILL)
        life.wait()
        record.killed, record.struck_at = True, life.ended_at
        time.sleep(0.1)  # an event may be on its way
        record.job = self._watch.job_of(seat.name)

    def _kill_renderer(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        self._amid_work(seat, chance)
        record.job, record.struck_at = self._watch.job_of(seat.name), time.monotonic()
        record.killed = seat.kill_renderer()
        if not record.killed:
            record.instead = "nothing: no renderer was up"
        time.sleep(0.3)

    def _kill_in_message(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        seat.control.set("kill-renderer")
        before = len(seat.control.notes())
        deadline = time.monotonic() + _REACHED
        while seat.control.is_set("kill-renderer") and time.monotonic() < deadline:
            time.sleep(0.02)
        record.job, record.struck_at = self._watch.job_of(seat.name), time.monotonic()
        if seat.control.take_back("kill-renderer"):
            record.instead = "nothing: no picture was sent"
        else:
            while not (died := self._renderer_died(seat, before)) and time.monotonic() < deadline:
                time.sleep(0.005)  # it took the wish, and is about to say so
            record.killed = bool(died)
            if died:
                record.struck_at = died[0]["at"]
        time.sleep(0.3)

    @staticmethod
    def _renderer_died(seat: Seat, before: int) -> list[dict[str, Any]]:
        """What renderers said that died in mid-message, without so many notes of earlier."""
        return [note for note in seat.control.notes()[before:] if note.get("boundary") == "renderer in mid-message"]

    def _stop(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        self._amid_work(seat, chance)
        record.job, record.struck_at = self._watch.job_of(seat.name), time.monotonic()
        life.signal(signal.SIGSTOP)
        time.sleep(self._fleet.lease * chance.uniform(1.2, 1.9) + 1)
        life.signal(signal.SIGCONT)
        time.sleep(0.5)

    def _terminate(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        self._amid_work(seat, chance)
        record.job, record.struck_at = self._watch.job_of(seat.name), time.monotonic()
        life.signal(signal.SIGTERM)
        if record.fault.kind == "SIGTERM twice":
            time.sleep(chance.uniform(0.01, 0.1))
            life.signal(chance.choice([signal.SIGTERM, signal.SIGINT]))
        if not life.wait():
            record.wrong = f"it did not end within {PATIENCE:.0f} s"
            life.signal(signal.SIGKILL)
            life.wait()
        else:
            self.judge_end(life)

    def _harm_line(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        self._amid_work(seat, chance)
        record.job, record.struck_at = self._watch.job_of(seat.name), time.monotonic()
        mode = _MODES[record.fault.kind]
        if mode in ("cut", "silent", "slow"):
            self._fleet.lines.harm(seat.line, mode)
            time.sleep(chance.uniform(0.3, 1.2 * self._fleet.lease))
        else:
            self._fleet.lines.harm(seat.line, mode, chance.randint(1, 6))
            deadline = time.monotonic() + 5
            time.sleep(0.1)
            while seat.line.answers and time.monotonic() < deadline:
                time.sleep(0.05)
        self._fleet.lines.harm(seat.line, None)
        time.sleep(0.3)

    def _flag(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        flag = "full" if record.fault.kind == "disk full" else "readonly"
        self._amid_work(seat, chance)
        record.job, record.struck_at = self._watch.job_of(seat.name), time.monotonic()
        seat.control.set(flag)
        time.sleep(chance.uniform(0.3, self._fleet.lease))
        seat.control.take_back(flag)

    def _lock_ledger(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        self._amid_work(seat, chance)
        record.job, record.struck_at = self._watch.job_of(seat.name), time.monotonic()
        with closing(sqlite3.connect(DataFolder(seat.data).ledger, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(chance.uniform(0.3, 1.5 * self._fleet.lease))
            connection.execute("ROLLBACK")

    def _jump(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        self._amid_work(seat, chance)
        record.job, record.struck_at = self._watch.job_of(seat.name), time.monotonic()
        offset = chance.choice(_OFFSETS)
        seat.control.set("clock", offset if record.fault.kind == "clock ahead" else -offset)
        time.sleep(self._fleet.lease * chance.uniform(0.5, 1.5))
        seat.control.take_back("clock")

    def _double(self, record: Record, seat: Seat, life: Life, chance: random.Random) -> None:
        self._amid_work(seat, chance)
        record.job, record.struck_at = self._watch.job_of(seat.name), time.monotonic()
        twin = self._fleet.start(seat, chance.choice([seat.host, "mac-elsewhere"]))
        if not twin.wait(20):
            record.wrong = "two workers were up under one name"
            twin.signal(signal.SIGKILL)
            twin.wait()
        elif twin.code == 0:
            record.wrong = "the second one ended as if all were well"

    def _amid_work(self, seat: Seat, chance: random.Random) -> None:
        """Returns somewhere in the middle of a job, unless there is none for long."""
        self._watch.wait_for_start(seat.name, _REACHED)
        deadline = time.monotonic() + _REACHED
        while not seat.control.is_set("renderer") and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 0.6))

    # To all.

    def _to_all(self, record: Record, chance: random.Random) -> None:
        kind = record.fault.kind
        if kind == "disk full for all":
            for seat in self._fleet.seats:
                seat.control.set("full")
            time.sleep(chance.uniform(0.3, self._fleet.lease))
            for seat in self._fleet.seats:
                seat.control.take_back("full")
        elif kind == "server kill -9":
            self._fleet.kill_server()
            time.sleep(chance.choice([0.0, chance.uniform(0.1, 2.5)]))
            self._fleet.start_server()
        elif kind == "server wiped":
            if not self._work.wipe():
                record.wrong = "the hub did not hear of all jobs within a minute"
            record.struck_at = time.monotonic()
            time.sleep(chance.uniform(1.0, 3.0))  # the hub brings all back, while the next may come
        elif kind == "hub kill -9":
            assert self._fleet.hub is not None
            self._fleet.hub.signal(signal.SIGKILL)
            time.sleep(chance.uniform(0.0, 2.0))  # and started again by who looks after it
        else:
            self._submit_twice(record)

    def _submit_twice(self, record: Record) -> None:
        jobs, moment = self._work.next_list(), time.monotonic() + 0.3
        both = [self._fleet.submit_from_elsewhere(jobs, moment, number) for number in range(2)]
        self._work.note_queued(jobs)
        tallies = [json.loads(path.read_text()) for life, path in both if life.wait() and life.code == 0]
        if len(tallies) != 2:
            record.wrong = "one of the two could not submit"
            self._work.queue(jobs)
        elif sum(tally["queued"] for tally in tallies) != len(jobs):
            record.wrong = f"{len(jobs)} jobs were queued as {tallies}"

    _kinds: dict[str, Callable[..., None]] = {  # noqa: RUF012
        "kill -9 of the supervisor: at random": _kill_at_random,
        "kill -9 of the renderer: at random": _kill_renderer,
        "kill -9 of the renderer: in mid-message": _kill_in_message,
        "SIGSTOP past the lease": _stop,
        "SIGTERM once": _terminate,
        "SIGTERM twice": _terminate,
        **dict.fromkeys(
            ("network cut", "network silent", "network slow", "answer torn", "answer lost", "answer garbled"),
            _harm_line,
        ),
        "disk full": _flag,
        "ledger read-only": _flag,
        "ledger locked": _lock_ledger,
        "clock ahead": _jump,
        "clock behind": _jump,
        "same name twice": _double,
    }


_MODES = {
    "network cut": "cut",
    "network silent": "silent",
    "network slow": "slow",
    "answer torn": "torn",
    "answer lost": "unanswered",
    "answer garbled": "garbled",
}
