"""What others report, as rows of boards: what comes with the package, and what an admin imported."""

import logging
from functools import cache
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import ValidationError
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from service.db import reading
from service.in_print import InPrint, in_print, packaged_documents
from service.model_info import ModelInfo, of_row
from service.published import changes, entry_of, judged_as_published
from service.rows import Boards, Row
from service.tables import Job, ReportedRow

_log = logging.getLogger(__name__)


def reported(db: Engine) -> Boards:
    """Every row that somebody reports; the same object until an import changes something."""
    return _known(db).boards


def renamed(db: Engine, entry: str) -> str:
    """The entry of the row that a published number stands in today; another one where an import brought it too."""
    return _known(db).merged.get(entry, entry)


def model_info(db: Engine, row: Row, address: str) -> ModelInfo:
    """What RobustBench's file about the row says, or would say; `address` is that of this service."""
    return _known(db).documents.get(row.entry) or of_row(row, address)


def published_of(job: Job, training: Job | None) -> Row | None:
    """The published row that an evaluation may be compared with, of those that come with the package.

    That of the recipe of its training, if that ran unchanged but for seed and speed; or that of the model of
    RobustBench's zoo that it judges. Both within the same threat model.
    """
    if zoo := job.recipe["model"].get("zoo"):
        row = packaged().rows.get(f"robustbench-{zoo.replace('/', '-')}")
        return row if row and _judged_alike(job, row) else None
    entry = entry_of(training) if training else None
    if training is None or entry is None or training.name is None:
        return None
    same_question = judged_as_published(training, job) and not changes(training)
    return packaged().recipes[training.name] if same_question else None


def _judged_alike(job: Job, row: Row) -> bool:
    if row.eps is None or job.eps is None:
        return job.kind == row.board.threat_model == "corruptions"
    return job.norm == row.board.threat_model and abs(job.eps - row.eps) < 1e-9


@cache
def packaged() -> InPrint:
    """What comes with the package."""
    return in_print(packaged_documents())


def _known(db: Engine) -> InPrint:
    with _lock:
        memory = _memories.setdefault(db, _Memory())
    return memory.look(db)


class _Memory:
    """The published rows of one database. They change rarely, and one small query tells whether they did."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._mark: tuple[Any, ...] = (0, None)
        """How many rows were imported, and when the last one was."""
        self._known: InPrint | None = None

    def look(self, db: Engine) -> InPrint:
        with self._lock, reading(db) as session:
            # The mark before the rows: what changes in between is found at the next look.
            mark = tuple(session.execute(select(func.count(), func.max(ReportedRow.added_at))).one())
            if self._known is None or mark != self._mark:
                self._known, self._mark = _read(session) if mark[0] else packaged(), mark
            return self._known


_lock = Lock()
_memories: WeakKeyDictionary[Engine, _Memory] = WeakKeyDictionary()


def _read(session: Session) -> InPrint:
    """What comes with the package and what was imported, which takes the place of what has its name."""
    documents = {info.entry: info for info in packaged_documents()}
    for row in session.scalars(select(ReportedRow).order_by(ReportedRow.added_at, ReportedRow.entry)):
        try:
            documents[row.entry] = ModelInfo.model_validate(row.document)
        except ValidationError as error:  # written by another version
            _log.warning("the imported row %s is on no board: %s", row.entry, error)
    return in_print(documents.values())
