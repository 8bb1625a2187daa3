"""Shows measurements: a bar while they are made, tables, and a text to share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from .facts import ModelFacts, Where
from .records import Measurement, Numbers, Order, StageShares
from .records import Progress as Done

_DEVICES = {"neural_engine": "Neural Engine", "gpu": "GPU", "cpu": "CPU", "unknown": "unknown"}
#: More of a stage's cost than this on the CPU is worth a look at what it is.
_MUCH = 0.05
_COLUMNS = (
    "device",
    "compute unit",
    "attention",
    "end-to-end latency (s)",
    "diffusion speed (iter/s)",
    "load (s)",
    "peak memory (GB)",
)


@contextmanager
def bar(console: Console, orders: Sequence[Order]) -> Iterator[Callable[[int, Done | None], None]]:
    """What to tell of progress, by an order's number (`None`: it is done); a line for each order without a terminal."""
    sizes = [order.runs + 2 for order in orders]  # pictures, the first one and the load counted
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=sum(sizes))

        def tell(number: int, done: Done | None) -> None:
            form = str(orders[number].candidate)
            if done is None:
                progress.update(task, completed=sum(sizes[: number + 1]))
                if not console.is_terminal:
                    console.print(f"{number + 1} of {len(orders)}: {form}: done", markup=False, highlight=False)
                return
            what = f"{number + 1} of {len(orders)}: {form}: {done.what}"
            progress.update(task, description=what, completed=sum(sizes[:number]) + done.done)

        yield tell


def forms_table(measurements: Sequence[Measurement], chosen: Measurement | None) -> Table:
    """A row for each form, the chosen one marked."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "variant", "unit"):
        table.add_column(name, no_wrap=True)
    for name in ("image s", "iter/s", "first s", "load s", "cold s", "peak GB"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in measurements:
        form = ("→" if each is chosen else "", each.candidate.variant, each.candidate.unit)
        if each.numbers is None:
            table.add_row(*form, "failed")
            continue
        numbers = each.numbers
        table.add_row(
            *form,
            f"{numbers.latency_seconds:.2f}",
            f"{numbers.iterations_per_second:.2f}",
            f"{numbers.first_seconds:.2f}",
            f"{numbers.load_seconds:.1f}",
            "" if each.cold_load_seconds is None else f"{each.cold_load_seconds:.1f}",
            f"{numbers.peak_bytes / 1e9:.2f}",
        )
    return table


def remarks(each: Measurement) -> Iterator[str]:
    """What there is to say of a form beside its row."""
    if each.failure is not None:
        yield f"{each.candidate} failed ({each.failure.kind}): {each.failure.message}"
    if each.refused:
        yield f"{each.candidate}: the Neural Engine's compiler refused a part of it, which runs elsewhere"
    if each.numbers is not None:
        if each.numbers.likeness is not None:
            yield f"{each.candidate}: the self-test picture is {each.numbers.likeness:.0f} dB from the stored one"
        for stage, shares in each.numbers.shares.items():
            yield f"{each.candidate}: {stage} is meant for {_shares(shares)}"
        if each.numbers.no_shares:
            yield f"{each.candidate}: which device computes what is not known: {each.numbers.no_shares}"


def row(measurement: Measurement, numbers: Numbers, machine: Where) -> dict[str, str]:
    """The row that Apple's table has, and load and memory besides."""
    candidate = measurement.candidate
    unit = candidate.unit.upper() if candidate.is_converted else f"torch, {numbers.device}"
    attention = candidate.variant.replace("-", "_").upper() or numbers.dtype
    cold = "" if measurement.cold_load_seconds is None else f" (first {measurement.cold_load_seconds:.1f})"
    values = (
        machine.device,
        unit,
        attention,
        f"{numbers.latency_seconds:.2f}",
        f"{numbers.iterations_per_second:.2f}",
        f"{numbers.load_seconds:.1f}{cold}",
        f"{numbers.peak_bytes / 1e9:.2f}",
    )
    return dict(zip(_COLUMNS, values, strict=True))


def row_table(values: dict[str, str]) -> Table:
    """A row for people: on its side, as it is wider than most terminals."""
    table = Table(box=None, show_header=False)
    for pair in values.items():
        table.add_row(*pair)
    return table


def text_to_share(
    values: dict[str, str],
    numbers: Numbers,
    machine: Where,
    model: ModelFacts,
    order: Order,
    versions: dict[str, str],
) -> str:
    """A row as Markdown, with all that somebody needs to compare it, and nothing that is nobody's business."""
    at = f" at {model.revision}" if model.revision else ""
    bits = "" if model.bits is None else f", {model.bits:g} bits"
    libraries = ", ".join(f"{name} {number}" for name, number in {**versions, **numbers.versions}.items())
    return "\n".join(
        [
            f"| {' | '.join(values)} |",
            f"|{'---|' * len(values)}",
            f"| {' | '.join(values.values())} |",
            "",
            f"- model: {model.name}{at}{bits}",
            f"- picture: {numbers.width} × {numbers.height}, {order.steps} steps; median of {order.runs}, "
            f"the first one took {numbers.first_seconds:.2f} s",
            f"- system: {machine.system}, {machine.memory_bytes / 2**30:.0f} GiB",
            f"- versions: {libraries}",
        ]
    )


def _shares(shares: StageShares) -> str:
    by_size = sorted(shares.devices.items(), key=lambda pair: -pair[1])
    said = ", ".join(f"{_DEVICES.get(name, name)} {share:.0%}" for name, share in by_size)
    costly = [f"{name} {share:.0%}" for name, share in list(shares.on_cpu.items())[:3]]
    return f"{said} (on the CPU: {', '.join(costly)})" if shares.devices.get("cpu", 0) > _MUCH and costly else said
