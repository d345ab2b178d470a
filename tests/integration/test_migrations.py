"""Migrations on both databases: forward, back, forward, and nothing that the tables have and they have not."""

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect

from service.db import Base, connect, migrate

MIGRATIONS = Path(__file__).parent.parent.parent / "migrations"


def move(engine: Engine, to: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if to == "base" else command.upgrade)(config, to)


def test_up_down_up_and_equal_to_the_tables(database_url: str) -> None:
    engine = connect(database_url)
    for to in ("head", "base", "head"):
        move(engine, to)
        expected = set() if to == "base" else set(Base.metadata.tables)
        assert set(inspect(engine).get_table_names()) - {"alembic_version"} == expected
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    migrate(engine)  # a migrated database stays as it is
    engine.dispose()
