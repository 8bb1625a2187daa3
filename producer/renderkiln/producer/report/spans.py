"""Memory samples cut up for a picture: into stretches without gaps, levels, bands and few enough points. All pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from statistics import median

from renderkiln.home.memory_records import MemorySample

_LEVELS = ("calm", "warn", "critical")


@dataclass(frozen=True)
class Span:
    """From when to when (seconds since 1970) memory was at one level."""

    level: str
    start: float
    end: float


@dataclass(frozen=True)
class Band:
    """What one stage of one model had in memory at each of some samples, and what lies below it in the picture."""

    model: str
    stage: str
    #: In bytes.
    bottoms: Sequence[int]
    tops: Sequence[int]


def longest_pause(samples: Sequence[MemorySample]) -> float:
    """Seconds between two samples beyond which nobody looked: ten times what is usual, and a minute at least."""
    pauses = [later.at - earlier.at for earlier, later in pairwise(samples)]
    return max(60.0, 10 * median(pauses)) if pauses else 60.0


def stretches(samples: Sequence[MemorySample], pause: float) -> list[list[MemorySample]]:
    """Samples, ordered by time, parted wherever two are more than `pause` seconds apart."""
    found: list[list[MemorySample]] = []
    for sample in samples:
        if found and sample.at - found[-1][-1].at <= pause:
            found[-1].append(sample)
        else:
            found.append([sample])
    return found


def level_spans(samples: Sequence[MemorySample]) -> list[Span]:
    """The levels in turn. One lasts until the next sample; the last of a stretch without a gap ends it."""
    found = []
    for stretch in stretches(samples, longest_pause(samples)):
        groups = [(level, list(group)) for level, group in groupby(stretch, key=lambda sample: sample.level)]
        starts = [group[0].at for _, group in groups] + [stretch[-1].at]
        found += [Span(level, *starts[number : number + 2]) for number, (level, _) in enumerate(groups)]
    return found


def thinned(samples: Sequence[MemorySample], most: int) -> list[MemorySample]:
    """At most so many samples, evenly over time, such that no peak is lost.

    Of those that fall together, the one with the most memory stays, with the least that was available and the worst
    level of them all. Its event is not more than one of theirs: those are to be taken from all samples.
    """
    if len(samples) <= most:
        return list(samples)
    start, length = samples[0].at, samples[-1].at - samples[0].at

    def place(sample: MemorySample) -> int:
        return min(int((sample.at - start) / length * most), most - 1) if length else 0

    found = []
    for _, group in groupby(samples, key=place):
        together = list(group)
        found.append(
            replace(
                max(together, key=lambda sample: sample.process_bytes),
                available_bytes=min(sample.available_bytes for sample in together),
                level=max((sample.level for sample in together), key=_badness),
            )
        )
    return found


def bands(samples: Sequence[MemorySample], order: Sequence[str] = ()) -> list[Band]:
    """The stages stacked on each other, from the bottom: those in `order` first, others by name; by model in each."""
    places = {stage: number for number, stage in enumerate(order)}
    names = {(model, stage) for sample in samples for model, stage, _ in sample.stages}
    below = [0] * len(samples)
    found = []
    for model, stage in sorted(names, key=lambda name: (places.get(name[1], len(places)), name[1], name[0])):
        sizes = [sum(size for m, s, size in sample.stages if (m, s) == (model, stage)) for sample in samples]
        tops = [bottom + size for bottom, size in zip(below, sizes, strict=True)]
        found.append(Band(model, stage, below, tops))
        below = tops
    return found


def label_rows(places: Sequence[float], widths: Sequence[float], most: int) -> list[int | None]:
    """In which row, from 0 at the bottom, each of some labels goes, so that none touches another or another's line.

    A label begins at its place and runs to the right; its line comes up from below as far as its row. So it must lie
    above all labels that begin within its width. Labels for which there would be no row have None, and no line there.

    Args:
        places: where each label begins, in ascending order.
        widths: how wide each is, its distance to the next included; in the same unit.
        most: how many rows there may be.
    """
    rows: list[int | None] = [None] * len(places)
    for number in reversed(range(len(places))):
        end = bisect_right(places, places[number] + widths[number])
        row = 1 + max((below for each in rows[number + 1 : end] if (below := each) is not None), default=-1)
        rows[number] = row if row < most else None
    return rows


def _badness(level: str) -> int:
    return _LEVELS.index(level) if level in _LEVELS else 0
