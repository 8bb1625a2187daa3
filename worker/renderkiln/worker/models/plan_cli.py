"""`renderkiln models plan`: the command's options, and what it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from renderkiln.home import flags
from renderkiln.schema.errors import BadInputError

if TYPE_CHECKING:
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.ledger import Ledger
    from renderkiln.home.memory_records import Tightening
    from renderkiln.home.settings import Settings
    from renderkiln.schema.workers import MemoryPolicy

    from .choosing import Form
    from .plan import Plan

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True)
class Foreseen:
    """A plan, and what it was made from."""

    model: str
    plan: Plan
    #: The policy that the settings name.
    policy: MemoryPolicy
    #: None: torch.
    form: Form | None
    #: Of torch's stages.
    dtype: str
    #: That memory ran out with the model before; `counts`, if that was under these settings.
    remembered: Tightening | None
    counts: bool
    #: Why it cannot be rendered within the budget, and what could be.
    too_large: str | None
    #: Its other variants that would fit where it does not.
    smaller: list[str]


def plan(
    name: Annotated[str, typer.Argument(help="A model of this machine, as `renderkiln models list` names it.")],
    memory: flags.Memory = None,
    memory_budget: flags.MemoryBudget = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; the model's own unless told.")] = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    compute_unit: flags.ComputeUnit = None,
    variant: flags.Variant = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget that memory ran out with it before; plan nothing.")
    ] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of ledger, server and models.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show what rendering with a model would have in memory, and what would be loaded again and again.

    For text-to-image, without ControlNets. Nothing is loaded: sizes are those of the files, what workers measured on
    this machine counts, and the rest is estimated. The budget is a worker's unless told: three quarters of the memory.

    Example: renderkiln models plan shapes --memory-budget 8GB
    """
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.settings import load

    settings = load(
        data_dir=data_dir,
        engine=engine,
        device=device,
        compute_unit=compute_unit,
        variant=variant,
        memory=memory,
        memory_budget=memory_budget,
    )
    data = DataFolder(settings.data_dir)
    if forget:
        _forget(data, name, as_json)
        return
    from ..memory.pressure import Probe

    found = read_plan(data, name, settings, Probe().read().total_bytes, None if size is None else parse_size(size))
    from . import plan_display

    if as_json:
        print(json.dumps(plan_display.in_json(found), indent=2))
        return
    from rich.console import Console

    console = Console()
    for part in plan_display.shown(found):
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))


def parse_size(text: str) -> tuple[int, int]:
    """`512x768`: width and height in pixels. Raises BadInputError."""
    from renderkiln.schema.spec import MAX_SIDE

    match = _SIZE.fullmatch(text.strip().lower().replace("×", "x"))
    if match is None:
        raise BadInputError(f"--size: {text!r} is no size; write WIDTHxHEIGHT, say 512x768")
    size = int(match[1]), int(match[2])
    if not all(8 <= side <= MAX_SIDE for side in size):
        raise BadInputError(f"--size: the sides of {text} must be from 8 to {MAX_SIDE} pixels")
    return size


def read_plan(
    data: DataFolder, name: str, settings: Settings, total_bytes: int, size: tuple[int, int] | None = None
) -> Foreseen:
    """Makes the plan of a model of this machine.

    Args:
        total_bytes: of this machine.
        size: width and height in pixels; the model's own unless told.

    Raises:
        ModelNotFoundError, ModelLoadError, LedgerError: as they say.
        BadInputError: the model has not got that size.
        SettingsError: see `choosing.check_unit`.
    """
    from renderkiln.home.memory_records import MemoryRecords
    from renderkiln.home.models import find_model

    from ..memory.remembered import budget_of, form_text, learned_under
    from .choosing import Wishes, pick_form
    from .memory import model_costs, smaller_forms, too_large, torch_dtype
    from .plan import make_plan

    folder = find_model(data, name)
    wishes = Wishes(settings.engine, settings.compute_unit, settings.variant)
    with _ledger(data) as ledger:
        form = pick_form(folder, wishes, None if ledger is None else ledger.tuned_form(name))
        records = None if ledger is None else MemoryRecords(ledger)
        text = form_text(settings, None if form is None else (form.variant, form.unit))
        known = {} if records is None else records.stage_costs(name, text)
        remembered = None if records is None else records.kept_tightening(name)
    dtype, budget = torch_dtype(settings), budget_of(settings, total_bytes)
    counts = remembered is not None and remembered.settings == learned_under(settings.memory, budget)
    costs = model_costs(name, folder, form, dtype, known, size)
    smaller: list[str] = []
    if costs.least_bytes > budget:
        others = smaller_forms(name, folder, budget, size)
        smaller = [each for each in others if form is None or each != form.variant]
    return Foreseen(
        name,
        make_plan(costs, budget, settings.memory, remembered.step if remembered is not None and counts else 0),
        settings.memory,
        form,
        dtype,
        remembered,
        counts,
        too_large(name, costs, budget, smaller),
        smaller,
    )


def _forget(data: DataFolder, model: str, as_json: bool) -> None:
    from renderkiln.home.memory_records import MemoryRecords

    from .plan_display import of_remembered, tightened

    found = None
    with _ledger(data) as ledger:
        if ledger is not None:
            records = MemoryRecords(ledger)
            found = records.kept_tightening(model)
            records.forget_tightening(model)
    if as_json:
        said: dict[str, Any] = {"model": model, "forgotten": None if found is None else of_remembered(found)}
        print(json.dumps(said, indent=2))
    elif found is None:
        print(f"nothing was kept of {model}")
    else:
        print(f"forgotten of {model}: {tightened(found)}. Workers that are up keep to it until they are started again.")


@contextmanager
def _ledger(data: DataFolder) -> Iterator[Ledger | None]:
    """The machine's ledger, None where there is none: it is not made. Raises LedgerError."""
    from renderkiln.home.ledger import Ledger  # imports SQLAlchemy

    if not data.ledger.exists():
        yield None
        return
    ledger = Ledger(data.ledger)
    try:
        yield ledger
    finally:
        ledger.close()
