"""Folders in which jobs keep what they need to resume, and which of them nobody will ever resume from."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import ColumnElement, Engine, and_, or_, select

from service.db import now, reading, writing
from service.settings import Settings
from service.tables import Job

_JOB_ID = re.compile(r"[0-9a-f]{12}")
_REMOVED = ".removed"
"""What a folder that is being removed is called, after its job."""


def abandoned(db: Engine, settings: Settings) -> Iterator[tuple[Path, str]]:
    """Folders of jobs that are over, whoever ended them, and old ones of jobs that the ledger does not know; each
    with why it is garbage. A ledger without any job is new, or the wrong one, and knows of none."""
    root = settings.workdir("")
    paths = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()] if root.is_dir() else []
    folders = {path.name: path for path in paths if _JOB_ID.fullmatch(path.name)}
    with reading(db) as session:
        known = set(session.scalars(select(Job.id).where(Job.id.in_(folders))))
        over = set(session.scalars(select(Job.id).where(Job.id.in_(folders), is_over(settings))))
        has_jobs = session.scalars(select(Job.id).limit(1)).first() is not None
    for name, path in folders.items():
        if name in over:
            yield path, f"job {name} has ended"
        elif has_jobs and name not in known and _age(path) > settings.keep_garbage_seconds:
            yield path, "no job has this id"
    for path in paths:
        if path.name.endswith(_REMOVED) and _JOB_ID.fullmatch(path.name.removesuffix(_REMOVED)):
            yield path, "its removal was interrupted"


def is_over(settings: Settings) -> ColumnElement[bool]:
    """Jobs that never go on: they have succeeded, or ended otherwise so long ago that nobody resumed them."""
    ended_badly = Job.status.in_(("failed", "canceled"))
    return or_(
        Job.status == "succeeded", and_(ended_badly, Job.finished_at < now() - settings.keep_garbage_seconds)
    )


def remove(db: Engine, settings: Settings, folder: Path) -> bool:
    """Remove an abandoned folder, for whoever looks as a whole. False where its job was resumed meanwhile, or
    another process is at it."""
    job_id = folder.name.removesuffix(_REMOVED)
    removed = settings.workdir(job_id + _REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    if folder == removed:
        return True
    with writing(db) as session:
        job = session.get(Job, job_id, with_for_update=True)
        if job is not None and session.scalar(select(Job.id).where(Job.id == job_id, is_over(settings))) is None:
            return False
        try:
            folder.rename(removed)  # before the commit: whoever resumes the job finds all of it, or nothing
        except OSError:
            return False
    shutil.rmtree(removed, ignore_errors=True)  # its late worker may remove it at the same time
    return True


def size_of(folder: Path) -> int:
    """Bytes of all files in it; a running worker may remove some meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime
