"""What is to be said of a picture, and the budget beside what was in memory."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("images", schema=None) as batch_op:
        batch_op.add_column(sa.Column("notes", sa.JSON(), server_default="[]", nullable=False))
    with op.batch_alter_table("memory_samples", schema=None) as batch_op:
        batch_op.add_column(sa.Column("budget_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("memory_samples", schema=None) as batch_op:
        batch_op.drop_column("budget_bytes")
    with op.batch_alter_table("images", schema=None) as batch_op:
        batch_op.drop_column("notes")
