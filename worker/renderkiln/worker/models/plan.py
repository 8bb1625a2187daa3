"""What rendering a model would have in memory under each policy. Pure: of sizes, a budget and what was remembered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from renderkiln.schema.workers import MemoryPolicy

from ..memory.planning import Rule, StageCost, foresee, needs_tiles, tighten
from .memory import ModelCosts

#: From the one that takes most memory to the one that takes least.
POLICIES: tuple[MemoryPolicy, ...] = ("resident", "auto", "jit")
#: What becomes of a stage: it stays in memory; it is loaded anew for each job; or it is loaded once for the prompts of
#: the jobs that wait, and then makes room.
Fate = Literal["stays", "each job", "once"]


@dataclass(frozen=True)
class PolicyPlan:
    """What jobs of one model do to memory under a policy."""

    policy: MemoryPolicy
    #: The most that the renderer has in memory at once.
    peak_bytes: int
    #: The stages that a job loads, from the second job on, and what that takes.
    loads: tuple[str, ...]
    load_seconds: float
    #: What becomes of each stage.
    fates: dict[str, Fate]
    #: Whether pictures are decoded in tiles.
    in_tiles: bool
    #: Whether the peak is within the budget.
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What jobs of one model do to memory, for one image of a size each."""

    costs: ModelCosts
    budget_bytes: int
    #: In the order of `POLICIES`.
    policies: tuple[PolicyPlan, ...]

    def under(self, policy: MemoryPolicy) -> PolicyPlan:
        return self.policies[POLICIES.index(policy)]

    @property
    def fits(self) -> bool:
        """Whether the model can be rendered within the budget at all."""
        return self.costs.least_bytes <= self.budget_bytes


def make_plan(costs: ModelCosts, budget_bytes: int, policy: MemoryPolicy = "auto", step: int = 0) -> Plan:
    """Goes through a list of jobs under each policy.

    Args:
        budget_bytes: of the renderer; `resident` does not heed it.
        policy: the one in force.
        step: how far memory that ran out has tightened it; see `planning.tighten`.
    """
    plans = []
    for each in POLICIES:
        rule = Rule(each, budget_bytes)
        tightened = tighten(rule, step, costs.stages, costs.renderer_bytes) if each == policy else rule
        plans.append(_under(each, tightened, costs, budget_bytes))
    return Plan(costs, budget_bytes, tuple(plans))


def _under(policy: MemoryPolicy, rule: Rule, costs: ModelCosts, budget_bytes: int) -> PolicyPlan:
    tiled = {
        each.key: costs.tiled[each.key]
        for each in costs.stages
        if each.key in costs.tiled and needs_tiles(each, rule, costs.renderer_bytes)
    }
    usage = foresee(costs.stages, rule, costs.renderer_bytes, tiled)
    return PolicyPlan(
        policy,
        usage.peak_bytes,
        tuple(key.stage for key in usage.loads),
        float(usage.load_seconds),
        {each.key.stage: _fate(each, each.key in usage.resident) for each in costs.stages},
        bool(tiled),
        usage.peak_bytes <= budget_bytes,
    )


def _fate(stage: StageCost, stays: bool) -> Fate:
    if stays:
        return "stays"
    return "each job" if stage.uses_per_job >= 0.5 else "once"


def as_json(plan: Plan) -> dict[str, Any]:
    """All numbers of a plan: bytes, seconds, pixels."""
    costs, fates = plan.costs, plan.under("auto").fates
    return {
        "size": list(costs.size),
        "budget_bytes": plan.budget_bytes,
        "renderer_bytes": costs.renderer_bytes,
        "renderer_measured": costs.is_renderer_measured,
        "stages": [
            {
                "stage": each.key.stage,
                "size_bytes": each.size_bytes,
                "working_bytes": each.working_bytes,
                "working_measured": each.key.stage in costs.measured,
                "load_seconds": each.load_seconds,
                "load_measured": each.key.stage in costs.timed,
                "under_auto": fates[each.key.stage],
            }
            for each in costs.stages
        ],
        "policies": [
            {
                "policy": each.policy,
                "peak_bytes": each.peak_bytes,
                "fits": each.fits,
                "loads": list(each.loads),
                "load_seconds": each.load_seconds,
                "in_tiles": each.in_tiles,
            }
            for each in plan.policies
        ],
        "least_bytes": costs.least_bytes,
        "fits": plan.fits,
    }
