"""Which stages give way to which: pure functions over sizes, loads and a rule. Loads nothing, measures nothing.

A stage at work takes its weights and, beside them, a working set (activations). What is in memory at once is the
process itself, the weights of all stages that are loaded, and the working set of the one at work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import NamedTuple

from renderkiln.schema.workers import MemoryPolicy

#: Idle stages of which every choice is compared; those beyond go by their price alone.
_COMPARED = 10


class StageKey(NamedTuple):
    """Which stage of which model."""

    #: The model, by whatever its owner tells models apart with.
    model: str
    #: text_encoder, text_encoder_2, unet, controlnet-NAME, vae_encoder, vae_decoder, safety_checker, …
    stage: str


@dataclass(frozen=True)
class StageCost:
    """What a stage takes, and what it costs to bring it back."""

    key: StageKey
    #: Of its weights, once loaded.
    size_bytes: int
    #: Beside its weights, while it is at work.
    working_bytes: int = 0
    #: Of one load.
    load_seconds: float = 0.0
    #: In how many of its model's jobs it is needed: 1 for a UNet, next to 0 for a text encoder whose work for the jobs
    #: that wait is done.
    uses_per_job: float = 1.0

    @property
    def at_work_bytes(self) -> int:
        return self.size_bytes + self.working_bytes

    @property
    def seconds_per_job(self) -> float:
        """What a job pays, on average, for having to load it."""
        return self.load_seconds * self.uses_per_job

    @property
    def price(self) -> float:
        """The same for each byte that is given back."""
        return self.seconds_per_job / max(1, self.size_bytes)


@dataclass(frozen=True)
class Rule:
    """How much may be in memory.

    Attributes:
        budget_bytes: of the whole renderer process; counts for `auto` alone. None: there is no bound.
        in_tiles: decode pictures in tiles: slower, and the last resort, since it changes them a little.
    """

    policy: MemoryPolicy = "resident"
    budget_bytes: int | None = None
    in_tiles: bool = False


def make_room(
    wanted: StageCost,
    loaded: Sequence[StageCost],
    at_work: Collection[StageKey],
    rule: Rule,
    other_bytes: int = 0,
) -> tuple[StageKey, ...]:
    """The stages to drop before `wanted` is loaded (or, if it is loaded, put to work).

    Nothing at work is ever among them. After they were dropped, what is in memory fits the budget, or nothing is left
    that could be dropped. The same arguments give the same answer, in whatever order the stages come.

    Args:
        loaded: what is in memory; may hold `wanted`.
        at_work: what is lent out just now.
        other_bytes: what the process holds beside its stages.
    """
    idle = [each for each in loaded if each.key != wanted.key and each.key not in at_work]
    if rule.policy == "jit":
        return tuple(sorted(each.key for each in idle))
    if rule.policy == "resident" or rule.budget_bytes is None:
        return ()
    busy = [each for each in loaded if each.key != wanted.key and each.key in at_work]
    held = other_bytes + sum(each.size_bytes for each in idle) + sum(each.at_work_bytes for each in (*busy, wanted))
    return _cheapest(idle, held - rule.budget_bytes)


def needs_tiles(decoder: StageCost, rule: Rule, other_bytes: int = 0) -> bool:
    """Whether a VAE is to work in tiles: as a last resort, or where it would go over the budget all by itself."""
    if rule.policy == "resident" or rule.budget_bytes is None:
        return rule.in_tiles
    return rule.in_tiles or other_bytes + decoder.at_work_bytes > rule.budget_bytes


def _cheapest(idle: Sequence[StageCost], excess: int) -> tuple[StageKey, ...]:
    """The stages that free so many bytes at the least seconds of loading; all, if all are too few. None in vain."""
    if excess <= 0:
        return ()
    left = sorted(idle, key=lambda each: (each.price, -each.size_bytes, each.key))
    dropped: list[StageCost] = []
    freed, in_all = 0, sum(each.size_bytes for each in left)
    # In the order of price: too many to compare, or none can stay anyway.
    while left and freed < excess and (len(left) > _COMPARED or in_all <= excess):
        dropped.append(left.pop(0))
        freed += dropped[-1].size_bytes
    if freed < excess and left:
        subsets = chain.from_iterable(combinations(left, count) for count in range(1, len(left) + 1))
        enough = (subset for subset in subsets if freed + sum(each.size_bytes for each in subset) >= excess)
        dropped += min(
            enough, key=lambda subset: (sum(e.seconds_per_job for e in subset), sum(e.size_bytes for e in subset))
        )
        freed = sum(each.size_bytes for each in dropped)
    # What went for its price alone may have been too little to matter beside what went after it.
    for each in sorted(dropped, key=lambda each: (-each.seconds_per_job, each.size_bytes, each.key)):
        if freed - each.size_bytes >= excess:
            dropped.remove(each)
            freed -= each.size_bytes
    return tuple(sorted(each.key for each in dropped))


class Usage(NamedTuple):
    """What a list of jobs of one model does to memory, once the first of them are done."""

    #: The most that is in memory at once.
    peak_bytes: int
    #: What is in memory all the time.
    resident: tuple[StageKey, ...]
    #: What is loaded again, by every job or, where jobs take turns, by some of them.
    loads: tuple[StageKey, ...]
    #: What a job's loads take, on average.
    load_seconds: float


def foresee(
    order: Sequence[StageCost], rule: Rule, other_bytes: int = 0, tiled: Mapping[StageKey, int] | None = None
) -> Usage:
    """Goes through one job after another in thought, until one begins as an earlier one did.

    Args:
        order: the stages that a job puts to work, in their order; one whose `uses_per_job` is below 0.5 is needed by
            the first job alone.
        tiled: the working sets, in bytes, of stages that work in tiles; room is made for them as if they did not.
    """
    costs = {each.key: each for each in order}
    again = [each for each in order if each.uses_per_job >= 0.5]
    loaded: list[StageKey] = []
    peak = _go_through(order, costs, loaded, rule, other_bytes, tiled).peak_bytes
    begun: list[frozenset[StageKey]] = []
    jobs: list[Usage] = []
    while frozenset(loaded) not in begun:
        begun.append(frozenset(loaded))
        jobs.append(_go_through(again, costs, loaded, rule, other_bytes, tiled))
    turn = jobs[begun.index(frozenset(loaded)) :]  # mostly one job, now and then two
    return Usage(
        max([peak, *(job.peak_bytes for job in jobs)]),
        tuple(key for key in costs if all(key in job.resident for job in turn)),
        tuple(key for key in costs if any(key in job.loads for job in turn)),
        sum(job.load_seconds for job in turn) / len(turn),
    )


def _go_through(
    order: Sequence[StageCost],
    costs: Mapping[StageKey, StageCost],
    loaded: list[StageKey],
    rule: Rule,
    other: int,
    tiled: Mapping[StageKey, int] | None,
) -> Usage:
    """What one job does; changes `loaded`."""
    peak, always = other, set(loaded)
    loads: list[StageKey] = []
    for each in order:
        for key in make_room(each, [costs[key] for key in loaded], (), rule, other):
            loaded.remove(key)
        if each.key not in loaded:
            loaded.append(each.key)
            loads.append(each.key)
        working = (tiled or {}).get(each.key, each.working_bytes)
        peak = max(peak, other + sum(costs[key].size_bytes for key in loaded) + working)
        always &= set(loaded)
    return Usage(peak, tuple(always), tuple(loads), sum(costs[key].load_seconds for key in loads))


def need_bytes(order: Sequence[StageCost], rule: Rule, other_bytes: int = 0) -> int:
    """The most that a list of jobs has in memory at once under a rule."""
    return foresee(order, rule, other_bytes).peak_bytes


#: Steps of `tighten`.
TIGHTEST = 3


def tighten(rule: Rule, step: int, order: Sequence[StageCost], other_bytes: int = 0) -> Rule:
    """The rule after memory ran out `step` times with a model: less each time. `resident` and `jit` keep their policy.

    Step 1 takes away a quarter of what the stages have; 2 leaves one stage at a time; 3 also decodes in tiles.
    """
    if step <= 0 or rule.policy == "resident":
        return rule
    if step >= TIGHTEST:
        return replace(rule, policy="jit", in_tiles=True)
    if rule.policy == "jit":
        return replace(rule, in_tiles=True)
    if step == 2:
        return replace(rule, policy="jit")
    everything = need_bytes(order, Rule("resident"), other_bytes)
    most = min(everything, rule.budget_bytes) if rule.budget_bytes is not None else everything
    # Where the process alone is over the budget, a quarter of nothing must not make it larger.
    return replace(rule, budget_bytes=min(most, other_bytes + max(0, most - other_bytes) * 3 // 4))
