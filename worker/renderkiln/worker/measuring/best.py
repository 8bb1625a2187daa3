"""Which of the measured forms is the best one."""

from __future__ import annotations

from collections.abc import Iterable

from .records import Measurement, Numbers

#: Latencies that are no further apart than this count as equal: the same form differs by about as much from run to run.
NEAR = 0.03


def best(measurements: Iterable[Measurement]) -> Measurement | None:
    """The fastest by median latency, or, of those within 3 % of it, the one that takes the least memory.

    What failed is never chosen; None if all did. The order of the measurements does not count.
    """
    fit = [(each, each.numbers) for each in measurements if each.numbers is not None]
    if not fit:
        return None
    fastest = min(numbers.latency_seconds for _, numbers in fit)
    near = [pair for pair in fit if pair[1].latency_seconds <= fastest * (1 + NEAR)]
    return min(near, key=_rank)[0]


def _rank(pair: tuple[Measurement, Numbers]) -> tuple[int, float, str]:
    measurement, numbers = pair
    return numbers.peak_bytes, numbers.latency_seconds, str(measurement.candidate)
