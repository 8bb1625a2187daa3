"""Shows a compression or an analysis: bars on a terminal while it runs, a table at its end, or JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from .folder import Progress as Tell
from .folder import StageReport
from .planner import Plan, psnr_of
from .recipe import UNTOUCHED
from .sensitivity import LayerMeasurements, Measurements


@contextmanager
def bars(console: Console) -> Iterator[Tell]:
    """What to tell of progress: a bar, with the time left, for what is being done; nothing without a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)
        current = ""

        def tell(stage: str, what: str, done: int, of: int) -> None:
            nonlocal current
            description = f"{stage}: {what}"
            if description != current:
                current = description
                progress.reset(task, description=description, total=of)
            progress.update(task, completed=done, total=of)

        yield tell


def stage_table(reports: Sequence[StageReport]) -> Table:
    """Stage, sizes, bits, PSNR, seconds."""
    shown = Table(box=None, header_style="bold")
    shown.add_column("stage")
    for name in ("MB before", "MB after", "bits", "PSNR dB", "seconds"):
        shown.add_column(name, justify="right")
    for each in reports:
        shown.add_row(
            each.stage,
            f"{each.bytes_before / 1e6:,.2f}",
            f"{each.bytes_after / 1e6:,.2f}",
            f"{each.bits:.2f}".rstrip("0").rstrip("."),
            "not compared" if each.worst is None else _decibels(each.worst),
            f"{each.seconds:.1f}",
        )
    return shown


def stages_as_json(reports: Sequence[StageReport], target: Path) -> dict[str, Any]:
    """What `renderkiln compress --json` prints."""
    return {
        "target": str(target),
        "stages": [
            {
                "stage": each.stage,
                "files": list(each.files),
                "bytes_before": each.bytes_before,
                "bytes_after": each.bytes_after,
                "bits": each.bits,
                "psnr_decibels": None if each.worst is None else _number(each.worst),
                "psnr_by_output": {name: _number(psnr) for name, psnr in each.psnr.items()},
                "unchecked": each.unchecked,
                "seconds": round(each.seconds, 3),
                "layers": each.layers,
            }
            for each in reports
        ],
    }


def layer_table(measurements: Measurements, plan: Plan, widths: Sequence[int], count: int) -> Table:
    """The layers that suffer most, the worst first, with the PSNR of each width and the bits that were chosen."""
    measured = [width for width in widths if width != UNTOUCHED]
    shown = Table(box=None, header_style="bold")
    shown.add_column("layer", overflow="fold")
    shown.add_column("weights", justify="right")
    for width in measured:
        shown.add_column(f"{width} bit{'s' if width > 1 else ''}", justify="right")
    shown.add_column("chosen", justify="right")
    for each in most_sensitive(measurements)[:count]:
        psnrs = [_decibels(psnr_of(each.errors[width])) for width in measured]
        shown.add_row(each.name, f"{each.elements:,}", *psnrs, str(plan.bits[each.name]))
    return shown


def most_sensitive(measurements: Measurements) -> list[LayerMeasurements]:
    """The layers by the noise that their fewest bits make, the strongest first."""
    return sorted(measurements.layers, key=lambda each: (-max(each.errors.values(), default=0.0), each.name))


def plan_as_json(
    measurements: Measurements, plan: Plan, average: float, most_bytes: int, measured: float | None, recipe: Path
) -> dict[str, Any]:
    """What `renderkiln recipe --json` prints."""
    return {
        "recipe": str(recipe),
        "average_bits": average,
        "bytes_at_most": most_bytes,
        "bytes_before": measurements.package_bytes,
        "predicted_psnr_decibels": _number(plan.psnr),
        "measured_psnr_decibels": None if measured is None else _number(measured),
        "layers": [
            {
                "name": each.name,
                "weights": each.elements,
                "psnr_decibels": {str(width): _number(psnr_of(error)) for width, error in each.errors.items()},
                "chosen": plan.bits[each.name],
            }
            for each in most_sensitive(measurements)
        ],
    }


def _decibels(psnr: float) -> str:
    return "identical" if psnr == math.inf else f"{psnr:.1f}"


def _number(psnr: float) -> float | str:
    """JSON has no infinity."""
    return round(psnr, 3) if math.isfinite(psnr) else ("identical" if psnr > 0 else "not finite")
