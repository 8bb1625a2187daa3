"""Small files in which Linux tells numbers, below /proc and /sys. What is missing or senseless counts as not told."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

#: Of a 64-bit number. Python itself refuses to read numbers of thousands of digits.
_MOST_DIGITS = 20


class Stall(NamedTuple):
    """Pressure stall information: percent of the last ten seconds in which processes waited for memory."""

    #: In which at least one waited; None where the kernel does not tell.
    some: float | None
    #: In which all that had something to do waited.
    full: float | None


def read(path: Path) -> str:
    """What is in a file; empty where it cannot be read."""
    try:
        return os.fsdecode(path.read_bytes())
    except (OSError, ValueError):  # ValueError: a path with a NUL, out of another file's garbage
        return ""


def whole(text: str) -> int | None:
    """A count; None for anything else, such as `max`."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def counts(text: str) -> dict[str, int]:
    """Lines such as `MemTotal:  123 kB` (in bytes then) and `inactive_file 123`, by name; other lines are left out."""
    found = {}
    for line in text.splitlines():
        name, *rest = line.split() or [""]
        value = whole(rest[0]) if len(rest) == 1 or (len(rest) == 2 and rest[1] == "kB") else None
        if value is not None:
            found[name.rstrip(":")] = value * 1024 ** (len(rest) - 1)
    return found


def stall(text: str) -> Stall:
    """Lines `some avg10=0.00 avg60=…` and `full avg10=…`, as the kernel's accounting/psi.rst has them."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        kind, *averages = line.split() or [""]
        value = _percent(averages[0].removeprefix("avg10=")) if averages else None
        if value is not None:
            found[kind] = value
    return Stall(found.get("some"), found.get("full"))


def _percent(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 100 else None
