"""A short part of `python -m benchmarks.hostile_payloads`: nothing executed, nothing crashed, each accounted for."""

from __future__ import annotations

from pathlib import Path

from benchmarks.hostile_lists import siege
from benchmarks.hostile_payloads import siege_supervisor


def test_hostile_jobs_before_a_supervisor(tmp_path: Path) -> None:
    account = siege_supervisor(250, 3, tmp_path, huge=False)
    assert account.executed == []
    assert account.crashes == 0
    assert account.wrong == []
    assert account.good_done == account.good > 10
    assert sum(sum(fates.values()) for fates in account.fates.values()) == 250
    assert account.report["loops_anew"] == 0


def test_hostile_lists_before_the_readers(tmp_path: Path) -> None:
    readers = siege(250, 3, tmp_path, huge=False)
    assert readers.executed == []
    assert readers.crashes == 0
    assert readers.wrong == []
    assert sum(sum(fates.values()) for fates in readers.fates.values()) == 250
