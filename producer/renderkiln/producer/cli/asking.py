"""Commands that ask for something: `submit`, `cancel`, `retry`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from renderkiln.schema.errors import BadInputError

from .options import PROMPTS_HELP, AsJson, DataDir, Out, RequestOptions, with_request
from .wording import count, in_words

if TYPE_CHECKING:
    from .preparing import Prepared


def add_commands(app: typer.Typer) -> None:
    app.command("submit")(with_request(submit))
    app.command("cancel")(cancel)
    app.command("retry")(retry)


def submit(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT_OR_LIST", help=PROMPTS_HELP, show_default=False),
    ] = None,
    *,
    request: RequestOptions,
    like: Annotated[
        Path | None, typer.Option(help="A picture whose settings are used where no option says otherwise.")
    ] = None,
    out: Out = None,
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be queued, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue prompts for the workers to render.

    Without --out, pictures go to the store of the worker that renders them.

    Example: renderkiln submit --like out/cats/00003-7-a-cat-1b2c3d4e.png --seed 7
    """
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.settings import load
    from renderkiln.producer.inputs import InputCarrier
    from renderkiln.producer.stores import store_for_jobs

    from .preparing import prepare

    settings = load(data_dir=data_dir)
    store = None if out is None else store_for_jobs(out)
    carrier = InputCarrier(DataFolder(settings.data_dir))
    prepared = prepare(prompts or [], request, settings, carrier, store=store, like=like)
    if prepared.remark:
        print(f"renderkiln: {prepared.remark}", file=sys.stderr)
    if dry_run:
        print_plan(prepared, as_json)
        return
    from renderkiln.producer.queue import RenderQueue

    queue = RenderQueue(settings=settings, inputs=carrier)
    queue.check(prepared.needs)
    tally = queue.enqueue(prepared.jobs(), batch=prepared.batch, name=prepared.name)
    if as_json:
        print(
            json.dumps(
                {
                    "batch": prepared.batch,
                    "jobs": prepared.num_jobs,
                    "images": prepared.num_images,
                    "queued": tally.queued,
                    "joined": tally.joined,
                    "moved_up": tally.moved_up,
                    "done": tally.done,
                }
            )
        )
        return
    print(f"batch {prepared.batch}: {count(prepared.num_images, 'image')} in {count(prepared.num_jobs, 'job')}")
    moved = f" ({tally.moved_up:,} moved up)" if tally.moved_up else ""
    print(f"queued {tally.queued:,}, waiting already {tally.joined:,}{moved}, rendered already {tally.done:,}")
    if tally.done and not tally.queued:
        print("nothing new to render; --again renders anew, another --seed gives other pictures")
    from renderkiln.producer.fleet import live_workers

    if tally.queued and not live_workers(queue.connection):
        print("no worker is up: start one with `renderkiln worker`")


def print_plan(prepared: Prepared, as_json: bool) -> None:
    """What `--dry-run` shows: each job, and how many images they make."""
    if as_json:
        for job in prepared.jobs():
            print(job.to_json())
        return
    for job in prepared.jobs():
        spec = job.spec
        shown = spec.model_dump(mode="json", exclude_defaults=True, exclude={"prompt"}) | {"seed": spec.seed}
        if job.num_images > 1:
            shown["num_images"] = job.num_images
        settings = " ".join(f"{name}={in_words(value)}" for name, value in shown.items())
        print(f"{job.index:>6}  {spec.prompt}  [{settings}]")
    print(f"{count(prepared.num_jobs, 'job')}, {count(prepared.num_images, 'image')}; nothing was queued")


def cancel(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="BATCH_OR_JOB", help="Batches or jobs.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that waits or runs, whoever submitted it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --all.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs that wait or run. One that runs stops at its next step.

    Example: renderkiln cancel prompts-1a2b3c4d
    """
    from renderkiln.home.settings import load
    from renderkiln.producer.queue import RenderQueue

    if everything == bool(what):
        raise BadInputError("name batches or jobs, or give --all: one of the two.")
    queue = RenderQueue(settings=load(data_dir=data_dir))
    if everything:
        if not yes:
            _make_sure("Cancel all that waits or runs, of all batches?")
        total = queue.cancel_all()
    else:
        total = sum(queue.cancel(name) for name in what or ())
    print(json.dumps({"canceled": total}) if as_json else f"{count(total, 'open job')} canceled")


def _make_sure(question: str) -> None:
    """Asks a person. Raises BadInputError where there is none to ask; ends the command where the answer is no."""
    if not sys.stdin.isatty():
        raise BadInputError("nobody is there to be asked whether to cancel everything; give --yes.")
    typer.confirm(question, abort=True, err=True)


def retry(
    what: Annotated[list[str], typer.Argument(metavar="BATCH_OR_JOB", help="Batches or jobs.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Queue failed and canceled jobs again.

    Example: renderkiln retry prompts-1a2b3c4d
    """
    from renderkiln.home.settings import load
    from renderkiln.producer.queue import RenderQueue

    queue = RenderQueue(settings=load(data_dir=data_dir))
    total = sum(queue.retry(name) for name in what)
    print(json.dumps({"queued": total}) if as_json else f"{count(total, 'job')} queued again")
