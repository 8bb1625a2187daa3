"""`renderkiln models`: the models of this machine, from the Hub or from a folder.

Each command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from renderkiln.schema.errors import BadInputError, did_you_mean

from .plan_cli import plan

if TYPE_CHECKING:
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.models import InstalledModel

    from .layout import Variant
    from .pull import PullPlan

_DataDir = Annotated[Path | None, typer.Option(help="Folder of ledger, server and models.")]
_Json = Annotated[bool, typer.Option("--json", help="For scripts.")]
_Name = Annotated[str, typer.Argument(help="A model of this machine, as `renderkiln models list` names it.")]
_VariantOption = Annotated[
    str | None, typer.Option(help="original, split-einsum or split-einsum-v2; what suits this machine unless told.")
]


def add_commands(app: typer.Typer) -> typer.Typer:
    """Adds `models` and what is below it; returns it, for others that have commands there."""
    models = typer.Typer(help="The models of this machine.", no_args_is_help=True)
    for name, command in (
        ("list", list_models),
        ("pull", pull),
        ("add", add),
        ("show", show),
        ("plan", plan),
        ("verify", verify),
        ("path", path),
        ("rm", remove),
    ):
        models.command(name)(command)
    app.add_typer(models, name="models")
    return models


def pull(
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub.")],
    variant: _VariantOption = None,
    form: Annotated[
        str, typer.Option("--format", help="Of a repository in Apple's layout: packages, or compiled (macOS only).")
    ] = "packages",
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit; main unless told.")] = None,
    original: Annotated[
        str | None, typer.Option(help="The repository of tokenizer, scheduler and configs, where ours has none.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What it is called here; the repository's name unless told.")] = None,
    data_dir: _DataDir = None,
    as_json: _Json = False,
) -> None:
    """Fetch a model from the Hugging Face Hub.

    Core ML models in Apple's layout, what `renderkiln convert` wrote, and models in diffusers' layout. Only what
    rendering needs is fetched, of one variant, and never a pickle. An interrupted download goes on when the command is
    run again.

    Example: renderkiln models pull apple/coreml-stable-diffusion-v1-5-palettized
    """
    from .picking import Form
    from .pull import Request, plan_pull, run_pull

    if form not in get_args(Form):
        raise BadInputError(f"--format {form}: there are {' and '.join(get_args(Form))}")
    data = _data(data_dir)
    request = Request(repository, name, revision, _variant(variant), form, original)  # type: ignore[arg-type]
    plan = plan_pull(request, data)
    if plan is None:
        called = name or repository
        _say(f"{called} is here already; `renderkiln models verify {called}` reads all of it")
        folder = data.models / called
    else:
        with _progress() as (begin, on_bytes):
            folder = run_pull(plan, data, lambda left, free: begin(_about(plan, left, free), plan.size_bytes), on_bytes)
        _say(f"{plan.name} is complete and verified, at commit {plan.listing.commit}")
    _print_folder(folder, as_json)


def add(
    folder: Annotated[
        Path, typer.Argument(help="A folder in Apple's layout (a Core AI bundle, too), renderkiln's or diffusers'.")
    ],
    name: Annotated[str | None, typer.Option(help="What it is called here; the folder's name unless told.")] = None,
    link: Annotated[bool, typer.Option("--link/--copy", help="Point to the folder instead of copying it.")] = False,
    variant: Annotated[
        str | None, typer.Option(help="Of Apple's layout: the variant to take, or what the folder does not say it is.")
    ] = None,
    original: Annotated[
        str | None, typer.Option(help="A diffusers folder, or OWNER/NAME, with the tokenizer, scheduler and configs.")
    ] = None,
    data_dir: _DataDir = None,
    as_json: _Json = False,
) -> None:
    """Take a folder of this machine into the models.

    Example: renderkiln models add ~/models/split_einsum/compiled --name sd15 --original ~/models/sd15
    """
    from .adding import Addition
    from .adding import add as add_folder

    wish = Addition(folder, name, link, _variant(variant), original)
    _print_folder(add_folder(wish, _data(data_dir)), as_json)


def list_models(data_dir: _DataDir = None, as_json: _Json = False) -> None:
    """Show the models that are on this machine.

    Example: renderkiln models list --json
    """
    from renderkiln.home.models import installed_models

    from .describing import list_table, listed

    rows = [listed(model) for model in installed_models(_data(data_dir))]
    _print(rows, as_json, list_table)


def show(name: _Name, data_dir: _DataDir = None, as_json: _Json = False) -> None:
    """Show what a model holds: variants, stages, sizes, inputs and outputs, and where it came from.

    Example: renderkiln models show shapes
    """
    from .describing import show_table, shown
    from .tuned import tuned_form

    data = _data(data_dir)
    _print(shown(_find(data, name), tuned_form(data, name)), as_json, show_table)


def verify(name: _Name, data_dir: _DataDir = None, as_json: _Json = False) -> None:
    """Read all files of a model, and compare them with what they were when it came.

    Example: renderkiln models verify shapes
    """
    from rich.console import Console

    from .store import verify as verify_folder

    folder = _find(_data(data_dir), name).path
    console = Console(stderr=True)
    with console.status("verifying") as status:
        unknown = verify_folder(folder, lambda file: status.update(f"verifying {file}"))
    if as_json:
        print(json.dumps({"name": name, "path": str(folder), "complete": True, "remarks": unknown}, indent=2))
    else:
        print("\n".join([f"{name} is complete" if unknown else f"{name} is complete and unchanged", *unknown]))


def path(name: _Name, data_dir: _DataDir = None) -> None:
    """Print the folder of a model.

    Example: renderkiln models path shapes
    """
    from renderkiln.home.models import find_model

    print(find_model(_data(data_dir), name))


def remove(
    name: _Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data_dir: _DataDir = None,
) -> None:
    """Remove a model from this machine, and what was begun of it. Of one added with --link, the folder itself stays.

    Example: renderkiln models rm apple/coreml-stable-diffusion-v1-5 --yes
    """
    from .store import removable
    from .store import remove as remove_model

    data = _data(data_dir)
    folders = removable(data, name)
    if not yes:
        if not sys.stdin.isatty():
            raise BadInputError(f"{name} is not removed without a yes; say --yes")
        typer.confirm(f"Remove {name} ({', '.join(map(str, folders))})?", abort=True, err=True)
    remove_model(data, name)


def _data(data_dir: Path | None) -> DataFolder:
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.settings import load

    return DataFolder(load(data_dir=data_dir).data_dir)


def _find(data: DataFolder, name: str) -> InstalledModel:
    from renderkiln.home.models import find_model, installed_models

    find_model(data, name)  # says what is near a name that is not there
    return next(model for model in installed_models(data) if model.name == name)


def _variant(text: str | None) -> Variant | None:
    """In Apple's spelling or ours. Raises BadInputError."""
    from .apple import variant_of
    from .layout import VARIANTS

    if text is None:
        return None
    found = variant_of(text)
    if found is None:
        raise BadInputError(f"--variant {text}: there are {', '.join(VARIANTS)}.{did_you_mean(text, VARIANTS)}")
    return found


def _about(plan: PullPlan, left: int, free: int) -> str:
    """What is about to be fetched, before it is."""
    size, variant = plan.size_bytes, plan.choice.variant
    what = f"{plan.listing.repository}{f', {variant},' if variant else ''} at commit {plan.listing.commit[:12]}"
    here = "" if left == size else f", of which {(size - left) / 1e6:,.1f} MB are here already"
    lines = [f"{what}: {len(plan.wanted)} files, {size / 1e6:,.1f} MB{here}; {free / 1e6:,.1f} MB are free on the disk"]
    if plan.request.form == "compiled" and sys.platform != "darwin":
        lines.append("compiled models run on macOS alone; --format packages runs here, too")
    if plan.original is not None:
        lines.append(f"tokenizer, scheduler and configs from {plan.original.repository}")
    if len(plan.choice.there) > 1:
        lines.append(f"it has {', '.join(plan.choice.there)}; --variant takes another one")
    return "\n".join(lines)


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str, int], None], Callable[[int], None]]]:
    """A bar on standard error, where that is a terminal: `begin` shows it, after saying what it is about."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def begin(about: str, total: int) -> None:
            progress.update(task, total=total)
            console.print(about, markup=False, highlight=False, soft_wrap=True)

        yield begin, lambda count: progress.advance(task, count)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_folder(folder: Path, as_json: bool) -> None:
    print(json.dumps({"path": str(folder)}, indent=2) if as_json else folder)


def _print(found: Any, as_json: bool, table: Callable[[Any], Any]) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console

    Console().print(table(found))
