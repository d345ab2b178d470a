"""Files on their way in: announced, received in parts of any size, verified, and only then stored.

The bytes so far lie in the uploads folder under the upload's id, and the size of that file is the truth about how
much has arrived: a broken connection, a killed service or a changed network costs what was on the wire. Who writes
holds a lock on the file, so parts never mix.
"""

import fcntl
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from starlette.requests import ClientDisconnect

from service import audit, files
from service.artifacts import BLOCK, Store, blocks, sha256_of
from service.callers import Caller
from service.db import clock, reading, writing
from service.settings import Settings
from service.space import noticing_full, require_space, show_bytes
from service.tables import Upload

_ID = re.compile(r"[0-9a-f]{32}")


class UnknownUploadError(LookupError):
    """No upload of this caller has this id."""


class TooLargeError(Exception):
    """More bytes than are taken in here."""


class BusyError(Exception):
    """Somebody else writes to this upload now."""


class OffsetError(Exception):
    """The part does not begin where the file ends; `received` says where that is."""

    def __init__(self, sentence: str, received: int) -> None:
        super().__init__(sentence)
        self.received = received


class CorruptError(ValueError):
    """What has arrived is not what was announced."""


# --- asking -----------------------------------------------------------------------------------------------


def begin(
    db: Engine, store: Store, settings: Settings, *, name: str, size: int, sha256: str, caller: Caller
) -> Upload:
    """An upload to send parts to: a new one, or the caller's unfinished one of the same content. It is finished at
    once where the content is here and the caller could read it anyway."""
    if size > settings.max_upload_bytes:
        raise TooLargeError(
            f"{name!r} has {show_bytes(size)}; at most {show_bytes(settings.max_upload_bytes)} are taken in here"
        )
    known = files.reserve(db, store, sha256, caller)
    if known and (stored := store.stat(sha256)) and stored.size != size:
        raise CorruptError(f"the file with sha256 {sha256} has {stored.size} bytes, and {size} were announced")
    with writing(db) as session:
        upload = _earlier(session, sha256, size, caller)
        if upload is None or (upload.finished_at is not None and not known):
            if not known:
                files.require_quota(session, caller.key_id, size)
                require_space(settings, size + _awaited(session, settings))
            at = clock(session)
            upload = Upload(
                id=secrets.token_hex(16),
                key_id=caller.key_id,
                name=name,
                size=size,
                sha256=sha256,
                created_at=at,
                touched_at=at,
            )
            session.add(upload)
            audit.record(session, caller, "upload.begin", upload.id, name=name, size=size, sha256=sha256)
        if known and upload.finished_at is None:
            upload.finished_at = upload.touched_at = clock(session)
        return upload


def get(db: Engine, upload_id: str, caller: Caller) -> Upload:
    """The caller's upload, or UnknownUploadError."""
    with reading(db) as session:
        upload = session.get(Upload, upload_id) if _ID.fullmatch(upload_id) else None
    if upload is None or not caller.owns(upload.key_id):
        raise UnknownUploadError(
            f"there is no upload {upload_id[:40]!r} of yours; begin one with POST /api/v1/uploads"
        )
    return upload


def of_caller(db: Engine, caller: Caller) -> Sequence[Upload]:
    """The caller's uploads, the newest first."""
    mine = select(Upload).where(Upload.key_id.is_not_distinct_from(caller.key_id))
    with reading(db) as session:
        return session.scalars(mine.order_by(Upload.created_at.desc(), Upload.id).limit(200)).all()


def received(settings: Settings, upload: Upload) -> int:
    """Bytes that have arrived."""
    if upload.finished_at is not None:
        return upload.size
    path = path_of(settings, upload.id)
    return path.stat().st_size if path.exists() else 0


def discard(db: Engine, store: Store, settings: Settings, upload: Upload, caller: Caller) -> None:
    """Forget the upload; its content goes, too, unless something needs it."""
    with locked(path_of(settings, upload.id)), writing(db) as session:
        audit.record(session, caller, "upload.delete", upload.id, sha256=upload.sha256)
        _forget(session, settings, upload)
    if upload.finished_at is not None:
        files.drop(db, store, upload.sha256, idle_seconds=files.SETTLED_SECONDS)


# --- receiving --------------------------------------------------------------------------------------------


async def receive(
    db: Engine,
    store: Store,
    settings: Settings,
    upload_id: str,
    caller: Caller,
    *,
    offset: int,
    pieces: AsyncIterator[bytes],
) -> Upload:
    """Write a part that begins at `offset`; with the last byte, verify and store the file. CorruptError, and the
    upload is gone, where it is not what was announced. A part that breaks off is kept as far as it came; an empty
    one at the end of the file tries again to store it."""
    upload = await run_in_threadpool(get, db, upload_id, caller)
    path = path_of(settings, upload.id)
    with locked(path) as file:
        upload = await run_in_threadpool(get, db, upload_id, caller)  # as it is under the lock
        if upload.finished_at is not None:
            raise OffsetError(f"upload {upload.id} is finished; there is nothing left to send", upload.size)
        there = os.fstat(file).st_size
        if offset != there:
            raise OffsetError(
                f"the part begins at byte {offset}, and {there} have arrived; go on with Upload-Offset: {there}",
                there,
            )
        if there < upload.size:
            require_space(settings, upload.size - there)
        there = await _write(file, pieces, there, upload, settings)
        await run_in_threadpool(_touch, db, upload.id)
        if there == upload.size:
            await run_in_threadpool(_complete, db, store, settings, upload, caller)
    return await run_in_threadpool(get, db, upload_id, caller)


async def _write(file: int, pieces: AsyncIterator[bytes], there: int, upload: Upload, settings: Settings) -> int:
    """Append what comes; returns the file's size then. Holds a block and no more in memory."""
    begin, block = there, bytearray()
    try:
        async for piece in pieces:
            block += piece
            if there + len(block) > upload.size:
                os.ftruncate(file, begin)
                block.clear()
                raise TooLargeError(
                    f"upload {upload.id} was announced with {upload.size} bytes, and this part goes on after "
                    "them; nothing of it was kept"
                )
            if len(block) >= BLOCK:
                full, block = block, bytearray()
                await run_in_threadpool(_append, file, full, settings)
                there += len(full)
    except ClientDisconnect:
        pass  # what has arrived stays; the client asks how much it was
    finally:
        _append(file, block, settings)
        there += len(block)
    await run_in_threadpool(os.fsync, file)
    return there


def _append(file: int, block: bytearray, settings: Settings) -> None:
    view = memoryview(block)
    os.lseek(file, 0, os.SEEK_END)
    with noticing_full(settings.data_dir):
        while view:
            view = view[os.write(file, view) :]


def _complete(db: Engine, store: Store, settings: Settings, upload: Upload, caller: Caller) -> None:
    """Verify the whole file, which may have come in parts over days, and store it."""
    path = path_of(settings, upload.id)
    digest = sha256_of(blocks(path))
    if digest != upload.sha256:
        with writing(db) as session:
            audit.record(session, caller, "upload.corrupt", upload.id, sha256=upload.sha256, found=digest)
            _forget(session, settings, upload)
        raise CorruptError(
            f"{upload.name!r} arrived with sha256 {digest}, and {upload.sha256} was announced; it was discarded, "
            "upload it again"
        )
    stored = False
    while not stored:  # again where an old copy was just being removed, see service/files.py
        store.take(path, digest)
        with writing(db) as session:
            stored = files.enter(session, store, digest, key_id=upload.key_id)
            if stored:
                row = session.get_one(Upload, upload.id)
                row.finished_at = row.touched_at = clock(session)
                audit.record(session, caller, "upload.finish", upload.id, sha256=digest, size=upload.size)
    path.unlink()


# --- the folder -------------------------------------------------------------------------------------------


def path_of(settings: Settings, upload_id: str) -> Path:
    assert _ID.fullmatch(upload_id), upload_id
    return settings.uploads_dir / upload_id


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """The upload's file, which nobody else writes to or removes until the end; BusyError where somebody does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another request writes to upload {path.name} or verifies it; ask how far it is, and go on"
            ) from None
        yield file
    finally:
        os.close(file)


def _forget(session: Session, settings: Settings, upload: Upload) -> None:
    session.delete(session.get_one(Upload, upload.id))
    session.flush()
    path_of(settings, upload.id).unlink(missing_ok=True)


def _touch(db: Engine, upload_id: str) -> None:
    with writing(db) as session:
        session.get_one(Upload, upload_id).touched_at = clock(session)


def _earlier(session: Session, sha256: str, size: int, caller: Caller) -> Upload | None:
    mine = select(Upload).where(
        Upload.sha256 == sha256, Upload.size == size, Upload.key_id.is_not_distinct_from(caller.key_id)
    )
    return session.scalars(mine.order_by(Upload.created_at.desc()).limit(1).with_for_update()).first()


def _awaited(session: Session, settings: Settings) -> int:
    """Bytes that other uploads were promised room for."""
    unfinished = session.scalars(select(Upload).where(Upload.finished_at.is_(None)))
    return sum(upload.size - received(settings, upload) for upload in unfinished)
