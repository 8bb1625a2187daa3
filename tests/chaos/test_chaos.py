"""A short piece of `make chaos`: one fault of each main kind, over a few dozen jobs."""

from __future__ import annotations

import pytest

from .plan import make_plan, pick
from .report import as_text
from .run import Order, forget, run

KINDS = [
    "kill -9 of the supervisor: popped",
    "kill -9 of the supervisor: file written, row not",
    "kill -9 of the renderer: in mid-message",
    "answer lost",
    "kill -9 of the supervisor: registered",
    "kill -9 of the supervisor: end recorded, not acknowledged",
    "SIGSTOP past the lease",
    "kill -9 of the supervisor: in mid-step",
    "kill -9 of the supervisor: row written, not published",
    "SIGTERM once",
    "network cut",
    "kill -9 of the supervisor: file half written",
    "server kill -9",
    "same list twice at once",
]


def test_harm_loses_nothing_and_does_nothing_twice() -> None:
    said: list[str] = []
    outcome = run(Order(seed=1, jobs=60, workers=3, lease=2.0, step_seconds=0.02), pick(1, KINDS, 3), said.append)
    account = as_text(outcome)
    assert len(outcome.records) == len(KINDS)
    assert outcome.verdict.is_clean, account
    assert not outcome.wrong, account
    assert not outcome.crashes, account
    assert outcome.verdict.jobs >= 60
    # That the harm was done, and that work was needed to undo it, must show: else nothing was tried.
    assert sum(record.killed for record in outcome.records) >= 8, account
    assert outcome.verdict.recoveries, account
    # The lease, the look for dead workers every half of it, twice for a job that was popped, and a busy machine.
    assert max(outcome.verdict.recoveries.values()) < 15, account
    forget(outcome)


def test_a_plan_is_what_its_seed_says_and_has_every_kind() -> None:
    plan = make_plan(7, 1000, 4)
    assert plan == make_plan(7, 1000, 4)
    assert plan != make_plan(8, 1000, 4)
    assert len(plan) == 1000
    assert {each.kind for each in plan} == {each.kind for each in make_plan(1, 60, 4)}
    assert {each.worker for each in plan} == {None, 0, 1, 2, 3}


@pytest.mark.parametrize("count", [1, 10, 44, 45, 999])
def test_a_plan_has_as_many_faults_as_asked_for(count: int) -> None:
    assert len(make_plan(1, count, 3)) == count
