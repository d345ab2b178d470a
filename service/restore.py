"""A backup put into an empty installation, of either database and either kind of store.

Nothing counts before the last step: the stored files come first, and nobody takes them for garbage while the
ledger is empty; then one transaction makes the tables as they were, fills them, migrates them to today's schema
and takes every job back from the worker that had it. Whoever is killed in between has an empty installation still,
and the next attempt finds the files that are there.
"""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from alembic import command
from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, Integer, Table, bindparam, func, inspect, select, update
from sqlalchemy.exc import DataError, IntegrityError, StatementError
from sqlalchemy.orm import Session

from service import audit, moves
from service.artifacts import Store
from service.backup import reflected
from service.backup_check import intact
from service.backup_parts import (
    SECRET,
    BackupError,
    Manifest,
    Report,
    listed_files,
    read_rows,
    stored_in,
    verify_parts,
    write_bytes,
)
from service.callers import Caller
from service.db import known_schemas, migrating, migrations_for, newest_schema, now, schema_of
from service.settings import Settings
from service.space import require_space
from service.tables import Base, Job, Seat, Worker

_AT_ONCE = 500
"""Rows that are written together."""
_LOCK = 0x646B6C7265
"""Of PostgreSQL: one restores at a time."""
_NOT_RESTORED = {"workers"}
"""Processes of other times and places; those of here say themselves that they are here."""
_SHA256, _JOB = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{12}")
_FORMS = {
    "jobs.id": _JOB,
    "job_events.job_id": _JOB,
    "uploads.id": re.compile(r"[0-9a-f]{32}"),
    "uploads.sha256": _SHA256,
    "artifacts.sha256": _SHA256,
    "artifact_uses.sha256": _SHA256,
    "chunks.found_sha256": _SHA256,
}
"""What becomes part of paths and of names in the store."""


def restore(
    db: Engine,
    store: Store,
    settings: Settings,
    target: Path,
    *,
    caller: Caller,
    report: Report = lambda what, done, total: None,
) -> Manifest:
    """Fill this installation with the backup in `target`. BackupError where it is not empty or in use, or the
    backup is damaged, not ours, or of a newer version; then the installation is still empty."""
    manifest = Manifest.read(target)
    if manifest.revision not in known_schemas():
        raise BackupError(
            f"the backup is of dkl-bench {manifest.version} with schema {manifest.revision}, which this version "
            f"({version('dkl-bench')}, schema {newest_schema()}) does not know; install that one, or newer"
        )
    verify_parts(target, manifest)
    with _alone(settings):
        with db.connect() as connection:
            _require_empty(connection, settings)
        _require_secret_fits(settings, target, manifest)
        if not settings.store:
            require_space(settings, manifest.stored_bytes)
        _copy_files(store, target, manifest, report)
        _place_secret(settings, target, manifest)
        with migrating(db.execution_options(sqlite_begin="BEGIN IMMEDIATE")) as connection:
            if db.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            _require_empty(connection, settings)
            _make_tables(connection, manifest.revision)
            _fill(connection, target, manifest, report)
            command.upgrade(migrations_for(connection), "head")
            _settle(connection, caller, manifest)
    return manifest


# --- what it may be restored into -------------------------------------------------------------------------


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """No `dklbench up` serves this data folder, nor begins to."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.data_dir / "service.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BackupError(f"dkl-bench serves {settings.data_dir} now; stop it, then restore") from None
    try:
        yield
    finally:
        lock.release()


def _require_empty(connection: Connection, settings: Settings) -> None:
    known = inspect(connection).get_table_names()
    found = {}
    for table in Base.metadata.sorted_tables:
        if table.name in known and table.name not in _NOT_RESTORED:
            count = connection.scalar(select(func.count()).select_from(select(1).select_from(table).subquery()))
            if count:
                found[table.name] = count
    if found:
        what = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found.items())
        raise BackupError(
            f"this installation is not empty: it has {what}; restore into a new data folder (DKLBENCH_DATA_DIR) "
            "and an empty database"
        )
    if Worker.__tablename__ in known:
        alive = select(Worker.name).where(Worker.beat_at > now() - settings.lease_seconds).limit(1)
        if name := connection.scalar(alive):
            raise BackupError(f"worker {name} of this installation is alive; stop all workers and the service")


# --- what is outside of the ledger ------------------------------------------------------------------------


def _copy_files(store: Store, target: Path, manifest: Manifest, report: Report) -> None:
    kept, done = stored_in(target), 0
    for sha256, size in listed_files(target, manifest):
        stored = kept.stat(sha256)
        if stored is None or stored.size != size:
            what = "missing" if stored is None else "damaged"
            raise BackupError(f"the stored file {sha256} of the backup is {what}; use another backup")
        here = store.stat(sha256)
        if here is None or here.size != size or not intact(store, sha256):  # else an earlier attempt brought it
            if not intact(kept, sha256):
                raise BackupError(f"the stored file {sha256} of the backup is damaged; use another backup")
            if here is not None:
                store.delete(sha256)
            store.put(kept.path(sha256), expected=sha256)
        done += size
        report("bytes", done, manifest.stored_bytes)


def _require_secret_fits(settings: Settings, target: Path, manifest: Manifest) -> None:
    path = settings.data_dir / SECRET
    if manifest.secret is None or settings.secret_key.get_secret_value() or not path.exists():
        return
    if path.read_bytes() != (target / manifest.ledger / SECRET).read_bytes():
        raise BackupError(f"{path} holds another secret than the backup; nothing here uses it, so remove it first")


def _place_secret(settings: Settings, target: Path, manifest: Manifest) -> None:
    path = settings.data_dir / SECRET
    if manifest.secret is None or settings.secret_key.get_secret_value() or path.exists():
        return
    draft = path.with_name(f".{SECRET}.restored.tmp")
    draft.unlink(missing_ok=True)
    write_bytes(draft, (target / manifest.ledger / SECRET).read_bytes())
    draft.rename(path)


# --- the ledger -------------------------------------------------------------------------------------------


def _make_tables(connection: Connection, revision: str) -> None:
    """Empty ones, as the version that made the backup had them."""
    if schema_of(connection) is not None:
        command.downgrade(migrations_for(connection), "base")
    command.upgrade(migrations_for(connection), revision)


def _fill(connection: Connection, target: Path, manifest: Manifest, report: Report) -> None:
    tables = reflected(connection)
    if tables.keys() != manifest.tables.keys():
        raise BackupError(
            f"the backup in {target} does not have the tables of schema {manifest.revision}; use another backup"
        )
    total, done = sum(part.rows for part in manifest.tables.values()), 0
    for name, table in tables.items():
        if name in _NOT_RESTORED:
            continue
        own = [key.parent.name for key in table.foreign_keys if key.column.table is table]
        for rows in _batches(_rows(target, manifest, table)):
            _write(connection, table, [{**row, **dict.fromkeys(own)} for row in rows])
            done += len(rows)
            report("rows", done, total)
        for column in own:  # rows that others of this table name, now that all are there
            _point(connection, table, column, _rows(target, manifest, table))
        _continue_counting(connection, table)


def _rows(target: Path, manifest: Manifest, table: Table) -> Iterator[dict[str, Any]]:
    path = target / manifest.ledger / f"{table.name}.jsonl.gz"
    columns = set(table.columns.keys())
    forms = {name.partition(".")[2]: form for name, form in _FORMS.items() if name.startswith(f"{table.name}.")}
    for row in read_rows(path, manifest.tables[table.name]):
        if row.keys() != columns:
            raise BackupError(
                f"{path} does not have the columns of schema {manifest.revision}; use another backup"
            )
        for column, form in forms.items():
            value = row[column]
            if value is not None and not (isinstance(value, str) and form.fullmatch(value)):
                raise BackupError(f"{path} has a {column} that is none: {str(value)[:80]!r}; use another backup")
        yield row


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while some := list(islice(rows, _AT_ONCE)):
        yield some


def _write(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    try:
        connection.execute(table.insert(), rows)
    except (IntegrityError, DataError, StatementError) as error:
        why = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise BackupError(f"this database does not take the backup's {table.name}: {why}") from None


def _point(connection: Connection, table: Table, column: str, rows: Iterator[dict[str, Any]]) -> None:
    (key,) = table.primary_key.columns
    change = update(table).where(key == bindparam("row")).values({column: bindparam("other")})
    named = ({"row": row[key.name], "other": row[column]} for row in rows if row[column] is not None)
    for some in _batches(named):
        try:
            connection.execute(change, some)
        except IntegrityError as error:
            raise BackupError(f"the backup's {table.name} name rows that it does not have: {error.orig}") from None


def _continue_counting(connection: Connection, table: Table) -> None:
    """PostgreSQL counts apart from the rows; SQLite goes on after the highest by itself."""
    key = list(table.primary_key.columns)
    if connection.dialect.name == "postgresql" and len(key) == 1 and isinstance(key[0].type, Integer):
        sequence = func.pg_get_serial_sequence(table.name, key[0].name)
        highest = select(func.max(key[0])).scalar_subquery()
        connection.execute(select(func.setval(sequence, highest)).where(highest.is_not(None)))


def _settle(connection: Connection, caller: Caller, manifest: Manifest) -> None:
    """What was under way is under way no more. Expects the present schema."""
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(manifest.made_at))
    why = f"the installation was restored from a backup of {made}"
    with Session(connection) as session:
        for seat in session.scalars(select(Seat)).all():
            moves.vacate(session, seat)
        for job_id in session.scalars(select(Job.id).where(Job.status.in_(moves.ACTIVE)).order_by(Job.id)).all():
            job = moves.locked(session, job_id)
            if job.status == "cancelling":
                moves.move(session, job, "canceled", reason=f"{job.reason}; {why}", actor=caller.name)
            else:
                moves.move(session, job, "queued", reason=f"{why}; it resumes or begins anew", actor=caller.name)
        session.execute(update(Job).where(Job.status == "queued").values(sent_at=None))
        detail = {"made_at": manifest.made_at, "version": manifest.version, "schema": manifest.revision}
        audit.record(
            session, caller, "backup.restore", manifest.ledger, **detail, jobs=manifest.tables["jobs"].rows
        )
        session.commit()
