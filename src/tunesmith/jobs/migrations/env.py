"""What alembic runs: migrations over the connection that `Database` gives."""

from alembic import context

from tunesmith.jobs.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
