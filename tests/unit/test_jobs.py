"""The ledger on both databases: claims, fencing, cancelling, waiting, healing."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from samples import EPOCH, JUDGED, PROGRESS, TRAIN, TRAINED
from sqlalchemy import Engine, update

from dkl.catalog import resolve
from service import jobs
from service.db import Job, writing


def claim(db: Engine, job_id: str, worker: str = "w1", lease_seconds: float = 60) -> jobs.Claim:
    taken = jobs.claim(db, job_id, worker=worker, lease_seconds=lease_seconds)
    assert taken is not None
    return taken


def lose(db: Engine, job_id: str) -> None:
    """Let the job's lease run out."""
    with writing(db) as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=0.0))


def history(db: Engine, job_id: str) -> list[str]:
    return [event.payload["status"] for event in jobs.events(db, job_id) if event.kind == "status"]


def evaluation_of(job_id: str):
    return resolve("autoattack-digits-linf", {"model.job": job_id})


def test_a_job_from_submission_to_result(db: Engine) -> None:
    job = jobs.create(db, TRAIN, name="natural-digits")
    assert jobs.next_ready(db) == job.id
    taken = claim(db, job.id)
    assert taken.recipe == TRAIN
    assert jobs.append(db, taken, EPOCH)
    assert jobs.append(db, taken, PROGRESS)
    jobs.finish(db, taken, TRAINED)
    done = jobs.get(db, job.id)
    assert (done.status, done.clean_accuracy, done.worker) == ("succeeded", 0.95, None)
    assert done.result == TRAINED.result.model_dump(mode="json")
    assert done.progress is not None
    assert done.progress["phase"] == PROGRESS.phase
    assert done.created_at <= done.started_at <= done.finished_at
    assert [e.kind for e in jobs.events(db, job.id)] == ["status", "status", "epoch", "finished", "status"]
    assert history(db, job.id) == ["queued", "running", "succeeded"]


def test_a_recipe_that_cannot_be_read_any_more_fails_and_so_do_those_that_wait(db: Engine) -> None:
    """As an older version may have queued it. It must not stand at the head of the queue for ever."""
    job_id = jobs.create(db, TRAIN).id
    child_id = jobs.create(db, evaluation_of(job_id)).id
    with writing(db) as session:
        document = {**TRAIN.model_dump(mode="json"), "depth": 7}
        session.execute(update(Job).where(Job.id == job_id).values(recipe=document))
    assert jobs.claim(db, job_id, worker="w1", lease_seconds=60) is None
    failed = jobs.get(db, job_id)
    assert failed.status == "failed"
    assert "its recipe cannot be read any more (depth: is no field here" in failed.reason
    assert failed.reason.endswith("submit it anew")
    assert jobs.get(db, child_id).status == "failed"
    assert jobs.next_ready(db) is None


def test_of_eight_racing_workers_one_wins(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: jobs.claim(db, job_id, worker=f"w{n}", lease_seconds=60), range(8)))
    assert len([c for c in claims if c is not None]) == 1
    assert jobs.get(db, job_id).attempt == 1


def test_a_worker_thought_dead_that_wakes_up_cannot_write(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    first = claim(db, job_id, "slow")
    lose(db, job_id)
    assert jobs.requeue_lost(db, max_losses=3) == [job_id]
    assert jobs.get(db, job_id).reason == "its worker slow went silent"
    second = claim(db, job_id, "quick")
    for write in (
        lambda: jobs.append(db, first, EPOCH),
        lambda: jobs.heartbeat(db, first, lease_seconds=60),
        lambda: jobs.finish(db, first, TRAINED),
        lambda: jobs.fail(db, first, "nonsense"),
        lambda: jobs.stopped(db, first),
    ):
        with pytest.raises(jobs.ClaimLostError):
            write()
    jobs.finish(db, second, TRAINED)
    assert jobs.get(db, job_id).status == "succeeded"


def test_a_living_worker_keeps_its_job(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    claim(db, job_id, lease_seconds=60)
    assert jobs.requeue_lost(db, max_losses=3) == []
    assert jobs.get(db, job_id).status == "running"


def test_a_job_that_kills_its_workers_fails(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    for n in range(3):
        claim(db, job_id, f"w{n}")
        lose(db, job_id)
        jobs.requeue_lost(db, max_losses=3)
    job = jobs.get(db, job_id)
    assert job.status == "failed"
    assert "went silent 3 times, last w2" in str(job.reason)


def test_a_fact_said_twice_is_kept_once(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    jobs.append(db, claim(db, job_id), EPOCH)
    lose(db, job_id)
    jobs.requeue_lost(db, max_losses=3)
    resumed = claim(db, job_id)
    jobs.append(db, resumed, EPOCH)
    jobs.append(db, resumed, EPOCH.model_copy(update={"epoch": 2}))
    epochs = [e.payload["epoch"] for e in jobs.events(db, job_id) if e.kind == "epoch"]
    assert epochs == [1, 2]


def test_cancelling_a_waiting_job_is_immediate_and_a_running_one_is_seen_by_its_worker(db: Engine) -> None:
    waiting = jobs.create(db, TRAIN).id
    assert jobs.cancel(db, waiting).status == "canceled"
    assert jobs.claim(db, waiting, worker="w", lease_seconds=60) is None

    running = jobs.create(db, TRAIN).id
    taken = claim(db, running)
    assert jobs.cancel(db, running).status == "cancelling"
    assert jobs.heartbeat(db, taken, lease_seconds=60) is False
    assert jobs.append(db, taken, PROGRESS) is False
    jobs.stopped(db, taken)
    assert jobs.get(db, running).status == "canceled"
    assert jobs.cancel(db, running).status == "canceled"


def test_a_cancelled_job_whose_worker_is_dead_ends_too(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    claim(db, job_id)
    jobs.cancel(db, job_id)
    lose(db, job_id)
    jobs.requeue_lost(db, max_losses=3)
    assert jobs.get(db, job_id).status == "canceled"


def test_a_result_that_comes_after_the_cancel_request_does_not_count(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    taken = claim(db, job_id)
    jobs.cancel(db, job_id)
    jobs.finish(db, taken, TRAINED)
    job = jobs.get(db, job_id)
    assert (job.status, job.result) == ("canceled", None)


def test_what_has_ended_cannot_be_cancelled(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    jobs.finish(db, claim(db, job_id), TRAINED)
    with pytest.raises(jobs.TooLateError, match="already succeeded"):
        jobs.cancel(db, job_id)


def test_a_worker_that_is_shut_down_gives_its_job_back_without_blame(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    jobs.stopped(db, claim(db, job_id))
    job = jobs.get(db, job_id)
    assert (job.status, job.losses, job.attempt) == ("queued", 0, 1)
    assert claim(db, job_id).attempt == 2


def test_an_evaluation_waits_for_its_model(db: Engine) -> None:
    training = jobs.create(db, TRAIN).id
    judging = jobs.create(db, evaluation_of(training)).id
    assert jobs.next_ready(db) == training
    assert jobs.claim(db, judging, worker="w", lease_seconds=60) is None
    assert jobs.take_unsent(db, resend_seconds=60) == [training]
    jobs.finish(db, claim(db, training), TRAINED)
    assert jobs.take_unsent(db, resend_seconds=60) == [judging]
    taken = claim(db, judging)
    assert taken.checkpoint == "a" * 64
    jobs.finish(db, taken, JUDGED)
    assert jobs.get(db, judging).robust_accuracy == 0.5
    assert [job.id for job in jobs.children(db, training)] == [judging]


@pytest.mark.parametrize("source", [{"zoo": "cifar10/Linf/Carmon2019Unlabeled"}, {"timm": "resnet18.a1_in1k"}])
def test_an_evaluation_of_a_public_model_waits_for_nothing(db: Engine, source: dict[str, str]) -> None:
    job = jobs.create(db, resolve("autoattack-cifar10-linf", {"model": source}))
    assert job.parent_id is None
    assert claim(db, job.id).checkpoint is None


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_an_evaluation_whose_model_never_comes_fails_with_the_reason(db: Engine, end: str) -> None:
    training = jobs.create(db, TRAIN).id
    judging = jobs.create(db, evaluation_of(training)).id
    if end == "fail":
        jobs.fail(db, claim(db, training), "loss is nan")
        assert jobs.get(db, training).reason == "loss is nan"
    else:
        jobs.cancel(db, training)
    job = jobs.get(db, judging)
    assert job.status == "failed"
    assert f"it waited for job {training}" in str(job.reason)
    with pytest.raises(jobs.RefusedError, match="has no model"):
        jobs.create(db, evaluation_of(training))


def test_evaluations_of_nothing_are_refused(db: Engine) -> None:
    with pytest.raises(jobs.RefusedError, match="there is no job"):
        jobs.create(db, evaluation_of("0" * 12))
    training = jobs.create(db, TRAIN).id
    judging = jobs.create(db, evaluation_of(training)).id
    with pytest.raises(jobs.RefusedError, match="is an evaluation"):
        jobs.create(db, evaluation_of(judging))
    assert len(jobs.recent(db)) == 2


def test_a_lost_message_is_sent_again(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    assert jobs.take_unsent(db, resend_seconds=60) == [job_id]
    assert jobs.take_unsent(db, resend_seconds=60) == []
    assert jobs.take_unsent(db, resend_seconds=0) == [job_id]
    claim(db, job_id)
    assert jobs.take_unsent(db, resend_seconds=0) == []


@pytest.mark.parametrize("job_id", ["", "0" * 12, "../../etc", "0\x00", "é" * 12])
def test_unknown_ids(db: Engine, job_id: str) -> None:
    with pytest.raises(jobs.UnknownJobError):
        jobs.get(db, job_id)


def test_every_change_raises_the_revision(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    seen = [jobs.revisions(db, [job_id])[job_id]]
    taken = claim(db, job_id)
    for change in (
        lambda: jobs.append(db, taken, EPOCH),
        lambda: jobs.append(db, taken, PROGRESS),
        lambda: jobs.cancel(db, job_id),
        lambda: jobs.stopped(db, taken),
    ):
        change()
        seen.append(jobs.revisions(db, [job_id])[job_id])
    assert seen == sorted(set(seen))
