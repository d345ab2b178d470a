"""Uploads, and whose storage is how full: the routes. service/uploads.py and service/files.py have the rules.

A file comes in parts of any size, so neither a proxy's time limit nor a broken connection ends a long upload:

    POST /api/v1/uploads {"name": ..., "size": ..., "sha256": ...}     -> {"id": ..., "received": 0, ...}
    PATCH /api/v1/uploads/ID with Upload-Offset: 0 and the first bytes   -> {"received": 16777216, ...}
    ... until {"finished": true}; after trouble, GET /api/v1/uploads/ID says where to go on
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Self

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from service import files, jobs, uploads
from service.access import Reader, Submitter, require_owner
from service.artifacts import StoreError
from service.callers import Caller
from service.db import reading
from service.problems import ANSWERS, Problem, answer
from service.settings import Settings
from service.space import FullError, free_bytes
from service.state import State, state_of
from service.stored import NeededError, release_files
from service.tables import ApiKey, Artifact, ArtifactUse, Upload

_SHOWN = 200
"""Files that the storage overview lists, the largest first."""


def _answers(**sentences: str) -> dict[int | str, dict[str, Any]]:
    return {int(name[1:]): {"model": Problem, "description": text} for name, text in sentences.items()}


_UNKNOWN = _answers(_404="There is no such thing")
_BUSY = _answers(_409="Not now; an Upload-Offset in the answer says how many bytes have arrived")
_FULL = _answers(_413="More than the service, or this key, may take in", _507="The disk is full")

router = APIRouter(prefix="/api/v1", responses=ANSWERS)


# --- bodies -----------------------------------------------------------------------------------------------


class UploadRequest(BaseModel):
    """What is to come."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
    """For people, such as the file's name; never part of a path."""
    size: Annotated[int, Field(ge=1, le=2**53)]
    """Bytes."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the whole file."""


class UploadView(BaseModel):
    """An upload. Times are seconds since the epoch."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    name: str
    size: int
    sha256: str
    """Once finished, this names the file in recipes: {"model": {"checkpoint": SHA256}}."""
    received: int
    """Bytes that have arrived: the Upload-Offset of the next part."""
    finished: bool
    """Whether it was verified and is stored."""
    created_at: float
    finished_at: float | None

    @classmethod
    def of(cls, settings: Settings, upload: Upload) -> Self:
        return cls(
            id=upload.id,
            name=upload.name,
            size=upload.size,
            sha256=upload.sha256,
            received=uploads.received(settings, upload),
            finished=upload.finished_at is not None,
            created_at=upload.created_at,
            finished_at=upload.finished_at,
        )


class FileView(BaseModel):
    """A stored file."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    sha256: str
    size: int
    jobs: list[str]
    """Those that need it; without any, and without an upload, it is removed after a while."""


class KeyView(BaseModel):
    id: str
    name: str
    used: int
    limit: int | None


class StorageView(BaseModel):
    """How much the caller stores, in bytes."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    used: int
    """All stored files that the caller caused, and what is announced to come."""
    limit: int | None
    """Absent where there is none."""
    free_disk: int
    """Of the service's disk."""
    files: list[FileView]
    """The caller's, the largest first; at most 200."""
    uploads: list[UploadView]
    """The caller's, the newest first; at most 200."""
    keys: list[KeyView]
    """Everybody's usage; for admins only."""


class FreedView(BaseModel):
    """What became of the files, in bytes and jobs."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    freed: int
    later: int
    """What garbage collection will free, since somebody has asked for it just now."""
    needed_by: dict[str, list[str]]
    """By sha256: the jobs that need the file, too, and so keep it."""


# --- uploads ----------------------------------------------------------------------------------------------


@router.post("/uploads", status_code=201, responses=_FULL)
def begin_upload(body: UploadRequest, request: Request, caller: Submitter) -> UploadView:
    """Announce a file. The caller's own unfinished upload of the same content is gone on with; content that is
    here already, and that the caller could read, need not be sent again."""
    state = state_of(request)
    upload = uploads.begin(state.db, state.artifacts, state.settings, **body.model_dump(), caller=caller)
    return UploadView.of(state.settings, upload)


@router.get("/uploads/{upload_id}", responses=_UNKNOWN)
def get_upload(upload_id: str, request: Request, caller: Submitter) -> UploadView:
    """How far an upload is."""
    state = state_of(request)
    return UploadView.of(state.settings, uploads.get(state.db, upload_id, caller))


@router.patch(
    "/uploads/{upload_id}",
    responses=_UNKNOWN | _BUSY | _FULL,
    openapi_extra={
        "requestBody": {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "required": False,
        }
    },
)
async def write_upload(
    upload_id: str,
    request: Request,
    caller: Submitter,
    upload_offset: Annotated[int, Header(ge=0, le=2**53, description="Bytes that have arrived before")],
) -> UploadView:
    """Send the next part, of any size. With the last byte the file is verified and stored, which takes a moment
    for a large one; should the answer be lost, an empty part at the end finishes it."""
    state = state_of(request)
    upload = await uploads.receive(
        state.db,
        state.artifacts,
        state.settings,
        upload_id,
        caller,
        offset=upload_offset,
        pieces=request.stream(),
    )
    return UploadView.of(state.settings, upload)


@router.delete("/uploads/{upload_id}", status_code=204, responses=_UNKNOWN | _BUSY)
def delete_upload(upload_id: str, request: Request, caller: Submitter) -> None:
    """Forget an upload. Its content goes, too, unless a job needs it."""
    state = state_of(request)
    uploads.discard(state.db, state.artifacts, state.settings, uploads.get(state.db, upload_id, caller), caller)


# --- storage ----------------------------------------------------------------------------------------------


@router.get("/storage")
def get_storage(request: Request, caller: Reader) -> StorageView:
    """How much the caller stores, and what it is."""
    state = state_of(request)
    with reading(state.db) as session:
        key = session.get(ApiKey, caller.key_id) if caller.key_id else None
        keys = session.scalars(select(ApiKey).order_by(ApiKey.name)).all() if caller.may("admin") else ()
        return StorageView(
            used=files.storage_of(session, caller.key_id),
            limit=key.max_storage if key else None,
            free_disk=free_bytes(state.settings),
            files=_files(state, caller),
            uploads=[UploadView.of(state.settings, upload) for upload in uploads.of_caller(state.db, caller)],
            keys=[
                KeyView(id=key.id, name=key.name, used=files.storage_of(session, key.id), limit=key.max_storage)
                for key in keys
            ],
        )


def _files(state: State, caller: Caller) -> list[FileView]:
    mine = select(Artifact).where(Artifact.key_id.is_not_distinct_from(caller.key_id))
    with reading(state.db) as session:
        found = session.scalars(mine.order_by(Artifact.size.desc(), Artifact.sha256).limit(_SHOWN)).all()
        uses: dict[str, set[str]] = {file.sha256: set() for file in found}
        for use in session.scalars(select(ArtifactUse).where(ArtifactUse.sha256.in_(uses))):
            uses[use.sha256].add(use.job_id)
    return [FileView(sha256=file.sha256, size=file.size, jobs=sorted(uses[file.sha256])) for file in found]


@router.delete("/jobs/{job_id}/files", responses=_UNKNOWN | _answers(_409="A job needs the files"))
def release_job_files(job_id: str, request: Request, caller: Submitter) -> FreedView:
    """Give up the checkpoint and the evidence of a job that has ended. Its result and its row stay."""
    state = state_of(request)
    require_owner(caller, jobs.get(state.db, job_id).key_id, f"job {job_id}")
    return FreedView.model_validate(release_files(state.db, state.artifacts, job_id, caller))


# --- errors -----------------------------------------------------------------------------------------------


def _with(status: int) -> Callable[[Request, Any], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        response = answer(request, status, str(error))
        if isinstance(error, uploads.OffsetError):
            response.headers["Upload-Offset"] = str(error.received)
        return response

    return handle


HANDLERS = {
    uploads.UnknownUploadError: _with(404),
    uploads.OffsetError: _with(409),
    uploads.BusyError: _with(409),
    NeededError: _with(409),
    uploads.TooLargeError: _with(413),
    files.QuotaError: _with(413),
    uploads.CorruptError: _with(422),
    StoreError: _with(503),
    FullError: _with(507),
}
