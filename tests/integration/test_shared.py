"""Several workers, as processes: an evaluation shared by them, a dead one, a hung one, one that drains."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import BIN, Processes, answers, ends, free_port, wait_until

from dkl.evidence import read_evidence
from service import registry
from service.callers import COMMAND_LINE
from service.client import Client
from service.db import connect, migrate
from service.settings import Settings

pytestmark = pytest.mark.long

SUITE = [{"kind": "apgd-ce", "steps": 20}, {"kind": "square", "queries": 1000}]
EVALUATION = {"images": 192, "chunk_size": 16, "threat.eps": 0.05, "suite": SUITE}
NOT_ABOUT_THE_VERDICT = ("seconds", "provenance", "forwards", "backwards", "stages")


@pytest.fixture
def patient(settings: Settings) -> Settings:
    """With a lease that outlives what a busy machine does to heartbeats."""
    return settings.model_copy(update={"lease_seconds": 30.0})


@pytest.fixture
def client(settings: Settings, processes: Processes) -> Iterator[Client]:
    """A service without workers."""
    port = free_port()
    migrate(connect(settings.database))
    processes.start(
        sys.executable, "-m", "uvicorn", "service.app:create_app", "--factory", "--no-access-log",
        "--port", str(port),
        environment=settings.as_environment(),
    )  # fmt: skip
    with Client(f"http://127.0.0.1:{port}") as client:
        wait_until(lambda: answers(client), what="the API")
        yield client


@pytest.fixture
def start_worker(patient: Settings, processes: Processes) -> Callable[[str], subprocess.Popen[bytes]]:
    def start(name: str) -> subprocess.Popen[bytes]:
        return processes.start(
            sys.executable, "-m", "workers", "--name", name, environment=patient.as_environment()
        )

    return start


def model_of(client: Client) -> str:
    training = client.submit("ikl-at-digits", {"epochs": 3, "awp": None}).id
    ends(client, training)
    return training


def evaluate(client: Client, training: str) -> str:
    return client.submit("autoattack-digits-linf", {"model.job": training, **EVALUATION}).id


def warm_up(client: Client) -> None:
    """Until both workers have loaded what they need, so that neither comes too late for a short evaluation."""
    seen: set[str] = set()
    while seen < {"a", "b"}:
        small = [client.submit("natural-digits", {"epochs": 1}).id for _ in range(2)]
        for job_id in small:
            ends(client, job_id)
            seen |= who(client, job_id)


def while_both_are_at_it(client: Client, training: str) -> str:
    """An evaluation that both work on now; on a busy machine one of them may be through before the other comes."""
    for _ in range(10):
        job_id = evaluate(client, training)
        job = client.job(job_id).document
        while len(job["workers"]) < 2 and job["status"] in {"queued", "running"}:
            job = client.job(job_id).document
        if job["status"] == "running":
            return job_id
    raise AssertionError("the second worker never came in time")


def verdict(client: Client, job_id: str, path: Path) -> tuple[dict[str, Any], Any]:
    result = ends(client, job_id)["result"]
    client.job(job_id).download("evidence", path)
    evidence = read_evidence(path)
    arrays = (evidence.clean_correct, evidence.broken_at, evidence.stage, evidence.step, evidence.x8, evidence.x32)
    told = {field: value for field, value in result.items() if field not in NOT_ABOUT_THE_VERDICT}
    return told, [array.tobytes() for array in arrays]


def who(client: Client, job_id: str) -> set[str]:
    """The workers whose names are in the job's history."""
    events = [event.data for event in client.job(job_id).watch() if event.kind in {"status", "joined"}]
    return {event.get("worker") or event["actor"] for event in events} & {"a", "b"}


def test_one_worker_or_two_or_one_that_dies_find_the_same(
    client: Client, start_worker: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    start_worker("a")
    training = model_of(client)
    alone = evaluate(client, training)
    expected = verdict(client, alone, tmp_path / "alone")
    assert who(client, alone) == {"a"}

    second = start_worker("b")
    warm_up(client)
    together = evaluate(client, training)
    assert verdict(client, together, tmp_path / "together") == expected
    assert who(client, together) == {"a", "b"}

    with_a_death = while_both_are_at_it(client, training)
    os.kill(second.pid, signal.SIGKILL)
    start_worker("b")  # so that what it held is known to be lost before its lease ends
    assert verdict(client, with_a_death, tmp_path / "death") == expected


def test_a_hung_job_is_taken_back_and_its_process_killed(processes: Processes, settings: Settings) -> None:
    """A data set that is a pipe: reading it never ends, and the worker's heart goes on beating."""
    short = settings.model_copy(update={"stall_seconds": 15.0, "grace_seconds": 1.0, "max_losses": 1})
    settings.datasets_dir.mkdir(parents=True)
    os.mkfifo(settings.datasets_dir / "pipe_train.npz")
    os.mkfifo(settings.datasets_dir / "pipe_test.npz")
    port = free_port()
    processes.start(str(BIN / "dklbench"), "up", "--port", str(port), environment=short.as_environment())
    with Client(f"http://127.0.0.1:{port}") as client:
        wait_until(lambda: answers(client), what="the service")
        _hang(client)


def _hang(client: Client) -> None:
    hung = client.submit("natural-digits", {"dataset": "npz:pipe"}).id
    wait_until(lambda: client.job(hung).status == "running", what="the job to hang")
    behind = client.submit("natural-digits", {"epochs": 1}).id
    job = ends(client, hung, "failed")
    assert "it made no progress for 15 s on worker" in job["reason"]
    ends(client, behind)


def test_a_draining_worker_finishes_and_takes_nothing_more(
    client: Client, start_worker: Callable[[str], subprocess.Popen[bytes]], settings: Settings
) -> None:
    db = connect(settings.database)
    start_worker("a")
    first = client.submit("natural-digits", {"epochs": 2}).id
    wait_until(lambda: client.job(first).status == "running", what="the first job to run")
    registry.drain(db, "a", caller=COMMAND_LINE)
    ends(client, first)
    second = client.submit("natural-digits", {"epochs": 1}).id
    time.sleep(3)
    assert client.job(second).status == "queued"
    registry.resume(db, "a", caller=COMMAND_LINE)
    ends(client, second)
