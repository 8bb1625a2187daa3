"""Keeps coremltools' own progress bars, temporary files and checks of itself where they disturb nobody."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any


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


@contextmanager
def checking_itself_less() -> Iterator[None]:
    """Has coremltools check its program where a pipeline of passes begins and ends, and after dead code went.

    On its own it does so after each of some seventy passes, to tell its developers which of them is broken: a quarter
    of the time that converting and compressing a UNet takes. What is written is the same, and is compared with torch's
    results afterwards.
    """
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    apply, validate = PassPipelineManager.apply_pipeline, Program.validate

    def apply_pipeline(prog: Any, pass_pipeline: Any) -> None:
        validate(prog)
        apply(prog, pass_pipeline)
        validate(prog)

    def only_essentials(prog: Any, check_essential_scope: bool = False) -> None:
        if check_essential_scope:
            validate(prog, check_essential_scope=True)

    PassPipelineManager.apply_pipeline, Program.validate = staticmethod(apply_pipeline), only_essentials
    try:
        yield
    finally:
        PassPipelineManager.apply_pipeline, Program.validate = staticmethod(apply), validate
