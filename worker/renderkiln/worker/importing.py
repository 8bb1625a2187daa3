"""Importing torch and the libraries of models in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_that_stay() -> Iterator[None]:
    """What is imported within stays in memory to the end of the process, and is not looked through for cycles.

    There are so many objects in these libraries that Python's looking through them, again and again while they are
    imported, is a fifth of the time that it takes; and a look later on, as after a stage was dropped, takes longer.
    For a process's start: whatever is there at the end of it is taken for what stays.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
