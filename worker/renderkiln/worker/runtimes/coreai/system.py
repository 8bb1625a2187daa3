"""Whether Core AI is on this machine, and what it can do on this system. Imports nothing of it."""

from __future__ import annotations

import importlib.util
import platform
import sys

from ..apple.system import macos_version

#: The macOS that has Core AI itself; before it there is the interpreter of the Python package alone.
_MACOS_WITH_COREAI = (27,)
_MACOS_WITH_PACKAGE = (26,)
INSTALL = "pip install 'renderkiln[worker,coreai]'"


def why_not() -> str | None:
    """What this machine lacks to run Core AI models, as the end of a sentence; None: nothing. Imports nothing."""
    if importlib.util.find_spec("coreai") is not None:
        return None
    return why_no_wheel_here() or f"is not installed: {INSTALL}"


def why_no_wheel_here() -> str | None:
    """Why there is no `coreai` for this Python on this machine, as the end of a sentence; None: there is."""
    return why_no_wheel(sys.version_info[:2], platform.system(), platform.machine(), macos_version())


def why_no_wheel(python: tuple[int, ...], system: str, machine: str, macos: tuple[int, ...]) -> str | None:
    """Why there is no `coreai` for a Python on a machine, as the end of a sentence; None: there is.

    Args:
        python: its version, such as (3, 11).
        system, machine: as `platform` says them.
        macos: its version; empty elsewhere.
    """
    if python < (3, 11):
        return f"needs Python 3.11 or later, and this is {'.'.join(map(str, python))}"
    if system == "Darwin":
        if machine == "arm64" and macos >= _MACOS_WITH_PACKAGE:
            return None
        return f"needs macOS 26 or later on Apple silicon, and this is macOS {'.'.join(map(str, macos))} on {machine}"
    if (system, machine) != ("Linux", "x86_64"):
        return f"comes for macOS and for Linux on x86_64, and this is {system} on {machine}"
    return None


def on_all_units() -> bool:
    """Whether this system runs Core AI on the GPU and the Neural Engine; otherwise there is an interpreter."""
    return sys.platform == "darwin" and macos_version() >= _MACOS_WITH_COREAI
