"""Removing stored files is put off while a backup reads them: what it has found on the ledger stays in the store.

The lock belongs to the database, and ends with the process that holds it, however that ends: an advisory lock of
PostgreSQL, which all hosts see; beside a SQLite file, which serves one host, a lock on a file.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

_LOCK = 0x646B6C6261
"""Of PostgreSQL: whoever removes a file shares it, a backup has it alone."""


class PausedError(ValueError):
    """Another backup of this installation is under way."""


@contextmanager
def paused(db: Engine) -> Iterator[None]:
    """No file is removed from the store until the end; waits for those that are being removed now. PausedError
    where somebody else has asked for the same."""
    with _paused_on_postgresql(db) if db.dialect.name == "postgresql" else _paused_on_this_host(db) as first:
        if not first:
            raise PausedError("another backup of this installation is under way; wait for its end")
        yield


@contextmanager
def removing(session: Session) -> Iterator[bool]:
    """Whether a file may be removed from the store now, until the end of the transaction and of the context."""
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        yield bool(session.scalar(select(func.pg_try_advisory_xact_lock_shared(_LOCK))))
        return
    with _locked(connection.engine, fcntl.LOCK_SH | fcntl.LOCK_NB) as free:
        yield free


@contextmanager
def _paused_on_postgresql(db: Engine) -> Iterator[bool]:
    with db.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        first = bool(connection.scalar(select(func.pg_try_advisory_lock(_LOCK + 1))))
        try:
            if first:
                connection.execute(select(func.pg_advisory_lock(_LOCK)))
            yield first
        finally:
            if not connection.invalidated:
                connection.execute(select(func.pg_advisory_unlock_all()))


@contextmanager
def _paused_on_this_host(db: Engine) -> Iterator[bool]:
    with _locked(db, fcntl.LOCK_EX | fcntl.LOCK_NB, "-backup") as first:
        if not first:
            yield False
            return
        with _locked(db, fcntl.LOCK_EX) as alone:
            yield alone


@contextmanager
def _locked(db: Engine, how: int, name: str = "-removal") -> Iterator[bool]:
    """A lock on a file beside the database; False where it is taken and `how` does not wait."""
    if not db.url.database:
        yield True  # in memory: nobody else sees it
        return
    file = os.open(db.url.database + name, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(file)
