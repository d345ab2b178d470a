"""What the tests share: databases of both kinds, a small settings object."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import Postgres, ServerAwayError, copy_sqlite, migrated_sqlite
from processes import quick_settings
from sqlalchemy import Engine

from service.db import connect
from service.settings import Settings

POSTGRES = os.environ.get("DKLBENCH_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres(POSTGRES)
    yield server
    server.end()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database without rows, to be copied."""
    return migrated_sqlite(tmp_path_factory.mktemp("template") / "ledger.sqlite")


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty PostgreSQL database of its own."""
    try:
        url = postgres.lend()
    except ServerAwayError as error:
        pytest.skip(str(error))
    yield url
    postgres.take_back(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def db(database_url: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A migrated database, once SQLite and once PostgreSQL."""
    if database_url.startswith("sqlite"):
        copy_sqlite(request.getfixturevalue("sqlite_template"), database_url)
        engine = connect(database_url)
    else:
        engine = connect(database_url)
        request.getfixturevalue("postgres").migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return quick_settings(tmp_path / "data")
