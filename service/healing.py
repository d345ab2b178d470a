"""What dead workers, hung jobs and lost messages leave behind, and how it is put right."""

from collections import Counter

from sqlalchemy import ColumnElement, Engine, func, select
from sqlalchemy.orm import Session

from service.db import clock, now, reading, writing
from service.moves import ACTIVE, locked, lose
from service.tables import Chunk, Job, Seat, Worker
from service.waiting import IN_ORDER, ready

SWEEPER = "sweeper"


def requeue_lost(db: Engine, *, max_losses: int) -> list[str]:
    """Take every job back from a worker that went silent; returns their ids."""
    why = "its worker {worker} went silent"
    return _take_back(db, Seat.lease_until < now(), why, max_losses=max_losses, actor=SWEEPER)


def requeue_stalled(db: Engine, *, stall_seconds: float, max_losses: int) -> list[str]:
    """Take every job back that has said nothing for so long, although its worker's heart beats."""
    why = f"it made no progress for {stall_seconds:g} s on worker {{worker}}"
    return _take_back(db, Seat.progress_at < now() - stall_seconds, why, max_losses=max_losses, actor=SWEEPER)


def requeue_orphaned(db: Engine, worker: str, *, max_losses: int) -> list[str]:
    """Take back what an earlier process of this worker held: it must have died."""
    why = "its process on worker {worker} died"
    return _take_back(db, Seat.worker == worker, why, max_losses=max_losses, actor=worker)


def _take_back(db: Engine, condition: ColumnElement[bool], why: str, *, max_losses: int, actor: str) -> list[str]:
    with reading(db) as session:
        found = session.execute(select(Seat.job_id, Seat.attempt).where(condition)).all()
    lost = []
    for job_id, attempt in found:
        with writing(db) as session:
            job = locked(session, job_id)
            still = select(Seat).where(Seat.job_id == job_id, Seat.attempt == attempt, condition)
            seat = session.scalars(still.execution_options(populate_existing=True)).first()
            if seat is not None and job.status in ACTIVE:  # it neither beat nor ended between the two
                lose(session, job, seat, why.format(worker=seat.worker), max_losses=max_losses, actor=actor)
                lost.append(job_id)
    return list(dict.fromkeys(lost))


# --- messages ---------------------------------------------------------------------------------------------


def take_unsent(db: Engine, *, resend_seconds: float, lease_seconds: float) -> list[tuple[str, str]]:
    """Messages to send, as job and queue: one for each job that became ready, and some for what waits in vain.

    Workers ask the ledger what to do, so a message is only a knock at a queue: for jobs that wait longer than
    `resend_seconds` there are no more than idle workers, and for a running evaluation no more than free chunks.
    """
    with writing(db) as session:
        idle = _idle(session, lease_seconds)
        wanted = select(Job).where(ready()).order_by(*IN_ORDER).with_for_update(of=Job, skip_locked=True)
        due = list(session.scalars(wanted.where(Job.sent_at.is_(None))))
        if idle.total():  # else nobody would hear it, and a long queue is not read again for every message
            stale = wanted.where(Job.sent_at < now() - resend_seconds, Job.queue.in_(idle))
            due += session.scalars(stale.limit(idle.total()))
        messages = []
        for job in due:
            if job.status == "running":
                knocks = min(_free_chunks(session, job.id), idle[job.queue])
            else:
                knocks = 1 if job.sent_at is None else min(1, idle[job.queue])
            idle[job.queue] = max(0, idle[job.queue] - knocks)
            messages += [(job.id, job.queue)] * knocks
            if knocks:
                job.sent_at = clock(session)
        return messages


def _idle(session: Session, lease_seconds: float) -> Counter[str]:
    """How many living workers without a job serve each queue."""
    busy = select(Seat.worker)
    alive = select(Worker.queues).where(
        Worker.beat_at > now() - lease_seconds, ~Worker.draining, Worker.name.not_in(busy)
    )
    return Counter(queue for queues in session.scalars(alive) for queue in queues)


def _free_chunks(session: Session, job_id: str) -> int:
    free = (Chunk.job_id == job_id, Chunk.attempt.is_(None), Chunk.found_sha256.is_(None))
    return session.execute(select(func.count()).where(*free)).scalar_one()
