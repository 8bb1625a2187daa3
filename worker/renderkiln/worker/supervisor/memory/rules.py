"""How much memory a renderer may take for a model: the settings, less what this machine was found not to have."""

from __future__ import annotations

import logging

from renderkiln.home.memory_records import MemoryRecords
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import LedgerError
from renderkiln.worker.memory.planning import TIGHTEST
from renderkiln.worker.memory.pressure import Thresholds
from renderkiln.worker.memory.remembered import STEPS, budget_of, form_text, learned_under
from renderkiln.worker.protocol import FormName, MemoryOrder, MemoryUse, StageMeasured

log = logging.getLogger("renderkiln.supervisor")

#: What is not larger than this times another is the same.
_SAME = 1.05
#: The part of a budget by which it may be exceeded without a word.
_UNSAID = 0.02


class MemoryRules:
    """What the renderer is told with each order, and what is learned from how it went. Survives a ledger that fails.

    Args:
        total_bytes: of this machine, or of the part of it that this worker may use.
    """

    def __init__(self, settings: Settings, records: MemoryRecords, total_bytes: int) -> None:
        self._policy = settings.memory
        self._budget = budget_of(settings, total_bytes)
        self._records = records
        self._settings = settings
        self._learned_under = learned_under(self._policy, self._budget)
        self._steps: dict[str, int] = {}
        self._costs: dict[tuple[str, str], dict[str, StageMeasured]] = {}
        #: The most that was said of each model that took more than the budget.
        self._said: dict[str, int] = {}

    @property
    def budget_bytes(self) -> int | None:
        """What the renderer may take; None where nobody heeds it."""
        return None if self._policy == "resident" else self._budget

    def order(self, model: str, form: FormName | None) -> MemoryOrder:
        """What the renderer is told for a job of a model. `form`: None where torch renders it."""
        return MemoryOrder(self._policy, self._budget, self._step(model), dict(self._known(model, form)))

    def learn(self, model: str, form: FormName | None, use: MemoryUse) -> None:
        """Keeps what was measured of a model's stages, where it tells something new."""
        known = self._known(model, form)
        try:
            for stage, each in use.measured.items():
                if stage in known and not _tells_more(each, known[stage]):
                    continue
                self._records.stage_measured(
                    model,
                    form_text(self._settings, form),
                    stage,
                    size_bytes=each.size_bytes,
                    working_bytes=each.working_bytes,
                    pixels=each.pixels,
                    load_seconds=each.load_seconds,
                )
                known[stage] = each
        except LedgerError as error:
            log.warning("what stages take is not recorded: %s", error)

    def exceeded(self, model: str, peak_bytes: int) -> str | None:
        """That a model took more than the budget, as a sentence; None where it did not, or that was said before."""
        budget = self.budget_bytes
        if budget is None or peak_bytes <= (1 + _UNSAID) * budget or peak_bytes <= _SAME * self._said.get(model, 0):
            return None
        self._said[model] = peak_bytes
        return (
            f"{model} took {peak_bytes / 1e6:,.0f} MB at its most, which is {(peak_bytes - budget) / 1e6:,.0f} MB over "
            f"the budget. `renderkiln models plan {model}` shows what takes it."
        )

    def ran_out(self, model: str, why: str) -> str | None:
        """After memory ran out with a model: from now on it is rendered with less, on this machine.

        Returns:
            What has changed, as a sentence; None where nothing is left to change, or nothing may be.
        """
        step = self._step(model)
        if self._policy == "resident" or step >= TIGHTEST:
            return None
        step = step + 1 if self._policy == "auto" else TIGHTEST
        self._steps[model] = step
        try:
            self._records.tightened(model, step, why, self._learned_under)
        except LedgerError as error:
            log.warning("that %s needs less memory is not recorded: %s", model, error)
        return (
            f"from now on, {STEPS[step]} for {model} on this machine "
            f"(`renderkiln models plan {model} --forget` forgets that)."
        )

    def why_no_tighter(self, model: str) -> str:
        """Why `ran_out` changes nothing, as a sentence."""
        if self._policy == "resident":
            return "with --memory resident nothing is given up for it."
        return f"nothing is left to give: {STEPS[self._step(model)]} for {model} already."

    def _step(self, model: str) -> int:
        if model not in self._steps:
            try:
                found = self._records.tightening(model, self._learned_under)
            except LedgerError as error:
                log.warning("whether memory ran out with %s before is not known: %s", model, error)
                return 0
            self._steps[model] = found[0] if found is not None else 0
            if found is not None:
                log.info("%s: %s, since memory ran out before (%s)", model, STEPS[found[0]], found[1])
        return self._steps[model]

    def _known(self, model: str, form: FormName | None) -> dict[str, StageMeasured]:
        """What was measured of a model's stages; read once, and kept up to date by `learn`."""
        name = form_text(self._settings, form)
        if (model, name) not in self._costs:
            try:
                costs = self._records.stage_costs(model, name)
            except LedgerError as error:
                log.warning("what the stages of %s take is not known: %s", model, error)
                return {}
            self._costs[model, name] = {
                stage: StageMeasured(each.size_bytes, each.load_seconds, each.working_bytes, each.pixels)
                for stage, each in costs.items()
            }
        return self._costs[model, name]


def _tells_more(now: StageMeasured, before: StageMeasured) -> bool:
    """Whether a measurement is worth a write: loads take a little more or less each time."""
    if not before.size_bytes / _SAME <= now.size_bytes <= _SAME * before.size_bytes:
        return True
    if now.working_bytes > _SAME * before.working_bytes:
        return True
    return max(now.load_seconds, before.load_seconds) > 2 * min(now.load_seconds, before.load_seconds)


def thresholds(settings: Settings) -> Thresholds:
    """When the system counts as short of memory."""
    return Thresholds(
        available_warn=settings.pressure_warn,
        available_critical=settings.pressure_critical,
        stall_warn=settings.pressure_stall,
        stall_critical=min(100.0, 4 * settings.pressure_stall),
        swap_growth_bytes=int(settings.pressure_swap),
        calm=settings.pressure_calm,
    )
