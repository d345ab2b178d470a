"""The audit log: who did what, written in the transaction that does it. The database refuses to change it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from service.callers import Caller
from service.db import clock, reading
from service.tables import AuditEvent


def record(session: Session, caller: Caller, action: str, object_: str, **detail: Any) -> None:
    """Note that `caller` did `action` ("key.revoke") to `object_`; `detail` is JSON, without secrets."""
    session.add(
        AuditEvent(
            at=clock(session),
            actor=caller.name,
            action=action,
            object=object_,
            detail=detail,
            address=caller.address,
            request_id=caller.request_id,
        )
    )


def recent(db: Engine, *, before: int | None = None, limit: int = 100) -> Sequence[AuditEvent]:
    """The newest entries, newest first; those older than entry `before`, to page on."""
    query = select(AuditEvent).order_by(AuditEvent.id.desc()).limit(limit)
    with reading(db) as session:
        return session.scalars(query if before is None else query.where(AuditEvent.id < before)).all()
