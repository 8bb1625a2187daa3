"""Alembic's entry: runs the migrations over the connection that `renderkiln.home.ledger` hands it."""

from alembic import context

from renderkiln.schema.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
