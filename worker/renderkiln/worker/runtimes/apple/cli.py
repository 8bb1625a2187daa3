"""`renderkiln models compile` and `renderkiln models cache`: the commands' options, and what they print."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from renderkiln.schema.errors import BadInputError, WorkerUnavailableError

from ...needs import say_what_is_missing

if TYPE_CHECKING:
    from ..manifest import Manifest, PackageInfo
    from .ahead import Done
    from .cache import CompileCache
    from .policy import Entry

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_TIMES = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

_DataDir = Annotated[Path | None, typer.Option(help="Folder of ledger, server and models.")]
_Json = Annotated[bool, typer.Option("--json", help="For scripts.")]


def add_commands(models: typer.Typer) -> None:
    """Adds the commands below `renderkiln models`."""
    models.command("compile")(compile_model)
    about = "What Core ML compiled of the models.\n\nExample: renderkiln models cache list"
    cache = typer.Typer(help=about, no_args_is_help=True)
    cache.command("list")(list_cache)
    cache.command("clean")(clean_cache)
    models.add_typer(cache, name="cache")


def compile_model(
    name: Annotated[str, typer.Argument(help="A model of this machine, as `renderkiln models list` names it.")],
    compute_unit: Annotated[
        str | None, typer.Option(help="all, cpu_and_gpu, cpu_and_ne, cpu_only, or auto: what a worker would take.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of a model that is here in several; auto unless told.")] = None,
    data_dir: _DataDir = None,
    as_json: _Json = False,
) -> None:
    """Have Core ML compile a model now, so that the first picture does not wait for it. macOS only.

    Each stage is compiled, and loaded once: for the Neural Engine that is the longer part, up to minutes, and macOS
    keeps what comes of it. What was compiled before is kept.

    Example: renderkiln models compile my-model --compute-unit cpu_and_ne
    """
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.models import find_model
    from renderkiln.home.settings import load

    from .system import COMPUTE_UNITS, on_macos

    unit = None if compute_unit is None else compute_unit.casefold()  # Apple's tools write them in capitals
    settings = load(data_dir=data_dir, compute_unit=unit, variant=variant)
    if not on_macos():
        raise WorkerUnavailableError(
            "compiling needs macOS, whose Core ML does it. Elsewhere models run on the reference runtime, uncompiled."
        )
    say_what_is_missing("compiling", ("coremltools", "numpy"), "worker,coreml")
    from ...models.choosing import Wishes, pick_form
    from ...models.tuned import tuned_form
    from .. import manifest as manifests
    from .cache import FOLDER

    data = DataFolder(settings.data_dir)
    wishes = Wishes(engine="coreml", compute_unit=settings.compute_unit, variant=settings.variant)
    form = pick_form(find_model(data, name), wishes, tuned_form(data, name))
    if form is None or form.unit not in COMPUTE_UNITS:
        raise BadInputError(f"there is nothing to compile for {settings.compute_unit}; Core ML has other units")
    manifest = manifests.load(form.folder)
    rows = []
    for stage, info, done in _compile_all(form.folder, manifest, form.unit, data.ensure().root / FOLDER):
        rows.append({"stage": stage, "package": info.file, "compute_unit": form.unit, **done.model_dump()})
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _show_compiled(rows)


def list_cache(data_dir: _DataDir = None, as_json: _Json = False) -> None:
    """Show what Core ML compiled of the models, latest use first.

    Example: renderkiln models cache list --json
    """
    entries = _cache(data_dir).entries()
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
    else:
        _show_entries(entries, "nothing has been compiled yet")


def clean_cache(
    older: Annotated[
        str | None, typer.Option(help="Also remove what was not used for so long: 12h, 30d, 4w.", show_default=False)
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(help="Also remove the longest unused until so much is left: 500MB, 10GB, 0.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    data_dir: _DataDir = None,
    as_json: _Json = False,
) -> None:
    """Remove compiled models that will not be used again.

    Those are damaged ones, those of another build of the system, and what the options say. Models are compiled again
    when they are needed; what is loaded right now stays.

    Example: renderkiln models cache clean --older 30d --max-size 10GB
    """
    seconds = None if older is None else parse_age(older)
    size = None if max_size is None else parse_bytes(max_size)
    removed = _cache(data_dir).clean(older_seconds=seconds, max_bytes=size, dry_run=dry_run)
    if as_json:
        print(json.dumps([asdict(entry) for entry in removed], indent=2))
    else:
        _show_entries(removed, "nothing to remove")
        if removed:
            print(f"{'would free' if dry_run else 'freed'} {_megabytes(sum(entry.size_bytes for entry in removed))} MB")


def parse_age(text: str) -> float:
    """`90m`, `12h`, `30d` or `4w` in seconds. Raises BadInputError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([mhdw])", text.strip(), re.ASCII)
    if match is None:
        raise BadInputError(f"{text!r} is no age; say 90m, 12h, 30d or 4w")
    return float(match[1]) * _TIMES[match[2]]


def parse_bytes(text: str) -> int:
    """`500MB`, `10GB` or `0`. Raises BadInputError."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if match is None:
        raise BadInputError(f"{text!r} is no size; say 500MB, 10GB or 0")
    return int(float(match[1]) * _SIZES[(match[2] or "").upper()])


def _cache(data_dir: Path | None) -> CompileCache:
    from renderkiln.home.settings import load

    from .cache import FOLDER, CompileCache

    return CompileCache(load(data_dir=data_dir).data_dir / FOLDER)


def _compile_all(folder: Path, manifest: Manifest, unit: Any, cache: Path) -> Iterator[tuple[str, PackageInfo, Done]]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from .ahead import Job, compile_ahead

    console = Console(stderr=True)
    work = [(stage.stage, info) for stage in manifest.stages.values() for info in stage.packages]
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for number, (stage, info) in enumerate(work, start=1):
            task = progress.add_task(f"{number} of {len(work)}: {stage}, {_megabytes(info.size_bytes)} MB, on {unit}")
            done = compile_ahead(Job(path=folder / info.file, info=info, compute_unit=unit, cache=cache))
            progress.remove_task(task)
            if not console.is_terminal:
                console.print(f"{stage}: {_spent(done.compiled_in, done.load_seconds)}", markup=False, highlight=False)
            yield stage, info, done


def _spent(compiled_in: float | None, load_seconds: float) -> str:
    compiled = "compiled before" if compiled_in is None else f"compiled in {compiled_in:.1f} s"
    return f"{compiled}, loaded in {load_seconds:.1f} s"


def _show_compiled(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "unit", "compiled s", "loaded s", "peak MB", box=None, header_style="bold")
    table.add_column("package", overflow="fold")
    for row in rows:
        compiled = "before" if row["compiled_in"] is None else f"{row['compiled_in']:.1f}"
        table.add_row(
            row["stage"],
            row["compute_unit"],
            compiled,
            f"{row['load_seconds']:.1f}",
            _megabytes(row["peak_bytes"]),
            row["package"],
        )
    Console().print(table)
    for row in rows:
        if row["refused"]:
            print(
                f"{row['stage']}: the Neural Engine's compiler refused it; on cpu_and_gpu it may be faster, and safer"
            )


def _show_entries(entries: list[Entry], nothing: str) -> None:
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    if not entries:
        print(nothing)
        return
    table = Table("unit", "system", "MB", "last use", "compiled s", "", box=None, header_style="bold")
    table.add_column("package", overflow="fold")
    for entry in entries:
        state = "damaged" if entry.damaged else "in use" if entry.in_use else ""
        last = datetime.fromtimestamp(entry.last_use).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            entry.compute_unit,
            entry.build,
            _megabytes(entry.size_bytes),
            last,
            f"{entry.seconds:.1f}",
            state,
            Path(entry.source).name,
        )
    Console().print(table)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}"
