"""What `renderkiln models plan` prints: tables and sentences for people, numbers for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..memory.planning import TIGHTEST, StageCost
from ..memory.remembered import STEPS, in_words
from .plan import Fate, Plan, as_json, make_plan

if TYPE_CHECKING:
    from renderkiln.home.memory_records import Tightening

    from .plan_cli import Foreseen

#: How wide the budget is in a chart, in characters.
_BAR = 24
_FATES: dict[Fate, str] = {
    "stays": "stays",
    "each job": "loaded for each job",
    "once": "once; prompts are kept",
}


def in_json(found: Foreseen) -> dict[str, Any]:
    """All numbers, for scripts."""
    form = found.form
    return {
        "model": found.model,
        "engine": "torch" if form is None else form.engine,
        "dtype": found.dtype if form is None else None,
        "variant": None if form is None else form.variant,
        "compute_unit": None if form is None else form.unit,
        "policy": found.policy,
        **as_json(found.plan),
        "too_large": found.too_large,
        "smaller_variants": found.smaller,
        "remembered": None if found.remembered is None else {**of_remembered(found.remembered), "counts": found.counts},
    }


def of_remembered(remembered: Tightening) -> dict[str, Any]:
    """That memory ran out, for scripts."""
    return {"step": remembered.step, "why": remembered.why, "settings": remembered.settings}


def shown(found: Foreseen) -> Iterator[Table | str]:
    """A head line, the stages, the policies, and what there is to say of them: tables, and lines as they stand."""
    plan, form = found.plan, found.form
    how = f"torch, {found.dtype}" if form is None else f"{form.engine}, {form.variant} on {form.unit}"
    width, height = plan.costs.size
    yield f"{found.model} ({how}) at {width}x{height} with {_size(plan.budget_bytes)}\n"
    yield _stages(plan)
    yield ""
    yield _policies(plan, found.policy)
    for sentence in _sentences(found):
        yield f"\n{sentence}"


def tightened(remembered: Tightening) -> str:
    """What was made of it that memory ran out, and why, as the rest of a sentence."""
    effect = STEPS[max(1, min(remembered.step, TIGHTEST))]
    return f"under {in_words(remembered.settings)}, {effect}, since memory ran out ({remembered.why.rstrip('.')})"


def bar(size: int, budget: int) -> str:
    """A size as a bar, on a scale of the budget; what goes beyond is cut off, and shown as an arrow."""
    if size > budget:
        return "█" * _BAR + "▶"
    filled = round(_BAR * size / budget)
    return "█" * filled + "░" * (_BAR - filled)


def _stages(plan: Plan) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for name in ("MB", "MB at work", "s to load"):
        table.add_column(name, justify="right")
    table.add_column("numbers")
    table.add_column("under auto")
    whence = "measured" if plan.costs.is_renderer_measured else "estimated"
    table.add_row("renderer", _mb(plan.costs.renderer_bytes), "", "", whence, "stays", style="dim")
    fates = plan.under("auto").fates
    for each in plan.costs.stages:
        numbers = _mb(each.size_bytes), f"+ {_mb(each.working_bytes)}", _seconds(each.load_seconds)
        table.add_row(each.key.stage, *numbers, _whence(plan, each), _FATES[fates[each.key.stage]])
    return table


def _whence(plan: Plan, stage: StageCost) -> str:
    measured = [stage.key.stage in each for each in (plan.costs.measured, plan.costs.timed)]
    return "measured" if all(measured) else "partly" if any(measured) else "estimated"


def _policies(plan: Plan, in_force: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("GB at most", justify="right")
    table.add_column("s of loading a job", justify="right")
    table.add_column("fits")
    table.add_column(f"of {_size(plan.budget_bytes)}", no_wrap=True)
    for each in plan.policies:
        chosen = each.policy == in_force
        row = f"{each.peak_bytes / 1e9:.2f}", _seconds(each.load_seconds), "yes" if each.fits else "no"
        name = f"{each.policy} (as set)" if chosen else each.policy
        table.add_row(name, *row, Text(bar(each.peak_bytes, plan.budget_bytes), "green" if each.fits else "red"))
    return table


def _sentences(found: Foreseen) -> Iterator[str]:
    plan = found.plan
    tiled = [each.policy for each in plan.policies if each.in_tiles]
    if tiled:
        yield f"Under {' and '.join(tiled)}, pictures are decoded in tiles: flat areas may differ a little."
    remembered = found.remembered
    if remembered is not None:
        said = f"Remembered: {tightened(remembered)}."
        yield f"{said} {_effect(found) if found.counts else 'Under these settings that does not count.'}"
    if found.too_large is not None:
        yield found.too_large
    elif not plan.under("resident").fits and found.policy == "resident":
        yield "The policy is resident, which heeds no budget: take auto, or a larger machine."


def _effect(found: Foreseen) -> str:
    plan = found.plan
    now, before = plan.under(found.policy), make_plan(plan.costs, plan.budget_bytes).under(found.policy)
    forget = f"`renderkiln models plan {found.model} --forget` forgets it."
    if found.policy == "resident":
        return f"Under resident it changes nothing. {forget}"
    return (
        f"Without that, {found.policy} would take {_size(before.peak_bytes)} at most and load for "
        f"{_seconds(before.load_seconds)} s a job; with it, {_size(now.peak_bytes)} and {_seconds(now.load_seconds)} "
        f"s. {forget}"
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 0.05 or seconds == 0 else f"{seconds:.3f}"
