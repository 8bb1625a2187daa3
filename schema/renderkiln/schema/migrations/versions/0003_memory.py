"""Memory: what attempts and stages take, what is in memory over time, and what a model learned to do with less."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("peak_bytes", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("loads", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("evictions", sa.Integer(), nullable=True))

    op.create_table(
        "tightenings",
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("settings", sa.String(length=80), nullable=False),
        sa.Column("tightened_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("model"),
    )
    op.create_table(
        "stage_costs",
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("form", sa.String(length=80), nullable=False),
        sa.Column("stage", sa.String(length=80), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("working_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pixels", sa.Integer(), nullable=False),
        sa.Column("load_seconds", sa.Double(), nullable=False),
        sa.Column("measured_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("model", "form", "stage"),
    )
    op.create_table(
        "memory_samples",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("process_bytes", sa.BigInteger(), nullable=False),
        sa.Column("available_bytes", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.String(length=10), nullable=False),
        sa.Column("stages", sa.JSON(), nullable=False),
        sa.Column("event", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("memory_samples", schema=None) as batch_op:
        batch_op.create_index("ix_memory_samples_worker_at", ["worker", "at"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("memory_samples", schema=None) as batch_op:
        batch_op.drop_index("ix_memory_samples_worker_at")

    op.drop_table("memory_samples")
    op.drop_table("stage_costs")
    op.drop_table("tightenings")
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.drop_column("evictions")
        batch_op.drop_column("loads")
        batch_op.drop_column("peak_bytes")
