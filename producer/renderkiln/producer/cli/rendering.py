"""`renderkiln render`: server, worker, submission, progress, pictures and contact sheet, in one command."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from renderkiln.home import flags
from renderkiln.home.showing import plain
from renderkiln.schema.errors import EXIT_FAILED, EXIT_INTERRUPTED, WorkerUnavailableError

from .options import PROMPTS_HELP, AsJson, DataDir, Out, RequestOptions, with_request
from .wording import count, say

if TYPE_CHECKING:
    from rich.console import Console

    from renderkiln.producer.enqueue import Tally
    from renderkiln.producer.live import BatchView, Watcher
    from renderkiln.producer.local_worker import LocalWorker
    from renderkiln.producer.queue import RenderQueue

    from .preparing import Prepared


def add_commands(app: typer.Typer) -> None:
    app.command("render")(with_request(render))


def render(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT_OR_LIST", help=PROMPTS_HELP),
    ],
    *,
    request: RequestOptions,
    out: Out = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    compute_unit: flags.ComputeUnit = None,
    variant: flags.Variant = None,
    memory: flags.Memory = None,
    memory_budget: flags.MemoryBudget = None,
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be rendered, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Render prompts on this machine, start to finish.

    What was rendered before is not rendered again: after a crash or Ctrl-C, the same command goes on.

    Example: renderkiln render prompts.txt --num-images 4 --sweep guidance_scale=5,7.5 --out pictures
    """
    from rich.console import Console

    from renderkiln.home.folder import DataFolder
    from renderkiln.home.settings import check_system, load
    from renderkiln.producer.inputs import InputCarrier
    from renderkiln.producer.local_worker import LocalWorker
    from renderkiln.producer.stores import store_for_jobs

    from .preparing import prepare

    settings = load(
        data_dir=data_dir,
        out=out,
        engine=engine,
        device=device,
        compute_unit=compute_unit,
        variant=variant,
        memory=memory,
        memory_budget=memory_budget,
    )
    store = store_for_jobs(settings.out)
    carrier = InputCarrier(DataFolder(settings.data_dir))
    prepared = prepare(prompts, request, settings, carrier, store=store)
    if dry_run:
        from .asking import print_plan

        print_plan(prepared, as_json)
        return
    LocalWorker.check()
    check_system(settings)
    from renderkiln.home.store import Store
    from renderkiln.producer.queue import RenderQueue

    Store(store).check()  # the worker would find out, too, with everything queued

    console = Console(stderr=True)
    queue = RenderQueue(settings=settings, inputs=carrier)
    if queue.server is not None and queue.server.started:
        say(console, f"started the {queue.server.where} (stop it with `renderkiln server stop`)")
    queue.check(prepared.needs, local=True)  # where nobody else can, the worker of this command will
    tally = queue.enqueue(prepared.jobs(), batch=prepared.batch, name=prepared.name)
    say(console, _queued(prepared, tally))
    worker = LocalWorker(settings, store, prepared.models[0])
    run = _Run(queue, prepared, worker, console)
    finished = run.follow()
    _report(queue, prepared, store, run.view, console, as_json, finished, _command())
    if queue.server is not None and queue.server.embedded is not None and queue.server.started:
        queue.close()
        queue.server.embedded.stop_if_unused()
    if not finished:
        raise typer.Exit(EXIT_INTERRUPTED)
    if run.view.failed or run.view.canceled:
        raise typer.Exit(EXIT_FAILED)


class _Run:
    """Follows the batch to its end with a worker of our own, unless one is there; Ctrl-C ends it cleanly."""

    def __init__(self, queue: RenderQueue, prepared: Prepared, worker: LocalWorker, console: Console) -> None:
        from renderkiln.producer.live import Watcher

        self._queue, self._prepared, self._worker, self._console = queue, prepared, worker, console
        num_jobs = _known_jobs(queue, prepared)
        self._watcher: Watcher = Watcher(
            queue.connection, prepared.batch, prepared.num_images, num_jobs, queue.recorded
        )
        self._interrupts = 0

    @property
    def view(self) -> BatchView:
        return self._watcher.view

    def follow(self) -> bool:
        """Whether the batch came to its end."""
        from .progress import show

        before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            show(self._console, self._views())
        finally:
            self._worker.stop()
            self._watcher.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.view.is_final

    def _views(self) -> Iterator[BatchView]:
        for view in self._watcher.updates():
            if self._interrupts:
                if self._worker.wait(0):
                    return
            elif not view.is_final and not view.is_cut_off:
                self._keep_a_worker()
            yield view

    def _keep_a_worker(self) -> None:
        if self._worker.pid is None and self._somebody_else_renders():
            return
        try:
            self._worker.ensure_running()
        except WorkerUnavailableError as error:
            back = f"`renderkiln cancel {self._prepared.batch}` takes it back"
            raise WorkerUnavailableError(f"{error}\nWhat is queued waits for another worker; {back}.") from None

    def _somebody_else_renders(self) -> bool:
        from renderkiln.home.workers import live_workers
        from renderkiln.producer.fleet import can_render
        from renderkiln.producer.patience import AWAY

        try:
            workers = live_workers(self._queue.connection)
        except AWAY:
            return True  # that cannot be known now; the next view will tell that Redis is away
        well = [worker for worker in workers if worker.state != "unwell"]
        return any(all(can_render(worker, need) for need in self._prepared.needs) for worker in well)

    def _interrupt(self, signum: int, frame: Any) -> None:
        self._interrupts += 1
        if self._interrupts == 1:
            say(self._console, "finishing this image; Ctrl-C again to stop at once")
        self._worker.ask_to_stop()


def _known_jobs(queue: RenderQueue, prepared: Prepared) -> int:
    """Jobs of the batch in Redis: fewer than were handed in where some are the same."""
    from renderkiln.schema import names

    return int(queue.connection.zcard(names.batch_jobs(prepared.batch)))


def _queued(prepared: Prepared, tally: Tally) -> str:
    said = f"batch {prepared.batch}: {count(prepared.num_images, 'image')} in {count(prepared.num_jobs, 'job')}"
    parts = [f"{tally.queued:,} queued"]
    if tally.joined:
        moved = f", {tally.moved_up:,} moved up" if tally.moved_up else ""
        parts.append(f"{tally.joined:,} waiting already{moved}")
    if tally.done:
        parts.append(f"{tally.done:,} rendered already")
    return f"{said} ({', '.join(parts)})"


def _command() -> str:
    import shlex

    return "renderkiln " + shlex.join(sys.argv[1:])


def _report(
    queue: RenderQueue,
    prepared: Prepared,
    store: str,
    view: BatchView,
    console: Console,
    as_json: bool,
    finished: bool,
    command: str,
) -> None:
    from renderkiln.producer.sheets import write_contact_sheets

    sheets = write_contact_sheets(queue, prepared.batch, store)
    for result in view.failed[:20]:
        what = plain(f"{result.failure.kind}: {result.failure.message}") if result.failure else "no reason given"
        say(console, f"failed: job {result.job_id}: {what}")
    if not finished:
        left = view.num_images - view.images_done
        say(
            console,
            f"stopped with {left:,} of {prepared.num_images:,} images to go; nothing is lost.\n"
            f"go on:   {command}\n"
            f"or drop: renderkiln cancel {prepared.batch}",
        )
    if as_json:
        results = [result.model_dump(mode="json") for result in queue.results(prepared.batch)]
        print(json.dumps({"batch": prepared.batch, "finished": finished, "contact_sheets": sheets, "jobs": results}))
    else:
        for sheet in sheets:
            print(f"contact sheet: {sheet}")
