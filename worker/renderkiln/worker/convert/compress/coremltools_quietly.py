"""Keeps coremltools' own progress bars and temporary files where they disturb nobody."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars of coremltools' within: it has no switch for them, and they would run through ours.

    Nor Python's warnings of temporary folders that it leaves to the garbage collector.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    original = tqdm.__init__
    tqdm.__init__ = partialmethod(original, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Implicitly cleaning up", ResourceWarning)
            yield
    finally:
        tqdm.__init__ = original


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Has Python's temporary files made in this folder.

    coremltools writes a package to the system's temporary folder first, which is often small, or held in memory, and
    keeps it there until the process ends.
    """
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
