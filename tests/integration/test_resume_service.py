"""A job that was canceled while a worker was at it goes on where it stopped, and comes to the same result."""

import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from dkl.catalog import resolve
from service import jobs
from service.db import connect, migrate
from service.settings import Settings
from service.tables import Job
from workers.hardware import describe
from workers.run import run_next

TRAINING = {"epochs": 4, "model.width": 4, "images": 512, "awp": None}
SUITE = [{"kind": "apgd-ce", "steps": 10}, {"kind": "square", "queries": 100}]
JUDGING = {"images": 64, "chunk_size": 16, "threat.eps": 0.05, "suite": SUITE}
NOT_ABOUT_THE_VERDICT = ("seconds", "provenance", "forwards", "backwards", "stages")


@pytest.fixture
def db(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    migrate(engine)
    yield engine
    engine.dispose()


def work(db: Engine, settings: Settings) -> None:
    """As a worker that takes one job."""
    assert run_next(worker=describe("w", settings), settings=settings, db=db, halt=threading.Event())


def interrupted(db: Engine, settings: Settings, job: Job, after: str) -> Job:
    """The job, canceled when it has said its first event of this kind, resumed, and run to its end."""

    def cancel_soon() -> None:
        while after not in {event.kind for event in jobs.events(db, job.id)}:
            time.sleep(0.01)
        jobs.cancel(db, job.id)

    thread = threading.Thread(target=cancel_soon)
    thread.start()
    work(db, settings)
    thread.join()
    assert jobs.get(db, job.id).status == "canceled"
    jobs.resume(db, job.id)
    work(db, settings)
    return jobs.get(db, job.id)


def said(db: Engine, job: Job, kind: str) -> list[dict]:
    return [event.payload for event in jobs.events(db, job.id) if event.kind == kind]


@pytest.mark.parametrize("kept", [True, False])
def test_a_training_ends_with_the_same_weights(db: Engine, settings: Settings, kept: bool) -> None:
    recipe = resolve("ikl-at-digits", TRAINING)
    straight = jobs.create(db, recipe)
    work(db, settings)
    if not kept:  # what it leaves is garbage at once
        settings = settings.model_copy(update={"keep_garbage_seconds": 0.0})
    job = interrupted(db, settings, jobs.create(db, recipe), "epoch")
    assert job.status == "succeeded"
    assert job.result["checkpoint_sha256"] == jobs.get(db, straight.id).result["checkpoint_sha256"]
    assert [epoch["epoch"] for epoch in said(db, job, "epoch")] == [1, 2, 3, 4]
    assert [started["resumed"] for started in said(db, job, "started")] == [False, kept]
    assert not settings.workdir(job.id).exists()


def test_an_evaluation_ends_with_the_same_verdicts(db: Engine, settings: Settings) -> None:
    training = jobs.create(db, resolve("natural-digits", {"epochs": 2, "model.width": 4}))
    work(db, settings)
    recipe = resolve("autoattack-digits-linf", {"model.job": training.id, **JUDGING})
    straight = jobs.create(db, recipe)
    work(db, settings)
    job = interrupted(db, settings, jobs.create(db, recipe), "batch")
    assert job.status == "succeeded"
    first, second = (dict(run.result) for run in (jobs.get(db, straight.id), job))
    for name in NOT_ABOUT_THE_VERDICT:
        del first[name], second[name]
    assert second == first
    assert [started["resumed"] for started in said(db, job, "started")] == [False, True]
