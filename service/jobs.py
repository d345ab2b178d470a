"""The ledger: every change of a job's state is made here, and nowhere else.

    queued --> running --> succeeded | failed
       ^  |      |  |
       |  |      |  +----> cancelling --> canceled      (seen by the worker, or the worker is silent)
       |  |      |
       |  +------|-------> canceled | failed            (never started; failed: what it waits for failed)
       +---------+                                      (worker silent or stopped: resumes elsewhere)

A claim carries its attempt number: a worker thought dead that wakes up gets ClaimLostError on its next write.
Every function is one transaction that locks the job's row first, so a job's events are in commit order.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, or_, select
from sqlalchemy.orm import Session, aliased

from dkl.events import Adjusted, BatchDone, CorruptionDone, Epoch, EvaluateResult, Finished, Progress, Started
from dkl.explain import InvalidRecipeError, read_recipe
from dkl.protocols import Checkpoint, EvaluateCorruptions, JobResult, Judgement
from dkl.recipes import Recipe, fingerprint
from service.db import Job, JobEvent, now, reading, writing

TERMINAL = frozenset({"succeeded", "failed", "canceled"})
_MOVES = {
    "queued": {"running", "canceled", "failed"},
    "running": {"succeeded", "failed", "cancelling", "queued"},
    "cancelling": {"canceled"},
}
_JOB_ID = re.compile(r"[0-9a-f]{12}")


class UnknownJobError(LookupError):
    """No job has this id."""


class RefusedError(ValueError):
    """The ledger does not take this; the message says why and what to do."""


class TooLateError(Exception):
    """The job has already ended."""


class ClaimLostError(Exception):
    """The job is no longer this worker's: stop at once and write nothing."""


@dataclass(frozen=True)
class Claim:
    """The right to run a job and to write about it."""

    job_id: str
    attempt: int
    worker: str
    recipe: Recipe
    checkpoint: str | None
    """sha256 of the stored checkpoint to judge; for evaluations of one."""


# --- asking -----------------------------------------------------------------------------------------------


def create(db: Engine, recipe: Recipe, *, name: str | None = None) -> Job:
    """A new queued job. RefusedError where it waits for a job that cannot give it a model."""
    threat = None if isinstance(recipe, EvaluateCorruptions) else recipe.threat
    with writing(db) as session:
        job = Job(
            id=secrets.token_hex(6),
            kind=recipe.kind,
            name=name,
            recipe=recipe.model_dump(mode="json"),
            fingerprint=fingerprint(recipe),
            parent_id=_parent(session, recipe),
            status="queued",
            dataset=recipe.dataset,
            norm=threat.norm if threat else None,
            eps=threat.eps if threat else None,
            created_at=_clock(session),
        )
        session.add(job)
        session.flush()
        _say(session, job, "status", {"status": "queued", "reason": None, "actor": "client"})
        return job


def _parent(session: Session, recipe: Recipe) -> str | None:
    if not isinstance(recipe, Judgement) or not isinstance(recipe.model, JobResult):
        return None
    parent = session.get(Job, recipe.model.job, with_for_update=True)
    if parent is None:
        raise RefusedError(f"model.job: there is no job {recipe.model.job}; name a training job of this service")
    if parent.kind != "train":
        raise RefusedError(f"model.job: job {parent.id} is an evaluation and has no model; name a training job")
    if parent.status in {"failed", "canceled", "cancelling"}:
        raise RefusedError(
            f"model.job: job {parent.id} was {_PAST[parent.status]} and has no model; "
            "train it again and name the new job"
        )
    return parent.id


_PAST = {"failed": "a failure", "canceled": "canceled", "cancelling": "canceled"}


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
    """The evaluations of this job's model, oldest first."""
    with reading(db) as session:
        return session.scalars(select(Job).where(Job.parent_id == job_id).order_by(Job.created_at)).all()


def revisions(db: Engine, job_ids: Sequence[str]) -> dict[str, int]:
    """The jobs' revisions: what changed since one looked."""
    with reading(db) as session:
        rows = session.execute(select(Job.id, Job.revision).where(Job.id.in_(job_ids)))
        return {row.id: row.revision for row in rows}


def cancel(db: Engine, job_id: str, *, actor: str = "client") -> Job:
    """Ask that the job ends: at once if it waits, soon if it runs. TooLateError after its end."""
    get(db, job_id)
    with writing(db) as session:
        job = _locked(session, job_id)
        match job.status:
            case "queued":
                _move(session, job, "canceled", reason="canceled before it started", actor=actor)
            case "running":
                _move(session, job, "cancelling", reason="canceled while it ran", actor=actor)
            case "cancelling" | "canceled":
                pass
            case _:
                raise TooLateError(f"job {job_id} has already {job.status}; there is nothing left to cancel")
        return job


# --- working ----------------------------------------------------------------------------------------------


def next_ready(db: Engine) -> str | None:
    """The id of the job that has been ready for longest."""
    with reading(db) as session:
        return session.scalars(select(Job.id).where(_ready()).order_by(Job.created_at, Job.id).limit(1)).first()


def claim(db: Engine, job_id: str, *, worker: str, lease_seconds: float) -> Claim | None:
    """The job, if it is ready and nobody was faster; else None, and the message about it may be dropped."""
    with writing(db) as session:
        job = session.scalars(select(Job).where(Job.id == job_id, _ready()).with_for_update(of=Job)).first()
        if job is None:
            return None
        try:
            recipe = read_recipe(job.recipe)
        except InvalidRecipeError as error:  # of an older version; nobody must wait for it for ever
            reason = f"its recipe cannot be read any more ({error}); submit it anew"
            _move(session, job, "failed", reason=reason, actor="ledger")
            return None
        job.attempt += 1
        job.worker = worker
        job.lease_until = _clock(session) + lease_seconds
        job.started_at = job.started_at or _clock(session)
        _move(session, job, "running", reason=None, actor=worker)
        return Claim(job.id, job.attempt, worker, recipe, _checkpoint(session, job, recipe))


def _checkpoint(session: Session, job: Job, recipe: Recipe) -> str | None:
    if not isinstance(recipe, Judgement):
        return None
    if isinstance(recipe.model, Checkpoint):
        return recipe.model.checkpoint
    if not isinstance(recipe.model, JobResult):
        return None
    parent = session.get_one(Job, job.parent_id)
    assert parent.result is not None  # _ready() saw it succeed
    sha256: str = parent.result["checkpoint_sha256"]
    return sha256


def heartbeat(db: Engine, claim: Claim, *, lease_seconds: float) -> bool:
    """Renew the lease. True: go on; False: somebody asked to cancel."""
    with writing(db) as session:
        job = _claimed(session, claim)
        job.lease_until = _clock(session) + lease_seconds
        return job.status == "running"


def append(
    db: Engine, claim: Claim, event: Started | Progress | Epoch | Adjusted | BatchDone | CorruptionDone
) -> bool:
    """Write down what the job said, once. True: go on; False: somebody asked to cancel."""
    with writing(db) as session:
        job = _claimed(session, claim)
        if isinstance(event, Progress):
            job.progress = event.model_dump(mode="json", exclude={"kind"})
            job.revision += 1
        else:
            _say(session, job, event.kind, event.model_dump(mode="json", exclude={"kind"}), key=event.key)
        return job.status == "running"


def finish(db: Engine, claim: Claim, finished: Finished) -> None:
    """The job ends well; one that was asked to cancel meanwhile is canceled."""
    result = finished.result
    with writing(db) as session:
        job = _claimed(session, claim)
        if job.status == "cancelling":
            _move(session, job, "canceled", reason=job.reason, actor=claim.worker)
            return
        job.result = result.model_dump(mode="json")
        job.clean_accuracy = result.clean_accuracy
        job.robust_accuracy = result.robust_accuracy if isinstance(result, EvaluateResult) else None
        _say(session, job, finished.kind, {"result": job.result}, key=finished.key)
        _move(session, job, "succeeded", reason=None, actor=claim.worker)


def fail(db: Engine, claim: Claim, reason: str) -> None:
    """The job ends with an error that running it again would meet again."""
    with writing(db) as session:
        job = _claimed(session, claim)
        to = "canceled" if job.status == "cancelling" else "failed"
        _move(session, job, to, reason=reason, actor=claim.worker)


def stopped(db: Engine, claim: Claim) -> None:
    """The worker stopped the job in good order: canceled if that was asked for, else back in the queue."""
    with writing(db) as session:
        job = _claimed(session, claim)
        if job.status == "cancelling":
            _move(session, job, "canceled", reason=job.reason, actor=claim.worker)
        else:
            _move(session, job, "queued", reason="its worker was shut down; it will resume", actor=claim.worker)


# --- healing ----------------------------------------------------------------------------------------------


def requeue_lost(db: Engine, *, max_losses: int) -> list[str]:
    """Take back every job whose worker went silent; returns their ids."""
    with writing(db) as session:
        silent = select(Job.id).where(Job.status.in_(("running", "cancelling")), Job.lease_until < now())
        lost = list(session.scalars(silent))
        for job_id in lost:
            job = _locked(session, job_id)
            if job.status not in {"running", "cancelling"} or (job.lease_until or 0) >= _clock(session):
                continue  # it beat between the two statements
            job.losses += 1
            if job.status == "cancelling":
                _move(session, job, "canceled", reason="canceled; its worker went silent", actor="sweeper")
            elif job.losses < max_losses:
                _move(session, job, "queued", reason=f"its worker {job.worker} went silent", actor="sweeper")
            else:
                reason = f"its worker went silent {job.losses} times, last {job.worker}; see that worker's log"
                _move(session, job, "failed", reason=reason, actor="sweeper")
        return lost


def take_unsent(db: Engine, *, resend_seconds: float) -> list[str]:
    """Ready jobs that the queue was not told about, or so long ago that the message must be lost."""
    with writing(db) as session:
        due = or_(Job.sent_at.is_(None), Job.sent_at < now() - resend_seconds)
        ready = select(Job).where(_ready(), due).order_by(Job.created_at).with_for_update(of=Job, skip_locked=True)
        jobs = session.scalars(ready).all()
        for job in jobs:
            job.sent_at = _clock(session)
        return [job.id for job in jobs]


# --- inside -----------------------------------------------------------------------------------------------


def _clock(session: Session) -> float:
    return session.execute(select(now())).scalar_one()


def _ready() -> ColumnElement[bool]:
    parent = aliased(Job)
    parent_done = select(parent.id).where(parent.id == Job.parent_id, parent.status == "succeeded").exists()
    return (Job.status == "queued") & (Job.parent_id.is_(None) | parent_done)


def _locked(session: Session, job_id: str) -> Job:
    return session.get_one(Job, job_id, with_for_update=True)


def _claimed(session: Session, claim: Claim) -> Job:
    job = _locked(session, claim.job_id)
    if job.attempt != claim.attempt or job.status not in {"running", "cancelling"}:
        raise ClaimLostError(
            f"job {job.id} is {job.status}, attempt {job.attempt}; this was attempt {claim.attempt}"
        )
    return job


def _say(session: Session, job: Job, kind: str, payload: dict[str, Any], *, key: str | None = None) -> None:
    known = select(JobEvent.id).where(JobEvent.job_id == job.id, JobEvent.key == key)
    if key is not None and session.scalars(known).first() is not None:
        return
    session.add(
        JobEvent(job_id=job.id, attempt=job.attempt, kind=kind, key=key, payload=payload, at=_clock(session))
    )
    job.revision += 1


def _move(session: Session, job: Job, to: str, *, reason: str | None, actor: str) -> None:
    assert to in _MOVES.get(job.status, ()), f"{job.status} -> {to}"
    job.status, job.reason = to, reason
    if to not in {"running", "cancelling"}:
        job.worker = job.lease_until = job.sent_at = None
    if to in TERMINAL:
        job.finished_at = _clock(session)
    _say(session, job, "status", {"status": to, "reason": reason, "actor": actor})
    if to in {"failed", "canceled"}:
        _fail_children(session, job)


def _fail_children(session: Session, job: Job) -> None:
    waiting = select(Job).where(Job.parent_id == job.id, Job.status == "queued").with_for_update()
    for child in session.scalars(waiting):
        reason = f"it waited for job {job.id}, which {'failed' if job.status == 'failed' else 'was canceled'}"
        _move(session, child, "failed", reason=reason, actor="ledger")
