"""`renderkiln tune` and `renderkiln bench model`: the commands' options, and how they become measurements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from renderkiln.schema.errors import BadInputError, MeasurementError

from ..needs import RENDERING, say_what_is_missing

if TYPE_CHECKING:
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.settings import Settings

    from .records import Candidate, Measurement, Order

_Model = Annotated[str, typer.Argument(help="A model of this machine, as `renderkiln models list` names it.")]
_Steps = Annotated[int, typer.Option(help="Denoising steps of each picture.", min=2, max=1000)]
_Runs = Annotated[int, typer.Option(help="Pictures to take the median of, after a first one.", min=1, max=100)]
_Timeout = Annotated[float, typer.Option(help="Give a form up that shows no progress for so many seconds.", min=1)]
_DataDir = Annotated[Path | None, typer.Option(help="Folder of ledger, server and models.")]
_Json = Annotated[bool, typer.Option("--json", help="For scripts.")]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command("tune")(tune)
    bench = typer.Typer(help="Measure how fast this machine renders.", no_args_is_help=True)
    bench.command("model")(bench_model)
    app.add_typer(bench, name="bench")


def tune(
    model: _Model,
    steps: _Steps = 20,
    runs: _Runs = 3,
    units: Annotated[
        str | None,
        typer.Option(help="cpu_and_ne,cpu_and_gpu …; unless told, these two on macOS, and reference elsewhere."),
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="original,split-einsum …; all that the model has unless told.")
    ] = None,
    timeout: _Timeout = 1200,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be measured.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget what was found to be best; measure nothing.")
    ] = False,
    data_dir: _DataDir = None,
    as_json: _Json = False,
) -> None:
    """Find out in which form a converted model renders fastest here.

    Each variant that the model has is measured on each compute unit, in a process of its own. The fastest is kept, or,
    of those within 3 % of it, the one that takes the least memory; a form that crashes, hangs or paints nothing is
    never chosen. Workers render with it from their next job on, unless their settings name a variant or a unit.

    Leave the machine alone meanwhile; stop its worker, too.

    Example: renderkiln tune my-model --units cpu_and_ne,cpu_and_gpu,cpu_only
    """
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.ledger import Ledger
    from renderkiln.home.models import find_model
    from renderkiln.home.settings import load

    settings = load(data_dir=data_dir)
    data = DataFolder(settings.data_dir)
    if forget:
        _forget(model, data, as_json)
        return
    folder = find_model(data, model)
    from ..models.layout import VARIANTS
    from .candidates import converted_candidates, in_our_words

    candidates = converted_candidates(model, folder, in_our_words(units), in_our_words(variants, VARIANTS))
    if dry_run:
        _show_candidates(model, candidates, as_json)
        return
    say_what_is_missing("measuring", RENDERING, "worker")
    from .best import best
    from .facts import this_machine

    # Opened before the long work: where it cannot be written, that is better known now.
    Ledger(data.ensure().ledger).close()
    measurements = _measure(_orders(model, settings, candidates, steps, runs), timeout)
    chosen = best(measurements)
    report = {
        "model": model,
        "steps": steps,
        "runs": runs,
        "machine": this_machine()._asdict(),
        "chosen": None if chosen is None else {"variant": chosen.candidate.variant, "unit": chosen.candidate.unit},
        "forms": [each.as_json() for each in measurements],
    }
    if chosen is not None:
        ledger = Ledger(data.ledger)
        ledger.tuned(model, chosen.candidate.variant, chosen.candidate.unit, report)
        ledger.close()
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show_forms(measurements, chosen)
    if chosen is None:
        raise MeasurementError(f"no form of {model} renders rightly here, so that nothing was kept")
    if not as_json:
        _say_what_counts(folder, settings, model, chosen.candidate)


def bench_model(
    model: _Model,
    steps: _Steps = 20,
    runs: _Runs = 3,
    engine: Annotated[str | None, typer.Option(help="auto, torch, coreml or coreai.")] = None,
    compute_unit: Annotated[str | None, typer.Option(help="Of Core ML; auto: what a worker would take.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of a converted model; auto: what a worker would take.")] = None,
    timeout: _Timeout = 1200,
    submit_text: Annotated[
        bool, typer.Option("--submit-text", help="Print Markdown to share, without names of hosts and without paths.")
    ] = False,
    data_dir: _DataDir = None,
    as_json: _Json = False,
) -> None:
    """Measure one model as a worker of this machine would render it.

    Prints the row that Apple's table for Stable Diffusion with Core ML has (end-to-end latency of a picture, denoising
    steps a second), with load seconds and peak memory. This is about your machine; `make bench` in the repository is
    about renderkiln's own code.

    Example: renderkiln bench model my-model --submit-text
    """
    if submit_text and as_json:
        raise BadInputError("--submit-text and --json are two ways to print the same; give one of them")
    from rich.console import Console

    from renderkiln.home.folder import DataFolder
    from renderkiln.home.models import find_model
    from renderkiln.home.settings import load

    unit = None if compute_unit is None else compute_unit.casefold()  # Apple's tools write them in capitals
    settings = load(data_dir=data_dir, engine=engine, compute_unit=unit, variant=variant)
    data = DataFolder(settings.data_dir)
    folder = find_model(data, model)
    say_what_is_missing("measuring", RENDERING, "worker")
    from ..models.choosing import Wishes, pick_form
    from ..models.tuned import tuned_form
    from .candidates import candidate_of
    from .display import remarks, row, row_table, text_to_share
    from .facts import facts_of, our_versions, this_machine

    wishes = Wishes(settings.engine, settings.compute_unit, settings.variant)
    candidate = candidate_of(pick_form(folder, wishes, tuned_form(data, model)))
    [order] = _orders(model, settings, [candidate], steps, runs)
    [measured] = _measure([order], timeout)
    facts, machine, versions = facts_of(model, folder, candidate), this_machine(), our_versions(candidate)
    if as_json:
        about = {"model": facts._asdict(), "machine": machine._asdict(), "versions": versions}
        print(json.dumps({**about, "steps": steps, "runs": runs, **measured.as_json()}, indent=2))
    if measured.numbers is None:
        failure = measured.failure
        raise MeasurementError(f"{model}, {candidate}: {failure.message if failure else 'nothing was measured'}")
    if as_json:
        return
    values = row(measured, measured.numbers, machine)
    if submit_text:
        print(text_to_share(values, measured.numbers, machine, facts, order, versions))
        return
    console = Console()
    console.print(row_table(values))
    for line in remarks(measured):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _orders(model: str, settings: Settings, candidates: Sequence[Candidate], steps: int, runs: int) -> list[Order]:
    from .records import Order

    return [Order(model, settings.data_dir, each, steps, runs, settings.device, settings.dtype) for each in candidates]


def _measure(orders: Sequence[Order], patience: float) -> list[Measurement]:
    from functools import partial

    from rich.console import Console

    from ..convert.ending import signals_as_ctrl_c
    from .display import bar
    from .process import measure

    found = []
    with signals_as_ctrl_c("nothing was kept"), bar(Console(stderr=True), orders) as tell:
        for number, order in enumerate(orders):
            found.append(measure(order, partial(tell, number), patience))
            tell(number, None)
    return found


def _forget(model: str, data: DataFolder, as_json: bool) -> None:
    from renderkiln.home.ledger import Ledger

    forgotten = False
    if data.ledger.exists():
        ledger = Ledger(data.ledger)
        forgotten = ledger.forget_tuning(model)
        ledger.close()
    if as_json:
        print(json.dumps({"model": model, "forgotten": forgotten}))
    else:
        print(f"{model} is rendered as the rule says again" if forgotten else f"nothing was kept of {model}")


def _show_candidates(model: str, candidates: Sequence[Candidate], as_json: bool) -> None:
    if as_json:
        forms: list[dict[str, Any]] = [{"variant": each.variant, "unit": each.unit} for each in candidates]
        print(json.dumps({"model": model, "forms": forms}, indent=2))
        return
    for each in candidates:
        print(each)


def _show_forms(measurements: Sequence[Measurement], chosen: Measurement | None) -> None:
    from rich.console import Console

    from .display import forms_table, remarks

    console = Console()
    console.print(forms_table(measurements, chosen))
    for each in measurements:
        for line in remarks(each):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _say_what_counts(folder: Path, settings: Settings, model: str, candidate: Candidate) -> None:
    """What was chosen, and where the settings have the last word."""
    from ..models.choosing import Wishes, pick_form
    from .candidates import candidate_of

    print(f"{model} is rendered as {candidate} from the next job on")
    wishes = Wishes(settings.engine, settings.compute_unit, settings.variant)
    form = candidate_of(pick_form(folder, wishes, (candidate.variant, candidate.unit)))
    if form != candidate:
        print(f"but not by a worker with the settings of here, which say {form} (`renderkiln config` shows them)")
