"""Tables, connections and the database's clock. SQLite and PostgreSQL; `migrations/` mirrors the tables.

Times are seconds since the epoch by the database's clock: leases must not depend on the workers' clocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql.functions import FunctionElement

STATUSES = ("queued", "running", "cancelling", "succeeded", "failed", "canceled")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {float: Double, dict[str, Any]: JSON}


class Job(Base):
    """A recipe being run. Written by service/jobs.py only."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN {STATUSES}", name="status"),
        Index("ix_jobs_queue", "status", "created_at"),
        Index("ix_jobs_board", "dataset", "norm", "eps", "robust_accuracy"),
    )

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str | None] = mapped_column(String(200))
    """The catalogue name it was submitted under, if any."""
    recipe: Mapped[dict[str, Any]]
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    """The job whose checkpoint this one waits for."""

    status: Mapped[str] = mapped_column(String(16), default="queued")
    reason: Mapped[str | None] = mapped_column(Text)
    """Why the job is in its status, in a sentence; set where something went wrong."""
    revision: Mapped[int] = mapped_column(default=0)
    """Grows with every change of the job, its progress or its events: watchers compare it."""
    attempt: Mapped[int] = mapped_column(default=0)
    """How often it was claimed: the fencing token of the current claim."""
    losses: Mapped[int] = mapped_column(default=0)
    """How often its worker went silent."""
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[float | None]
    sent_at: Mapped[float | None]
    """When the queue was last told that it is ready."""

    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    dataset: Mapped[str] = mapped_column(String(80))
    norm: Mapped[str | None] = mapped_column(String(8))
    eps: Mapped[float | None]
    clean_accuracy: Mapped[float | None]
    robust_accuracy: Mapped[float | None]

    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class JobEvent(Base):
    """What a job said, and every change of its status. Append-only."""

    __tablename__ = "job_events"
    __table_args__ = (
        UniqueConstraint("job_id", "key"),
        Index("ix_job_events_stream", "job_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    key: Mapped[str | None] = mapped_column(String(40))
    """Names a fact of the run, which a resumed run says again and the ledger keeps once."""
    payload: Mapped[dict[str, Any]]
    at: Mapped[float]


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


def connect(url: str) -> Engine:
    """An engine for a SQLite file or a PostgreSQL database."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
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


def migrate(engine: Engine) -> None:
    """Bring the database to the newest schema."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
