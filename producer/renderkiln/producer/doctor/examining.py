"""Runs checkups side by side, each for so long at most, and turns what goes wrong with one into a finding."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points

from renderkiln.home.checkup import Checkup, Finding, problem
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import RenderkilnError

from .disks import check_disks
from .folder import check_folder
from .libraries import check_libraries
from .machine import check_machine
from .models import check_models
from .server import check_server
from .settings import check_settings
from .store import check_store

#: Where those of the worker join in: each entry point is a mapping from names to checkups.
GROUP = "renderkiln.checkups"
#: Seconds for all of them together. Whoever waits longer waits for a disk or a server that hangs.
PATIENCE = 8.0

#: In the order in which they are shown. The first two look at nothing that settings say.
ALWAYS: Mapping[str, Checkup] = {"machine": check_machine, "libraries": check_libraries}
OWN: Mapping[str, Checkup] = {
    "settings": check_settings,
    "data folder": check_folder,
    "disk": check_disks,
    "store": check_store,
    "queue": check_server,
    "models": check_models,
}


def all_checkups() -> dict[str, Checkup]:
    """Ours, and those that are installed."""
    found: dict[str, Checkup] = {**ALWAYS, **OWN}
    for hook in entry_points(group=GROUP):
        found |= hook.load()
    return found


def examine(settings: Settings, checkups: Mapping[str, Checkup], patience: float = PATIENCE) -> list[Finding]:
    """What the checkups find, in their order.

    Args:
        patience: seconds after which those that have not ended are left alone, and said not to answer.
    """
    running = [_Running(name, checkup, settings) for name, checkup in checkups.items()]
    deadline = time.monotonic() + patience
    return [finding for each in running for finding in each.findings(deadline, patience)]


class _Running:
    """A checkup in a thread of its own: a daemon, because one that hangs must not hold up the command's end."""

    def __init__(self, name: str, checkup: Checkup, settings: Settings) -> None:
        self._name, self._checkup, self._settings = name, checkup, settings
        self._found: Sequence[Finding] = ()
        self._thread = threading.Thread(target=self._run, name=f"doctor: {name}", daemon=True)
        self._thread.start()

    def findings(self, deadline: float, patience: float) -> Sequence[Finding]:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            says = f"did not answer within {patience:g} s"
            return [problem(self._name, says, "look whether a disk, a network share or a server hangs")]
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._checkup(self._settings)
        except RenderkilnError as error:
            self._found = [problem(self._name, str(error), "put that right, and run `renderkiln doctor` again")]
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            says = f"the system refused: {error.strerror or type(error).__name__}{where}"
            self._found = [problem(self._name, says, "see who owns it, and whether its disk is mounted and healthy")]
        except Exception as error:  # not its text: what it holds is not known, and findings hold no secrets
            says = f"could not be looked at: {type(error).__name__}"
            self._found = [problem(self._name, says, "please report it, with what `RENDERKILN_DEBUG=1` shows")]
