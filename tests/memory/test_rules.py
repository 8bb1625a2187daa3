"""How much a model may take: the settings, and what a machine has learned; with a real ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import MemoryRecords
from renderkiln.home.settings import Settings
from renderkiln.worker.memory.sizes import default_budget
from renderkiln.worker.protocol import MemoryUse, StageMeasured
from renderkiln.worker.supervisor.memory.leaks import Holding, LeakWatch
from renderkiln.worker.supervisor.memory.rules import MemoryRules

GIGA = 10**9


@pytest.fixture
def records(tmp_path: Path) -> MemoryRecords:
    return MemoryRecords(Ledger(tmp_path / "ledger.db"))


def rules(records: MemoryRecords, total: int = 16 * GIGA, **settings: object) -> MemoryRules:
    return MemoryRules(Settings(**settings), records, total)  # type: ignore[arg-type]


def test_the_default_leaves_room_for_others(records: MemoryRecords) -> None:
    order = rules(records).order("m", None)
    assert (order.policy, order.budget_bytes, order.step, order.known) == ("auto", 12 * GIGA, 0, {})
    assert rules(records, memory_budget="3GB", memory="jit").order("m", None).budget_bytes == 3 * GIGA
    assert [default_budget(total * GIGA) for total in (2, 4, 8, 64)] == [GIGA, 2 * GIGA, 6 * GIGA, 48 * GIGA]


def test_each_time_that_memory_runs_out_takes_more_away_and_is_remembered(records: MemoryRecords) -> None:
    machine = rules(records)
    said = [machine.ran_out("m", "killed") for _ in range(4)]
    assert [text is None for text in said] == [False, False, False, True]
    assert "a quarter less is kept" in str(said[0])
    assert "only the stage at work" in str(said[1])
    assert "in tiles" in str(said[2])
    assert machine.order("m", None).step == 3
    assert machine.order("other", None).step == 0
    assert rules(records).order("m", None).step == 3, "the next worker knows"
    assert rules(records, memory_budget="14GB").order("m", None).step == 0, "it was learned with less"


def test_why_nothing_is_tightened_any_more_is_said(records: MemoryRecords) -> None:
    machine = rules(records, memory="jit")
    assert "models plan m --forget" in str(machine.ran_out("m", "killed"))
    assert machine.ran_out("m", "killed") is None
    assert "decoded in tiles for m already" in machine.why_no_tighter("m")
    assert "resident" in rules(records, memory="resident").why_no_tighter("m")


def test_a_budget_that_is_exceeded_is_said_once_and_again_where_it_gets_worse(records: MemoryRecords) -> None:
    machine = rules(records, memory_budget="3GB")
    assert machine.exceeded("m", 3 * GIGA) is None
    assert machine.exceeded("m", int(3.05 * GIGA)) is None, "that is noise"
    assert "took 3,300 MB at its most, which is 300 MB over" in str(machine.exceeded("m", int(3.3 * GIGA)))
    assert machine.exceeded("m", int(3.4 * GIGA)) is None
    assert machine.exceeded("other", int(3.4 * GIGA)) is not None
    assert machine.exceeded("m", int(3.6 * GIGA)) is not None
    assert rules(records, memory="resident", memory_budget="3GB").exceeded("m", 9 * GIGA) is None, "it heeds none"


@pytest.mark.parametrize(("policy", "steps"), [("resident", []), ("jit", [3])])
def test_who_says_what_stays_is_heeded(records: MemoryRecords, policy: str, steps: list[int]) -> None:
    machine = rules(records, memory=policy)
    found = []
    while machine.ran_out("m", "killed") is not None:
        found.append(machine.order("m", None).step)
    assert found == steps


def test_what_was_measured_is_told_to_the_next_renderer(records: MemoryRecords) -> None:
    machine, form = rules(records), ("split-einsum", "cpu_and_ne")
    measured = StageMeasured(size_bytes=1000, load_seconds=0.5, working_bytes=70, pixels=4096)
    machine.learn("m", form, MemoryUse(1, 1, 0.5, 0, measured={"unet": measured}))
    assert machine.order("m", form).known == {"unet": measured}
    assert machine.order("m", None).known == {}, "another form takes something else"


def test_what_tells_nothing_new_is_not_written_again(records: MemoryRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    measured = records.stage_measured
    monkeypatch.setattr(records, "stage_measured", lambda *of, **costs: (written.append(of[2]), measured(*of, **costs)))
    machine = rules(records)
    for number in range(5):
        small, large = StageMeasured(10, 0.5 + number / 100, 70, 64), StageMeasured(10, 0.5, 70 << number, 64)
        machine.learn("m", None, MemoryUse(1, 1, 0.5, 0, measured={"unet": small, "vae_decoder": large}))
    assert written == ["unet", *["vae_decoder"] * 5]
    assert rules(records).order("m", None).known["vae_decoder"].working_bytes == 70 << 4


def test_a_ledger_that_fails_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    machine = MemoryRules(Settings(), MemoryRecords(ledger), GIGA)
    for path in tmp_path.glob("ledger.db*"):
        path.write_bytes(b"not a database any more" * 1000)
    assert machine.order("m", None).step == 0
    assert machine.ran_out("m", "killed") is not None
    assert machine.order("m", None).step == 1, "for as long as the worker lives"
    machine.learn("m", None, MemoryUse(1, 1, 0.5, 0, measured={"unet": StageMeasured(1, 1.0, 1, 1)}))
    assert "is not recorded" in caplog.text


class TestLeaks:
    def test_what_is_accounted_for_is_none(self) -> None:
        watch = LeakWatch()
        for _ in range(5):
            assert watch.judge(Holding(3 * GIGA, 2 * GIGA, GIGA // 2, GIGA // 2)) is None

    def test_twice_in_a_row_is_one(self) -> None:
        watch, leaking = LeakWatch(), Holding(3 * GIGA, GIGA, GIGA // 2, GIGA // 2)
        assert watch.judge(leaking) is None
        assert "1.00 GB were not given back" in str(watch.judge(leaking))

    def test_a_new_renderer_begins_anew(self) -> None:
        watch, leaking = LeakWatch(), Holding(3 * GIGA, GIGA, GIGA // 2, GIGA // 2)
        watch.judge(leaking)
        watch.restarted()
        assert watch.judge(leaking) is None
