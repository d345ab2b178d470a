"""Published results that an admin brings in: kept as RobustBench's documents, audited, and taken out again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from service import audit
from service.callers import Caller
from service.db import clock, reading, writing
from service.model_info import ModelInfo
from service.tables import ReportedRow

_NAMED = 20
"""Entries that the audit log names of each kind; it counts them all."""


class UnknownReportError(LookupError):
    """Nobody imported this entry; the message says what can be taken out."""


class Imported(NamedTuple):
    """What became of each entry."""

    added: list[str]
    changed: list[str]
    unchanged: list[str]


def bring(db: Engine, documents: Sequence[ModelInfo], *, caller: Caller) -> Imported:
    """Keep all of these documents, or none. One that is there already, under the same name, is replaced."""
    done = Imported([], [], [])
    wanted = {info.entry: info.stored() for info in documents}  # of two with the same name the last one
    with writing(db) as session:
        _one_at_a_time(session)
        there, now = _there(session, list(wanted)), clock(session)
        for entry, document in wanted.items():
            if entry in there and there[entry].document == document:
                done.unchanged.append(entry)
                continue
            (done.changed if entry in there else done.added).append(entry)
            session.merge(ReportedRow(entry=entry, document=document, added_at=now, added_by=caller.name))
        if done.added or done.changed:
            audit.record(session, caller, "reported.import", "published rows", **_detail(done))
    return done


def _one_at_a_time(session: Session) -> None:
    """Two who import the same entry do not meet. SQLite has one writer at a time anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("LOCK TABLE reported_rows IN SHARE ROW EXCLUSIVE MODE"))


def _there(session: Session, entries: list[str]) -> dict[str, ReportedRow]:
    found = session.scalars(select(ReportedRow).where(ReportedRow.entry.in_(entries)))
    return {row.entry: row for row in found}


def _detail(done: Imported) -> dict[str, Any]:
    return {
        "added": len(done.added),
        "changed": len(done.changed),
        "entries": [*done.added, *done.changed][:_NAMED],
    }


def take_out(db: Engine, entry: str, *, caller: Caller) -> ReportedRow:
    """Forget an imported row. One of the package that it took the place of is on its board again."""
    with writing(db) as session:
        row = session.get(ReportedRow, entry)
        if row is None:
            raise UnknownReportError(f"no imported row is called {entry!r}; GET /api/v1/reported lists them")
        session.delete(row)
        audit.record(session, caller, "reported.delete", entry, added_by=row.added_by)
    return row


def imported(db: Engine, *, after: str = "", limit: int = 1000) -> Sequence[ReportedRow]:
    """The imported rows by entry, those after entry `after`."""
    query = select(ReportedRow).where(ReportedRow.entry > after).order_by(ReportedRow.entry).limit(limit)
    with reading(db) as session:
        return session.scalars(query).all()
