"""The table of fates: complete, bounded, and what its page says. And when a worker is unwell. All of it pure."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.schema import errors
from renderkiln.schema.errors import RenderkilnError
from renderkiln.schema.jobs import Failure
from renderkiln.schema.workers import WorkerInfo
from renderkiln.worker.supervisor.fates import FATES, NO_ATTEMPT_ENDS_WITH, Fate, Where, fate_of
from renderkiln.worker.supervisor.health import MOST_FAILED, Health
from renderkiln.worker.supervisor.outcomes import Outcome
from renderkiln.worker.supervisor.placing import MOST_NAMES, better_placed, is_placed, note_failed_on, note_kept_on

PAGE = (Path(__file__).parents[2] / "docs" / "failures.md").read_text(encoding="utf-8")
some_fate = st.sampled_from(sorted(FATES)).map(fate_of)


def every_error() -> Iterator[type[RenderkilnError]]:
    waiting: list[type[RenderkilnError]] = [RenderkilnError]
    while waiting:
        error = waiting.pop()
        if error.__module__ == errors.__name__:
            yield error
        waiting.extend(error.__subclasses__())


def test_every_error_has_a_fate_or_is_known_to_end_no_attempt() -> None:
    kinds = {error.kind for error in every_error()}
    assert kinds == FATES.keys() | NO_ATTEMPT_ENDS_WITH
    assert not FATES.keys() & NO_ATTEMPT_ENDS_WITH
    assert fate_of("a kind of a later version") == FATES["render_failed"]


def _as_written(fate: Fate) -> tuple[str, str, str]:
    tries = "free" if fate.is_free else "as often as the job may" if fate.at_most is None else f"{fate.at_most} in all"
    waits = fate.waits
    wait = f"{waits.base:g} s, × {waits.growth:g}, up to {waits.cap:g} s" if waits.cap else "none"
    return (fate.where.value, "none", "none") if fate.is_jobs_own else (fate.where.value, tries, wait)


def test_the_page_says_what_the_table_does() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    said = {kind: tuple(rest) for kinds, *rest in rows for kind in re.findall(r"`(\w+)`", kinds)}
    assert said == {kind: _as_written(fate) for kind, fate in FATES.items()}


@given(some_fate, st.integers(0, 10_000), st.integers(0, 2**32))
def test_a_wait_is_chance_within_what_the_table_says_and_grows(fate: Fate, failures: int, seed: int) -> None:
    longest = fate.waits.longest(failures)
    assert 0.0 <= fate.wait(failures, random.Random(seed).uniform) <= longest <= fate.waits.cap
    assert longest <= fate.waits.longest(failures + 1)
    assert fate.wait(failures, lambda low, high: high) == longest
    assert fate.wait(failures, lambda low, high: low) == 0.0


@given(some_fate, st.integers(1, 20), st.booleans())
def test_a_job_comes_to_an_end(fate: Fate, max_attempts: int, elsewhere: bool) -> None:
    if fate.is_free:  # which ends when every worker that is alive has failed it
        assert fate.where is Where.ELSEWHERE_ONLY
        assert fate.is_final(0, max_attempts, elsewhere=False)
        assert not fate.is_final(10**6, max_attempts, elsewhere=True)
    else:
        assert fate.is_final(max_attempts, max_attempts, elsewhere=elsewhere)
        assert fate.is_final(1, 1, elsewhere=elsewhere)


# Where next.


def worker(name: str, *models: str, state: str = "idle") -> WorkerInfo:
    return WorkerInfo.model_validate(
        {"name": name, "host": "mini", "pid": 1, "models": models, "engine": "torch", "device": "cpu"}
        | {"store": "/out", "state": state, "started_at": 0.0}
    )


def test_who_failed_a_job_leaves_it_to_those_who_have_the_model_and_are_well() -> None:
    meta: dict[str, object] = {}
    fleet = [worker("a", "m"), worker("b", "m"), worker("c", "other"), worker("d", "m", state="unwell")]
    note_failed_on(meta, "a")
    assert better_placed(meta, "a", "m", fleet, 0.0) == ["b"]
    assert better_placed(meta, "b", "m", fleet, 0.0) == []
    note_failed_on(meta, "b")
    assert [better_placed(meta, name, "m", fleet, 0.0) for name in "ab"] == [[], []]
    assert better_placed(meta, "a", "m", [], 0.0) == []


def test_what_is_remembered_is_bounded_and_then_counts_for_nothing() -> None:
    meta: dict[str, object] = {}
    for number in range(3 * MOST_NAMES):
        note_failed_on(meta, f"w{number}")
    name = f"w{3 * MOST_NAMES - 1}"
    assert len(meta["failed_on"]) == MOST_NAMES  # type: ignore[arg-type]
    assert is_placed(meta, name, 0.0)
    assert better_placed(meta, name, "m", [worker("new", "m")], 0.0) == []


def test_a_job_is_kept_for_its_worker_for_a_while() -> None:
    meta: dict[str, object] = {}
    note_kept_on(meta, "a", until=100.0)
    fleet = [worker("a", "m"), worker("b", "m")]
    assert better_placed(meta, "b", "m", fleet, now=99.0) == ["a"]
    assert better_placed(meta, "a", "m", fleet, now=99.0) == []
    assert better_placed(meta, "b", "m", fleet, now=101.0) == []
    assert better_placed(meta, "b", "m", fleet[1:], now=99.0) == [], "it is gone"
    assert better_placed(meta, "b", "m", fleet, now=-1e6) == [], "somebody's clock is wrong"


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5) | st.just("a"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional={"failed_on": junk, "kept_on": junk, "kept_until": junk}))
def test_notes_that_somebody_forged_stop_nobody(meta: dict[str, object]) -> None:
    fleet = [worker("a", "m"), worker("b", "m")]
    assert set(better_placed(meta, "a", "m", fleet, 50.0)) <= {"b"}
    if not is_placed(meta, "a", 50.0):
        assert better_placed(meta, "a", "m", fleet, 50.0) == []
    note_failed_on(meta, "a")
    assert "a" in meta["failed_on"]  # type: ignore[operator]


# A worker that fails job after job.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def failed(kind: str = "renderer_died") -> Outcome:
    return Outcome(failure=Failure(kind=kind, message="it died."))


def test_five_different_jobs_in_a_row_make_a_worker_unwell() -> None:
    health = Health(10.0, Clock())
    for number in range(MOST_FAILED - 1):
        health.ended(f"job {number}", failed())
        health.ended(f"job {number}", failed("store"))
    assert health.reason is None
    health.ended("the last", failed())
    assert health.rests
    assert health.reason is not None
    assert health.reason.startswith("5 different jobs in a row failed here, the last with renderer_died: it died.")


@pytest.mark.parametrize(
    "outcome",
    [
        *(failed(kind) for kind in FATES if fate_of(kind).is_jobs_own),
        Outcome(canceled=True),
        Outcome(given_back=True),
        Outcome(lost=True),
        Outcome(failure=Failure(kind="out_of_memory", message=""), tightened="one stage at a time"),
    ],
)
def test_what_is_no_workers_fault_neither_counts_nor_clears_it(outcome: Outcome) -> None:
    health = Health(10.0, Clock())
    for number in range(MOST_FAILED - 1):
        health.ended(f"job {number}", failed())
    for number in range(20):
        health.ended(f"another {number}", outcome)
    assert health.reason is None
    health.ended("the last", failed())
    assert health.rests


def test_an_unwell_worker_tries_a_job_after_pauses_that_grow_and_a_finished_one_makes_it_well() -> None:
    clock = Clock()
    health = Health(10.0, clock)
    for number in range(MOST_FAILED):
        health.ended(f"job {number}", failed())
    pauses = []
    for number in range(6):
        began = clock.now
        while health.rests:
            clock.now += 1.0
        pauses.append(clock.now - began)
        health.ended(f"trial {number}", failed())
    assert pauses == [10, 20, 40, 80, 120, 120]
    health.ended("a good one", Outcome())
    assert (health.rests, health.reason) == (False, None)
    for number in range(MOST_FAILED):
        health.ended(f"later {number}", failed())
    clock.now += 10.0
    assert not health.rests, "the pauses begin anew"
