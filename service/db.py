"""Connections and the database's clock, for SQLite and PostgreSQL. service/tables.py has the tables.

Leases must not depend on the workers' clocks, so every time is the database's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Double, Engine, create_engine, event, make_url, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

MIGRATIONS = Path(__file__).parent / "migrations"


class now(FunctionElement[float]):  # noqa: N801  (reads as the SQL function it is)
    """Seconds since the epoch by the database's clock."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


def clock(session: Session) -> float:
    """The database's time, now."""
    return session.execute(select(now())).scalar_one()


_UNTIL_GIVEN_UP = {
    "connect_timeout": 10,
    # A host that vanishes in the middle of a transaction must not hold its locks for hours, nor wait for hours
    # itself when the database's host has vanished.
    "options": "-c idle_in_transaction_session_timeout=30s -c tcp_user_timeout=30s",
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
"""libpq's words, for PostgreSQL."""


def connect(url: str) -> Engine:
    """An engine for a SQLite file or a PostgreSQL database."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        # What the address itself says counts: such arguments would take its place.
        unsaid = {word: value for word, value in _UNTIL_GIVEN_UP.items() if word not in parsed.query}
        return create_engine(url, pool_pre_ping=True, connect_args=unsaid)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing itself; _begin_sqlite does
    for pragma in ("journal_mode=WAL", "busy_timeout=10000", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads first and writes later fails with "database is locked" under load.
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A short read-only transaction; what it returns stays usable after it."""
    with Session(engine, expire_on_commit=False) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A transaction that takes the write lock at once, commits at the end and rolls back on an exception."""
    writer = engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
    with Session(writer, expire_on_commit=False) as session, session.begin():
        yield session


# --- the schema -------------------------------------------------------------------------------------------


class SchemaError(ValueError):
    """The database has another schema than this version needs; the message says what to do."""


def migrate(engine: Engine) -> None:
    """Bring the database to the newest schema. SchemaError where it has one that this version does not know."""
    with migrating(engine) as connection:
        _require_known(schema_of(connection))
        command.upgrade(migrations_for(connection), "head")


def require_schema(engine: Engine) -> None:
    """SchemaError unless the database has the schema that this version was written for."""
    with engine.connect() as connection:
        found = schema_of(connection)
    _require_known(found)
    if found != newest_schema():
        raise SchemaError(
            f"the schema is {found or 'none'}, this version needs {newest_schema()}: run dklbench migrate"
        )


def schema_of(connection: Connection) -> str | None:
    """The revision of the database's schema; None where it has no tables yet."""
    return MigrationContext.configure(connection).get_current_revision()


@cache
def newest_schema() -> str:
    """The revision that `migrate` leads to."""
    return str(ScriptDirectory(str(MIGRATIONS)).get_current_head())


@cache
def known_schemas() -> tuple[str, ...]:
    """Every revision that this version can migrate from, the oldest first."""
    return tuple(script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions())[::-1]


def migrations_for(connection: Connection) -> Config:
    """Alembic's commands on this connection, in its transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def _require_known(found: str | None) -> None:
    if found is not None and found not in known_schemas():
        raise SchemaError(
            f"the database has schema {found}, and this version knows none after {newest_schema()}: a newer "
            "dkl-bench has migrated it; install that one again, or restore a backup from before into an empty "
            "installation"
        )


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """A transaction in which tables may be rebuilt.

    SQLite rebuilds one by copying and dropping it, to whose rows others refer; so it looks at foreign keys once,
    at the end. It can be told so outside of a transaction only.
    """
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        is_sqlite = engine.dialect.name == "sqlite"
        if is_sqlite:
            driver.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
                if is_sqlite and (loose := connection.exec_driver_sql("PRAGMA foreign_key_check").first()):
                    raise RuntimeError(f"the migration left a row of {loose[0]} that refers to nothing")
        finally:
            if is_sqlite:
                driver.execute("PRAGMA foreign_keys=ON")
