"""Jobs that failed or were canceled go on: what that changes in the ledger, and what it leaves alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from samples import EPOCH, TRAIN, TRAINED
from sqlalchemy import Engine, select

from dkl.catalog import resolve
from service import claims, files, healing, jobs
from service.callers import ANONYMOUS, COMMAND_LINE, Caller
from service.db import clock, reading, writing
from service.jobs import Order
from service.tables import ApiKey, ArtifactUse, AuditEvent, Delivery, Job, Seat

End = Callable[[Engine, claims.Claim], None]


def claim(db: Engine, job_id: str, worker: str = "w1") -> claims.Claim:
    taken = claims.claim(db, job_id, worker=worker, lease_seconds=60)
    assert taken is not None
    return taken


def judging(training: str) -> str:
    return resolve("autoattack-digits-linf", {"model.job": training})


def fail(db: Engine, held: claims.Claim) -> None:
    claims.fail(db, held, "loss is nan")


def cancel(db: Engine, held: claims.Claim) -> None:
    jobs.cancel(db, held.job_id)
    claims.stopped(db, held)


def lose(db: Engine, held: claims.Claim) -> None:
    """Its worker dies, once too often."""
    with writing(db) as session:
        session.get_one(Seat, (held.job_id, held.attempt)).lease_until = 0.0
    healing.requeue_lost(db, max_losses=1)


@pytest.mark.parametrize("end", [fail, cancel, lose])
def test_a_job_that_ended_badly_goes_on(db: Engine, end: End) -> None:
    job_id = jobs.create(db, TRAIN, name="natural-digits").id
    before = claim(db, job_id)
    claims.append(db, before, EPOCH)
    end(db, before)
    revision = jobs.get(db, job_id).revision

    resumed = jobs.resume(db, job_id, caller=COMMAND_LINE)
    assert (resumed.status, resumed.losses, resumed.finished_at, resumed.reason) == ("queued", 0, None, "resumed")
    assert resumed.revision > revision  # who watches it is told
    after = claim(db, job_id, "w2")
    assert after.attempt == before.attempt + 1
    with pytest.raises(claims.ClaimLostError):  # a worker from before the end writes nothing any more
        claims.append(db, before, EPOCH)
    claims.append(db, after, EPOCH)
    claims.finish(db, after, TRAINED)
    assert jobs.get(db, job_id).status == "succeeded"

    events = jobs.events(db, job_id)
    said = [event.payload for event in events if event.kind == "status"]
    assert [payload["status"] for payload in said][-3:] == ["queued", "running", "succeeded"]
    assert (said[-3]["actor"], said[-3]["reason"]) == ("command line", "resumed")
    assert len([event for event in events if event.kind == "epoch"]) == 1
    with reading(db) as session:
        [entry] = session.scalars(select(AuditEvent).where(AuditEvent.action == "job.resume")).all()
        assert (entry.object, entry.actor, entry.detail) == (job_id, "command line", {"children": []})


def test_a_job_that_never_started_goes_on_too(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    jobs.cancel(db, job_id)
    jobs.resume(db, job_id)
    assert claim(db, job_id).attempt == 1


def test_only_what_ended_badly_is_resumed(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    with pytest.raises(jobs.TooLateError, match="is queued; only what has ended is resumed"):
        jobs.resume(db, job_id)
    held = claim(db, job_id)
    with pytest.raises(jobs.TooLateError, match="is running"):
        jobs.resume(db, job_id)
    jobs.cancel(db, job_id)
    with pytest.raises(jobs.TooLateError, match="is cancelling"):
        jobs.resume(db, job_id)
    claims.stopped(db, held)
    jobs.resume(db, job_id)
    claims.finish(db, claim(db, job_id), TRAINED)
    with pytest.raises(jobs.TooLateError, match="is succeeded; run it again instead"):
        jobs.resume(db, job_id)
    with pytest.raises(jobs.UnknownJobError):
        jobs.resume(db, "0" * 12)


def test_losses_are_counted_anew(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    lose(db, claim(db, job_id))
    jobs.resume(db, job_id)
    with writing(db) as session:
        session.get_one(Seat, (job_id, claim(db, job_id).attempt)).lease_until = 0.0
    healing.requeue_lost(db, max_losses=2)
    assert (jobs.get(db, job_id).status, jobs.get(db, job_id).losses) == ("queued", 1)


# --- what waits for it ------------------------------------------------------------------------------------


def test_evaluations_that_failed_with_it_wait_again(db: Engine) -> None:
    training = jobs.create(db, TRAIN).id
    waiting, canceled = (jobs.create(db, judging(training)).id for _ in range(2))
    jobs.cancel(db, canceled)
    fail(db, claim(db, training))
    assert jobs.get(db, waiting).status == "failed"
    jobs.resume(db, training)
    assert [jobs.get(db, job_id).status for job_id in (waiting, canceled)] == ["queued", "canceled"]
    assert jobs.get(db, waiting).reason == f"job {training} was resumed"
    claims.finish(db, claim(db, training), TRAINED)
    assert claim(db, waiting).checkpoint == TRAINED.result.checkpoint_sha256


def test_an_evaluation_is_resumed_only_where_its_model_can_come(db: Engine) -> None:
    training = jobs.create(db, TRAIN).id
    canceled, failed = (jobs.create(db, judging(training)).id for _ in range(2))
    jobs.cancel(db, canceled)
    fail(db, claim(db, training))
    for job_id in (canceled, failed):
        with pytest.raises(jobs.RefusedError, match=f"job {training} was a failure and has no model; resume it"):
            jobs.resume(db, job_id)
    jobs.resume(db, training)
    assert jobs.resume(db, canceled).status == "queued"
    fail(db, claim(db, training))
    assert {jobs.get(db, job_id).status for job_id in (canceled, failed)} == {"failed"}


def test_an_evaluation_by_itself_goes_on_when_its_model_is_there(db: Engine) -> None:
    training = jobs.create(db, TRAIN).id
    claims.finish(db, claim(db, training), TRAINED)
    evaluation = jobs.create(db, judging(training)).id
    fail(db, claim(db, evaluation))
    assert jobs.resume(db, evaluation).status == "queued"
    cancel(db, claim(db, evaluation))
    with writing(db) as session:  # somebody frees its model
        files.release(session, training, "checkpoint")
    with pytest.raises(jobs.RefusedError, match="were given up"):
        jobs.resume(db, evaluation)


# --- what it needs ----------------------------------------------------------------------------------------


def test_a_checkpoint_that_was_named_has_to_be_there_still(db: Engine) -> None:
    recipe = resolve("autoattack-digits-linf", {"model": {"checkpoint": "a" * 64}})
    job_id = jobs.create(db, recipe).id
    fail(db, claim(db, job_id))
    with reading(db) as session:
        assert session.get(ArtifactUse, ("a" * 64, job_id, "source")) is None
    with pytest.raises(jobs.RefusedError, match="is no longer stored; upload it"):
        jobs.resume(db, job_id)
    assert jobs.get(db, job_id).status == "failed"
    with writing(db) as session:
        files.register(session, "a" * 64, size=5, key_id=None)
    jobs.resume(db, job_id)
    with reading(db) as session:
        assert session.get(ArtifactUse, ("a" * 64, job_id, "source")) is not None


def test_a_key_resumes_only_its_own_and_not_too_many(db: Engine) -> None:
    anna, bert = a_key(db, "anna"), a_key(db, "bert")
    training = jobs.create(db, TRAIN, caller=anna).id
    jobs.create_all(db, [Order(judging(training))] * 2, caller=anna, max_queued=None)
    fail(db, claim(db, training))
    with pytest.raises(jobs.NotYoursError, match="another key"):
        jobs.resume(db, training, caller=bert)
    with pytest.raises(jobs.TooManyError):  # it, and the two that wait for it
        jobs.resume(db, training, caller=anna, max_queued=2)
    assert jobs.get(db, training).status == "failed"
    assert jobs.resume(db, training, caller=anna, max_queued=3).key_id == anna.key_id


def a_key(db: Engine, name: str) -> Caller:
    with writing(db) as session:
        key = ApiKey(
            id=f"{name:0<12}"[:12],
            name=name,
            scope="submit",
            digest=name,
            created_at=clock(session),
            created_by="x",
        )
        session.add(key)
    return Caller(name, "submit", key.id)


# --- webhooks ---------------------------------------------------------------------------------------------


def test_every_end_is_told_once(db: Engine) -> None:
    order = Order(TRAIN, webhook="https://example.org/hook")
    [job] = jobs.create_all(db, [order], caller=ANONYMOUS, max_queued=None)
    jobs.cancel(db, job.id)
    with writing(db) as session:  # the first end arrives
        first = session.scalars(select(Delivery)).one()
        first.delivered_at, first.due_at = clock(session), None
    jobs.resume(db, job.id)
    jobs.cancel(db, job.id)
    jobs.resume(db, job.id)  # before the second end arrives
    jobs.cancel(db, job.id)
    with reading(db) as session:
        deliveries = session.scalars(select(Delivery).order_by(Delivery.created_at)).all()
    assert [(d.delivered_at is not None, d.due_at is not None, d.error) for d in deliveries] == [
        (True, False, None),
        (False, False, "the job was resumed meanwhile"),
        (False, True, None),
    ]


# --- at the same time -------------------------------------------------------------------------------------


def test_a_family_resumed_from_all_sides_at_once(db: Engine) -> None:
    """Parents are locked before children by everybody, so nobody waits for ever."""
    training = jobs.create(db, TRAIN).id
    children = [jobs.create(db, judging(training)).id for _ in range(3)]
    acts = [lambda: jobs.resume(db, training)]
    acts += [lambda child=child: jobs.resume(db, child) for child in children]
    acts += [lambda child=child: jobs.rerun(db, child) for child in children]

    def quietly(act: Callable[[], Job]) -> None:
        with suppress(jobs.RefusedError, jobs.TooLateError):
            act()

    for _ in range(5):
        fail(db, claim(db, training))
        with ThreadPoolExecutor(len(acts)) as pool:
            list(pool.map(quietly, acts))
        assert jobs.get(db, training).status == "queued"
        assert {jobs.get(db, child).status for child in children} == {"queued"}


def test_resumed_twice_at_once_it_waits_once(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    jobs.cancel(db, job_id)

    def resume(_: int) -> bool:
        try:
            return bool(jobs.resume(db, job_id))
        except jobs.TooLateError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(resume, range(4))) == 1
