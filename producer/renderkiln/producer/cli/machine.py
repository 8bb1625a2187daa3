"""Commands about this machine and this program: `config`, `schema`, `server`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .options import AsJson, DataDir


def add_commands(app: typer.Typer) -> None:
    app.command("config")(config)
    app.command("schema")(schema)
    server = typer.Typer(help="The embedded server of this machine.", no_args_is_help=True)
    server.command("start")(start)
    server.command("stop")(stop)
    server.command("status")(server_status)
    app.add_typer(server, name="server")


def config(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show each setting's value and where it came from.

    Example: RENDERKILN_DEVICE=cpu renderkiln config
    """
    from renderkiln.home.settings import explain, load

    rows = explain(load(data_dir=data_dir), data_dir=data_dir)
    if as_json:
        print(json.dumps({row.name: {"value": _plain(row.value), "source": row.source} for row in rows}, indent=2))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {'not set' if row.value is None else row.value}  ({row.source})")


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def schema(
    what: Annotated[str, typer.Argument(help="spec, job, result or event.")] = "spec",
) -> None:
    """Print the JSON Schema of what crosses renderkiln's boundaries.

    Example: renderkiln schema job
    """
    from pydantic import TypeAdapter

    from renderkiln.schema.errors import BadInputError, did_you_mean
    from renderkiln.schema.events import Event
    from renderkiln.schema.jobs import SCHEMA_VERSION, Job, JobResult
    from renderkiln.schema.spec import RenderSpec

    kinds: dict[str, Any] = {"spec": RenderSpec, "job": Job, "result": JobResult, "event": Event}
    if what not in kinds:
        raise BadInputError(f"no schema {what!r}.{did_you_mean(what, kinds)} There are: {', '.join(kinds)}.")
    adapter: TypeAdapter[Any] = TypeAdapter(kinds[what])
    found = adapter.json_schema()
    found["$comment"] = f"renderkiln schema_version {SCHEMA_VERSION}"
    print(json.dumps(found, indent=2))


def start(data_dir: DataDir = None) -> None:
    """Start the embedded server, if it does not run.

    Example: renderkiln server start
    """
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.server import EmbeddedServer
    from renderkiln.home.settings import load

    server = EmbeddedServer(DataFolder(load(data_dir=data_dir).data_dir))
    started = server.ensure_running()
    print(f"{'started' if started else 'already running'}: unix://{server.status().socket}")


def stop(data_dir: DataDir = None) -> None:
    """Stop the embedded server; what is queued stays on disk.

    Example: renderkiln server stop
    """
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.server import EmbeddedServer
    from renderkiln.home.settings import load

    server = EmbeddedServer(DataFolder(load(data_dir=data_dir).data_dir))
    print("stopped" if server.stop() else "no embedded server was running")


def server_status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show whether the embedded server runs, and what it holds.

    Example: renderkiln server status --json
    """
    from renderkiln.home.folder import DataFolder
    from renderkiln.home.server import EmbeddedServer
    from renderkiln.home.settings import load

    found = EmbeddedServer(DataFolder(load(data_dir=data_dir).data_dir)).status()
    if as_json:
        print(
            json.dumps(
                {
                    "running": found.running,
                    "pid": found.pid,
                    "socket": str(found.socket),
                    "memory_bytes": found.memory_bytes,
                    "keys": found.keys,
                    "append_only_bytes": found.append_only_bytes,
                }
            )
        )
    elif found.running:
        print(
            f"running with pid {found.pid} on {found.socket}: {found.keys:,} keys, "
            f"{found.memory_bytes / 1e6:.1f} MB in memory, {found.append_only_bytes / 1e6:.1f} MB on disk"
        )
    else:
        print("not running")
