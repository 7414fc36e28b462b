"""Run by Alembic, on the connection that the registry has opened and locked."""

from alembic import context

from acme_fleet.deploy.registry.tables import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables())
with context.begin_transaction():
    context.run_migrations()
