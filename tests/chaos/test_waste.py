"""What wasted work is put down to, told from logs as renderers and supervisors write them."""

from __future__ import annotations

from pathlib import Path

from .harm import Record
from .plan import Fault
from .waste import Wasted, find_waste, read_goes

STEPS = 4


class Seat:
    """A seat's folder, written as its processes would."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self._goes = folder, 0

    def render(self, life: str, k: int, at: float, *, steps: int = STEPS, recorded_at: float | None = None) -> None:
        """A second for each step."""
        self._goes += 1
        with (self.folder / "steps.log").open("a") as log:
            for step in range(1, steps + 1):
                log.write(f"1-{self._goes} {life} job {k} {step} {STEPS} {at + step - 1:.3f}\n")
        if recorded_at is not None:
            with (self.folder / "recorded.log").open("a") as log:
                log.write(f"{life} job {k} {recorded_at:.3f}\n")


def fault(kind: str, at: float, life: str | None, *, until: float | None = None, killed: bool = True) -> Record:
    return Record(Fault(f"{kind} {at:g}", kind, 0, 0), life, at, until or at, killed=killed)


def wasted(records: list[Record], *seats: Seat) -> list[tuple[int, float, str]]:
    """Image, share, and fault of each go that was for nothing."""
    found: list[Wasted] = find_waste([go for seat in seats for go in read_goes(seat.folder)], records)
    return sorted((each.go.k, each.go.share, each.culprit.fault.id if each.culprit else "") for each in found)


def test_what_came_to_something_is_not_waste(tmp_path: Path) -> None:
    seat = Seat(tmp_path / "a")
    seat.render("a1", 0, 0.0, recorded_at=4.0)
    seat.render("a1", 1, 4.0, recorded_at=8.0)
    assert wasted([fault("kill", 9.0, "a1")], seat) == []


def test_a_kill_has_what_it_cut_off_and_what_nobody_had_recorded(tmp_path: Path) -> None:
    seat = Seat(tmp_path / "a")
    seat.render("a1", 0, 0.0)
    seat.render("a1", 1, 4.0, steps=2)
    seat.render("a2", 0, 10.0, recorded_at=14.0)
    seat.render("a2", 1, 14.0, recorded_at=18.0)
    assert wasted([fault("kill", 5.5, "a1")], seat) == [(0, 1.0, "kill 5.5"), (1, 0.5, "kill 5.5")]


def test_a_second_kill_has_what_was_begun_after_the_first(tmp_path: Path) -> None:
    seat = Seat(tmp_path / "a")
    seat.render("a1", 0, 0.0)
    seat.render("a1", 0, 5.0, steps=1)
    seat.render("a1", 0, 6.0, recorded_at=10.0)
    records = [fault("kill", 3.5, "a1", until=5.4), fault("kill", 5.5, "a1")]
    assert wasted(records, seat) == [(0, 0.25, "kill 5.5"), (0, 1.0, "kill 3.5")]


def test_a_picture_that_was_recorded_is_lost_to_the_emptying_of_redis(tmp_path: Path) -> None:
    one, other = Seat(tmp_path / "a"), Seat(tmp_path / "b")
    one.render("a1", 0, 0.0, recorded_at=4.0)
    one.render("a1", 1, 4.0, steps=2)
    other.render("b1", 0, 10.0, recorded_at=14.0)
    other.render("b1", 1, 14.0, recorded_at=18.0)
    records = [fault("kill", 5.5, "a1"), fault("server wiped", 8.0, None, until=9.0, killed=False)]
    assert wasted(records, one, other) == [(0, 1.0, "server wiped 8"), (1, 0.5, "kill 5.5")]


def test_a_picture_that_was_recorded_when_another_worker_had_it_is_no_matter_of_redis(tmp_path: Path) -> None:
    one, other = Seat(tmp_path / "a"), Seat(tmp_path / "b")
    one.render("a1", 0, 0.0, recorded_at=12.0)
    other.render("b1", 0, 10.0, recorded_at=14.0)
    records = [
        fault("SIGSTOP", 3.5, "a1", until=11.0, killed=False),
        fault("server wiped", 20.0, None, until=21.0, killed=False),
    ]
    assert wasted(records, one, other) == [(0, 1.0, "SIGSTOP 3.5")]


def test_what_was_not_done_is_to_blame_for_nothing(tmp_path: Path) -> None:
    seat = Seat(tmp_path / "a")
    seat.render("a1", 0, 0.0, steps=2)
    seat.render("a1", 0, 4.0, recorded_at=8.0)
    nothing = fault("kill", 0.5, "a1", killed=False)
    nothing.instead = "nothing: no renderer was up"
    assert wasted([nothing, fault("kill", 1.5, "a1")], seat) == [(0, 0.5, "kill 1.5")]


def test_a_death_goes_before_what_only_held_its_worker_up(tmp_path: Path) -> None:
    seat = Seat(tmp_path / "a")
    seat.render("a1", 0, 0.0, steps=2)
    seat.render("a1", 0, 4.0, recorded_at=8.0)
    slow = fault("network slow", 0.5, "a1", until=3.0, killed=False)
    assert wasted([slow, fault("kill", 1.5, "a1")], seat) == [(0, 0.5, "kill 1.5")]
    assert wasted([slow], seat) == [(0, 0.5, "network slow 0.5")]
    assert wasted([], seat) == [(0, 0.5, "")]
