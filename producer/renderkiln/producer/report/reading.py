"""The memory of a worker over some time, as the ledger of this machine has it, and what there is to say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, tzinfo
from functools import cached_property
from statistics import median
from typing import Any

from renderkiln.home.folder import DataFolder
from renderkiln.home.memory_records import AttemptMemory, MemoryRecords, MemorySample
from renderkiln.schema.errors import NotFoundError, OutOfMemoryError, RendererDiedError, did_you_mean

from .spans import level_spans

#: Failures that memory has, or may have, to do with.
MEMORY_FAILURES = (OutOfMemoryError.kind, RendererDiedError.kind)


@dataclass(frozen=True)
class MemoryReport:
    """Samples of one worker, at least one, by their time; and the attempts that ran between the first and the last."""

    worker: str
    samples: Sequence[MemorySample]
    attempts: Sequence[AttemptMemory]

    @property
    def since(self) -> float:
        """Of the first sample; seconds since 1970."""
        return self.samples[0].at

    @property
    def until(self) -> float:
        """Of the last sample; seconds since 1970."""
        return self.samples[-1].at

    @cached_property
    def events(self) -> list[tuple[float, str]]:
        """What was done, and when."""
        return [(sample.at, sample.event) for sample in self.samples if sample.event]

    @cached_property
    def failures(self) -> list[AttemptMemory]:
        """The attempts that ended for want of memory, or with the renderer's death."""
        return [each for each in self.attempts if each.ended_at is not None and each.failure_kind in MEMORY_FAILURES]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Bytes, seconds and counts. What no attempt has measured is None."""
        spans = level_spans(self.samples)
        return {
            "samples": len(self.samples),
            "peak_bytes": max(sample.process_bytes for sample in self.samples),
            "median_bytes": round(median(sample.process_bytes for sample in self.samples)),
            "budget_bytes": self.samples[-1].budget_bytes,
            "lowest_available_bytes": min(sample.available_bytes for sample in self.samples),
            "warn_seconds": round(sum(span.end - span.start for span in spans if span.level == "warn"), 3),
            "critical_seconds": round(sum(span.end - span.start for span in spans if span.level == "critical"), 3),
            "attempts": len(self.attempts),
            "failures": {
                kind: sum(each.failure_kind == kind for each in self.failures) for kind in sorted(MEMORY_FAILURES)
            },
            "attempts_peak_bytes": max(
                (n for each in self.attempts if (n := each.peak_bytes) is not None), default=None
            ),
            "loads": _sum([each.loads for each in self.attempts]),
            "load_seconds": _sum([each.load_seconds for each in self.attempts]),
            "evictions": _sum([each.evictions for each in self.attempts]),
        }

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain data. Times are seconds since 1970."""
        return {
            "worker": self.worker,
            "since": self.since,
            "until": self.until,
            "summary": self.summary,
            "events": [{"at": at, "event": event} for at, event in self.events],
            "attempts": [asdict(attempt) for attempt in self.attempts],
            "samples": [
                asdict(sample)
                | {"stages": [{"model": m, "stage": s, "size_bytes": size} for m, s, size in sample.stages]}
                for sample in self.samples
            ],
        }


def read_report(folder: DataFolder, worker: str | None = None, since: float | None = None) -> MemoryReport:
    """Reads what the ledger has.

    Args:
        worker: the one with the latest sample unless told.
        since: seconds since 1970; from the first sample on unless told.

    Raises:
        NotFoundError: there are no samples: none at all, none of that worker, or none since then.
        LedgerError: the ledger cannot be read.
    """
    if not folder.ledger.is_file():
        raise _nothing(folder)
    from renderkiln.home.ledger import Ledger

    ledger = Ledger(folder.ledger)
    try:
        records = MemoryRecords(ledger)
        sampled = {name: (first_at, last_at) for name, first_at, last_at in records.sampled_workers()}
        if not sampled:
            raise _nothing(folder)
        name = next(iter(sampled)) if worker is None else worker
        if name not in sampled:
            raise NotFoundError(
                f"no memory was recorded of a worker {name!r}.{did_you_mean(name, sampled)} "
                f"There {'are' if len(sampled) > 1 else 'is'}: {', '.join(list(sampled)[:10])}."
            )
        samples = records.samples(name, since)
        if not samples:
            last = datetime.fromtimestamp(sampled[name][1]).strftime("%Y-%m-%dT%H:%M")
            raise NotFoundError(
                f"no memory was recorded of worker {name} since then: the last is of {last}. Try --since {last}."
            )
        return MemoryReport(name, samples, records.attempts(name, samples[0].at, samples[-1].at))
    finally:
        ledger.close()


def zone_at(at: float) -> tzinfo | None:
    """This machine's offset from UTC at a time, in seconds since 1970."""
    return datetime.fromtimestamp(at).astimezone().tzinfo


def time_span(since: float, until: float) -> str:
    """`2026-05-12 21:04 – 03:10` by this machine's clock, with the second date only where it is another.

    Of a few minutes, with seconds.
    """
    zone = zone_at(since)
    first, last = (datetime.fromtimestamp(at, zone) for at in (since, until))
    day, clock = "" if first.date() == last.date() else "%Y-%m-%d ", "%H:%M:%S" if until - since < 600 else "%H:%M"
    return f"{first.strftime(f'%Y-%m-%d {clock}')} – {last.strftime(day + clock)}"


def _nothing(folder: DataFolder) -> NotFoundError:
    return NotFoundError(
        f"no memory was recorded in {folder.root} yet: workers do that while they are up. Run `renderkiln worker`, "
        "or `renderkiln render` something, and ask again; another data folder is named with --data-dir."
    )


def _sum(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return round(sum(known), 6) if known else None
