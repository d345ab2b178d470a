"""Several hosts, as docs/deployment.md sets them up: database, broker, bucket and service on one, workers on two
more, each with a disk of its own, and cables between them that are pulled while they work.

Slow: four trainings, and processes that import torch. tests/integration/test_celery.py covers the same roads on
one host in the fast suite.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import hosts
import httpx2
import psycopg
import pytest
import redis
from moto.server import ThreadedMotoServer
from processes import BIN, Processes, wait_until
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from service.db import connect, now, reading
from service.settings import Settings
from service.tables import Job, Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TRAINING = {"epochs": 24, "awp.first_epoch": 3, "images": 512}
PASSWORD = "of-this-test-alone"
LEASE_SECONDS = 12.0
WORKERS = ("b", "c")


@pytest.fixture(scope="module")
def network() -> Iterator[hosts.Network]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    with hosts.Network(["a", *WORKERS]) as network, network.inside("a"):
        yield network


@pytest.fixture(scope="module")
def running(network: hosts.Network, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    folder = tmp_path_factory.mktemp("logs")
    running = Processes(folder)
    yield running
    running.end()
    print(running.output())


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A folder that PostgreSQL's user can reach; pytest's own are root's alone."""
    with TemporaryDirectory(prefix="dklbench-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def settings(
    network: hosts.Network, disk: Path, running: Processes, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """Of host A, where all three servers are; the addresses are the ones that the others use."""
    folder, address = tmp_path_factory.mktemp("a"), network.address["a"]
    database = postgres(disk, address, running)
    broker = f"redis://:{PASSWORD}@{address}:6379/0"
    running.start(
        "redis-server", "--bind", address, "--dir", str(folder), "--appendonly", "yes", "--requirepass", PASSWORD,
        environment={},
    )  # fmt: skip
    wait_until(lambda: redis_answers(broker), what="Redis")
    return Settings(
        database_url=database,
        broker_url=broker,
        store="s3://dklbench",
        data_dir=folder / "data",
        device="cpu",
        anonymous="submit",
        lease_seconds=LEASE_SECONDS,
        heartbeat_seconds=2,
        sweep_seconds=1,
        resend_seconds=5,
        requests_per_minute=100_000,
        min_free_bytes=0,
    )


def postgres(home: Path, address: str, running: Processes) -> str:
    """A cluster that lets in who knows the password; its address. PostgreSQL does not run as root."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parts[-2]))
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    home.chmod(0o755)
    (home / "password").write_text(PASSWORD)
    for path in (home, home / "password"):
        shutil.chown(path, "postgres")
    data = home / "data"
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "dklbench", "--pwfile", str(home / "password")]
    quickly = ["--auth=scram-sha-256", "-E", "UTF8", "--no-sync"]
    subprocess.run([*initdb, *quickly], check=True, capture_output=True, user="postgres", cwd=home)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 10.77.0.0/24 scram-sha-256\n")
    running.start(
        "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
        str(binaries / "postgres"), "-D", str(data),
        "-c", f"listen_addresses={address}", "-c", f"unix_socket_directories={home}", "-c", "fsync=off",
        environment={},
    )  # fmt: skip
    url = f"postgresql://dklbench:{PASSWORD}@{address}/postgres"
    wait_until(lambda: postgres_answers(url), what="PostgreSQL")
    return url


def postgres_answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def redis_answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as connection:
            return bool(connection.ping())
    except redis.exceptions.RedisError:
        return False


@pytest.fixture(scope="module")
def bucket(network: hosts.Network) -> Iterator[dict[str, str]]:
    """A bucket on host A; the variables by which all hosts find it."""
    server = ThreadedMotoServer(network.address["a"], 5000, verbose=False)
    server.start()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{network.address['a']}:5000",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="dklbench")
        yield variables
    server.stop()


class Service:
    """The service's REST interface, asked from host A."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def answers(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def submit(self, **overrides: Any) -> str:
        answer = self._http.post("/api/v1/jobs", json={"name": "ikl-at-digits", "overrides": overrides})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self._http.get(f"/api/v1/jobs/{job_id}").json())

    def cancel(self, job_id: str) -> None:
        assert self._http.post(f"/api/v1/jobs/{job_id}/cancel").is_success

    def epochs(self, job_id: str) -> list[int]:
        """Of the events, which end with the job."""
        text = self._http.get(f"/api/v1/jobs/{job_id}/events").text
        found = re.findall(r"^event: epoch\ndata: (.*)$", text.replace("\r", ""), re.MULTILINE)
        return [json.loads(data)["epoch"] for data in found]

    def host_of(self, job_id: str) -> str:
        """Where the job runs: b or c."""
        (worker,) = self.job(job_id)["workers"]
        return str(worker[0])

    def in_epoch(self, job_id: str, number: int) -> bool:
        progress = self.job(job_id)["progress"]
        return bool(progress) and int(progress["phase"].split()[1]) >= number

    def begun(self, epoch: int) -> str:
        """A training that is in that epoch."""
        job_id = self.submit(**TRAINING)
        wait_until(lambda: self.in_epoch(job_id, epoch), what=f"epoch {epoch}")
        return job_id

    def ends(self, job_id: str, status: str = "succeeded") -> dict[str, Any]:
        over = {"succeeded", "failed", "canceled"}
        wait_until(lambda: self.job(job_id)["status"] in over, 300, f"job {job_id} to end")
        job = self.job(job_id)
        assert job["status"] == status, job["reason"]
        return job


@pytest.fixture(scope="module")
def service(settings: Settings, bucket: dict[str, str], running: Processes) -> Iterator[Service]:
    environment = {**settings.as_environment(), **bucket}
    migrating = running.start(str(BIN / "dklbench"), "migrate", environment=environment)
    assert migrating.wait(60) == 0, running.output()
    running.start(str(BIN / "dklbench"), "serve", environment=environment)
    with httpx2.Client(base_url="http://127.0.0.1:8000", timeout=120) as http:
        service = Service(http)
        wait_until(service.answers, what="the service")
        yield service


@pytest.fixture(scope="module")
def workers(
    network: hosts.Network,
    settings: Settings,
    bucket: dict[str, str],
    service: Service,
    running: Processes,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A Celery worker on each further host; the folders that are their disks."""
    folders = {}
    for name in WORKERS:
        folders[name] = tmp_path_factory.mktemp(name)
        own = settings.model_copy(update={"data_dir": folders[name]})
        command = network.on(name, str(BIN / "celery"), "-A", "workers.app", "worker", "-n", f"{name}@host-{name}")
        running.start(*command, environment={**own.as_environment(), **bucket, "REMAP_SIGTERM": "SIGQUIT"})
    wait_until(lambda: live(settings) == set(WORKERS), what="both workers")
    return folders


def live(settings: Settings) -> set[str]:
    """The hosts whose workers have beaten within their lease."""
    db = connect(settings.database_url)
    try:
        with reading(db) as session:
            alive = select(Worker.name).where(Worker.beat_at > now() - settings.lease_seconds)
            return {name[0] for name in session.scalars(alive)}
    finally:
        db.dispose()


@pytest.fixture(scope="module")
def undisturbed(service: Service, workers: dict[str, Path]) -> tuple[str, float]:
    result = service.ends(service.submit(**TRAINING))["result"]
    return result["checkpoint_sha256"], result["clean_accuracy"]


def test_a_job_moves_to_another_host_when_its_own_is_cut_off(
    network: hosts.Network,
    settings: Settings,
    service: Service,
    workers: dict[str, Path],
    running: Processes,
    undisturbed: tuple[str, float],
) -> None:
    job_id = service.begun(3)
    lost = service.host_of(job_id)
    (other,) = set(WORKERS) - {lost}
    network.unplug(lost)
    try:
        wait_until(lambda: service.job(job_id)["attempt"] == 2, 60, "the job to move")
        assert service.host_of(job_id) == other
        wait_until(lambda: service.in_epoch(job_id, 2), what="epoch 2 on the other host")
        assert live(settings) == {other}
        job = service.ends(job_id)
    finally:
        network.plug(lost)
    assert (job["result"]["checkpoint_sha256"], job["result"]["clean_accuracy"]) == undisturbed
    assert job["attempt"] == 2
    assert service.epochs(job_id) == list(range(1, TRAINING["epochs"] + 1))  # each once, whoever said it
    # The lost host was at it all the time. What it says now is refused, and it leaves the job.
    refused = f"leaving job {job_id}: job {job_id} is succeeded, and attempt 1 is no longer at it"
    wait_until(lambda: refused in running.output(), 180, "its late words to be refused")
    assert service.job(job_id)["result"] == job["result"]
    wait_until(lambda: live(settings) == set(WORKERS), what="the lost host to be back")
    wait_until(lambda: not (workers[lost] / "work" / job_id).exists(), what="its work folder to be cleared")
    both = [service.submit(epochs=100_000) for _ in WORKERS]
    wait_until(lambda: all(service.job(each)["workers"] for each in both), what="both hosts to work")
    assert {service.host_of(each) for each in both} == set(WORKERS)
    for each in both:
        service.cancel(each)
        service.ends(each, "canceled")


def test_servers_that_are_away_for_less_than_a_lease_cost_nothing(
    network: hosts.Network, service: Service, workers: dict[str, Path], undisturbed: tuple[str, float]
) -> None:
    job_id = service.begun(3)
    network.unplug("a")
    time.sleep(LEASE_SECONDS / 4)
    network.plug("a")
    job = service.ends(job_id)
    assert (job["result"]["checkpoint_sha256"], job["result"]["clean_accuracy"]) == undisturbed
    assert job["attempt"] == 1


def test_a_host_that_goes_in_the_middle_of_a_transaction_holds_nobody_up(
    network: hosts.Network, settings: Settings, service: Service
) -> None:
    """It has locked a job's row, and PostgreSQL cannot see that nobody is there any more."""
    job_id = service.submit(epochs=100_000)
    with network.inside("b"):
        db = connect(settings.database_url)
        held = db.connect()
        held.execute(select(Job.id).where(Job.id == job_id).with_for_update())
    network.unplug("b")
    try:
        before = time.monotonic()
        service.cancel(job_id)
        assert time.monotonic() - before < 60  # PostgreSQL has given up on the vanished transaction
    finally:
        network.plug("b")
    with pytest.raises(OperationalError):  # its connection is gone, and with it the lock
        held.execute(select(1))
    held.invalidate()
    db.dispose()
    service.ends(job_id, "canceled")
