"""The ledger of one machine: opening it (migrations, WAL, foreign keys) and what is asked of it and told to it.

Writers are workers; readers are the command line and a resumed job. SQLAlchemy is imported with this module, so import
it only where a ledger is really used.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util.exc import CommandError
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from renderkiln.schema.errors import LedgerError
from renderkiln.schema.jobs import Attempt, Failure, ImageResult, Job, JobResult, JobStatus
from renderkiln.schema.tables import AttemptRow, BatchRow, ImageRow, JobRow, LedgerAboutRow, TuningRow, WorkerRow

from . import ledger_changes as changes
from .room import is_full

#: Milliseconds to wait for another process's write before giving up.
BUSY_TIMEOUT = 30_000


class Ledger:
    """An open ledger. Cheap to keep, safe to use from several processes; not shared between threads.

    What it is told of workers, jobs, attempts and images is numbered, change by change, for the hub (`outbox`).

    Args:
        strict: refuses a row whose parent is missing. A hub's is not: what it hears comes in any order.

    Raises:
        LedgerError: on opening, where the file is not a ledger, is newer than this version, or cannot be written; on
            any call, where the database fails.
    """

    def __init__(self, path: Path, *, strict: bool = True) -> None:
        self.path = path
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            poolclass=sa.pool.StaticPool,
            connect_args={"timeout": BUSY_TIMEOUT / 1000},
        )
        sa.event.listen(self._engine, "connect", partial(_set_pragmas, foreign_keys="ON" if strict else "OFF"))
        sa.event.listen(self._engine, "begin", _begin_immediate)
        try:
            with self._engine.begin() as connection:
                _migrate(connection)
        except CommandError as error:
            self.close()
            raise LedgerError(f"ledger {path} was written by another version of renderkiln: {error}") from None
        except DatabaseError as error:
            self.close()
            raise LedgerError(
                f"ledger {path} cannot be opened: {error.orig}. Is the disk full, or the file damaged?"
            ) from None

    def close(self) -> None:
        self._engine.dispose()

    def wait_at_most(self, seconds: float) -> None:
        """How long a call waits for another process's write: less for who has heartbeats to send meanwhile."""
        with self.reading() as session:
            session.connection().exec_driver_sql(f"PRAGMA busy_timeout={int(seconds * 1000)}")

    def check(self) -> None:
        """Writes something that changes nothing. Raises LedgerError where that does not work."""
        with self.writing() as session:
            session.execute(sa.update(LedgerAboutRow).values(revision=LedgerAboutRow.revision))

    # What workers tell it.

    def worker_started(self, name: str, host: str, pid: int, about: Mapping[str, Any]) -> None:
        with self._change() as (connection, revision):
            row = {"name": name, "host": host, "pid": pid, "about": dict(about)}
            row |= {"started_at": utc_now(), "ended_at": None, "revision": revision}
            connection.execute(changes.WORKER_STARTED, row)

    def worker_ended(self, name: str) -> None:
        with self._change() as (connection, revision):
            connection.execute(
                changes.WORKER_ENDED, {"of_name": name, "new_ended_at": utc_now(), "new_revision": revision}
            )

    def tuned(self, model: str, variant: str, compute_unit: str, measured: Mapping[str, Any]) -> None:
        """Keeps the form in which a model is rendered best here; replaces what was kept of it before."""
        values = {
            "model": model,
            "variant": variant,
            "compute_unit": compute_unit,
            "measured": dict(measured),
            "measured_at": utc_now(),
        }
        with self.writing() as session:
            session.execute(
                insert(TuningRow).values(values).on_conflict_do_update(index_elements=["model"], set_=values)
            )

    def forget_tuning(self, model: str) -> bool:
        """Forgets what `tuned` kept of a model; whether there was something."""
        with self.writing() as session:
            gone: Any = session.execute(sa.delete(TuningRow).where(TuningRow.model == model))
            return bool(gone.rowcount)

    def attempt_started(self, job: Job, execution_id: str, number: int, worker: str, fence: int = 0) -> None:
        """Records the attempt, and the job if it is new here; an attempt that a crash left open becomes abandoned.

        Args:
            fence: the claim's, higher than that of any claim of this job before.
        """
        now = utc_now()
        row = {
            **changes.columns_of(job),
            "status": JobStatus.STARTED.value,
            "first_seen": now,
            "fence": fence,
            **dict.fromkeys(("failure_kind", "failure_message", "ended_at")),
        }
        attempt = {"execution_id": execution_id, "job_id": job.id, "number": number, "worker": worker}
        with self._change() as (connection, revision):
            connection.execute(changes.BATCH_SEEN, {"id": job.batch, "first_seen": now})
            connection.execute(changes.JOB_STARTED, row | {"revision": revision})
            connection.execute(changes.ABANDONED, {"of_job": job.id, "new_ended_at": now, "new_revision": revision})
            connection.execute(changes.ATTEMPT_STARTED, attempt | {"started_at": now, "revision": revision})

    def image_recorded(self, job_id: str, image: ImageResult, execution_id: str | None) -> None:
        """Records a picture whose file is in the store. Saying it twice changes nothing."""
        row = image.model_dump() | {"job_id": job_id, "execution_id": execution_id, "recorded_at": utc_now()}
        with self._change() as (connection, revision):
            connection.execute(changes.IMAGE_RECORDED, row | {"revision": revision})

    def attempt_ended(
        self,
        job_id: str,
        execution_id: str,
        outcome: str,
        *,
        status: JobStatus,
        failure: Failure | None = None,
        timings: Mapping[str, float] | None = None,
        memory: Mapping[str, int] | None = None,
        log: str = "",
    ) -> None:
        """Closes an attempt and sets its job's status (`QUEUED` where the job goes back to its queue).

        Changes nothing where the attempt is closed already: another one has begun since, and the job is its.

        Args:
            timings: `load_seconds`, `render_seconds` and `write_seconds`, as far as they are known.
            memory: `peak_bytes`, `loads` and `evictions`, as far as they are known.
            log: the end of what was logged meanwhile, where it failed.
        """
        now = utc_now()
        failed = {
            "failure_kind": failure.kind if failure else None,
            "failure_message": failure.message if failure else None,
        }
        with self._change() as (connection, revision):
            known = {**(timings or {}), **(memory or {}), "log": log or None}
            ended = changes.end_of_attempt(ended_at=now, outcome=outcome, revision=revision, **failed, **known)
            closed = connection.execute(changes.ATTEMPT_ENDED, ended | {"of_execution": execution_id})
            if not closed.rowcount:
                return
            values = {"status": status.value, "ended_at": now if status.is_final else None, "revision": revision}
            job = {f"new_{name}": value for name, value in (values | failed).items()}
            connection.execute(changes.JOB_ENDED, job | {"of_job": job_id})

    # What is asked of it.

    def tuned_form(self, model: str) -> tuple[str, str] | None:
        """The variant and the compute unit that a model is rendered best with here, if that was measured."""
        with self.reading() as session:
            row = session.get(TuningRow, model)
            return None if row is None else (row.variant, row.compute_unit)

    def images_of(self, job_id: str) -> list[ImageResult]:
        """The recorded pictures of a job, in order."""
        with self.reading() as session:
            rows = session.scalars(sa.select(ImageRow).where(ImageRow.job_id == job_id).order_by(ImageRow.k))
            return [_image(row) for row in rows]

    def images_by_digest(self, digests: Sequence[str]) -> dict[str, list[ImageResult]]:
        """Recorded pictures, of whichever job, whose own spec has one of these digests."""
        found: dict[str, list[ImageResult]] = {}
        with self.reading() as session:
            for part in _chunks(digests, 500):
                for row in session.scalars(sa.select(ImageRow).where(ImageRow.digest.in_(part))):
                    found.setdefault(row.digest, []).append(_image(row))
        return found

    def result(self, job_id: str) -> JobResult | None:
        """What is known of a job, or None."""
        with self.reading() as session:
            row = session.get(JobRow, job_id)
            return None if row is None else _result(session, row)

    def attempts_of(self, job_id: str) -> list[Attempt]:
        """The attempts at a job that were made on this machine, in order."""
        with self.reading() as session:
            rows = session.scalars(
                sa.select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.started_at)
            )
            return [_attempt(row) for row in rows]

    def batch_results(self, batch_id: str) -> Iterator[JobResult]:
        """The jobs of a batch that a worker has taken, by their index."""
        with self.reading() as session:
            rows = session.scalars(sa.select(JobRow).where(JobRow.batch_id == batch_id).order_by(JobRow.index))
            # All at once: a look that stays open would be in the way of the next call.
            return iter([_result(session, row) for row in rows.all()])

    def counts(self) -> dict[str, int]:
        """Rows of each table and jobs of each status: for whoever looks after a ledger, and for tests."""
        with self.reading() as session:
            found = {
                table.__tablename__: session.scalar(sa.select(sa.func.count()).select_from(table)) or 0
                for table in (BatchRow, JobRow, AttemptRow, ImageRow, WorkerRow)
            }
            by_status = session.execute(sa.select(JobRow.status, sa.func.count()).group_by(JobRow.status))
            return found | {f"jobs {status}": count for status, count in by_status}

    # For whoever keeps something else in it, or tells of it (`memory_records`, `outbox`).

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in one transaction, committed at its end and rolled back on any error. Raises LedgerError."""
        with self._bound_to(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that takes no write lock, so that a long look does not hold up a worker. Raises LedgerError."""
        with self._bound_to(self._engine.execution_options(reading=True)) as session:
            yield session

    @contextmanager
    def _bound_to(self, engine: sa.Engine) -> Iterator[Session]:
        with self._explaining(), Session(engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _change(self) -> Iterator[tuple[sa.Connection, int]]:
        """One transaction, and its number; others see both or neither."""
        with self._explaining(), self._engine.begin() as connection:
            yield connection, connection.execute(changes.COUNT).scalar_one()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise self._explained(error) from error

    def _explained(self, error: DatabaseError) -> LedgerError:
        if is_full(error.orig, self.path.parent):
            return LedgerError(f"ledger {self.path}: its disk is full; make room ({error.orig}).", is_full=True)
        return LedgerError(f"ledger {self.path}: {error.orig}. Is the disk read-only, or the file damaged?")


def _set_pragmas(connection: Any, _: Any, *, foreign_keys: str) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT}")
    for tries_left in reversed(range(200)):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:  # two that open a new ledger at once: this does not wait its turn by itself
            if not tries_left:
                raise
            time.sleep(0.02)
    # What Redis and the hub are told must outlive a power cut here, and NORMAL could lose the last transactions.
    for pragma in (f"foreign_keys={foreign_keys}", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
    # pysqlite's own transaction handling would begin late and deferred; `_begin_immediate` does it instead.
    connection.isolation_level = None


def _begin_immediate(connection: sa.Connection) -> None:
    # A transaction that reads and then writes would otherwise fail at once when another process writes in between.
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    with resources.as_file(resources.files("renderkiln.schema") / "migrations") as scripts:
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        config.attributes["connection"] = connection
        from alembic.script import ScriptDirectory

        script = ScriptDirectory.from_config(config)
        current = MigrationContext.configure(connection).get_current_revision()
        if current != script.get_current_head():
            command.upgrade(config, "head")


def utc_now() -> datetime:
    """Now, as the ledger has its times: in UTC, without an offset."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


def _chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _image(row: ImageRow) -> ImageResult:
    return ImageResult(**{name: getattr(row, name) for name in ImageResult.model_fields})


def _attempt(row: AttemptRow) -> Attempt:
    failure = Failure(kind=row.failure_kind, message=row.failure_message or "") if row.failure_kind else None
    return Attempt.model_validate(
        {
            "execution_id": row.execution_id,
            "job_id": row.job_id,
            "number": row.number,
            "worker": row.worker,
            "started_at": row.started_at.replace(tzinfo=timezone.utc),
            "ended_at": row.ended_at and row.ended_at.replace(tzinfo=timezone.utc),
            "outcome": row.outcome,
            "failure": failure,
            "log": row.log or "",
            **{name: getattr(row, name) for name in ("peak_bytes", "loads", "load_seconds", "evictions")},
        }
    )


def _result(session: Session, row: JobRow) -> JobResult:
    images = session.scalars(sa.select(ImageRow).where(ImageRow.job_id == row.id).order_by(ImageRow.k))
    last = session.scalars(
        sa.select(AttemptRow).where(AttemptRow.job_id == row.id).order_by(AttemptRow.started_at.desc()).limit(1)
    ).first()
    worker = session.get(WorkerRow, last.worker) if last else None
    return JobResult(
        job_id=row.id,
        batch=row.batch_id,
        status=JobStatus(row.status),
        images=tuple(_image(image) for image in images),
        failure=Failure(kind=row.failure_kind, message=row.failure_message or "") if row.failure_kind else None,
        worker=last.worker if last else "",
        host=worker.host if worker else "",
        attempt=last.number if last else 0,
        seconds=(last.ended_at - last.started_at).total_seconds() if last and last.ended_at else 0.0,
    )
