"""What the tests share: databases of both kinds, a small settings object."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from service.db import connect, migrate
from service.settings import Settings

POSTGRES = os.environ.get("DKLBENCH_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty PostgreSQL database of its own."""
    admin = create_engine(POSTGRES, isolation_level="AUTOCOMMIT")
    name = f"dklbench_test_{uuid.uuid4().hex[:12]}"
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        admin.dispose()
        pytest.skip(f"no PostgreSQL at {make_url(POSTGRES)!r}: set DKLBENCH_TEST_POSTGRES ({error.orig})")
    yield make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def db(database_url: str) -> Iterator[Engine]:
    """A migrated database, once SQLite and once PostgreSQL."""
    engine = connect(database_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Embedded mode in a folder of its own, with quick beats."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url="",
        broker_url="",
        device="cpu",
        lease_seconds=4,
        heartbeat_seconds=1,
        sweep_seconds=0.3,
        resend_seconds=2,
        anonymous="submit",
        allowed_hosts=("testserver",),
        requests_per_minute=100_000,
    )
