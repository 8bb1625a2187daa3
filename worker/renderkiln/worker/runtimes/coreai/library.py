"""Apple's `coreai` package: whether it is here, what it can do on this system, and the thread that its calls run in."""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import sys
import threading
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, TypeVar

from renderkiln.schema.errors import ModelLoadError

from ..apple.system import macos_version

#: The macOS that has Core AI itself; before it there is the interpreter of the Python package alone.
_MACOS_WITH_COREAI = (27,)
_MACOS_WITH_PACKAGE = (26,)
_THREAD = "core-ai"
INSTALL = "pip install 'renderkiln[worker,coreai]'"

T = TypeVar("T")


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


def runtime() -> Any:
    """The module `coreai.runtime`. Raises ModelLoadError if it is not installed, or cannot be loaded."""
    lacking = why_not()
    if lacking is not None:
        raise ModelLoadError(f"Core AI {lacking}")
    try:
        import coreai.runtime
    except (ImportError, OSError) as error:  # an older C library than its binaries need, say
        raise ModelLoadError(f"Core AI is installed, and cannot be loaded: {error}") from error
    return coreai.runtime


def wait_for(call: Coroutine[Any, Any, T]) -> T:
    """What an asynchronous call gives; the caller waits, from whichever thread, with or without a loop of its own."""
    return asyncio.run_coroutine_threadsafe(call, _loop()).result()


def let_go(call: Coroutine[Any, Any, object]) -> None:
    """Has a call run to its end. Waits for that, except in the thread of the calls: there, garbage is collected too."""
    if threading.current_thread().name == _THREAD:
        _loop().create_task(call)
    else:
        wait_for(call)


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """One loop for all models, in a thread that ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=_THREAD, daemon=True).start()
    return loop
