"""What is in memory, live, below a worker's log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .keeper import View

_STYLES = {"calm": "green", "warn": "yellow", "critical": "bold red"}


@contextmanager
def live_memory(is_shown: bool) -> Iterator[Callable[[View], None]]:
    """Gives what shows views, from whatever thread, as long as the block lasts."""
    if not is_shown:
        yield lambda view: None
        return
    # Told from the keeper's thread about once a second: no thread of rich's own is needed to refresh it.
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda view: live.update(show(view), refresh=True)


def show(view: View) -> RenderableType:
    """A view as a small table: a row for each stage that was loaded once, and a line about the whole."""
    parts: list[RenderableType] = []
    resident = view.resident
    if resident is not None and resident.loads:
        held = {stage: size for _, stage, size in resident.stages}
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("stage")
        for name in ("MB in memory", "loads", "drops"):
            table.add_column(name, justify="right")
        for stage, loads in resident.loads.items():
            size = f"{held[stage] / 1e6:,.0f}" if stage in held else "–"
            row = (stage, size, str(loads), str(resident.drops.get(stage, 0)))
            table.add_row(*row, style="" if stage in held else "dim")
        parts.append(table)
    parts.append(_whole(view))
    return Group(*parts)


def _whole(view: View) -> Text:
    line = Text("memory: ", no_wrap=True, overflow="ellipsis")
    line.append(f"renderer {view.process_bytes / 1e9:.2f} GB")
    if view.resident is not None:
        line.append(f" ({view.resident.policy})")
    if view.sample is not None:
        line.append(f" · {view.sample.available_bytes / 1e9:.1f} of {view.sample.total_bytes / 1e9:.1f} GB available")
    level = view.verdict.level.word
    line.append(" · pressure ")
    line.append(level, style=_STYLES[level])
    if level != "calm":
        line.append(f": {view.verdict.why}")
    return line
