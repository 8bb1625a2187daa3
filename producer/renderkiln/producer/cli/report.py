"""The command `report`: the memory of a worker over time, as a picture and in numbers."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from renderkiln.home.showing import plain
from renderkiln.schema.errors import BadInputError

from .options import DataDir
from .wording import duration

if TYPE_CHECKING:
    from renderkiln.producer.report.reading import MemoryReport

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_commands(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    worker: Annotated[
        str | None, typer.Option(help="The worker's name; the one that was up last unless told.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="From when on: 30m or 2h ago, or YYYY-MM-DDTHH:MM; all unless told.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture: a name that ends in .svg or .png.")] = Path("memory.svg"),
    as_json: Annotated[
        bool, typer.Option("--json", help="For scripts: the numbers as JSON on standard output, and no picture.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Draw the memory of a worker over time.

    What the renderer took and which stages were in it, what was still available, when memory was short, what was done
    about it, and which attempts failed for want of it. Reads the ledger of this machine.

    Example: renderkiln report --since 2h --out night.png
    """
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.settings import load
    from renderkiln.producer.report.reading import read_report

    form = _form_of(out)
    begin = None if since is None else parse_since(since, time.time())
    found = read_report(DataFolder(load(data_dir=data_dir).data_dir), worker, begin)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    from renderkiln.producer.report.picture import draw

    out.write_bytes(draw(found, form))
    _show(found)
    print(out)


def parse_since(text: str, now: float) -> float:
    """When a person means, in seconds since 1970: so long before now (`2h`), or a date and a time of this machine.

    Raises:
        BadInputError: it is neither.
    """
    if ago := _AGO.fullmatch(text.strip().casefold()):
        return max(now - float(ago[1]) * _SECONDS[ago[2]], 0.0)
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise BadInputError(
            f"--since {text!r}: expected how long ago (30m, 2h, 1d), or when (YYYY-MM-DDTHH:MM)"
        ) from None


def _form_of(out: Path) -> Literal["svg", "png"]:
    ending = out.suffix.casefold()
    if ending not in (".svg", ".png"):
        raise BadInputError(f"--out {out}: expected a name that ends in .svg or .png")
    if not out.parent.is_dir():
        raise BadInputError(f"--out {out}: there is no folder {out.parent}")
    return "svg" if ending == ".svg" else "png"


def _show(found: MemoryReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from renderkiln.producer.report.reading import time_span

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in _rows(found, time_span(found.since, found.until)):
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)
    # Not in the table: it would break what was done in the middle of a word.
    for at, event in found.events:
        print(f"{datetime.fromtimestamp(at).strftime('%Y-%m-%d %H:%M:%S')}  {plain(event)}")


def _rows(found: MemoryReport, when: str) -> list[tuple[str, str]]:
    summary = found.summary
    failures = [f"{number:,} {kind}" for kind, number in summary["failures"].items() if number]
    rows = [
        ("worker", found.worker),
        ("time", f"{when} ({duration(found.until - found.since)})"),
        ("samples", f"{summary['samples']:,}"),
        ("attempts", f"{summary['attempts']:,}" + (f" ({', '.join(failures)})" if failures else "")),
        ("renderer", f"peak {_gb(summary['peak_bytes'])}, median {_gb(summary['median_bytes'])}"),
    ]
    if summary["attempts_peak_bytes"] is not None:
        rows.append(("peak in an attempt", _gb(summary["attempts_peak_bytes"])))
    if summary["budget_bytes"] is not None:
        rows.append(("budget", _gb(summary["budget_bytes"])))
    rows.append(("available", f"{_gb(summary['lowest_available_bytes'])} at the least"))
    seen = {sample.level for sample in found.samples}
    short = [f"{each} for {duration(summary[f'{each}_seconds'])}" for each in ("warn", "critical") if each in seen]
    rows.append(("level", ", ".join(short) or "calm"))
    if summary["loads"] is not None:
        took = "" if not summary["load_seconds"] else f" in {duration(summary['load_seconds'])}"
        rows.append(("stages loaded", f"{summary['loads']:,}{took}"))
    if summary["evictions"] is not None:
        rows.append(("dropped for room", f"{summary['evictions']:,}"))
    rows.append(("events", f"{len(found.events):,}"))
    return rows


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
