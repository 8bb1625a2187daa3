"""Reads small JSON files that come with models, and are not trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import ModelLoadError


def read_small(path: Path, limit: int, what: str) -> Any:
    """The value that a file holds.

    Args:
        limit: bytes; a bigger file is not read.
        what: the file should be, as the message says it.

    Raises:
        FileNotFoundError: there is none.
        ModelLoadError: it is too big, cannot be read, or is not JSON.
    """
    try:
        if path.stat().st_size > limit:
            raise ModelLoadError(f"{path} is too big for {what}")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
