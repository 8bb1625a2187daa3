"""What every benchmark prints: the machine, medians with their spread, and ratios."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence


def machine() -> str:
    """The machine in words that tell it apart and name nobody."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    return f"{system}, Python {platform.python_version()}"


def spread(values: Sequence[float], unit: str = "s", digits: int = 3) -> str:
    """Median, with the smallest and the largest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f} … {high:.{digits}f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median of the ratios, pair by pair: rounds run in turn, so a slow minute of the machine hits both."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return spread(pairs, "×", 3)
