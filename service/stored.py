"""The files that a job left: as downloads, and freed when their owner does not want them any more."""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Engine, or_, select
from sqlalchemy.orm import Session
from starlette.concurrency import iterate_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service import audit, files
from service.artifacts import Store, Stored
from service.callers import Caller
from service.db import writing
from service.moves import TERMINAL, locked
from service.tables import ArtifactUse, Job

FileKind = Literal["evidence", "checkpoint"]
_LEFT = ("checkpoint", "evidence", "source")
_DOES = {
    "train": "trains a model",
    "distill": "distils a model",
    "import": "takes in a model",
    "corruptions": "measures corruptions",
}
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class NoFileError(LookupError):
    """The job left no such file; the message says why."""


class NeededError(Exception):
    """The job's files cannot be freed now; the message says who needs them."""


# --- downloads --------------------------------------------------------------------------------------------


def stored_file(store: Store, job: Job, kind: FileKind) -> Stored | None:
    """The job's file; None where there is none."""
    sha256 = (job.result or {}).get(f"{kind}_sha256")
    return store.stat(sha256) if sha256 else None


def download(store: Store, job: Job, kind: FileKind) -> "FileAnswer":
    """The file as an answer that names its sha256; NoFileError where there is none. Ranges resume a download."""
    stored = stored_file(store, job, kind)
    if stored is None:
        raise NoFileError(_why_none(job, kind))
    return FileAnswer(store, stored, filename=f"{job.id}-{kind}.safetensors")


class FileAnswer(StreamingResponse):
    """A stored file, or the range of it that the request names, a block at a time from either kind of store."""

    def __init__(self, store: Store, stored: Stored, *, filename: str) -> None:
        self._store, self._stored = store, stored
        digest = b64encode(bytes.fromhex(stored.sha256)).decode()
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Disposition": f'attachment; filename="{filename}"',
            "Content-Length": str(stored.size),
            "ETag": f'"{stored.sha256}"',
            "Repr-Digest": f"sha-256=:{digest}:",  # RFC 9530
        }
        super().__init__((), headers=headers, media_type="application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = self._stored.size
        start, stop = _asked_range(Headers(scope=scope), size, self.headers["ETag"])
        if start >= stop:
            self.status_code = 416
            self.headers["Content-Range"] = f"bytes */{size}"
        elif (start, stop) != (0, size):
            self.status_code = 206
            self.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.headers["Content-Length"] = str(max(stop - start, 0))
        if stop > start:
            self.body_iterator = iterate_in_threadpool(self._store.read(self._stored.sha256, start, stop))
        await super().__call__(scope, receive, send)


def _asked_range(headers: Mapping[str, str], size: int, etag: str) -> tuple[int, int]:
    """First byte and the one after the last; everything where no range is asked for, or several, or of another
    content; nothing where the file ends before it."""
    asked = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if asked is None or asked[0] == "bytes=-" or headers.get("if-range", etag) != etag:
        return 0, size
    first, last = asked[1][:20], asked[2][:20]
    if not first:
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return 0, size
    return int(first), min(int(last) + 1, size) if last else size


def _why_none(job: Job, kind: FileKind) -> str:
    if kind == "evidence" and job.kind != "evaluate":
        return f"job {job.id} {_DOES[job.kind]}; evidence is what evaluations under attack leave"
    if job.status not in TERMINAL:
        return f"job {job.id} is {job.status}; its {kind} is there when it has succeeded"
    if job.result is None:
        return f"job {job.id} has {'failed' if job.status == 'failed' else 'been canceled'} and left no {kind}"
    if f"{kind}_sha256" not in job.result:
        return f"job {job.id} is older than this service's evidence; judge the model again to have it"
    sources = job.recipe.get("model", {})
    public = sources.get("zoo") or sources.get("timm") or sources.get("torchvision")
    if kind == "checkpoint" and public:
        return f"job {job.id} judged {public}, whose weights are not kept here but fetched from their publisher"
    return f"the {kind} of job {job.id} is no longer stored here; its sha256 is {job.result[f'{kind}_sha256']}"


# --- freeing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Freed:
    """What became of an ended job's files."""

    freed: int
    """Bytes that are free now."""
    later: int
    """Bytes that garbage collection frees, since somebody has asked for them just now."""
    needed_by: dict[str, list[str]]
    """By sha256: the jobs that need it, too, and so keep it."""


def release_files(db: Engine, store: Store, job_id: str, caller: Caller) -> Freed:
    """Give up the checkpoint and the evidence of an ended job; its result stays. NeededError where a job is to use
    the checkpoint."""
    with writing(db) as session:
        job = locked(session, job_id)
        if job.status not in TERMINAL:
            raise NeededError(f"job {job_id} is {job.status} and needs its files; cancel it, or wait for its end")
        uses = select(ArtifactUse.sha256).where(ArtifactUse.job_id == job_id, ArtifactUse.role.in_(_LEFT))
        held = sorted(set(session.scalars(uses)))
        if waiting := _waiting(session, job, held):
            raise NeededError(
                f"the checkpoint of job {job_id} is needed by {', '.join(waiting)}; cancel them, or wait for "
                "their end"
            )
        files.release(session, job_id, *_LEFT)
        audit.record(session, caller, "job.release", job_id, files=held)
        needed_by = {sha256: users for sha256 in held if (users := _users(session, sha256))}
    freed = later = 0
    for sha256 in held:
        if sha256 not in needed_by and (stored := store.stat(sha256)):
            gone = files.drop(db, store, sha256, idle_seconds=files.SETTLED_SECONDS) is not None
            freed, later = (freed + stored.size, later) if gone else (freed, later + stored.size)
    return Freed(freed, later, needed_by)


def _waiting(session: Session, job: Job, held: list[str]) -> list[str]:
    """Jobs that have not ended and use the job's checkpoint, by its name or by the job's."""
    named = select(ArtifactUse.job_id).where(ArtifactUse.sha256.in_(held), ArtifactUse.role == "source")
    needs = or_(Job.parent_id == job.id, Job.id.in_(named))
    return list(session.scalars(select(Job.id).where(needs, Job.status.not_in(TERMINAL)).order_by(Job.id)))


def _users(session: Session, sha256: str) -> list[str]:
    users = select(ArtifactUse.job_id).where(ArtifactUse.sha256 == sha256).distinct()
    return list(session.scalars(users.order_by(ArtifactUse.job_id)))
