"""Numbers that tell of two words about a job which one is later: see `names.FENCE`."""

from __future__ import annotations

from typing import Any


def next_fence(connection: Any, above: int = 0) -> int:
    """A number above `above`, and by the server's clock (microseconds since 1970) above all earlier ones.

    The clock decides where the number before is lost, as when a job is queued anew after Redis was emptied.
    """
    seconds, microseconds = (int(part) for part in connection.time())
    return max(above + 1, seconds * 1_000_000 + microseconds)
