"""A batch's progress on the terminal: moving bars where there is one, a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

from renderkiln.producer.live import BatchView

from .wording import duration, say

#: Seconds between lines where output is not a terminal.
LINE_EVERY = 5.0


def show(console: Console, views: Iterable[BatchView]) -> None:
    """Shows views until they end, and says what went wrong on the way."""
    views = _with_setbacks(console, views)
    if console.is_terminal:
        _bars(console, views)
    else:
        _lines(console, views)


def _with_setbacks(console: Console, views: Iterable[BatchView]) -> Iterator[BatchView]:
    said = 0
    hindered: dict[str, str] = {}
    for view in views:
        for setback in view.setbacks[said:]:
            say(console, f"tried again: {setback}")
        said = len(view.setbacks)
        if view.hindered != hindered:
            for name in hindered.keys() | view.hindered.keys():
                if view.hindered.get(name) != hindered.get(name):
                    say(console, f"worker {name}: {view.hindered.get(name, 'goes on')}")
            hindered = view.hindered
        yield view


def _bars(console: Console, views: Iterable[BatchView]) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        total = progress.add_task("images", total=None, rate="")
        tasks: dict[str, TaskID] = {}
        for view in views:
            progress.update(total, completed=view.images_done, total=view.num_images, rate=_rate(view))
            for job_id in set(tasks) - set(view.running):
                progress.remove_task(tasks.pop(job_id))
            for job_id, running in view.running.items():
                if job_id not in tasks:
                    tasks[job_id] = progress.add_task("", rate="")
                image = f" ({running.k + 1} of {running.num_images})" if running.num_images > 1 else ""
                progress.update(
                    tasks[job_id],
                    description=f"  {running.about[:48]}{image}",
                    completed=running.step,
                    total=running.num_steps or None,
                    rate=f"steps on {running.worker}",
                )


def _lines(console: Console, views: Iterable[BatchView]) -> None:
    said_at, said, was_cut_off = time.monotonic(), -1, False
    for view in views:
        is_due = time.monotonic() - said_at >= LINE_EVERY and view.images_done != said
        if view.is_final or is_due or view.is_cut_off != was_cut_off:
            said_at, said, was_cut_off = time.monotonic(), view.images_done, view.is_cut_off
            said_now = f"{view.images_done} of {view.num_images} images  {_rate(view)}"
            say(console, said_now.rstrip())


def _rate(view: BatchView) -> str:
    parts = []
    if (rate := view.images_per_minute) is not None:
        parts.append(f"{rate:.1f} images/min")
    if (left := view.seconds_left) is not None and not view.is_final:
        parts.append(f"{duration(left)} left")
    if view.failed:
        parts.append(f"{len(view.failed)} failed")
    if view.is_cut_off:
        parts.append("Redis does not answer; waiting for it")
    return " · ".join(parts)
