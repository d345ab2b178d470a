"""A backup of the installation in a folder: the ledger as it was at one moment, and every stored file of it.

It may be made while the service runs and jobs work. The ledger is read in one transaction; then the files that it
names are copied, and none of them is removed meanwhile (service/removal.py). service/backup_parts.py says what the
folder looks like, service/restore.py reads it.
"""

import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import JSON, Connection, Engine, MetaData, Table, select

from service import audit
from service.artifacts import MissingFileError, Store, Stored
from service.backup_parts import (
    FILES,
    LEDGER,
    MANIFEST,
    SECRET,
    BackupError,
    Manifest,
    Part,
    Report,
    flush_folder,
    stored_in,
    write_bytes,
    write_rows,
)
from service.callers import Caller
from service.db import known_schemas, now, schema_of, writing
from service.removal import paused
from service.settings import Settings
from service.space import noticing_full
from service.store_folder import FolderStore, regular

_LOCK = ".lock"
_FIRST_WITH_FILES = "0003"
"""The schema since which the ledger says which stored files it counts on."""
_OURS = re.compile(rf"{FILES}|{re.escape(MANIFEST)}|{LEDGER}|\.{LEDGER}\.tmp|\.{re.escape(MANIFEST)}\.tmp|{_LOCK}")
_AT_ONCE = 500
"""Rows that are fetched together."""


def backup(
    db: Engine,
    store: Store,
    settings: Settings,
    target: Path,
    *,
    caller: Caller,
    with_secret: bool = False,
    report: Report = lambda what, done, total: None,
) -> Manifest:
    """Bring the folder `target` up to date. BackupError or OSError, and an earlier backup in it is still the one
    that is there, where this does not come to its end."""
    secret = _secret(settings) if with_secret else None
    with _alone_in(target), paused(db), noticing_full(target):
        earlier = Manifest.read(target) if regular(target / MANIFEST) else None
        _remove_leftovers(target, earlier)
        name = f"ledger-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        folder = target / f".{name}.tmp"
        folder.mkdir(mode=0o700)
        with _one_moment(db) as connection:
            revision = _revision(connection)
            tables = reflected(connection)
            origin = _origin(connection, tables, earlier, target)
            at = connection.execute(select(now())).scalar_one()
            written = _write_tables(connection, tables, folder, report)
            wanted = _named(connection, tables)
        files = _Files(stored_in(target), store, report)
        listed = write_rows(folder / "files.jsonl.gz", files.copied(wanted))
        secret_part = None if secret is None else write_bytes(folder / SECRET, secret)
        flush_folder(folder)
        folder.rename(target / name)
        flush_folder(target)
        manifest = Manifest(
            version=version("dkl-bench"),
            revision=revision,
            database="postgresql" if db.dialect.name == "postgresql" else "sqlite",
            made_at=at,
            origin=origin,
            ledger=name,
            tables=written,
            files=listed,
            stored_bytes=files.nbytes,
            missing=tuple(files.missing),
            secret=secret_part,
        )
        manifest.write(target)
        _remove_leftovers(target, manifest)
        _forget_files(target, files.kept)
    with writing(db) as session:
        detail = {"made_at": at, "files": listed.rows, "missing": len(manifest.missing)}
        audit.record(session, caller, "backup.create", str(target)[-200:], **detail)
    return manifest


# --- the ledger -------------------------------------------------------------------------------------------


@contextmanager
def _one_moment(db: Engine) -> Iterator[Connection]:
    """Everything that is read is of the same moment, however long it takes; writers are not held up."""
    options: dict[str, Any] = {}
    if db.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with db.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def _revision(connection: Connection) -> str:
    found = schema_of(connection)
    if found is None:
        raise BackupError("there is no ledger in this database, so there is nothing to back up")
    if found not in known_schemas():
        raise BackupError(f"the ledger has schema {found}, of a newer dkl-bench; make the backup with that one")
    if found < _FIRST_WITH_FILES:
        raise BackupError(
            f"the ledger has schema {found}, of a release that cannot be backed up like this; stop the "
            "service, copy its database and its data folder, and run dklbench migrate"
        )
    return found


def reflected(connection: Connection) -> dict[str, Table]:
    """The tables of the ledger as the database has them, whichever version made them; what others refer to
    comes first. Documents are read and written as Python has them, and an absent one is NULL, not JSON's null."""
    metadata = MetaData()
    metadata.reflect(connection, only=lambda name, _: name != "alembic_version")
    for table in metadata.tables.values():
        for column in table.columns:
            if isinstance(column.type, JSON):
                column.type = JSON(none_as_null=bool(column.nullable))
    return {table.name: table for table in metadata.sorted_tables}


def _write_tables(
    connection: Connection, tables: dict[str, Table], folder: Path, report: Report
) -> dict[str, Part]:
    done, written = 0, {}
    for name, table in tables.items():
        written[name] = write_rows(folder / f"{name}.jsonl.gz", _counted(_rows(connection, table), done, report))
        done += written[name].rows
    return written


def _rows(connection: Connection, table: Table) -> Iterator[dict[str, Any]]:
    query = select(table).order_by(*table.primary_key.columns)
    for row in connection.execution_options(yield_per=_AT_ONCE).execute(query).mappings():
        yield dict(row)


def _counted(rows: Iterable[dict[str, Any]], done: int, report: Report) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row
        done += 1
        if done % _AT_ONCE == 0:
            report("rows", done, 0)


def _origin(
    connection: Connection, tables: dict[str, Table], earlier: Manifest | None, target: Path
) -> str | None:
    """The first job of all, which is never removed. An empty installation, or another one, must not replace the
    backup of this one: it would be the wrong folder, or all was lost."""
    jobs = tables["jobs"]
    origin = connection.scalar(select(jobs.c.id).order_by(jobs.c.created_at, jobs.c.id).limit(1))
    if earlier is not None and earlier.origin not in {None, origin}:
        what = "of another installation" if origin else "not empty, and this installation is"
        raise BackupError(
            f"the backup in {target} is {what}; check DKLBENCH_DATA_DIR and DKLBENCH_DATABASE_URL, or name "
            "another folder"
        )
    return origin


# --- the files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    sha256: str
    used: bool
    """A job or an upload counts on it."""
    registered: bool
    """The store had it: of what an evaluation fetched from elsewhere the ledger knows the name alone."""


def _named(connection: Connection, tables: dict[str, Table]) -> list[_Wanted]:
    """Every file that the ledger names."""
    uses, uploads, artifacts = tables["artifact_uses"], tables["uploads"], tables["artifacts"]
    used = set(connection.scalars(select(uses.c.sha256).distinct()))
    used |= set(connection.scalars(select(uploads.c.sha256).where(uploads.c.finished_at.is_not(None))))
    registered = set(connection.scalars(select(artifacts.c.sha256)))
    return [_Wanted(sha256, sha256 in used, sha256 in registered) for sha256 in sorted(used | registered)]


class _Files:
    """Copies what is not there yet."""

    def __init__(self, into: FolderStore, store: Store, report: Report) -> None:
        self._into, self._store, self._report = into, store, report
        self.kept: set[str] = set()
        self.missing: list[str] = []
        self.nbytes = 0

    def copied(self, wanted: list[_Wanted]) -> Iterator[dict[str, Any]]:
        """The rows of the list of files."""
        for number, file in enumerate(wanted, start=1):
            stored, there = self._store.stat(file.sha256), self._into.stat(file.sha256)
            if stored is not None and (there is None or there.size != stored.size):
                there = self._copy(file.sha256)
            if there is not None:
                self.kept.add(file.sha256)
                self.nbytes += there.size
                yield {"sha256": file.sha256, "size": there.size}
            elif file.used and (file.registered or stored is not None):
                self.missing.append(file.sha256)
            self._report("files", number, len(wanted))

    def _copy(self, sha256: str) -> Stored | None:
        """What is there now; None where the store has lost or damaged it."""
        try:
            found = self._into.write(self._store.read(sha256))
        except MissingFileError:
            return None
        return self._into.stat(sha256) if found == sha256 else None


def _forget_files(target: Path, kept: set[str]) -> None:
    """Remove stored files that no longer belong to the backup."""
    store = stored_in(target)
    for stored in list(store.listing()):
        if stored.sha256 not in kept:
            store.delete(stored.sha256)


# --- the folder -------------------------------------------------------------------------------------------


@contextmanager
def _alone_in(target: Path) -> Iterator[None]:
    if target.exists() and not target.is_dir():
        raise BackupError(f"{target} is a file; name a folder, new or with an earlier backup")
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    others = sorted(path.name for path in target.iterdir() if not _OURS.fullmatch(path.name))
    if others:
        raise BackupError(
            f"{target} has other things in it ({', '.join(others[:3])}); name an empty folder, a new one, or one "
            "with an earlier backup"
        )
    lock = FileLock(target / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BackupError(f"another backup is being written into {target}; wait for its end") from None
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(target: Path, manifest: Manifest | None) -> None:
    """Ledgers of interrupted backups, and of those before this one."""
    for path in target.iterdir():
        if re.fullmatch(rf"{LEDGER}|\.{LEDGER}\.tmp", path.name) and (
            not manifest or path.name != manifest.ledger
        ):
            shutil.rmtree(path)
    for _ in stored_in(target).tidy(datetime.now(UTC).timestamp(), dry_run=False):
        pass


def _secret(settings: Settings) -> bytes:
    if settings.secret_key.get_secret_value():
        raise BackupError(
            "the secret is in DKLBENCH_SECRET_KEY and not in the data folder: keep that value yourself, and leave "
            "--with-secret out"
        )
    path = settings.data_dir / SECRET
    if not path.exists():
        raise BackupError(f"there is no secret in {path} yet; leave --with-secret out")
    return path.read_bytes()
