"""The supervisor's process: the real command line, which starts another module as its renderer."""

from __future__ import annotations

import subprocess
import sys
import types

from renderkiln.worker.supervisor import child


def start_renderers_as(module: str) -> None:
    """From now on, in this process."""

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], **options: object) -> None:
            assert command[1:3] == ["-m", "renderkiln.worker.renderer"]
            super().__init__([command[0], "-m", module, *command[3:]], **options)  # type: ignore[call-overload]

    child.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": Popen})  # type: ignore[assignment]


def run_command(arguments: list[str]) -> None:
    """The real command line; ends the process."""
    from renderkiln.producer.cli.app import main

    sys.argv = ["renderkiln", *arguments]
    main()
