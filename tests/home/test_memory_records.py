"""What the ledger knows of memory: what a model makes do with, what stages take, and samples over time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import AttemptMemory, MemoryRecords, MemorySample, StageCost
from renderkiln.schema import Failure, JobStatus, make_job, parse_options, parse_spec
from renderkiln.schema.errors import LedgerError

GB = 10**9
FORM = "torch bfloat16 cpu"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "ledger.db")
    found.worker_started("mini-1", "mini", 7, {})
    yield found
    found.close()


@pytest.fixture
def records(ledger: Ledger) -> MemoryRecords:
    return MemoryRecords(ledger)


def sample(at: float, **fields: Any) -> MemorySample:
    return MemorySample(**({"at": at, "process_bytes": 5 * GB, "available_bytes": 2 * GB, "level": "calm"} | fields))


def test_a_tightening_holds_under_the_settings_that_it_was_learned_under(records: MemoryRecords) -> None:
    assert records.tightening("dreamy", "auto 6000000000") is None
    records.tightened("dreamy", 1, "the UNet did not fit", "auto 6000000000")
    assert records.tightening("dreamy", "auto 6000000000") == (1, "the UNet did not fit")
    assert records.tightening("dreamy", "auto 9000000000") is None
    assert records.tightening("other", "auto 6000000000") is None
    records.tightened("dreamy", 3, "nor did its decoder", "auto 9000000000")
    assert records.tightening("dreamy", "auto 6000000000") is None
    assert records.tightening("dreamy", "auto 9000000000") == (3, "nor did its decoder")


def test_a_tightening_is_forgotten_once(records: MemoryRecords) -> None:
    records.tightened("dreamy", 2, "why", "auto")
    assert [records.forget_tightening("dreamy"), records.forget_tightening("dreamy")] == [True, False]
    assert records.tightening("dreamy", "auto") is None


def measure(records: MemoryRecords, working: int, pixels: int, *, size: int = 10, took: float = 1.0) -> StageCost:
    records.stage_measured("m", FORM, "unet", size_bytes=size, working_bytes=working, pixels=pixels, load_seconds=took)
    return records.stage_costs("m", FORM)["unet"]


def test_of_a_stage_the_most_working_memory_stays_and_the_latest_of_all_else(records: MemoryRecords) -> None:
    assert measure(records, 3 * GB, 512 * 512) == StageCost(10, 3 * GB, 512 * 512, 1.0)
    assert measure(records, 2 * GB, 768 * 768, size=20, took=2.0) == StageCost(20, 3 * GB, 512 * 512, 2.0)
    assert measure(records, 7 * GB, 1024 * 1024, size=30, took=0.5) == StageCost(30, 7 * GB, 1024 * 1024, 0.5)
    # As much for fewer pixels says nothing new; as much for more does.
    assert measure(records, 7 * GB, 64 * 64).pixels == 1024 * 1024
    assert measure(records, 7 * GB, 2048 * 1024).pixels == 2048 * 1024


def test_costs_are_kept_by_model_form_and_stage(records: MemoryRecords) -> None:
    for model, form, stage in (
        ("m", FORM, "unet"),
        ("m", FORM, "vae"),
        ("m", "split-einsum all", "unet"),
        ("n", "f", "u"),
    ):
        records.stage_measured(model, form, stage, size_bytes=1, working_bytes=2, pixels=3, load_seconds=4.0)
    assert records.forms("m") == ["split-einsum all", FORM]
    assert records.stage_costs("m", FORM) == dict.fromkeys(("unet", "vae"), StageCost(1, 2, 3, 4.0))
    assert records.stage_costs("m", "f") == {}
    assert records.forms("nobody") == []


def test_samples_come_back_as_they_went_in_by_their_time(records: MemoryRecords) -> None:
    samples = [
        sample(
            3.5,
            stages=(("m", "unet", 5 * GB), ("m", "vae", 7)),
            level="critical",
            event="tightened: one at a time",
            budget_bytes=6 * GB,
        ),
        sample(1.25),
        sample(2.0, stages=(("ünï", "unet", 1),), process_bytes=2**40),
    ]
    records.add_samples("mini-1", samples)
    records.add_samples("mini-2", [sample(2.5)])
    records.add_samples("mini-2", [])
    one, two, three = samples[1], samples[2], samples[0]
    assert records.samples("mini-1") == [one, two, three]
    assert records.samples(None) == [one, two, sample(2.5), three]
    assert records.samples("mini-1", since=2.0) == [two, three]
    assert records.samples("mini-1", until=2.0) == [one, two]
    assert records.samples("mini-1", since=2.1, until=3.0) == []
    assert records.sampled_workers() == [("mini-1", 1.25, 3.5), ("mini-2", 2.5, 2.5)]


def test_samples_are_added_whole_or_not_at_all(records: MemoryRecords) -> None:
    wrong: Any = sample(2.0, level=None)
    with pytest.raises(LedgerError, match="NOT NULL"):
        records.add_samples("mini-1", [sample(1.0), wrong])
    assert records.samples(None) == []


def test_old_samples_are_dropped(records: MemoryRecords) -> None:
    records.add_samples("mini-1", [sample(float(at)) for at in range(10)])
    assert records.drop_samples(4.0) == 4
    assert [each.at for each in records.samples(None)] == [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert records.drop_samples(0.0) == 0


def attempt(ledger: Ledger, name: str, begin: str, end: str | None, **ended: Any) -> None:
    job = make_job(parse_spec({"prompt": name}), parse_options({}), batch="cats", index=0)
    ledger.attempt_started(job, name, 1, "mini-1")
    if end is not None:
        ledger.attempt_ended(job.id, name, **({"outcome": "finished", "status": JobStatus.FINISHED} | ended))
    with sqlite3.connect(ledger.path) as raw:
        times = (f"2026-05-12 {begin}", f"2026-05-12 {end}" if end else None, name)
        raw.execute("update attempts set started_at = ?, ended_at = ? where execution_id = ?", times)
    raw.close()


def test_attempts_of_a_stretch_of_time_come_with_what_they_took(ledger: Ledger, records: MemoryRecords) -> None:
    failure = Failure(kind="out_of_memory", message="no room")
    attempt(ledger, "before", "08:00:00", "08:59:59")
    attempt(
        ledger,
        "into",
        "08:30:00",
        "09:30:00",
        outcome="failed",
        status=JobStatus.QUEUED,
        failure=failure,
        timings={"load_seconds": 2.5},
        memory={"peak_bytes": 9 * GB, "loads": 4, "evictions": 3},
    )
    attempt(ledger, "out of", "09:59:00", "11:00:00")
    attempt(ledger, "running", "09:30:00", None)
    attempt(ledger, "after", "10:00:01", None)
    begin, hour = 1_778_576_400.0, 3600.0  # 2026-05-12 09:00 UTC
    found = records.attempts("mini-1", begin, begin + hour)
    assert [each.started_at - begin for each in found] == [-hour / 2, hour / 2, hour - 60]
    assert found[0] == AttemptMemory(
        job_id=found[0].job_id,
        started_at=begin - hour / 2,
        ended_at=begin + hour / 2,
        outcome="failed",
        failure_kind="out_of_memory",
        load_seconds=2.5,
        peak_bytes=9 * GB,
        loads=4,
        evictions=3,
    )
    assert (found[1].ended_at, found[1].outcome) == (None, None)
    assert (found[2].load_seconds, found[2].peak_bytes, found[2].loads, found[2].evictions) == (None,) * 4
    assert records.attempts("mini-2", begin, begin + hour) == []
