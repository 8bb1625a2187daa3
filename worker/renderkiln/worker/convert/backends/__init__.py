"""What writes a stage in a format, and what of the writing differs from format to format.

`stage_work.py` takes a stage from its weights to its place in the manifest, and asks the format's backend for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import nn

from renderkiln.schema.errors import ConversionError

from ...runtimes.base import Runtime
from ..options import Format
from ..plan import StagePlan

Tell = Callable[..., None]


class Backend(Protocol):
    """A format's part of a conversion. Each is a module of this package."""

    def write(self, stage: nn.Module, plan: StagePlan, path: Path, *, model: str, version: str, tell: Tell) -> None:
        """Writes a stage with 16-bit or float32 weights; takes the module apart.

        Args:
            model, version: of what is converted, for whoever looks at the file.

        Raises:
            ConversionError: it cannot be converted, or not be written.
        """

    def look_whole(self, plan: StagePlan, path: Path) -> bool:
        """Sees that what was written can be read back: not everything that writes notices a full disk.

        Returns:
            Whether fewer bits are planned, and it has a weight that is worth them.

        Raises:
            ConversionError: it cannot.
        """

    def compress(self, plan: StagePlan, recipe: Path | None, dense: Path, target: Path, tell: Tell) -> float:
        """Writes a stage again with fewer bits; the mean bits of a weight. Raises ConversionError."""

    def cut(self, plan: StagePlan, whole: Path, targets: tuple[Path, Path]) -> None:
        """Cuts a stage in two. Raises ConversionError."""

    def open(self, plan: StagePlan, path: Path) -> Runtime:
        """Loads a file to check it, on a runtime that this system has. Raises ModelLoadError."""

    def checks_in_time(self, size_bytes: int) -> bool:
        """Whether that runtime gets through a check of a stage in minutes. `size_bytes`: of its weights as written."""


def backend_for(format: Format) -> Backend:
    """The backend of a format; imports what it writes with.

    Raises:
        ConversionError: that is not installed, or cannot be loaded.
    """
    try:
        if format == "coreai":
            from . import coreai

            return coreai
        from . import coreml

        return coreml
    except (ImportError, OSError) as error:
        raise ConversionError(f"{format}: what it is written with cannot be loaded: {error}") from error
