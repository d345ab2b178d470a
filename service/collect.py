"""Garbage collection: what nothing needs any more is removed after a while.

    a stored file that no job needs, and no upload within keep_garbage_seconds of its end
    what an interrupted write left in the store
    an upload that nobody has sent anything to for keep_garbage_seconds
    the work folder of a job that has succeeded, at once: a job that was taken from a dead worker left it behind
    what a job that failed or was canceled could be resumed from, keep_garbage_seconds after its end: its work
        folder, and the verdicts that an evaluation had by then

It may run at any time and several times at once, beside everything else: every removal is a transaction of its own
that looks again (files.drop).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine, exists, func, select

from service import audit, files, moves, workdirs
from service.artifacts import Store
from service.callers import Caller
from service.db import clock, reading, writing
from service.settings import Settings
from service.store_folder import regular
from service.tables import Artifact, ArtifactUse, Chunk, Job, Upload
from service.uploads import BusyError, locked, path_of

_log = logging.getLogger(__name__)
_LOCK = 0x646B6C6763
"""Of PostgreSQL: one API process collects, the others need not."""


@dataclass(frozen=True)
class Garbage:
    what: str
    """"stored file", "interrupted write", "upload", "verdicts" or "work folder"."""
    name: str
    why: str
    size: int


def collect(
    db: Engine,
    store: Store,
    settings: Settings,
    *,
    dry_run: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Garbage]:
    """Remove garbage, or only look for it; says each thing when it is gone. Ends early when `stop` says so."""
    # What needs the store comes last: it may be away.
    for step in (_folders, _verdicts, _uploads, _stored, _interrupted):
        for garbage in step(db, store, settings, dry_run):
            yield garbage
            if stop():
                return


def collect_as(db: Engine, store: Store, settings: Settings, caller: Caller) -> list[Garbage]:
    """As `collect`, because somebody wants it now; the audit log says so."""
    gone = list(collect(db, store, settings))
    with writing(db) as session:
        audit.record(
            session, caller, "garbage.collect", "storage", things=len(gone), size=sum(g.size for g in gone)
        )
    return gone


def collect_alone(db: Engine, store: Store, settings: Settings, stop: Callable[[], bool]) -> None:
    """As `collect`, by the service itself; nothing where another process is at it."""
    with _alone(db) as alone:
        if not alone:
            return
        try:
            for garbage in collect(db, store, settings, stop=stop):
                _log.info("removed %s %s: %s", garbage.what, garbage.name, garbage.why)
        except OSError as error:
            _log.warning("garbage collection stopped: %s; it goes on in an hour", error)


@contextmanager
def _alone(db: Engine) -> Iterator[bool]:
    if db.dialect.name != "postgresql":
        yield True  # SQLite serves one API process
        return
    with db.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        alone = bool(connection.scalar(select(func.pg_try_advisory_lock(_LOCK))))
        try:
            yield alone
        finally:
            if alone:
                connection.execute(select(func.pg_advisory_unlock(_LOCK)))


# --- what there is ----------------------------------------------------------------------------------------


def _uploads(db: Engine, store: Store, settings: Settings, dry_run: bool) -> Iterator[Garbage]:
    """Uploads before the files: a finished one protects its content."""
    needed = exists().where(ArtifactUse.sha256 == Upload.sha256)
    with reading(db) as session:
        before = clock(session) - settings.keep_garbage_seconds
        over = Upload.finished_at.is_(None) | ~needed
        old = session.scalars(select(Upload.id).where(Upload.touched_at < before, over)).all()
        known = set(session.scalars(select(Upload.id).where(Upload.finished_at.is_(None))))
    for upload_id in old:
        if garbage := _upload(db, settings, upload_id, dry_run):
            yield garbage
    for path in settings.uploads_dir.iterdir() if settings.uploads_dir.is_dir() else ():
        found = regular(path) if path.name not in known else None
        if found is not None and found.st_mtime < time.time() - settings.keep_garbage_seconds:
            if not dry_run:
                path.unlink(missing_ok=True)
            yield Garbage("upload", path.name, "its upload is over", found.st_size)


def _upload(db: Engine, settings: Settings, upload_id: str, dry_run: bool) -> Garbage | None:
    path = path_of(settings, upload_id)
    try:
        with locked(path), writing(db) as session:
            upload = session.get(Upload, upload_id, with_for_update=True)
            if upload is None or upload.touched_at >= clock(session) - settings.keep_garbage_seconds:
                return None  # somebody went on with it, or removed it
            size = path.stat().st_size
            why = "unfinished, and nobody went on with it" if upload.finished_at is None else "no job used it"
            if not dry_run:
                session.delete(upload)
                session.flush()
                path.unlink()
            elif not size:
                path.unlink()  # made by the lock
            return Garbage("upload", f"{upload_id} ({upload.name})", why, size)
    except BusyError:
        return None


def _stored(db: Engine, store: Store, settings: Settings, dry_run: bool) -> Iterator[Garbage]:
    idle = settings.keep_garbage_seconds
    listed = {stored.sha256: stored for stored in store.listing()}
    with reading(db) as session:
        before = clock(session) - idle
        registered = {
            row.sha256: row.created_at for row in session.execute(select(Artifact.sha256, Artifact.created_at))
        }
        needed = set(session.scalars(select(ArtifactUse.sha256).distinct()))
        needed |= set(session.scalars(select(Upload.sha256).where(Upload.finished_at >= before)))
        # A ledger without any job is new, or the wrong one: it says nothing about files that it does not know.
        unknown = set() if session.scalars(select(Job.id).limit(1)).first() is None else set(listed)
    for sha256 in sorted((unknown | set(registered)) - needed):
        stored = listed.get(sha256)
        if registered.get(sha256, 0) >= before or (stored and stored.modified >= time.time() - idle):
            continue
        size = stored.size if stored else 0
        freed = size if dry_run else files.drop(db, store, sha256, idle_seconds=idle)
        if freed is not None:
            why = "nothing needs it" if sha256 in registered else "the ledger does not know it"
            yield Garbage("stored file", sha256, why, freed)


def _interrupted(db: Engine, store: Store, settings: Settings, dry_run: bool) -> Iterator[Garbage]:
    for name, size in store.tidy(time.time() - settings.keep_garbage_seconds, dry_run=dry_run):
        yield Garbage("interrupted write", name, "it was never completed", size)


def _folders(db: Engine, store: Store, settings: Settings, dry_run: bool) -> Iterator[Garbage]:
    for folder, why in workdirs.abandoned(db, settings):
        size = workdirs.size_of(folder)
        if dry_run or workdirs.remove(db, settings, folder):
            yield Garbage("work folder", folder.name, why, size)


def _verdicts(db: Engine, store: Store, settings: Settings, dry_run: bool) -> Iterator[Garbage]:
    """The files themselves are garbage afterwards."""
    kept = select(Chunk.job_id).join(Job, Job.id == Chunk.job_id).where(workdirs.is_over(settings)).distinct()
    with reading(db) as session:
        job_ids = session.scalars(kept.order_by(Chunk.job_id)).all()
    for job_id in job_ids:
        with writing(db) as session:
            job = moves.locked(session, job_id)
            if session.scalar(kept.where(Job.id == job_id)) is None:
                continue  # somebody resumed it
            if not dry_run:
                moves.forget(session, job)
        yield Garbage("verdicts", job_id, f"job {job_id} has ended", 0)
