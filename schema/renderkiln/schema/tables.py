"""The ledger's tables: batches, jobs, attempts, images and workers, with what each took; and what suits this machine.

Times are UTC, stored without an offset. Digests and ids are hex text. A job's row is written by the worker that takes
the job, an image's row after its file is in the store; `(job_id, k)` being unique is what makes a recorded effect
happen once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, ForeignKey, Index, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, datetime: DateTime(timezone=False)}  # noqa: RUF012 - SQLAlchemy's form


class BatchRow(Base):
    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    first_seen: Mapped[datetime]


class WorkerRow(Base):
    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    #: engine, device, dtype, versions
    about: Mapped[dict[str, Any]]


class TuningRow(Base):
    """The form in which a converted model was measured to be rendered best on this machine."""

    __tablename__ = "tunings"

    model: Mapped[str] = mapped_column(String(200), primary_key=True)
    variant: Mapped[str] = mapped_column(String(40))
    compute_unit: Mapped[str] = mapped_column(String(40))
    #: What was measured of each form.
    measured: Mapped[dict[str, Any]]
    measured_at: Mapped[datetime]


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_batch", "batch_id", "index"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"))
    index: Mapped[int]
    spec_digest: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(200))
    prompt: Mapped[str]
    num_images: Mapped[int]
    #: The whole job as it was queued.
    job: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(16), index=True)
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    failure_message: Mapped[str | None]
    first_seen: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class AttemptRow(Base):
    __tablename__ = "attempts"

    execution_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    number: Mapped[int]
    worker: Mapped[str] = mapped_column(ForeignKey("workers.name"))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    #: finished, failed, canceled, returned (given back), abandoned; None while it runs.
    outcome: Mapped[str | None] = mapped_column(String(16))
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    failure_message: Mapped[str | None]
    #: Seconds spent in loading stages, rendering, and encoding and writing files.
    load_seconds: Mapped[float | None]
    render_seconds: Mapped[float | None]
    write_seconds: Mapped[float | None]


class ImageRow(Base):
    __tablename__ = "images"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    k: Mapped[int] = mapped_column(primary_key=True)
    index: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    url: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    seconds: Mapped[float]
    #: The attempt that rendered it; None where the picture of an earlier job was found to be the same.
    execution_id: Mapped[str | None] = mapped_column(ForeignKey("attempts.execution_id"))
    recorded_at: Mapped[datetime]
