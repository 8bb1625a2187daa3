"""The commands `hub` and `repair`: one ledger for a fleet, and putting back what Redis lost."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from renderkiln.schema.errors import EXIT_FAILED, NotFoundError

from .options import AsJson, DataDir
from .wording import count

if TYPE_CHECKING:
    from renderkiln.home.ledger import Ledger
    from renderkiln.home.settings import Settings

#: Seconds after which a half-written file has no living writer.
_STALE = 3600


def add_commands(app: typer.Typer) -> None:
    app.command("hub")(hub)
    app.command("repair")(repair)


def hub(
    repair_every: Annotated[float, typer.Option(min=1.0, help="Seconds between two repairs.")] = 60.0,
    data_dir: DataDir = None,
) -> None:
    """Keep one ledger of a fleet, and mend what Redis loses.

    Workers' ledgers tell it what they did, until it has taken that over; jobs that Redis loses are queued again. Run it
    on one machine, beside Redis. Its ledger is hub.db in the data folder.

    Example: RENDERKILN_REDIS_URL=redis://mini-1 renderkiln hub
    """
    import logging
    import signal
    import threading

    from renderkiln.home.connect import connect
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.settings import load
    from renderkiln.producer.hub.service import Hub

    logging.basicConfig(format="%(asctime)s  %(levelname)-7s  %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # that its ledger is made or upgraded goes without saying
    settings = load(data_dir=data_dir)
    connection = connect(settings)
    service = Hub(connection.redis, DataFolder(settings.data_dir), repair_every=repair_every)
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    logging.getLogger("renderkiln.hub").info(
        "hub up: %s, ledger %s", connection.where, DataFolder(settings.data_dir).hub_ledger
    )
    try:
        service.run(stop)
    finally:
        service.close()


def repair(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be mended, and change nothing.")] = False,
    render_gone: Annotated[
        bool, typer.Option("--render-gone", help="Queue jobs again whose pictures are no longer in their store.")
    ] = False,
    ledger: Annotated[
        Path | None,
        typer.Option(help="A worker's ledger.db to take over first, such as that of a Mac which is no more."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Put back what Redis lost, and find pictures that are gone.

    Compares the ledger with Redis and the stores. Jobs that Redis lost are queued again, those that stand in no list
    are put back, those that the ledger does not know are taken over, half-written files are removed. Pictures that are
    gone are listed. Uses the hub's ledger where this machine has one, else its own.

    Example: renderkiln repair --dry-run
    """
    from renderkiln.home.connect import answering, connect
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.settings import load
    from renderkiln.producer.hub.repair import gone_files, look, mend, queue_gone

    settings = load(data_dir=data_dir)
    folder = DataFolder(settings.data_dir)
    known = _open_ledger(settings)
    try:
        connection = connect(settings).redis
        taken_over = 0
        if ledger is not None and not dry_run:
            taken_over = _take_over(known, ledger)
        with answering():
            found = look(known, connection)
            said: dict[str, Any] = {"dry_run": dry_run, "ledger": str(known.path), "changes_taken_over": taken_over}
            said |= asdict(found)
            if not dry_run:
                mended = mend(known, connection, folder, found)
                said["not_mended"] = [{"job": job_id, "why": why} for job_id, why in mended.failed]
            gone = list(_with_progress(known, gone_files))
            said["gone_files"] = [{"job": each.job_id, "k": each.k, "url": each.url} for each in gone]
            said["rendered_again"] = queue_gone(connection, known, gone) if render_gone and not dry_run else 0
        said["half_written_files"] = _clean(settings, dry_run)
    finally:
        known.close()
    if as_json:
        print(json.dumps(said))
    else:
        _show(said)
    if said.get("not_mended"):
        raise typer.Exit(EXIT_FAILED)


def _open_ledger(settings: Settings) -> Ledger:
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.ledger import Ledger

    folder = DataFolder(settings.data_dir)
    if folder.hub_ledger.is_file():
        return Ledger(folder.hub_ledger, strict=False)
    if settings.redis_url is not None:
        raise NotFoundError(
            f"{folder.root} has no hub's ledger, and a worker's knows its own jobs alone. "
            "Run this where `renderkiln hub` runs, or start one there first."
        )
    if not folder.ledger.is_file():
        raise NotFoundError(f"there is no ledger in {folder.root}: nothing was rendered with this data folder yet.")
    return Ledger(folder.ledger)


def _take_over(known: Ledger, other: Path) -> int:
    """Takes over all that another ledger has; how many changes that were."""
    from renderkiln.home.ledger import Ledger
    from renderkiln.home.outbox import read_changes
    from renderkiln.producer.hub.projection import project

    if not other.is_file():
        raise NotFoundError(f"there is no ledger {other}.")
    source = Ledger(other)
    try:
        after = 0
        while (shipment := read_changes(source, after)) is not None:
            project(known, [shipment])
            after = shipment.upto
        return after
    finally:
        source.close()


def _with_progress(known: Ledger, look: Any) -> Any:
    """Looks at all pictures, with a bar where somebody watches and it takes longer than two seconds."""
    from rich.console import Console
    from rich.progress import Progress

    total = known.counts()["images"]
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from look(known)
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("looking for pictures", total=total)
        yield from look(known, lambda: progress.advance(task))


def _clean(settings: Settings, dry_run: bool) -> int:
    from renderkiln.home.store import Store

    return Store(settings.out).clean(older_than=_STALE, dry_run=dry_run)


def _show(said: dict[str, Any]) -> None:
    would = "would be " if said["dry_run"] else ""
    print(f"ledger {said['ledger']}")
    if said["changes_taken_over"]:
        print(f"{said['changes_taken_over']:,} changes taken over from the other ledger")
    lines = (
        ("lost", f"not in Redis any more: {would}queued again"),
        ("stuck", f"in no list that a worker looks at: {would}put back"),
        ("unknown", f"not in the ledger: {would}taken over"),
        ("behind", f"ended while the ledger did not hear of it: {would}taken over"),
    )
    for name, what in lines:
        if said[name]:
            print(f"{count(len(said[name]), 'job')} {what}")
    for each in said.get("not_mended", ()):
        print(f"job {each['job']} cannot be queued again: {each['why']}")
    for each in said["gone_files"]:
        print(f"gone: {each['url']} (job {each['job']})")
    if said["gone_files"]:
        again = f"{count(said['rendered_again'], 'job')} queued to render them again"
        print(again if said["rendered_again"] else "`renderkiln repair --render-gone` renders them again")
    if said["half_written_files"]:
        print(f"{count(said['half_written_files'], 'half-written file')} {would}removed")
    if not any(said[name] for name, _ in lines) and not said["gone_files"] and not said["half_written_files"]:
        print("nothing to mend")
