"""The command `renderkiln`: its commands, put together, and how its errors and exit codes come out.

Each command's module imports what it needs when it runs, so that `--help` loads next to nothing.
"""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from renderkiln.schema.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNAVAILABLE, RenderkilnError

from . import asking, doctor, hub, looking, machine, rendering, report

app = typer.Typer(
    name="renderkiln",
    help="Render prompt lists with Stable Diffusion, overnight or on a fleet of Macs.",
    epilog='Start with: renderkiln render "a red circle on a white background"',
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if show_version:
        print(f"renderkiln {version('renderkiln')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


rendering.add_commands(app)
asking.add_commands(app)
looking.add_commands(app)
machine.add_commands(app)
doctor.add_commands(app)
report.add_commands(app)
hub.add_commands(app)
for _hook in entry_points(group="renderkiln.commands"):
    _hook.load()(app)


def main() -> None:
    """Runs the command line. Errors of ours become one line on stderr and their exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a prompt gets it escaped
    try:
        try:
            app(prog_name="renderkiln")
        finally:
            sys.stdout.flush()
    except RenderkilnError as error:
        if os.environ.get("RENDERKILN_DEBUG"):
            raise
        print(f"renderkiln: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        # Where it is our output that failed, what is left of it would fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read it (`| head`) has enough
            sys.exit(EXIT_INTERRUPTED)
        if os.environ.get("RENDERKILN_DEBUG"):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"renderkiln: the system refused: {error.strerror or error}{where}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except Exception as error:
        redis = sys.modules.get("redis")  # where it was never loaded, it cannot be what failed
        if redis is None or not isinstance(error, redis.RedisError) or os.environ.get("RENDERKILN_DEBUG"):
            raise
        print(f"renderkiln: Redis failed: {error}", file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)
    except KeyboardInterrupt:
        print("renderkiln: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
