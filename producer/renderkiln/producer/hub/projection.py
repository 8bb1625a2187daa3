"""Writing what other ledgers tell into the hub's own: the same in whichever order it comes, and however often.

`schema/records` says which of two versions of a row holds; here that is SQL. Every statement either takes a row over
whole or leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from renderkiln.home.ledger import Ledger
from renderkiln.home.ledger_changes import columns_of
from renderkiln.schema.records import (
    STATUS_RANKS,
    AttemptRecord,
    ImageRecord,
    JobRecord,
    Record,
    Shipment,
    WorkerRecord,
)
from renderkiln.schema.tables import AttemptRow, BatchRow, ImageRow, JobRow, ProjectionRow, WorkerRow

#: By what is told which of two versions of a row is newer: the first of these in which they differ.
_ORDER: dict[type[Record], tuple[str, ...]] = {
    WorkerRecord: ("started_at", "host", "revision"),
    JobRecord: ("fence", "status", "ended_at", "failure_message", "revision"),
    AttemptRecord: ("revision",),
    ImageRecord: ("recorded_at", "url", "sha256", "revision"),
}
_RANK = {status.value: rank for status, rank in STATUS_RANKS.items()}


def project(ledger: Ledger, shipments: Iterable[Shipment]) -> dict[str, int]:
    """Takes shipments over in one transaction.

    Returns:
        How far each of their ledgers has been read without a gap. One that sent something after a gap has to send
        from there again; what it sent is taken over all the same.
    """
    with ledger.writing() as session:
        read: dict[str, int] = {}
        for shipment in shipments:
            for record in shipment.records:
                take_over(session, record)
            before = read.get(shipment.ledger)
            if before is None:
                before = int(position_of(session, shipment.ledger) or 0)
            read[shipment.ledger] = max(before, shipment.upto) if shipment.after <= before else before
        for source, revision in read.items():
            set_position(session, source, str(revision))
        return read


def take_over(session: Session, record: Record) -> None:
    """Takes over one row, if it is newer than what is there."""
    values = record.model_dump(exclude={"table"})
    if isinstance(record, JobRecord):
        _batch(session, record)
        values |= columns_of(record.job) | {"batch_id": record.batch_id, "status": record.status.value}
        _newer(session, JobRow, record, values, ["id"])
        earlier = sa.and_(JobRow.id == record.job.id, JobRow.first_seen > record.first_seen)
        session.execute(sa.update(JobRow).where(earlier).values(first_seen=record.first_seen))
    elif isinstance(record, AttemptRecord):
        _newer(session, AttemptRow, record, values, ["execution_id"])
    elif isinstance(record, ImageRecord):
        _newer(session, ImageRow, record, values, ["job_id", "k"])
    else:
        _newer(session, WorkerRow, record, values, ["name"])


def position_of(session: Session, source: str) -> str | None:
    """How far a source has been read; None where it never was."""
    row = session.get(ProjectionRow, source)
    return None if row is None else row.position


def positions(session: Session) -> list[tuple[str, str]]:
    """All sources, with how far each has been read."""
    return [(row.source, row.position) for row in session.scalars(sa.select(ProjectionRow))]


def set_position(session: Session, source: str, position: str) -> None:
    session.merge(ProjectionRow(source=source, position=position))


def _batch(session: Session, record: JobRecord) -> None:
    """The job's batch, first seen when the first of its jobs was."""
    statement = insert(BatchRow).values(id=record.batch_id, first_seen=record.first_seen)
    new = statement.excluded
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["id"],
            set_={"first_seen": new.first_seen},
            where=BatchRow.first_seen > new.first_seen,
        )
    )


def _newer(session: Session, table: Any, record: Record, values: dict[str, Any], key: list[str]) -> None:
    """Writes a row where there is none of its key, or an older one."""
    statement = insert(table).values(values)
    new = statement.excluded
    order = _ORDER[type(record)]
    session.execute(
        statement.on_conflict_do_update(
            index_elements=key,
            set_={name: new[name] for name in values if name not in (*key, "first_seen")},
            where=_comparable(new, order) > _comparable(table.__table__.c, order),
        )
    )


def _comparable(columns: Any, names: tuple[str, ...]) -> Any:
    """The columns as SQL compares them one after the other; a time or a text that is missing is the least."""
    return sa.tuple_(*(_status_rank(columns[name]) if name == "status" else _present(columns[name]) for name in names))


def _present(column: Any) -> Any:
    if not column.nullable:
        return column
    # As text, which is how SQLite keeps times: a datetime to fall back on would be read and written by the dialect.
    return sa.func.coalesce(sa.cast(column, sa.Text), "")


def _status_rank(column: Any) -> Any:
    return sa.case(_RANK, value=column, else_=-1)
