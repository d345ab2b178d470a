"""The ledger, for those who ask: jobs are created, looked up, canceled, resumed and run again here.

service/moves.py has the diagram of a job's states, service/claims.py is for those who work on jobs, and
service/healing.py puts right what they leave behind. Nothing else changes a job.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from dkl.explain import InvalidRecipeError, read_recipe
from dkl.imports import Import
from dkl.protocols import Checkpoint, Evaluate
from dkl.recipes import Fit, Recipe, Train, fingerprint
from service import audit, files
from service.callers import ANONYMOUS, Caller
from service.db import clock, reading, writing
from service.lineage import MAKERS, awaited, needed, why_unfit
from service.moves import TERMINAL, move, say
from service.plugin_needs import plugins_for
from service.tables import Artifact, ArtifactUse, Job, JobEvent, JobPlugin

DEFAULT_QUEUE = "gpu"
LARGEST_PRIORITY = 100
_JOB_ID = re.compile(r"[0-9a-f]{12}")


class UnknownJobError(LookupError):
    """No job has this id."""


class RefusedError(ValueError):
    """The ledger does not take this; the message says why and what to do."""


class TooManyError(Exception):
    """Too many jobs of this caller wait already."""


class NotYoursError(Exception):
    """The job belongs to another key."""


class TooLateError(Exception):
    """The job is not in a state in which this could be done."""


# --- asking -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """A recipe to run, and how it is to be scheduled."""

    recipe: Recipe
    name: str | None = None
    """Of the catalogue, where it was submitted under one."""
    id: str | None = None
    """Of `new_id`, where the job must be known by it before it exists."""
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    gpus: int = 0
    gpu_memory: float = 0.0
    """GiB per GPU."""
    webhook: str | None = None
    rerun_of: str | None = None


def new_id() -> str:
    return secrets.token_hex(6)


def create(
    db: Engine,
    recipe: Recipe,
    *,
    name: str | None = None,
    caller: Caller = ANONYMOUS,
    max_queued: int | None = None,
) -> Job:
    """A new queued job with nothing special about it; see `create_all`."""
    return create_all(db, [Order(recipe, name)], caller=caller, max_queued=None)[0]


def create_all(db: Engine, orders: Sequence[Order], *, caller: Caller, max_queued: int | None) -> list[Job]:
    """New queued jobs, all or none; later ones may name earlier ones as their model.

    RefusedError where one waits for a job that cannot give it a model; TooManyError where more than `max_queued`
    jobs of the caller would wait; files.QuotaError where the caller's key stores more than it may.
    """
    with writing(db) as session:
        _lock_parents(session, [order.recipe for order in orders])
        _require_room(session, caller, len(orders), max_queued)
        return [_create(session, order, caller) for order in orders]


def _create(session: Session, order: Order, caller: Caller) -> Job:
    recipe = order.recipe
    threat = recipe.threat if isinstance(recipe, Fit | Evaluate) else None
    job = Job(
        id=order.id or new_id(),
        kind=recipe.kind,
        name=order.name,
        recipe=recipe.model_dump(mode="json"),
        fingerprint=fingerprint(recipe),
        parent_id=_parent(session, recipe),
        rerun_of=order.rerun_of,
        key_id=caller.key_id,
        queue=order.queue,
        priority=order.priority,
        gpus=order.gpus,
        gpu_memory=order.gpu_memory,
        processes=recipe.processes if isinstance(recipe, Train) else 1,
        webhook=order.webhook,
        status="queued",
        dataset=recipe.dataset,
        norm=threat.norm if threat else None,
        eps=threat.eps if threat else None,
        created_at=clock(session),
    )
    session.add(job)
    session.flush()
    session.add_all(JobPlugin(job_id=job.id, plugin=plugin) for plugin in plugins_for(session, recipe))
    if (source := _source(recipe)) is not None:
        files.use(session, source, job.id, "source")
    say(session, job, "status", {"status": "queued", "reason": None, "actor": caller.name})
    detail = {"kind": job.kind, "name": job.name, "fingerprint": job.fingerprint, "rerun_of": order.rerun_of}
    audit.record(session, caller, "job.create", job.id, **detail)
    session.refresh(job)
    return job


def _lock_parents(session: Session, recipes: Sequence[Recipe]) -> None:
    """Jobs before keys, as `claims.claim` locks them: otherwise the two could wait for each other."""
    ids = {awaited(recipe) for recipe in recipes} - {None}
    if ids:
        session.execute(select(Job.id).where(Job.id.in_(ids)).order_by(Job.id).with_for_update())


def _require_room(session: Session, caller: Caller, more: int, max_queued: int | None) -> None:
    files.require_quota(session, caller.key_id, 0)
    if max_queued is None:
        return
    same = Job.key_id.is_(None) if caller.key_id is None else Job.key_id == caller.key_id
    waiting = session.execute(select(func.count()).where(Job.status == "queued", same)).scalar_one()
    if waiting + more > max_queued:
        raise TooManyError(
            f"{waiting} of your jobs wait already and {max_queued} may; wait until some have run, or cancel some"
        )


def _parent(session: Session, recipe: Recipe) -> str | None:
    need, asked = needed(recipe), awaited(recipe)
    if need is None or asked is None:
        return None
    field = f"{need.field}.job"
    parent = session.get(Job, asked, with_for_update=True)
    if parent is None:
        raise RefusedError(f"{field}: there is no job {asked}; name a training job of this service")
    if parent.kind not in MAKERS:
        raise RefusedError(f"{field}: job {parent.id} is an evaluation and has no model; name a training job")
    if parent.status in {"failed", "canceled", "cancelling"}:
        raise RefusedError(
            f"{field}: job {parent.id} was {_PAST[parent.status]} and has no model; "
            "resume it, or run it again and name the new job"
        )
    if parent.status == "succeeded" and not _has_model(session, parent):
        raise RefusedError(
            f"{field}: the files of job {parent.id} were given up; run it again and name the new job"
        )
    if why := why_unfit(recipe, parent.dataset):
        raise RefusedError(f"{field}: job {parent.id} {why}")
    return parent.id


def _source(recipe: Recipe) -> str | None:
    """sha256 of the stored file that the recipe names."""
    need = needed(recipe)
    if need and isinstance(need.source, Checkpoint):
        return need.source.checkpoint
    return recipe.upload if isinstance(recipe, Import) else None


def _has_model(session: Session, job: Job) -> bool:
    sha256 = (job.result or {})["checkpoint_sha256"]
    return session.get(ArtifactUse, (sha256, job.id, "checkpoint")) is not None


_PAST = {"failed": "a failure", "canceled": "canceled", "cancelling": "canceled"}


def cancel(db: Engine, job_id: str, *, caller: Caller = ANONYMOUS) -> Job:
    """Ask that the job ends: at once if it waits, soon if it runs. TooLateError after its end."""
    get(db, job_id)
    with writing(db) as session:
        job = _own(session, job_id, caller)
        match job.status:
            case "queued":
                move(session, job, "canceled", reason="canceled before it started", actor=caller.name)
            case "running":
                move(session, job, "cancelling", reason="canceled while it ran", actor=caller.name)
            case "cancelling" | "canceled":
                return job
            case _:
                raise TooLateError(f"job {job_id} has already {job.status}; there is nothing left to cancel")
        audit.record(session, caller, "job.cancel", job_id)
        return job


def rerun(db: Engine, job_id: str, *, caller: Caller = ANONYMOUS, max_queued: int | None = None) -> Job:
    """A new job that runs an ended one again. TooLateError while that one has not ended."""
    recipe = _recipe(get(db, job_id))
    with writing(db) as session:
        _lock_parents(session, [recipe])
        job = _own(session, job_id, caller)
        if job.status not in TERMINAL:
            raise TooLateError(f"job {job_id} is {job.status}; cancel it or wait for its end to run it again")
        _require_room(session, caller, 1, max_queued)
        order = Order(
            recipe, job.name, None, job.queue, job.priority, job.gpus, job.gpu_memory, job.webhook, rerun_of=job.id
        )
        return _create(session, order, caller)


def resume(db: Engine, job_id: str, *, caller: Caller = ANONYMOUS, max_queued: int | None = None) -> Job:
    """A job that failed or was canceled waits again. It goes on where it stopped, as far as that is still kept, or
    else begins anew and comes to the same. Evaluations that failed because they waited for it wait again, too.

    TooLateError where it has not ended so; RefusedError where it cannot have what it needs.
    """
    recipe = _recipe(get(db, job_id))
    with writing(db) as session:
        _lock_parents(session, [recipe])
        job = _own(session, job_id, caller)
        if job.status not in {"failed", "canceled"}:
            way = "run it again instead" if job.status == "succeeded" else "only what has ended is resumed"
            raise TooLateError(f"job {job_id} is {job.status}; {way}")
        waited = _failed_children(session, job)
        _require_room(session, caller, 1 + len(waited), max_queued)
        _parent(session, recipe)
        _use_again(session, recipe, job)
        move(session, job, "queued", reason="resumed", actor=caller.name)
        for child in waited:
            move(session, child, "queued", reason=f"job {job_id} was resumed", actor=caller.name)
        audit.record(session, caller, "job.resume", job_id, children=[child.id for child in waited])
        return job


def _failed_children(session: Session, job: Job) -> Sequence[Job]:
    """Those that failed with it: of a model that never came no evaluation can have failed by itself."""
    failed = select(Job).where(Job.parent_id == job.id, Job.status == "failed").order_by(Job.id)
    return session.scalars(failed.with_for_update()).all()


def _use_again(session: Session, recipe: Recipe, job: Job) -> None:
    if (source := _source(recipe)) is None:
        return
    files.hold(session, source)
    if session.get(Artifact, source) is None:
        raise RefusedError(
            f"the file {source[:8]} of job {job.id} is no longer stored; upload it and submit it anew"
        )
    files.use(session, source, job.id, "source")


def _recipe(job: Job) -> Recipe:
    try:
        return read_recipe(job.recipe)
    except InvalidRecipeError as error:
        raise RefusedError(f"the recipe of job {job.id} cannot be read any more; submit it anew") from error


def _own(session: Session, job_id: str, caller: Caller) -> Job:
    job = session.get_one(Job, job_id, with_for_update=True)
    if not caller.owns(job.key_id):
        raise NotYoursError(f"job {job_id} was submitted with another key; use that one, or an admin's")
    return job


# --- looking ----------------------------------------------------------------------------------------------


def get(db: Engine, job_id: str) -> Job:
    """The job, or UnknownJobError."""
    with reading(db) as session:
        job = session.get(Job, job_id) if _JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise UnknownJobError(f"there is no job {job_id!r}; the list of jobs has them all")
    return job


def recent(db: Engine, *, status: str | None = None, limit: int = 100) -> Sequence[Job]:
    """The newest jobs, newest first."""
    query = select(Job).order_by(Job.created_at.desc(), Job.id).limit(limit)
    with reading(db) as session:
        return session.scalars(query.where(Job.status == status) if status else query).all()


def events(db: Engine, job_id: str, *, after: int = 0) -> Sequence[JobEvent]:
    """What was written about the job after event `after`, oldest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after).order_by(JobEvent.id)
    with reading(db) as session:
        return session.scalars(query).all()


def children(db: Engine, job_id: str) -> Sequence[Job]:
    """The jobs that judge this one's model or learn from it, oldest first."""
    with reading(db) as session:
        return session.scalars(select(Job).where(Job.parent_id == job_id).order_by(Job.created_at)).all()
