"""Why a job waits, and what has happened to it, in the words of its page."""

from dataclasses import replace

import pytest
from samples import EPOCH, STARTED, TRAIN
from sqlalchemy import Engine, update

from dkl.catalog import resolve
from service import claims, jobs, keys, registry
from service.callers import COMMAND_LINE, Caller
from service.db import writing
from service.history import history_of, reruns
from service.jobs import Order
from service.outlook import asked, obstacles, outlook
from service.registry import Description
from service.roster import queued, roster
from service.settings import Settings
from service.tables import Job, Worker

SMALL = Description("box/gpu0", "box", 1, "GPU", 1, 80.0, 1, {}, ("gpu",))
MANY = replace(SMALL, name="box/many", gpus=8, gpu_memory=16.0, processes=8)


def order(db: Engine, caller: Caller = COMMAND_LINE, **how: object) -> Job:
    return jobs.create_all(db, [Order(TRAIN, **how)], caller=caller, max_queued=None)[0]


def waits(db: Engine, job: Job) -> str | None:
    return outlook(db, jobs.get(db, job.id), roster(db, lease_seconds=60))


def start(db: Engine, job: Job, worker: str = "box/gpu0") -> claims.Claim:
    claim = claims.claim(db, job.id, worker=worker, lease_seconds=60)
    assert claim is not None
    return claim


# --- waiting ----------------------------------------------------------------------------------------------


def test_its_place_in_the_queue(db: Engine) -> None:
    registry.arrive(db, SMALL)
    first, second, urgent = order(db), order(db), order(db, priority=5)
    assert waits(db, urgent) == "waits for a worker, 1st in queue gpu"
    assert waits(db, first) == "waits for a worker, 2nd in queue gpu"
    assert waits(db, second) == "waits for a worker, 3rd in queue gpu"
    start(db, first)
    assert waits(db, first) is None
    assert waits(db, second) == "waits for a worker, 2nd in queue gpu"
    assert queued(db) == {"gpu": 2}


def test_a_worker_that_it_fits_may_be_missing(db: Engine) -> None:
    plain = order(db)
    assert waits(db, plain) == "no worker is alive"
    registry.arrive(db, SMALL)
    registry.arrive(db, MANY)
    assert waits(db, order(db, queue="night")) == "no living worker serves queue night"
    assert waits(db, order(db, gpus=9)) == "no living worker has 9 GPUs; the most is 8"
    assert waits(db, order(db, gpu_memory=100)) == "no living worker has a GPU with 100 GiB; the largest has 80"
    both = order(db, gpus=2, gpu_memory=40)
    assert waits(db, both) == "no living worker has 2 GPUs and 40 GiB per GPU at the same time"
    together = jobs.create(db, resolve("natural-digits", {"processes": 16}))
    assert waits(db, together) == "no living worker can train with 16 processes; the most is 8"
    registry.drain(db, SMALL.name, caller=COMMAND_LINE)
    assert waits(db, order(db, gpu_memory=40)) == "every worker that it fits is draining"
    assert "1st in queue gpu" in (waits(db, plain) or "")  # the other one takes it


def test_silent_workers_do_not_count(db: Engine) -> None:
    registry.arrive(db, SMALL)
    with writing(db) as session:
        session.execute(update(Worker).values(beat_at=Worker.beat_at - 61))
    assert roster(db, lease_seconds=60)[0].state == "silent"
    assert waits(db, order(db)) == "no worker is alive"


def test_a_key_runs_as_many_as_it_may(db: Engine, settings: Settings) -> None:
    registry.arrive(db, SMALL)
    wanted = keys.KeyRequest(name="anna", scope="submit", max_running=1)
    key, _ = keys.create(db, settings, wanted, caller=COMMAND_LINE)
    anna = Caller("anna", "submit", key.id)
    running, waiting, mine = order(db, anna), order(db, anna), order(db)
    start(db, running)
    assert waits(db, waiting) == "waits for another job of its key, which may run 1 job at a time"
    assert mine.id in {job.id for job in jobs.recent(db, status="queued")}
    assert set(obstacles(db, jobs.recent(db), roster(db, lease_seconds=60))) == {waiting.id}


def test_a_setback_says_when_it_goes_on(db: Engine) -> None:
    registry.arrive(db, SMALL)
    job = order(db)
    claims.setback(db, start(db, job), "no space left; it will resume", pause_seconds=600)
    sentence = waits(db, job)
    assert sentence is not None
    assert sentence.startswith("tries again in ")
    assert sentence.endswith("after: no space left; it will resume")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({}, ""),
        ({"queue": "night", "priority": -3}, "in queue night, priority -3"),
        ({"gpus": 1}, "needs 1 GPU"),
        ({"gpus": 2, "gpu_memory": 40.0}, "needs 2 GPUs and 40 GiB per GPU"),
    ],
)
def test_what_it_asks_for(db: Engine, how: dict[str, object], sentence: str) -> None:
    assert asked(order(db, **how)) == sentence


# --- what has happened ------------------------------------------------------------------------------------


def told(db: Engine, job: Job) -> list[tuple[str, str | None, int | None, str | None]]:
    return [(entry.what, entry.by, entry.attempt, entry.why) for entry in history_of(jobs.events(db, job.id))]


def test_every_change_says_who_and_why(db: Engine) -> None:
    job = order(db)
    for _ in range(2):
        claim = start(db, job)
        claims.append(db, claim, STARTED, EPOCH)
        claims.stopped(db, claim)
    stopped = "its worker was shut down; it will resume"
    assert told(db, job) == [
        ("queued", "by command line", None, None),
        ("running", "by box/gpu0", None, None),
        ("begins", "on cpu", None, None),
        ("queued", "by box/gpu0", None, stopped),
        ("running", "by box/gpu0", 2, None),
        ("begins", "on cpu", None, None),
        ("queued", "by box/gpu0", 2, stopped),
    ]
    assert [entry.versions for entry in history_of(jobs.events(db, job.id)) if entry.what == "begins"] == [
        STARTED.versions,
        {},  # as before
    ]


def test_workers_join_and_leave_an_evaluation(db: Engine) -> None:
    job = jobs.create(db, resolve("autoattack-cifar10-linf", {"model.zoo": "cifar10/Linf/Standard"}))
    first = start(db, job)
    claims.announce(db, first, [(0, 0), (0, 1)])
    claims.take_chunk(db, first, [(0, 0), (0, 1)])
    second = start(db, job, "box/gpu1")
    claims.append(db, second, STARTED)
    assert claims.leave(db, second)
    assert told(db, job)[2:] == [("joined", "box/gpu1 on cpu", 2, None), ("left", "box/gpu1", 2, None)]


def test_runs_of_the_same_job(db: Engine) -> None:
    job = order(db)
    jobs.cancel(db, job.id)
    again = [jobs.rerun(db, job.id) for _ in range(2)]
    assert [run.id for run in reruns(db, job.id)] == [run.id for run in again]
    assert {run.rerun_of for run in again} == {job.id}
