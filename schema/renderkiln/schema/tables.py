"""The ledger's tables: batches, jobs, attempts, images and workers, with what each took; and what suits this machine.

Workers, jobs, attempts and images are what a worker's ledger tells the hub. A row's `revision` is the number of the
change that wrote it last, counted within one ledger: what was not told yet is what has a higher one (`home/outbox`).

Times are UTC, stored without an offset; those of memory samples, of which there are many, are seconds since 1970.
Digests and ids are hex text. A job's row is written by the worker that takes the job, an image's row after its file is
in the store; `(job_id, k)` being unique is what makes a recorded effect happen once.
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
    revision: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0", index=True)


class LedgerAboutRow(Base):
    """One row: which ledger this is, and how many changes it has seen."""

    __tablename__ = "ledger_about"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)


class ProjectionRow(Base):
    """How far a hub has read one source: of a worker's ledger its revision, of a stream the id of an entry."""

    __tablename__ = "projections"

    source: Mapped[str] = mapped_column(String(300), primary_key=True)
    position: Mapped[str] = mapped_column(String(40))


class TuningRow(Base):
    """The form in which a converted model was measured to be rendered best on this machine."""

    __tablename__ = "tunings"

    model: Mapped[str] = mapped_column(String(200), primary_key=True)
    variant: Mapped[str] = mapped_column(String(40))
    compute_unit: Mapped[str] = mapped_column(String(40))
    #: What was measured of each form.
    measured: Mapped[dict[str, Any]]
    measured_at: Mapped[datetime]


class TighteningRow(Base):
    """What a model is made to do with less memory on this machine, since memory ran out."""

    __tablename__ = "tightenings"

    model: Mapped[str] = mapped_column(String(200), primary_key=True)
    #: From 1, the mildest, to 3.
    step: Mapped[int]
    why: Mapped[str]
    #: The memory settings under which it was learned, such as `auto 6000000000`: under others it says nothing.
    settings: Mapped[str] = mapped_column(String(80))
    tightened_at: Mapped[datetime]


class StageCostRow(Base):
    """What a stage of a model was measured to take on this machine."""

    __tablename__ = "stage_costs"

    model: Mapped[str] = mapped_column(String(200), primary_key=True)
    #: What runs it, such as `torch bfloat16 cpu` or `split-einsum cpu_and_ne`.
    form: Mapped[str] = mapped_column(String(80), primary_key=True)
    stage: Mapped[str] = mapped_column(String(80), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    #: The most that it took beside its weights while it was at work.
    working_bytes: Mapped[int] = mapped_column(BigInteger)
    #: Pixels (width × height) of the largest image that this was seen at.
    pixels: Mapped[int]
    load_seconds: Mapped[float]
    measured_at: Mapped[datetime]


class MemorySampleRow(Base):
    """What was in memory at one moment while a worker was up."""

    __tablename__ = "memory_samples"
    __table_args__ = (Index("ix_memory_samples_worker_at", "worker", "at"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    worker: Mapped[str] = mapped_column(String(200))
    #: Seconds since 1970.
    at: Mapped[float]
    #: Of the renderer.
    process_bytes: Mapped[int] = mapped_column(BigInteger)
    #: Of the machine.
    available_bytes: Mapped[int] = mapped_column(BigInteger)
    #: Of the renderer, as the settings have it; None where none is heeded, or none was written down.
    budget_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: How the system feels: calm, warn or critical.
    level: Mapped[str] = mapped_column(String(10))
    #: Stages in memory then, each as [model, stage, size in bytes].
    stages: Mapped[list[Any]] = mapped_column(JSON)
    #: What was done then, in plain words, such as `tightened: one stage at a time`.
    event: Mapped[str | None]


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
    #: Of the claim, or of the queueing, that brought the job to this status: among several words about a job the one
    #: with the highest fence holds (`schema/records`).
    fence: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    revision: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0", index=True)


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
    #: The most memory that the renderer had meanwhile; None where it was not measured.
    peak_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: Stages that were loaded meanwhile, and stages that were dropped to make room.
    loads: Mapped[int | None]
    evictions: Mapped[int | None]
    #: The end of what supervisor and renderer logged meanwhile, where it failed.
    log: Mapped[str | None]
    revision: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0", index=True)


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
    #: What its maker had to say of it, in sentences.
    notes: Mapped[list[Any]] = mapped_column(JSON, default=list, server_default="[]")
    #: The attempt that rendered it; None where the picture of an earlier job was found to be the same.
    execution_id: Mapped[str | None] = mapped_column(ForeignKey("attempts.execution_id"))
    recorded_at: Mapped[datetime]
    revision: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0", index=True)
