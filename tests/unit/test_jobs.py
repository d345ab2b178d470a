"""The ledger on both databases: claims, fencing, cancelling, waiting, healing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from samples import EPOCH, JUDGED, PROGRESS, TRAIN, TRAINED
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import DBAPIError

from dkl.catalog import resolve
from service import claims, healing, jobs, registry, waiting
from service.callers import COMMAND_LINE, Caller
from service.db import clock, reading, writing
from service.jobs import Order
from service.registry import Description, Use
from service.tables import ApiKey, ArtifactUse, AuditEvent, Chunk, Delivery, Job, Seat
from service.waiting import Offer

CPU = Offer(queues=("gpu",), gpus=0, gpu_memory=0.0, processes=4)


def claim(db: Engine, job_id: str, worker: str = "w1", lease_seconds: float = 60) -> claims.Claim:
    taken = claims.claim(db, job_id, worker=worker, lease_seconds=lease_seconds)
    assert taken is not None
    return taken


def lose(db: Engine, job_id: str) -> None:
    """Let all leases on the job run out."""
    with writing(db) as session:
        session.execute(update(Seat).where(Seat.job_id == job_id).values(lease_until=0.0))


def sent(db: Engine, resend_seconds: float = 60) -> list[str]:
    """The jobs that workers are told about now."""
    return [job_id for job_id, _ in healing.take_unsent(db, resend_seconds=resend_seconds, lease_seconds=60)]


def arrive(db: Engine, name: str, **fields: object) -> Description:
    worker = Description(
        **{
            "name": name, "host": "box", "pid": 1, "device": "cpu", "gpus": 0, "gpu_memory": 0.0, "processes": 4,
            "versions": {}, "queues": ("gpu",), **fields,
        }
    )  # fmt: skip
    registry.arrive(db, worker)
    return worker


def history(db: Engine, job_id: str) -> list[str]:
    return [event.payload["status"] for event in jobs.events(db, job_id) if event.kind == "status"]


def evaluation_of(job_id: str):
    return resolve("autoattack-digits-linf", {"model.job": job_id})


def test_a_job_from_submission_to_result(db: Engine) -> None:
    job = jobs.create(db, TRAIN, name="natural-digits")
    assert waiting.next_ready(db, CPU) == job.id
    taken = claim(db, job.id)
    assert taken.recipe == TRAIN
    assert claims.append(db, taken, EPOCH)
    assert claims.append(db, taken, PROGRESS)
    claims.finish(db, taken, TRAINED)
    done = jobs.get(db, job.id)
    assert (done.status, done.clean_accuracy, done.workers) == ("succeeded", 0.95, [])
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
    assert claims.claim(db, job_id, worker="w1", lease_seconds=60) is None
    failed = jobs.get(db, job_id)
    assert failed.status == "failed"
    assert "its recipe cannot be read any more (depth: is no field here" in failed.reason
    assert failed.reason.endswith("submit it anew")
    assert jobs.get(db, child_id).status == "failed"
    assert waiting.next_ready(db, CPU) is None


def test_of_eight_racing_workers_one_wins(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: claims.claim(db, job_id, worker=f"w{n}", lease_seconds=60), range(8)))
    assert len([c for c in taken if c is not None]) == 1
    assert jobs.get(db, job_id).attempt == 1


def test_a_worker_thought_dead_that_wakes_up_cannot_write(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    first = claim(db, job_id, "slow")
    lose(db, job_id)
    assert healing.requeue_lost(db, max_losses=3) == [job_id]
    assert jobs.get(db, job_id).reason == "its worker slow went silent"
    second = claim(db, job_id, "quick")
    for write in (
        lambda: claims.append(db, first, EPOCH),
        lambda: claims.heartbeat(db, first, lease_seconds=60),
        lambda: claims.finish(db, first, TRAINED),
        lambda: claims.fail(db, first, "nonsense"),
        lambda: claims.stopped(db, first),
    ):
        with pytest.raises(claims.ClaimLostError):
            write()
    claims.finish(db, second, TRAINED)
    assert jobs.get(db, job_id).status == "succeeded"


def test_a_living_worker_keeps_its_job(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    claim(db, job_id, lease_seconds=60)
    assert healing.requeue_lost(db, max_losses=3) == []
    assert jobs.get(db, job_id).status == "running"


def test_a_job_that_kills_its_workers_fails(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    for n in range(3):
        claim(db, job_id, f"w{n}")
        lose(db, job_id)
        healing.requeue_lost(db, max_losses=3)
    job = jobs.get(db, job_id)
    assert job.status == "failed"
    assert str(job.reason) == (
        "its worker w2 went silent, the third time without getting any further; it never said anything; "
        "see that worker's log"
    )


def test_a_job_that_gets_further_between_losses_goes_on(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    for n in range(5):
        taken = claim(db, job_id)
        claims.append(db, taken, EPOCH.model_copy(update={"epoch": n + 1}))
        lose(db, job_id)
        healing.requeue_lost(db, max_losses=3)
    assert jobs.get(db, job_id).status == "queued"
    for _ in range(2):
        taken = claim(db, job_id)
        claims.append(db, taken, EPOCH)  # known already
        claims.append(db, taken, PROGRESS)
        lose(db, job_id)
        healing.requeue_lost(db, max_losses=3)
    assert "last heard of at epoch 1 of 2" in str(jobs.get(db, job_id).reason)


def test_a_fact_said_twice_is_kept_once(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    claims.append(db, claim(db, job_id), EPOCH)
    lose(db, job_id)
    healing.requeue_lost(db, max_losses=3)
    resumed = claim(db, job_id)
    claims.append(db, resumed, EPOCH)
    claims.append(db, resumed, EPOCH.model_copy(update={"epoch": 2}))
    epochs = [e.payload["epoch"] for e in jobs.events(db, job_id) if e.kind == "epoch"]
    assert epochs == [1, 2]


def test_cancelling_a_waiting_job_is_immediate_and_a_running_one_is_seen_by_its_worker(db: Engine) -> None:
    idle = jobs.create(db, TRAIN).id
    assert jobs.cancel(db, idle).status == "canceled"
    assert claims.claim(db, idle, worker="w", lease_seconds=60) is None

    running = jobs.create(db, TRAIN).id
    taken = claim(db, running)
    assert jobs.cancel(db, running).status == "cancelling"
    assert claims.heartbeat(db, taken, lease_seconds=60) is False
    assert claims.append(db, taken, PROGRESS) is False
    claims.stopped(db, taken)
    assert jobs.get(db, running).status == "canceled"
    assert jobs.cancel(db, running).status == "canceled"


def test_a_cancelled_job_whose_worker_is_dead_ends_too(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    claim(db, job_id)
    jobs.cancel(db, job_id)
    lose(db, job_id)
    healing.requeue_lost(db, max_losses=3)
    assert jobs.get(db, job_id).status == "canceled"


def test_a_result_that_comes_after_the_cancel_request_does_not_count(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    taken = claim(db, job_id)
    jobs.cancel(db, job_id)
    claims.finish(db, taken, TRAINED)
    job = jobs.get(db, job_id)
    assert (job.status, job.result) == ("canceled", None)


def test_what_has_ended_cannot_be_cancelled(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    claims.finish(db, claim(db, job_id), TRAINED)
    with pytest.raises(jobs.TooLateError, match="already succeeded"):
        jobs.cancel(db, job_id)


def test_a_worker_that_is_shut_down_gives_its_job_back_without_blame(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    claims.stopped(db, claim(db, job_id))
    job = jobs.get(db, job_id)
    assert (job.status, job.losses, job.attempt) == ("queued", 0, 1)
    assert claim(db, job_id).attempt == 2


def test_an_evaluation_waits_for_its_model(db: Engine) -> None:
    training = jobs.create(db, TRAIN).id
    judging = jobs.create(db, evaluation_of(training)).id
    assert waiting.next_ready(db, CPU) == training
    assert claims.claim(db, judging, worker="w", lease_seconds=60) is None
    assert sent(db, 60) == [training]
    claims.finish(db, claim(db, training), TRAINED)
    assert sent(db, 60) == [judging]
    taken = claim(db, judging)
    assert taken.checkpoint == "a" * 64
    claims.finish(db, taken, JUDGED)
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
        claims.fail(db, claim(db, training), "loss is nan")
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
    assert sent(db) == [job_id]
    assert sent(db) == []
    assert sent(db, 0) == []  # nobody is there to hear it
    arrive(db, "w1")
    assert sent(db, 0) == [job_id]
    claim(db, job_id)
    assert sent(db, 0) == []


@pytest.mark.parametrize("job_id", ["", "0" * 12, "../../etc", "0\x00", "é" * 12])
def test_unknown_ids(db: Engine, job_id: str) -> None:
    with pytest.raises(jobs.UnknownJobError):
        jobs.get(db, job_id)


def test_every_change_raises_the_revision(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    seen = [jobs.get(db, job_id).revision]
    taken = claim(db, job_id)
    for change in (
        lambda: claims.append(db, taken, EPOCH),
        lambda: claims.append(db, taken, PROGRESS),
        lambda: jobs.cancel(db, job_id),
        lambda: claims.stopped(db, taken),
    ):
        change()
        seen.append(jobs.get(db, job_id).revision)
    assert seen == sorted(set(seen))


# --- who may, and what it leaves --------------------------------------------------------------------------


def a_key(db: Engine, name: str, max_running: int | None = None) -> Caller:
    with writing(db) as session:
        key = ApiKey(
            id=name.ljust(12, "0"), name=name, scope="submit", digest="0" * 64, max_running=max_running,
            created_at=clock(session), created_by="command line",
        )  # fmt: skip
        session.add(key)
        return Caller(f"{name} ({key.id})", "submit", key.id)


def test_every_change_says_who_when_and_why(db: Engine) -> None:
    anna = a_key(db, "anna")
    job = jobs.create(db, TRAIN, caller=anna)
    taken = claim(db, job.id)
    jobs.cancel(db, job.id, caller=anna)
    claims.stopped(db, taken)
    said = [event.payload for event in jobs.events(db, job.id)]
    assert [(e["status"], e["actor"], e["reason"]) for e in said] == [
        ("queued", anna.name, None),
        ("running", "w1", None),
        ("cancelling", anna.name, "canceled while it ran"),
        ("canceled", "w1", "canceled while it ran"),
    ]
    with reading(db) as session:
        audited = session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
        assert [(a.actor, a.action, a.object) for a in audited] == [
            (anna.name, "job.create", job.id),
            (anna.name, "job.cancel", job.id),
        ]


def test_the_audit_log_refuses_changes(db: Engine) -> None:
    jobs.create(db, TRAIN)
    for statement in (update(AuditEvent).values(actor="nobody"), delete(AuditEvent)):
        with pytest.raises(DBAPIError, match="append-only"), writing(db) as session:
            session.execute(statement)


def test_a_key_cancels_and_repeats_only_its_own(db: Engine) -> None:
    anna, bert = a_key(db, "anna"), a_key(db, "bert")
    job_id = jobs.create(db, TRAIN, caller=anna).id
    for act in (jobs.cancel, jobs.rerun):
        with pytest.raises(jobs.NotYoursError, match="another key"):
            act(db, job_id, caller=bert)
    assert jobs.cancel(db, job_id, caller=COMMAND_LINE).status == "canceled"


def test_running_again_is_a_new_job_linked_to_the_old_one(db: Engine) -> None:
    training = jobs.create(db, TRAIN, name="natural-digits").id
    with pytest.raises(jobs.TooLateError, match="is queued; cancel it or wait"):
        jobs.rerun(db, training)
    jobs.cancel(db, training)
    again = jobs.rerun(db, training)
    assert (again.rerun_of, again.name, again.fingerprint, again.status) == (
        training, "natural-digits", jobs.get(db, training).fingerprint, "queued",
    )  # fmt: skip
    assert jobs.get(db, training).status == "canceled"


def test_an_evaluation_whose_model_failed_is_not_run_again(db: Engine) -> None:
    training = jobs.create(db, TRAIN).id
    judging = jobs.create(db, evaluation_of(training)).id
    claims.fail(db, claim(db, training), "loss is nan")
    assert jobs.get(db, judging).reason == f"it waited for job {training}, which failed: loss is nan"
    with pytest.raises(jobs.RefusedError, match="run it again and name the new job"):
        jobs.rerun(db, judging)


def test_a_training_and_its_evaluation_come_together_or_not_at_all(db: Engine) -> None:
    training = jobs.new_id()
    orders = [Order(TRAIN, id=training), Order(evaluation_of(training))]
    first, second = jobs.create_all(db, orders, caller=COMMAND_LINE, max_queued=2)
    assert (first.id, second.parent_id) == (training, training)
    with pytest.raises(jobs.RefusedError):
        jobs.create_all(db, [Order(TRAIN), Order(evaluation_of("0" * 12))], caller=COMMAND_LINE, max_queued=None)
    with pytest.raises(jobs.TooManyError, match="2 of your jobs wait already and 3 may"):
        jobs.create_all(db, [Order(TRAIN), Order(TRAIN)], caller=COMMAND_LINE, max_queued=3)
    assert len(jobs.recent(db)) == 2


def test_a_webhook_is_due_in_the_transaction_that_ends_the_job(db: Engine) -> None:
    (job,) = jobs.create_all(
        db, [Order(TRAIN, webhook="https://example.org/hook")], caller=COMMAND_LINE, max_queued=None
    )
    jobs.cancel(db, job.id)
    with reading(db) as session:
        (due,) = session.scalars(select(Delivery)).all()
        assert (due.job_id, due.url, due.tries) == (job.id, "https://example.org/hook", 0)
        assert due.due_at is not None


# --- order and fitness ------------------------------------------------------------------------------------


def test_higher_priorities_come_first_and_then_the_older_job(db: Engine) -> None:
    ids = [
        jobs.create_all(db, [Order(TRAIN, priority=priority)], caller=COMMAND_LINE, max_queued=None)[0].id
        for priority in (0, 0, 5, -1)
    ]
    order = []
    while (job_id := waiting.next_ready(db, CPU)) is not None:
        order.append(job_id)
        claim(db, job_id)
    assert order == [ids[2], ids[0], ids[1], ids[3]]


def test_the_position_in_the_queue(db: Engine) -> None:
    first, second = jobs.create(db, TRAIN), jobs.create(db, TRAIN)
    assert [waiting.position(db, job) for job in (first, second)] == [1, 2]
    claim(db, first.id)
    assert [waiting.position(db, jobs.get(db, job.id)) for job in (first, second)] == [None, 1]


@pytest.mark.parametrize(
    ("order", "offer", "fit"),
    [
        ({"gpus": 1}, {"gpus": 1}, True),
        ({"gpus": 2}, {"gpus": 1}, False),
        ({"gpu_memory": 24.0}, {"gpus": 1, "gpu_memory": 23.6}, False),
        ({"gpu_memory": 24.0}, {"gpus": 1, "gpu_memory": 79.6}, True),
        ({"queue": "big"}, {}, False),
        ({"queue": "big"}, {"queues": ("gpu", "big")}, True),
    ],
)
def test_a_job_goes_only_where_it_fits(db: Engine, order: dict, offer: dict, fit: bool) -> None:
    (job,) = jobs.create_all(db, [Order(TRAIN, **order)], caller=COMMAND_LINE, max_queued=None)
    worker = replace(CPU, **offer)
    assert (waiting.next_ready(db, worker) == job.id) == fit
    taken = claims.claim(db, job.id, worker="w", lease_seconds=60, offer=worker)
    assert (taken is not None) == fit


def test_several_processes_need_a_worker_that_has_them(db: Engine) -> None:
    job = jobs.create(db, TRAIN.model_copy(update={"processes": 2}))
    assert job.processes == 2
    assert waiting.next_ready(db, replace(CPU, processes=1)) is None
    assert waiting.next_ready(db, replace(CPU, processes=2)) == job.id


def test_a_key_runs_no_more_than_it_may_and_the_rest_waits(db: Engine) -> None:
    anna = a_key(db, "anna", max_running=1)
    first, second = (jobs.create(db, TRAIN, caller=anna).id for _ in range(2))
    others = jobs.create(db, TRAIN).id
    taken = claim(db, first)
    assert waiting.next_ready(db, CPU) == others
    assert claims.claim(db, second, worker="w2", lease_seconds=60) is None
    lose(db, first)
    healing.requeue_lost(db, max_losses=3)  # a dead worker's job is not held against the key
    assert claim(db, second).job_id == second
    with pytest.raises(claims.ClaimLostError):
        claims.append(db, taken, EPOCH)


def test_of_a_keys_jobs_no_two_start_at_the_same_time_beyond_its_limit(db: Engine) -> None:
    anna = a_key(db, "anna", max_running=2)
    ids = [jobs.create(db, TRAIN, caller=anna).id for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda job_id: claims.claim(db, job_id, worker=job_id, lease_seconds=60), ids))
    assert len([c for c in taken if c is not None]) == 2


# --- setbacks ---------------------------------------------------------------------------------------------


def test_a_setback_costs_nothing_but_time(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    claims.setback(db, claim(db, job_id), "no space left on device; it will resume", pause_seconds=3600)
    job = jobs.get(db, job_id)
    assert (job.status, job.losses, job.reason) == ("queued", 0, "no space left on device; it will resume")
    assert waiting.next_ready(db, CPU) is None
    with writing(db) as session:
        session.get_one(Job, job_id).not_before = 0.0
    assert waiting.next_ready(db, CPU) == job_id


def test_a_hung_job_whose_workers_heart_beats_is_taken_back(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    taken = claim(db, job_id)
    with writing(db) as session:
        session.execute(update(Seat).values(progress_at=0.0))
    claims.heartbeat(db, taken, lease_seconds=60)
    assert healing.requeue_lost(db, max_losses=3) == []
    assert healing.requeue_stalled(db, stall_seconds=1800, max_losses=3) == [job_id]
    assert jobs.get(db, job_id).reason == "it made no progress for 1800 s on worker w1"
    with pytest.raises(claims.ClaimLostError):
        claims.heartbeat(db, taken, lease_seconds=60)


def test_a_job_that_says_something_is_not_hung(db: Engine) -> None:
    taken = claim(db, jobs.create(db, TRAIN).id)
    with writing(db) as session:
        session.execute(update(Seat).values(progress_at=0.0))
    claims.append(db, taken, PROGRESS)
    assert healing.requeue_stalled(db, stall_seconds=1800, max_losses=3) == []


def test_a_worker_that_comes_back_under_its_name_gives_its_job_back_at_once(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    claim(db, job_id, "gpu0")
    assert healing.requeue_orphaned(db, "gpu1", max_losses=3) == []
    assert healing.requeue_orphaned(db, "gpu0", max_losses=3) == [job_id]
    assert jobs.get(db, job_id).reason == "its process on worker gpu0 died"


# --- workers ----------------------------------------------------------------------------------------------


def test_the_list_of_workers(db: Engine) -> None:
    one = arrive(db, "b", device="NVIDIA H200", gpus=1, gpu_memory=139.0, queues=("gpu", "big"))
    arrive(db, "a")
    assert [worker.name for worker in registry.workers(db)] == ["a", "b"]
    assert registry.beat(db, one, Use(0.5, 20.0)) is True
    assert registry.drain(db, "b", caller=COMMAND_LINE).draining
    assert registry.beat(db, one, Use()) is False
    arrive(db, "b")  # started again
    assert registry.beat(db, one, Use()) is False
    registry.resume(db, "b", caller=COMMAND_LINE)
    assert registry.beat(db, one, Use()) is True
    registry.leave(db, "a")
    assert [worker.name for worker in registry.workers(db)] == ["b"]
    with pytest.raises(registry.UnknownWorkerError, match="there is no worker 'c'"):
        registry.drain(db, "c", caller=COMMAND_LINE)


def test_workers_that_drain_or_work_are_not_knocked_for(db: Engine) -> None:
    first = jobs.create(db, TRAIN).id
    assert sent(db) == [first]
    arrive(db, "w1")
    arrive(db, "w2")
    registry.drain(db, "w2", caller=COMMAND_LINE)
    assert sent(db, 0) == [first]
    claim(db, first, "w1")
    second = jobs.create(db, TRAIN).id
    assert sent(db) == [second]  # the first message is always sent
    assert sent(db, 0) == []


# --- shared evaluations -----------------------------------------------------------------------------------


@pytest.fixture
def evaluation(db: Engine) -> str:
    return jobs.create(db, resolve("autoattack-cifar10-linf", {"model": {"timm": "resnet18.a1_in1k"}})).id


PARTS = [(0, 0), (0, 1), (0, 2)]


def test_workers_share_the_chunks_of_an_evaluation(db: Engine, evaluation: str) -> None:
    first = claim(db, evaluation, "w1")
    assert claims.claim(db, evaluation, worker="w2", lease_seconds=60) is None  # nothing to take yet
    claims.announce(db, first, PARTS)
    arrive(db, "w2")
    arrive(db, "w3")
    assert sent(db) == [evaluation, evaluation]
    second = claim(db, evaluation, "w2")
    assert [claims.take_chunk(db, c, PARTS) for c in (first, second)] == [(0, 0), (0, 1)]
    assert claims.take_chunk(db, first, PARTS) == (0, 0)  # it has it already
    assert jobs.get(db, evaluation).workers == ["w1", "w2"]
    assert claims.chunk_done(db, first, (0, 0), found_sha256="0" * 64)
    assert claims.take_chunk(db, first, PARTS) == (0, 2)
    assert claims.chunk_done(db, first, (0, 2), found_sha256="2" * 64)
    assert claims.take_chunk(db, first, PARTS) is None
    assert claims.leave(db, first)
    assert claims.chunk_done(db, second, (0, 1), found_sha256="1" * 64)
    assert not claims.leave(db, second)  # the last one out finishes
    assert claims.chunks_done(db, second) == {(0, 0): "0" * 64, (0, 1): "1" * 64, (0, 2): "2" * 64}
    claims.announce(db, second, [*PARTS, (1, 0)])
    with reading(db) as session:
        assert {use.role for use in session.scalars(select(ArtifactUse))} == {"finding"}
    claims.finish(db, second, JUDGED)
    with reading(db) as session:
        assert session.scalars(select(Chunk)).all() == session.scalars(select(Seat)).all() == []
        assert {use.role for use in session.scalars(select(ArtifactUse))} == {"checkpoint", "evidence"}
    kinds = [event.kind for event in jobs.events(db, evaluation)]
    assert kinds == ["status", "status", "joined", "left", "finished", "status"]


def test_a_dead_worker_delays_only_its_chunk(db: Engine, evaluation: str) -> None:
    first = claim(db, evaluation, "w1")
    claims.announce(db, first, PARTS)
    second = claim(db, evaluation, "w2")
    claims.take_chunk(db, first, PARTS)
    claims.take_chunk(db, second, PARTS)
    with writing(db) as session:
        session.execute(update(Seat).where(Seat.worker == "w1").values(lease_until=0.0))
    assert healing.requeue_lost(db, max_losses=3) == [evaluation]
    assert jobs.get(db, evaluation).status == "running"
    assert claims.take_chunk(db, second, PARTS) == (0, 1)
    claims.chunk_done(db, second, (0, 1), found_sha256="1" * 64)
    assert claims.take_chunk(db, second, PARTS) == (0, 0)
    with pytest.raises(claims.ClaimLostError):
        claims.chunk_done(db, first, (0, 0), found_sha256="9" * 64)
    claims.stopped(db, second)
    assert jobs.get(db, evaluation).status == "queued"
    third = claim(db, evaluation, "w3")
    assert claims.chunks_done(db, third) == {(0, 1): "1" * 64}
    assert claims.take_chunk(db, third, PARTS) == (0, 0)


def test_cancelling_waits_until_every_worker_has_left(db: Engine, evaluation: str) -> None:
    first = claim(db, evaluation, "w1")
    claims.announce(db, first, PARTS)
    second = claim(db, evaluation, "w2")
    jobs.cancel(db, evaluation)
    assert claims.claim(db, evaluation, worker="w3", lease_seconds=60) is None
    claims.stopped(db, first)
    assert jobs.get(db, evaluation).status == "cancelling"
    claims.stopped(db, second)
    assert jobs.get(db, evaluation).status == "canceled"


def test_a_dead_worker_does_not_end_what_another_still_leaves(db: Engine, evaluation: str) -> None:
    first = claim(db, evaluation, "w1")
    claims.announce(db, first, PARTS)
    second = claim(db, evaluation, "w2")
    jobs.cancel(db, evaluation)
    with writing(db) as session:
        session.execute(update(Seat).where(Seat.worker == "w1").values(lease_until=0.0))
    healing.requeue_lost(db, max_losses=3)
    assert jobs.get(db, evaluation).status == "cancelling"
    claims.stopped(db, second)
    assert jobs.get(db, evaluation).status == "canceled"


def test_the_first_verdicts_count_and_damaged_ones_are_found_again(db: Engine, evaluation: str) -> None:
    first = claim(db, evaluation, "w1")
    claims.announce(db, first, PARTS[:1])
    second = claim(db, evaluation, "w2")
    claims.chunk_done(db, first, (0, 0), found_sha256="1" * 64)
    claims.chunk_done(db, second, (0, 0), found_sha256="2" * 64)
    assert claims.chunks_done(db, first) == {(0, 0): "1" * 64}
    claims.chunk_lost(db, first, (0, 0), found_sha256="2" * 64)  # somebody has put it right already
    assert claims.chunks_done(db, first) == {(0, 0): "1" * 64}
    claims.chunk_lost(db, first, (0, 0), found_sha256="1" * 64)
    assert claims.take_chunk(db, second, PARTS[:1]) == (0, 0)


def test_progress_of_a_shared_evaluation_does_not_go_backwards(db: Engine, evaluation: str) -> None:
    taken = claim(db, evaluation)
    for done in (5, 3, 7):
        claims.append(db, taken, PROGRESS.model_copy(update={"done": done}))
        assert (jobs.get(db, evaluation).progress or {})["done"] == max(5, done)


def test_a_broken_gpu_costs_the_job_a_loss(db: Engine) -> None:
    job_id = jobs.create(db, TRAIN).id
    for status in ("queued", "queued", "failed"):
        claims.broken(db, claim(db, job_id), "the GPU of worker w1 failed: ECC", max_losses=3)
        assert jobs.get(db, job_id).status == status


def test_one_fails_for_all(db: Engine, evaluation: str) -> None:
    first = claim(db, evaluation, "w1")
    claims.announce(db, first, PARTS)
    second = claim(db, evaluation, "w2")
    claims.fail(db, second, "the model gives probabilities")
    with pytest.raises(claims.ClaimLostError):
        claims.take_chunk(db, first, PARTS)
    assert jobs.get(db, evaluation).status == "failed"


def test_eight_workers_take_every_chunk_once(db: Engine, evaluation: str) -> None:
    parts = [(0, batch) for batch in range(24)]
    seats = [claim(db, evaluation, "w0")]
    claims.announce(db, seats[0], parts)
    seats += [claim(db, evaluation, f"w{n}") for n in range(1, 8)]

    def work(seat: claims.Claim) -> list[claims.Part]:
        done = []
        while (part := claims.take_chunk(db, seat, parts)) is not None:
            claims.chunk_done(db, seat, part, found_sha256=f"{part[1]:064x}")
            done.append(part)
        return done

    with ThreadPoolExecutor(8) as pool:
        taken = [part for parts_done in pool.map(work, seats) for part in parts_done]
    assert sorted(taken) == parts
