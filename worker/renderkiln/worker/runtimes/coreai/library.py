"""Apple's `coreai` package, loaded, and the thread that its calls run in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, TypeVar

from renderkiln.schema.errors import ModelLoadError

from .system import why_not

_THREAD = "core-ai"

T = TypeVar("T")


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
