"""What must hold in the ledger when all jobs have ended; read past the service."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from sqlalchemy import Engine, func, select

from service.db import reading
from service.tables import Chunk, Job, JobEvent, Seat

_OVER = ("succeeded", "failed", "canceled")
_NEXT = {
    "queued": {"running", "failed"},
    "running": {"queued", "running", "succeeded", "failed"},
}
"""Nobody cancels here. A second worker that sits down is no change of the job's status."""


def unfinished(db: Engine) -> int:
    """Jobs that have not ended."""
    with reading(db) as session:
        return session.scalar(select(func.count()).where(Job.status.not_in(_OVER))) or 0


def problems(db: Engine) -> list[str]:
    """Sentences about what does not fit together."""
    with reading(db) as session:
        found = [
            f"{session.scalar(select(func.count()).select_from(t))} rows in {t.__tablename__}" for t in _EMPTY
        ]
        found = [sentence for sentence in found if not sentence.startswith("0 ")]
        for job in session.scalars(select(Job)):
            events = session.scalars(select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.id)).all()
            found += [f"job {job.id}: {sentence}" for sentence in _of_job(job, events)]
    return found


_EMPTY = (Seat, Chunk)


def _of_job(job: Job, events: Sequence[JobEvent]) -> list[str]:
    statuses = [event.payload["status"] for event in events if event.kind == "status"]
    found = [f"it went from {a} to {b}" for a, b in pairwise(statuses) if b not in _NEXT.get(a, ())]
    if not statuses or statuses[-1] != job.status:
        found.append(f"its history ends with {statuses[-1:]}, it is {job.status}")
    for kind, most in Counter(event.key for event in events if event.key).items():
        if most > 1:
            found.append(f"it says {kind} {most} times")
    if job.status == "succeeded" and sum(event.kind == "finished" for event in events) != 1:
        found.append("it does not say exactly once that it finished")
    return found


def questions_twice(db: Engine, ids: Mapping[str, str]) -> list[str]:
    """Jobs that nobody knows of: submitted once, and taken twice."""
    with reading(db) as session:
        known = set(ids.values())
        strays = [job_id for job_id in session.scalars(select(Job.id)) if job_id not in known]
    return [f"job {job_id} was taken from a request that had no answer" for job_id in strays]
