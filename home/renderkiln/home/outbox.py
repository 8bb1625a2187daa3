"""What changed in a ledger, in the form in which another ledger can be told.

A ledger keeps no list of what is to be sent: each row knows the number of the change that wrote it last, and what a
reader has not had yet is what has a higher one. So nothing grows while nobody listens, a row that changed three times
is told once, and telling everything anew is starting from 0.
"""

from __future__ import annotations

import socket

import sqlalchemy as sa

from renderkiln.schema.records import AttemptRecord, ImageRecord, JobRecord, Record, Shipment, WorkerRecord
from renderkiln.schema.tables import AttemptRow, ImageRow, JobRow, LedgerAboutRow, WorkerRow

from .ledger import Ledger

#: Changes of a shipment. A change writes a few rows of some kilobytes.
CHANGES = 200

#: In an order in which no row comes before one that it refers to.
_TABLES: tuple[tuple[type[WorkerRow | JobRow | AttemptRow | ImageRow], type[Record]], ...] = (
    (WorkerRow, WorkerRecord),
    (JobRow, JobRecord),
    (AttemptRow, AttemptRecord),
    (ImageRow, ImageRecord),
)


def source_of(ledger: Ledger) -> str:
    """What a hub knows this ledger as. A data folder that was copied to another machine is another source."""
    with ledger.reading() as session:
        return _source(session.scalars(sa.select(LedgerAboutRow)).one())


def read_changes(ledger: Ledger, after: int, changes: int = CHANGES) -> Shipment | None:
    """The rows that changed after a revision, oldest first and at most of so many changes; None where there are none.

    Raises:
        LedgerError: it cannot be read.
    """
    with ledger.reading() as session:
        about = session.scalars(sa.select(LedgerAboutRow)).one()
        if about.revision <= after:
            return None
        upto = min(after + changes, about.revision)
        records: list[Record] = []
        for table, record in _TABLES:
            rows = sa.select(table).where(table.revision > after, table.revision <= upto).order_by(table.revision)
            records += [record.model_validate(row) for row in session.scalars(rows)]
        source = _source(about)
    return Shipment(ledger=source, after=after, upto=upto, records=tuple(records))


def _source(about: LedgerAboutRow) -> str:
    return f"{about.id}@{socket.gethostname()}"
