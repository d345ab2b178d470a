"""Databases for tests. Migrating one takes a tenth of a second of computing, and a server writes a new one to its
disk with care; so a migrated SQLite file is copied, and PostgreSQL's databases are emptied and lent again."""

import shutil
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError

from service.db import connect, migrate


class ServerAwayError(Exception):
    """There is no PostgreSQL to be had; the message says why."""


class Postgres:
    """Databases of a server, each lent to one test at a time."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._admin = create_engine(url, isolation_level="AUTOCOMMIT")
        self._free: list[str] = []
        self._all: list[str] = []
        self._migration: list[str] = []

    def lend(self) -> str:
        """The address of an empty database. ServerAwayError where no server answers."""
        name = self._free.pop() if self._free else self._create()
        url = self._url.set(database=name).render_as_string(hide_password=False)
        with self._admin.connect() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": name},
            )
        inside = create_engine(url, isolation_level="AUTOCOMMIT")
        with inside.connect() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        inside.dispose()
        return url

    def take_back(self, url: str) -> None:
        name = make_url(url).database
        assert name is not None
        self._free.append(name)

    def migrate(self, engine: Engine) -> None:
        """As service.db.migrate does it: the first time by it, then by what it told the server."""
        if self._migration:
            with engine.begin() as connection:
                connection.exec_driver_sql(";\n".join(self._migration))
            return

        def remember(connection: Any, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
            if not statement.lstrip().upper().startswith("SELECT"):
                assert not parameters, f"a migration has parameters: {statement}"
                statements.append(statement)

        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", remember)
        migrate(engine)
        event.remove(engine, "before_cursor_execute", remember)
        self._migration = statements

    def end(self) -> None:
        for name in self._all:
            with self._admin.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        self._admin.dispose()

    def _create(self) -> str:
        name = f"dklbench_test_{uuid.uuid4().hex[:12]}"
        try:
            with self._admin.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
                # What a test has written need not outlive the server.
                connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
        except OperationalError as error:
            raise ServerAwayError(
                f"no PostgreSQL at {self._url!r}: set DKLBENCH_TEST_POSTGRES ({error.orig})"
            ) from None
        self._all.append(name)
        return name


def migrated_sqlite(path: Path) -> Path:
    """Writes a migrated SQLite database without rows; returns its path."""
    engine = connect(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()  # the last connection takes the write-ahead log in
    assert not path.with_name(f"{path.name}-wal").exists()
    return path


def copy_sqlite(template: Path, url: str) -> None:
    """Puts a copy of the template where the address says."""
    path = make_url(url).database
    assert path is not None
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(template, path)
