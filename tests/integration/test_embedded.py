"""`dklbench up` as a user has it: one command, SQLite, a worker process; and what happens when things die."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from processes import BIN, Start, ends, in_epoch, wait_until

from dkl.evidence import read_evidence
from service.client import Client, ServiceError
from service.settings import Settings

pytestmark = pytest.mark.long

SHORT = {"epochs": 8, "awp.first_epoch": 3}
LONGER = {"epochs": 24, "awp.first_epoch": 3, "images": 512}  # time to be killed in
QUICK_SUITE = [{"kind": "apgd-ce", "steps": 10}, {"kind": "square", "queries": 100}]


def worker_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The embedded worker, once it is there."""
    wait_until(lambda: psutil.Process(process.pid).children(), what="the worker")
    return psutil.Process(process.pid).children()[0]


def test_train_evaluate_rank_restart(start_embedded: Start, tmp_path: Path) -> None:
    process, client = start_embedded()
    training = client.submit("ikl-at-digits", SHORT)
    judging = client.submit(
        "autoattack-digits-linf", {"model.job": training.id, "images": 20, "suite": QUICK_SUITE}
    )
    kinds = [event.kind for event in training.watch()]
    assert kinds.count("epoch") == SHORT["epochs"]
    assert kinds[-1] == "end"
    result = ends(client, judging.id)["result"]
    assert [stage["name"] for stage in result["stages"]] == ["clean", "apgd-ce", "square"]
    assert result["checkpoint_sha256"] == training.refresh().document["result"]["checkpoint_sha256"]
    (row,) = client.leaderboard(dataset="digits").rows
    assert (row.name, row.robust_accuracy) == ("ikl-at-digits", result["robust_accuracy"])
    assert (row.suite, row.policy) == ("custom", "exact")
    judging.download("evidence", tmp_path / "evidence.safetensors")
    evidence = read_evidence(tmp_path / "evidence.safetensors")
    assert evidence.standing(0).mean() == result["robust_accuracy"]
    batches = [event.data for event in judging.watch() if event.kind == "batch"]
    assert [batch["name"] for batch in batches] == ["clean", "apgd-ce", "square"]
    standing = batches[0]["standing"].count("1") - sum(batch["standing"].count("0") for batch in batches[1:])
    assert standing == 20 * result["robust_accuracy"]

    worker = worker_of(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert not worker.is_running()
    _, client = start_embedded()
    assert client.leaderboard(dataset="digits").rows == (row,)
    again = client.submit("autoattack-digits-linf", {"model.job": training.id, "images": 20, "suite": QUICK_SUITE})
    assert ends(client, again.id)["result"]["stages"][1]["accuracy"] == result["stages"][1]["accuracy"]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_dies_in_mid_training_and_the_weights_are_the_same(start_embedded: Start, sign: int) -> None:
    process, client = start_embedded()
    undisturbed = client.submit("ikl-at-digits", LONGER).id
    expected = ends(client, undisturbed)["result"]["checkpoint_sha256"]
    disturbed = client.submit("ikl-at-digits", LONGER).id
    wait_until(lambda: in_epoch(client, disturbed, 2), what="epoch 2")
    worker_of(process).send_signal(sign)
    job = ends(client, disturbed)
    assert job["attempt"] == 2
    assert job["result"]["checkpoint_sha256"] == expected
    events = list(client.job(disturbed).watch())
    assert [e.data["epoch"] for e in events if e.kind == "epoch"] == list(range(1, LONGER["epochs"] + 1))
    reasons = [e.data["reason"] for e in events if e.kind == "status" and e.data["status"] == "queued"]
    assert "shut down" in reasons[1] if sign == signal.SIGTERM else reasons[1].startswith("its process on worker")


def test_a_killed_service_goes_on_where_it_was(start_embedded: Start) -> None:
    process, client = start_embedded()
    job_id = client.submit("ikl-at-digits", LONGER).id
    wait_until(lambda: in_epoch(client, job_id, 2), what="epoch 2")
    worker = worker_of(process)
    process.kill()
    process.wait()
    wait_until(lambda: not worker.is_running(), 30, "the orphaned worker to stop")
    _, client = start_embedded()
    job = ends(client, job_id)
    assert job["attempt"] >= 2


@pytest.mark.parametrize("what", ["training", "attack"])
def test_cancel_ends_within_seconds(shared_embedded: tuple[Settings, Client], what: str) -> None:
    settings, client = shared_embedded
    if what == "training":
        job_id = client.submit("ikl-at-digits", {"epochs": 100_000}).id
    else:
        training = client.submit("ikl-at-digits", SHORT).id
        suite = [{"kind": "square", "queries": 10_000_000}]
        job_id = client.submit("autoattack-digits-linf", {"model.job": training, "suite": suite}).id
    wait_until(lambda: client.job(job_id).document["progress"], what="the job to be at work")
    assert client.job(job_id).cancel().status == "cancelling"
    asked = time.monotonic()
    job = ends(client, job_id, "canceled")
    assert time.monotonic() - asked < 15
    assert job["reason"] == "canceled while it ran"
    assert job["result"] is None
    assert settings.workdir(job_id).exists()  # it may be resumed
    after = client.submit("natural-digits", {"epochs": 1}).id
    ends(client, after)


def test_one_service_per_data_directory(shared_embedded: tuple[Settings, Client]) -> None:
    settings, _ = shared_embedded
    second = subprocess.run(
        [str(BIN / "dklbench"), "up", "--port", "0"],
        env={**os.environ, **settings.as_environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert second.returncode == 1
    assert "already serves" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_job_that_cannot_work_fails_with_a_sentence(shared_embedded: tuple[Settings, Client]) -> None:
    settings, client = shared_embedded
    job = ends(client, client.submit("natural-digits", {"dataset": "npz:mine"}).id, "failed")
    assert str(settings.datasets_dir / "mine_train.npz") in job["reason"]
    assert "put it there" in job["reason"]
    with pytest.raises(ServiceError, match="digits has 360 test images, found images=5000; ask for fewer"):
        client.submit("autoattack-digits-linf", {"model.job": job["id"], "images": 5000})
