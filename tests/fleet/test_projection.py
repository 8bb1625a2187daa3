"""What ledgers tell comes to the same in the hub's ledger in any order, however often, and from either source."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import image_of

from renderkiln.home.ledger import Ledger
from renderkiln.home.outbox import read_changes
from renderkiln.producer.hub.projection import project
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import Failure, JobStatus
from renderkiln.schema.records import Shipment, parse_shipment
from renderkiln.schema.tables import Base

from .conftest import a_job, do

TOLD = ("batches", "workers", "jobs", "attempts", "images")
JOBS = [a_job(number) for number in range(3)]
WORKERS = ("a", "b")

#: What two workers do, in order: who, to which job, what.
Story = list[tuple[int, int, str]]
_stories = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 2), st.sampled_from(["start", "image", "finish", "fail", "return"])),
    max_size=25,
)


def rows(ledger: Ledger) -> dict[str, list[dict[str, Any]]]:
    """All that a ledger has of what is told."""
    with ledger.reading() as session:
        return {
            name: sorted(
                (dict(row._mapping) for row in session.execute(sa.select(Base.metadata.tables[name]))), key=repr
            )
            for name in TOLD
        }


def empty(ledger: Ledger) -> None:
    with ledger.writing() as session:
        for name in [*reversed(TOLD), "projections"]:
            session.execute(sa.delete(Base.metadata.tables[name]))


def shipments(ledger: Ledger, changes: int) -> Iterator[Shipment]:
    after = 0
    while (shipment := read_changes(ledger, after, changes)) is not None:
        yield parse_shipment(shipment.model_dump_json())
        after = shipment.upto


class Told:
    """Two workers' ledgers and two hubs', emptied for each story: making them takes longer than the story."""

    def __init__(self, root: Path) -> None:
        self.workers = [Ledger(root / f"{name}.db") for name in WORKERS]
        self.hubs = [Ledger(root / f"hub-{number}.db", strict=False) for number in range(2)]

    def tell(self, story: Story) -> Iterator[Shipment]:
        """Plays a story, and gives after each step what an eager outbox would send."""
        sent = [0, 0]
        at_work: dict[tuple[int, int], str] = {}
        for ledger, name in zip(self.workers, WORKERS, strict=True):
            ledger.worker_started(name, f"mini-{name}", 1, {"engine": "torch"})
        for number, (who, which, what) in enumerate(story, start=1):
            ledger, job = self.workers[who], JOBS[which]
            execution = at_work.get((who, which))
            if what == "start":
                at_work[who, which] = execution = f"e{number}"
                ledger.attempt_started(job, execution, 1, WORKERS[who], fence=number)
            elif execution is not None and what == "image":
                ledger.image_recorded(job.id, image_of(job, text=f"{who}{number}"), execution)
            elif execution is not None:
                status = {"finish": JobStatus.FINISHED, "fail": JobStatus.FAILED, "return": JobStatus.QUEUED}[what]
                failure = Failure(kind="store", message=f"no {number}") if what == "fail" else None
                ledger.attempt_ended(job.id, execution, what, status=status, failure=failure)
            if (shipment := read_changes(ledger, sent[who])) is not None:
                sent[who] = shipment.upto
                yield parse_shipment(shipment.model_dump_json())
        for ledger, after in zip(self.workers, sent, strict=True):
            if (shipment := read_changes(ledger, after)) is not None:
                yield parse_shipment(shipment.model_dump_json())

    def close(self) -> None:
        for ledger in (*self.workers, *self.hubs):
            ledger.close()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    made = Told(tmp_path_factory.mktemp("told"))
    yield made
    made.close()


@settings(max_examples=25)
@given(story=_stories, seed=st.integers(0, 2**32), changes=st.integers(1, 9))
def test_any_order_any_number_of_times_and_a_replay_give_the_same_ledger(
    told: Told, story: Story, seed: int, changes: int
) -> None:
    for ledger in (*told.workers, *told.hubs):
        empty(ledger)
    as_it_came = list(told.tell(story))
    order = random.Random(seed)
    mixed = order.choices(as_it_came, k=len(as_it_came)) + order.sample(as_it_came, k=len(as_it_came))
    for shipment in mixed:
        project(told.hubs[0], [shipment])
    # What an earlier version of a row said is not told any more by the ledger: all its rows as they are now are.
    replayed = [each for ledger in told.workers for each in shipments(ledger, changes)]
    order.shuffle(replayed)
    project(told.hubs[1], replayed)
    assert rows(told.hubs[0]) == rows(told.hubs[1])
    mine = rows(told.workers[0])
    theirs = rows(told.hubs[1])
    assert all(row in theirs["attempts"] for row in mine["attempts"])
    for row in theirs["jobs"]:  # of two workers' words the one with the later claim holds
        fences = [each["fence"] for ledger in told.workers for each in rows(ledger)["jobs"] if each["id"] == row["id"]]
        assert row["fence"] == max(fences)


def test_what_comes_after_a_gap_is_taken_over_and_asked_for_again(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    hub = open_ledger("hub", strict=False)
    for number, job in enumerate(JOBS):
        do(ledger, job, f"e{number}", "mini-1", number + 1)
    parts = list(shipments(ledger, 4))
    source = parts[0].ledger
    assert len(parts) == 3
    assert project(hub, [parts[2], parts[0]]) == {source: parts[0].upto}
    assert {row["id"] for row in rows(hub)["jobs"]} == {JOBS[0].id, JOBS[2].id}
    assert project(hub, [parts[2]]) == {source: parts[0].upto}, "the gap is still there"
    assert project(hub, parts) == {source: parts[2].upto}
    assert [hub.result(job.id) for job in JOBS] == [ledger.result(job.id) for job in JOBS]


def test_a_zombies_late_word_does_not_undo_anothers(ledger: Ledger, open_ledger: Callable[..., Ledger]) -> None:
    other, hub = open_ledger("other"), open_ledger("hub", strict=False)
    other.worker_started("mini-2", "mini", 8, {})
    job = JOBS[0]
    ledger.attempt_started(job, "e1", 1, "mini-1", fence=10)
    do(other, job, "e2", "mini-2", 11)
    project(hub, shipments(other, 9))
    # The first one wakes, and closes what it had begun as given back.
    ledger.attempt_ended(job.id, "e1", "abandoned", status=JobStatus.QUEUED)
    project(hub, shipments(ledger, 9))
    result = hub.result(job.id)
    assert result is not None
    assert result.status is JobStatus.FINISHED
    assert {row["outcome"] for row in rows(hub)["attempts"]} == {"abandoned", "finished"}


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"ledger":"x","after":0,"upto":1,"records":[{"table":"jobs"}]}'])
def test_what_is_no_shipment_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidSpecError, match="not a shipment"):
        parse_shipment(text)


def test_a_job_under_a_name_that_is_not_its_own_is_refused(ledger: Ledger) -> None:
    do(ledger, JOBS[0], "e1", "mini-1", 1)
    shipment = read_changes(ledger, 0)
    assert shipment is not None
    forged = shipment.model_dump_json().replace("cat 0", "dog 0")
    with pytest.raises(InvalidSpecError, match="does not hold what its id was taken from"):
        parse_shipment(forged)
