"""The state machine of a job: every change of its status is made by `move`, with a reason, who did it and when.

    queued --> running --> succeeded | failed
     ^ ^  |      |  |
     | |  |      |  +----> cancelling --> canceled      (its workers have left it, or are silent)
     | |  |      |
     | |  +------|-------> canceled | failed            (never started; failed: what it waits for failed)
     | +---------+                                      (no worker is left on it: it resumes later)
     +-------------------- canceled | failed            (somebody resumes it: `jobs.resume`)

A job that has succeeded never changes again; running it again is a new job (`jobs.rerun`). These functions belong
to the ledger (jobs, claims, healing): they are called in a transaction that has locked the job's row, so a job's
events are in commit order.
"""

import secrets
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from service import files
from service.db import clock
from service.tables import Chunk, Delivery, Job, JobEvent, Seat

TERMINAL = frozenset({"succeeded", "failed", "canceled"})
ACTIVE = frozenset({"running", "cancelling"})
_MOVES = {
    "queued": {"running", "canceled", "failed"},
    "running": {"succeeded", "failed", "cancelling", "queued"},
    "cancelling": {"canceled"},
    "failed": {"queued"},
    "canceled": {"queued"},
}
LEDGER = "ledger"
"""Who acts where nobody asked: a rule of this diagram."""


def move(session: Session, job: Job, to: str, *, reason: str | None, actor: str) -> None:
    """Change the job's status and write down why; an end, and its revocation, have their consequences in the same
    transaction."""
    assert to in _MOVES.get(job.status, ()), f"{job.status} -> {to}"
    if job.status in TERMINAL:
        _reopen(session, job)
    job.status, job.reason = to, reason
    if to == "queued":
        job.sent_at = None
    say(session, job, "status", {"status": to, "reason": reason, "actor": actor})
    if to in TERMINAL:
        _end(session, job)


def say(
    session: Session, job: Job, kind: str, payload: dict[str, Any], *, key: str | None = None, attempt: int = 0
) -> bool:
    """Write down an event; False where it is a fact that is known already."""
    known = select(JobEvent.id).where(JobEvent.job_id == job.id, JobEvent.key == key)
    if key is not None and session.scalars(known).first() is not None:
        return False
    at = clock(session)
    session.add(
        JobEvent(job_id=job.id, attempt=attempt or job.attempt, kind=kind, key=key, payload=payload, at=at)
    )
    job.revision += 1
    return True


def locked(session: Session, job_id: str) -> Job:
    """The job, which nobody else changes until the transaction ends."""
    return session.get_one(Job, job_id, with_for_update=True, populate_existing=True)


def vacate(session: Session, seat: Seat) -> None:
    """Take the seat away; the chunk that it had taken is free again."""
    for chunk in session.scalars(
        select(Chunk).where(
            Chunk.job_id == seat.job_id, Chunk.attempt == seat.attempt, Chunk.found_sha256.is_(None)
        )
    ):
        chunk.attempt = None
    session.delete(seat)
    session.flush()


def lose(session: Session, job: Job, seat: Seat, reason: str, *, max_losses: int, actor: str) -> None:
    """A worker died on the job, or should have: another one tries, unless too many have got no further."""
    vacate(session, seat)
    job.losses += 1
    if job.status == "cancelling":
        if not is_taken(session, job):
            move(session, job, "canceled", reason=f"{job.reason}; {reason}", actor=actor)
    elif job.losses >= max_losses:
        reason = f"{reason}, the {_nth(job.losses)} time without getting any further{_last_known(job)}"
        move(session, job, "failed", reason=f"{reason}; see that worker's log", actor=actor)
    elif is_taken(session, job):
        say(session, job, "left", {"worker": seat.worker, "reason": reason}, attempt=seat.attempt)
        job.sent_at = None
    else:
        move(session, job, "queued", reason=reason, actor=actor)


def _nth(count: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(count, f"{count}th")


def _last_known(job: Job) -> str:
    return f"; last heard of at {job.progress['phase']}" if job.progress else "; it never said anything"


def is_taken(session: Session, job: Job) -> bool:
    """Whether any worker is on the job."""
    return session.scalars(select(Seat.attempt).where(Seat.job_id == job.id).limit(1)).first() is not None


def _end(session: Session, job: Job) -> None:
    job.finished_at = clock(session)
    job.sent_at = job.not_before = None
    session.execute(delete(Seat).where(Seat.job_id == job.id))
    if job.status == "succeeded":
        forget(session, job)
    else:  # it may be resumed
        unfinished = Chunk.job_id == job.id, Chunk.found_sha256.is_(None)
        session.execute(update(Chunk).where(*unfinished).values(attempt=None))
    if job.status != "succeeded" or job.kind == "import":  # what an import made of it is kept instead
        files.release(session, job.id, "source")
    if job.webhook:
        session.add(
            Delivery(
                id=secrets.token_hex(16),
                job_id=job.id,
                url=job.webhook,
                due_at=job.finished_at,
                created_at=job.finished_at,
            )
        )
    if job.status in {"failed", "canceled"}:
        _fail_children(session, job)


def forget(session: Session, job: Job) -> None:
    """Give up the verdicts of single chunks: the job has succeeded, or is not resumed any more."""
    session.execute(delete(Chunk).where(Chunk.job_id == job.id))
    files.release(session, job.id, "finding")


def _reopen(session: Session, job: Job) -> None:
    """The job has not ended after all. Attempts go on counting, so a claim from before its end stays void."""
    job.finished_at = None
    job.losses = 0
    late = Delivery.job_id == job.id, Delivery.due_at.is_not(None)
    session.execute(update(Delivery).where(*late).values(due_at=None, error="the job was resumed meanwhile"))


def _fail_children(session: Session, job: Job) -> None:
    waiting = select(Job).where(Job.parent_id == job.id, Job.status == "queued").with_for_update()
    for child in session.scalars(waiting):
        why = f": {job.reason}" if job.reason else ""
        reason = f"it waited for job {job.id}, which {'failed' if job.status == 'failed' else 'was canceled'}{why}"
        move(session, child, "failed", reason=reason, actor=LEDGER)
