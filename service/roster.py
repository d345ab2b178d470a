"""The workers as people see them: what each of them is doing, and how long ago it was heard of."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import StringConstraints
from sqlalchemy import Engine, func, select

from service.db import clock, reading
from service.tables import Job, Seat, Worker

WorkerState = Literal["idle", "working", "draining", "silent"]
WorkerName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""As somebody asks for it. Databases refuse some control characters with errors of their own."""


@dataclass(frozen=True)
class Shown:
    """A worker and what it is at."""

    worker: Worker
    jobs: Sequence[Job]
    """It holds a claim on them, the oldest first."""
    seconds_since_beat: float
    state: WorkerState
    """silent: no heartbeat for a whole lease, so its jobs go to others. draining: takes nothing more, whether it
    still has a job or not."""


def roster(db: Engine, *, lease_seconds: float) -> list[Shown]:
    """Every known worker by name, silent ones last."""
    with reading(db) as session:
        at = clock(session)
        workers = session.scalars(select(Worker).order_by(Worker.name)).all()
        seats = select(Seat.worker, Job).join(Job, Job.id == Seat.job_id).order_by(Seat.taken_at)
        jobs = defaultdict[str, list[Job]](list)
        for name, job in session.execute(seats):
            jobs[name].append(job)
    shown = [_show(worker, jobs[worker.name], at - worker.beat_at, lease_seconds) for worker in workers]
    return sorted(shown, key=lambda one: one.state == "silent")


def _show(worker: Worker, jobs: Sequence[Job], silent: float, lease_seconds: float) -> Shown:
    state: WorkerState = "working" if jobs else "idle"
    if worker.draining:
        state = "draining"
    if silent > lease_seconds:
        state = "silent"
    return Shown(worker, jobs, max(silent, 0.0), state)


def queued(db: Engine) -> dict[str, int]:
    """How many jobs wait in each queue."""
    with reading(db) as session:
        waiting = select(Job.queue, func.count()).where(Job.status == "queued").group_by(Job.queue)
        return dict(session.execute(waiting.order_by(Job.queue)).all())
