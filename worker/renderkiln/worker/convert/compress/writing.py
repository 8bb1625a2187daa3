"""Work folders that leave nothing behind, and appear under their real name only when all is well."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from renderkiln.schema.errors import CompressionError


@contextmanager
def new_folder(*, beside: Path) -> Iterator[Path]:
    """An empty folder in the one that `beside` is to lie in, so that a rename brings it there; removed at the end.

    Raises:
        CompressionError: it cannot be made.
    """
    parent = beside.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{beside.name}.", suffix=".tmp", dir=parent))
    except OSError as error:
        raise CompressionError(f"cannot write into {parent}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
