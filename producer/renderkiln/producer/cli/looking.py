"""Commands that only look: `status`, `watch`, `results`, `show`."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from renderkiln.home.showing import plain, plain_json
from renderkiln.schema.errors import EXIT_FAILED, NotFoundError
from renderkiln.schema.workers import MemoryHeld

from .options import AsJson, DataDir
from .wording import count, in_words


def add_commands(app: typer.Typer) -> None:
    app.command("status")(status)
    app.command("watch")(watch)
    app.command("results")(results)
    app.command("show")(show)


def status(
    what: Annotated[str | None, typer.Argument(metavar="BATCH_OR_JOB", help="Empty: everything.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show where batches, jobs and workers stand.

    Example: renderkiln status prompts-1a2b3c4d --json
    """
    from renderkiln.home.settings import load
    from renderkiln.home.workers import live_workers
    from renderkiln.producer.overview import recent_batches
    from renderkiln.producer.queue import BatchStatus, RenderQueue

    queue = RenderQueue(settings=load(data_dir=data_dir))
    if what is not None:
        found = queue.status(what)
        row = _status_row(found) if isinstance(found, BatchStatus) else {"job": what, "status": found.value}
        print(json.dumps(row) if as_json else "  ".join(f"{name} {value}" for name, value in row.items()))
        return
    batches = [
        {"created_at": batch.created_at, "images": batch.num_images} | _status_row(queue.status(batch.id))
        for batch in recent_batches(queue.connection)
    ]
    workers = live_workers(queue.connection)
    if as_json:
        print(json.dumps({"batches": batches, "workers": [worker.model_dump(mode="json") for worker in workers]}))
        return
    # Not a table of rich's: it would cut a batch's name short to fit the terminal, and names are there to be copied.
    columns = ("images", "queued", "started", "finished", "failed", "canceled")
    width = max([len("batch"), *(len(str(row["batch"])) for row in batches)])
    if batches:
        print(f"{'batch':<{width}}  {'submitted':<16}  {'  '.join(f'{name:>8}' for name in columns)}")
    else:
        print("no batches yet: queue some with `renderkiln submit prompts.txt`")
    for row in batches:
        when = datetime.fromtimestamp(float(row["created_at"])).strftime("%Y-%m-%d %H:%M")
        print(f"{row['batch']:<{width}}  {when}  {'  '.join(f'{row[name]:>8,}' for name in columns)}")
    for worker in workers:
        about = f"{worker.state}, {worker.engine} on {worker.device}"
        refused = f", refused {count(worker.refused.jobs, 'job')}" if worker.refused.jobs else ""
        print(plain(f"worker {worker.name}: {about}, models {', '.join(worker.models)}{refused}"))
        if worker.memory is not None:
            print(plain(f"  memory: {_in_memory(worker.memory)}"))
        if worker.reason:
            print(plain(f"  {worker.reason}"))
    if not workers:
        print("no worker is up: start one with `renderkiln worker`")


def _in_memory(memory: MemoryHeld) -> str:
    """As `3.10 of 6.00 GB (auto): text_encoder 246 MB, unet 1,719 MB`; with their models, where it is more than one."""
    of = "" if memory.budget_bytes is None else f" of {memory.budget_bytes / 1e9:.2f}"
    pressure = "" if memory.pressure == "calm" else f"; pressure {memory.pressure}"
    is_mixed = len({each.model for each in memory.stages}) > 1
    stages = [
        f"{each.model + ' ' if is_mixed else ''}{each.stage} {each.size_bytes / 1e6:,.0f} MB" for each in memory.stages
    ]
    said = ", ".join(stages) or "no stage loaded"
    return f"{memory.held_bytes / 1e9:.2f}{of} GB ({memory.policy}): {said}{pressure}"


def _status_row(status: Any) -> dict[str, Any]:
    return {
        "batch": status.id,
        "queued": status.queued,
        "started": status.started,
        "finished": status.finished,
        "failed": status.failed,
        "canceled": status.canceled,
    }


def watch(
    batch: Annotated[str | None, typer.Argument(metavar="BATCH", help="Empty: the newest one.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Follow a batch until it is done.

    Shows images per minute, the time left, and each running job step by step. Ctrl-C only stops the watching.

    Example: renderkiln watch
    """
    from rich.console import Console

    from renderkiln.home.settings import load
    from renderkiln.producer.live import Watcher
    from renderkiln.producer.overview import find_batch, recent_batches
    from renderkiln.producer.queue import RenderQueue

    from .progress import show as show_progress

    queue = RenderQueue(settings=load(data_dir=data_dir))
    found = (
        find_batch(queue.connection, batch) if batch else next(iter(recent_batches(queue.connection, limit=1)), None)
    )
    if found is None:
        raise NotFoundError(
            f"no batch {batch!r} is known to Redis. `renderkiln status` lists them."
            if batch
            else "no batches yet: queue some with `renderkiln submit prompts.txt`."
        )
    watcher = Watcher(queue.connection, found.id, found.num_images, found.num_jobs, queue.recorded)
    try:
        show_progress(Console(), watcher.updates())
    finally:
        watcher.close()
    view = watcher.view
    done = f"{view.images_done:,} of {count(view.num_images, 'image')}"
    print(f"{found.id}: {done}, {len(view.failed):,} failed, {view.canceled:,} canceled")
    if view.failed:
        raise typer.Exit(EXIT_FAILED)


def results(
    what: Annotated[str, typer.Argument(metavar="BATCH_OR_JOB", help="A batch or a job.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List the pictures of a batch or a job.

    Where they are, a line each; on standard error, what is to be said of one, and which jobs have none, and why.
    Looks in Redis, which keeps results for a week, and then in this machine's ledger, and in the hub's, where it runs
    here: that one knows of all machines.

    Example: renderkiln results prompts-1a2b3c4d --json
    """
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.settings import load
    from renderkiln.producer.queue import RenderQueue
    from renderkiln.producer.recorded import recorded_results

    settings = load(data_dir=data_dir)
    folder = DataFolder(settings.data_dir)
    queue = RenderQueue(settings=settings)
    try:
        rows = queue.results(what)
    except NotFoundError:
        kept = recorded_results(folder, what)
        if not kept:
            raise NotFoundError(
                f"no batch and no job {what!r}, neither in Redis nor in a ledger of this machine. "
                "`renderkiln status` lists batches."
            ) from None
        rows = iter(kept)
    for result in rows:
        if as_json:
            print(plain_json(result.model_dump_json()))
            continue
        for image in result.images:
            print(plain(image.url))
            for note in image.notes:
                print(plain(f"{image.url}: {note}"), file=sys.stderr)
        if result.failure is not None:
            said = f"{result.status.value} {result.job_id}  {result.failure.kind}: {result.failure.message}"
            print(plain(said), file=sys.stderr)
        elif not result.images:
            print(plain(f"{result.status.value} {result.job_id}"), file=sys.stderr)


def show(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    as_json: AsJson = False,
) -> None:
    """Show the settings inside a picture.

    Ours, or those that AUTOMATIC1111 and its relatives write.

    Example: renderkiln show out/cats/00003-7-a-cat-1b2c3d4e.png --json
    """
    from renderkiln.home.pictures.read import read_metadata
    from renderkiln.schema.errors import ImageInputError

    shown = read_metadata(image)
    if as_json:
        print(
            plain_json(
                json.dumps(
                    {
                        "format": shown.format,
                        "width": shown.width,
                        "height": shown.height,
                        "exact": shown.is_exact,
                        "spec": shown.spec.model_dump(mode="json") if shown.spec else None,
                        "digest": shown.spec.digest if shown.spec else None,
                        "parameters": shown.parameters,
                        "other": shown.other,
                        "note": shown.note,
                    },
                    ensure_ascii=False,
                )
            )
        )
        return
    if shown.spec is None and not shown.parameters:
        size = f"{shown.width}×{shown.height}"
        raise ImageInputError(f"{image} is a {shown.format} picture of {size} without settings in it.")
    print(f"{shown.format} {shown.width}×{shown.height}")
    if shown.note:
        print(f"{'note':>20}  {plain(shown.note)}")
    if shown.spec is not None:
        for name, value in shown.spec.model_dump(mode="json").items():
            if value not in (None, "", []):
                print(f"{name:>20}  {plain(in_words(value), lines=True)}")
        print(f"{'digest':>20}  {shown.spec.digest}")
    else:
        print(plain(shown.parameters or "", lines=True))
