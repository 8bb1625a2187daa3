"""The worker's part of the command line: `worker`, `convert`, `compress`, `recipe`, `models`, `tune` and `bench`.

Hooked into the one command through the entry-point group `renderkiln.commands`; nothing heavy is imported before a
command runs.
"""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, TextIO

import typer

from renderkiln.home import flags
from renderkiln.home.settings import Settings, check_system, load
from renderkiln.home.showing import plain

from .convert.apple import AppleCommand
from .convert.cli import convert
from .convert.compress.cli import add_commands as add_compress_commands
from .measuring.cli import add_commands as add_measuring_commands
from .models.cli import add_commands as add_model_commands
from .needs import RENDERING, say_what_is_missing
from .runtimes.apple.cli import add_commands as add_compile_commands


def add_commands(app: typer.Typer) -> None:
    """Adds the worker's commands to the command line."""
    app.command("worker")(worker)
    app.command("convert", cls=AppleCommand)(convert)
    add_compress_commands(app)
    add_compile_commands(add_model_commands(app))
    add_measuring_commands(app)


def worker(
    data_dir: Annotated[Path | None, typer.Option(help="Folder of ledger, server and models.")] = None,
    out: Annotated[str | None, typer.Option(help="The store: a folder or an fsspec URL.")] = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    compute_unit: flags.ComputeUnit = None,
    variant: flags.Variant = None,
    memory: flags.Memory = None,
    memory_budget: flags.MemoryBudget = None,
    model: Annotated[list[str] | None, typer.Option(help="Listen for this model only (repeatable).")] = None,
    warm: Annotated[str | None, typer.Option(help="Model to load at start; the default model unless told.")] = None,
    name: Annotated[str | None, typer.Option(help="The worker's name; host and process id unless told.")] = None,
    burst: Annotated[bool, typer.Option("--burst", help="End when the queues are empty.")] = False,
    owner: Annotated[int | None, typer.Option(help="End, when idle, once this process is gone.", hidden=True)] = None,
) -> None:
    """Render the jobs that come, until told to stop.

    The first Ctrl-C finishes the image at hand and gives the rest of its job back; the second stops at once. No work is
    lost either way.

    Example: RENDERKILN_REDIS_URL=redis://:secret@mini-1:6379 renderkiln worker --out s3://renders --memory-budget 6GB
    """
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
    say_what_is_missing("a worker", RENDERING, "worker")
    check_system(settings)
    _log_to_stderr(settings)
    from renderkiln.home.connect import connect

    from .supervisor.memory.display import live_memory
    from .supervisor.service import WorkerOptions, run_worker

    options = WorkerOptions(name=name, models=tuple(model or ()), burst=burst, warm=warm, owner=owner)
    # On a terminal that a person looks at, what is in memory stands below the log.
    with live_memory(sys.stderr.isatty() and settings.log_format == "human") as on_view:
        run_worker(settings, partial(connect, settings), options, on_view)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Lines(logging.Formatter):
    """A record is a line: what others wrote into Redis and is told here makes no second one, and moves no cursor."""

    def format(self, record: logging.LogRecord) -> str:
        said = logging.makeLogRecord(record.__dict__ | {"msg": plain(record.getMessage()), "args": None})
        return super().format(said)


class _ToStderr(logging.StreamHandler[TextIO]):
    """To whatever standard error is just now: a live display puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _log_to_stderr(settings: Settings) -> None:
    handler = _ToStderr()
    human = _Lines("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(_JsonLines() if settings.log_format == "json" else human)
    logger = logging.getLogger("renderkiln")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
