"""Which jobs wait, which of them a worker may begin or join now, and in which order."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, and_, exists, func, or_, select
from sqlalchemy.orm import aliased

from service.db import now, reading
from service.moves import ACTIVE
from service.tables import ApiKey, Chunk, Job, JobPlugin

IN_ORDER = (Job.priority.desc(), Job.created_at, Job.id)
"""Higher priorities first, then the older job: an evaluation that is under way before a younger one begins."""


@dataclass(frozen=True)
class Offer:
    """What a worker has to give."""

    queues: tuple[str, ...]
    gpus: int
    gpu_memory: float
    """GiB of the smallest of its GPUs; 0 without."""
    processes: int
    """The most that may train together on it."""
    plugins: Collection[str] = ()
    """What is installed on it beside our own code: "model:NAME", "objective:NAME"."""


def ready(offer: Offer | None = None) -> ColumnElement[bool]:
    """Jobs that may be begun, and running evaluations with a free chunk; of those that fit `offer`, if given."""
    begin = and_(Job.status == "queued", _parent_done(), ~_key_is_busy(), _not_too_early())
    may = or_(begin, and_(Job.status == "running", _has_free_chunk()))
    return may if offer is None else and_(may, fits(offer))


def fits(offer: Offer) -> ColumnElement[bool]:
    """Jobs that this worker could run."""
    return and_(
        Job.queue.in_(offer.queues),
        Job.gpus <= offer.gpus,
        Job.gpu_memory <= offer.gpu_memory,
        Job.processes <= offer.processes,
        ~exists(JobPlugin.job_id).where(JobPlugin.job_id == Job.id, JobPlugin.plugin.not_in(offer.plugins)),
    )


def next_ready(db: Engine, offer: Offer) -> str | None:
    """The id of the job that this worker should take now."""
    with reading(db) as session:
        return session.scalars(select(Job.id).where(ready(offer)).order_by(*IN_ORDER).limit(1)).first()


def position(db: Engine, job: Job) -> int | None:
    """How many jobs of its queue come before it, itself counted; None where it does not wait."""
    if job.status != "queued":
        return None
    earlier = or_(
        Job.priority > job.priority,
        and_(Job.priority == job.priority, Job.created_at < job.created_at),
    )
    with reading(db) as session:
        waiting = select(func.count()).where(Job.status == "queued", Job.queue == job.queue, earlier)
        return session.execute(waiting).scalar_one() + 1


def _parent_done() -> ColumnElement[bool]:
    parent = aliased(Job)
    done = exists(parent.id).where(parent.id == Job.parent_id, parent.status == "succeeded")
    return Job.parent_id.is_(None) | done


def _key_is_busy() -> ColumnElement[bool]:
    """Whether the job's key has as many jobs running as it may."""
    other = aliased(Job)
    running = (
        select(func.count())
        .where(other.key_id == ApiKey.id, other.status.in_(ACTIVE))
        .correlate(ApiKey)
        .scalar_subquery()
    )
    return exists(ApiKey.id).where(ApiKey.id == Job.key_id, ApiKey.max_running <= running)


def _not_too_early() -> ColumnElement[bool]:
    return Job.not_before.is_(None) | (Job.not_before <= now())


def _has_free_chunk() -> ColumnElement[bool]:
    return exists(Chunk.job_id).where(
        Chunk.job_id == Job.id, Chunk.attempt.is_(None), Chunk.found_sha256.is_(None)
    )
