"""Folders in which jobs keep what they need to resume, and which of them nobody will ever resume from."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine, select

from service.db import reading
from service.moves import TERMINAL
from service.settings import Settings
from service.tables import Job

_JOB_ID = re.compile(r"[0-9a-f]{12}")


def abandoned(db: Engine, settings: Settings) -> Iterator[tuple[Path, str]]:
    """Folders of jobs that have ended, whoever ended them, and old ones of jobs that the ledger does not know;
    each with why it is garbage. A ledger without any job is new, or the wrong one, and knows of none."""
    root = settings.workdir("")
    folders = {path.name: path for path in root.iterdir()} if root.is_dir() else {}
    folders = {name: path for name, path in folders.items() if _is_jobs(path)}
    with reading(db) as session:
        found = session.execute(select(Job.id, Job.status).where(Job.id.in_(folders)))
        status = {row.id: row.status for row in found}
        known = session.scalars(select(Job.id).limit(1)).first() is not None
    for name, path in folders.items():
        if status.get(name) in TERMINAL:
            yield path, f"job {name} has ended"
        elif known and name not in status and _age(path) > settings.keep_garbage_seconds:
            yield path, "no job has this id"


def size_of(folder: Path) -> int:
    """Bytes of all files in it; a running worker may remove some meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def _is_jobs(path: Path) -> bool:
    return bool(_JOB_ID.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime
