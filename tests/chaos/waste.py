"""What was rendered for nothing, and which fault made it so: told from what renderers and supervisors wrote down."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .harm import Record

#: Seconds by which the moment of a death may be noted too early.
_NOTED = 0.05


@dataclass
class Go:
    """One go at one image: how far a renderer came with it. Moments are of the monotonic clock."""

    job: str
    k: int
    #: The worker's process that it was rendered for.
    life: str
    began_at: float
    ended_at: float
    steps: int
    num_steps: int
    #: When the picture was in that worker's ledger, and Redis told so; None where it never was.
    recorded_at: float | None = None

    @property
    def is_whole(self) -> bool:
        return self.steps == self.num_steps

    @property
    def share(self) -> float:
        """Of an image's steps."""
        return self.steps / self.num_steps


@dataclass(frozen=True)
class Wasted:
    """A go that was for nothing."""

    go: Go
    #: The fault that it is put down to; None where none explains it.
    culprit: Record | None
    #: The next one at the same image, which shows when it was found missing, and by whom.
    again: Go | None

    def as_json(self) -> dict[str, Any]:
        go, again = self.go, self.again
        return {
            "job": go.job,
            "k": go.k,
            "life": go.life,
            "steps": f"{go.steps} of {go.num_steps}",
            "began_at": go.began_at,
            "ended_at": go.ended_at,
            "recorded_at": go.recorded_at,
            "again": None if again is None else {"life": again.life, "began_at": again.began_at},
        }


def read_goes(folder: Path) -> list[Go]:
    """What one seat's renderers rendered, whichever process of its worker they worked for."""
    found: dict[str, Go] = {}
    for line in _lines(folder / "steps.log"):
        name, life, job, k, step, num_steps, at = line.split()
        go = found.setdefault(name, Go(job, int(k), life, float(at), float(at), 0, int(num_steps)))
        go.steps, go.ended_at = int(step), float(at)
    by_image: dict[tuple[str, str, int], list[Go]] = defaultdict(list)
    for go in found.values():
        by_image[go.life, go.job, go.k].append(go)
    for line in _lines(folder / "recorded.log"):
        life, job, k, at = line.split()
        whole = [go for go in by_image[life, job, int(k)] if go.is_whole and go.ended_at <= float(at)]
        if whole and whole[-1].recorded_at is None:
            whole[-1].recorded_at = float(at)
    return list(found.values())


def find_waste(goes: Iterable[Go], records: list[Record]) -> list[Wasted]:
    """Every go at an image but the last whole one was for nothing."""
    by_life: dict[str, list[Record]] = defaultdict(list)
    shared: list[Record] = []
    for record in records:
        if record.is_harm:
            (shared if record.life is None else by_life[record.life]).append(record)
    by_image: dict[tuple[str, int], list[Go]] = defaultdict(list)
    for go in goes:
        by_image[go.job, go.k].append(go)
    found = []
    for tries in by_image.values():
        tries.sort(key=lambda go: go.began_at)
        counts = next((go for go in reversed(tries) if go.is_whole), None)
        for number, go in enumerate(tries):
            if go is not counts:
                again = tries[number + 1] if number + 1 < len(tries) else None
                found.append(Wasted(go, _culprit(go, again, tries, by_life, shared), again))
    return found


def _culprit(
    go: Go, again: Go | None, tries: list[Go], by_life: Mapping[str, list[Record]], shared: list[Record]
) -> Record | None:
    """What a go is put down to.

    Where a picture was recorded before somebody began it again, and Redis was emptied in between, it is that. Else it
    is the first fault of its worker that was not over when it began; a death that cut it off goes before one that had
    only held its worker up. Where its worker was not struck, another's that had the same image in hand, and at last
    what struck all.
    """
    if go.recorded_at is not None and again is not None:
        wipes = [each for each in shared if each.fault.kind == "server wiped"]
        between = [each for each in wipes if each.over_at >= go.recorded_at and each.struck_at <= again.began_at]
        if between:
            return _first(between)
    own = [record for record in by_life[go.life] if _is_after(record, go)]
    cut_off = [record for record in own if record.killed and not go.is_whole and record.struck_at <= go.ended_at + 1]
    if cut_off or own:
        return _first(cut_off or own)
    for other in tries:
        struck = [record for record in by_life[other.life] if _is_after(record, go)]
        if struck:
            return _first(struck)
    of_all = [record for record in shared if record.over_at >= go.began_at]
    return _first(of_all) if of_all else None


def _is_after(record: Record, go: Go) -> bool:
    """Whether it can have undone what was begun then: a death is over when it is done, all else when it is healed."""
    return (record.struck_at + _NOTED if record.killed else record.over_at) >= go.began_at


def _first(records: list[Record]) -> Record:
    return min(records, key=lambda record: record.struck_at)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
