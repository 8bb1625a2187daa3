"""Which entries of the compile cache have to go: pure, so that it can be tried on any cache there could be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One compiled model in the cache."""

    #: Its folder's name.
    name: str
    #: The package that it was compiled of, as a path; may be gone by now.
    source: str
    #: The package's SHA-256.
    sha256: str
    compute_unit: str
    #: Of the system that compiled it.
    build: str
    size_bytes: int
    #: What compiling took.
    seconds: float
    #: When it was last loaded, in seconds since 1970.
    last_use: float
    #: Whether a process has it loaded right now.
    in_use: bool = False
    #: Whether files are missing, or not as long as they were.
    damaged: bool = False


def to_remove(
    entries: Sequence[Entry],
    *,
    build: str,
    now: float,
    older_seconds: float | None = None,
    max_bytes: int | None = None,
) -> list[Entry]:
    """The entries to remove, oldest use first; none that is in use.

    Damaged entries go, and those of other builds of the system, which nothing will load again; then those that were not
    used for longer than `older_seconds`; then, oldest use first, as many as it takes for all that stays to hold no
    more than `max_bytes`.
    """
    free = sorted((entry for entry in entries if not entry.in_use), key=lambda entry: (entry.last_use, entry.name))
    going = [
        entry
        for entry in free
        if entry.damaged or entry.build != build or (older_seconds is not None and now - entry.last_use > older_seconds)
    ]
    if max_bytes is not None:
        left = sum(entry.size_bytes for entry in entries) - sum(entry.size_bytes for entry in going)
        for entry in free:
            if left <= max_bytes:
                break
            if entry not in going:
                going.append(entry)
                left -= entry.size_bytes
    return sorted(going, key=lambda entry: (entry.last_use, entry.name))
