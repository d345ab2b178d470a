"""Alembic's entry: runs on the connection that service.db.migrate hands over, or on the settings' database."""

from alembic import context

from service.db import connect, migrating
from service.settings import settings
from service.tables import Base


def _run(connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


if (handed_over := context.config.attributes.get("connection")) is not None:
    _run(handed_over)
else:
    with migrating(connect(settings().database)) as own:
        _run(own)
