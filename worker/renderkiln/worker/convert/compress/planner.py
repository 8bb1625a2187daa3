"""Chooses the bits of each layer for a size or for a quality. Pure: numbers in, numbers out, always the same.

The errors of layers are taken to add up: the noise that one rounded weight makes in the output has little to do with
that of another. What is chosen is then the best sum of errors that a budget allows, found by dynamic programming over
the budget (a knapsack with one choice per layer). Costs are rounded up to a 32,768th of the range from the cheapest to
the dearest recipe, so a budget is kept to the byte, and what it misses by rounding is less than a hundredth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from renderkiln.schema.errors import BadInputError

_STEPS = 1 << 15


@dataclass(frozen=True)
class Choice:
    """One way to store a layer."""

    nbits: int
    #: What it takes of the budget, in whatever the budget is counted in.
    cost: int
    #: The power of the noise that it makes in the output, over the output's peak squared; 0 for none.
    error: float


@dataclass(frozen=True)
class Layer:
    """A layer and the ways to store it; at least one."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Plan:
    """The bits chosen for each layer, and what they come to."""

    bits: dict[str, int]
    cost: int
    error: float

    @property
    def psnr(self) -> float:
        """The predicted PSNR in dB; infinite without error."""
        return psnr_of(self.error)


def psnr_of(error: float) -> float:
    """The PSNR, in dB, of a noise power over the peak squared."""
    return -10 * math.log10(error) if error > 0 else math.inf


def error_of(psnr: float) -> float:
    """The noise power over the peak squared that a PSNR in dB allows."""
    return 10 ** (-psnr / 10)


def plan_for_cost(layers: Sequence[Layer], budget: int) -> Plan:
    """The plan of the least error whose cost is at most `budget`; a bigger budget never makes it worse.

    Raises:
        BadInputError: even the cheapest choices cost more.
    """
    table = _Table(layers)
    if budget < table.base:
        raise BadInputError(f"the smallest that these widths allow is {table.base:,}, which is more than {budget:,}")
    fitting = [plan for plan in table.fixed if plan.cost <= budget]
    return min([table.plan_within(budget), *fitting], key=lambda plan: (plan.error, plan.cost))


def plan_for_psnr(layers: Sequence[Layer], psnr: float) -> Plan:
    """The cheapest plan found whose predicted PSNR is at least `psnr` dB.

    Raises:
        BadInputError: no choices reach it.
    """
    table = _Table(layers)
    good_enough = [plan for plan in table.fixed if plan.psnr >= psnr]
    if not good_enough:
        best = max(plan.psnr for plan in table.fixed)
        raise BadInputError(f"the best that these widths allow is {best:.1f} dB, which is less than {psnr:g} dB")
    within = table.plan_reaching(psnr)
    return min([*([within] if within else []), *good_enough], key=lambda plan: (plan.cost, plan.error))


class _Table:
    """For every amount of budget, the least error, and the choices that lead there."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.choices = [sorted(layer.choices, key=lambda each: (each.cost, each.error)) for layer in layers]
        if not all(self.choices):
            raise ValueError("every layer needs at least one choice")
        #: What the cheapest choices cost together; the table holds what is added to it.
        self.base = sum(each[0].cost for each in self.choices)
        dearest = sum(each[-1].cost - each[0].cost for each in self.choices)
        self.unit = max(1, -(-dearest // _STEPS))
        self._units = [[-(-(each.cost - ways[0].cost) // self.unit) for each in ways] for ways in self.choices]
        size = sum(units[-1] for units in self._units) + 1
        self.least: NDArray[np.float64] = np.zeros(size)
        self._taken: list[NDArray[np.uint8]] = []
        for ways, units in zip(self.choices, self._units, strict=True):
            least = np.full(size, np.inf)
            taken = np.zeros(size, dtype=np.uint8)
            for index, (way, shift) in enumerate(zip(ways, units, strict=True)):
                reached = self.least[: size - shift] + way.error
                better = reached < least[shift:]
                least[shift:][better] = reached[better]
                taken[shift:][better] = index
            self.least = least
            self._taken.append(taken)
        #: Plans that are looked at beside the table's: each width everywhere, and the best of all. So a plan is never
        #: worse than a plain width that costs as much, and rounding never keeps the best of all out.
        self.fixed = [*self._uniform_plans(), self._plan([_best(ways) for ways in self.choices])]

    def plan_within(self, budget: int) -> Plan:
        return self._plan_at(min((budget - self.base) // self.unit, len(self.least) - 1))

    def plan_reaching(self, psnr: float) -> Plan | None:
        # `least` never rises with the budget, so the first amount that does is the smallest.
        for amount in np.flatnonzero(self.least <= error_of(psnr) * (1 + 1e-9)):
            plan = self._plan_at(int(amount))
            if plan.psnr >= psnr:
                return plan
        return None

    def _plan_at(self, amount: int) -> Plan:
        # Of equal errors the cheapest: the first amount that reaches this error.
        amount = int(np.argmax(self.least[: amount + 1] <= self.least[amount]))
        chosen: list[Choice] = []
        for ways, units, taken in zip(
            reversed(self.choices), reversed(self._units), reversed(self._taken), strict=True
        ):
            index = int(taken[amount])
            chosen.append(ways[index])
            amount -= units[index]
        return self._plan(chosen[::-1])

    def _plan(self, chosen: Sequence[Choice]) -> Plan:
        error = 0.0
        for each in chosen:  # in the table's order, so that the sums are the same to the last bit
            error += each.error
        bits = {layer.name: each.nbits for layer, each in zip(self.layers, chosen, strict=True)}
        return Plan(bits=bits, cost=sum(each.cost for each in chosen), error=error)

    def _uniform_plans(self) -> list[Plan]:
        by_width = [{each.nbits: each for each in reversed(ways)} for ways in self.choices]
        common = set.intersection(*(set(each) for each in by_width)) if by_width else set()
        return [self._plan([each[width] for each in by_width]) for width in sorted(common)]


def _best(ways: Sequence[Choice]) -> Choice:
    return min(ways, key=lambda each: (each.error, each.cost))
