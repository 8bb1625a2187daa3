"""What the ledger knows of memory: what stages take, what is in it over time, and which model makes do with less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from renderkiln.schema.tables import AttemptRow, MemorySampleRow, StageCostRow, TighteningRow

from .ledger import Ledger, utc_now


@dataclass(frozen=True)
class StageCost:
    """What a stage was measured to take on this machine."""

    size_bytes: int
    #: The most that it took beside its weights while it was at work, and on how many pixels (width × height) that was.
    working_bytes: int
    pixels: int
    load_seconds: float


class Tightening(NamedTuple):
    """How far a model was tightened."""

    #: 1 to 3.
    step: int
    why: str
    #: The memory settings under which it was learned.
    settings: str


@dataclass(frozen=True)
class MemorySample:
    """What was in memory at one moment."""

    #: Seconds since 1970.
    at: float
    #: The renderer's.
    process_bytes: int
    #: The machine's.
    available_bytes: int
    #: calm, warn or critical.
    level: str
    #: Stages in memory then: model, stage, size in bytes.
    stages: tuple[tuple[str, str, int], ...] = ()
    #: What was done then, in plain words.
    event: str | None = None
    #: What the renderer may take; None where it heeds no budget.
    budget_bytes: int | None = None


@dataclass(frozen=True)
class AttemptMemory:
    """An attempt at a job, and what it took of memory; None where that was not measured."""

    job_id: str
    #: Seconds since 1970; the end is None while it runs.
    started_at: float
    ended_at: float | None
    outcome: str | None
    failure_kind: str | None
    load_seconds: float | None
    peak_bytes: int | None
    loads: int | None
    evictions: int | None


class MemoryRecords:
    """What is told to a ledger about memory, and asked of it. Every call may raise LedgerError."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    # Models that make do with less.

    def tightened(self, model: str, step: int, why: str, settings: str) -> None:
        """Keeps how far a model was tightened (1 to 3), and under which settings; replaces what was kept before."""
        values = {"model": model, "step": step, "why": why, "settings": settings, "tightened_at": utc_now()}
        statement = insert(TighteningRow).values(values)
        with self._ledger.writing() as session:
            session.execute(statement.on_conflict_do_update(index_elements=["model"], set_=values))

    def tightening(self, model: str, settings: str) -> tuple[int, str] | None:
        """The step and why, if the model was tightened under the same settings."""
        found = self.kept_tightening(model)
        return None if found is None or found.settings != settings else (found.step, found.why)

    def kept_tightening(self, model: str) -> Tightening | None:
        """What `tightened` kept of a model, under whichever settings."""
        with self._ledger.reading() as session:
            row = session.get(TighteningRow, model)
            return None if row is None else Tightening(row.step, row.why, row.settings)

    def forget_tightening(self, model: str) -> bool:
        """Forgets what `tightened` kept of a model; whether there was something."""
        with self._ledger.writing() as session:
            gone: Any = session.execute(sa.delete(TighteningRow).where(TighteningRow.model == model))
            return bool(gone.rowcount)

    # What stages take.

    def stage_measured(
        self,
        model: str,
        form: str,
        stage: str,
        *,
        size_bytes: int,
        working_bytes: int,
        pixels: int,
        load_seconds: float,
    ) -> None:
        """Keeps what a stage took: the latest size and load time, and the most working memory with its pixels.

        Where two measurements had the same working memory, the pixels are those of the larger image.
        """
        row = StageCostRow
        values = {
            "model": model,
            "form": form,
            "stage": stage,
            "size_bytes": size_bytes,
            "working_bytes": working_bytes,
            "pixels": pixels,
            "load_seconds": load_seconds,
            "measured_at": utc_now(),
        }
        statement = insert(row).values(values)
        new = statement.excluded
        changed = {name: new[name] for name in ("size_bytes", "load_seconds", "measured_at")} | {
            "working_bytes": sa.func.max(row.working_bytes, new.working_bytes),
            "pixels": sa.case(
                (new.working_bytes > row.working_bytes, new.pixels),
                (new.working_bytes == row.working_bytes, sa.func.max(row.pixels, new.pixels)),
                else_=row.pixels,
            ),
        }
        with self._ledger.writing() as session:
            session.execute(statement.on_conflict_do_update(index_elements=["model", "form", "stage"], set_=changed))

    def stage_costs(self, model: str, form: str) -> dict[str, StageCost]:
        """What was measured of a model in this form, by stage."""
        wanted = sa.select(StageCostRow).where(StageCostRow.model == model, StageCostRow.form == form)
        with self._ledger.reading() as session:
            return {
                row.stage: StageCost(row.size_bytes, row.working_bytes, row.pixels, row.load_seconds)
                for row in session.scalars(wanted.order_by(StageCostRow.stage))
            }

    def forms(self, model: str) -> list[str]:
        """The forms in which something of a model was measured, by name."""
        wanted = sa.select(StageCostRow.form).where(StageCostRow.model == model).distinct()
        with self._ledger.reading() as session:
            return list(session.scalars(wanted.order_by(StageCostRow.form)))

    # Memory over time.

    def add_samples(self, worker: str, samples: Sequence[MemorySample]) -> None:
        """Keeps samples of a worker: all of them or, where that fails, none."""
        rows = [
            {
                "worker": worker,
                "at": sample.at,
                "process_bytes": sample.process_bytes,
                "available_bytes": sample.available_bytes,
                "level": sample.level,
                "stages": [list(stage) for stage in sample.stages],
                "event": sample.event,
                "budget_bytes": sample.budget_bytes,
            }
            for sample in samples
        ]
        if not rows:  # an INSERT of no rows would be one of an empty row
            return
        with self._ledger.writing() as session:
            session.execute(sa.insert(MemorySampleRow), rows)

    def samples(
        self, worker: str | None = None, since: float | None = None, until: float | None = None
    ) -> list[MemorySample]:
        """Samples of a worker, or of all, from `since` to `until` (both included), in the order of their time."""
        row = MemorySampleRow
        columns = (row.at, row.process_bytes, row.available_bytes, row.level, row.stages, row.event, row.budget_bytes)
        wanted = sa.select(*columns)
        if worker is not None:
            wanted = wanted.where(row.worker == worker)
        if since is not None:
            wanted = wanted.where(row.at >= since)
        if until is not None:
            wanted = wanted.where(row.at <= until)
        with self._ledger.reading() as session:
            return [
                MemorySample(
                    at, process, available, level, tuple((str(m), str(s), int(b)) for m, s, b in stages), event, budget
                )
                for at, process, available, level, stages, event, budget in session.execute(
                    wanted.order_by(row.at, row.id)
                )
            ]

    def sampled_workers(self) -> list[tuple[str, float, float]]:
        """The workers of which there are samples, with the times of their first and last; the latest first."""
        row = MemorySampleRow
        last = sa.func.max(row.at)
        wanted = sa.select(row.worker, sa.func.min(row.at), last).group_by(row.worker).order_by(last.desc(), row.worker)
        with self._ledger.reading() as session:
            return [(name, first_at, last_at) for name, first_at, last_at in session.execute(wanted)]

    def drop_samples(self, before: float) -> int:
        """Forgets the samples before a time (seconds since 1970); how many there were."""
        with self._ledger.writing() as session:
            gone: Any = session.execute(sa.delete(MemorySampleRow).where(MemorySampleRow.at < before))
            return int(gone.rowcount)

    def attempts(self, worker: str, since: float, until: float) -> list[AttemptMemory]:
        """The attempts of a worker that ran, at least in part, between two times; the earliest first."""
        row = AttemptRow
        wanted = sa.select(row).where(
            row.worker == worker,
            row.started_at <= _as_datetime(until),
            sa.or_(row.ended_at.is_(None), row.ended_at >= _as_datetime(since)),
        )
        with self._ledger.reading() as session:
            return [
                AttemptMemory(
                    job_id=found.job_id,
                    started_at=_as_seconds(found.started_at),
                    ended_at=None if found.ended_at is None else _as_seconds(found.ended_at),
                    outcome=found.outcome,
                    failure_kind=found.failure_kind,
                    load_seconds=found.load_seconds,
                    peak_bytes=found.peak_bytes,
                    loads=found.loads,
                    evictions=found.evictions,
                )
                for found in session.scalars(wanted.order_by(row.started_at, row.execution_id))
            ]


def _as_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None)


def _as_seconds(when: datetime) -> float:
    return when.replace(tzinfo=timezone.utc).timestamp()
