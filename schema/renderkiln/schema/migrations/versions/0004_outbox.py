"""The outbox: which ledger this is, the number of the change that wrote each row, and how far a hub has read."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_TOLD = ("workers", "jobs", "attempts", "images")


def upgrade() -> None:
    connection = op.get_bind()
    latest = 0
    for table in _TOLD:
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False))
            if table == "jobs":
                batch_op.add_column(sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False))
            batch_op.create_index(f"ix_{table}_revision", ["revision"], unique=False)
        # What is there already is told as well, in the order in which it came and not all at once.
        revised = sa.table(table, sa.column("revision"))
        connection.execute(sa.update(revised).values(revision=sa.literal_column("rowid")))
        latest = max(latest, connection.scalar(sa.select(sa.func.max(revised.c.revision))) or 0)
    about = op.create_table(
        "ledger_about",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(about, [{"id": uuid.uuid4().hex, "revision": latest}])
    op.create_table(
        "projections",
        sa.Column("source", sa.String(length=300), nullable=False),
        sa.Column("position", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("source"),
    )


def downgrade() -> None:
    op.drop_table("projections")
    op.drop_table("ledger_about")
    for table in _TOLD:
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_index(f"ix_{table}_revision")
            if table == "jobs":
                batch_op.drop_column("fence")
            batch_op.drop_column("revision")
