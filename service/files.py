"""The ledger of stored files: how large they are, who caused them, and which jobs need them.

A file that no job needs, and no finished upload, is garbage. Between "it is in the store" and "a job needs it"
there is a moment in which it looks like that, so whoever begins to count on a file says so first: `keep` and
`reserve` see, under the content's lock, that it is there, and make it young; `drop` removes old ones only, under
the same lock.
"""

import time
from pathlib import Path

from sqlalchemy import ColumnElement, Engine, delete, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.artifacts import Store
from service.callers import Caller
from service.db import clock, reading, writing
from service.removal import removing
from service.space import show_bytes
from service.tables import ApiKey, Artifact, ArtifactUse, Job, Upload

SETTLED_SECONDS = 60.0
"""What somebody frees is gone at once, unless another has begun to count on it within this time."""


class QuotaError(Exception):
    """The key may not store more; the message says how much it does, and how to free some."""


# --- what is stored ---------------------------------------------------------------------------------------


def keep(db: Engine, store: Store, source: Path, *, key_id: str | None, expected: str | None = None) -> str:
    """Put a file into the store and on the ledger; returns its sha256.

    It is safe for keep_garbage_seconds; by then `use` must have said who needs it.
    """
    while True:
        sha256 = store.put(source, expected=expected)
        with writing(db) as session:
            if enter(session, store, sha256, key_id=key_id):
                return sha256
        # an old copy was there, and its removal was under way: now it is over


def enter(session: Session, store: Store, sha256: str, *, key_id: str | None) -> bool:
    """Note a file that was put into the store just now. False where it was removed since: put it in again."""
    hold(session, sha256)
    stored = store.stat(sha256)
    if stored is not None:
        register(session, sha256, size=stored.size, key_id=key_id)
    return stored is not None


def reserve(db: Engine, store: Store, sha256: str, caller: Caller) -> bool:
    """Whether the file is stored here and the caller may name it; if so, it is safe for keep_garbage_seconds."""
    with writing(db) as session:
        hold(session, sha256)
        stored = store.stat(sha256)
        if stored is None or not may_read(session, sha256, caller):
            return False
        known = session.get(Artifact, sha256)
        register(session, sha256, size=stored.size, key_id=known.key_id if known else None)
        return True


def drop(db: Engine, store: Store, sha256: str, *, idle_seconds: float) -> int | None:
    """Remove a file that nothing needs and nobody has counted on for so long; its bytes, or None if it stays, as
    it does while a backup is made."""
    with writing(db) as session, removing(session) as may_remove:
        if not may_remove:
            return None
        hold(session, sha256)
        known = session.get(Artifact, sha256)
        stored = store.stat(sha256)
        if session.scalar(select(_is_needed(sha256))):
            return None
        if known is not None and known.created_at >= clock(session) - idle_seconds:
            return None
        if stored is not None and stored.modified >= time.time() - idle_seconds:
            return None
        if known is not None:
            session.delete(known)
            session.flush()
        # Before the commit: whoever waits for the lock finds the file gone, and puts it in again.
        store.delete(sha256)
        return stored.size if stored else 0


def register(session: Session, sha256: str, *, size: int, key_id: str | None) -> None:
    """Note that the store has this file, as of now. Whoever caused it first keeps it on their account, until
    nothing needs it and somebody else brings it again."""
    hold(session, sha256)
    known = session.get(Artifact, sha256)
    if known is None:
        session.add(Artifact(sha256=sha256, size=size, key_id=key_id, created_at=clock(session)))
    else:
        known.created_at = clock(session)
        if known.key_id != key_id and not session.scalar(select(_is_needed(sha256))):
            known.key_id = key_id
    session.flush()


def hold(session: Session, sha256: str) -> None:
    """Lock the content until the transaction ends. A writing transaction of SQLite locks everything: it begins
    here, and not only with the first statement that follows."""
    if session.connection().dialect.name == "postgresql":
        number = int.from_bytes(bytes.fromhex(sha256[:16]), "big", signed=True)
        session.execute(select(func.pg_advisory_xact_lock(number)))


# --- who needs it -----------------------------------------------------------------------------------------


def use(session: Session, sha256: str, job_id: str, role: str) -> None:
    """Note that a job needs the file; `role` is one of ArtifactUse's."""
    hold(session, sha256)
    if session.get(ArtifactUse, (sha256, job_id, role)) is None:
        session.add(ArtifactUse(sha256=sha256, job_id=job_id, role=role))
        session.flush()


def release(session: Session, job_id: str, *roles: str) -> None:
    """The job does not need its files in these roles any more."""
    session.execute(delete(ArtifactUse).where(ArtifactUse.job_id == job_id, ArtifactUse.role.in_(roles)))


def may_read(session: Session, sha256: str, caller: Caller) -> bool:
    """Whether the caller could have this content anyway: it is their own, or a job's, which every reader sees."""
    if caller.may("admin"):
        return True
    left = exists().where(ArtifactUse.sha256 == sha256, ArtifactUse.role.in_(("checkpoint", "evidence")))
    own = _is_key(Artifact.key_id, caller.key_id)
    brought = exists().where(
        Upload.sha256 == sha256, Upload.finished_at.is_not(None), _is_key(Upload.key_id, caller.key_id)
    )
    return bool(session.scalar(select(left | exists().where(Artifact.sha256 == sha256, own) | brought)))


def data_set_of(db: Engine, sha256: str) -> str | None:
    """The data set of a job of this service that made or judged this checkpoint; None for a raw upload."""
    with reading(db) as session:
        jobs = select(Job.dataset).join(ArtifactUse, ArtifactUse.job_id == Job.id)
        left = jobs.where(ArtifactUse.sha256 == sha256, ArtifactUse.role == "checkpoint")
        return session.scalar(left.order_by(Job.created_at).limit(1))


def _is_needed(sha256: str) -> ColumnElement[bool]:
    arrived = exists().where(Upload.sha256 == sha256, Upload.finished_at.is_not(None))
    return exists().where(ArtifactUse.sha256 == sha256) | arrived


# --- how much is whose ------------------------------------------------------------------------------------


def storage_of(session: Session, key_id: str | None) -> int:
    """Bytes on this key's account: the files it caused, and what it has announced to upload."""
    files = select(func.coalesce(func.sum(Artifact.size), 0)).where(_is_key(Artifact.key_id, key_id))
    coming = select(func.coalesce(func.sum(Upload.size), 0)).where(
        _is_key(Upload.key_id, key_id), Upload.finished_at.is_(None)
    )
    return int(session.scalar(files) or 0) + int(session.scalar(coming) or 0)


def require_quota(session: Session, key_id: str | None, nbytes: int) -> None:
    """QuotaError where the key would store more than it may. No other request of it is counted before the
    transaction ends."""
    if key_id is None:
        return
    key = session.get_one(ApiKey, key_id, with_for_update={"key_share": True})
    if key.max_storage is None:
        return
    used = storage_of(session, key_id)
    if used + nbytes > key.max_storage:
        raise QuotaError(
            f"this key stores {show_bytes(used)} of the {show_bytes(key.max_storage)} that it may, and "
            f"{show_bytes(nbytes)} more do not fit; GET /api/v1/storage lists its files, and DELETE "
            "/api/v1/uploads/ID or /api/v1/jobs/ID/files frees some"
        )


def _is_key(column: InstrumentedAttribute[str | None], key_id: str | None) -> ColumnElement[bool]:
    return column.is_not_distinct_from(key_id)
