"""The deployment that compose starts: PostgreSQL, Redis, the API and a Celery worker, as real processes.

Of the ways in which a worker or a message can be lost the fast tests try one each. What the ledger makes of the
others is in tests/unit/test_jobs.py and test_ledger_machine.py.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import redis
from databases import Postgres, ServerAwayError
from processes import BIN, Processes, answers, ends, free_port, in_epoch, quick_settings, wait_until

from service import registry
from service.callers import COMMAND_LINE
from service.client import Client
from service.db import connect, migrate
from service.queue import CeleryQueue
from service.settings import Settings

pytestmark = pytest.mark.long

SHORT = {"epochs": 8, "awp.first_epoch": 3}
LONGER = {"epochs": 24, "awp.first_epoch": 3, "images": 512}  # time to be killed in
QUICK_SUITE = [{"kind": "apgd-ce", "steps": 10}, {"kind": "square", "queries": 100}]
Worker = subprocess.Popen[bytes]
REDIS = os.environ.get("DKLBENCH_TEST_REDIS", "redis://127.0.0.1:6379/15")


@pytest.fixture(scope="module")
def broker() -> Iterator[redis.Redis]:
    """Redis, in a numbered database that only the tests use."""
    connection = redis.Redis.from_url(REDIS)
    try:
        connection.flushdb()
    except redis.exceptions.ConnectionError as error:
        connection.close()
        pytest.skip(f"no Redis at {REDIS}: set DKLBENCH_TEST_REDIS ({error})")
    yield connection
    connection.flushdb()
    connection.close()


@pytest.fixture(scope="module")
def deployed(
    postgres: Postgres, broker: redis.Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """What the tests share; each has workers of its own, and leaves nothing in the queues."""
    try:
        url = postgres.lend()
    except ServerAwayError as error:
        pytest.skip(str(error))
    database = connect(url)
    migrate(database)
    database.dispose()
    own = quick_settings(tmp_path_factory.mktemp("data"))
    yield own.model_copy(update={"database_url": url, "broker_url": REDIS, "queues": ("gpu", "big")})
    postgres.take_back(url)


@pytest.fixture(scope="module")
def client(deployed: Settings, lasting_processes: Processes) -> Iterator[Client]:
    port = free_port()
    lasting_processes.start(
        sys.executable, "-m", "uvicorn", "service.app:create_app", "--factory", "--port", str(port),
        environment=deployed.as_environment(),
    )  # fmt: skip
    with Client(f"http://127.0.0.1:{port}") as client:
        wait_until(lambda: answers(client), what="the API")
        yield client


def celery(own: Settings, where: Processes) -> Worker:
    return where.start(
        str(BIN / "celery"), "-A", "workers.app", "worker", "--loglevel", "INFO",
        environment={**own.as_environment(), "REMAP_SIGTERM": "SIGQUIT"},
    )  # fmt: skip


@pytest.fixture
def start_worker(deployed: Settings, processes: Processes) -> Callable[[], Worker]:
    """For tests that end their workers, or begin without any."""
    return lambda: celery(deployed, processes)


@pytest.fixture(scope="module")
def lasting_worker(deployed: Settings, lasting_processes: Processes) -> Worker:
    """For the tests behind those: one that stays, and serves the first of the two queues."""
    return celery(deployed.model_copy(update={"queues": ("gpu",)}), lasting_processes)


# --- workers that die, and workers that come late -----------------------------------------------------------


def test_kill_9_of_the_worker_in_mid_training(client: Client, start_worker: Callable[[], Worker]) -> None:
    worker = start_worker()
    undisturbed = client.submit("ikl-at-digits", LONGER).id
    expected = ends(client, undisturbed)["result"]["checkpoint_sha256"]
    disturbed = client.submit("ikl-at-digits", LONGER).id
    wait_until(lambda: in_epoch(client, disturbed, 2), what="epoch 2")
    os.killpg(worker.pid, signal.SIGKILL)  # the worker and the child that trains
    worker.wait()
    start_worker()
    job = ends(client, disturbed)
    assert job["attempt"] == 2
    assert job["result"]["checkpoint_sha256"] == expected
    epochs = [event.data["epoch"] for event in client.job(disturbed).watch() if event.kind == "epoch"]
    assert epochs == list(range(1, LONGER["epochs"] + 1))


def test_a_stopped_container_gives_its_job_back(client: Client, start_worker: Callable[[], Worker]) -> None:
    worker = start_worker()
    job_id = client.submit("ikl-at-digits", {"epochs": 100_000}).id
    wait_until(lambda: in_epoch(client, job_id, 2), what="epoch 2")
    worker.terminate()
    worker.wait(timeout=60)
    job = client.job(job_id).document
    assert (job["status"], job["reason"]) == ("queued", "its worker was shut down; it will resume")
    start_worker()
    wait_until(lambda: client.job(job_id).document["attempt"] == 2, what="the second attempt")
    client.job(job_id).cancel()
    ends(client, job_id, "canceled")


def test_the_child_alone_dies_and_its_job_goes_on_at_once(
    client: Client, deployed: Settings, start_worker: Callable[[], Worker]
) -> None:
    """The next child of the same worker knows that the last one is dead, before the lease has run out."""
    worker = start_worker()
    job_id = client.submit("ikl-at-digits", LONGER).id
    wait_until(lambda: in_epoch(client, job_id, 2), what="epoch 2")
    child = max(psutil.Process(worker.pid).children(), key=lambda process: process.memory_info().rss)
    child.kill()
    assert ends(client, job_id)["attempt"] == 2
    said = [event.data["reason"] for event in client.job(job_id).watch() if event.kind == "status"]
    assert any(str(reason).startswith("its process on worker") or "went silent" in str(reason) for reason in said)


def test_a_wiped_broker_loses_nothing(
    client: Client, broker: redis.Redis, start_worker: Callable[[], Worker]
) -> None:
    job_id = client.submit("natural-digits", {"epochs": 1}).id
    wait_until(lambda: broker.dbsize() > 0, what="the message")
    broker.flushdb()
    start_worker()
    assert ends(client, job_id)["attempt"] == 1


def test_a_message_delivered_many_times_runs_once(
    client: Client, deployed: Settings, start_worker: Callable[[], Worker]
) -> None:
    job_id = client.submit("natural-digits", {"epochs": 2}).id
    queue = CeleryQueue(deployed.broker_url)
    for _ in range(3):
        queue.send(job_id, "gpu")
    queue.close()
    start_worker()
    assert ends(client, job_id)["attempt"] == 1
    after = client.submit("natural-digits", {"epochs": 1}).id  # behind the others in the queue
    ends(client, after)
    assert client.job(job_id).document["attempt"] == 1


# --- a worker that stays --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lasting_worker")
def test_train_and_evaluate(client: Client) -> None:
    training = client.submit("ikl-at-digits", SHORT)
    overrides = {"model.job": training.id, "images": 20, "suite": QUICK_SUITE}
    judging = client.submit("autoattack-digits-linf", overrides)
    assert [event.kind for event in training.watch()].count("epoch") == SHORT["epochs"]
    result = ends(client, judging.id)["result"]
    (row,) = client.leaderboard(dataset="digits").rows
    assert row.robust_accuracy == result["robust_accuracy"]


@pytest.mark.usefixtures("lasting_worker")
def test_cancel_ends_within_seconds(client: Client) -> None:
    job_id = client.submit("ikl-at-digits", {"epochs": 100_000}).id
    wait_until(lambda: client.job(job_id).document["progress"], what="the job to be at work")
    client.job(job_id).cancel()
    wait_until(lambda: client.job(job_id).status == "canceled", 15, "the job to end")
    ends(client, client.submit("natural-digits", {"epochs": 1}).id)


def test_a_worker_that_drains_listens_to_nobody(
    client: Client, deployed: Settings, lasting_worker: Worker
) -> None:
    db = connect(deployed.database)
    main = lasting_worker.pid

    def arrived() -> list[str]:
        return [worker.name for worker in registry.workers(db) if worker.name.endswith(f"/{main}")]

    wait_until(arrived, what="the worker to arrive")
    (worker,) = arrived()
    registry.drain(db, worker, caller=COMMAND_LINE)
    time.sleep(3)  # a beat
    job_id = client.submit("natural-digits", {"epochs": 1}).id
    time.sleep(3)
    assert client.job(job_id).status == "queued"
    registry.resume(db, worker, caller=COMMAND_LINE)
    ends(client, job_id)
    db.dispose()


@pytest.mark.usefixtures("lasting_worker")
def test_jobs_go_to_the_workers_of_their_queue(client: Client) -> None:
    """The service knows both queues; the worker serves one of them."""
    elsewhere = client.submit("natural-digits", {"epochs": 1}, queue="big").id
    ends(client, client.submit("natural-digits", {"epochs": 1}).id)
    assert client.job(elsewhere).cancel().status == "canceled"  # it was still queued
