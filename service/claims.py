"""Working on jobs: a worker claims one, writes about it, and ends it or gives it back.

A claim is a seat at the job, with a number of its own. A training has one seat; at an evaluation any number of
workers may sit, and share its chunks. A worker thought dead that wakes up has lost its seat, and gets
ClaimLostError on its next write. Every function is one transaction that locks the job's row first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from dkl.events import Adjusted, BatchDone, CorruptionDone, Epoch, EvaluateResult, Finished, Progress, Started
from dkl.explain import InvalidRecipeError, read_recipe
from dkl.protocols import Checkpoint, JobResult
from dkl.recipes import Recipe
from service import files
from service.db import clock, reading, writing
from service.lineage import needed
from service.moves import ACTIVE, LEDGER, is_taken, locked, lose, move, say, vacate
from service.tables import ApiKey, Chunk, Job, Seat
from service.waiting import Offer, ready


class ClaimLostError(Exception):
    """The job is no longer this worker's: stop at once and write nothing."""


@dataclass(frozen=True)
class Claim:
    """The right to run a job, or to help with it, and to write about it."""

    job_id: str
    attempt: int
    worker: str
    recipe: Recipe
    checkpoint: str | None
    """sha256 of the stored checkpoint to judge or to learn from, where there is one."""
    key_id: str | None
    """Whose storage the files that it leaves count to."""


Part = tuple[int, int]
"""A chunk of an evaluation: stage and batch."""


# --- one's seat -------------------------------------------------------------------------------------------


def claim(
    db: Engine, job_id: str, *, worker: str, lease_seconds: float, offer: Offer | None = None
) -> Claim | None:
    """A seat at the job, if it is ready for this worker; else None, and the message about it may be dropped."""
    with writing(db) as session:
        wanted = select(Job).where(Job.id == job_id, ready(offer))
        job = session.scalars(wanted.with_for_update(of=Job)).first()
        if job is None:
            return None
        if job.key_id is not None and job.status == "queued":  # two of its jobs must not start at the same time
            session.get_one(ApiKey, job.key_id, with_for_update={"key_share": True})
            if session.scalars(wanted).first() is None:
                return None
        try:
            recipe = read_recipe(job.recipe)
        except InvalidRecipeError as error:  # of an older version; nobody must wait for it for ever
            reason = f"its recipe cannot be read any more ({error}); submit it anew"
            move(session, job, "failed", reason=reason, actor=LEDGER)
            return None
        job.attempt += 1
        at = clock(session)
        session.add(
            Seat(
                job_id=job.id,
                attempt=job.attempt,
                worker=worker,
                taken_at=at,
                lease_until=at + lease_seconds,
                progress_at=at,
            )
        )
        if job.status == "queued":
            job.started_at = job.started_at or at
            move(session, job, "running", reason=None, actor=worker)
        else:
            say(session, job, "joined", {"worker": worker})
        return Claim(job.id, job.attempt, worker, recipe, _checkpoint(session, job, recipe), job.key_id)


def _checkpoint(session: Session, job: Job, recipe: Recipe) -> str | None:
    need = needed(recipe)
    if need and isinstance(need.source, Checkpoint):
        return need.source.checkpoint
    if need is None or not isinstance(need.source, JobResult):
        return None
    parent = session.get_one(Job, job.parent_id)
    assert parent.result is not None  # ready() saw it succeed
    sha256: str = parent.result["checkpoint_sha256"]
    return sha256


def heartbeat(db: Engine, claim: Claim, *, lease_seconds: float) -> bool:
    """Renew the lease. True: go on; False: somebody asked to cancel."""
    with writing(db) as session:
        job, seat = _claimed(session, claim)
        seat.lease_until = clock(session) + lease_seconds
        return job.status == "running"


Fact = Started | Epoch | Adjusted | BatchDone | CorruptionDone


def append(db: Engine, claim: Claim, *events: Fact | Progress) -> bool:
    """Write down what the job said, facts once. True: go on; False: somebody asked to cancel."""
    with writing(db) as session:
        job, seat = _claimed(session, claim)
        seat.progress_at = clock(session)
        for event in events:
            if isinstance(event, Progress):
                _progress(job, event)
            else:
                payload = event.model_dump(mode="json", exclude={"kind"})
                new = say(session, job, event.kind, payload, key=event.key, attempt=claim.attempt)
                if new and event.key is not None:
                    job.losses = 0  # it got further than whoever died before
        return job.status == "running"


def _progress(job: Job, event: Progress) -> None:
    now = event.model_dump(mode="json", exclude={"kind"})
    if job.kind == "evaluate" and job.progress:  # each of its workers sees the others' part late
        now["done"] = max(now["done"], job.progress["done"])
    job.progress = now
    job.revision += 1


# --- shared evaluations -----------------------------------------------------------------------------------


def announce(db: Engine, claim: Claim, parts: Sequence[Part]) -> None:
    """These chunks may be judged now, by anyone; what is known of them stays."""
    with writing(db) as session:
        job, _ = _claimed(session, claim)
        known = _chunks(session, job.id)
        new = [part for part in parts if part not in known]
        session.add_all(Chunk(job_id=job.id, stage=stage, batch=batch) for stage, batch in new)
        if new:
            job.sent_at = None  # others may help


def take_chunk(db: Engine, claim: Claim, parts: Sequence[Part]) -> Part | None:
    """The one of `parts` that this worker has, or else the first that nobody has; None where there is none."""
    with writing(db) as session:
        job, seat = _claimed(session, claim)
        seat.progress_at = clock(session)
        chunks = _chunks(session, job.id)
        open_ = [part for part in parts if chunks[part].found_sha256 is None]
        for holder in (claim.attempt, None):
            for part in open_:
                if chunks[part].attempt == holder:
                    chunks[part].attempt = claim.attempt
                    return part
        return None


def chunk_done(db: Engine, claim: Claim, part: Part, *, found_sha256: str) -> bool:
    """The chunk's verdicts are in the store; the first count. True: go on; False: somebody asked to cancel."""
    with writing(db) as session:
        job, seat = _claimed(session, claim)
        seat.progress_at = clock(session)
        chunk = session.get_one(Chunk, (job.id, *part))
        if chunk.found_sha256 is None:
            chunk.found_sha256 = found_sha256
            files.use(session, found_sha256, job.id, "finding")
            job.losses = 0
        return job.status == "running"


def chunk_lost(db: Engine, claim: Claim, part: Part, *, found_sha256: str) -> None:
    """The chunk's verdicts are damaged or gone: it has to be judged again."""
    with writing(db) as session:
        job, _ = _claimed(session, claim)
        chunk = session.get_one(Chunk, (job.id, *part))
        if chunk.found_sha256 == found_sha256:
            chunk.found_sha256 = chunk.attempt = None


def chunks_done(db: Engine, claim: Claim) -> Mapping[Part, str]:
    """The sha256 of the verdicts of every chunk that is done."""
    with reading(db) as session:
        done = select(Chunk).where(Chunk.job_id == claim.job_id, Chunk.found_sha256.is_not(None))
        return {(chunk.stage, chunk.batch): chunk.found_sha256 or "" for chunk in session.scalars(done)}


def leave(db: Engine, claim: Claim) -> bool:
    """Give the seat back because there is nothing to take. False where this is the last one: it has to go on."""
    with writing(db) as session:
        job, seat = _claimed(session, claim)
        others = select(Seat.attempt).where(Seat.job_id == job.id, Seat.attempt != claim.attempt)
        if session.scalars(others.limit(1)).first() is None:
            return False
        vacate(session, seat)
        say(session, job, "left", {"worker": claim.worker}, attempt=claim.attempt)
        return True


def _chunks(session: Session, job_id: str) -> dict[Part, Chunk]:
    chunks = session.scalars(select(Chunk).where(Chunk.job_id == job_id))
    return {(chunk.stage, chunk.batch): chunk for chunk in chunks}


# --- the end of it ----------------------------------------------------------------------------------------


def finish(db: Engine, claim: Claim, finished: Finished) -> None:
    """The job ends well; one that was asked to cancel meanwhile is canceled. Its files are in the store."""
    result = finished.result
    with writing(db) as session:
        job, seat = _claimed(session, claim)
        if job.status == "cancelling":
            _give_back(session, job, seat, reason=None)
            return
        job.result = result.model_dump(mode="json")
        job.clean_accuracy = getattr(result, "clean_accuracy", None)
        job.robust_accuracy = result.robust_accuracy if isinstance(result, EvaluateResult) else None
        for role in ("checkpoint", "evidence"):
            if sha256 := job.result.get(f"{role}_sha256"):
                files.use(session, sha256, job.id, role)
        say(session, job, finished.kind, {"result": job.result}, key=finished.key, attempt=claim.attempt)
        move(session, job, "succeeded", reason=None, actor=claim.worker)


def fail(db: Engine, claim: Claim, reason: str) -> None:
    """The job ends with an error that running it again would meet again."""
    with writing(db) as session:
        job, _ = _claimed(session, claim)
        to = "canceled" if job.status == "cancelling" else "failed"
        move(session, job, to, reason=reason, actor=claim.worker)


def broken(db: Engine, claim: Claim, reason: str, *, max_losses: int) -> None:
    """The worker, not the job, seems broken: another one tries, unless too many have met this."""
    with writing(db) as session:
        job, seat = _claimed(session, claim)
        lose(session, job, seat, reason, max_losses=max_losses, actor=claim.worker)


def stopped(db: Engine, claim: Claim) -> None:
    """The worker left the job in good order, because it was shut down or the job is being canceled."""
    with writing(db) as session:
        job, seat = _claimed(session, claim)
        _give_back(session, job, seat, reason="its worker was shut down; it will resume")


def setback(db: Engine, claim: Claim, reason: str, *, pause_seconds: float) -> None:
    """Something that passes by itself stopped the worker, such as a full disk: the job resumes after a pause."""
    with writing(db) as session:
        job, seat = _claimed(session, claim)
        job.not_before = clock(session) + pause_seconds
        _give_back(session, job, seat, reason=reason)


def _give_back(session: Session, job: Job, seat: Seat, *, reason: str | None) -> None:
    """Without a worker left, a job that runs waits again, and one that is being canceled is canceled."""
    vacate(session, seat)
    if is_taken(session, job):
        say(session, job, "left", {"worker": seat.worker, "reason": reason}, attempt=seat.attempt)
        job.sent_at = None  # its chunk is free again
    elif job.status == "cancelling":
        move(session, job, "canceled", reason=job.reason, actor=seat.worker)
    else:
        move(session, job, "queued", reason=reason, actor=seat.worker)


def _claimed(session: Session, claim: Claim) -> tuple[Job, Seat]:
    job = locked(session, claim.job_id)
    seat = session.get(Seat, (claim.job_id, claim.attempt), populate_existing=True)
    if seat is None or job.status not in ACTIVE:
        raise ClaimLostError(f"job {job.id} is {job.status}, and attempt {claim.attempt} is no longer at it")
    return job, seat
