"""Which harm comes to whom: drawn from a seed, in proportions, before anything begins."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .inside import BOUNDARIES, HALF_WRITTEN

#: Harm to one worker, by how often it comes; and to all at once.
_TO_ONE: dict[str, float] = {
    **{f"kill -9 of the supervisor: {boundary}": 38 for boundary in (*BOUNDARIES, HALF_WRITTEN)},
    "kill -9 of the supervisor: in mid-rescue": 12,
    "kill -9 of the supervisor: at random": 60,
    "kill -9 of the renderer: at random": 70,
    "kill -9 of the renderer: in mid-message": 60,
    "SIGSTOP past the lease": 36,
    "SIGTERM once": 45,
    "SIGTERM twice": 45,
    "network cut": 30,
    "network silent": 20,
    "network slow": 20,
    "answer torn": 30,
    "answer lost": 40,
    "answer garbled": 30,
    "disk full": 24,
    "ledger read-only": 20,
    "ledger locked": 20,
    "clock ahead": 16,
    "clock behind": 16,
    "same name twice": 16,
}
_TO_ALL: dict[str, float] = {
    "server kill -9": 24,
    "server wiped": 8,
    "hub kill -9": 10,
    "same list twice at once": 16,
    "disk full for all": 8,
}


@dataclass(frozen=True)
class Fault:
    """One piece of harm. `worker` is a seat's number; None: all have it."""

    id: str
    kind: str
    worker: int | None
    #: For whatever is drawn while it is done.
    seed: int

    @property
    def boundary(self) -> str | None:
        head, _, tail = self.kind.partition("supervisor: ")
        return tail if head.startswith("kill -9") and tail != "at random" and tail else None


def make_plan(seed: int, count: int, workers: int) -> list[Fault]:
    """So many faults, each kind as often as its share, in an order that the seed gives.

    Of each kind there is at least one, as far as `count` goes.
    """
    chance = random.Random(seed)
    shares = {**_TO_ONE, **_TO_ALL}
    kinds = _apportion(shares, count)
    chance.shuffle(kinds)
    faults, turn = [], list(range(workers))
    for number, kind in enumerate(kinds):
        if number % workers == 0:
            chance.shuffle(turn)
        worker = None if kind in _TO_ALL else turn[number % workers]
        faults.append(Fault(f"f{number}", kind, worker, chance.getrandbits(32)))
    return faults


def pick(seed: int, kinds: list[str], workers: int) -> list[Fault]:
    """A plan of these kinds, in this order, one after another around the workers."""
    chance = random.Random(seed)
    return [
        Fault(f"f{number}", kind, None if kind in _TO_ALL else number % workers, chance.getrandbits(32))
        for number, kind in enumerate(kinds)
    ]


def _apportion(shares: dict[str, float], count: int) -> list[str]:
    total = sum(shares.values())
    exact = {kind: max(1.0, share * count / total) for kind, share in shares.items()}
    kinds = [kind for kind, number in exact.items() for _ in range(int(number))]
    # What is left goes to those that were rounded down the most.
    rest = sorted(exact, key=lambda kind: int(exact[kind]) - exact[kind])
    while len(kinds) < count:
        kinds.extend(rest[: count - len(kinds)])
    return kinds[:count] if len(kinds) == count else _cut(kinds, count)


def _cut(kinds: list[str], count: int) -> list[str]:
    """Too many, as each kind has at least one: the most frequent gives way."""
    kinds = list(kinds)
    while len(kinds) > count:
        kinds.remove(max(set(kinds), key=lambda kind: (kinds.count(kind), kind)))
    return kinds
